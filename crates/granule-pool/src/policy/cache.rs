//! `Cache`: free blocks of the size classes, the last one freed first.

use super::class::Class;

/// One last-in-first-out list per class. The block that a stream freed last is the one it gets next: its memory is the
/// likeliest to be warm, and no other stream has to be waited for.
#[derive(Debug)]
pub struct Cache<E> {
    lists: [Vec<E>; Class::COUNT],
}

impl<E> Default for Cache<E> {
    fn default() -> Cache<E> {
        Cache::new()
    }
}

impl<E> Cache<E> {
    /// An empty one. Nothing is allocated before something is pushed.
    pub const fn new() -> Cache<E> {
        Cache { lists: [const { Vec::new() }; Class::COUNT] }
    }

    /// Puts a block of the class on top.
    #[inline]
    pub fn push(&mut self, class: Class, entry: E) {
        self.lists[class.index()].push(entry);
    }

    /// The block of the class that was pushed last.
    #[inline]
    pub fn pop(&mut self, class: Class) -> Option<E> {
        self.lists[class.index()].pop()
    }

    /// The bytes of all blocks in it: added up when asked, so that pushing and popping need not.
    pub fn bytes(&self) -> u64 {
        Class::all().zip(&self.lists).map(|(class, list)| list.len() as u64 * class.size()).sum()
    }

    /// How many blocks of the class are in it.
    pub fn len(&self, class: Class) -> usize {
        self.lists[class.index()].len()
    }

    /// True where it has no block of any class.
    pub fn is_empty(&self) -> bool {
        self.lists.iter().all(Vec::is_empty)
    }

    /// Takes blocks out into `out` until at most `bytes` are left, 0 for a flush. In rounds over the classes from the largest
    /// on, each of which gives the older half of what it has: no class is emptied for another, and what was used last stays.
    /// Of one class the oldest comes out first.
    pub fn drain_to(&mut self, bytes: u64, out: &mut Vec<(Class, E)>) {
        let mut left = self.bytes();
        while left > bytes {
            for (class, list) in Class::all().zip(&mut self.lists).rev() {
                let surplus = left.saturating_sub(bytes).div_ceil(class.size());
                let half = list.len().div_ceil(2);
                let count = usize::try_from(surplus).map_or(half, |surplus| surplus.min(half));
                left -= count as u64 * class.size();
                out.extend(list.drain(..count).map(|entry| (class, entry)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Pop(usize),
        DrainTo(u64),
    }

    /// Few classes, so that lists get long, and both ends of the table.
    const INDICES: [usize; 5] = [0, 1, 9, 40, 79];

    fn step() -> impl Strategy<Value = Step> {
        let index = prop::sample::select(&INDICES[..]);
        prop_oneof![
            6 => index.clone().prop_map(Step::Push),
            3 => index.prop_map(Step::Pop),
            1 => prop_oneof![Just(0), 0_u64..3 << 20].prop_map(Step::DrainTo),
        ]
    }

    fn class(index: usize) -> Class {
        Class::all().nth(index).expect("a class")
    }

    proptest! {
        #![proptest_config(crate::policy::few_under_miri(256))]

        #[test]
        fn lists_are_last_in_first_out_and_drain_from_the_oldest(steps in prop::collection::vec(step(), 0..crate::policy::short_under_miri(80))) {
            let mut cache = Cache::new();
            // The model: one list of everything in the order of pushing.
            let mut model: Vec<(usize, usize)> = Vec::new();
            for (name, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(index) => {
                        cache.push(class(index), name);
                        model.push((index, name));
                    }
                    Step::Pop(index) => {
                        let last = model.iter().rposition(|&(of, _)| of == index);
                        prop_assert_eq!(cache.pop(class(index)), last.map(|at| model.remove(at).1));
                    }
                    Step::DrainTo(bytes) => {
                        let mut out = Vec::new();
                        cache.drain_to(bytes, &mut out);
                        for (class, name) in out {
                            let oldest = model.iter().position(|&(of, _)| of == class.index());
                            prop_assert_eq!(oldest.map(|at| model.remove(at).1), Some(name));
                        }
                        prop_assert!(cache.bytes() <= bytes);
                    }
                }
                let bytes: u64 = model.iter().map(|&(index, _)| class(index).size()).sum();
                prop_assert_eq!(cache.bytes(), bytes);
                prop_assert_eq!(cache.is_empty(), model.is_empty());
                for index in INDICES {
                    prop_assert_eq!(cache.len(class(index)), model.iter().filter(|&&(of, _)| of == index).count());
                }
            }
        }
    }

    /// What was used last stays: draining to half takes no class's newest block while older ones are there.
    #[test]
    fn draining_spares_what_was_pushed_last() {
        let mut cache = Cache::new();
        for name in 0..8 {
            cache.push(class(0), name);
            cache.push(class(79), name);
        }
        let mut out = Vec::new();
        cache.drain_to(cache.bytes() / 2, &mut out);
        assert_eq!((cache.pop(class(0)), cache.pop(class(79))), (Some(7), Some(7)));
        // One round: the larger class gave what was too much, and the oldest of it.
        assert_eq!(
            out.iter().filter(|(of, _)| *of == class(79)).map(|&(_, name)| name).collect::<Vec<_>>(),
            [0, 1, 2, 3]
        );
    }
}
