//! Random operations against naive models made of vectors.

use std::ops::Range;

use granule_device::{Access, Bytes, Device, FaultPlan};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{bytes, granule, read, region, write};

const PLACES: usize = 5;

/// What a naive model knows of one reservation: per place, which granule and how.
type Model = Vec<Option<(usize, Access)>>;

#[derive(Clone, Debug)]
enum Op {
    Map { range: usize, place: usize, granule: usize, write: bool },
    Unmap { range: usize, places: Range<usize> },
    Access { range: usize, places: Range<usize>, write: bool },
    Write { range: usize, place: usize, value: u8 },
    Exchange { range: usize, place: usize, granule: usize, write: bool },
    Renew { granule: usize },
}

fn ops() -> impl Strategy<Value = Op> {
    let places = (0..4usize, 0..3usize).prop_map(|(start, len)| start..start + len);
    let one = (0..2usize, 0..PLACES, 0..4usize, any::<bool>());
    prop_oneof![
        4 => one.clone().prop_map(|(range, place, granule, write)| Op::Map { range, place, granule, write }),
        1 => (0..2usize, places.clone()).prop_map(|(range, places)| Op::Unmap { range, places }),
        2 => (0..2usize, places, any::<bool>()).prop_map(|(range, places, write)| Op::Access { range, places, write }),
        4 => (0..2usize, 0..PLACES, any::<u8>()).prop_map(|(range, place, value)| Op::Write { range, place, value }),
        1 => one.prop_map(|(range, place, granule, write)| Op::Exchange { range, place, granule, write }),
        1 => (0..4usize).prop_map(|granule| Op::Renew { granule }),
    ]
}

fn access(write: bool) -> Access {
    if write { Access::ReadWrite } else { Access::ReadOnly }
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

/// Random mapping, unmapping, access changes, exchanges and writes with faults in between: every place reads as the model
/// says, and nothing is left at the end.
pub(crate) fn mappings_are_like_a_model(open: &dyn Fn() -> Device) {
    let device = open();
    let strategy = proptest::collection::vec((ops(), 0..20u64), 1..40);
    runner(32).run(&strategy, |ops| mappings(&device, ops)).unwrap();
}

fn mappings(device: &Device, ops: Vec<(Op, u64)>) -> Result<(), TestCaseError> {
    let size = granule(device);
    let head = |index: usize| index * size..index * size + 32;
    let mut side = device.reserve(Bytes::from_usize(size)).unwrap();
    let mut new_granule = |value: u8| {
        let granule = device.create_granule().unwrap();
        side.map(0, std::slice::from_ref(&granule), Access::ReadWrite).unwrap();
        write(device, &[value; 32], side.slice_mut(..32).unwrap());
        side.unmap(0..1).unwrap();
        granule
    };
    let mut ranges = [0, 1].map(|_| device.reserve(Bytes::from_usize(PLACES * size)).unwrap());
    let mut granules: Vec<_> = (0..4).map(&mut new_granule).collect();
    // What each granule, by a number of its own, holds; which number each of the four has now.
    let mut contents = vec![0u8, 1, 2, 3];
    let mut ids = [0, 1, 2, 3];
    let mut model: [Model; 2] = [vec![None; PLACES], vec![None; PLACES]];
    for (op, fault) in ops {
        let uses = |model: &[Model; 2], id: usize| -> Vec<Access> {
            model.iter().flatten().flatten().filter(|place| place.0 == id).map(|place| place.1).collect()
        };
        let goes_with = |others: &[Access], write: bool| match write {
            true => others.is_empty(),
            false => others.iter().all(|&access| access == Access::ReadOnly),
        };
        let guard = device.inject_fault(FaultPlan::nth(fault));
        let (done, expected) = match op.clone() {
            Op::Map { range, place, granule, write } => {
                let expected = model[range][place].is_none() && goes_with(&uses(&model, ids[granule]), write);
                let done = ranges[range].map(place, &granules[granule..granule + 1], access(write)).is_ok();
                if done {
                    model[range][place] = Some((ids[granule], access(write)));
                }
                (done, expected)
            }
            Op::Unmap { range, places } => {
                let expected = places.clone().all(|place| place < PLACES && model[range][place].is_some());
                let done = ranges[range].unmap(places.clone()).is_ok();
                if done {
                    places.for_each(|place| model[range][place] = None);
                }
                (done, expected)
            }
            Op::Access { range, places, write } => {
                let expected = places.clone().all(|place| {
                    place < PLACES
                        && model[range][place].is_some_and(|(id, now)| {
                            now == access(write) || !write || uses(&model, id).len() == 1
                        })
                });
                let done = ranges[range].set_access(places.clone(), access(write)).is_ok();
                if done {
                    for place in places {
                        model[range][place] = model[range][place].map(|(id, _)| (id, access(write)));
                    }
                }
                (done, expected)
            }
            Op::Write { range, place, value } => {
                drop(guard);
                let writable = matches!(model[range][place], Some((_, Access::ReadWrite)));
                let bytes = ranges[range].slice_mut(head(place));
                prop_assert_eq!(bytes.is_ok(), writable);
                if let (Ok(bytes), Some((id, _))) = (bytes, model[range][place]) {
                    write(device, &[value; 32], bytes);
                    contents[id] = value;
                }
                continue;
            }
            Op::Exchange { range, place, granule, write } => {
                // A granule may take its own place only to be read.
                let expected = model[range][place].is_some() && goes_with(&uses(&model, ids[granule]), write);
                let done = ranges[range].replace(place, &granules[granule], access(write)).is_ok();
                if done {
                    model[range][place] = Some((ids[granule], access(write)));
                }
                (done, expected)
            }
            Op::Renew { granule } => {
                drop(guard);
                let value = contents.len() as u8;
                granules[granule] = new_granule(value);
                ids[granule] = contents.len();
                contents.push(value);
                continue;
            }
        };
        prop_assert!(done == expected || guard.fired(), "{op:?}: done {done}, expected {expected}");
        drop(guard);
        let mut mapped = 0;
        for (range, model) in ranges.iter().zip(&model) {
            for (index, expected) in model.iter().enumerate() {
                let bytes = range.slice(head(index));
                prop_assert_eq!(bytes.is_ok(), expected.is_some());
                if let (Ok(bytes), &Some((id, _))) = (bytes, expected) {
                    mapped += 1;
                    prop_assert_eq!(read(device, bytes), vec![contents[id]; 32]);
                }
            }
        }
        prop_assert_eq!(device.live().mappings, mapped);
        prop_assert_eq!(device.live().unsettled, 0);
    }
    drop((ranges, granules, side));
    prop_assert_eq!(device.live(), Default::default());
    Ok(())
}

/// Random fills and copies over three streams, each waiting for the last that was given: as done one after the other.
pub(crate) fn chained_streams_are_like_one(open: &dyn Fn() -> Device) {
    let device = open();
    let op =
        (0..3usize, 0..3usize, 1..3usize, 0..40usize, 0..40usize, 0..24usize, any::<u8>(), any::<bool>());
    let strategy = proptest::collection::vec(op, 1..60);
    let run = runner(32).run(&strategy, |ops| {
        let streams = [0; 3].map(|_| device.stream().unwrap());
        let mut regions = [0; 3].map(|_| region(&device, 64));
        for region in &mut regions {
            streams[0].fill(region, .., 0).unwrap();
        }
        let mut model = [[0u8; 64]; 3];
        let mut last = streams[0].record().unwrap();
        for (stream, source, step, from, to, len, value, copy) in ops {
            let stream = &streams[stream];
            stream.wait(&last).unwrap();
            let target = (source + step) % 3;
            if copy {
                let [a, b] = regions.get_disjoint_mut([source, target]).unwrap();
                stream.copy(a, from..from + len, b, to..to + len).unwrap();
                let bytes = model[source][from..from + len].to_vec();
                model[target][to..to + len].copy_from_slice(&bytes);
            } else {
                stream.fill(&mut regions[target], to..to + len, value).unwrap();
                model[target][to..to + len].fill(value);
            }
            last = stream.record().unwrap();
        }
        for (region, model) in regions.iter().zip(&model) {
            prop_assert_eq!(bytes(region), model.to_vec());
        }
        Ok(())
    });
    run.unwrap();
}
