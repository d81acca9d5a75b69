//! `Player`: plays a script on a subject.

use granule_device::Bytes;

use super::{Script, Step};

/// What a step asks of an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// Which of the script's pools was asked.
    pub pool: u32,
    /// For which of the script's streams.
    pub stream: u32,
    /// How much. May be 0.
    pub size: Bytes,
    /// The alignment, a power of two.
    pub align: Bytes,
}

/// An allocator that scripts are played on.
pub trait Subject {
    /// What it hands out.
    type Block;
    /// Why it does not.
    type Error;

    /// Hands out memory.
    ///
    /// # Errors
    /// Where it cannot: that step is counted as refused, and those that need its block are left out.
    fn alloc(&mut self, request: Request) -> Result<Self::Block, Self::Error>;

    /// Takes a block back.
    fn free(&mut self, block: Self::Block);

    /// A further stream uses the block until it is freed. Does nothing where an allocator does not care.
    fn used(&mut self, _block: &mut Self::Block, _stream: u32) {}

    /// The stream's work is captured from here on. Does nothing where an allocator does not care.
    fn capture_begin(&mut self, _stream: u32) {}

    /// The capture ended.
    fn capture_end(&mut self, _stream: u32) {}

    /// Gives back what it can. Does nothing where there is nothing to give back.
    fn trim(&mut self, _pool: u32) {}
}

/// What playing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Blocks handed out.
    pub allocs: u64,
    /// Blocks taken back, those still live at the end of the script included.
    pub frees: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// The most bytes that were live at once, as they were asked for.
    pub peak_live: Bytes,
}

/// A subject in the middle of a script. Dropping it gives the live blocks back.
#[derive(Debug)]
pub struct Player<'a, S: Subject> {
    script: &'a Script,
    subject: S,
    next: usize,
    live: Vec<Option<(S::Block, Bytes)>>,
    bytes: Bytes,
    report: Report,
}

impl<'a, S: Subject> Player<'a, S> {
    /// At the script's beginning.
    pub fn new(script: &'a Script, subject: S) -> Player<'a, S> {
        let live = (0..script.slots()).map(|_| None).collect();
        Player { script, subject, next: 0, live, bytes: Bytes::ZERO, report: Report::default() }
    }

    /// What it is played on.
    pub fn subject(&self) -> &S {
        &self.subject
    }

    /// Plays up to `steps` further steps; answers how many, 0 where the script is at its end.
    pub fn play(&mut self, steps: usize) -> usize {
        let script = self.script;
        let end = script.steps().len().min(self.next.saturating_add(steps));
        for step in &script.steps()[self.next..end] {
            self.step(*step);
        }
        let played = end - self.next;
        self.next = end;
        played
    }

    /// Gives the live blocks back, in the order of their slots, and says what it all came to.
    pub fn finish(mut self) -> Report {
        self.give_back();
        self.report
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Alloc { slot, pool, stream, size, align } => {
                let Ok(block) = self.subject.alloc(Request { pool, stream, size, align }) else {
                    self.report.refused += 1;
                    return;
                };
                self.report.allocs += 1;
                self.bytes = self.bytes.saturating_add(size);
                self.report.peak_live = self.report.peak_live.max(self.bytes);
                if let Some(place) = self.live.get_mut(slot as usize) {
                    *place = Some((block, size));
                }
            }
            Step::Used { slot, stream } => {
                if let Some(Some((block, _))) = self.live.get_mut(slot as usize) {
                    self.subject.used(block, stream);
                }
            }
            Step::Free { slot } => self.free(slot as usize),
            Step::CaptureBegin { stream } => self.subject.capture_begin(stream),
            Step::CaptureEnd { stream } => self.subject.capture_end(stream),
            Step::Trim { pool } => self.subject.trim(pool),
        }
    }

    fn free(&mut self, slot: usize) {
        if let Some((block, size)) = self.live.get_mut(slot).and_then(Option::take) {
            self.subject.free(block);
            self.bytes = self.bytes.saturating_sub(size);
            self.report.frees += 1;
        }
    }

    fn give_back(&mut self) {
        (0..self.live.len()).for_each(|slot| self.free(slot));
    }
}

impl<S: Subject> Drop for Player<'_, S> {
    fn drop(&mut self) {
        self.give_back();
    }
}
