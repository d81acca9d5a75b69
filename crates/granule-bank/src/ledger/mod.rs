//! The policy: who holds how much, what the budget still allows, which cached handles to reuse or let go.
//!
//! Pure arithmetic: no device, no `unsafe`. The [bank](crate::Bank) asks first and calls the driver after.

pub(crate) mod pressure;

use granule_device::Bytes;

use crate::Owner;

/// What one owner holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerStats {
    /// Who.
    pub owner: Owner,
    /// Granules and charges now.
    pub current: Bytes,
    /// The most that it ever was.
    pub peak: Bytes,
}

/// Where a bank's memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BankStats {
    /// The size of a granule.
    pub granule: Bytes,
    /// What the bank may hold in all: `held + cached <= budget`.
    pub budget: Bytes,
    /// What all owners hold: granules, each once however often it is mapped, and charges.
    pub held: Bytes,
    /// The part of `held` that is charges: memory that is not granules.
    pub charged: Bytes,
    /// The most that `held` ever was.
    pub peak: Bytes,
    /// Granules that nobody holds, kept for the next who asks.
    pub cached: Bytes,
    /// The part of `held` that waits for device work to be done before it is given back.
    pub retiring: Bytes,
    /// By owner, in the order of their names; who never held anything is not listed.
    pub owners: Vec<OwnerStats>,
}

/// An owner's place in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account(usize);

/// How to serve a request: all of it has been booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    /// Cached granules to hand out.
    pub(crate) reuse: usize,
    /// Granules to make.
    pub(crate) create: usize,
    /// Cached granules to let go first, so that the rest fits.
    pub(crate) drop: usize,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not now.
    Full,
    /// Not ever.
    TooLarge,
}

/// The books of one bank.
#[derive(Debug)]
pub(crate) struct Ledger {
    granule: Bytes,
    budget: Bytes,
    cache_limit: usize,
    accounts: Vec<OwnerStats>,
    held: Bytes,
    charged: Bytes,
    peak: Bytes,
    cached: usize,
    returned: Bytes,
}

impl Ledger {
    pub(crate) fn new(granule: Bytes, budget: Bytes, cache_limit: Bytes) -> Ledger {
        let cache_limit = (cache_limit.get() / granule.get().max(1)).try_into().unwrap_or(usize::MAX);
        let zero = Bytes::ZERO;
        Ledger {
            granule,
            budget,
            cache_limit,
            accounts: Vec::new(),
            held: zero,
            charged: zero,
            peak: zero,
            cached: 0,
            returned: zero,
        }
    }

    pub(crate) fn account(&mut self, owner: &Owner) -> Account {
        let known = self.accounts.iter().position(|account| account.owner == *owner);
        Account(known.unwrap_or_else(|| {
            self.accounts.push(OwnerStats { owner: owner.clone(), current: Bytes::ZERO, peak: Bytes::ZERO });
            self.accounts.len() - 1
        }))
    }

    /// Books `count` granules for an owner.
    pub(crate) fn take(&mut self, account: Account, count: usize) -> Result<Admission, Refusal> {
        let need = self.size_of(count).ok_or(Refusal::TooLarge)?;
        self.check(need)?;
        let reuse = count.min(self.cached);
        self.cached -= reuse;
        self.book(account, need);
        Ok(Admission { reuse, create: count - reuse, drop: self.shed() })
    }

    /// Books memory that is not granules; answers how many cached granules have to go for it.
    pub(crate) fn charge(&mut self, account: Account, size: Bytes) -> Result<usize, Refusal> {
        self.check(size)?;
        self.book(account, size);
        self.charged = self.charged.saturating_add(size);
        Ok(self.shed())
    }

    /// Takes a charge off the books.
    pub(crate) fn discharge(&mut self, account: Account, size: Bytes) {
        self.charged = self.charged.saturating_sub(size);
        self.unbook(account, size);
    }

    /// Books a granule back from its owner; true where it goes to the cache, false where it is to be let go.
    pub(crate) fn give_back(&mut self, account: Account) -> bool {
        self.unbook(account, self.granule);
        let keep = self.cached < self.cache_limit;
        self.cached += usize::from(keep);
        keep
    }

    /// Books back granules that could not be made after all.
    pub(crate) fn take_back(&mut self, account: Account, count: usize) {
        self.unbook(account, self.granule.saturating_mul(count as u64));
    }

    /// Empties the cache; answers how many granules are to be let go.
    pub(crate) fn trim(&mut self) -> usize {
        std::mem::take(&mut self.cached)
    }

    /// What a request could have: the budget less what owners hold; cached granules are for the asking.
    pub(crate) fn free(&self) -> Bytes {
        self.budget.saturating_sub(self.held)
    }

    /// All that was ever given back; it only grows.
    pub(crate) fn returned(&self) -> Bytes {
        self.returned
    }

    pub(crate) fn largest_owner(&self) -> Option<(Owner, Bytes)> {
        let largest = self.accounts.iter().max_by_key(|account| account.current)?;
        (!largest.current.is_zero()).then(|| (largest.owner.clone(), largest.current))
    }

    pub(crate) fn stats(&self, retiring: usize) -> BankStats {
        let mut owners: Vec<_> =
            self.accounts.iter().filter(|account| !account.peak.is_zero()).cloned().collect();
        owners.sort_by(|a, b| a.owner.cmp(&b.owner));
        BankStats {
            granule: self.granule,
            budget: self.budget,
            held: self.held,
            charged: self.charged,
            peak: self.peak,
            cached: self.granule.saturating_mul(self.cached as u64),
            retiring: self.granule.saturating_mul(retiring as u64),
            owners,
        }
    }

    pub(crate) fn size_of(&self, count: usize) -> Option<Bytes> {
        self.granule.checked_mul(count as u64)
    }

    fn check(&self, need: Bytes) -> Result<(), Refusal> {
        match need {
            _ if need > self.budget => Err(Refusal::TooLarge),
            _ if need > self.free() => Err(Refusal::Full),
            _ => Ok(()),
        }
    }

    fn book(&mut self, account: Account, size: Bytes) {
        self.held = self.held.saturating_add(size);
        self.peak = self.peak.max(self.held);
        if let Some(account) = self.accounts.get_mut(account.0) {
            account.current = account.current.saturating_add(size);
            account.peak = account.peak.max(account.current);
        }
    }

    fn unbook(&mut self, account: Account, size: Bytes) {
        self.held = self.held.saturating_sub(size);
        self.returned = self.returned.saturating_add(size);
        if let Some(account) = self.accounts.get_mut(account.0) {
            account.current = account.current.saturating_sub(size);
        }
    }

    /// Takes as many granules out of the cache as stand over the budget.
    fn shed(&mut self) -> usize {
        let room = (self.free().get() / self.granule.get().max(1)).try_into().unwrap_or(usize::MAX);
        let over = self.cached.saturating_sub(room);
        self.cached -= over;
        over
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The naive twin: a list of everything that was ever handed out and is still out, looked through each time.
    #[derive(Default)]
    struct Naive {
        granules: Vec<usize>,
        charges: Vec<(usize, u64)>,
        cached: usize,
    }

    const GRANULE: u64 = 10;
    const BUDGET: u64 = 125;
    const CACHE: u64 = 35;

    impl Naive {
        fn held(&self, owner: Option<usize>) -> u64 {
            let ours = |other: usize| owner.is_none_or(|owner| owner == other);
            let granules = self.granules.iter().filter(|&&other| ours(other)).count() as u64 * GRANULE;
            granules
                + self.charges.iter().filter(|(other, _)| ours(*other)).map(|(_, size)| size).sum::<u64>()
        }

        fn fit_cache(&mut self) -> usize {
            let before = self.cached;
            while self.held(None) + self.cached as u64 * GRANULE > BUDGET {
                self.cached -= 1;
            }
            before - self.cached
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Take(usize, usize),
        Give(usize),
        Charge(usize, u64),
        Discharge(usize),
        Trim,
    }

    fn ops() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..3usize, 0..14usize).prop_map(|(owner, count)| Op::Take(owner, count)),
            8 => any::<usize>().prop_map(Op::Give),
            2 => (0..3usize, 0..140u64).prop_map(|(owner, size)| Op::Charge(owner, size)),
            2 => any::<usize>().prop_map(Op::Discharge),
            1 => Just(Op::Trim),
        ]
    }

    proptest! {
        #[test]
        fn like_a_list(ops in proptest::collection::vec(ops(), 1..100)) {
            let mut ledger = Ledger::new(Bytes::new(GRANULE), Bytes::new(BUDGET), Bytes::new(CACHE));
            let mut naive = Naive::default();
            let accounts = ["a", "b", "c"].map(|name| ledger.account(&Owner::new(name)));
            let mut peak = 0;
            for op in ops {
                let refusal = |need: u64, held: u64| match need {
                    _ if need > BUDGET => Some(Refusal::TooLarge),
                    _ if need + held > BUDGET => Some(Refusal::Full),
                    _ => None,
                };
                match op {
                    Op::Take(owner, count) => {
                        let refused = refusal(count as u64 * GRANULE, naive.held(None));
                        let admission = ledger.take(accounts[owner], count);
                        prop_assert_eq!(admission.err(), refused);
                        if let Ok(admission) = admission {
                            let reuse = count.min(naive.cached);
                            naive.cached -= reuse;
                            naive.granules.extend(std::iter::repeat_n(owner, count));
                            let drop = naive.fit_cache();
                            prop_assert_eq!(admission, Admission { reuse, create: count - reuse, drop });
                            prop_assert!(drop == 0 || admission.create == 0, "nothing is let go while it could be reused");
                        }
                    }
                    Op::Give(which) if !naive.granules.is_empty() => {
                        let owner = naive.granules.swap_remove(which % naive.granules.len());
                        let keep = naive.cached < (CACHE / GRANULE) as usize;
                        naive.cached += usize::from(keep);
                        prop_assert_eq!(ledger.give_back(accounts[owner]), keep);
                    }
                    Op::Charge(owner, size) => {
                        let refused = refusal(size, naive.held(None));
                        let charged = ledger.charge(accounts[owner], Bytes::new(size));
                        prop_assert_eq!(charged.err(), refused);
                        if let Ok(dropped) = charged {
                            naive.charges.push((owner, size));
                            prop_assert_eq!(dropped, naive.fit_cache());
                        }
                    }
                    Op::Discharge(which) if !naive.charges.is_empty() => {
                        let (owner, size) = naive.charges.swap_remove(which % naive.charges.len());
                        ledger.discharge(accounts[owner], Bytes::new(size));
                    }
                    Op::Trim => prop_assert_eq!(ledger.trim(), std::mem::take(&mut naive.cached)),
                    Op::Give(_) | Op::Discharge(_) => {}
                }
                let stats = ledger.stats(0);
                peak = peak.max(naive.held(None));
                prop_assert_eq!(stats.held.get(), naive.held(None));
                prop_assert_eq!(stats.charged.get(), naive.charges.iter().map(|charge| charge.1).sum::<u64>());
                prop_assert_eq!(stats.cached.get(), naive.cached as u64 * GRANULE);
                prop_assert_eq!(stats.peak.get(), peak);
                prop_assert!(stats.held.get() + stats.cached.get() <= BUDGET);
                for (index, name) in ["a", "b", "c"].iter().enumerate() {
                    let current = stats.owners.iter().find(|o| o.owner.name() == *name).map_or(0, |o| o.current.get());
                    prop_assert_eq!(current, naive.held(Some(index)));
                }
                let largest = ledger.largest_owner().map_or(0, |(_, size)| size.get());
                prop_assert_eq!(largest, (0..3).map(|owner| naive.held(Some(owner))).max().unwrap_or(0));
            }
        }
    }
}
