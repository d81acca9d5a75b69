//! Forks that go their ways on threads of their own.

use granule_device::Bytes;
use granule_kv::KvOptions;

use crate::support::{Model, Open, append, assert_holds, bank, cache, is_host};

pub(crate) fn forks_go_their_ways_on_threads(open: Open<'_>) {
    let bank = bank(open, 100, 8);
    let rounds = if is_host(bank.device()) { 12 } else { 2 };
    let cache = cache(&bank, 2, 4, KvOptions::new().ahead(10));
    let mut parent = cache.sequence(60).unwrap();
    let mut model = Model::default();
    append(&mut parent, &mut model, &(0..30).collect::<Vec<_>>()).unwrap();
    for round in 0..rounds {
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (mut fork, mut model) = (parent.fork().unwrap(), model.clone());
                scope.spawn(move || {
                    let cut = (round * 7 + thread as usize * 5) % 28;
                    fork.remove(cut..cut + 2).unwrap();
                    model.remove(cut..cut + 2);
                    let ids: Vec<u32> = (0..9).map(|index| 1000 * (thread + 1) + index).collect();
                    append(&mut fork, &mut model, &ids).unwrap();
                    let (mut second, mut other) = (fork.copy(1..20).unwrap(), model.clone());
                    other.keep(1..20);
                    append(&mut second, &mut other, &[9]).unwrap();
                    drop(fork);
                    assert_holds(&second, &other);
                    append(&mut second, &mut other, &ids).unwrap();
                    assert_holds(&second, &other);
                });
            }
        });
        assert_holds(&parent, &model);
    }
    drop(parent);
    cache.trim();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
