//! A recording like an engine's: weights, two contexts with a cache that grows, a pool of activations over 64 tokens, a leak.

use std::fs::File;
use std::path::Path;

use granule_bank::Owner;
use granule_bank::trace::{DeviceId, Event, OwnerId, PoolId, RangeId, Recorder, StreamId, Tracer};
use granule_device::Bytes;

const GRANULE: u64 = 2 << 20;

/// Records it. `cache` is the name of the cache's owner, `n` how many tokens are generated.
pub(crate) fn record(path: &Path, cache: &str, tokens: usize) {
    let tracer = Tracer::new();
    let recorder =
        Recorder::start(&tracer, File::create(path).unwrap(), "an engine <b>of</b> tales").unwrap();
    Engine::new(&tracer, cache).run(tokens);
    recorder.finish().unwrap();
}

struct Engine<'a> {
    tracer: &'a Tracer,
    device: DeviceId,
    cache: OwnerId,
    weights: OwnerId,
    activations: OwnerId,
    scratch: OwnerId,
    pool: PoolId,
    streams: [StreamId; 2],
    granules: u64,
    random: u64,
}

/// A range and the granules behind it, and, in an arena, where the next lease goes and the free ones by size.
struct Mapped {
    id: RangeId,
    base: u64,
    owner: OwnerId,
    granules: Vec<u64>,
    used: u64,
    free: Vec<(u64, u64)>,
}

impl<'a> Engine<'a> {
    fn new(tracer: &'a Tracer, cache: &str) -> Engine<'a> {
        let owner = |name: &str| tracer.owner(&Owner::new(name));
        let (weights, cache) = (owner("weights"), owner(cache));
        let (activations, scratch) = (owner("activations"), owner("scratch"));
        let device = DeviceId(tracer.number());
        let (pool, streams) = (PoolId(tracer.number()), [(); 2].map(|()| StreamId(tracer.number())));
        let (granule, budget) = (Bytes::new(GRANULE), Bytes::mib(400));
        tracer.declare(Event::Device { device, name: "host linux x86_64".to_owned(), granule, budget });
        tracer.declare(Event::Pool { pool, device, owner: activations });
        for (stream, name) in streams.into_iter().zip(["compute", "copy"]) {
            tracer.declare(Event::Stream { stream, device, name: name.to_owned() });
        }
        Engine { tracer, device, cache, weights, activations, scratch, pool, streams, granules: 0, random: 1 }
    }

    fn run(&mut self, tokens: usize) {
        let device = self.device;
        self.tracer.mark("load");
        for mib in [40, 36, 36, 12] {
            let (owner, size) = (self.weights, Bytes::mib(mib));
            self.tracer.emit(|| Event::Charge { device, owner, size });
            self.rest(400);
        }
        self.tracer.mark("context");
        let mut caches = [self.range(self.cache, 48), self.range(self.cache, 48)];
        let mut arena = self.range(self.activations, 64);
        self.tracer.declare(Event::Arena { range: arena.id, pool: self.pool });
        self.tracer.mark("prompt");
        for cache in &mut caches {
            self.grow(cache, 30 * 230_000);
            self.step(&mut arena, 24);
        }
        let (leaked, _) = self.alloc(&mut arena, 777_216, self.scratch, 0);
        for token in 0..tokens {
            self.tracer.mark(&format!("token {token}"));
            for (index, cache) in caches.iter_mut().enumerate() {
                // The second context ends at two thirds.
                if index == 0 || token < tokens * 2 / 3 {
                    self.grow(cache, cache.used + 230_000);
                    self.step(&mut arena, 1);
                }
            }
            if token == tokens * 2 / 3 {
                let gone = std::mem::replace(&mut caches[1], self.range(self.cache, 1));
                self.retire(gone);
            }
            if token == tokens / 2 {
                let (owner, requested) = (self.cache, Bytes::mib(512));
                self.tracer.emit(|| Event::Refused { device, owner, requested });
            }
        }
        assert_ne!(leaked, 0);
        self.tracer.mark("end");
        for gone in caches {
            self.retire(gone);
        }
        let (owner, size) = (self.weights, Bytes::mib(12));
        self.tracer.emit(|| Event::Discharge { device, owner, size });
    }

    /// A layer's worth of leases, each freed before the next but one.
    fn step(&mut self, arena: &mut Mapped, rows: u64) {
        let hidden = self.alloc(arena, 4096 * rows, self.activations, 0);
        for layer in 0..8 {
            let width = 6_000 + self.rand() % 9_000;
            let (attention, ffn) = (width * rows, 11_008 * 4 * rows);
            let one = self.alloc(arena, attention, self.activations, 0);
            let two = self.alloc(arena, ffn, self.scratch, usize::from(layer == 7));
            let at = one.0;
            let stream = self.streams[1];
            self.tracer.emit(|| Event::Used { at, stream });
            self.free(arena, one);
            self.free(arena, two);
        }
        self.free(arena, hidden);
        self.rest(150);
    }

    fn range(&mut self, owner: OwnerId, places: u64) -> Mapped {
        let id = RangeId(self.tracer.number());
        let base = 0x7000_0000_0000 + u64::from(id.0) * (1 << 32);
        let (device, place) = (self.device, Bytes::new(GRANULE));
        self.tracer.declare(Event::Range { range: id, device, owner, base, place, places });
        Mapped { id, base, owner, granules: Vec::new(), used: 0, free: Vec::new() }
    }

    fn fill(&mut self, range: &mut Mapped, bytes: u64) {
        let place = range.granules.len() as u64;
        let more = bytes.div_ceil(GRANULE).saturating_sub(place);
        if more == 0 {
            return;
        }
        let granules: Vec<u64> = (self.granules..self.granules + more).collect();
        self.granules += more;
        range.granules.extend_from_slice(&granules);
        let (device, owner, id) = (self.device, range.owner, range.id);
        self.tracer.emit_all(|| {
            [
                Event::Create { device, count: more },
                Event::Take { device, owner, granules: granules.clone() },
                Event::Map { range: id, place, granules },
            ]
        });
        self.rest(30);
    }

    fn grow(&mut self, range: &mut Mapped, used: u64) {
        self.fill(range, used);
        range.used = used;
        self.tracer.emit(|| Event::Length { range: range.id, used: Bytes::new(used) });
    }

    fn retire(&mut self, range: Mapped) {
        let (device, owner, id) = (self.device, range.owner, range.id);
        let count = range.granules.len() as u64;
        self.tracer.emit(|| Event::Retire { range: id, place: 0, count });
        self.rest(2_000);
        for granule in range.granules {
            self.tracer.emit(|| Event::Give { device, owner, granules: vec![granule] });
        }
        self.tracer.emit(|| Event::Destroy { device, count });
        self.tracer.retract(Event::RangeGone { range: id });
    }

    /// First fit, else from the end: address and size.
    fn alloc(&mut self, arena: &mut Mapped, size: u64, owner: OwnerId, stream: usize) -> (u64, u64) {
        let given = size.next_multiple_of(if size < 8192 { 256 } else { size.next_power_of_two() / 16 });
        let found = arena.free.iter().position(|(_, free)| *free == given);
        let offset = match found {
            Some(found) => arena.free.swap_remove(found).0,
            None => {
                arena.used += given;
                let used = arena.used;
                self.fill(arena, used);
                arena.used - given
            }
        };
        let (at, pool, stream) = (arena.base + offset, self.pool, Some(self.streams[stream]));
        let (requested, align) = (Bytes::new(size), Bytes::new(256));
        let given_bytes = Bytes::new(given);
        self.tracer.emit(|| Event::Alloc { at, pool, owner, stream, requested, given: given_bytes, align });
        if found.is_some() && size.is_multiple_of(7) {
            self.tracer.emit(|| Event::Steal { at, from: stream });
        }
        (at, given)
    }

    fn free(&mut self, arena: &mut Mapped, (at, given): (u64, u64)) {
        self.tracer.emit(|| Event::Free { at });
        arena.free.push((at - arena.base, given));
    }

    fn rand(&mut self) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random >> 40
    }

    /// Work takes time.
    fn rest(&self, us: u64) {
        std::thread::sleep(std::time::Duration::from_micros(us));
    }
}
