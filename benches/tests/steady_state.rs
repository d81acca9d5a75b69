//! What the report says about the pool that needs no clock: no driver calls in steady state, and what is held after a trim.

use std::collections::BTreeSet;

use granule_benches::subjects::Granule;
use granule_benches::traced::{Streams, files, read};
use granule_benches::workload::model::{LLAMA_1B, LLAMA_8B, QWEN, SMOL};
use granule_benches::workload::{KvBlocks, Residency, Sizes, churn, decode, residency};
use granule_benches::{Handle, Player, Subject, Timing};

#[test]
fn from_the_second_cycle_on_the_driver_is_not_called() {
    let scripts = [
        churn(100, Sizes::CLASSES, 4096, 1),
        churn(1000, Sizes::CLASSES, 4096, 2),
        decode(&LLAMA_1B, 1, 1, 1000, 16),
        decode(&LLAMA_8B, 16, 16, 1000, 4),
        decode(&LLAMA_1B, 512, 1, 0, 2),
    ];
    for script in scripts {
        let pool = Granule::new(1);
        let mut player = Player::new(&pool, &script, 0);
        player.cycle();
        let before = pool.footprint().calls;
        assert!(before > Some(0), "{}: the first cycle takes memory", script.name);
        (0..3).for_each(|_| player.cycle());
        assert_eq!(pool.footprint().calls, before, "{}", script.name);
    }
}

#[test]
fn recorded_traces_come_to_play_without_driver_calls() {
    for path in files().unwrap() {
        let script = read(&path).unwrap();
        let pool = Granule::new(script.streams().len());
        let mut streams = Streams::new(&pool, &script);
        // What is free lies otherwise after the first pass than before it, so the second may need a granule more.
        (0..2).for_each(|_| streams.pass(&script, &mut Timing::default()));
        let before = pool.footprint().calls;
        (0..3).for_each(|_| streams.pass(&script, &mut Timing::default()));
        assert_eq!(pool.footprint().calls, before, "{}", path.display());
    }
}

/// After each trim exactly those granules are held in which a live block lies; in the end none.
#[test]
fn what_is_held_after_a_trim_has_a_live_byte_in_every_granule() {
    const GRANULE: u64 = (2 << 20) / 64;
    for (kv, seed) in [(KvBlocks::One, 1), (KvBlocks::PerLayer, 2)] {
        let Residency { slots, phases } = residency(&[SMOL, QWEN, LLAMA_1B], kv, 8, 64, seed);
        let pool = Granule::with(1, GRANULE);
        let mut handle = pool.handle(0);
        let mut live: Vec<_> = (0..slots).map(|_| None).collect();
        for phase in phases {
            for op in phase.ops {
                let place = &mut live[op.slot as usize];
                if op.size == 0 {
                    handle.free_moved(place.take().unwrap());
                } else {
                    *place = Some(Handle::alloc(&mut handle, op.size));
                }
            }
            pool.trim();
            let mut granules = BTreeSet::new();
            for block in live.iter().flatten() {
                let at = block.ptr().addr();
                granules.extend(at / GRANULE..=(at + block.given().get() - 1) / GRANULE);
            }
            let held = pool.footprint().reserved.unwrap();
            assert_eq!(held, granules.len() as u64 * GRANULE, "after {}", phase.name);
        }
    }
}
