//! granule-bank: what a granule costs to take, map, alias, copy and give back, on the host device with granules of 2 MiB.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use granule_bank::{Bank, BankOptions, Growth, Owner, grow_together};
use granule_device::{Bytes, Device};

const GRANULE: Bytes = Bytes::mib(2);

fn bank(cache: Bytes) -> Bank {
    Bank::new(Device::host().unwrap(), BankOptions::new().cache(cache)).unwrap()
}

fn granules(criterion: &mut Criterion) {
    let owner = Owner::new("bench");
    let mut group = criterion.benchmark_group("bank");
    group.measurement_time(Duration::from_secs(3));
    for (name, cache) in [("cached", Bytes::mib(64)), ("from the system", Bytes::ZERO)] {
        let bank = bank(cache);
        group.bench_function(format!("take a granule and give it back, {name}"), |bencher| {
            bencher.iter(|| bank.take(&owner, 1).unwrap());
        });
        let mut growable = bank.growable(&owner, Bytes::gib(1)).unwrap();
        group.bench_function(format!("grow by a granule and shrink, {name}"), |bencher| {
            bencher.iter(|| {
                growable.grow_to(GRANULE).unwrap();
                growable.shrink_to(Bytes::ZERO).unwrap();
            });
        });
        group.bench_function(format!("grow by a granule, write it all and shrink, {name}"), |bencher| {
            bencher.iter(|| {
                growable.grow_to(GRANULE).unwrap();
                growable.slice_mut(..).unwrap().as_host_mut().unwrap().fill(1);
                growable.shrink_to(Bytes::ZERO).unwrap();
            });
        });
    }
    let bank = bank(Bytes::mib(64));
    let mut growable = bank.growable(&owner, Bytes::gib(1)).unwrap();
    let len = GRANULE.saturating_mul(64);
    growable.grow_to(len).unwrap();
    group.bench_function("alias 64 granules and drop", |bencher| {
        bencher.iter(|| growable.alias(len).unwrap());
    });
    let mut alias = growable.alias(len).unwrap();
    group.bench_function("a private copy of half a granule", |bencher| {
        bencher.iter_batched(
            || growable.alias(len).unwrap(),
            |mut copy| {
                let from = len.saturating_sub(Bytes::mib(1));
                grow_together(&mut [Growth::of(&mut copy, len).writable_from(from)]).unwrap();
                copy
            },
            criterion::BatchSize::PerIteration,
        );
    });
    group.bench_function("nothing to grow", |bencher| {
        bencher.iter(|| alias.grow_to(Bytes::mib(1)).unwrap());
    });
    group.finish();
}

criterion_group!(benches, granules);
criterion_main!(benches);
