//! Scripts against the events they were made of: a naive reading calls the same allocator for each event as it comes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use granule_bank::trace::{Error, Event, OwnerId, PoolId, Reader, Record, Recorder, StreamId, Tracer};
use granule_device::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What an allocator was asked to do; a block is the number of its allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Alloc(u64, Option<StreamId>, Bytes, Bytes),
    Refuse,
    Used(u64, StreamId),
    Free(u64),
    Begin(StreamId),
    End(StreamId),
    Trim(PoolId),
}

/// Writes down what it is asked for, and refuses whatever is larger than `limit`.
struct Log<'a> {
    script: &'a Script,
    calls: &'a mut Vec<Call>,
    limit: u64,
    next: u64,
}

impl Log<'_> {
    fn stream(&self, stream: u32) -> StreamId {
        self.script.streams()[stream as usize].unwrap()
    }
}

impl Subject for Log<'_> {
    type Block = u64;
    type Error = ();

    fn alloc(&mut self, request: Request) -> Result<u64, ()> {
        assert!(request.align.get().is_power_of_two());
        if request.size.get() > self.limit {
            self.calls.push(Call::Refuse);
            return Err(());
        }
        let stream = self.script.streams()[request.stream as usize];
        self.calls.push(Call::Alloc(self.next, stream, request.size, request.align));
        self.next += 1;
        Ok(self.next - 1)
    }

    fn free(&mut self, block: u64) {
        self.calls.push(Call::Free(block));
    }

    fn used(&mut self, block: &mut u64, stream: u32) {
        self.calls.push(Call::Used(*block, self.stream(stream)));
    }

    fn capture_begin(&mut self, stream: u32) {
        self.calls.push(Call::Begin(self.stream(stream)));
    }

    fn capture_end(&mut self, stream: u32) {
        self.calls.push(Call::End(self.stream(stream)));
    }

    fn trim(&mut self, pool: u32) {
        self.calls.push(Call::Trim(self.script.pools()[pool as usize]));
    }
}

/// The calls, the most bytes live at once, and how many events name nothing.
fn naive(events: &[Event], limit: u64) -> (Vec<Call>, u64, u64) {
    let (mut calls, mut next, mut unknown, mut peak) = (Vec::new(), 0, 0, 0);
    // Address to block, if the allocator gave one, and size.
    let mut live: BTreeMap<u64, (Option<u64>, u64)> = BTreeMap::new();
    for event in events {
        match *event {
            Event::Alloc { at, stream, requested, align, .. } => {
                if let Some((Some(block), _)) = live.remove(&at) {
                    calls.push(Call::Free(block));
                }
                let block = if requested.get() > limit {
                    calls.push(Call::Refuse);
                    None
                } else {
                    calls.push(Call::Alloc(next, stream, requested, align));
                    next += 1;
                    Some(next - 1)
                };
                live.insert(at, (block, if block.is_some() { requested.get() } else { 0 }));
                peak = peak.max(live.values().map(|(_, size)| size).sum());
            }
            Event::Free { at } => match live.remove(&at) {
                Some((block, _)) => calls.extend(block.map(Call::Free)),
                None => unknown += 1,
            },
            Event::Used { at, stream } => match live.get(&at) {
                Some((block, _)) => calls.extend(block.map(|block| Call::Used(block, stream))),
                None => unknown += 1,
            },
            Event::CaptureBegin { stream } => calls.push(Call::Begin(stream)),
            Event::CaptureEnd { stream } => calls.push(Call::End(stream)),
            Event::Trim { pool, .. } => calls.push(Call::Trim(pool)),
            _ => {}
        }
    }
    (calls, peak, unknown)
}

fn event() -> impl Strategy<Value = Event> {
    // Few addresses, so that most events meet.
    let at = (0u64..12).prop_map(|at| at << 12);
    (0u8..12, at, 0u32..3, proptest::option::of(0u32..3), 0u64..5000, 0u32..12).prop_map(
        |(kind, at, id, stream, size, align)| {
            let (pool, owner) = (PoolId(id), OwnerId(0));
            match kind {
                0..5 => {
                    let (requested, stream) = (Bytes::new(size), stream.map(StreamId));
                    let given = Bytes::new(size.next_multiple_of(256));
                    let align = Bytes::new(1 << align);
                    Event::Alloc { at, pool, owner, stream, requested, given, align }
                }
                5..8 => Event::Free { at },
                8 => Event::Used { at, stream: StreamId(id) },
                9 => Event::CaptureBegin { stream: StreamId(id) },
                10 => Event::CaptureEnd { stream: StreamId(id) },
                _ => Event::Trim { pool, freed: Bytes::new(size) },
            }
        },
    )
}

fn records(events: &[Event]) -> impl Iterator<Item = Record> {
    events.iter().map(|event| Record { ns: 0, event: event.clone() })
}

proptest! {
    #[test]
    fn a_script_asks_for_what_was_recorded(
        events in vec(event(), 0..300), limit in prop_oneof![Just(u64::MAX), 0u64..5000], batch in 1usize..70,
    ) {
        let script = Script::of(records(&events));
        let (expected, peak, unknown) = naive(&events, limit);
        let mut calls = Vec::new();
        let mut player = Player::new(&script, Log { script: &script, calls: &mut calls, limit, next: 0 });
        let mut played = 0;
        loop {
            match player.play(batch) {
                0 => break,
                steps => played += steps,
            }
        }
        let report = player.finish();
        prop_assert_eq!(played, script.steps().len());
        prop_assert_eq!(&calls[..expected.len()], &expected);
        // What was live at the end was given back, each block once.
        let rest = &calls[expected.len()..];
        prop_assert!(rest.iter().all(|call| matches!(call, Call::Free(_))));
        prop_assert!(rest.len() as u64 <= script.unfreed());
        let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count() as u64;
        prop_assert_eq!(report.allocs, count(|call| matches!(call, Call::Alloc(..))));
        prop_assert_eq!(report.frees, report.allocs);
        prop_assert_eq!(report.frees, count(|call| matches!(call, Call::Free(_))));
        prop_assert_eq!(report.refused, count(|call| matches!(call, Call::Refuse)));
        prop_assert_eq!(report.peak_live, Bytes::new(peak));
        prop_assert_eq!(script.unknown(), unknown);
    }
}

/// A file that can be looked at when it is written.
#[derive(Clone, Default)]
pub(super) struct File(Arc<Mutex<Vec<u8>>>);

impl File {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_damaged_recording_is_no_script_but_what_is_whole_can_be_had() {
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::start(&tracer, file.clone(), "").unwrap();
    (0..30_000u64).for_each(|at| tracer.emit(|| Event::Trim { pool: PoolId(0), freed: Bytes::new(at * at) }));
    recorder.finish().unwrap();
    let bytes = file.bytes();
    let whole = Script::read(Reader::new(&bytes[..]).unwrap()).unwrap();
    assert_eq!(whole.steps().len(), 30_000);
    let cut = &bytes[..bytes.len() - 9];
    assert!(matches!(Script::read(Reader::new(cut).unwrap()), Err(Error::Truncated { .. })));
    let some = Script::of(Reader::new(cut).unwrap().map_while(Result::ok));
    assert!(!some.steps().is_empty() && whole.steps().starts_with(some.steps()));
}
