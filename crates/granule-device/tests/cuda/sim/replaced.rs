//! Replacing a granule when this crate and the driver both refuse at some point.

use granule_device::{Access, Device, FaultPlan, Granule, Reservation};
use granule_sim::Sim;

use crate::support::{assert_nothing_left, device, read};

fn mapped(device: &Device, byte: u8) -> (Reservation, Granule) {
    let mut range = device.reserve(device.granularity()).unwrap();
    let granule = device.create_granule().unwrap();
    range.map(0, std::slice::from_ref(&granule), Access::ReadWrite).unwrap();
    device.copy((&[byte; 8][..]).into(), range.slice_mut(..8).unwrap()).unwrap();
    (range, granule)
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_place_left_halfway_keeps_both_granules_until_it_is_cleared() {
    let sim = Sim::find().unwrap();
    let device = device();
    let before = sim.live();
    let mut halfway = 0;
    // The one fails from one of our calls on, the other at one of its own: the undoing too.
    for (ours, theirs) in (1..10).flat_map(|ours| (1..12).map(move |theirs| (ours, theirs))) {
        let at = format!("ours {ours}, theirs {theirs}");
        let (mut range, old) = mapped(&device, 7);
        let new = device.create_granule().unwrap();
        let fault = sim.fail_nth(theirs, 999);
        let plan = device.inject_fault(FaultPlan::from_nth(ours));
        let replaced = range.replace(0, &new, Access::ReadWrite);
        drop(plan);
        let _ = fault.clear();
        let is = |granule: &Granule| range.mapped(0).is_some_and(|(mapped, _)| mapped.is_same(granule));
        let (is_old, is_new, done) = (is(&old), is(&new), replaced.is_ok());
        drop((replaced, old, new));
        match (done, is_old || is_new) {
            (true, true) => assert!(is_new, "{at}"),
            (false, true) => {
                assert!(is_old, "{at}");
                assert_eq!(read(&device, range.slice(..8).unwrap()), [7; 8], "{at}");
            }
            (true, false) => panic!("{at}"),
            (false, false) => {
                // Neither is given to others while it may be mapped.
                let held = device.live().granules;
                assert!(held == 0 || held == 2, "{at}: {held}");
                halfway += usize::from(held == 2);
                let next = device.create_granule().unwrap();
                range.map(0, &[next], Access::ReadWrite).unwrap_or_else(|error| panic!("{at}: {error}"));
                device.copy((&[8; 8][..]).into(), range.slice_mut(..8).unwrap()).unwrap();
                assert_eq!(read(&device, range.slice(..8).unwrap()), [8; 8], "{at}");
                assert_eq!(device.live().granules, 1, "{at}");
            }
        }
        drop(range);
        assert_nothing_left(&device);
    }
    assert!(halfway > 0);
    assert_eq!(sim.live(), before);
    assert_eq!(sim.take_reports(), []);
}
