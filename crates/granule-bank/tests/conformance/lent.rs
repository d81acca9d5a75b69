//! Places that are lent and filled on another thread, and ranges that are claimed and cleared together.

use granule_bank::{Bank, Claim, Error, Owner, Range, claim_together, clear_together};
use granule_device::{Bytes, Device, FaultPlan, LiveCounts};

use crate::support::{Open, bank, fill, granule, granules, is_all, options, place};

fn mapped(range: &Range) -> Vec<usize> {
    range.pieces().iter().map(|&(place, _, _)| place).collect()
}

/// While the places are out they are nobody's here; what they are filled with counts at once, and stands here once they are
/// back, which asks nobody.
pub(crate) fn lent_places_are_filled_elsewhere(open: Open<'_>) {
    let bank = bank(open, 8);
    let device = bank.device().clone();
    let owner = Owner::new("kv");
    let mut range = bank.range(&owner, granules(&device, 6)).unwrap();
    range.fill(0..1).unwrap();
    let mut lent = range.lend(1..4).unwrap();
    assert_eq!((lent.first(), lent.places(), lent.is_filled()), (1, 3, false));
    let filler = std::thread::spawn(move || {
        lent.fill().unwrap();
        lent
    });
    fill(&device, range.slice_mut(place(&device, 0)).unwrap(), 7);
    assert!(range.lend(2..3).is_err());
    assert!(range.fill(3..5).is_err(), "lent places are no gaps");
    assert!(!range.is_mapped(4));
    let lent = filler.join().unwrap();
    let ids: Vec<_> = lent.pieces().collect();
    assert_eq!((ids.len(), bank.stats().held), (3, granules(&device, 4)));
    assert_eq!((mapped(&range), range.writable_to(0)), (vec![0], 1));
    let calls = device.calls_made();
    range.take_back(lent).unwrap();
    assert_eq!(device.calls_made(), calls);
    assert_eq!((mapped(&range), range.writable_to(0)), (vec![0, 1, 2, 3], 4));
    let behind: Vec<_> = (1..4).filter_map(|place| range.piece_id(place)).collect();
    assert_eq!(behind, ids);
    fill(&device, range.slice_mut(granule(&device)..4 * granule(&device)).unwrap(), 9);
    assert!(is_all(&device, range.slice(place(&device, 0)).unwrap(), 7));
    assert_eq!(bank.snapshot().granules(), 4);
    drop(range.lend(4..6).unwrap());
    range.fill(4..6).unwrap();
}

/// A loan that nobody takes back, or that another range is given, gives everything back; so does one whose range is gone.
pub(crate) fn a_loan_that_ends_gives_back(open: Open<'_>) {
    let bank = bank(open, 4);
    let device = bank.device().clone();
    let owner = Owner::new("kv");
    let mut range = bank.range(&owner, granules(&device, 4)).unwrap();
    let mut lent = range.lend(0..2).unwrap();
    lent.fill().unwrap();
    drop(lent);
    assert_eq!(bank.stats().held, Bytes::ZERO);
    let mut other = bank.range(&owner, granules(&device, 4)).unwrap();
    let mut lent = range.lend(0..2).unwrap();
    lent.fill().unwrap();
    assert!(other.take_back(lent).is_err());
    assert_eq!(bank.stats().held, Bytes::ZERO);
    let mut lent = range.lend(1..4).unwrap();
    drop(range);
    lent.fill().unwrap();
    // Nobody has any to give.
    let mut second = other.lend(0..2).unwrap();
    assert!(matches!(second.fill(), Err(Error::OutOfMemory { .. })));
    let mut stock = bank.take(&owner, 1).unwrap();
    assert!(matches!(second.fill_from(&mut stock), Err(Error::StockTooSmall { needed: 2, stocked: 1 })));
    assert_eq!((stock.len(), second.is_filled()), (1, false));
    drop((lent, stock));
    second.fill().unwrap();
    other.take_back(second).unwrap();
    assert_eq!((mapped(&other), bank.stats().held), (vec![0, 1], granules(&device, 2)));
}

/// Two ranges whose first granules are shared, in a bank of so many.
fn pair(bank: &Bank, device: &Device) -> ([Range; 2], [Range; 2]) {
    let owner = Owner::new("kv");
    let make = || bank.range(&owner, granules(device, 6)).unwrap();
    let (mut pair, mut forks) = ([make(), make()], [make(), make()]);
    for (range, fork) in pair.iter_mut().zip(&mut forks) {
        range.fill(0..2).unwrap();
        fill(device, range.slice_mut(..2 * granule(device)).unwrap(), 3);
        fork.map_shared(0, &range.share(0..2).unwrap()).unwrap();
    }
    (pair, forks)
}

/// Memory behind all places of all ranges, private and with the bytes that were to be kept; and taken away again. With the k-th
/// call failing, for every k: done, or as it was.
pub(crate) fn claims_and_clears_are_all_or_nothing(open: Open<'_>) {
    let mut fired = 0;
    for k in 1.. {
        let device = open(40);
        let bank = Bank::new(device.clone(), options(&device, 40).cache(Bytes::ZERO)).unwrap();
        let size = granule(&device);
        let (mut ranges, forks) = pair(&bank, &device);
        let before = (bank.stats().held, device.live());
        let keep = size / 2..size + 9;
        let [a, b] = &mut ranges;
        let guard = device.inject_fault(FaultPlan::nth(k));
        let claimed =
            claim_together(&mut [Claim::new(a, 0..4, keep.clone()), Claim::new(b, 1..3, keep.clone())]);
        let struck = guard.fired();
        drop(guard);
        assert!(claimed.is_ok() || struck, "{claimed:?}");
        if let Ok(copied) = claimed {
            assert_eq!(copied, Bytes::from_usize(size / 2 + 9 + 9));
            assert_eq!((ranges[0].writable_to(0), ranges[1].writable_to(1)), (4, 3));
            assert!(is_all(&device, ranges[0].slice(keep.clone()).unwrap(), 3));
            fill(&device, ranges[0].slice_mut(..4 * size).unwrap(), 8);
            fill(&device, ranges[1].slice_mut(size..3 * size).unwrap(), 8);
        } else {
            fired += 1;
            assert_eq!((bank.stats().held, device.live()), before, "k = {k}");
        }
        let held = bank.stats().held;
        let was = [mapped(&ranges[0]), mapped(&ranges[1])];
        let [a, b] = &mut ranges;
        let guard = device.inject_fault(FaultPlan::nth(k));
        let all_of_b = std::iter::once(1..6).collect();
        let cleared = clear_together(&mut [(a, vec![0..1, 3..6]), (b, all_of_b)]);
        let struck_again = guard.fired();
        drop(guard);
        match cleared {
            Ok(()) => assert_eq!(mapped(&ranges[1]), [0]),
            Err(error) => {
                assert!(struck_again, "{error}");
                assert_eq!((bank.stats().held, [mapped(&ranges[0]), mapped(&ranges[1])]), (held, was));
            }
        }
        for fork in &forks {
            assert!(is_all(&device, fork.slice(..2 * size).unwrap(), 3));
        }
        drop((ranges, forks));
        assert_eq!(bank.stats().held, Bytes::ZERO);
        bank.trim();
        assert_eq!(device.live(), LiveCounts::default());
        if !struck && !struck_again {
            break;
        }
    }
    assert!(fired > 5, "{fired} calls were failed");
}

/// The k-th call while a loan is filled fails, for every k: the places are bare, nobody holds anything, and it can be done again.
pub(crate) fn a_failing_loan_leaves_nothing(open: Open<'_>) {
    let bank = bank(open, 8);
    let device = bank.device().clone();
    let owner = Owner::new("kv");
    let mut range = bank.range(&owner, granules(&device, 4)).unwrap();
    for k in 1.. {
        let mut lent = range.lend(1..4).unwrap();
        let guard = device.inject_fault(FaultPlan::nth(k));
        let done = lent.fill();
        let fired = guard.fired();
        drop(guard);
        assert!(done.is_ok() || fired, "{done:?}");
        assert_eq!(lent.is_filled(), done.is_ok());
        if done.is_err() {
            assert_eq!(bank.stats().held, Bytes::ZERO);
            lent.fill().unwrap();
        }
        range.take_back(lent).unwrap();
        assert_eq!((mapped(&range), bank.stats().held), (vec![1, 2, 3], granules(&device, 3)));
        range.clear(1..4).unwrap();
        bank.trim();
        if !fired {
            assert!(k > 3, "no call was failed");
            break;
        }
    }
}

/// Memory that is nobody's at the moment is lent with its places: it counts until it is given back, which is behind device work
/// where that may still use it.
pub(crate) fn filled_places_are_given_back_by_whoever_has_them(open: Open<'_>) {
    let bank = bank(open, 8);
    let device = bank.device().clone();
    let stream = device.stream().unwrap();
    let owner = Owner::new("kv");
    let mut range = bank.range(&owner, granules(&device, 8)).unwrap();
    range.fill(0..6).unwrap();
    fill(&device, range.slice_mut(place(&device, 2)).unwrap(), 7);
    assert_eq!(range.next_writable(0..8), Some(0..6));
    let ids: Vec<_> = (2..6).filter_map(|place| range.piece_id(place)).collect();
    let mut lent = range.lend_filled(2..6).unwrap();
    assert_eq!((lent.is_filled(), lent.pieces().collect::<Vec<_>>()), (true, ids.clone()));
    assert_eq!((mapped(&range), bank.stats().held), (vec![0, 1], granules(&device, 6)));
    range.take_back_first(&mut lent, 1).unwrap();
    assert_eq!((mapped(&range), range.piece_id(2)), (vec![0, 1, 2], Some(ids[0])));
    assert!(is_all(&device, range.slice(place(&device, 2)).unwrap(), 7));
    assert_eq!((lent.first(), lent.pieces().count(), bank.stats().held), (3, 3, granules(&device, 6)));
    drop(lent);
    assert_eq!(bank.stats().held, granules(&device, 3));
    let lent = range.lend_filled(1..3).unwrap();
    stream.call(|| std::thread::sleep(std::time::Duration::from_millis(5))).unwrap();
    let event = stream.record().unwrap();
    lent.give_back_after(&event);
    event.synchronize();
    bank.drain();
    assert_eq!((bank.stats().held, bank.stats().retiring), (granules(&device, 1), Bytes::ZERO));
    range.fill(0..8).unwrap();
    // Shared ones are not anybody's.
    let shared = range.share(0..1).unwrap();
    assert!(range.lend_filled(0..2).is_err());
    drop(shared);
    // For work that is done there is nothing to wait for.
    range.lend_filled(4..8).unwrap().give_back_after(&event);
    assert_eq!(bank.stats().held, granules(&device, 4));
}
