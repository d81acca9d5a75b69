//! Random operations on sparse ranges against a model made of plain vectors, with faults, a small budget, sharing, and device
//! work that memory has to wait for.

use std::collections::{BTreeMap, HashSet};

use granule_bank::trace::Recorder;
use granule_bank::{Bank, Charge, Error, Owner, PieceId, Range};
use granule_device::{Bytes, Device, FaultPlan, LiveCounts};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::recordings::{Played, Tape};
use crate::support::{Open, Work, granule, granules, is_host, options, read, stream, write};

const PLACES: usize = 6;
/// How much of each end of a granule is written and looked at.
const EDGE: usize = 64;

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
        1 => (1..500usize).prop_map(Op::Charge),
        1 => Just(Op::Discharge),
        1 => range().prop_map(Op::Renew),
        1 => Just(Op::Trim),
    ]
}

/// What a place has: which granule, and whether it may be written there.
type Places = Vec<Option<(PieceId, bool)>>;

/// A place that waits for device work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    range: u32,
    place: usize,
    granule: PieceId,
}

struct Model {
    ranges: [Places; 3],
    contents: BTreeMap<PieceId, Option<u8>>,
    waiting: Vec<Waiting>,
    charged: usize,
}

impl Model {
    fn mapped(&self) -> impl Iterator<Item = PieceId> + '_ {
        self.ranges.iter().flatten().flatten().map(|place| place.0)
    }

    fn uses(&self, id: PieceId) -> usize {
        self.mapped()
            .chain(self.waiting.iter().map(|waiting| waiting.granule))
            .filter(|&other| other == id)
            .count()
    }

    /// Distinct granules, with those that wait or without.
    fn held(&self, waiting: bool) -> usize {
        let waiting = self.waiting.iter().filter(|_| waiting).map(|waiting| waiting.granule);
        self.mapped().chain(waiting).collect::<HashSet<_>>().len()
    }

    fn is_waiting(&self, range: &Range, place: usize) -> bool {
        self.waiting.iter().any(|waiting| (waiting.range, waiting.place) == (range.id().0, place))
    }
}

/// Both ends of a granule.
fn edges(device: &Device, range: &Range, place: usize) -> Vec<u8> {
    let size = granule(device);
    let (start, end) = (place * size, (place + 1) * size);
    let mut bytes = read(device, range.slice(start..start + EDGE).unwrap());
    bytes.extend(read(device, range.slice(end - EDGE..end).unwrap()));
    bytes
}

type Case = (Vec<(Op, u64)>, usize, usize);

fn run(device: &Device, (ops, budget, cache): Case) -> Result<(), TestCaseError> {
    let (host, size) = (is_host(device), granule(device));
    let granules = |count| granules(device, count);
    let options = options(device, budget).cache(granules(cache)).patience(std::time::Duration::ZERO);
    let bank = Bank::new(device.clone(), options).unwrap();
    let tape = Tape::default();
    let recorder = Recorder::start(bank.tracer(), tape.clone(), "random").unwrap();
    let owners = ["a", "b", "c"].map(Owner::new);
    let stream = stream(device);
    let new_range = |index: usize| -> Range { bank.range(&owners[index], granules(PLACES)).unwrap() };
    let mut ranges = [0, 1, 2].map(new_range);
    let mut works: Vec<Work> = Vec::new();
    let mut charges: Vec<Charge> = Vec::new();
    let mut model = Model {
        ranges: [(); 3].map(|()| vec![None; PLACES]),
        contents: BTreeMap::new(),
        waiting: Vec::new(),
        charged: 0,
    };
    for (op, k) in ops {
        let prepared = matches!(op, Op::Retire(..)).then(|| Work::begin(&stream));
        let mut fault = Some(device.inject_fault(FaultPlan::nth(k)));
        // Whether there is room, where the work that is under way ends in time and where it does not.
        let room =
            |need: usize, waiting: bool| model.held(waiting) * size + model.charged + need <= budget * size;
        let mut failed = None;
        match op {
            Op::Fill(range, at, len) => {
                let places = at..at + len;
                let gaps: Vec<usize> =
                    places.clone().filter(|&p| p < PLACES && model.ranges[range][p].is_none()).collect();
                let fits = |waiting: bool| {
                    at + len <= PLACES
                        && room(gaps.len() * size, waiting)
                        && !(waiting && gaps.iter().any(|&place| model.is_waiting(&ranges[range], place)))
                };
                let (sure, hoped) = (fits(true), fits(host));
                match ranges[range].fill(places) {
                    Ok(()) => {
                        prop_assert!(hoped);
                        for place in gaps {
                            let id = ranges[range].piece_id(place).unwrap();
                            model.ranges[range][place] = Some((id, true));
                            prop_assert_eq!(model.contents.insert(id, None), None, "a number is used once");
                        }
                    }
                    Err(error) => failed = Some((error, sure)),
                }
            }
            Op::Clear(range, at, len) => match ranges[range].clear(at..at + len) {
                Ok(()) => model.ranges[range][at..at + len].fill(None),
                Err(error) => failed = Some((error, at + len <= PLACES)),
            },
            Op::Retire(range, at, len) => {
                let work = prepared.unwrap();
                match ranges[range].clear_after(at..at + len, &work.event) {
                    Ok(()) => {
                        for place in at..at + len {
                            if let Some((granule, _)) = model.ranges[range][place].take() {
                                model.waiting.push(Waiting { range: ranges[range].id().0, place, granule });
                            }
                        }
                        works.push(work);
                    }
                    Err(error) => failed = Some((error, at + len <= PLACES)),
                }
            }
            Op::Finish => {
                drop(fault);
                works.drain(..).for_each(|work| work.end().synchronize());
                bank.drain();
                model.waiting.clear();
                continue;
            }
            Op::Share(from, at, to, place) => {
                let possible = model.ranges[from][at].is_some();
                match ranges[from].share(at..at + 1) {
                    Ok(shared) => {
                        let (id, _) = model.ranges[from][at].unwrap();
                        model.ranges[from][at] = Some((id, false));
                        let bare = model.ranges[to][place].is_none();
                        let waits = model.is_waiting(&ranges[to], place);
                        match ranges[to].map_shared(place, &shared) {
                            Ok(()) => {
                                prop_assert!(bare && !(host && waits));
                                model.ranges[to][place] = Some((id, false));
                            }
                            Err(error) => failed = Some((error, bare && !waits)),
                        }
                    }
                    Err(error) => failed = Some((error, possible)),
                }
            }
            Op::Private(range, place) => {
                let now = model.ranges[range][place];
                let shared = now.is_some_and(|(id, _)| model.uses(id) > 1);
                let fits = |waiting| now.is_some() && (!shared || room(size, waiting));
                let (sure, hoped) = (fits(true), fits(host));
                match ranges[range].make_private(place) {
                    Ok(()) => {
                        prop_assert!(hoped);
                        let before = now.unwrap().0;
                        let id = ranges[range].piece_id(place).unwrap();
                        let copied = id != before;
                        prop_assert!(copied == shared || (!host && !copied));
                        let content = model.contents[&before];
                        model.contents.insert(id, content);
                        model.ranges[range][place] = Some((id, true));
                    }
                    Err(error) => failed = Some((error, sure)),
                }
            }
            Op::Write(range, place, value) => {
                fault = None;
                let (start, end) = (place * size, (place + 1) * size);
                let writable = model.ranges[range][place].filter(|place| place.1);
                prop_assert_eq!(ranges[range].slice_mut(start..end).is_ok(), writable.is_some());
                if let Some((id, _)) = writable {
                    for edge in [start..start + EDGE, end - EDGE..end] {
                        write(device, &[value; EDGE], ranges[range].slice_mut(edge).unwrap());
                    }
                    model.contents.insert(id, Some(value));
                }
            }
            Op::Charge(size) => {
                let (sure, hoped) = (room(size, true), room(size, host));
                match bank.charge(&owners[0], Bytes::from_usize(size)) {
                    Ok(charge) => {
                        prop_assert!(hoped);
                        model.charged += size;
                        charges.push(charge);
                    }
                    Err(error) => failed = Some((error, sure)),
                }
            }
            Op::Discharge => {
                model.charged -= charges.pop().map_or(0, |charge| charge.size().get() as usize);
            }
            Op::Renew(index) => {
                drop(fault);
                ranges[index] = new_range(index);
                model.ranges[index].fill(None);
                continue;
            }
            Op::Trim => drop(bank.trim()),
        }
        if let Some((error, possible)) = failed {
            let injected = matches!(error, Error::Device(granule_device::Error::Injected { .. }));
            prop_assert!(injected || !possible, "{error}");
        }
        drop(fault);
        let snapshot = bank.snapshot();
        let retiring = snapshot.retiring.iter();
        let retiring: HashSet<_> = retiring.map(|r| (r.range, r.behind.place, r.behind.granule)).collect();
        let expected = model.waiting.len();
        model.waiting.retain(|waiting| retiring.contains(&(waiting.range, waiting.place, waiting.granule)));
        prop_assert_eq!(retiring.len(), model.waiting.len());
        prop_assert!(!host || expected == retiring.len());
        for (range, places) in ranges.iter().zip(&model.ranges) {
            let shot = snapshot.ranges.iter().find(|shot| shot.range == range.id().0).unwrap();
            let behind: Vec<_> = shot.behind.iter().map(|b| (b.place, b.granule, b.shared)).collect();
            let expected = places.iter().enumerate();
            let expected = expected.filter_map(|(place, &it)| Some((place, it?.0, model.uses(it?.0) > 1)));
            prop_assert_eq!(behind, expected.collect::<Vec<_>>());
            for (place, expected) in places.iter().enumerate() {
                prop_assert_eq!(range.is_mapped(place), expected.is_some());
                let Some((id, _)) = *expected else { continue };
                prop_assert_eq!(range.is_shared(place), model.uses(id) > 1);
                if let Some(value) = model.contents[&id] {
                    prop_assert!(edges(device, range, place).iter().all(|&byte| byte == value));
                }
            }
        }
        let stats = bank.stats();
        prop_assert_eq!(stats.held.get() as usize, model.held(true) * size + model.charged);
        prop_assert_eq!(stats.retiring, granules(model.waiting.len()));
        prop_assert_eq!((snapshot.granules(), snapshot.charged), (model.held(true), stats.charged));
        prop_assert!(stats.held.get() + stats.cached.get() <= stats.budget.get());
        let owned: u64 = stats.owners.iter().map(|owner| owner.current.get()).sum();
        prop_assert_eq!(owned, stats.held.get());
        prop_assert_eq!(device.live().granules, model.held(true) + (stats.cached.get() as usize) / size);
    }
    recorder.finish().unwrap();
    Played::of(&tape.events()).check(&bank);
    drop((ranges, charges));
    drop(works);
    bank.drain();
    prop_assert_eq!(bank.stats().held, Bytes::ZERO);
    drop(stream);
    drop(bank);
    prop_assert_eq!(device.live(), LiveCounts::default());
    Ok(())
}

pub(crate) fn like_a_model(open: Open<'_>) {
    let device = open(40);
    let cases = if is_host(&device) { 300 } else { 60 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let ops = proptest::collection::vec((ops(), 0..12u64), 1..80);
    TestRunner::new(config)
        .run(&(ops, 4..20usize, 0..4usize), |case| run(&device, case))
        .unwrap_or_else(|error| panic!("{error}"));
}

pub(crate) fn the_last_handle_waits_for_retired_memory(open: Open<'_>) {
    let device = open(4);
    let granules = |count| granules(&device, count);
    let bank = Bank::new(device.clone(), options(&device, 4)).unwrap();
    let stream = stream(&device);
    let mut growable = bank.growable(&Owner::new("kv"), granules(4)).unwrap();
    growable.grow_to(granules(4)).unwrap();
    let work = Work::begin(&stream);
    let event = work.event.clone();
    growable.shrink_after(granules(1), &event).unwrap();
    assert_eq!(growable.len(), granules(1));
    if is_host(&device) {
        assert_eq!(bank.stats().retiring, granules(3));
        assert!(matches!(growable.grow_to(granules(2)), Err(Error::OutOfMemory { free: Bytes::ZERO, .. })));
    }
    drop((growable, bank.clone()));
    work.end_soon();
    drop(bank);
    assert!(event.is_done());
    drop(stream);
    assert_eq!(device.live(), LiveCounts::default());
}
