//! Reservations and granules on the host device: mapping, aliasing, access, and giving back.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use granule_device::{Access, Bytes, Device, Error, FaultPlan, HostOptions, LiveCounts};
use proptest::prelude::*;

const GRANULE: usize = 4096 * 4;

fn device(granules: u64) -> Device {
    let granule = Bytes::from_usize(GRANULE);
    Device::host_with(HostOptions::new().granule(granule).capacity(granule.saturating_mul(granules))).unwrap()
}

fn place(index: usize) -> std::ops::Range<usize> {
    index * GRANULE..(index + 1) * GRANULE
}

#[test]
fn a_place_holds_what_was_written() {
    let device = device(4);
    let mut range = device.reserve(Bytes::from_usize(3 * GRANULE - 5)).unwrap();
    assert_eq!(range.places(), 3);
    assert_eq!(range.base().addr() % GRANULE as u64, 0);
    assert!(matches!(range.slice(..1), Err(Error::NotMapped { place: 0 })));
    let granule = device.create_granule().unwrap();
    range.map(1, &[granule], Access::ReadWrite).unwrap();
    let mut bytes = range.slice_mut(place(1)).unwrap();
    assert!(bytes.as_host().unwrap().iter().all(|&byte| byte == 0));
    bytes.as_host_mut().unwrap().fill(9);
    assert!(range.slice(place(1)).unwrap().as_host().unwrap().iter().all(|&byte| byte == 9));
    assert!(matches!(range.slice(GRANULE - 1..GRANULE + 1), Err(Error::NotMapped { place: 0 })));
    assert!(matches!(range.slice(..3 * GRANULE + 1), Err(Error::OutOfRange { .. })));
}

#[test]
fn one_writes_or_many_read() {
    let device = device(4);
    let mut a = device.reserve(Bytes::from_usize(2 * GRANULE)).unwrap();
    let mut b = device.reserve(Bytes::from_usize(2 * GRANULE)).unwrap();
    let granule = device.create_granule().unwrap();
    a.map(0, std::slice::from_ref(&granule), Access::ReadWrite).unwrap();
    a.slice_mut(place(0)).unwrap().as_host_mut().unwrap()[7] = 7;
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let refused = b.map(1, std::slice::from_ref(&granule), access);
        assert!(matches!(refused, Err(Error::Aliased { place: 1 })));
    }
    a.set_access(0..1, Access::ReadOnly).unwrap();
    b.map(1, std::slice::from_ref(&granule), Access::ReadOnly).unwrap();
    assert_eq!(granule.mappings(), 2);
    assert_eq!(b.slice(GRANULE..GRANULE + 8).unwrap().as_host().unwrap()[7], 7);
    assert!(matches!(b.slice_mut(place(1)), Err(Error::ReadOnly { .. })));
    assert!(matches!(a.set_access(0..1, Access::ReadWrite), Err(Error::Aliased { place: 0 })));
    drop(b);
    a.set_access(0..1, Access::ReadWrite).unwrap();
    a.slice_mut(place(0)).unwrap().as_host_mut().unwrap()[7] = 8;
    assert_eq!(granule.mappings(), 1);
}

#[test]
fn the_same_granule_twice_in_one_call() {
    let device = device(4);
    let mut range = device.reserve(Bytes::from_usize(2 * GRANULE)).unwrap();
    let granule = device.create_granule().unwrap();
    let twice = [granule.clone(), granule];
    assert!(matches!(range.map(0, &twice, Access::ReadWrite), Err(Error::Aliased { place: 1 })));
    assert_eq!(twice[0].mappings(), 0);
    range.map(0, &twice, Access::ReadOnly).unwrap();
    assert_eq!(twice[0].mappings(), 2);
    assert!(matches!(range.set_access(0..2, Access::ReadWrite), Err(Error::Aliased { .. })));
    assert_eq!(twice[0].mappings(), 2);
}

#[test]
fn full_and_never_fits_are_kept_apart() {
    let device = device(2);
    let one = device.create_granule().unwrap();
    let _two = device.create_granule().unwrap();
    assert!(matches!(device.create_granule(), Err(Error::OutOfMemory { free: Bytes::ZERO, .. })));
    let three = Bytes::from_usize(3 * GRANULE);
    assert!(matches!(device.alloc(three), Err(Error::TooLarge { requested, .. }) if requested == three));
    drop(one);
    assert_eq!(device.memory().unwrap().free, Bytes::from_usize(GRANULE));
    device.create_granule().unwrap();
}

#[test]
fn wrong_places_and_sizes_are_refused() {
    let device = device(4);
    assert!(matches!(device.reserve(Bytes::ZERO), Err(Error::ZeroSize { .. })));
    assert!(matches!(device.reserve(Bytes::MAX), Err(Error::TooLarge { .. })));
    assert!(matches!(device.reserve(Bytes::new(1 << 62)), Err(Error::Os { .. })));
    let mut range = device.reserve(Bytes::new(1)).unwrap();
    let granule = device.create_granule().unwrap();
    let other = self::device(1).create_granule().unwrap();
    let map = |range: &mut granule_device::Reservation, at, granule: &granule_device::Granule| {
        range.map(at, std::slice::from_ref(granule), Access::ReadWrite)
    };
    assert!(matches!(map(&mut range, 1, &granule), Err(Error::NoSuchPlace { .. })));
    assert!(matches!(map(&mut range, usize::MAX, &granule), Err(Error::NoSuchPlace { .. })));
    assert!(matches!(map(&mut range, 0, &other), Err(Error::OtherDevice { .. })));
    assert!(matches!(range.unmap(0..1), Err(Error::NotMapped { place: 0 })));
    map(&mut range, 0, &granule).unwrap();
    assert!(matches!(map(&mut range, 0, &granule), Err(Error::AlreadyMapped { place: 0 })));
    for size in [0, 3, 1000, 4096 * 3] {
        let options = HostOptions::new().granule(Bytes::new(size));
        assert!(matches!(Device::host_with(options), Err(Error::GranuleSize { .. })), "{size}");
    }
}

#[test]
fn retired_places_stay_mapped_until_finished() {
    let device = device(4);
    let mut range = device.reserve(Bytes::from_usize(3 * GRANULE)).unwrap();
    let granules = [(); 2].map(|()| device.create_granule().unwrap());
    range.map(0, &granules, Access::ReadWrite).unwrap();
    let mut retired = range.retire(1..2).unwrap();
    assert!(matches!(range.retire(0..2), Err(Error::NotMapped { place: 1 })));
    assert!(matches!(range.slice(place(1)), Err(Error::NotMapped { place: 1 })));
    assert!(matches!(range.map(1, &granules[1..], Access::ReadOnly), Err(Error::Retiring { place: 1 })));
    let mut other = device.reserve(Bytes::from_usize(GRANULE)).unwrap();
    assert!(
        matches!(other.map(0, &granules[1..], Access::ReadOnly), Err(Error::Aliased { .. })),
        "still in use"
    );

    // Work that is under way still finds its memory, also when the reservation is gone.
    let fault = device.inject_fault(FaultPlan::nth(1));
    assert!(matches!(retired.finish(), Err(Error::Injected { .. })));
    drop(fault);
    assert_eq!((retired.len(), device.live().mappings), (1, 1));
    assert!(retired.finish().unwrap()[0].is_same(&granules[1]));
    other.map(0, &granules[1..], Access::ReadOnly).unwrap();
    drop((other, retired));
    range.map(1, &granules[1..], Access::ReadWrite).unwrap();

    let retired = range.retire(0..1).unwrap();
    let refused = device.inject_fault(FaultPlan::nth(1));
    drop(retired);
    drop(refused);
    range.map(0, &granules[..1], Access::ReadWrite).unwrap();

    let retired = range.retire(0..2).unwrap();
    drop((range, granules));
    assert_eq!((device.live().reservations, device.live().granules), (1, 2));
    drop(retired);
    assert_eq!(device.live(), LiveCounts::default());
}

/// What a naive model knows of one reservation: per place, which granule and how.
type Model = Vec<Option<(usize, Access)>>;

#[derive(Clone, Debug)]
enum Op {
    Map { range: usize, place: usize, granule: usize, write: bool },
    Unmap { range: usize, places: std::ops::Range<usize> },
    Access { range: usize, places: std::ops::Range<usize>, write: bool },
    Write { range: usize, place: usize, value: u8 },
    Replace { granule: usize },
}

fn ops() -> impl Strategy<Value = Op> {
    let places = (0..4usize, 0..3usize).prop_map(|(start, len)| start..start + len);
    prop_oneof![
        4 => (0..2usize, 0..5usize, 0..4usize, any::<bool>())
            .prop_map(|(range, place, granule, write)| Op::Map { range, place, granule, write }),
        1 => (0..2usize, places.clone()).prop_map(|(range, places)| Op::Unmap { range, places }),
        2 => (0..2usize, places, any::<bool>()).prop_map(|(range, places, write)| Op::Access { range, places, write }),
        4 => (0..2usize, 0..5usize, any::<u8>()).prop_map(|(range, place, value)| Op::Write { range, place, value }),
        1 => (0..4usize).prop_map(|granule| Op::Replace { granule }),
    ]
}

fn access(write: bool) -> Access {
    if write { Access::ReadWrite } else { Access::ReadOnly }
}

proptest! {
    /// Random mapping, unmapping, access changes and writes with faults in between: every place reads as a model made of
    /// two vectors says, and nothing is left at the end.
    #[test]
    fn like_a_model(ops in proptest::collection::vec((ops(), 0..20u64), 1..60)) {
        let device = device(16);
        {
            let mut ranges = [0, 1].map(|_| device.reserve(Bytes::from_usize(5 * GRANULE)).unwrap());
            let mut granules: Vec<_> = (0..4).map(|_| device.create_granule().unwrap()).collect();
            // The model: what each granule (by a number of its own) holds, and where it is mapped.
            let mut contents = vec![0u8; 4];
            let mut ids = [0, 1, 2, 3];
            let mut model: [Model; 2] = [vec![None; 5], vec![None; 5]];
            for (op, fault) in ops {
                let fault = device.inject_fault(FaultPlan::nth(fault));
                let uses = |model: &[Model; 2], id: usize| -> Vec<Access> {
                    model.iter().flatten().flatten().filter(|use_| use_.0 == id).map(|use_| use_.1).collect()
                };
                match op {
                    Op::Map { range, place, granule, write } => {
                        let id = ids[granule];
                        let others = uses(&model, id);
                        let fits = if write { others.is_empty() } else { others.iter().all(|&a| a == Access::ReadOnly) };
                        let done = ranges[range].map(place, &granules[granule..granule + 1], access(write));
                        let expected = model[range][place].is_none() && fits;
                        prop_assert!(done.is_ok() == expected || fault.fired());
                        if done.is_ok() {
                            model[range][place] = Some((id, access(write)));
                        }
                    }
                    Op::Unmap { range, places } => {
                        let all = places.end <= 5 && places.clone().all(|place| model[range][place].is_some());
                        let done = ranges[range].unmap(places.clone());
                        prop_assert!(done.is_ok() == all || fault.fired());
                        if done.is_ok() {
                            places.for_each(|place| model[range][place] = None);
                        }
                    }
                    Op::Access { range, places, write } => {
                        let all = places.end <= 5 && places.clone().all(|place| model[range][place].is_some_and(|(id, now)| {
                            now == access(write) || !write || uses(&model, id).len() == 1
                        }));
                        let done = ranges[range].set_access(places.clone(), access(write));
                        prop_assert!(done.is_ok() == all || fault.fired());
                        if done.is_ok() {
                            for place in places {
                                model[range][place] = model[range][place].map(|(id, _)| (id, access(write)));
                            }
                        }
                    }
                    Op::Write { range, place, value } => {
                        let writable = matches!(model[range][place], Some((_, Access::ReadWrite)));
                        let bytes = ranges[range].slice_mut(self::place(place));
                        prop_assert_eq!(bytes.is_ok(), writable);
                        if let (Ok(mut bytes), Some((id, _))) = (bytes, model[range][place]) {
                            bytes.as_host_mut().unwrap().fill(value);
                            contents[id] = value;
                        }
                    }
                    Op::Replace { granule } => if let Ok(new) = device.create_granule() {
                        granules[granule] = new;
                        ids[granule] = contents.len();
                        contents.push(0);
                    },
                }
                drop(fault);
                let mut mapped = 0;
                for (range, model) in ranges.iter().zip(&model) {
                    for (index, expected) in model.iter().enumerate() {
                        let bytes = range.slice(place(index));
                        prop_assert_eq!(bytes.is_ok(), expected.is_some());
                        if let (Ok(bytes), &Some((id, _))) = (bytes, expected) {
                            mapped += 1;
                            prop_assert!(bytes.as_host().unwrap().iter().all(|&byte| byte == contents[id]));
                        }
                    }
                }
                let live = device.live();
                prop_assert_eq!(live.mappings, mapped);
                prop_assert_eq!(live.unsettled, 0);
                let held = Bytes::from_usize(live.granules * GRANULE);
                let memory = device.memory().unwrap();
                prop_assert_eq!(memory.total.saturating_sub(memory.free), held);
            }
        }
        prop_assert_eq!(device.live(), LiveCounts::default());
        let memory = device.memory().unwrap();
        prop_assert_eq!(memory.free, memory.total);
    }
}
