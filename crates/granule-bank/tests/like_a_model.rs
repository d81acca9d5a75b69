//! Random operations on sparse ranges against a model made of plain vectors, with faults, a small budget, sharing, and device
//! work that memory has to wait for.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{HashMap, HashSet};
use std::sync::mpsc;

use granule_bank::{Bank, BankOptions, Error, Owner, Range};
use granule_device::{Bytes, Device, Event, FaultPlan, HostOptions, LiveCounts, Stream};
use proptest::prelude::*;

const GRANULE: usize = 4096;
const PLACES: usize = 6;

fn granules(count: usize) -> Bytes {
    Bytes::from_usize(count * GRANULE)
}

#[derive(Clone, Debug)]
enum Op {
    Fill(usize, usize, usize),
    Clear(usize, usize, usize),
    Retire(usize, usize, usize),
    Finish,
    Share(usize, usize, usize, usize),
    Private(usize, usize),
    Write(usize, usize, u8),
    Charge(usize),
    Discharge,
    Renew(usize),
    Trim,
}

fn ops() -> impl Strategy<Value = Op> {
    let (range, place, len) = (|| 0..3usize, || 0..PLACES, || 0..4usize);
    prop_oneof![
        5 => (range(), place(), len()).prop_map(|(range, at, len)| Op::Fill(range, at, len)),
        2 => (range(), place(), len()).prop_map(|(range, at, len)| Op::Clear(range, at, len)),
        2 => (range(), place(), len()).prop_map(|(range, at, len)| Op::Retire(range, at, len)),
        2 => Just(Op::Finish),
        4 => (range(), place(), range(), place()).prop_map(|(from, at, to, place)| Op::Share(from, at, to, place)),
        3 => (range(), place()).prop_map(|(range, place)| Op::Private(range, place)),
        6 => (range(), place(), any::<u8>()).prop_map(|(range, place, value)| Op::Write(range, place, value)),
        1 => (1..5 * GRANULE).prop_map(Op::Charge),
        1 => Just(Op::Discharge),
        1 => range().prop_map(Op::Renew),
        1 => Just(Op::Trim),
    ]
}

/// What a place has: which granule of the model's, and whether it may be written there.
type Places = Vec<Option<(usize, bool)>>;

struct Model {
    ranges: [Places; 3],
    contents: HashMap<usize, Option<u8>>,
    /// Granules that wait for device work, and where they were; oldest work first.
    waiting: Vec<Vec<(usize, usize, usize)>>,
    charged: usize,
    next: usize,
}

impl Model {
    fn uses(&self, id: usize) -> usize {
        let mapped = self.ranges.iter().flatten().flatten().filter(|place| place.0 == id).count();
        mapped + self.waiting.iter().flatten().filter(|waiting| waiting.2 == id).count()
    }

    fn held(&self) -> usize {
        let mapped = self.ranges.iter().flatten().flatten().map(|place| place.0);
        mapped.chain(self.waiting.iter().flatten().map(|waiting| waiting.2)).collect::<HashSet<_>>().len()
    }

    fn is_waiting(&self, range: usize, place: usize) -> bool {
        self.waiting.iter().flatten().any(|waiting| (waiting.0, waiting.1) == (range, place))
    }

    fn new_granule(&mut self, content: Option<u8>) -> usize {
        self.next += 1;
        self.contents.insert(self.next, content);
        self.next
    }
}

/// Work on a stream that ends when told to.
fn work(stream: &Stream) -> (mpsc::Sender<()>, Event) {
    let (end, told) = mpsc::channel();
    stream
        .call(move || {
            let _ = told.recv();
        })
        .unwrap();
    (end, stream.record().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn like_a_model(ops in proptest::collection::vec((ops(), 0..12u64), 1..80), budget in 4..20usize, cache in 0..4usize) {
        let options = HostOptions::new().granule(granules(1)).capacity(granules(40));
        let device = Device::host_with(options).unwrap();
        let options = BankOptions::new().budget(granules(budget)).cache(granules(cache)).patience(std::time::Duration::ZERO);
        let bank = Bank::new(device.clone(), options).unwrap();
        let owners = ["a", "b", "c"].map(Owner::new);
        let stream = device.stream().unwrap();
        stream.call(|| ()).unwrap();
        let new_range = |index: usize| -> Range { bank.range(&owners[index], granules(PLACES)).unwrap() };
        let mut ranges = [0, 1, 2].map(new_range);
        let mut ends: Vec<(mpsc::Sender<()>, Event)> = Vec::new();
        let mut charges = Vec::new();
        let mut model = Model {
            ranges: [(); 3].map(|()| vec![None; PLACES]),
            contents: HashMap::new(),
            waiting: Vec::new(),
            charged: 0,
            next: 0,
        };
        for (op, k) in ops {
            let prepared = matches!(op, Op::Retire(..)).then(|| work(&stream));
            let guard = device.inject_fault(FaultPlan::nth(k));
            let room = |need: usize| model.held() * GRANULE + model.charged + need <= budget * GRANULE;
            let mut failed = None;
            match op {
                Op::Fill(range, at, len) => {
                    let places = at..at + len;
                    let gaps: Vec<usize> = places.clone().filter(|&p| p < PLACES && model.ranges[range][p].is_none()).collect();
                    let fits = places.end <= PLACES && room(gaps.len() * GRANULE)
                        && gaps.iter().all(|&place| !model.is_waiting(range, place));
                    match ranges[range].fill(places) {
                        Ok(()) => {
                            prop_assert!(fits);
                            for place in gaps {
                                model.ranges[range][place] = Some((model.new_granule(None), true));
                            }
                        }
                        Err(error) => failed = Some((error, fits)),
                    }
                }
                Op::Clear(range, at, len) => match ranges[range].clear(at..at + len) {
                    Ok(()) => model.ranges[range][at..at + len].fill(None),
                    Err(error) => failed = Some((error, at + len <= PLACES)),
                },
                Op::Retire(range, at, len) => {
                    let (end, event) = prepared.unwrap();
                    match ranges[range].clear_after(at..at + len, &event) {
                        Ok(()) => {
                            let taken = (at..at + len).filter_map(|p| Some((range, p, model.ranges[range][p].take()?.0)));
                            model.waiting.push(taken.collect());
                            ends.push((end, event));
                        }
                        Err(error) => failed = Some((error, at + len <= PLACES)),
                    }
                }
                Op::Finish if !ends.is_empty() => {
                    let (end, event) = ends.remove(0);
                    drop(end);
                    event.synchronize();
                    model.waiting.remove(0);
                    drop(guard);
                    bank.trim();
                    continue;
                }
                Op::Share(from, at, to, place) => {
                    let possible = model.ranges[from][at].is_some();
                    match ranges[from].share(at..at + 1) {
                        Ok(shared) => {
                            let (id, _) = model.ranges[from][at].unwrap();
                            model.ranges[from][at] = Some((id, false));
                            let free = model.ranges[to][place].is_none() && !model.is_waiting(to, place);
                            match ranges[to].map_shared(place, &shared) {
                                Ok(()) => {
                                    prop_assert!(free);
                                    model.ranges[to][place] = Some((id, false));
                                }
                                Err(error) => failed = Some((error, free)),
                            }
                        }
                        Err(error) => failed = Some((error, possible)),
                    }
                }
                Op::Private(range, place) => {
                    let now = model.ranges[range][place];
                    let shared = now.is_some_and(|(id, _)| model.uses(id) > 1);
                    let fits = now.is_some() && (!shared || room(GRANULE));
                    match ranges[range].make_private(place) {
                        Ok(()) => {
                            let id = now.unwrap().0;
                            let content = model.contents[&id];
                            let id = if shared { model.new_granule(content) } else { id };
                            model.ranges[range][place] = Some((id, true));
                        }
                        Err(error) => failed = Some((error, fits)),
                    }
                }
                Op::Write(range, place, value) => {
                    let bytes = ranges[range].slice_mut(place * GRANULE..(place + 1) * GRANULE);
                    let writable = model.ranges[range][place].filter(|place| place.1);
                    prop_assert_eq!(bytes.is_ok(), writable.is_some());
                    if let (Ok(bytes), Some((id, _))) = (bytes, writable) {
                        bytes.into_host_mut().unwrap().fill(value);
                        model.contents.insert(id, Some(value));
                    }
                }
                Op::Charge(size) => match bank.charge(&owners[0], Bytes::from_usize(size)) {
                    Ok(charge) => {
                        prop_assert!(room(size));
                        model.charged += size;
                        charges.push(charge);
                    }
                    Err(error) => failed = Some((error, room(size))),
                },
                Op::Discharge => {
                    model.charged -= charges.pop().map_or(0, |charge| charge.size().get() as usize);
                }
                Op::Renew(index) => {
                    drop(guard);
                    ranges[index] = new_range(index);
                    model.ranges[index].fill(None);
                    // What waits for work on the old range has nothing to do with the new one's places.
                    model.waiting.iter_mut().flatten().filter(|w| w.0 == index).for_each(|w| w.1 = usize::MAX);
                    continue;
                }
                Op::Finish | Op::Trim => drop(bank.trim()),
            }
            if let Some((error, possible)) = failed {
                let injected = matches!(error, Error::Device(granule_device::Error::Injected { .. }));
                prop_assert!(injected || !possible, "{error}");
            }
            drop(guard);
            for (range, places) in ranges.iter().zip(&model.ranges) {
                for (place, expected) in places.iter().enumerate() {
                    prop_assert_eq!(range.is_mapped(place), expected.is_some());
                    let Some((id, _)) = *expected else { continue };
                    prop_assert_eq!(range.is_shared(place), model.uses(id) > 1);
                    let bytes = range.slice(place * GRANULE..(place + 1) * GRANULE).unwrap().as_host().unwrap();
                    let content = model.contents[&id];
                    prop_assert!(content.is_none_or(|value| bytes.iter().all(|&byte| byte == value)));
                }
            }
            let stats = bank.stats();
            prop_assert_eq!(stats.held, granules(model.held()).checked_add(Bytes::from_usize(model.charged)).unwrap());
            let waiting: usize = model.waiting.iter().map(Vec::len).sum();
            prop_assert_eq!(stats.retiring, granules(waiting));
            prop_assert!(stats.held.get() + stats.cached.get() <= stats.budget.get());
            let owned: u64 = stats.owners.iter().map(|owner| owner.current.get()).sum();
            prop_assert_eq!(owned, stats.held.get());
            prop_assert_eq!(device.live().granules, model.held() + (stats.cached.get() as usize) / GRANULE);
        }
        drop((ranges, charges));
        drop(ends);
        bank.drain();
        prop_assert_eq!(bank.stats().held, Bytes::ZERO);
        drop(stream);
        drop(bank);
        prop_assert_eq!(device.live(), LiveCounts::default());
    }
}

#[test]
fn the_last_handle_waits_for_retired_memory() {
    let device = Device::host_with(HostOptions::new().granule(granules(1)).capacity(granules(4))).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::new()).unwrap();
    let stream = device.stream().unwrap();
    let mut growable = bank.growable(&Owner::new("kv"), granules(4)).unwrap();
    growable.grow_to(granules(4)).unwrap();
    let (end, event) = work(&stream);
    growable.shrink_after(granules(1), &event).unwrap();
    assert_eq!((growable.len(), bank.stats().retiring), (granules(1), granules(3)));
    assert!(matches!(growable.grow_to(granules(2)), Err(Error::OutOfMemory { free: Bytes::ZERO, .. })));
    drop((growable, bank.clone()));
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(end);
    });
    drop(bank);
    assert!(event.is_done());
    drop(stream);
    assert_eq!(device.live(), LiveCounts::default());
}
