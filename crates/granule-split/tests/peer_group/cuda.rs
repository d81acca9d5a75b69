//! Sums, parts and failures, held against the naive twin, on two to four GPUs.

use std::time::{Duration, Instant};

use granule_device::{Device, DeviceSliceMut, FaultPlan, Stream};
use granule_split::Error;
use granule_split::comm::{Communicator, GroupOptions, PeerRank, Wire, group_for, peer_group};

use crate::naive::{self, numbers};
use crate::support::{Room, assert_nothing_left, bits, devices, each};

fn group(devices: &[Device]) -> Vec<PeerRank> {
    let options = GroupOptions { timeout: Duration::from_secs(60), wire: Wire::F32 };
    peer_group(&devices.iter().collect::<Vec<_>>(), options).unwrap()
}

/// In place, and at once overwritten and reduced again, as a model's layers do: nothing waits for the host between.
fn reduces(group: &[impl Communicator], devices: &[Device], len: usize, seed: u64, mapped: bool) {
    let ranks = group.len();
    let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(seed + rank as u64, len)).collect();
    let again: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(seed + 77 + rank as u64, len)).collect();
    let [first, second] = [&data, &again].map(|data| bits(&naive::sum(data)));
    each(group, devices, |rank, device, stream| {
        let bytes = 4 * len;
        let mut x = Room::of(device, &data[rank.rank()], mapped);
        let next = Room::of(device, &again[rank.rank()], !mapped);
        let mut kept = Room::new(device, bytes, mapped);
        // SAFETY: all of it stays until the stream was waited for.
        unsafe {
            rank.all_reduce_on(stream, x.slice_mut(bytes), none()).unwrap();
            stream.copy_slice(x.slice(bytes), kept.slice_mut(bytes)).unwrap();
            stream.copy_slice(next.slice(bytes), x.slice_mut(bytes)).unwrap();
            rank.all_reduce_on(stream, x.slice_mut(bytes), none()).unwrap();
        }
        rank.wait_on(stream).unwrap();
        assert_eq!(kept.bits(device, len), first, "{len} of {ranks}");
        assert_eq!(x.bits(device, len), second, "{len} of {ranks}, again");
    });
}

fn none() -> DeviceSliceMut<'static> {
    DeviceSliceMut::from(&mut [][..])
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn sums_are_those_of_the_naive_twin_where_the_numbers_lie() {
    for ranks in [1, 2, 3, 4] {
        let devices = devices(ranks);
        // Mapped before the devices reach each other, and after.
        let before = Room::new(&devices[0], 100, true);
        let group = group(&devices);
        for (turn, len) in [0, 1, 3, 4, 5, 17, 288, 1001, 4100].into_iter().enumerate() {
            reduces(&group, &devices, len, (100 * ranks + len) as u64, turn % 2 == 0);
        }
        drop((group, before));
        assert_nothing_left(&devices);
    }
}

/// What was mapped before a group was made is reached too.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn memory_from_before_the_group_is_reached() {
    let devices = devices(2);
    let mut rooms = [0, 1].map(|n| Room::of(&devices[n], &[1.0 + n as f32; 64], true));
    let group = group(&devices);
    let streams = [0, 1].map(|n: usize| devices[n].stream().unwrap());
    std::thread::scope(|scope| {
        for ((rank, room), stream) in group.iter().zip(&mut rooms).zip(&streams) {
            // SAFETY: the memory stays until the streams were waited for.
            scope.spawn(move || unsafe { rank.all_reduce_on(stream, room.slice_mut(256), none()) }.unwrap());
        }
    });
    for n in [0, 1] {
        streams[n].synchronize().unwrap();
        assert_eq!(rooms[n].bits(&devices[n], 64), bits(&[3.0; 64]));
    }
    drop((group, rooms, streams));
    assert_nothing_left(&devices);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn parts_are_gathered_and_broadcast() {
    let devices = devices(4);
    let group = group(&devices);
    let counts = [7, 0, 64, 3];
    let data: Vec<Vec<f32>> = counts.iter().map(|n| numbers(*n as u64, *n)).collect();
    each(&group, &devices, |rank, device, stream| {
        let r = rank.rank();
        let own = Room::of(device, &data[r], r % 2 == 0);
        let mut all = Room::new(device, 4 * 74, r % 2 == 1);
        let mut x = Room::of(device, &numbers(9 + r as u64, 33), r < 2);
        // SAFETY: all of it stays until the stream was waited for.
        unsafe {
            rank.all_gather_on(stream, own.slice(4 * counts[r]), &counts, all.slice_mut(4 * 74)).unwrap();
            rank.broadcast_on(stream, 2, x.slice_mut(4 * 33)).unwrap();
        }
        rank.wait_on(stream).unwrap();
        assert_eq!(all.bits(device, 74), bits(&data.concat()));
        assert_eq!(x.bits(device, 33), bits(&numbers(11, 33)));
    });
    let sent: Vec<u64> = group.iter().map(|rank| rank.traffic().sent).collect();
    assert_eq!(sent, [7 * 4 * 3, 0, 64 * 4 * 3 + 33 * 4 * 3, 3 * 4 * 3]);
    drop(group);
    assert_nothing_left(&devices);
}

/// One call of everything, with memory that goes at once where it fails.
fn once(rank: &dyn Communicator, device: &Device, stream: &Stream) -> Result<Vec<u32>, Error> {
    let mut x = Room::of(device, &[1.0 + rank.rank() as f32; 300], rank.rank().is_multiple_of(2));
    // SAFETY: the memory stays until the stream was waited for: where the call fails, below.
    let done = unsafe { rank.all_reduce_on(stream, x.slice_mut(1200), none()) };
    let waited = rank.wait_on(stream);
    if waited.is_err() {
        stream.wait_out().unwrap();
    }
    done.and(waited)?;
    Ok(x.bits(device, 300))
}

/// The k-th call of a device fails: all ranks come back, nothing is used that is gone (the simulator sees it), and after recovery
/// it goes on.
fn survives_faults(group: &[impl Communicator], devices: &[Device]) {
    let sum = bits(&vec![(1..=group.len()).map(|x| x as f32).sum(); 300]);
    for (victim, lasting) in [(0, false), (1, false), (1, true)] {
        for k in 1.. {
            let plan = if lasting { FaultPlan::from_nth(k) } else { FaultPlan::nth(k) };
            let armed = std::sync::Barrier::new(group.len());
            let results = std::thread::scope(|scope| {
                let threads: Vec<_> = (group.iter().zip(devices))
                    .map(|(rank, device)| {
                        let armed = &armed;
                        scope.spawn(move || {
                            let stream = device.stream().unwrap();
                            let mut x = Room::of(device, &[1.0 + rank.rank() as f32; 300], true);
                            armed.wait();
                            let guard = (rank.rank() == victim).then(|| device.inject_fault(plan));
                            // SAFETY: the memory stays until the stream was waited for.
                            let done = unsafe { rank.all_reduce_on(&stream, x.slice_mut(1200), none()) };
                            let fired = guard.is_some_and(|guard| guard.fired());
                            stream.wait_out().unwrap();
                            (fired, done.map(|()| x.bits(device, 300)))
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            let fired = results.iter().any(|(fired, _)| *fired);
            for (_, result) in &results {
                // What is done is right; a fault may also have come too late for some.
                assert!(result.as_ref().ok().is_none_or(|x| *x == sum), "{victim} {lasting} {k}");
            }
            group[0].recover().unwrap();
            for result in each(group, devices, |rank, device, stream| once(rank, device, stream)) {
                assert_eq!(result.unwrap(), sum);
            }
            if !fired {
                assert!(k > 3 && results.iter().all(|(_, result)| result.is_ok()));
                break;
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_call_that_fails_leaves_nothing_and_nobody_waiting() {
    let devices = devices(3);
    let group = group(&devices);
    survives_faults(&group, &devices);
    drop(group);
    assert_nothing_left(&devices);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn making_a_group_fails_as_a_whole() {
    let devices = devices(2);
    for k in 1.. {
        let guard = devices[1].inject_fault(FaultPlan::nth(k));
        let made = peer_group(&[&devices[0], &devices[1]], GroupOptions::default());
        let fired = guard.fired();
        drop(guard);
        assert_eq!(made.is_err(), fired, "call {k}: {made:?}");
        drop(made);
        assert_nothing_left(&devices);
        if !fired {
            break;
        }
    }
    let narrow = GroupOptions { wire: Wire::Bf16, ..GroupOptions::default() };
    assert!(matches!(peer_group(&[&devices[0], &devices[1]], narrow), Err(Error::Unsupported { .. })));
    let host = Device::host().unwrap();
    assert!(matches!(peer_group(&[&devices[0], &host], GroupOptions::default()), Err(Error::Device(_))));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn who_stays_away_leaves_no_gpu_waiting() {
    let devices = devices(3);
    let options = GroupOptions { timeout: Duration::from_millis(100), wire: Wire::F32 };
    let group = peer_group(&devices.iter().collect::<Vec<_>>(), options).unwrap();
    let begun = Instant::now();
    let errors = each(&group, &devices, |rank, device, stream| {
        (rank.rank() != 1).then(|| once(rank, device, stream).unwrap_err().to_string())
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(errors.iter().flatten().all(|error| error.contains("for rank 1 in all_reduce_on")), "{errors:?}");
    group[1].recover().unwrap();
    for result in each(&group, &devices, |rank, device, stream| once(rank, device, stream)) {
        assert_eq!(result.unwrap(), bits(&[6.0; 300]));
    }
    // Wrong sizes, and calls that do not go together, are errors of all.
    let errors = each(&group, &devices, |rank, device, stream| {
        let mut x = Room::of(device, &[1.0; 8], false);
        // SAFETY: the stream is waited for.
        let done = unsafe {
            rank.all_reduce_on(stream, x.slice_mut(if rank.rank() == 2 { 30 } else { 32 }), none())
        };
        stream.wait_out().unwrap();
        done.unwrap_err()
    });
    assert!(matches!(errors[2], Error::Size { found: 30, .. }), "{errors:?}");
    drop(group);
    assert_nothing_left(&devices);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_group_is_made_of_what_there_is_and_says_so() {
    let gpus = devices(2);
    let host = Device::host().unwrap();
    let say = |devices: &[&Device], wire| -> Vec<String> {
        let group = group_for(devices, GroupOptions { wire, ..GroupOptions::default() }).unwrap();
        group.iter().map(|rank| rank.describe()).collect()
    };
    assert_eq!(say(&[&gpus[0], &gpus[1]], Wire::F32), ["between GPUs that reach each other"; 2]);
    let (threads, staged) = ("between threads", "between threads, by way of the host's memory");
    assert_eq!(say(&[&gpus[0], &gpus[1]], Wire::Bf16), [staged; 2]);
    assert_eq!(say(&[&host, &gpus[1]], Wire::F32), [threads, staged]);
    assert_eq!(say(&[&host, &host], Wire::F32), [threads; 2]);
    assert_nothing_left(&gpus);
}

/// The same by way of the host.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn sums_by_way_of_the_host_are_the_same() {
    let devices = devices(2);
    let host = || granule_split::comm::host_group(2, GroupOptions::default()).unwrap();
    let group: Vec<_> = (host().into_iter().zip(&devices))
        .map(|(rank, device)| granule_split::comm::Staged::new(std::sync::Arc::new(rank), device).unwrap())
        .collect();
    for len in [0, 1, 5, 288, 300_001] {
        reduces(&group, &devices, len, len as u64, len % 2 == 0);
    }
    survives_faults(&group, &devices);
    drop(group);
    assert_nothing_left(&devices);
}
