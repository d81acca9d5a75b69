//! Watches: told each time free memory changes sides, whoever changes it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use granule_bank::{Bank, Budget, Level, Owner, Watch};
use granule_device::Bytes;

use crate::support::{Open, bank, granules, options};

struct Heard(Receiver<Level>);

impl Heard {
    /// The next that is told.
    fn next(&self) -> Level {
        self.0.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Nothing is told for a while.
    fn nothing(&self) -> bool {
        matches!(
            self.0.recv_timeout(Duration::from_millis(20)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)
        )
    }
}

fn listen(bank: &Bank, threshold: Bytes) -> (Heard, Watch) {
    let (tell, heard) = channel();
    let callback = move |level| {
        let _ = tell.send(level);
    };
    let watch = bank.watch(threshold, callback).unwrap();
    (Heard(heard), watch)
}

pub(crate) fn low_and_enough_in_turn(open: Open<'_>) {
    let bank = bank(open, 8);
    let granules = |count| granules(bank.device(), count);
    let owner = Owner::new("x");
    let (half, watch) = listen(&bank, granules(4));
    let (all, _watch) = listen(&bank, granules(1));
    let three = bank.take(&owner, 3).unwrap();
    let one = bank.take(&owner, 1).unwrap();
    assert!(half.nothing(), "four are free still");
    let charge = bank.charge(&owner, Bytes::new(1)).unwrap();
    assert_eq!(half.next(), Level::Low);
    drop(one);
    assert_eq!(half.next(), Level::Enough);
    let mut range = bank.range(&owner, granules(4)).unwrap();
    range.fill(0..4).unwrap();
    assert_eq!((half.next(), all.next()), (Level::Low, Level::Low));
    drop(charge);
    assert_eq!(all.next(), Level::Enough);
    drop(watch);
    range.clear(0..4).unwrap();
    drop(three);
    assert!(half.nothing() && all.nothing(), "nobody listens, or nothing has changed sides");
}

pub(crate) fn a_watch_of_what_is_low_already_hears_it(open: Open<'_>) {
    let bank = bank(open, 2);
    let stock = bank.take(&Owner::new("x"), 2).unwrap();
    let (heard, _watch) = listen(&bank, granules(bank.device(), 1));
    assert_eq!(heard.next(), Level::Low);
    drop(stock);
    assert_eq!(heard.next(), Level::Enough);
}

/// The callback takes and gives back memory itself, so that it is the cause of further changes, and then ends its own watch.
pub(crate) fn a_watch_may_use_the_bank_and_go(open: Open<'_>) {
    let bank = bank(open, 4);
    let owner = Owner::new("x");
    let watch: Arc<OnceLock<Mutex<Option<Watch>>>> = Arc::default();
    let spare = Mutex::new(Some(bank.take(&owner, 2).unwrap()));
    let (tell, heard) = channel();
    let (own, bank_too) = (Arc::clone(&watch), bank.clone());
    let callback = move |level| {
        match level {
            // Whoever is short gets what is spare: that alone makes it enough again.
            Level::Low => drop(spare.lock().unwrap().take()),
            Level::Enough => {
                drop(own.get().and_then(|watch| watch.lock().unwrap().take()));
                assert!(bank_too.take(&Owner::new("y"), 3).is_ok() && bank_too.trim() > Bytes::ZERO);
            }
        }
        let _ = tell.send(level);
    };
    let registered = bank.watch(granules(bank.device(), 2), callback).unwrap();
    watch.set(Mutex::new(Some(registered))).unwrap();
    let stock = bank.take(&owner, 1).unwrap();
    let heard = Heard(heard);
    assert_eq!((heard.next(), heard.next()), (Level::Low, Level::Enough));
    let more = bank.take(&owner, 2).unwrap();
    assert!(heard.nothing(), "it has gone");
    drop((stock, more));
    // Its thread ends, and lets go of what the callback had.
    assert_eq!(heard.0.recv_timeout(Duration::from_secs(20)), Err(RecvTimeoutError::Disconnected));
}

/// Memory given back under a lock that the callback takes too: nobody waits for ever.
pub(crate) fn a_watch_may_take_the_locks_of_who_gives(open: Open<'_>) {
    let bank = bank(open, 2);
    let mine = Arc::new(Mutex::new(Some(bank.take(&Owner::new("x"), 2).unwrap())));
    let (tell, heard) = channel();
    let theirs = Arc::clone(&mine);
    let callback = move |level| {
        let _ = tell.send((level, theirs.lock().unwrap().is_some()));
    };
    let watch = bank.watch(granules(bank.device(), 1), callback).unwrap();
    let next = || heard.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(next(), (Level::Low, true));
    {
        let mut mine = mine.lock().unwrap();
        drop(mine.take());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(next(), (Level::Enough, false));
    drop(watch);
}

pub(crate) fn other_banks_of_the_budget_count(open: Open<'_>) {
    let (left, right) = (open(8), open(8));
    let budget = Budget::new(granules(&left, 4));
    let banks =
        [&left, &right].map(|device| Bank::new(device.clone(), options(device, 8).share(&budget)).unwrap());
    let (heard, watch) = listen(&banks[0], granules(&left, 2));
    let [watched, other] = banks;
    let stock = other.take(&Owner::new("x"), 3).unwrap();
    assert_eq!(heard.next(), Level::Low);
    drop(watched);
    drop(stock);
    assert!(heard.nothing(), "the bank that was watched is gone");
    drop(watch);
    let _stock = other.take(&Owner::new("x"), 4).unwrap();
}

pub(crate) fn a_callback_that_panics_ends_its_watch(open: Open<'_>) {
    let bank = bank(open, 2);
    let (tell, heard) = channel();
    let callback = move |level| {
        tell.send(level).unwrap();
        panic!("on purpose");
    };
    let _watch = bank.watch(granules(bank.device(), 1), callback).unwrap();
    let (others, _others) = listen(&bank, granules(bank.device(), 1));
    let stock = bank.take(&Owner::new("x"), 2).unwrap();
    assert_eq!((heard.recv(), others.next()), (Ok(Level::Low), Level::Low));
    drop(stock);
    assert_eq!(others.next(), Level::Enough);
    assert!(heard.recv().is_err(), "it is not called again");
    bank.take(&Owner::new("x"), 2).unwrap();
}
