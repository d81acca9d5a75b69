//! A recording of this crate's own pool, played on pools: the same leases come out every time, and at the same places where
//! nothing depends on how fast other threads are.

use std::collections::HashMap;
use std::sync::Arc;

use granule_bank::trace::{Event, Reader, Record, Recorder, Tracer};
use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::File;
use super::*;
use crate::{Error, Heap, Lease, Pool, PoolOptions};

/// A pool with a heap for each stream of a script.
struct OnPool {
    pool: Pool,
    heaps: Vec<Heap>,
}

impl OnPool {
    /// `true` is a stream, `false` this process's own threads.
    fn new(tracer: &Tracer, streams: &[bool]) -> OnPool {
        // Room for everything: nothing is refused.
        let host = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::gib(4));
        let device = Device::host_with(host).unwrap();
        let bank = Bank::new(device.clone(), BankOptions::new().tracer(tracer)).unwrap();
        let pool = Pool::new(&bank, PoolOptions::new().owner("replayed")).unwrap();
        let heap = |stream: &bool| match stream {
            true => pool.heap(&Arc::new(device.stream().unwrap())).unwrap(),
            false => pool.local().unwrap(),
        };
        OnPool { heaps: streams.iter().map(heap).collect(), pool: pool.clone() }
    }
}

impl Subject for OnPool {
    type Block = Lease;
    type Error = Error;

    fn alloc(&mut self, request: Request) -> Result<Lease, Error> {
        self.heaps[request.stream as usize].alloc_aligned(request.size, request.align)
    }

    fn free(&mut self, block: Lease) {
        drop(block);
    }

    fn used(&mut self, block: &mut Lease, stream: u32) {
        block.used_by(&self.heaps[stream as usize]).unwrap();
    }

    fn trim(&mut self, _: u32) {
        self.pool.trim().unwrap();
    }
}

/// Plays a script on a new pool, and answers what that pool's own recording says.
fn played(script: &Script) -> Vec<Record> {
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::start(&tracer, file.clone(), "").unwrap();
    let streams: Vec<bool> = script.streams().iter().map(Option::is_some).collect();
    let mut player = Player::new(script, OnPool::new(&tracer, &streams));
    while player.play(100) > 0 {}
    player.finish();
    recorder.finish().unwrap();
    let bytes = file.bytes();
    Reader::new(&bytes[..]).unwrap().map(Result::unwrap).collect()
}

/// Where leases began and ended: in which range, counted from 0, how far in, for what, how large.
fn places(records: &[Record]) -> Vec<(usize, u64, Bytes, Bytes)> {
    let mut ranges = Vec::new();
    let mut live: HashMap<u64, (usize, u64, Bytes, Bytes)> = HashMap::new();
    let mut places = Vec::new();
    for record in records {
        match record.event {
            Event::Range { base, place, places, .. } => ranges.push((base, place.get() * places)),
            Event::Alloc { at, requested, given, .. } => {
                let holds = |(base, len): &(u64, u64)| (*base..base + len).contains(&at);
                let range = ranges.iter().rposition(holds).unwrap();
                let place = (range, at - ranges[range].0, requested, given);
                assert!(live.insert(at, place).is_none(), "two leases at one place");
                places.push(place);
            }
            Event::Free { at } => places.push(live.remove(&at).unwrap()),
            _ => {}
        }
    }
    assert!(live.is_empty(), "{live:?}");
    places
}

fn step() -> impl Strategy<Value = (u8, u64, u8, u16)> {
    let size = prop_oneof![1u64..3000, 1u64..300_000, 1u64..6_000_000];
    (0u8..20, size, 0u8..14, any::<u16>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_is_played_again_and_does_the_same(
        steps in vec(step(), 1..250), streams in prop::sample::select(vec![vec![false], vec![true], vec![false, true, true]]),
    ) {
        let (tracer, file) = (Tracer::new(), File::default());
        let recorder = Recorder::start(&tracer, file.clone(), "").unwrap();
        let OnPool { pool, heaps } = OnPool::new(&tracer, &streams);
        let mut live: Vec<Lease> = Vec::new();
        for (kind, size, align, pick) in steps {
            let pick = usize::from(pick);
            match kind {
                0..11 => {
                    let heap = &heaps[pick % heaps.len()];
                    live.push(heap.alloc_aligned(Bytes::new(size), Bytes::new(1 << align)).unwrap());
                }
                11..19 if !live.is_empty() => drop(live.swap_remove(pick % live.len())),
                _ => _ = pool.trim().unwrap(),
            }
        }
        live.clear();
        drop((heaps, pool));
        recorder.finish().unwrap();
        let bytes = file.bytes();
        let script = Script::read(Reader::new(&bytes[..]).unwrap()).unwrap();
        let recorded: Vec<Record> = Reader::new(&bytes[..]).unwrap().map(Result::unwrap).collect();
        for again in [places(&played(&script)), places(&played(&script))] {
            let (before, again) = (places(&recorded).into_iter(), again.into_iter());
            if streams.contains(&true) {
                // What a trim finds idle depends on how far the streams' threads have come: only the sizes are the same.
                let size = |(_, _, requested, given)| (requested, given);
                prop_assert_eq!(before.map(size).collect::<Vec<_>>(), again.map(size).collect::<Vec<_>>());
            } else {
                prop_assert_eq!(before.collect::<Vec<_>>(), again.collect::<Vec<_>>());
            }
        }
    }
}
