//! Who is told when memory runs low and when there is enough again: the policy of a [watch](crate::Watch).
//!
//! Pure. What was free is noted whenever it changes; who tells takes what to tell, later. However many changes there were in
//! between, a watch hears low and enough in turn, of a dip that is over at least that it was, and in the end what is true.

use granule_device::Bytes;

use crate::Level;

/// What one watch has seen, and what it has told.
#[derive(Debug)]
pub(crate) struct Levels {
    threshold: Bytes,
    now: Level,
    told: Level,
    /// Whether it was on the other side at some time since it last told.
    crossed: bool,
}

impl Levels {
    /// It takes it that there is enough until it sees otherwise.
    pub(crate) fn new(threshold: Bytes) -> Levels {
        Levels { threshold, now: Level::Enough, told: Level::Enough, crossed: false }
    }

    /// Notes how much is free; true where there is something to tell.
    pub(crate) fn note(&mut self, free: Bytes) -> bool {
        self.now = if free < self.threshold { Level::Low } else { Level::Enough };
        self.crossed |= self.now != self.told;
        self.crossed
    }

    /// What to tell next; `None` where it has told all.
    pub(crate) fn tell(&mut self) -> Option<Level> {
        let tell = self.crossed.then_some(match self.told {
            Level::Low => Level::Enough,
            Level::Enough => Level::Low,
        })?;
        self.told = tell;
        self.crossed = self.now != tell;
        Some(tell)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 1000 }))]
        /// Against the twin that keeps every change: `None` is a moment at which all is told that there is to tell.
        #[test]
        fn in_turn_and_true_in_the_end(
            threshold in 0..10u64,
            steps in proptest::collection::vec(proptest::option::of(0..12u64), 0..60),
        ) {
            let mut levels = Levels::new(Bytes::new(threshold));
            let mut all = vec![false];
            let mut heard_until = 1;
            for step in steps.into_iter().chain([None]) {
                if let Some(free) = step {
                    let low = free < threshold;
                    if all.last() != Some(&low) {
                        all.push(low);
                    }
                    prop_assert_eq!(levels.note(Bytes::new(free)), all.len() > heard_until);
                    continue;
                }
                let heard: Vec<bool> = std::iter::from_fn(|| levels.tell()).map(|level| level == Level::Low).collect();
                // Of an odd number of changes the last one; of an even one, that there was something and is not any more.
                let changes = &all[heard_until..];
                let expected = &changes[changes.len().saturating_sub(2 - changes.len() % 2)..];
                prop_assert_eq!(&heard[..], expected);
                heard_until = all.len();
            }
        }
    }
}
