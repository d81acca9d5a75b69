//! `Player`: runs a script on a subject and takes the time of each batch.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::script::BATCH;
use crate::subject::Last;
use crate::{Handle, Op, Script, Subject};

/// A subject in the middle of a script.
///
/// The table of live blocks has no tags: a script that [passes](Script::check) says by itself which slots are filled. So a block
/// is written straight to its slot and freed where it lies, and none is moved through the stack or looked at before.
pub struct Player<'a, S: Subject + 'a> {
    handle: S::Handle<'a>,
    live: Vec<MaybeUninit<S::Block>>,
    script: &'a Script,
    at: usize,
}

impl<'a, S: Subject + 'a> Player<'a, S> {
    /// Plays the prologue.
    ///
    /// # Panics
    /// Where the script does not pass its check.
    pub fn new(subject: &'a S, script: &'a Script, stream: usize) -> Player<'a, S> {
        script.check().expect("a script that fits together");
        let live = (0..script.slots).map(|_| MaybeUninit::uninit()).collect();
        let mut player = Player { handle: subject.handle(stream), live, script, at: 0 };
        player.play(&script.prologue);
        player
    }

    /// Plays operations, which have to be the script's next.
    #[inline]
    fn play(&mut self, ops: &[Op]) {
        for op in ops {
            let place = &mut self.live[op.slot as usize];
            if op.size == 0 {
                // SAFETY: the script passed its check, so this slot was filled and not emptied since, and is filled again before
                // it is emptied again.
                self.handle.free(unsafe { Last::of(place) });
            } else {
                let block = place.write(self.handle.alloc(op.size));
                black_box(S::Handle::address(block));
            }
        }
    }

    /// Plays up to `most` operations of the cycle, and none of the next; answers how many.
    #[inline]
    pub fn play_on(&mut self, most: usize) -> usize {
        let script = self.script;
        let (at, end) = (self.at, script.cycle.len().min(self.at + most));
        self.play(&script.cycle[at..end]);
        self.at = if end == script.cycle.len() { 0 } else { end };
        end - at
    }

    /// Plays the next batch; answers how many operations it had. The last batch of a cycle can be short.
    #[inline]
    pub fn batch(&mut self) -> usize {
        self.play_on(BATCH)
    }

    /// Plays the cycle from wherever it is until it is there again.
    pub fn cycle(&mut self) {
        let mut left = self.script.cycle.len();
        while left > 0 {
            left -= self.batch();
        }
    }

    /// Plays until `time` has passed, at least one batch, and takes the time of each batch of full length.
    pub fn timed(&mut self, time: Duration, into: &mut Timing) {
        let start = Instant::now();
        let mut before = start;
        loop {
            let ops = self.batch();
            let now = Instant::now();
            if ops == BATCH {
                into.record(now - before);
            }
            before = now;
            if now - start >= time {
                return;
            }
        }
    }

    /// How long `pairs` allocations and as many frees take, about: whole batches, taken together.
    pub fn time_of(&mut self, pairs: u64) -> Duration {
        let (mut ops, start) = (0, Instant::now());
        while ops < 2 * pairs {
            ops += self.batch() as u64;
        }
        let elapsed = start.elapsed();
        Duration::from_nanos((elapsed.as_nanos() as f64 * (2 * pairs) as f64 / ops as f64) as u64)
    }
}

impl<'a, S: Subject + 'a> Drop for Player<'a, S> {
    fn drop(&mut self) {
        let mut filled = vec![false; self.script.slots];
        let done = self.script.prologue.iter().chain(&self.script.cycle[..self.at]);
        done.for_each(|op| filled[op.slot as usize] = op.size != 0);
        for (place, _) in self.live.iter_mut().zip(filled).filter(|(_, filled)| *filled) {
            // SAFETY: this is what the operations so far have left filled; every cycle before began and ended alike.
            self.handle.free(unsafe { Last::of(place) });
        }
    }
}

/// Times of batches.
#[derive(Clone, Debug)]
pub struct Timing {
    batches: Histogram<u64>,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { batches: Histogram::new(3).expect("three figures are allowed") }
    }
}

impl Timing {
    /// One batch took this long.
    pub(crate) fn record(&mut self, batch: Duration) {
        let nanoseconds = u64::try_from(batch.as_nanos()).unwrap_or(u64::MAX);
        self.batches.record(nanoseconds).expect("a histogram that grows takes any value");
    }

    /// Nanoseconds of an allocation and a free in the batches at this quantile: half the batch's operations are one, half
    /// the other, so the batch's time is divided by 32.
    pub fn pair(&self, quantile: f64) -> f64 {
        self.batches.value_at_quantile(quantile) as f64 / (BATCH / 2) as f64
    }

    /// Nanoseconds of an allocation and a free in the middle half of the batches, on average. What interrupted a batch is not in
    /// it, and steps of a coarse clock (10 ns on some virtual machines, a third of a nanosecond of a pair) average out.
    pub fn middle_pair(&self) -> f64 {
        let (from, to) = (self.batches.len() / 4, self.batches.len() - self.batches.len() / 4);
        let (mut seen, mut sum) = (0, 0.0);
        for step in self.batches.iter_recorded() {
            let (before, after) = (seen, seen + step.count_at_value());
            let inside = after.min(to).saturating_sub(before.max(from));
            sum += inside as f64 * step.value_iterated_to() as f64;
            seen = after;
        }
        sum / (to - from) as f64 / (BATCH / 2) as f64
    }

    /// Batches recorded.
    pub fn len(&self) -> u64 {
        self.batches.len()
    }

    /// Whether none was recorded.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Another thread's batches, too.
    pub fn merge(&mut self, other: &Timing) {
        self.batches.add(&other.batches).expect("a histogram that grows takes any value");
    }
}

/// Something that takes turns: it plays for about this long and answers nanoseconds of a pair, of the middle half of its batches.
pub type Turn<'a> = Box<dyn FnMut(Duration) -> f64 + 'a>;

/// A turn of this player.
pub fn turn<'a, S: Subject + 'a>(mut player: Player<'a, S>) -> Turn<'a> {
    Box::new(move |time| {
        let mut timing = Timing::default();
        player.timed(time, &mut timing);
        timing.middle_pair()
    })
}

/// Lets all play in turns, `rounds` times for `time` each; answers for each its median over the rounds.
///
/// A round is short, so a slow moment of the machine hits neighbours alike; the order is turned round in each round.
pub fn compare(turns: &mut [Turn<'_>], rounds: usize, time: Duration) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(rounds); turns.len()];
    for round in 0..rounds {
        for i in 0..turns.len() {
            let i = if round % 2 == 0 { i } else { turns.len() - 1 - i };
            times[i].push(turns[i](time));
        }
    }
    times
}

/// The median of numbers that are not NaN.
pub fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    let (low, high) = (numbers.len().saturating_sub(1) / 2, numbers.len() / 2);
    numbers.get(low).zip(numbers.get(high)).map_or(f64::NAN, |(low, high)| f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_without_what_is_rare_and_between_the_clocks_steps() {
        let mut timing = Timing::default();
        let mut batches = |nanoseconds, count| {
            (0..count).for_each(|_| timing.record(Duration::from_nanos(nanoseconds)));
        };
        batches(320, 40);
        batches(352, 40);
        batches(1_000_000, 20);
        // The 25th to the 75th of 100: 15 of 320 and 35 of 352.
        let expected = (15.0 * 320.0 + 35.0 * 352.0) / 50.0 / 32.0;
        assert!((timing.middle_pair() / expected - 1.0).abs() < 1e-6, "{}", timing.middle_pair());
        assert_eq!(timing.pair(0.5), 11.0);
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
