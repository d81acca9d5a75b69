//! What a space promises, one promise a test.

use crate::policy::{Class, Space, Stamp, StreamId, UNIT};

const HOME: StreamId = StreamId(0);
const OTHER: StreamId = StreamId(1);
const MIB: u64 = 1 << 20;

fn own(stamp: &Stamp) -> bool {
    stamp.iter().all(|(stream, _)| stream == HOME)
}

/// A space of `HOME` with one span of granules of 2 MiB, the first `backed` of which have memory.
fn space(places: usize, backed: usize) -> (Space, crate::policy::SpanId) {
    let mut space = Space::of(HOME);
    let span = space.add_span_at(0, 2 * MIB, places);
    space.back(span, 0..backed);
    (space, span)
}

#[test]
fn a_streams_own_frees_come_together_whatever_their_ticks() {
    let (mut space, _) = space(1, 1);
    let blocks: Vec<_> = (0..8).map(|_| space.take(MIB / 4, 1, &own).expect("room").0).collect();
    for (tick, at) in [3, 0, 7, 1, 5, 2, 6, 4].into_iter().enumerate() {
        space.free(blocks[at].id, Stamp::One(HOME, tick as u64 + 1)).expect("live");
    }
    assert_eq!(space.counts().largest_free, 2 * MIB);
    // Whoever else takes it waits for the last of them.
    assert_eq!(space.take(2 * MIB, 1, &|_| true).expect("room").1, Stamp::One(HOME, 8));
    space.check().expect("sound");
}

#[test]
fn a_strangers_stamp_stays_with_the_block_it_was_put_on() {
    let (mut space, _) = space(4, 4);
    let small = space.take(UNIT, 1, &own).expect("room").0;
    space.free(small.id, Stamp::One(OTHER, 5)).expect("live");
    let (large, stamp) = space.take(8 * MIB - UNIT, 1, &own).expect("all but the small block");
    assert!(stamp.is_idle());
    space.free(large.id, Stamp::Idle).expect("live");
    // Who has waited for the stranger gets both as one, without anything else being spoilt.
    assert!(space.take(8 * MIB, 1, &|_| true).is_none());
    let (whole, stamp) = space.take_joined(8 * MIB, 1, &|_| true).expect("joined");
    assert_eq!((whole.size, stamp), (8 * MIB, Stamp::One(OTHER, 5)));
    space.check().expect("sound");
}

#[test]
fn joining_takes_the_smallest_stretch_that_has_room() {
    let (mut space, _) = space(4, 4);
    let blocks: Vec<_> = (0..16).map(|_| space.take(MIB / 2, 1, &own).expect("room").0).collect();
    // Stretches of four, two and three blocks, each with a stamp of its own.
    for at in [0, 1, 2, 3, 6, 7, 10, 11, 12] {
        space.free(blocks[at].id, Stamp::One(OTHER, at as u64 + 1)).expect("live");
    }
    let (joined, stamp) = space.take_joined(MIB, 1, &|_| true).expect("room");
    assert_eq!((joined.offset, stamp), (blocks[6].offset, Stamp::One(OTHER, 8)));
    let (joined, stamp) = space.take_joined(MIB, 1, &|_| true).expect("room");
    assert_eq!(
        (joined.offset, stamp),
        (blocks[10].offset, Stamp::One(OTHER, 12)),
        "no more of it than it takes"
    );
    space.check().expect("sound");
}

#[test]
fn what_the_home_stream_has_waited_for_becomes_its_own() {
    let (mut space, _) = space(1, 1);
    let small = space.take(UNIT, 1, &own).expect("room").0;
    space.free(small.id, Stamp::of([(OTHER, 5), (StreamId(2), 1)])).expect("live");
    space.adopt(&|stamp| stamp.iter().all(|(_, tick)| tick <= 4), 9);
    assert!(space.take(2 * MIB, 1, &own).is_none(), "not waited for");
    space.adopt(&|_| true, 9);
    assert_eq!(space.take(2 * MIB, 1, &own).expect("one again").1, Stamp::One(HOME, 9));
}

#[test]
fn an_id_names_one_block_and_none_after_it() {
    let (mut space, _) = space(1, 1);
    let first = space.take(UNIT, 1, &own).expect("room").0;
    space.free(first.id, Stamp::Idle).expect("live");
    let second = space.take(UNIT, 1, &own).expect("room").0;
    assert_eq!((first.offset, first.size), (second.offset, second.size), "the same memory");
    assert!(space.free(first.id, Stamp::Idle).is_err(), "freed before");
    space.free(second.id, Stamp::Idle).expect("live");
    let mut elsewhere = Space::new();
    assert!(elsewhere.free(second.id, Stamp::Idle).is_err(), "of another space");
}

#[test]
fn a_spans_id_names_one_span_and_none_after_it() {
    let (mut space, first) = space(2, 0);
    space.remove_span(first).expect("bare");
    let second = space.add_span_at(0, MIB, 3);
    assert_eq!(first.index(), second.index(), "the same entry of the table");
    space.back(first, 0..2);
    assert_eq!(space.counts().places_backed, 0);
    space.back(second, 0..3);
    assert!(space.bare(first, 0..1).is_err() && space.withdraw(first, 0..1).is_err());
    assert_eq!(space.counts().places_backed, 3);
}

#[test]
fn memory_that_is_leaving_is_neither_cut_nor_filled() {
    let (mut space, span) = space(3, 3);
    space.withdraw(span, 1..3).expect("nothing lives there");
    assert_eq!(space.counts().places_backed, 1);
    assert!(space.take(3 * MIB, 1, &|_| true).is_none());
    assert!(space.plan(3 * MIB, 1, &own).is_none(), "its memory is not gone yet");
    space.bare(span, 1..3).expect("nothing lives there");
    let growth = space.plan(3 * MIB, 1, &own).expect("room");
    assert_eq!((growth.places, growth.new, growth.offset), (1..2, 1, 0));
}

#[test]
fn a_plan_uses_the_memory_beside_the_places_it_fills() {
    let (mut space, span) = space(8, 2);
    let used = space.take(MIB / 2, 1, &own).expect("room").0;
    // 3.5 MiB are free in two granules: 5 MiB need one more.
    let growth = space.plan(5 * MIB, 1, &own).expect("room");
    assert_eq!((growth.span, growth.places.clone(), growth.new, growth.offset), (span, 2..3, 1, MIB / 2));
    let (block, stamp) = space.grow(&growth).expect("planned");
    assert_eq!((block.offset, stamp), (MIB / 2, Stamp::Idle));
    assert!(space.grow(&growth).is_none(), "it is taken");
    space.free(used.id, Stamp::Idle).expect("live");
    space.check().expect("sound");
}

#[test]
fn a_plan_reaches_across_bare_places_on_both_sides_of_memory() {
    let (mut space, span) = space(5, 0);
    space.back(span, 2..3);
    let growth = space.plan(10 * MIB, 2 * MIB, &own).expect("room");
    assert_eq!((growth.places.clone(), growth.new), (0..5, 4));
    assert_eq!(space.grow(&growth).expect("planned").0.size, 10 * MIB);
    assert_eq!(space.counts().places_backed, 5);
    space.check().expect("sound");
}

#[test]
fn blocks_of_a_plain_span_are_aligned_by_address() {
    let mut space = Space::of(HOME);
    // An allocation of a driver that aligns to 512 bytes.
    let span = space.add_span_at(0x7f00_0000_0200, 3 * MIB, 1);
    space.back(span, 0..1);
    let block = space.take(MIB, MIB, &own).expect("room").0;
    assert_eq!((0x7f00_0000_0200 + block.offset) % MIB, 0);
    assert!(space.take(2 * MIB, MIB, &own).is_none());
}

#[test]
fn what_no_space_could_hold_is_refused() {
    let (mut space, _) = space(1, 1);
    for size in [u64::MAX, u64::MAX - UNIT, 1 << 63] {
        for align in [1, UNIT, 1 << 63, u64::MAX] {
            assert!(
                space.take(size, align, &|_| true).is_none() && space.plan(size, align, &own).is_none(),
                "{size} {align}"
            );
            assert!(space.take_joined(size, align, &own).is_none(), "{size} {align}");
        }
    }
    // An alignment that is not a power of two is rounded up to one.
    assert_eq!(space.take(UNIT, 3 * UNIT, &|_| true).map(|(block, _)| block.offset % (4 * UNIT)), Some(0));
    space.check().expect("sound");
}

/// Slots of one class that are given back and taken again never cut a larger block up.
#[test]
fn memory_that_was_cut_for_a_size_serves_that_size_again() {
    let (mut space, _) = space(4, 4);
    let class = Class::of(100 << 10).expect("a class");
    let slots: Vec<_> = (0..20).map(|_| space.take(class.size(), 1, &own).expect("room").0).collect();
    let large = space.counts().largest_free;
    for slot in slots.iter().step_by(2) {
        space.free(slot.id, Stamp::One(HOME, 1)).expect("live");
    }
    for _ in 0..10 {
        space.take(class.size(), 1, &own).expect("room");
    }
    assert_eq!(space.counts().largest_free, large);
}
