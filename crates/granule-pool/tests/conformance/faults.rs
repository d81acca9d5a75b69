//! Every call of a scripted run fails once, and from every call on all of them fail: nothing is left, and the next run works.

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, FaultPlan, Region};
use granule_pool::{Error, Lease, Pool, PoolOptions};

use crate::support::{Random, bank, granules, nothing_is_left, pool, stream};

/// Allocate, share, steal, keep apart, trim and drop: what an engine does, in small and in little memory.
fn script(device: &Device) -> Result<Vec<u8>, Error> {
    let bank = Bank::new(device.clone(), BankOptions::new().budget(granules(device, 4)).cache(Bytes::ZERO))?;
    let pool = Pool::new(&bank, PoolOptions::new())?;
    let (a, b) = (std::sync::Arc::new(device.stream()?), std::sync::Arc::new(device.stream()?));
    let (of_a, of_b, local) = (pool.heap(&a)?, pool.heap(&b)?, pool.local()?);
    let mut region = Region::new(of_a.alloc(granules(device, 3))?)?;
    a.fill(&mut region, .., 3)?;
    drop(region);
    let mut shared = of_a.alloc(Bytes::kib(20))?;
    shared.used_by(&of_b)?;
    drop(shared);
    let mut stolen = Region::new(of_b.alloc(granules(device, 3))?)?;
    b.fill(&mut stolen, .., 4)?;
    let small: Vec<Lease> = (1..20).map(|i| of_b.alloc(Bytes::new(i * 50))).collect::<Result<_, Error>>()?;
    let mut bytes = vec![0; 100];
    device.copy(stolen.slice(..100)?, (&mut bytes[..]).into())?;
    drop(stolen);
    pool.trim()?;
    drop(small);
    of_a.begin_private()?;
    drop(of_a.end_private()?);
    let large = local.alloc(granules(device, 4))?;
    assert_eq!(large.slice()?.len() as u64, large.len().get());
    drop(large);
    pool.drain()?;
    pool.trim()?;
    Ok(bytes)
}

fn walk(open: &dyn Fn() -> Device, plan: fn(u64) -> FaultPlan) {
    let device = open();
    assert_eq!(script(&device).unwrap(), [4; 100]);
    let free = device.memory().unwrap().free;
    let calls = device.calls_made();
    assert_eq!(script(&device).unwrap(), [4; 100]);
    let calls = device.calls_made() - calls;
    for k in 1.. {
        let guard = device.inject_fault(plan(k));
        let done = script(&device);
        let fired = guard.fired();
        drop(guard);
        assert!(fired || done.is_ok(), "k = {k}: {done:?}");
        if let Ok(bytes) = &done {
            assert_eq!(bytes[..], [4; 100], "k = {k}");
        }
        nothing_is_left(&device);
        assert_eq!(device.memory().unwrap().free, free, "k = {k}");
        if !fired {
            // How often an event is asked depends on when it is done.
            assert!(k > 20 && k <= 2 * calls, "{k} faults for {calls} calls");
            break;
        }
    }
    assert_eq!(script(&device).unwrap(), [4; 100]);
}

pub(crate) fn every_failing_call_leaves_nothing(open: &dyn Fn() -> Device) {
    walk(open, FaultPlan::nth);
}

pub(crate) fn every_lasting_failure_leaves_nothing(open: &dyn Fn() -> Device) {
    walk(open, FaultPlan::from_nth);
}

/// A request that fails leaves leases, counts and memory as they were, and is served when it is asked for again.
pub(crate) fn a_failed_request_changes_nothing(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 6);
    let pool = pool(&bank);
    let heaps = [pool.heap(&stream(&device)).unwrap(), pool.heap(&stream(&device)).unwrap()];
    let mut random = Random(11);
    let mut live: Vec<Lease> = Vec::new();
    let mut failed = 0;
    for round in 0..150 {
        let heap = &heaps[random.below(2) as usize];
        let size = random.size(device.granularity().get());
        let before = (pool.stats().live, pool.stats().current, pool.stats().requested);
        let guard = device.inject_fault(FaultPlan::nth(1 + random.below(6)));
        let served = heap.alloc(size);
        let fired = guard.fired();
        drop(guard);
        match served {
            Ok(lease) => live.push(lease),
            Err(error) => {
                failed += 1;
                assert_eq!(
                    (pool.stats().live, pool.stats().current, pool.stats().requested),
                    before,
                    "{error}"
                );
                match heap.alloc(size) {
                    Ok(lease) => live.push(lease),
                    Err(again) => {
                        assert!(matches!(again, Error::OutOfMemory { .. }), "{fired}, {error}, then {again}")
                    }
                }
            }
        }
        if round % 2 == 0 || live.len() > 12 {
            drop(live.swap_remove(random.below(live.len() as u64) as usize));
        }
    }
    assert!(failed > 0);
    drop(live);
    pool.trim().unwrap();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
