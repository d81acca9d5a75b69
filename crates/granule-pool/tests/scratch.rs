//! `ScratchArena` on every kind of device: what nests keeps its bytes, what is given back is given again.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::sync::Arc;

use granule_bank::{Bank, BankOptions, Owner};
use granule_device::{
    Bytes, Device, DeviceKind, DeviceSlice, DeviceSliceMut, FaultPlan, HostOptions, LeaseMode,
};
use granule_pool::{Error, Frame, Scratch, ScratchArena};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

macro_rules! on_every_device {
    ($($test:ident),+ $(,)?) => {
        mod host {
            $(#[test]
            fn $test() {
                super::with(super::host(), super::$test);
            })+
        }

        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test]
            #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
            fn $test() {
                super::with(super::cuda(), super::$test);
            })+
        }
    };
}

on_every_device!(
    frames_are_like_a_stack,
    addresses_come_again_and_memory_stays,
    work_of_a_stream_is_ahead_of_giving_back,
    a_driver_that_fails_gets_nothing_back_too_early,
    safe_code_waits_for_the_stream,
    allocations_apart_stay_until_the_work_has_run,
    a_failed_growth_changes_nothing,
    wrong_alignments_are_refused,
    leases_are_shown_as_the_device_wants_them,
);

fn host() -> Device {
    Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(64))).unwrap()
}

#[cfg(feature = "cuda")]
fn cuda() -> Device {
    Device::cuda(0).unwrap_or_else(|error| panic!("this test needs a CUDA device: {error}"))
}

/// Runs a test on a bank with room for 8 granules, and checks that all of it came back.
fn with(device: Device, test: fn(&Bank)) {
    let budget = device.granularity().checked_mul(8).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::new().budget(budget)).unwrap();
    test(&bank);
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    drop(bank);
    assert_eq!(device.live(), Default::default(), "left behind");
}

fn arena(bank: &Bank) -> ScratchArena {
    ScratchArena::new(bank, &Owner::new("scratch"), bank.granule().checked_mul(16).unwrap()).unwrap()
}

fn write(device: &Device, bytes: &[u8], to: DeviceSliceMut<'_>) {
    device.copy(DeviceSlice::from(bytes), to).unwrap();
}

fn read(device: &Device, from: DeviceSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; from.len()];
    device.copy(from, DeviceSliceMut::from(&mut bytes[..])).unwrap();
    bytes
}

/// What one frame takes, and the frames that are made within it after each.
#[derive(Clone, Debug)]
struct Tree {
    takes: Vec<(u64, u32)>,
    inner: Vec<Tree>,
}

fn tree() -> impl Strategy<Value = Tree> {
    let takes = || prop::collection::vec((0_u64..40_000, 0_u32..14), 0..4);
    let leaf = takes().prop_map(|takes| Tree { takes, inner: Vec::new() });
    leaf.prop_recursive(3, 12, 3, move |inner| {
        (takes(), prop::collection::vec(inner, 0..3)).prop_map(|(takes, inner)| Tree { takes, inner })
    })
}

/// Fills what the frame takes, lets inner frames do the same, and finds its own bytes again.
fn walk(device: &Device, mut frame: Frame<'_>, tree: &Tree, depth: u8, around: &mut Vec<(u64, u64)>) {
    let before = frame.used();
    let mut taken = Vec::new();
    for (at, &(size, align)) in tree.takes.iter().enumerate() {
        let mut lease = frame.alloc_aligned(Bytes::new(size), Bytes::new(1 << align)).unwrap();
        let (start, end) = (lease.ptr().addr(), lease.ptr().addr() + size);
        assert!(start.is_multiple_of(256.max(1 << align)), "{start:#x}");
        assert_eq!(lease.len() as u64, size);
        assert!(
            around.iter().all(|&(from, to)| to <= start || end <= from || size == 0),
            "{start:#x} is taken"
        );
        around.push((start, end));
        let fill = vec![depth * 16 + at as u8 + 1; lease.len()];
        write(device, &fill, lease.slice_mut().unwrap());
        taken.push((lease, fill));
    }
    let used = frame.used();
    for inner in &tree.inner {
        walk(device, frame.frame(), inner, depth + 1, around);
        assert_eq!(frame.used(), used, "an inner frame gives back what it took");
    }
    for (lease, fill) in &taken {
        assert_eq!(&read(device, lease.slice().unwrap()), fill);
    }
    around.truncate(around.len() - taken.len());
    assert!(before <= used);
}

fn frames_are_like_a_stack(bank: &Bank) {
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let mut scratch = arena(bank);
    let scratch = std::cell::RefCell::new(&mut scratch);
    let run = |tree: Tree| {
        let mut scratch = scratch.borrow_mut();
        walk(bank.device(), scratch.frame(), &tree, 0, &mut Vec::new());
        assert!(scratch.mapped() >= scratch.peak());
        Ok(())
    };
    runner.run(&tree(), run).unwrap();
}

fn addresses_come_again_and_memory_stays(bank: &Bank) {
    let mut scratch = arena(bank);
    let size = bank.granule().checked_mul(2).unwrap();
    let take = |scratch: &mut ScratchArena| scratch.frame().alloc(size).unwrap().ptr();
    let first = take(&mut scratch);
    let calls = bank.stats().driver_calls;
    assert_eq!(take(&mut scratch), first);
    // A frame that is forgotten costs nothing beyond itself.
    std::mem::forget(scratch.frame().alloc(size));
    assert_eq!(take(&mut scratch), first);
    assert_eq!((bank.stats().driver_calls, scratch.mapped(), scratch.peak()), (calls, size, size));
    scratch.trim().unwrap();
    assert_eq!((scratch.mapped(), scratch.peak()), (Bytes::ZERO, size));
    assert_eq!(take(&mut scratch), first, "the base never changes");
}

/// On the simulated driver, which runs streams late and in any order, memory that went back too early is seen.
fn work_of_a_stream_is_ahead_of_giving_back(bank: &Bank) {
    let device = bank.device();
    let stream = Arc::new(device.stream().unwrap());
    let reserve = bank.granule().checked_mul(4).unwrap();
    for round in 0..3_u8 {
        let mut scratch = ScratchArena::on_stream(bank, &Owner::new("scratch"), reserve, &stream).unwrap();
        for value in 0..4_u8 {
            let mut frame = scratch.frame();
            let mut lease = frame.alloc(bank.granule()).unwrap();
            give(&stream, &mut lease, round * 16 + value);
        }
        if round == 1 {
            scratch.trim().unwrap();
            assert_eq!(scratch.mapped(), Bytes::ZERO);
        }
        // Dropped with work behind it that has not run.
    }
    stream.synchronize().unwrap();
}

fn a_driver_that_fails_gets_nothing_back_too_early(bank: &Bank) {
    let device = bank.device();
    let stream = Arc::new(device.stream().unwrap());
    // One call fails: the next best way is taken, and everything comes back.
    for nth in 1..6 {
        let mut scratch =
            ScratchArena::on_stream(bank, &Owner::new("scratch"), bank.granule(), &stream).unwrap();
        give(&stream, &mut scratch.frame().alloc(bank.granule()).unwrap(), nth as u8);
        let fault = device.inject_fault(FaultPlan::nth(nth));
        drop(scratch);
        drop(fault);
        stream.synchronize().unwrap();
        bank.drain();
        assert_eq!(bank.stats().held, Bytes::ZERO, "call {nth}");
    }
}

/// Gives the stream work on the memory, that may run any time later.
fn give(stream: &granule_device::Stream, scratch: &mut Scratch<'_>, value: u8) {
    #[cfg(feature = "cuda")]
    if stream.device().kind() == DeviceKind::Cuda {
        // SAFETY: the stream is the arena's.
        unsafe { stream.fill_slice(scratch.stream_slice_mut(), value) }.unwrap();
        return;
    }
    let (at, len) = (scratch.ptr().addr() as usize, scratch.len());
    stream
        .call(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            // SAFETY: as above: the memory is this work's until the stream has gone on.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(value, len) };
        })
        .unwrap();
}

/// What a frame's work still writes is not read or written by the next frame's safe code before it has run.
fn safe_code_waits_for_the_stream(bank: &Bank) {
    let stream = Arc::new(bank.device().stream().unwrap());
    let reserve = bank.granule().checked_mul(4).unwrap();
    let mut scratch = ScratchArena::on_stream(bank, &Owner::new("scratch"), reserve, &stream).unwrap();
    give(&stream, &mut scratch.frame().alloc(Bytes::kib(4)).unwrap(), 9);
    let mut frame = scratch.frame();
    let mut mine = frame.alloc(Bytes::kib(4)).unwrap();
    write(bank.device(), &[1; 4096], mine.slice_mut().unwrap());
    stream.synchronize().unwrap();
    assert_eq!(read(bank.device(), mine.slice().unwrap()), [1; 4096], "the former frame's work wrote it");
    give(&stream, &mut mine, 2);
    assert_eq!(read(bank.device(), mine.slice().unwrap()), [2; 4096], "read before the stream's work");
}

/// An allocation of a temporary's own is not freed under the stream's work, and is after it.
fn allocations_apart_stay_until_the_work_has_run(bank: &Bank) {
    let device = bank.device();
    let stream = Arc::new(device.stream().unwrap());
    let reserve = bank.granule().checked_mul(4).unwrap();
    let mut scratch = ScratchArena::on_stream(bank, &Owner::new("scratch"), reserve, &stream).unwrap();
    device.set_lease_mode(LeaseMode::Apart);
    let quiet = device.live().buffers;
    let align = Bytes::kib(4);
    let mut lease_and_give = |value: u8| {
        let mut frame = scratch.frame();
        let mut lease = frame.alloc_aligned(Bytes::kib(4), align).unwrap();
        assert!(lease.ptr().addr().is_multiple_of(align.get()));
        give(&stream, &mut lease, value);
        if device.kind() == DeviceKind::Host {
            drop(lease);
            assert_eq!(device.live().buffers, quiet + 1, "freed while the stream's work runs");
        }
    };
    lease_and_give(1);
    stream.synchronize().unwrap();
    lease_and_give(2);
    scratch.trim().unwrap();
    assert_eq!(device.live().buffers, quiet);
    device.set_lease_mode(LeaseMode::Quiet);
}

fn a_failed_growth_changes_nothing(bank: &Bank) {
    let mut scratch = arena(bank);
    let granule = bank.granule();
    let mut frame = scratch.frame();
    let mut kept = frame.alloc(granule).unwrap();
    write(bank.device(), &[7; 16], kept.slice_mut().unwrap().subslice(..16).unwrap());
    let used = frame.used();
    // More than the budget has; more than there are addresses for; more than there are numbers for.
    for size in [granule.checked_mul(8).unwrap(), granule.checked_mul(16).unwrap(), Bytes::MAX] {
        assert!(matches!(frame.alloc(size), Err(Error::Bank(_))), "{size}");
        assert_eq!(frame.used(), used);
    }
    let after = frame.alloc(granule).unwrap();
    assert_eq!(after.ptr().addr(), kept.ptr().addr() + granule.get());
    assert_eq!(read(bank.device(), kept.slice().unwrap().subslice(..16).unwrap()), [7; 16]);
}

fn wrong_alignments_are_refused(bank: &Bank) {
    let mut scratch = arena(bank);
    let mut frame = scratch.frame();
    let granule = bank.granule();
    frame.alloc(Bytes::new(1)).unwrap();
    for align in [Bytes::new(768), granule.checked_mul(2).unwrap()] {
        let refused = frame.alloc_aligned(Bytes::new(1), align);
        assert!(matches!(refused, Err(Error::Alignment { requested, .. }) if requested == align));
    }
    let aligned = frame.alloc_aligned(Bytes::new(1), granule).unwrap();
    assert!(aligned.ptr().addr().is_multiple_of(granule.get()));
}

fn leases_are_shown_as_the_device_wants_them(bank: &Bank) {
    let mut scratch = arena(bank);
    bank.device().set_lease_mode(LeaseMode::Apart);
    let mut frame = scratch.frame();
    let quiet = bank.device().live();
    let lease = frame.alloc(Bytes::kib(4)).unwrap();
    assert_ne!(bank.device().live(), quiet, "an allocation of its own");
    drop((lease, frame));
    bank.device().set_lease_mode(LeaseMode::Quiet);
}
