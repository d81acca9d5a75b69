//! What a recording says is what the bank says.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use granule_bank::trace::{Event, Reader, Recorder, Tracer};
use granule_bank::{Bank, Growth, Owner, grow_together};
use granule_device::Bytes;

use crate::support::{Open, Work, granules, options, stream};

/// A file in memory that can be looked at after it has been written.
#[derive(Clone, Default)]
pub(crate) struct Tape(Arc<Mutex<Vec<u8>>>);

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Tape {
    pub(crate) fn events(&self) -> Vec<Event> {
        let bytes = self.0.lock().unwrap().clone();
        Reader::new(&bytes[..]).unwrap().map(|record| record.unwrap().event).collect()
    }
}

/// What a recording comes to, put together from nothing else.
#[derive(Debug, Default)]
pub(crate) struct Played {
    owners: BTreeMap<u32, String>,
    /// By owner's name.
    pub(crate) held: BTreeMap<String, u64>,
    /// By range: its places.
    pub(crate) ranges: BTreeMap<u32, BTreeMap<u64, u64>>,
    pub(crate) lengths: BTreeMap<u32, Bytes>,
    /// Granules of the driver's.
    pub(crate) made: u64,
    pub(crate) refused: u64,
    granule: u64,
}

impl Played {
    pub(crate) fn of(events: &[Event]) -> Played {
        let mut played = Played::default();
        let mut out: BTreeMap<u64, u32> = BTreeMap::new();
        for event in events {
            match event {
                Event::Device { granule, .. } => played.granule = granule.get(),
                Event::Owner { owner, name } => drop(played.owners.insert(owner.0, name.clone())),
                Event::Range { range, .. } => drop(played.ranges.insert(range.0, BTreeMap::new())),
                Event::RangeGone { range } => {
                    played.ranges.remove(&range.0).unwrap();
                    played.lengths.remove(&range.0);
                }
                Event::Map { range, place, granules } => {
                    let places = played.ranges.get_mut(&range.0).unwrap();
                    for (place, granule) in (*place..).zip(granules) {
                        assert!(out.contains_key(granule), "mapped and not taken");
                        assert_eq!(places.insert(place, *granule), None, "mapped twice");
                    }
                }
                Event::Unmap { range, place, count } => {
                    let places = played.ranges.get_mut(&range.0).unwrap();
                    assert!((*place..place + count).all(|place| places.remove(&place).is_some()));
                }
                Event::Retire { .. } => {}
                Event::Length { range, used } => drop(played.lengths.insert(range.0, *used)),
                Event::Create { count, .. } => played.made += count,
                Event::Destroy { count, .. } => played.made -= count,
                Event::Take { owner, granules, .. } => {
                    for granule in granules {
                        assert_eq!(out.insert(*granule, owner.0), None, "taken twice");
                    }
                    played.book(owner.0, |held, granule| held + granule * granules.len() as u64);
                }
                Event::Give { owner, granules, .. } => {
                    for granule in granules {
                        assert_eq!(out.remove(granule), Some(owner.0), "given back by somebody else");
                        let mapped =
                            played.ranges.values().flat_map(BTreeMap::values).any(|id| id == granule);
                        assert!(!mapped, "given back and still mapped");
                    }
                    played.book(owner.0, |held, granule| held - granule * granules.len() as u64);
                }
                Event::Charge { owner, size, .. } => played.book(owner.0, |held, _| held + size.get()),
                Event::Discharge { owner, size, .. } => played.book(owner.0, |held, _| held - size.get()),
                Event::Refused { .. } => played.refused += 1,
                _ => {}
            }
        }
        played.held.retain(|_, held| *held > 0);
        played
    }

    fn book(&mut self, owner: u32, change: impl FnOnce(u64, u64) -> u64) {
        let held = self.held.entry(self.owners[&owner].clone()).or_default();
        *held = change(*held, self.granule);
    }

    /// Compares with what the bank says of itself.
    pub(crate) fn check(&self, bank: &Bank) {
        let stats = bank.stats();
        let held = stats.owners.iter().filter(|owner| !owner.current.is_zero());
        let held: BTreeMap<_, _> = held.map(|o| (o.owner.name().to_owned(), o.current.get())).collect();
        assert_eq!(self.held, held);
        let snapshot = bank.snapshot();
        let mut ranges: BTreeMap<u32, BTreeMap<u64, u64>> = BTreeMap::new();
        for range in &snapshot.ranges {
            let behind = range.behind.iter().map(|behind| (behind.place as u64, behind.granule.get()));
            ranges.insert(range.range, behind.collect());
        }
        for retiring in &snapshot.retiring {
            if let Some(places) = ranges.get_mut(&retiring.range) {
                places.insert(retiring.behind.place as u64, retiring.behind.granule.get());
            }
        }
        assert_eq!(self.ranges, ranges);
        assert_eq!(self.made, bank.device().live().granules as u64);
        assert_eq!(self.refused, stats.refused);
    }
}

pub(crate) fn a_recording_says_what_the_bank_says(open: Open<'_>) {
    let device = open(16);
    let size = |count| granules(&device, count);
    let bank = Bank::new(device.clone(), options(&device, 6).cache(size(2)).cache_low(size(1))).unwrap();
    let tape = Tape::default();
    let recorder = Recorder::start(bank.tracer(), tape.clone(), "a test").unwrap();
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let mut first = bank.growable(&a, size(8)).unwrap();
    first.grow_to(Bytes::new(size(2).get() + 7)).unwrap();
    let mut fork = first.alias(size(2)).unwrap();
    grow_together(&mut [Growth::of(&mut fork, size(3)).writable_from(Bytes::new(3))]).unwrap();
    let mut range = bank.range(&b, size(4)).unwrap();
    assert!(range.fill(0..4).is_err());
    first.shrink_to(size(1)).unwrap();
    range.fill(1..2).unwrap();
    let stream = stream(&device);
    let work = Work::begin(&stream);
    let gone = bank.range(&b, size(1)).unwrap();
    let charge = bank.charge(&b, Bytes::new(9)).unwrap();
    fork.shrink_after(size(2), &work.event).unwrap();
    work.end().synchronize();
    bank.drain();
    drop((gone, charge));
    let charge = bank.charge(&a, Bytes::new(11)).unwrap();
    let lengths = BTreeMap::from([(first.id().0, first.len()), (fork.id().0, fork.len())]);
    recorder.finish().unwrap();
    let played = Played::of(&tape.events());
    played.check(&bank);
    assert_eq!(played.lengths, lengths);
    assert_eq!(played.held["a"], size(first_and_fork(&bank)).get() + 11);
    drop(charge);
}

/// How many distinct granules the first owner has, by its own count.
fn first_and_fork(bank: &Bank) -> usize {
    (bank.snapshot().held_by(&Owner::new("a")).get() / bank.granule().get()) as usize
}

pub(crate) fn nothing_is_recorded_before_and_after(open: Open<'_>) {
    let device = open(16);
    let bank = Bank::new(device.clone(), options(&device, 8)).unwrap();
    let mut range = bank.range(&Owner::new("early"), granules(&device, 4)).unwrap();
    let tape = Tape::default();
    let recorder = Recorder::start(bank.tracer(), tape.clone(), "a test").unwrap();
    range.fill(0..2).unwrap();
    recorder.finish().unwrap();
    range.clear(0..2).unwrap();
    let played = Played::of(&tape.events());
    // The range was there before the recording, which knows it all the same.
    assert_eq!(played.ranges[&range.id().0].len(), 2);
    assert_eq!(played.held["early"], granules(&device, 2).get());
}

pub(crate) fn a_recording_outlives_its_banks(open: Open<'_>) {
    let device = open(16);
    let tracer = Tracer::new();
    let tape = Tape::default();
    let recorder = Recorder::start(&tracer, tape.clone(), "two banks").unwrap();
    let banks = [8, 4].map(|budget| {
        let options = options(&device, budget).cache(granules(&device, 4)).tracer(&tracer);
        Bank::new(device.clone(), options).unwrap()
    });
    let held = [&banks[0], &banks[1]].map(|bank| {
        let mut growable = bank.growable(&Owner::new("x"), granules(&device, 4)).unwrap();
        growable.grow_to(granules(&device, 3)).unwrap();
        growable
    });
    assert_ne!(held[0].id(), held[1].id());
    drop((banks, held));
    recorder.finish().unwrap();
    let events = tape.events();
    let made: u64 =
        events.iter().map(|event| if let Event::Create { count, .. } = event { *count } else { 0 }).sum();
    let played = Played::of(&events);
    assert_eq!((made, played.made, played.held.len(), played.ranges.len()), (6, 0, 0, 0));
}
