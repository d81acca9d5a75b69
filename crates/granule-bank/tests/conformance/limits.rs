//! Budgets and reserves: what is refused, what the refusal says, and who makes way.

use granule_bank::{Bank, Budget, Error, Owner};
use granule_device::Bytes;

use crate::support::{Open, granule, granules, is_host, options};

pub(crate) fn out_of_memory_names_who_holds_most(open: Open<'_>) {
    let device = open(20);
    let bank = Bank::new(device.clone(), options(&device, 4)).unwrap();
    let (granule, granules) = (granule(&device), |count| granules(&device, count));
    let _charge = bank.charge(&Owner::new("weights"), Bytes::from_usize(2 * granule + 1)).unwrap();
    let mut range = bank.range(&Owner::new("kv"), granules(9)).unwrap();
    range.fill(0..1).unwrap();
    match range.fill(1..2) {
        Err(Error::OutOfMemory { device: name, owner, requested, held, free, budget, largest_owner }) => {
            assert_eq!((name.as_str(), owner.name()), (device.name(), "kv"));
            assert_eq!((requested, budget), (granules(1), granules(4)));
            assert_eq!((held, free), (Bytes::from_usize(3 * granule + 1), Bytes::from_usize(granule - 1)));
            assert_eq!(largest_owner, Some((Owner::new("weights"), Bytes::from_usize(2 * granule + 1))));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(bank.charge(&Owner::new("x"), granules(5)), Err(Error::TooLarge { .. })));
    assert_eq!(bank.stats().refused, 1, "what never fits is not asked for");
}

pub(crate) fn the_device_may_be_full_before_the_budget_is(open: Open<'_>) {
    let device = open(3);
    let bank = Bank::new(device.clone(), options(&device, 1 << 20)).unwrap();
    let free = device.memory().unwrap().free.get() / device.granularity().get();
    let others = device.alloc(granules(&device, free as usize - 2)).unwrap();
    let mut range = bank.range(&Owner::new("kv"), granules(&device, 9)).unwrap();
    let refused = range.fill(0..3).unwrap_err();
    assert!(matches!(refused, Error::OutOfMemory { .. }), "{refused}");
    assert_eq!(bank.stats().held, Bytes::ZERO);
    range.fill(0..2).unwrap();
    drop(others);
    range.fill(0..3).unwrap();
}

pub(crate) fn banks_share_a_budget(open: Open<'_>) {
    let (left, right) = (open(8), open(8));
    let granules = |count| granules(&left, count);
    let budget = Budget::new(granules(6));
    let banks = [&left, &right].map(|device| {
        let options = options(device, 5).share(&budget);
        Bank::new(device.clone(), options).unwrap()
    });
    let owner = Owner::new("a");
    let mut range = banks[0].range(&owner, granules(8)).unwrap();
    range.fill(0..4).unwrap();
    assert_eq!([banks[0].free(), banks[1].free()], [granules(1), granules(2)]);
    let refused = banks[1].take(&owner, 3).unwrap_err();
    let Error::OutOfMemory { held, free, budget: limit, .. } = refused else { panic!("{refused}") };
    assert_eq!((held, free, limit), (Bytes::ZERO, granules(2), granules(5)));
    assert!(matches!(banks[1].take(&owner, 6), Err(Error::TooLarge { .. })), "more than its own budget");
    let charge = banks[1].charge(&owner, granules(2)).unwrap();
    assert!(banks[0].charge(&owner, Bytes::new(1)).is_err());
    let stats = banks[0].stats();
    assert_eq!(stats.budget, granules(5));
    let shared = stats.shared.unwrap();
    assert_eq!((shared.limit, shared.held, shared.cached), (granules(6), granules(6), Bytes::ZERO));
    drop(charge);
    range.fill(4..5).unwrap();
    assert_eq!(budget.stats().held, granules(5));
}

pub(crate) fn what_one_bank_keeps_makes_way_for_another(open: Open<'_>) {
    let (left, right) = (open(8), open(8));
    let granules = |count| granules(&left, count);
    let budget = Budget::new(granules(4));
    let banks = [&left, &right].map(|device| {
        Bank::new(device.clone(), options(device, 8).cache(granules(4)).share(&budget)).unwrap()
    });
    let owner = Owner::new("a");
    drop(banks[0].take(&owner, 4).unwrap());
    assert_eq!((budget.stats().held, budget.stats().cached), (Bytes::ZERO, granules(4)));
    assert_eq!(left.live().granules, 4);
    let two = banks[1].take(&owner, 2).unwrap();
    assert_eq!((left.live().granules, right.live().granules), (2, 2));
    let charge = banks[1].charge(&owner, granules(1)).unwrap();
    assert_eq!(left.live().granules, 1);
    // Its own come first, and are not let go for others while they can be used.
    let one = banks[0].take(&owner, 1).unwrap();
    assert_eq!(banks[0].stats().cache_hits, 1);
    assert!(banks[1].take_now(&owner, 1).is_err());
    drop((two, charge, one));
    assert_eq!(budget.stats().held, Bytes::ZERO);
}

pub(crate) fn a_bank_that_goes_leaves_nothing_in_the_budget(open: Open<'_>) {
    let device = open(4);
    let budget = Budget::new(granules(&device, 4));
    let bank = Bank::new(device.clone(), options(&device, 4).share(&budget)).unwrap();
    let stock = bank.take(&Owner::new("a"), 3).unwrap();
    drop(bank);
    assert_eq!(budget.stats().held, granules(&device, 3), "granules keep their bank");
    drop(stock);
    let stats = budget.stats();
    assert_eq!((stats.held, stats.cached), (Bytes::ZERO, Bytes::ZERO));
    let other = Bank::new(device.clone(), options(&device, 4).share(&budget)).unwrap();
    other.take(&Owner::new("a"), 4).unwrap();
}

pub(crate) fn a_reserve_is_left_to_others(open: Open<'_>) {
    let device = open(8);
    let room = device.memory().unwrap().free.get() / device.granularity().get();
    let reserve = granules(&device, room as usize - 3);
    let options = granule_bank::BankOptions::new().reserve(reserve);
    let bank = Bank::new(device.clone(), options).unwrap();
    let owner = Owner::new("a");
    if is_host(&device) {
        assert_eq!(bank.stats().budget, granules(&device, 3), "all that there is, less the reserve");
    }
    assert!(bank.take(&owner, 4).is_err());
    let stock = bank.take(&owner, 3).unwrap();
    assert!(device.memory().unwrap().free >= reserve);
    drop(stock);
    // What somebody else takes is not the bank's to have any more; what the bank keeps itself is.
    let _other = device.alloc(granules(&device, 1)).unwrap();
    let stock = bank.take(&owner, 3).unwrap();
    drop(stock);
    bank.trim();
    let refused = bank.take(&owner, 3);
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
    let _stock = bank.take(&owner, 2).unwrap();
    assert!(device.memory().unwrap().free >= reserve);
}
