//! Operations of the fuzzer's making on a pool with several heaps, with faults in the device's calls, against a naive list of
//! what is leased: nothing overlaps, nothing is lost, bytes stay, a request fails only where nothing fits, and everything goes
//! back.

#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use granule_bank::{Bank, BankOptions, Growable, Owner};
use granule_device::{Bytes, Device, FaultGuard, FaultPlan, HostOptions, LiveCounts, Region, Stream};
use granule_pool::policy::Class;
use granule_pool::{CapturedMemory, Error, Heap, Lease, Pool, PoolOptions};
use libfuzzer_sys::fuzz_target;

const GRANULE: u64 = 16 << 10;
/// Granules that the bank may hold.
const BUDGET: u64 = 40;
const STREAMS: usize = 2;
const HEAPS: usize = 4;

#[derive(Arbitrary, Debug)]
enum Step {
    Alloc {
        heap: u8,
        size: u16,
        shift: u8,
        align: u8,
    },
    Drop {
        which: u8,
    },
    DropElsewhere {
        which: u8,
    },
    /// Another heap's stream may use it too.
    Used {
        which: u8,
        heap: u8,
    },
    Write {
        which: u8,
        value: u8,
    },
    /// Gives a stream work on it, which may be running still when it is dropped.
    Work {
        which: u8,
        stream: u8,
        value: u8,
    },
    Close {
        heap: u8,
    },
    Trim,
    Drain,
    /// Somebody else takes granules of the bank.
    Elsewhere {
        granules: u8,
    },
    Fault {
        nth: u8,
        lasting: bool,
    },
    NoFault,
    BeginPrivate {
        heap: u8,
    },
    EndPrivate {
        heap: u8,
    },
    DropCaptured,
}

#[derive(Arbitrary, Debug)]
struct Input {
    pinned: bool,
    cache_limit: Option<u16>,
    steps: Vec<Step>,
}

enum Memory {
    Lease(Lease),
    Region(Region<Lease>),
}

/// One lease, and what was last written to all of it.
struct Mine {
    memory: Memory,
    at: u64,
    given: u64,
    len: u64,
    value: Option<u8>,
    /// The stream that was given work on it.
    stream: Option<usize>,
}

impl Mine {
    fn check(&mut self, device: &Device) {
        let Some(value) = self.value else { return };
        let bytes = match &self.memory {
            Memory::Lease(lease) => lease.slice(),
            Memory::Region(region) => region.slice(..).map_err(Error::Device),
        };
        // A fault may keep it from being looked at.
        let Ok(bytes) = bytes else { return };
        let bytes = bytes.as_host().unwrap();
        assert_eq!(bytes.len() as u64, self.len);
        assert!(bytes.iter().all(|&byte| byte == value), "the bytes of a lease changed on {device:?}");
    }
}

struct World {
    device: Device,
    bank: Bank,
    pool: Pool,
    pinned: bool,
    streams: Vec<Arc<Stream>>,
    heaps: [Option<Heap>; HEAPS],
    private: [bool; HEAPS],
    captured: Vec<CapturedMemory>,
    live: Vec<Mine>,
    /// What was dropped while work on it could still be running: it goes back when that has run.
    ghosts: Vec<(u64, u64)>,
    elsewhere: Growable,
    fault: Option<FaultGuard>,
}

impl World {
    fn new(input: &Input) -> World {
        let capacity = Bytes::new(GRANULE * 4 * BUDGET);
        let device =
            Device::host_with(HostOptions::new().granule(Bytes::new(GRANULE)).capacity(capacity)).unwrap();
        let options = BankOptions::new().budget(Bytes::new(GRANULE * BUDGET));
        let mut limits = PoolOptions::new();
        if let Some(limit) = input.cache_limit {
            limits = limits.cache_limit(Bytes::new(u64::from(limit) * 16));
        }
        let other = Bank::new(device.clone(), options.clone()).unwrap();
        let (bank, pool) = if input.pinned {
            let bank = Bank::pinned(device.clone(), options).unwrap();
            (bank.clone(), Pool::pinned(&bank, limits).unwrap())
        } else {
            (other.clone(), Pool::new(&other, limits).unwrap())
        };
        let streams = (0..STREAMS).map(|_| Arc::new(device.stream().unwrap())).collect();
        let elsewhere = other.growable(&Owner::new("elsewhere"), Bytes::new(GRANULE * BUDGET)).unwrap();
        World {
            device,
            bank,
            pool,
            pinned: input.pinned,
            streams,
            heaps: [const { None }; HEAPS],
            private: [false; HEAPS],
            captured: Vec::new(),
            live: Vec::new(),
            ghosts: Vec::new(),
            elsewhere,
            fault: None,
        }
    }

    /// The heaps of the streams, then local ones.
    fn heap(&mut self, heap: u8) -> Option<Heap> {
        let at = usize::from(heap) % HEAPS;
        if self.heaps[at].is_none() {
            let made =
                self.streams.get(at).map_or_else(|| self.pool.local(), |stream| self.pool.heap(stream));
            self.heaps[at] = made.ok();
        }
        self.heaps[at].clone()
    }

    fn one(&mut self, which: u8) -> Option<&mut Mine> {
        let len = self.live.len();
        self.live.get_mut(usize::from(which) % len.max(1))
    }

    fn take(&mut self, which: u8) -> Option<Mine> {
        let len = self.live.len();
        (len > 0).then(|| self.live.swap_remove(usize::from(which) % len))
    }

    /// Whether everything that can be said of the pool is known: no call fails, and no capture keeps blocks to itself.
    fn is_plain(&self) -> bool {
        self.fault.is_none() && self.captured.is_empty() && !self.private.contains(&true)
    }

    /// Granules with a byte of a lease, by the list.
    fn lived_in(&self) -> u64 {
        let live = self.live.iter().map(|mine| (mine.at, mine.given)).chain(self.ghosts.iter().copied());
        let granules = live.flat_map(|(at, given)| at / GRANULE..=(at + given - 1) / GRANULE);
        granules.collect::<std::collections::BTreeSet<_>>().len() as u64
    }

    fn alloc(&mut self, heap: u8, size: u64, align: u64) {
        let Some(heap) = self.heap(heap) else { return };
        let before = self.pool.stats().live;
        match heap.alloc_aligned(Bytes::new(size), Bytes::new(align)) {
            Ok(lease) => {
                let (at, given) = (lease.ptr().addr(), lease.given().get());
                assert!(given >= size && at.is_multiple_of(align.max(256)), "{size} at {at:#x}: {given}");
                assert!(given <= (size + size / 8).max(size + 256).max(256), "{given} given for {size}");
                for other in &self.live {
                    assert!(at + given <= other.at || other.at + other.given <= at, "two leases at {at:#x}");
                }
                let known = |&(ghost, len): &(u64, u64)| at + given <= ghost || ghost + len <= at;
                // What was still in use has been given back, or it could not be here.
                self.ghosts.retain(known);
                self.live.push(Mine {
                    memory: Memory::Lease(lease),
                    at,
                    given,
                    len: size,
                    value: None,
                    stream: None,
                });
            }
            Err(error) => {
                assert!(self.pool.stats().live <= before, "a failed request changed something");
                if self.is_plain() && !self.pinned {
                    assert!(matches!(error, Error::OutOfMemory { .. } | Error::TooLarge { .. }), "{error}");
                    let taken = self.elsewhere.mapped().get() / GRANULE + self.lived_in();
                    // What was still in use when it was dropped may be somewhere else by now, and be counted twice.
                    let left = BUDGET.saturating_sub(taken);
                    let rounded = Class::of(size.max(1)).map_or(size.next_multiple_of(256), Class::size);
                    assert!(rounded.div_ceil(GRANULE) > left, "{size} of {left} granules: {error}");
                }
            }
        }
    }

    /// Everything that streams were given has run, and what was dropped is back.
    fn settle(&mut self) {
        for stream in &self.streams {
            let _ = stream.synchronize();
        }
        let until = Instant::now() + Duration::from_secs(5);
        while self.pool.stats().live > self.live.len() as u64 {
            assert!(Instant::now() < until, "leases that nobody has");
            std::thread::yield_now();
        }
        self.ghosts.clear();
    }

    fn trim(&mut self) {
        let plain = self.is_plain();
        if plain {
            self.settle();
        }
        let done = self.pool.drain().and_then(|()| self.pool.trim());
        if !plain {
            return;
        }
        done.unwrap();
        let reserved = self.pool.stats().reserved.get();
        if !self.pinned {
            assert_eq!(reserved, self.lived_in() * GRANULE, "granules without a live byte");
        } else if self.live.is_empty() {
            assert_eq!(reserved, 0);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Alloc { heap, size, shift, align } => {
                let align = if align < 200 { 1 } else { 1 << (align % 15) };
                self.alloc(heap, u64::from(size) << (shift % 6), align);
            }
            Step::Drop { which } => {
                if let Some(mut mine) = self.take(which) {
                    mine.check(&self.device);
                    if let Memory::Region(_) = &mine.memory {
                        self.ghosts.push((mine.at, mine.given));
                    }
                }
            }
            Step::DropElsewhere { which } => {
                if let Some(mine) = self.take(which) {
                    if let Memory::Region(_) = &mine.memory {
                        self.ghosts.push((mine.at, mine.given));
                    }
                    std::thread::spawn(move || drop(mine.memory)).join().unwrap();
                }
            }
            Step::Used { which, heap } => {
                let Some(heap) = self.heap(heap) else { return };
                let plain = self.is_plain();
                if let Some(Mine { memory: Memory::Lease(lease), .. }) = self.one(which) {
                    assert!(lease.used_by(&heap).is_ok() || !plain);
                }
            }
            Step::Write { which, value } => {
                if let Some(mine) = self.one(which)
                    && let Memory::Lease(lease) = &mut mine.memory
                    && let Ok(mut bytes) = lease.slice_mut()
                {
                    bytes.as_host_mut().unwrap().fill(value);
                    mine.value = Some(value);
                }
            }
            Step::Work { which, stream, value } => {
                let number = usize::from(stream) % STREAMS;
                let stream = Arc::clone(&self.streams[number]);
                let Some(mut mine) = self.take(which) else { return };
                let region = match mine.memory {
                    Memory::Lease(lease) => Region::new(lease),
                    Memory::Region(region) => Ok(region),
                };
                // Where that fails the lease is gone.
                let Ok(mut region) = region else {
                    self.ghosts.push((mine.at, mine.given));
                    return;
                };
                if stream.fill(&mut region, .., value).is_ok() {
                    // Two streams are in no order: either may be the last.
                    let ordered = mine.stream.is_none_or(|known| known == number);
                    mine.value = ordered.then_some(value);
                    mine.stream = Some(if ordered { number } else { usize::MAX });
                }
                self.live.push(Mine { memory: Memory::Region(region), ..mine });
            }
            Step::Close { heap } => {
                let at = usize::from(heap) % HEAPS;
                self.heaps[at] = None;
                // With its last handle a capture ends, and what it kept goes back by itself.
                self.private[at] = false;
            }
            Step::Trim => self.trim(),
            Step::Drain => {
                let plain = self.is_plain();
                assert!(self.pool.drain().is_ok() || !plain);
            }
            Step::Elsewhere { granules } => {
                let len = Bytes::new(u64::from(granules) % (BUDGET / 2) * GRANULE);
                let _ = if len > self.elsewhere.len() {
                    self.elsewhere.grow_to(len)
                } else {
                    self.elsewhere.shrink_to(len)
                };
            }
            Step::Fault { nth, lasting } => {
                let nth = u64::from(nth % 32) + 1;
                let plan = if lasting { FaultPlan::from_nth(nth) } else { FaultPlan::nth(nth) };
                self.fault = None;
                self.fault = Some(self.device.inject_fault(plan));
            }
            Step::NoFault => self.fault = None,
            Step::BeginPrivate { heap } => {
                let at = usize::from(heap) % HEAPS;
                if let Some(heap) = self.heap(heap) {
                    self.private[at] |= heap.begin_private().is_ok();
                }
            }
            Step::EndPrivate { heap } => {
                let at = usize::from(heap) % HEAPS;
                if let Some(heap) = self.heap(heap)
                    && let Ok(captured) = heap.end_private()
                {
                    self.private[at] = false;
                    self.captured.push(captured);
                }
            }
            Step::DropCaptured => drop(self.captured.pop()),
        }
    }

    /// What holds at any time.
    fn check(&self) {
        let stats = self.pool.stats();
        let live = self.live.len() as u64;
        assert!(
            stats.live >= live && stats.live <= live + self.ghosts.len() as u64,
            "{stats:?}, {live} live"
        );
        let requested: u64 = self.live.iter().map(|mine| mine.len).sum();
        assert!(stats.requested.get() >= requested && stats.current >= stats.requested, "{stats:?}");
        assert!(stats.reserved >= stats.current || stats.reserved.get() == 0, "{stats:?}");
        let bank = self.bank.stats();
        assert!(bank.held <= bank.budget && bank.charged <= bank.held, "{bank:?}");
    }

    /// Everything goes back, whatever happened.
    fn end(mut self) {
        self.fault = None;
        for mine in &mut self.live {
            mine.check(&self.device);
        }
        self.live.clear();
        self.captured.clear();
        self.heaps = [const { None }; HEAPS];
        self.private = [false; HEAPS];
        self.settle();
        self.trim();
        assert_eq!(self.pool.stats().reserved, Bytes::ZERO);
        let World { device, bank, pool, streams, elsewhere, .. } = self;
        drop((pool, streams, elsewhere));
        bank.drain();
        let stats = bank.stats();
        assert_eq!((stats.held, stats.charged), (Bytes::ZERO, Bytes::ZERO), "{stats:?}");
        drop(bank);
        let until = Instant::now() + Duration::from_secs(5);
        while device.live() != LiveCounts::default() {
            assert!(Instant::now() < until, "left behind: {:?}", device.live());
            std::thread::yield_now();
        }
    }
}

fuzz_target!(|input: Input| {
    let mut world = World::new(&input);
    for step in input.steps.iter().take(200) {
        world.step(step);
        world.check();
    }
    world.end();
});
