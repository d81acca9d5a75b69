//! Ranks over the simulated NCCL: threads of one process, a device each.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use granule_bank::{Bank, BankOptions, Owner};
use granule_device::{Bytes, Device};
use granule_split::Error;
use granule_split::comm::{Communicator, GroupOptions, NcclRank, Wire, all_reduce_elements, slice};

use crate::naive::{self, numbers};
use crate::support::{Room, assert_nothing_left, bits, devices, each};

/// An address at which nobody listens.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn group(devices: &[Device], timeout: Duration) -> Vec<NcclRank> {
    let address = address();
    let options = GroupOptions { timeout, wire: Wire::F32 };
    thread::scope(|scope| {
        let threads: Vec<_> = (devices.iter().enumerate())
            .map(|(rank, device)| {
                let address = &address;
                scope.spawn(move || NcclRank::new(device, rank, devices.len(), address, options).unwrap())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const LONG: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_is_on_gpus_has_the_bits_of_the_naive_sums() {
    for ranks in [1, 2, 4] {
        let devices = devices(ranks);
        let group = group(&devices, LONG);
        let mut sent = vec![0; ranks];
        for len in [0, 1, 3, 5, 16, 288, 1001] {
            let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(len as u64 + rank as u64, len)).collect();
            let sum = bits(&naive::sum(&data));
            let counts: Vec<usize> = (0..ranks).map(|rank| (len + rank * 3) % 7).collect();
            let whole = numbers(99, counts.iter().sum());
            each(&group, &devices, |rank, device, stream| {
                let r = rank.rank();
                let mut x = Room::of(device, &data[r], false);
                let mut scratch = Room::new(device, rank.scratch_bytes(len), false);
                let begin: usize = counts[..r].iter().sum();
                let own = Room::of(device, &whole[begin..begin + counts[r]], false);
                let mut all = Room::new(device, 4 * whole.len(), false);
                let mut sent = Room::of(device, &data[r], false);
                // SAFETY: all of it stays until the stream was waited for.
                unsafe {
                    let bytes = rank.scratch_bytes(len);
                    rank.all_reduce_on(stream, x.slice_mut(4 * len), scratch.slice_mut(bytes)).unwrap();
                    let all = all.slice_mut(4 * whole.len());
                    rank.all_gather_on(stream, own.slice(4 * counts[r]), &counts, all).unwrap();
                    rank.broadcast_on(stream, ranks - 1, sent.slice_mut(4 * len)).unwrap();
                }
                rank.wait_on(stream).unwrap();
                assert_eq!(x.bits(device, len), sum, "{len} of {ranks}");
                assert_eq!(all.bits(device, whole.len()), bits(&whole));
                assert_eq!(sent.bits(device, len), bits(&data[ranks - 1]));
            });
            for (rank, sent) in sent.iter_mut().enumerate() {
                let last = if rank == ranks - 1 { len * (ranks - 1) } else { 0 };
                *sent +=
                    4 * (all_reduce_elements(len, rank, ranks) + counts[rank] * (ranks - 1) + last) as u64;
                assert_eq!(group[rank].traffic().sent, *sent);
            }
        }
        drop(group);
        assert_nothing_left(&devices);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn the_hosts_memory_goes_through_the_device_with_the_same_bits() {
    for ranks in [2, 4] {
        let devices = devices(ranks);
        let group = group(&devices, LONG);
        let len = 1003;
        let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(rank as u64, len)).collect();
        let sum = bits(&naive::sum(&data));
        let parts: Vec<_> = (0..ranks).map(|rank| slice(len, rank, ranks)).collect();
        let counts: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        each(&group, &devices, |rank, device, _| {
            let r = rank.rank();
            let bank = Bank::new(device.clone(), BankOptions::new()).unwrap();
            rank.charge_to(&bank, &Owner::new("nccl")).unwrap();
            assert!(rank.bytes() > Bytes::mib(1));
            let mut x = data[r].clone();
            rank.all_reduce(&mut x).unwrap();
            assert_eq!(bits(&x), sum);
            let mut own = vec![0.0; counts[r]];
            rank.reduce_scatter(&data[r], &counts, &mut own).unwrap();
            assert_eq!(bits(&own), sum[parts[r].clone()]);
            let mut all = vec![0.0; len];
            rank.all_gather(&own, &counts, &mut all).unwrap();
            assert_eq!(bits(&all), sum);
            let mut x = data[r].clone();
            rank.broadcast(1, &mut x).unwrap();
            assert_eq!(bits(&x), bits(&data[1]));
        });
        drop(group);
        assert_nothing_left(&devices);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_rank_that_stays_away_is_waited_for_no_longer_than_the_time_out() {
    let devices = devices(2);
    let group = group(&devices, Duration::from_millis(300));
    let (stream, begun) = (devices[0].stream().unwrap(), Instant::now());
    let mut x = Room::of(&devices[0], &[1.0; 64], false);
    let mut scratch = Room::new(&devices[0], group[0].scratch_bytes(64), false);
    // SAFETY: both stay until the stream has passed.
    unsafe {
        let bytes = group[0].scratch_bytes(64);
        group[0].all_reduce_on(&stream, x.slice_mut(256), scratch.slice_mut(bytes)).unwrap();
    }
    let failed = group[0].wait_on(&stream).unwrap_err();
    assert!(matches!(failed, Error::TimedOut { rank: 0, .. }), "{failed}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    stream.synchronize().unwrap();
    assert!(matches!(group[0].all_reduce(&mut [1.0]), Err(Error::TimedOut { .. })));
    // The other finds nobody either, and one that is aborted says why.
    group[1].abort("enough");
    let failed = group[1].broadcast(0, &mut [1.0]).unwrap_err();
    assert!(matches!(&failed, Error::Aborted { why, .. } if why == "enough"), "{failed}");
    drop((group, x, scratch, stream));
    assert_nothing_left(&devices);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn two_ranks_on_one_gpu_are_refused() {
    let (device, address) = (Device::cuda(0).unwrap(), address());
    let options = GroupOptions { timeout: Duration::from_secs(2), wire: Wire::F32 };
    let failed: Vec<_> = thread::scope(|scope| {
        let join = |rank| NcclRank::new(&device, rank, 2, &address, options).unwrap_err();
        let threads = [0, 1].map(|rank| scope.spawn(move || join(rank)));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let refused = |error: &Error| matches!(error, Error::Device(granule_device::Error::Nccl { code: 5, .. }));
    let late = |error: &Error| matches!(error, Error::TimedOut { .. });
    assert!(failed.iter().any(refused) && failed.iter().any(late), "{failed:?}");
    assert_nothing_left(&[device]);
}
