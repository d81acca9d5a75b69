//! Places that are lent: mapped on another thread while this one uses the rest.

use granule_device::{Access, Bytes, Device, Error, FaultPlan, Granule, LiveCounts, Reservation};

use crate::support::{granule, read, write};

fn reserve(device: &Device, places: usize) -> Reservation {
    device.reserve(Bytes::from_usize(places * granule(device))).unwrap()
}

fn granules(device: &Device, count: usize) -> Vec<Granule> {
    (0..count).map(|_| device.create_granule().unwrap()).collect()
}

pub(crate) fn lent_places_are_mapped_elsewhere(open: &dyn Fn() -> Device) {
    let device = open();
    let size = granule(&device);
    let mut range = reserve(&device, 6);
    range.map(0, &granules(&device, 2), Access::ReadWrite).unwrap();
    let mut lent = range.lend(2..5).unwrap();
    assert_eq!((lent.first(), lent.places(), lent.is_mapped()), (2, 3, false));
    let mapper = {
        let device = device.clone();
        std::thread::spawn(move || {
            lent.map(&granules(&device, 3)).unwrap();
            lent
        })
    };
    // The rest is in use meanwhile, and the lent places are nobody's here.
    for round in 0..50 {
        write(&device, &[round; 64], range.slice_mut(size - 32..size + 32).unwrap());
        assert_eq!(read(&device, range.slice(size - 32..size + 32).unwrap()), [round; 64]);
    }
    assert!(matches!(range.slice(size..3 * size), Err(Error::NotMapped { place: 2 })));
    assert!(matches!(range.map(4, &granules(&device, 1), Access::ReadWrite), Err(Error::Lent { place: 4 })));
    assert!(matches!(range.lend(4..6), Err(Error::Lent { place: 4 })));
    assert!(matches!(range.unmap(2..3), Err(Error::NotMapped { place: 2 })));
    assert_eq!(range.writable_to(0), 2);
    let lent = mapper.join().unwrap();
    assert!(lent.is_mapped());
    assert!(range.slice(2 * size..3 * size).is_err(), "mapped, and lent still");
    let calls = device.calls_made();
    range.take_back(lent).unwrap();
    assert_eq!(device.calls_made(), calls, "taking back asks nobody");
    assert_eq!((range.writable_to(0), range.writable_to(4), range.writable_to(5)), (5, 5, 5));
    write(&device, &[9; 64], range.slice_mut(5 * size - 64..5 * size).unwrap());
    assert_eq!(read(&device, range.slice(5 * size - 64..5 * size).unwrap()), [9; 64]);
    assert_eq!(device.live().mappings, 5);
    range.set_access(3..4, Access::ReadOnly).unwrap();
    assert_eq!((range.writable_to(0), range.writable_to(3), range.writable_to(4)), (3, 3, 5));
    assert_eq!(range.unmap(0..5).unwrap().len(), 5);
}

pub(crate) fn a_loan_that_is_dropped_leaves_empty_places(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 4);
    for mapped in [false, true] {
        let mut lent = range.lend(1..3).unwrap();
        if mapped {
            lent.map(&granules(&device, 2)).unwrap();
        }
        drop(lent);
        let live = device.live();
        assert_eq!((live.mappings, live.granules), (0, 0));
        range.map(1, &granules(&device, 2), Access::ReadWrite).unwrap();
        drop(range.unmap(1..3).unwrap());
        // Taken back unmapped, they are empty too.
        let lent = range.lend(0..4).unwrap();
        range.take_back(lent).unwrap();
        drop(range.lend(0..4).unwrap());
    }
    assert!(matches!(range.lend(3..5), Err(Error::NoSuchPlace { .. })));
    range.map(2, &granules(&device, 1), Access::ReadWrite).unwrap();
    assert!(matches!(range.lend(0..3), Err(Error::AlreadyMapped { place: 2 })));
}

pub(crate) fn a_loan_outlives_its_reservation(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 4);
    range.map(0, &granules(&device, 1), Access::ReadWrite).unwrap();
    let mut lent = range.lend(2..4).unwrap();
    drop(range);
    lent.map(&granules(&device, 2)).unwrap();
    assert_eq!(device.live().mappings, 2);
    drop(lent);
    assert_eq!(device.live(), LiveCounts::default());
}

pub(crate) fn a_failing_map_leaves_the_places_empty(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 4);
    for lasting in [false, true] {
        for k in 1.. {
            let mut lent = range.lend(0..3).unwrap();
            let some = granules(&device, 3);
            let plan = if lasting { FaultPlan::from_nth(k) } else { FaultPlan::nth(k) };
            let guard = device.inject_fault(plan);
            let done = lent.map(&some);
            let fired = guard.fired();
            assert_eq!(done.is_err(), fired, "k = {k}: {done:?}");
            assert_eq!(lent.is_mapped(), !fired);
            assert_eq!(some.iter().map(Granule::mappings).sum::<usize>(), if fired { 0 } else { 3 });
            drop(guard);
            match k % 3 {
                // What is left there is cleared by whoever comes next: the loan itself, its end, the reservation.
                0 if fired => {
                    lent.map(&some).unwrap();
                    range.take_back(lent).unwrap();
                }
                1 => drop(lent),
                _ => range.take_back(lent).unwrap(),
            }
            drop(some);
            range.evict(0..3);
            range.map(0, &granules(&device, 3), Access::ReadWrite).unwrap();
            drop(range.unmap(0..3).unwrap());
            let live = device.live();
            assert_eq!((live.mappings, live.granules, live.unsettled), (0, 0, 0), "k = {k}");
            if !fired {
                assert!(k > 1, "no call was failed");
                break;
            }
        }
    }
}

pub(crate) fn a_loan_goes_back_where_it_came_from(open: &dyn Fn() -> Device) {
    let device = open();
    let (mut range, mut other) = (reserve(&device, 2), reserve(&device, 2));
    let mut lent = range.lend(0..2).unwrap();
    assert!(matches!(lent.map(&granules(&device, 1)), Err(Error::LentPlaces { granules: 1, places: 2 })));
    let one = granules(&device, 1);
    assert!(matches!(lent.map(&[one[0].clone(), one[0].clone()]), Err(Error::Aliased { place: 1 })));
    assert_eq!(one[0].mappings(), 0);
    lent.map(&granules(&device, 2)).unwrap();
    assert!(matches!(lent.map(&granules(&device, 2)), Err(Error::AlreadyMapped { place: 0 })));
    assert!(matches!(other.take_back(lent), Err(Error::OtherReservation { .. })));
    assert_eq!(device.live().mappings, 0);
    assert!(range.slice(..1).is_err());
    range.map(0, &one, Access::ReadWrite).unwrap();
}

/// Mapped places leave with what stands behind them, which whoever has the loan gives back, or the reservation takes back in parts.
pub(crate) fn places_are_lent_with_their_memory(open: &dyn Fn() -> Device) {
    let device = open();
    let size = granule(&device);
    let mut range = reserve(&device, 8);
    range.map(1, &granules(&device, 6), Access::ReadWrite).unwrap();
    range.set_access(3..4, Access::ReadOnly).unwrap();
    assert_eq!(range.next_writable(0..8), Some(1..3));
    assert_eq!(range.next_writable(2..3), Some(2..3));
    assert_eq!(range.next_writable(3..8), Some(4..7));
    assert_eq!(
        (range.next_writable(3..4), range.next_writable(7..8), range.next_writable(8..9)),
        (None, None, None)
    );
    assert!(matches!(range.lend_mapped(2..4), Err(Error::ReadOnly { .. })));
    assert!(matches!(range.lend_mapped(6..8), Err(Error::NotMapped { place: 7 })));
    assert!(matches!(range.lend_mapped(7..9), Err(Error::NoSuchPlace { .. })));
    write(&device, &[5; 8], range.slice_mut(4 * size..4 * size + 8).unwrap());
    let calls = device.calls_made();
    let mut lent = range.lend_mapped(4..7).unwrap();
    assert_eq!((lent.first(), lent.places(), lent.is_mapped()), (4, 3, true));
    assert!(range.slice(4 * size..4 * size + 8).is_err());
    assert!(matches!(range.lend(4..5), Err(Error::Lent { place: 4 })));
    range.take_back_first(&mut lent, 1).unwrap();
    assert_eq!((lent.first(), lent.places(), lent.is_mapped(), device.calls_made()), (5, 2, true, calls));
    assert_eq!(read(&device, range.slice(4 * size..4 * size + 8).unwrap()), [5; 8]);
    assert_eq!((range.writable_to(4), device.live().mappings), (5, 6));
    std::thread::spawn(move || drop(lent)).join().unwrap();
    assert_eq!((device.live().mappings, device.live().granules), (4, 4));
    range.map(5, &granules(&device, 2), Access::ReadWrite).unwrap();
    // What work may still use stays mapped until somebody says that it is done.
    let mut retired = range.lend_mapped(5..7).unwrap().retire();
    assert_eq!((retired.len(), device.live().mappings), (2, 4));
    assert!(matches!(range.lend(6..7), Err(Error::Retiring { place: 6 })));
    assert!(matches!(
        range.map(5, &granules(&device, 1), Access::ReadWrite),
        Err(Error::Retiring { place: 5 })
    ));
    retired.finish().unwrap();
    range.map(5, &granules(&device, 2), Access::ReadWrite).unwrap();
    // A bare loan has nothing to wait for; of a loan, more than there is, is all of it.
    drop(range.lend(7..8).unwrap().retire());
    let mut lent = range.lend(7..8).unwrap();
    range.take_back_first(&mut lent, 9).unwrap();
    assert_eq!(lent.places(), 0);
    range.map(7, &granules(&device, 1), Access::ReadWrite).unwrap();
    drop(lent);
    assert_eq!(range.writable_to(4), 8);
}
