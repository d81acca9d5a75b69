//! The end of the ladder, on the policy alone: after any history, once everything is waited for and trimmed, a request fails
//! only where it exceeds the budget less the places with a live byte.

use proptest::prelude::*;

use crate::policy::{Block, Space, Stamp, StreamId, Tick, short_under_miri};

const PLACE: u64 = 2 << 20;
const HOME: StreamId = StreamId(0);

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    Free(usize, u32, Tick),
}

fn step() -> impl Strategy<Value = Step> {
    // From a unit to several places, as many small ones as large ones.
    let size = (0_u32..23, 0_u64..256).prop_map(|(log2, part)| (1 << log2) + (part << log2 >> 8));
    prop_oneof![
        3 => size.prop_map(Step::Take),
        2 => (any::<usize>(), 0_u32..3, 1_u64..9).prop_map(|(which, stream, tick)| Step::Free(which, stream, tick)),
    ]
}

struct Pool {
    space: Space,
    budget: usize,
    live: Vec<Block>,
}

impl Pool {
    /// Places that the budget still has.
    fn left(&self) -> usize {
        self.budget - self.space.counts().places_backed
    }

    /// From what the home stream may use, from what it waits for, from new memory.
    fn take(&mut self, size: u64) -> Option<Block> {
        let own = |stamp: &Stamp| stamp.iter().all(|(stream, _)| stream == HOME);
        if let Some((block, _)) =
            self.space.take(size, 1, &own).or_else(|| self.space.take_joined(size, 1, &|_| true))
        {
            return Some(block);
        }
        let growth = self.space.plan(size, 1, &own).or_else(|| {
            self.space.add_span_at(0, PLACE, self.budget);
            self.space.plan(size, 1, &own)
        })?;
        if growth.new > self.left() {
            return None;
        }
        self.space.grow(&growth).map(|(block, _)| block)
    }

    /// Everything has been waited for; what has no live byte goes.
    fn trim(&mut self) {
        self.space.settle(&|_| true);
        let idle: Vec<_> = self.space.idle().collect();
        for (span, places, stamp) in idle {
            assert!(stamp.is_idle());
            self.space.bare(span, places).expect("idle");
        }
    }

    /// Places with a live byte, by the blocks alone.
    fn lived_in(&self) -> usize {
        let touched = |block: &Block| block.offset / PLACE..=(block.offset + block.size - 1) / PLACE;
        let places = self.live.iter().flat_map(|block| touched(block).map(|place| (block.span, place)));
        places.collect::<std::collections::BTreeSet<_>>().len()
    }
}

proptest! {
    #![proptest_config(crate::policy::few_under_miri(300))]

    #[test]
    fn a_request_fails_only_when_it_exceeds_the_budget_less_the_places_with_live_bytes(
        steps in prop::collection::vec(step(), 0..short_under_miri(120)),
        budget in 4_usize..24,
    ) {
        let mut pool = Pool { space: Space::of(HOME), budget, live: Vec::new() };
        for step in steps {
            match step {
                Step::Take(size) => {
                    let mut taken = pool.take(size);
                    if taken.is_none() {
                        pool.trim();
                        prop_assert_eq!(pool.space.counts().places_backed, pool.lived_in());
                        taken = pool.take(size);
                    }
                    match taken {
                        Some(block) => pool.live.push(block),
                        None => {
                            let needed = size.div_ceil(PLACE) as usize;
                            prop_assert!(needed > budget - pool.lived_in(), "{} bytes, {} left", size, pool.left());
                        }
                    }
                }
                Step::Free(which, stream, tick) => {
                    if !pool.live.is_empty() {
                        let block = pool.live.swap_remove(which % pool.live.len());
                        prop_assert_eq!(pool.space.free(block.id, Stamp::One(StreamId(stream), tick)), Ok(()));
                    }
                }
            }
            pool.space.check().map_err(TestCaseError::fail)?;
            let mut live: Vec<_> = pool.live.iter().map(|block| (block.span, block.offset, block.size)).collect();
            live.sort();
            for pair in live.windows(2) {
                prop_assert!(pair[0].0 != pair[1].0 || pair[0].1 + pair[0].2 <= pair[1].1, "{:?} overlap", pair);
            }
        }
        for block in std::mem::take(&mut pool.live) {
            prop_assert_eq!(pool.space.free(block.id, Stamp::One(HOME, 1)), Ok(()));
        }
        pool.trim();
        prop_assert_eq!(pool.space.counts().places_backed, 0);
        prop_assert_eq!((pool.space.counts().live_bytes, pool.space.counts().free_bytes), (0, 0));
    }
}
