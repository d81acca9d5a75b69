//! Watches: told once each time free memory changes sides, whoever changes it.

use std::sync::{Arc, Mutex, OnceLock};

use granule_bank::{Bank, Budget, Level, Owner, Watch};
use granule_device::Bytes;

use crate::support::{Open, bank, granules, options};

type Heard = Arc<Mutex<Vec<Level>>>;

fn listen(bank: &Bank, threshold: Bytes) -> (Heard, Watch) {
    let heard = Heard::default();
    let tell = Arc::clone(&heard);
    let watch = bank.watch(threshold, move |level| tell.lock().unwrap().push(level));
    (heard, watch)
}

fn take(heard: &Heard) -> Vec<Level> {
    std::mem::take(&mut heard.lock().unwrap())
}

pub(crate) fn low_and_enough_in_turn(open: Open<'_>) {
    let bank = bank(open, 8);
    let granules = |count| granules(bank.device(), count);
    let owner = Owner::new("x");
    let (half, watch) = listen(&bank, granules(4));
    let (all, _watch) = listen(&bank, granules(1));
    let three = bank.take(&owner, 3).unwrap();
    let one = bank.take(&owner, 1).unwrap();
    assert_eq!(take(&half), [], "four are free still");
    let charge = bank.charge(&owner, Bytes::new(1)).unwrap();
    assert_eq!(take(&half), [Level::Low]);
    drop(one);
    assert_eq!(take(&half), [Level::Enough]);
    let mut range = bank.range(&owner, granules(4)).unwrap();
    range.fill(0..4).unwrap();
    assert_eq!((take(&half), take(&all)), (vec![Level::Low], vec![Level::Low]));
    drop(charge);
    assert_eq!((take(&half), take(&all)), (vec![], vec![Level::Enough]));
    drop(watch);
    range.clear(0..4).unwrap();
    drop(three);
    assert_eq!((take(&half), take(&all)), (vec![], vec![]), "nobody listens, or nothing has changed sides");
}

pub(crate) fn a_watch_of_what_is_low_already_hears_it(open: Open<'_>) {
    let bank = bank(open, 2);
    let stock = bank.take(&Owner::new("x"), 2).unwrap();
    let (heard, _watch) = listen(&bank, granules(bank.device(), 1));
    assert_eq!(take(&heard), [Level::Low]);
    drop(stock);
    assert_eq!(take(&heard), [Level::Enough]);
}

/// The callback takes and gives back memory itself, so that it is the cause of further changes, and then ends its own watch.
pub(crate) fn a_watch_may_use_the_bank_and_go(open: Open<'_>) {
    let bank = bank(open, 4);
    let owner = Owner::new("x");
    let heard = Heard::default();
    let watch: Arc<OnceLock<Mutex<Option<Watch>>>> = Arc::default();
    let spare = Mutex::new(Some(bank.take(&owner, 2).unwrap()));
    let (own, tell, bank_too) = (Arc::clone(&watch), Arc::clone(&heard), bank.clone());
    let registered = bank.watch(granules(bank.device(), 2), move |level| {
        tell.lock().unwrap().push(level);
        match level {
            // Whoever is short gets what is spare: that alone makes it enough again.
            Level::Low => drop(spare.lock().unwrap().take()),
            Level::Enough => {
                drop(own.get().and_then(|watch| watch.lock().unwrap().take()));
                drop(bank_too.take(&Owner::new("y"), 3));
            }
        }
    });
    watch.set(Mutex::new(Some(registered))).unwrap();
    let stock = bank.take(&owner, 1).unwrap();
    assert_eq!(take(&heard), [Level::Low, Level::Enough]);
    let more = bank.take(&owner, 2).unwrap();
    assert_eq!(take(&heard), [], "it has gone");
    drop((stock, more));
}

pub(crate) fn other_banks_of_the_budget_count(open: Open<'_>) {
    let (left, right) = (open(8), open(8));
    let budget = Budget::new(granules(&left, 4));
    let banks =
        [&left, &right].map(|device| Bank::new(device.clone(), options(device, 8).share(&budget)).unwrap());
    let (heard, _watch) = listen(&banks[0], granules(&left, 2));
    let stock = banks[1].take(&Owner::new("x"), 3).unwrap();
    assert_eq!(take(&heard), [Level::Low]);
    drop(banks);
    drop(stock);
    assert_eq!(take(&heard), [], "the bank that was watched is gone");
}

pub(crate) fn a_callback_that_panics_is_called_again(open: Open<'_>) {
    let bank = bank(open, 2);
    let heard = Heard::default();
    let tell = Arc::clone(&heard);
    let _watch = bank.watch(granules(bank.device(), 1), move |level| {
        tell.lock().unwrap().push(level);
        assert!(level == Level::Enough, "a panic on purpose");
    });
    let owner = Owner::new("x");
    let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bank.take(&owner, 2)));
    assert!(taken.is_err());
    let _ = take(&heard);
    assert_eq!(bank.stats().held, Bytes::ZERO, "what was taken went back with the panic");
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bank.take(&owner, 2)));
    assert_eq!(heard.lock().unwrap().last(), Some(&Level::Enough));
    bank.take(&owner, 1).unwrap();
}
