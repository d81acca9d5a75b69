//! Ranges and growables: bytes, sharing, filling from a stock, and what a snapshot says of them.

use granule_bank::{Bank, Error, Growth, Owner, Stock, grow_together};
use granule_device::Bytes;

use crate::support::{
    Open, Work, bank, fill, granule, granules, is_all, is_host, options, place, read, stream, write,
};

pub(crate) fn sparse_places_come_and_go(open: Open<'_>) {
    let bank = bank(open, 8);
    let device = bank.device();
    let mut range = bank.range(&Owner::new("a"), granules(device, 10)).unwrap();
    range.fill(2..4).unwrap();
    fill(device, range.slice_mut(place(device, 3)).unwrap(), 3);
    range.fill(0..6).unwrap();
    assert_eq!(bank.stats().held, granules(device, 6));
    assert!(is_all(device, range.slice(place(device, 3)).unwrap(), 3));
    range.clear(1..3).unwrap();
    assert!(!range.is_mapped(1) && !range.is_mapped(2) && range.is_mapped(3));
    assert_eq!((bank.stats().held, bank.stats().cached), (granules(device, 4), granules(device, 2)));
    range.clear(0..10).unwrap();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    assert!(range.fill(5..11).is_err());
    let refused = range.fill(0..9);
    assert!(matches!(refused, Err(Error::TooLarge { requested, .. }) if requested == granules(device, 9)));
    assert_eq!(bank.trim(), granules(device, 6));
    assert_eq!(bank.device().live().granules, 0);
}

pub(crate) fn a_shared_granule_counts_once_and_is_not_written(open: Open<'_>) {
    let bank = bank(open, 4);
    let device = bank.device();
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let mut first = bank.range(&a, granules(device, 1)).unwrap();
    let mut second = bank.range(&b, granules(device, 1)).unwrap();
    first.fill(0..1).unwrap();
    fill(device, first.slice_mut(..).unwrap(), 1);
    let shared = first.share(0..1).unwrap();
    second.map_shared(0, &shared).unwrap();
    drop(shared);
    assert!(first.is_shared(0) && second.is_shared(0));
    assert_eq!(first.piece_id(0), second.piece_id(0));
    assert!(first.slice_mut(..).is_err() && second.slice_mut(..).is_err());
    assert_eq!(bank.stats().held, granules(device, 1));

    let base = second.base();
    second.make_private(0).unwrap();
    assert_eq!(second.base(), base);
    fill(device, second.slice_mut(5..).unwrap(), 2);
    assert!(is_all(device, first.slice(..).unwrap(), 1));
    assert_eq!(read(device, second.slice(..7).unwrap()), [1, 1, 1, 1, 1, 2, 2]);
    assert_eq!(bank.stats().held, granules(device, 2));
    let current: Vec<_> = bank.stats().owners.iter().map(|owner| owner.current).collect();
    assert_eq!(current, [granules(device, 1), granules(device, 1)]);

    // Nobody shares it any more: private again without a copy.
    assert!(!first.is_shared(0));
    let id = first.piece_id(0);
    first.make_private(0).unwrap();
    assert_eq!(first.piece_id(0), id);
    first.slice_mut(..).unwrap();
    assert!(first.make_private(1).is_err() && first.make_private(usize::MAX).is_err());
}

pub(crate) fn a_shared_granule_outlives_the_range_it_came_from(open: Open<'_>) {
    let bank = bank(open, 4);
    let device = bank.device();
    let mut first = bank.range(&Owner::new("a"), granules(device, 2)).unwrap();
    first.fill(0..2).unwrap();
    fill(device, first.slice_mut(place(device, 1)).unwrap(), 9);
    let shared = first.share(1..2).unwrap();
    drop(first);
    assert_eq!(bank.stats().held, granules(device, 1));
    let mut second = bank.range(&Owner::new("b"), granules(device, 1)).unwrap();
    second.map_shared(0, &shared).unwrap();
    assert!(is_all(device, second.slice(..).unwrap(), 9));
    let other = crate::support::bank(open, 1);
    let mut foreign = other.range(&Owner::new("c"), granules(device, 1)).unwrap();
    assert!(matches!(foreign.map_shared(0, &shared), Err(Error::OtherBank { .. })));
    drop((shared, second));
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn growing_keeps_base_and_bytes(open: Open<'_>) {
    let bank = bank(open, 64);
    let device = bank.device();
    let mut growable = bank.growable(&Owner::new("kv"), granules(device, 64)).unwrap();
    let base = growable.base();
    let mut model: Vec<u8> = Vec::new();
    for step in 1..if is_host(device) { 40usize } else { 12 } {
        let len = step * (granule(device) / 4 - 27);
        growable.grow_to(Bytes::from_usize(len)).unwrap();
        let bytes = (model.len()..len).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>();
        write(device, &bytes, growable.slice_mut(model.len()..).unwrap());
        model.extend(bytes);
        assert_eq!(growable.base(), base);
        assert!(read(device, growable.slice(..).unwrap()) == model);
        assert_eq!(bank.stats().held, growable.mapped());
        assert_eq!(growable.mapped(), granules(device, len.div_ceil(granule(device))));
    }
    growable.grow_to(Bytes::new(1)).unwrap();
    assert_eq!(growable.len(), Bytes::from_usize(model.len()), "growing never shrinks");
    assert!(growable.slice(..model.len() + 1).is_err() && growable.slice_mut(..model.len() + 1).is_err());
    let keep = granule(device) + 900;
    growable.shrink_to(Bytes::from_usize(keep)).unwrap();
    assert!(read(device, growable.slice(..).unwrap()) == model[..keep]);
    assert_eq!(bank.stats().held, granules(device, 2));
    assert!(matches!(growable.grow_to(granules(device, 65)), Err(Error::Reserved { .. })));
}

pub(crate) fn an_alias_copies_only_where_it_is_written(open: Open<'_>) {
    let bank = bank(open, 16);
    let device = bank.device();
    let mut parent = bank.growable(&Owner::new("kv"), granules(device, 8)).unwrap();
    let len = 3 * granule(device) + 100;
    parent.grow_to(Bytes::from_usize(len)).unwrap();
    fill(device, parent.slice_mut(..).unwrap(), 1);
    let mut child = parent.alias(Bytes::from_usize(len)).unwrap();
    assert_eq!(bank.stats().held, granules(device, 4));
    assert!(parent.slice_mut(..1).is_err() && child.slice_mut(..1).is_err());
    let grown = Bytes::from_usize(len + 10);
    let copied =
        grow_together(&mut [Growth::of(&mut child, grown).writable_from(Bytes::from_usize(len))]).unwrap();
    assert_eq!(copied, Bytes::from_usize(100));
    fill(device, child.slice_mut(len..).unwrap(), 2);
    assert_eq!(bank.stats().held, granules(device, 5));
    assert!(is_all(device, child.slice(..len).unwrap(), 1));
    // The last one that has the granule writes it without a copy.
    let copied =
        grow_together(&mut [Growth::of(&mut parent, grown).writable_from(Bytes::from_usize(len))]).unwrap();
    assert_eq!(copied, Bytes::ZERO);
    fill(device, parent.slice_mut(len..).unwrap(), 3);
    assert_eq!(bank.stats().held, granules(device, 5));
    assert!(is_all(device, child.slice(len..).unwrap(), 2));
    drop(parent);
    assert_eq!(bank.stats().held, granules(device, 4));
    assert!(is_all(device, child.slice(..len).unwrap(), 1));
}

pub(crate) fn what_is_cleared_into_a_stock_is_given_back_with_it(open: Open<'_>) {
    let bank = bank(open, 6);
    let device = bank.device();
    let owner = Owner::new("a");
    let mut range = bank.range(&owner, granules(device, 6)).unwrap();
    range.fill(0..4).unwrap();
    let mut stock = Stock::new();
    range.clear_into(1..3, &mut stock).unwrap();
    assert_eq!((stock.len(), bank.stats().held), (2, granules(device, 4)));
    assert!(range.is_mapped(0) && !range.is_mapped(1) && !range.is_mapped(2) && range.is_mapped(3));
    // They are as good as taken ones.
    range.fill_from(5..6, &mut stock).unwrap();
    fill(device, range.slice_mut(place(device, 5)).unwrap(), 5);
    assert!(range.clear_into(3..9, &mut stock).is_err(), "no such places");
    assert_eq!((stock.len(), range.is_mapped(3)), (1, true));
    drop(stock);
    assert_eq!(bank.stats().held, granules(device, 3));
    // What somebody else reads is not for writing: it stays where it is.
    let shared = range.share(0..1).unwrap();
    let mut stock = Stock::new();
    range.clear_into(0..1, &mut stock).unwrap();
    assert!(stock.is_empty());
    assert_eq!(bank.stats().held, granules(device, 3));
    drop(shared);
    assert_eq!(bank.stats().held, granules(device, 2));
    // With an event that is done it is as without one.
    let event = stream(device).record().unwrap();
    event.synchronize();
    range.clear_after_into(3..4, &event, &mut stock).unwrap();
    assert_eq!((stock.len(), bank.stats().held), (1, granules(device, 2)));
}

pub(crate) fn a_stock_fills_what_is_bare(open: Open<'_>) {
    let bank = bank(open, 8);
    let device = bank.device();
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let mut range = bank.range(&a, granules(device, 8)).unwrap();
    range.fill(2..3).unwrap();
    fill(device, range.slice_mut(place(device, 2)).unwrap(), 7);
    let mut stock = bank.take(&b, 3).unwrap();
    let refused = range.fill_from(0..5, &mut stock);
    assert!(matches!(refused, Err(Error::StockTooSmall { needed: 4, stocked: 3 })), "{refused:?}");
    assert!(range.fill_from(6..9, &mut stock).is_err(), "no such places");
    assert_eq!((stock.len(), range.is_mapped(0)), (3, false));
    range.fill_from(1..4, &mut stock).unwrap();
    assert_eq!((stock.len(), range.is_mapped(1), range.is_mapped(3)), (1, true, true));
    assert!(is_all(device, range.slice(place(device, 2)).unwrap(), 7));
    fill(device, range.slice_mut(place(device, 1)).unwrap(), 1);
    // Whose it is was settled when it was taken.
    let current: Vec<_> = bank.stats().owners.iter().map(|owner| owner.current).collect();
    assert_eq!(current, [granules(device, 1), granules(device, 3)]);
    let other = crate::support::bank(open, 1);
    let mut foreign = other.range(&a, granules(device, 1)).unwrap();
    assert!(matches!(foreign.fill_from(0..1, &mut stock), Err(Error::OtherBank { .. })));
    assert_eq!(stock.len(), 1);
}

pub(crate) fn a_snapshot_says_what_stands_where(open: Open<'_>) {
    let bank = bank(open, 8);
    let device = bank.device();
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let mut first = bank.range(&a, granules(device, 4)).unwrap();
    first.fill(1..3).unwrap();
    let shared = first.share(2..3).unwrap();
    let mut second = bank.range(&b, granules(device, 2)).unwrap();
    second.map_shared(0, &shared).unwrap();
    second.fill(1..2).unwrap();
    drop(shared);
    let _charge = bank.charge(&b, Bytes::new(5)).unwrap();
    let snapshot = bank.snapshot();
    let seen = |index: usize| {
        let range = &snapshot.ranges[index];
        let behind = range.behind.iter();
        let behind = behind.map(|b| (b.place, Some(b.granule), b.owner.name(), b.shared)).collect::<Vec<_>>();
        (range.range, range.base, range.places, behind)
    };
    let ids = [first.piece_id(1), first.piece_id(2), second.piece_id(1)];
    let expected = vec![(1, ids[0], "a", false), (2, ids[1], "a", true)];
    assert_eq!(seen(0), (first.id().0, first.base().addr(), 4, expected));
    let expected = vec![(0, ids[1], "a", true), (1, ids[2], "b", false)];
    assert_eq!(seen(1), (second.id().0, second.base().addr(), 2, expected));
    assert_eq!((snapshot.granules(), snapshot.charged), (3, Bytes::new(5)));
    assert_eq!(snapshot.held_by(&a), granules(device, 2));
    let stats = bank.stats();
    assert_eq!(stats.held.get(), granules(device, snapshot.granules()).get() + 5);

    let stream = stream(device);
    let work = Work::begin(&stream);
    second.clear_after(0..2, &work.event).unwrap();
    let snapshot = bank.snapshot();
    if is_host(device) {
        let waiting: Vec<_> = snapshot.retiring.iter().map(|r| (r.range, r.behind.place)).collect();
        assert_eq!(waiting, [(second.id().0, 0), (second.id().0, 1)]);
    }
    assert!(snapshot.ranges[1].behind.is_empty());
    work.end().synchronize();
    bank.drain();
    drop(first);
    let snapshot = bank.snapshot();
    assert_eq!((snapshot.ranges.len(), snapshot.retiring.len(), snapshot.granules()), (1, 0, 0));
    assert_eq!(granules(device, snapshot.cached as usize), bank.stats().cached);
}

pub(crate) fn only_what_waits_outlives_its_range(open: Open<'_>) {
    let device = open(8);
    let options = options(&device, 8).cache(Bytes::ZERO);
    let bank = Bank::new(device.clone(), options).unwrap();
    let mut range = bank.range(&Owner::new("a"), granules(&device, 6)).unwrap();
    range.fill(0..2).unwrap();
    range.fill(3..6).unwrap();
    let stream = stream(&device);
    let work = Work::begin(&stream);
    let before = device.memory().unwrap().free;
    range.clear_after(1..2, &work.event).unwrap();
    drop(range);
    // The device has it back, not only the bank's books: no mapping that nobody can reach keeps it.
    assert!(device.memory().unwrap().free >= before.saturating_add(granules(&device, 4)));
    work.end().synchronize();
    bank.drain();
    assert!(device.memory().unwrap().free >= before.saturating_add(granules(&device, 5)));
}
