//! Who is told when memory runs low and when there is enough again: the policy of [watches](crate::Watch).
//!
//! Pure. Each watch hears of every change at most once, in order, low and enough in turn: whoever notices a change tells,
//! unless somebody is telling this watch already, who then goes on until it has heard the latest.

use granule_device::Bytes;

use crate::Level;

/// All watches of a bank.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    entries: Vec<Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    threshold: Bytes,
    now: Level,
    told: Level,
    telling: bool,
}

impl Levels {
    /// A new watch, which takes it that there is enough until it hears otherwise.
    pub(crate) fn add(&mut self, threshold: Bytes) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.push(Entry { id, threshold, now: Level::Enough, told: Level::Enough, telling: false });
        id
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.entries.retain(|entry| entry.id != id);
    }

    /// Notes how much is free; answers the watches that the caller is to tell, each until [`tell`](Levels::tell) says none.
    pub(crate) fn note(&mut self, free: Bytes) -> Vec<u64> {
        let mut to_tell = Vec::new();
        for entry in &mut self.entries {
            entry.now = if free < entry.threshold { Level::Low } else { Level::Enough };
            if entry.now != entry.told && !entry.telling {
                entry.telling = true;
                to_tell.push(entry.id);
            }
        }
        to_tell
    }

    /// What to tell the watch next; `None` where it knows all, or is gone, and nobody is telling it any more.
    pub(crate) fn tell(&mut self, id: u64) -> Option<Level> {
        let entry = self.entries.iter_mut().find(|entry| entry.id == id)?;
        entry.telling = entry.now != entry.told;
        entry.told = entry.now;
        entry.telling.then_some(entry.now)
    }

    /// Nobody is telling the watch any more, whether or not it knows all.
    pub(crate) fn stop_telling(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.telling = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        /// So much is free now.
        Free(u64),
        /// The n-th of those who are telling takes its next step.
        Step(usize),
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 1000 }))]
        /// However noticing and telling interleave, a watch hears low and enough in turn, and in the end what is true.
        #[test]
        fn in_turn_and_true_in_the_end(
            thresholds in proptest::collection::vec(0..10u64, 1..4),
            ops in proptest::collection::vec(
                prop_oneof![(0..12u64).prop_map(Op::Free), any::<usize>().prop_map(Op::Step)], 0..60),
        ) {
            let mut levels = Levels::default();
            let ids: Vec<u64> = thresholds.iter().map(|&threshold| levels.add(Bytes::new(threshold))).collect();
            let mut heard: Vec<Vec<Level>> = vec![Vec::new(); ids.len()];
            let mut tellers: Vec<u64> = Vec::new();
            let mut free = u64::MAX;
            let mut step = |levels: &mut Levels, tellers: &mut Vec<u64>, which: usize| {
                let id = tellers[which];
                match levels.tell(id) {
                    Some(level) => heard[ids.iter().position(|&other| other == id).unwrap()].push(level),
                    None => drop(tellers.swap_remove(which)),
                }
            };
            for op in ops {
                match op {
                    Op::Free(now) => {
                        free = now;
                        tellers.extend(levels.note(Bytes::new(now)));
                        let mut once = tellers.clone();
                        once.sort_unstable();
                        once.dedup();
                        prop_assert_eq!(once.len(), tellers.len(), "two tell one watch at once");
                    }
                    Op::Step(which) if !tellers.is_empty() => {
                        let which = which % tellers.len();
                        step(&mut levels, &mut tellers, which);
                    }
                    Op::Step(_) => {}
                }
            }
            while !tellers.is_empty() {
                step(&mut levels, &mut tellers, 0);
            }
            for (heard, threshold) in heard.iter().zip(thresholds) {
                let alternating = heard.iter().enumerate().all(|(index, &level)| (level == Level::Low) == (index % 2 == 0));
                prop_assert!(alternating, "{heard:?}");
                let believes_low = heard.last() == Some(&Level::Low);
                prop_assert_eq!(believes_low, free < threshold);
            }
        }
    }
}
