//! The adaptors, alone and around each other, over a heap and over an allocator that fails on demand.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions, Region};
use proptest::prelude::*;

use super::{Allocate, Happened, Limited};
use crate::{Error, Pool, PoolOptions};

const ALIGN: Bytes = Bytes::new(256);

fn pool() -> Pool {
    let device =
        Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(8))).unwrap();
    Pool::new(&Bank::new(device, BankOptions::new()).unwrap(), PoolOptions::new()).unwrap()
}

/// Lends slips of paper, and writes down what is lent.
#[derive(Clone, Default)]
struct Paper {
    out: Rc<RefCell<Vec<Bytes>>>,
}

struct Slip {
    size: Bytes,
    out: Rc<RefCell<Vec<Bytes>>>,
}

impl Drop for Slip {
    fn drop(&mut self) {
        let mut out = self.out.borrow_mut();
        let at = out.iter().position(|&size| size == self.size).expect("lent");
        out.swap_remove(at);
    }
}

impl Allocate for Paper {
    type Lent = Slip;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<Slip, Error> {
        if size > Bytes::new(90) {
            return Err(Error::Alignment { requested: align, limit: size });
        }
        self.out.borrow_mut().push(size);
        Ok(Slip { size, out: Rc::clone(&self.out) })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(u64),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => (0_u64..100).prop_map(Step::Take), 2 => any::<usize>().prop_map(Step::Drop)]
}

proptest! {
    #![proptest_config(crate::policy::few_under_miri(256))]

    #[test]
    fn limits_and_counts_are_sums_over_what_is_lent(steps in prop::collection::vec(step(), 0..60)) {
        let paper = Paper::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let tell = move |happened: Happened<'_>| heard.lock().unwrap().push(match happened {
            Happened::Lent { size, .. } => (1, size),
            Happened::Refused { size, .. } => (0, size),
            Happened::Returned { size } => (-1, size),
        });
        let stack = paper.clone().limited(Bytes::new(300)).counted().logged(tell);
        let limited = stack.inner().inner();
        let (mut lent, mut served, mut refused, mut peak, mut expected) = (Vec::new(), 0, 0, 0, Vec::new());
        for step in steps {
            let sum = lent.iter().map(|(size, _)| size).sum::<u64>();
            match step {
                Step::Take(size) => {
                    let taken = stack.allocate(Bytes::new(size), ALIGN);
                    // Over the limit, or what is around cannot.
                    let fits = sum + size <= 300 && size <= 90;
                    prop_assert_eq!(taken.is_ok(), fits);
                    expected.push((i32::from(fits), Bytes::new(size)));
                    match taken {
                        Ok(taken) => {
                            prop_assert_eq!(taken.size, Bytes::new(size));
                            lent.push((size, taken));
                            served += 1;
                            peak = peak.max(sum + size);
                        }
                        Err(error) => {
                            prop_assert_eq!(matches!(error, Error::Limit { .. }), sum + size > 300);
                            refused += 1;
                        }
                    }
                }
                Step::Drop(which) => {
                    if !lent.is_empty() {
                        let (size, taken) = lent.swap_remove(which % lent.len());
                        drop(taken);
                        expected.push((-1, Bytes::new(size)));
                    }
                }
            }
            let sum = Bytes::new(lent.iter().map(|(size, _)| size).sum());
            prop_assert_eq!(limited.lent(), sum);
            let stats = stack.inner().stats();
            prop_assert_eq!((stats.served, stats.refused, stats.live), (served, refused, lent.len() as u64));
            prop_assert_eq!((stats.current, stats.peak), (sum, Bytes::new(peak)));
            prop_assert_eq!(paper.out.borrow().len(), lent.len());
        }
        drop(lent);
        prop_assert!(paper.out.borrow().is_empty());
        let told = told.lock().unwrap();
        prop_assert_eq!(&told[..expected.len()], &expected[..]);
    }
}

#[test]
fn what_is_lent_through_adaptors_is_used_like_the_lease() {
    let heap = pool().local().unwrap().counted().limited(Bytes::kib(8));
    let mut lent = heap.allocate(Bytes::kib(4), Bytes::kib(4)).unwrap();
    assert_eq!(lent.ptr().addr() % 4096, 0);
    lent.slice_mut().unwrap().as_host_mut().unwrap().fill(7);
    assert_eq!(lent.slice().unwrap().as_host().unwrap(), [7; 4096]);
    // A region keeps the whole: the limit is free again when the region and its work have ended.
    let region = Region::new(lent).unwrap();
    assert_eq!(heap.lent(), Bytes::kib(4));
    drop(region);
    assert_eq!((heap.lent(), heap.inner().stats().live), (Bytes::ZERO, 0));
}

#[test]
fn a_limit_is_one_for_all_threads() {
    let limited = Limited::new(pool().local().unwrap(), Bytes::kib(64));
    let most = Mutex::new(Bytes::ZERO);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let lent: Vec<_> =
                        (0..8).filter_map(|_| limited.allocate(Bytes::kib(4), ALIGN).ok()).collect();
                    let now = limited.lent();
                    let mut most = most.lock().unwrap();
                    *most = now.max(*most);
                    drop(most);
                    drop(lent);
                }
            });
        }
    });
    assert!(*most.lock().unwrap() <= Bytes::kib(64));
    assert_eq!(limited.lent(), Bytes::ZERO);
}
