//! The ledger against its naive twin: lists of everything that is out, looked through each time.

use proptest::prelude::*;

use super::*;

const GRANULE: u64 = 10;
const LIMITS: [u64; 2] = [125, 90];
const SHARED: u64 = 160;
const MARKS: [Marks; 2] = [Marks { low: 1, high: 3 }, Marks { low: 2, high: 2 }];

/// One bank's things: who holds each granule, who holds each charge, and how many nobody holds.
#[derive(Default)]
struct Naive {
    granules: Vec<usize>,
    charges: Vec<(usize, u64)>,
    cached: usize,
    preparing: usize,
}

impl Naive {
    fn held(&self, owner: Option<usize>) -> u64 {
        let ours = |other: usize| owner.is_none_or(|owner| owner == other);
        let granules = self.granules.iter().filter(|&&other| ours(other)).count() as u64 * GRANULE;
        granules + self.charges.iter().filter(|(other, _)| ours(*other)).map(|(_, size)| size).sum::<u64>()
    }

    fn all(&self) -> u64 {
        self.held(None) + (self.cached + self.preparing) as u64 * GRANULE
    }
}

fn held(banks: &[Naive; 2]) -> u64 {
    banks.iter().map(|bank| bank.held(None)).sum()
}

fn fits(banks: &[Naive; 2]) -> bool {
    banks.iter().zip(LIMITS).all(|(bank, limit)| bank.all() <= limit)
        && banks.iter().map(Naive::all).sum::<u64>() <= SHARED
}

/// Lets go of cached granules of one bank one by one until everything fits; `None` where that does not help.
fn make_room(banks: &mut [Naive; 2], bank: usize) -> Option<usize> {
    for dropped in 0.. {
        if fits(banks) {
            return Some(dropped);
        }
        banks[bank].cached = banks[bank].cached.checked_sub(1)?;
    }
    None
}

#[derive(Clone, Debug)]
enum Op {
    Take(usize, usize),
    Give(usize),
    Charge(usize, u64),
    Discharge(usize),
    Prepare,
    Prepared(bool),
    Shed(u64),
}

fn ops() -> impl Strategy<Value = (usize, Op)> {
    let op = prop_oneof![
        4 => (0..3usize, 0..14usize).prop_map(|(owner, count)| Op::Take(owner, count)),
        8 => any::<usize>().prop_map(Op::Give),
        2 => (0..3usize, 0..140u64).prop_map(|(owner, size)| Op::Charge(owner, size)),
        2 => any::<usize>().prop_map(Op::Discharge),
        3 => Just(Op::Prepare),
        3 => any::<bool>().prop_map(Op::Prepared),
        1 => (0..50u64).prop_map(Op::Shed),
    ];
    (0..2usize, op)
}

/// What a request for `need` should be answered before anything is moved.
fn refusal(banks: &[Naive; 2], bank: usize, need: u64) -> Option<Refusal> {
    match need {
        _ if need > LIMITS[bank].min(SHARED) => Some(Refusal::TooLarge),
        _ if need + banks[bank].held(None) > LIMITS[bank] || need + held(banks) > SHARED => {
            Some(Refusal::Full)
        }
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 1000 }))]
    #[test]
    fn like_a_list(ops in proptest::collection::vec(ops(), 1..100)) {
        let mut allowance = Allowance::new(Bytes::new(SHARED));
        let new = |bank: usize| Ledger::new(Bytes::new(GRANULE), Bytes::new(LIMITS[bank]), MARKS[bank]);
        let mut ledgers = [new(0), new(1)];
        let mut naive = [Naive::default(), Naive::default()];
        let (mut peaks, mut handed) = ([0, 0], [(0, 0); 2]);
        let names = ["a", "b", "c"];
        let accounts = [0, 1].map(|bank: usize| names.map(|name| ledgers[bank].account(&Owner::new(name))));
        for (bank, op) in ops {
            let ledger = &mut ledgers[bank];
            match op {
                Op::Take(owner, count) => {
                    let refused = refusal(&naive, bank, count as u64 * GRANULE);
                    let admission = ledger.take(&mut allowance, accounts[bank][owner], count);
                    let reuse = count.min(naive[bank].cached);
                    naive[bank].cached -= reuse;
                    naive[bank].granules.extend(std::iter::repeat_n(owner, count));
                    let cached = naive[bank].cached;
                    let room = if refused.is_none() { make_room(&mut naive, bank) } else { None };
                    match admission {
                        Ok(admission) if count % 5 == 4 => {
                            // The device refuses the last one that is to be made.
                            let have = reuse + admission.create.saturating_sub(1);
                            let left = naive[bank].granules.len() - count;
                            naive[bank].granules.truncate(left);
                            let before = naive[bank].cached + have;
                            naive[bank].cached =
                                if before > MARKS[bank].high { MARKS[bank].low } else { before };
                            let dropped =
                                ledger.took_nothing(&mut allowance, accounts[bank][owner], count, have);
                            prop_assert_eq!(dropped, before - naive[bank].cached);
                        }
                        Ok(admission) => {
                            ledger.took(accounts[bank][owner], admission.reuse, admission.create);
                            handed[bank] = (handed[bank].0 + reuse, handed[bank].1 + count - reuse);
                            prop_assert_eq!(Some(admission.drop), room);
                            prop_assert_eq!((admission.reuse, admission.create), (reuse, count - reuse));
                            prop_assert!(admission.drop == 0 || admission.create == 0, "nothing is let go while it could be reused");
                        }
                        Err(error) => {
                            prop_assert!(room.is_none());
                            prop_assert_eq!(matches!(error, Refusal::InTheWay(_)), refused.is_none());
                            if let Some(refused) = refused {
                                prop_assert_eq!(error, refused);
                            }
                            let left = naive[bank].granules.len() - count;
                            naive[bank].granules.truncate(left);
                            naive[bank].cached = cached + reuse;
                        }
                    }
                }
                Op::Give(which) if !naive[bank].granules.is_empty() => {
                    let which = which % naive[bank].granules.len();
                    let owner = naive[bank].granules.swap_remove(which);
                    naive[bank].cached += 1;
                    let before = naive[bank].cached;
                    if naive[bank].cached > MARKS[bank].high {
                        naive[bank].cached = MARKS[bank].low;
                    }
                    let dropped = ledger.give_back(&mut allowance, accounts[bank][owner]);
                    prop_assert_eq!(dropped, before - naive[bank].cached);
                }
                Op::Charge(owner, size) => {
                    let refused = refusal(&naive, bank, size);
                    let charged = ledger.charge(&mut allowance, accounts[bank][owner], Bytes::new(size));
                    let cached = naive[bank].cached;
                    naive[bank].charges.push((owner, size));
                    let room = if refused.is_none() { make_room(&mut naive, bank) } else { None };
                    prop_assert_eq!(charged.ok(), room);
                    if room.is_none() {
                        prop_assert_eq!(matches!(charged, Err(Refusal::InTheWay(_))), refused.is_none());
                        naive[bank].charges.pop();
                        naive[bank].cached = cached;
                    }
                }
                Op::Discharge(which) if !naive[bank].charges.is_empty() => {
                    let which = which % naive[bank].charges.len();
                    let (owner, size) = naive[bank].charges.swap_remove(which);
                    ledger.discharge(&mut allowance, accounts[bank][owner], Bytes::new(size));
                }
                Op::Prepare => {
                    let wanted = naive[bank].cached + naive[bank].preparing < MARKS[bank].low;
                    naive[bank].preparing += 1;
                    let prepare = wanted && fits(&naive);
                    naive[bank].preparing -= usize::from(!prepare);
                    prop_assert_eq!(ledger.prepare(&mut allowance), prepare);
                }
                Op::Prepared(made) if naive[bank].preparing > 0 => {
                    naive[bank].preparing -= 1;
                    naive[bank].cached += usize::from(made);
                    ledger.prepared(&mut allowance, made);
                }
                Op::Shed(want) => {
                    let count = (want.div_ceil(GRANULE) as usize).min(naive[bank].cached);
                    naive[bank].cached -= count;
                    prop_assert_eq!(ledger.shed(&mut allowance, Bytes::new(want)), count);
                }
                Op::Give(_) | Op::Discharge(_) | Op::Prepared(_) => {}
            }
            prop_assert!(fits(&naive));
            let kept: usize = naive.iter().map(|bank| bank.cached + bank.preparing).sum();
            prop_assert_eq!((allowance.held().get(), allowance.kept().get()), (held(&naive), kept as u64 * GRANULE));
            for (bank, (ledger, naive)) in ledgers.iter().zip(&naive).enumerate() {
                peaks[bank] = naive.held(None).max(peaks[bank]);
                prop_assert_eq!(ledger.held().get(), naive.held(None));
                prop_assert_eq!(ledger.charged().get(), naive.charges.iter().map(|charge| charge.1).sum::<u64>());
                prop_assert_eq!(ledger.cached().get(), naive.cached as u64 * GRANULE);
                prop_assert_eq!(ledger.is_preparing(), naive.preparing > 0);
                prop_assert_eq!(ledger.peak().get(), peaks[bank]);
                let counts = ledger.counts();
                prop_assert_eq!((counts.hits as usize, counts.misses as usize), handed[bank]);
                let owners = ledger.owners();
                for (index, name) in names.iter().enumerate() {
                    let current = owners.iter().find(|o| o.owner.name() == *name).map_or(0, |o| o.current.get());
                    prop_assert_eq!(current, naive.held(Some(index)));
                }
                let largest = ledger.largest_owner().map_or(0, |(_, size)| size.get());
                prop_assert_eq!(largest, (0..3).map(|owner| naive.held(Some(owner))).max().unwrap_or(0));
            }
            let free = (LIMITS[bank] - naive[bank].held(None)).min(SHARED - held(&naive));
            prop_assert_eq!(ledgers[bank].free(&allowance).get(), free);
        }
    }
}

#[test]
fn what_could_not_be_taken_leaves_no_trace() {
    let mut allowance = Allowance::new(Bytes::new(SHARED));
    let mut ledger = Ledger::new(Bytes::new(GRANULE), Bytes::new(100), MARKS[0]);
    let account = ledger.account(&Owner::new("a"));
    ledger.take(&mut allowance, account, 5).unwrap();
    assert_eq!(ledger.took_nothing(&mut allowance, account, 5, 3), 0);
    assert_eq!((ledger.held(), ledger.peak(), ledger.cached().get()), (Bytes::ZERO, Bytes::ZERO, 30));
    assert_eq!((ledger.counts(), ledger.owners()), (Counts::default(), Vec::new()));
    let admission = ledger.take(&mut allowance, account, 1).unwrap();
    ledger.took(account, admission.reuse, admission.create);
    assert_eq!((ledger.counts().hits, ledger.peak().get()), (1, GRANULE));
}
