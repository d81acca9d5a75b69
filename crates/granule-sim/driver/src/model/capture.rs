//! Stream capture: operations become nodes of a graph instead of running, and many calls are forbidden.

use super::queue::Action;
use super::report::Kind;
use super::{Caller, Result, Simulation};
use crate::code::Code;
use std::collections::{BTreeMap, BTreeSet};

/// `CUstreamCaptureMode`, of a capture and of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Mode {
    #[default]
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub(crate) fn from_number(n: i32) -> Result<Mode> {
        match n {
            0 => Ok(Mode::Global),
            1 => Ok(Mode::ThreadLocal),
            2 => Ok(Mode::Relaxed),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    pub(crate) fn number(self) -> i32 {
        match self {
            Mode::Global => 0,
            Mode::ThreadLocal => 1,
            Mode::Relaxed => 2,
        }
    }
}

/// An operation of a graph, and the nodes that it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) context: u64,
    pub(crate) action: Action,
    pub(crate) any_device: bool,
    pub(crate) after: Vec<usize>,
}

#[derive(Debug)]
struct Capture {
    mode: Mode,
    thread: u64,
    origin: u64,
    context: u64,
    nodes: Vec<Node>,
    /// For each stream that takes part, the nodes that its next one waits for.
    frontier: BTreeMap<u64, BTreeSet<usize>>,
    broken: bool,
}

/// The captures in progress, and the mode of each thread that chose one.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    active: BTreeMap<u64, Capture>,
    modes: BTreeMap<u64, Mode>,
}

impl Simulation {
    pub(crate) fn begin_capture(&mut self, caller: &Caller, stream: u64, mode: Mode) -> Result<()> {
        let s = self.stream(stream)?;
        if s.capture.is_some() || self.is_legacy(stream) {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        let context = s.context;
        let capture = Capture {
            mode,
            thread: caller.thread,
            origin: stream,
            context,
            nodes: Vec::new(),
            frontier: BTreeMap::from([(stream, BTreeSet::new())]),
            broken: false,
        };
        let id = self.new_handle();
        self.captures.active.insert(id, capture);
        self.stream_mut(stream)?.capture = Some(id);
        Ok(())
    }

    /// The nodes of a capture that ends well.
    pub(crate) fn end_capture(&mut self, caller: &Caller, stream: u64) -> Result<Vec<Node>> {
        let id = self.stream(stream)?.capture.ok_or(Code::ILLEGAL_STATE)?;
        let capture = self.captures.active.get(&id).ok_or(Code::ILLEGAL_STATE)?;
        if capture.origin != stream {
            return Err(Code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != caller.thread {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        let Some(capture) = self.captures.active.remove(&id) else { return Err(Code::ILLEGAL_STATE) };
        self.streams.values_mut().filter(|s| s.capture == Some(id)).for_each(|s| s.capture = None);
        if capture.broken {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let joined = ancestors(&capture.nodes, capture.frontier.get(&stream));
        let all_joined = capture.frontier.values().flatten().all(|node| joined.contains(node));
        if !all_joined {
            return Err(Code::STREAM_CAPTURE_UNJOINED);
        }
        Ok(capture.nodes)
    }

    /// 0 not capturing, 1 capturing, 2 capturing in vain; and the capture's number.
    pub(crate) fn capture_status(&self, stream: u64) -> Result<(i32, u64)> {
        let id = self.stream(stream)?.capture;
        let broken = id.and_then(|id| self.captures.active.get(&id)).map(|c| c.broken);
        Ok(match broken {
            None => (0, 0),
            Some(false) => (1, id.unwrap_or(0)),
            Some(true) => (2, id.unwrap_or(0)),
        })
    }

    pub(crate) fn exchange_mode(&mut self, caller: &Caller, mode: Mode) -> Mode {
        self.captures.modes.insert(caller.thread, mode).unwrap_or_default()
    }

    /// The capture that a stream takes part in. A broken one is an error.
    pub(crate) fn capture_of(&self, stream: u64) -> Result<Option<u64>> {
        let Some(id) = self.stream(stream)?.capture else { return Ok(None) };
        match self.captures.active.get(&id) {
            Some(c) if c.broken => Err(Code::STREAM_CAPTURE_INVALIDATED),
            found => Ok(found.map(|_| id)),
        }
    }

    /// Adds a node behind everything that the stream has captured.
    pub(crate) fn capture_node(
        &mut self,
        stream: u64,
        context: u64,
        action: Action,
        any_device: bool,
    ) -> Result<()> {
        let id = self.stream(stream)?.capture.ok_or(Code::ILLEGAL_STATE)?;
        let capture = self.captures.active.get_mut(&id).ok_or(Code::ILLEGAL_STATE)?;
        let frontier = capture.frontier.entry(stream).or_default();
        let after = frontier.iter().copied().collect();
        let number = capture.nodes.len();
        *frontier = BTreeSet::from([number]);
        capture.nodes.push(Node { context, action, any_device, after });
        Ok(())
    }

    /// Adds all nodes of a graph behind everything that the stream has captured; its next node waits for all of them.
    pub(crate) fn capture_graph(&mut self, stream: u64, nodes: &[Node]) -> Result<()> {
        let id = self.stream(stream)?.capture.ok_or(Code::ILLEGAL_STATE)?;
        let capture = self.captures.active.get_mut(&id).ok_or(Code::ILLEGAL_STATE)?;
        let frontier = capture.frontier.entry(stream).or_default();
        let first = capture.nodes.len();
        for node in nodes {
            let mut after: Vec<usize> = node.after.iter().map(|n| n + first).collect();
            if after.is_empty() {
                after.extend(frontier.iter());
            }
            capture.nodes.push(Node { after, ..node.clone() });
        }
        if !nodes.is_empty() {
            *frontier = (first..capture.nodes.len()).collect();
        }
        Ok(())
    }

    /// The captures of a context that goes are over.
    pub(crate) fn end_captures_of_context(&mut self, context: u64) {
        self.captures.active.retain(|_, c| c.context != context);
        let active = &self.captures.active;
        self.streams.values_mut().for_each(|s| s.capture = s.capture.filter(|id| active.contains_key(id)));
    }

    /// The nodes that an event recorded now in a capturing stream stands for.
    pub(crate) fn capture_frontier(&self, capture: u64, stream: u64) -> Result<Vec<usize>> {
        let capture = self.captures.active.get(&capture).ok_or(Code::ILLEGAL_STATE)?;
        Ok(capture.frontier.get(&stream).map_or_else(Vec::new, |f| f.iter().copied().collect()))
    }

    /// A stream waits for an event of a capture: it takes part from now on.
    pub(crate) fn capture_join(&mut self, stream: u64, capture: u64, nodes: &[usize]) -> Result<()> {
        let mine = self.stream(stream)?.capture;
        let legacy = self.is_legacy(stream);
        let Some(c) = self.captures.active.get_mut(&capture) else {
            // "The event was last recorded in a capturing stream", and that capture is over.
            return Err(Code::CAPTURED_EVENT);
        };
        if mine.is_some_and(|m| m != capture) {
            c.broken = true;
            return self.capture_breaks(stream, Code::STREAM_CAPTURE_MERGE);
        }
        if c.broken {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        if legacy {
            c.broken = true;
            return Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
        c.frontier.entry(stream).or_default().extend(nodes);
        self.stream_mut(stream)?.capture = Some(capture);
        Ok(())
    }

    /// The stream's capture can no longer end well.
    pub(crate) fn capture_breaks<T>(&mut self, stream: u64, code: Code) -> Result<T> {
        let id = self.stream(stream)?.capture;
        if let Some(capture) = id.and_then(|id| self.captures.active.get_mut(&id)) {
            capture.broken = true;
        }
        Err(code)
    }

    /// Work on the legacy default stream would wait for a capturing stream.
    pub(crate) fn capture_forbids_legacy(&mut self, stream: u64) -> Result<()> {
        if !self.is_legacy(stream) || self.captures.active.is_empty() {
            return Ok(());
        }
        let context = self.stream(stream)?.context;
        let streams = &self.streams;
        let mut forbidden = false;
        for capture in self.captures.active.values_mut().filter(|c| c.context == context) {
            if capture.frontier.keys().any(|s| streams.get(s).is_some_and(|s| !s.free)) {
                capture.broken = true;
                forbidden = true;
            }
        }
        if forbidden { Err(Code::STREAM_CAPTURE_IMPLICIT) } else { Ok(()) }
    }

    /// A capturing stream can be neither asked nor waited for.
    pub(crate) fn refuse_if_capturing(&mut self, stream: u64) -> Result<()> {
        if self.stream(stream)?.capture.is_none() {
            return Ok(());
        }
        self.capture_breaks(stream, Code::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// A context with a capturing stream cannot be waited for.
    pub(crate) fn refuse_if_any_captures(&mut self, context: u64) -> Result<()> {
        let mut forbidden = false;
        for capture in self.captures.active.values_mut().filter(|c| c.context == context) {
            capture.broken = true;
            forbidden = true;
        }
        if forbidden { Err(Code::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// The captures that forbid this thread "potentially unsafe" calls. The rule is `cuThreadExchangeStreamCaptureMode`'s.
    fn forbidding(&self, caller: &Caller) -> Vec<u64> {
        let mode = self.captures.modes.get(&caller.thread).copied().unwrap_or_default();
        let forbids = |c: &Capture| match mode {
            Mode::Relaxed => false,
            Mode::ThreadLocal => c.thread == caller.thread && c.mode != Mode::Relaxed,
            Mode::Global if c.thread == caller.thread => c.mode != Mode::Relaxed,
            Mode::Global => c.mode == Mode::Global,
        };
        self.captures.active.iter().filter(|(_, c)| forbids(c)).map(|(&id, _)| id).collect()
    }

    /// For calls such as `cuMemAlloc`, which may wait for the device.
    pub(crate) fn forbid_while_capturing(&mut self, caller: &Caller) -> Result<()> {
        let forbidding = self.forbidding(caller);
        for id in &forbidding {
            if let Some(capture) = self.captures.active.get_mut(id) {
                capture.broken = true;
            }
        }
        if forbidding.is_empty() { Ok(()) } else { Err(Code::STREAM_CAPTURE_UNSUPPORTED) }
    }

    /// As [`Simulation::forbid_while_capturing`], and reported: memory under a graph's feet.
    pub(crate) fn forbid_vmm_while_capturing(&mut self, caller: &Caller) -> Result<()> {
        let allowed = self.forbid_while_capturing(caller);
        if allowed.is_err() {
            let message = format!("{} changes virtual memory while a stream is capturing", caller.call);
            self.reports.add(Kind::VmmDuringCapture, message);
        }
        allowed
    }

    /// A stream goes while it takes part in a capture: the capture is broken, and over where the stream began it.
    pub(crate) fn end_capture_of_destroyed(&mut self, stream: u64) {
        let Some(id) = self.streams.get(&stream).and_then(|s| s.capture) else { return };
        if let Some(capture) = self.captures.active.get_mut(&id) {
            capture.broken = true;
            if capture.origin == stream {
                self.captures.active.remove(&id);
                self.streams.values_mut().filter(|s| s.capture == Some(id)).for_each(|s| s.capture = None);
            }
        }
    }
}

/// Nodes that `last` is made of or waits for.
fn ancestors(nodes: &[Node], last: Option<&BTreeSet<usize>>) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open: Vec<usize> = last.into_iter().flatten().copied().collect();
    while let Some(node) = open.pop() {
        if found.insert(node) {
            open.extend(&nodes[node].after);
        }
    }
    found
}
