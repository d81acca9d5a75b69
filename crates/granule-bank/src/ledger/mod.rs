//! The policy: who holds how much, what the budget still allows, which cached handles to reuse, make ahead or let go.
//!
//! Pure arithmetic: no device, no `unsafe`. The [bank](crate::Bank) asks first and calls the driver after.

pub(crate) mod allowance;
pub(crate) mod levels;
pub(crate) mod pressure;

#[cfg(test)]
mod tests;

use granule_device::Bytes;

use self::allowance::Allowance;
use crate::{Owner, OwnerStats};

/// An owner's place in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account(usize);

impl Account {
    /// Accounts are numbered from 0 in the order in which they came.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

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
    /// So much that nobody holds stands in the way: granules being prepared, or kept by another bank of the budget.
    InTheWay(Bytes),
}

/// When cached granules are given back to the device, and when some are made ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Granules: fewer than this, and a preparer makes some.
    pub(crate) low: usize,
    /// Granules: more than this, and they are given back down to `low`.
    pub(crate) high: usize,
}

/// The numbers of a bank's life: each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Granules handed out of the cache.
    pub(crate) hits: u64,
    /// Granules made for a request.
    pub(crate) misses: u64,
    /// Granules made ahead.
    pub(crate) prepared: u64,
    /// Granules that could not be made ahead.
    pub(crate) prepare_errors: u64,
    /// What owners gave back.
    pub(crate) returned: Bytes,
}

/// The books of one bank. Every change is made to its [`Allowance`] too, which other banks may share.
#[derive(Debug)]
pub(crate) struct Ledger {
    granule: Bytes,
    limit: Bytes,
    marks: Marks,
    accounts: Vec<OwnerStats>,
    held: Bytes,
    charged: Bytes,
    peak: Bytes,
    cached: usize,
    preparing: usize,
    counts: Counts,
}

impl Ledger {
    pub(crate) fn new(granule: Bytes, limit: Bytes, marks: Marks) -> Ledger {
        let zero = Bytes::ZERO;
        Ledger {
            granule,
            limit,
            marks,
            accounts: Vec::new(),
            held: zero,
            charged: zero,
            peak: zero,
            cached: 0,
            preparing: 0,
            counts: Counts::default(),
        }
    }

    /// The owner's account, if it has one.
    pub(crate) fn known(&self, owner: &Owner) -> Option<Account> {
        self.accounts.iter().position(|account| account.owner == *owner).map(Account)
    }

    pub(crate) fn account(&mut self, owner: &Owner) -> Account {
        self.known(owner).unwrap_or_else(|| {
            self.accounts.push(OwnerStats { owner: owner.clone(), current: Bytes::ZERO, peak: Bytes::ZERO });
            Account(self.accounts.len() - 1)
        })
    }

    /// Whose account it is.
    pub(crate) fn owner(&self, account: Account) -> Option<&Owner> {
        self.accounts.get(account.0).map(|account| &account.owner)
    }

    /// Books `count` granules for an owner.
    pub(crate) fn take(
        &mut self,
        allowance: &mut Allowance,
        account: Account,
        count: usize,
    ) -> Result<Admission, Refusal> {
        let need = self.size_of(count).ok_or(Refusal::TooLarge)?;
        self.check(allowance, need)?;
        let reuse = count.min(self.cached);
        let drop = self.in_the_way(allowance, need, reuse)?;
        self.uncache(allowance, reuse + drop);
        self.book(allowance, account, need);
        Ok(Admission { reuse, create: count - reuse, drop })
    }

    /// Says that a [`take`](Ledger::take) came out well: so many of its granules were in the cache and so many were made.
    pub(crate) fn took(&mut self, account: Account, reused: usize, made: usize) {
        self.counts.hits += reused as u64;
        self.counts.misses += made as u64;
        self.note_peak(account);
    }

    /// Says that a [`take`](Ledger::take) of `count` did not, and that there are so many granules, which go to the cache as if
    /// nobody had ever had them; answers how many cached ones are to be let go.
    pub(crate) fn took_nothing(
        &mut self,
        allowance: &mut Allowance,
        account: Account,
        count: usize,
        granules: usize,
    ) -> usize {
        self.unbook(allowance, account, self.size_of(count).unwrap_or(Bytes::MAX));
        self.cache(allowance, granules)
    }

    /// Books memory that is not granules; answers how many cached granules have to go for it.
    pub(crate) fn charge(
        &mut self,
        allowance: &mut Allowance,
        account: Account,
        size: Bytes,
    ) -> Result<usize, Refusal> {
        self.check(allowance, size)?;
        let drop = self.in_the_way(allowance, size, 0)?;
        self.uncache(allowance, drop);
        self.book(allowance, account, size);
        self.charged = self.charged.saturating_add(size);
        self.note_peak(account);
        Ok(drop)
    }

    /// Takes a charge off the books.
    pub(crate) fn discharge(&mut self, allowance: &mut Allowance, account: Account, size: Bytes) {
        self.charged = self.charged.saturating_sub(size);
        self.unbook(allowance, account, size);
        self.counts.returned = self.counts.returned.saturating_add(size);
    }

    /// Books a granule back from its owner, into the cache; answers how many cached ones are to be let go.
    pub(crate) fn give_back(&mut self, allowance: &mut Allowance, account: Account) -> usize {
        self.unbook(allowance, account, self.granule);
        self.counts.returned = self.counts.returned.saturating_add(self.granule);
        self.cache(allowance, 1)
    }

    /// Whether so few granules are kept or being made that more are wanted.
    pub(crate) fn is_low(&self) -> bool {
        self.cached + self.preparing < self.marks.low
    }

    /// Books one granule that is to be made ahead; false where none is wanted or there is no room for it.
    pub(crate) fn prepare(&mut self, allowance: &mut Allowance) -> bool {
        let own = self.held.saturating_add(self.kept()).saturating_add(self.granule);
        let fits = own <= self.limit && allowance.over(self.granule, Bytes::ZERO).is_zero();
        let wanted = fits && self.is_low();
        if wanted {
            self.preparing += 1;
            allowance.keep(self.granule);
        }
        wanted
    }

    /// Says how a [`prepare`](Ledger::prepare) came out: the granule is in the cache, or there is none.
    pub(crate) fn prepared(&mut self, allowance: &mut Allowance, made: bool) {
        self.preparing -= 1;
        if made {
            self.cached += 1;
            self.counts.prepared += 1;
        } else {
            allowance.unkeep(self.granule);
            self.counts.prepare_errors += 1;
        }
    }

    /// True while a granule is being made ahead.
    pub(crate) fn is_preparing(&self) -> bool {
        self.preparing > 0
    }

    /// Takes granules out of the cache, at least `want` if there is so much; answers how many are to be let go.
    pub(crate) fn shed(&mut self, allowance: &mut Allowance, want: Bytes) -> usize {
        let count = want.pieces_of(self.granule).unwrap_or(usize::MAX).min(self.cached);
        self.uncache(allowance, count);
        count
    }

    /// What a request could have: the budget less what owners hold; cached granules are for the asking.
    pub(crate) fn free(&self, allowance: &Allowance) -> Bytes {
        self.limit.saturating_sub(self.held).min(allowance.free())
    }

    /// The most that this bank can hold, by itself.
    pub(crate) fn own_limit(&self) -> Bytes {
        self.limit
    }

    /// The most that can ever be held, by both limits.
    pub(crate) fn limit(&self, allowance: &Allowance) -> Bytes {
        self.limit.min(allowance.limit())
    }

    /// What this bank's owners hold.
    pub(crate) fn held(&self) -> Bytes {
        self.held
    }

    pub(crate) fn charged(&self) -> Bytes {
        self.charged
    }

    pub(crate) fn peak(&self) -> Bytes {
        self.peak
    }

    pub(crate) fn cached(&self) -> Bytes {
        self.granule.saturating_mul(self.cached as u64)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn largest_owner(&self) -> Option<(Owner, Bytes)> {
        let largest = self.accounts.iter().max_by_key(|account| account.current)?;
        (!largest.current.is_zero()).then(|| (largest.owner.clone(), largest.current))
    }

    /// By owner, in the order of their names; who never held anything is not listed.
    pub(crate) fn owners(&self) -> Vec<OwnerStats> {
        let held_some = |account: &&OwnerStats| !account.peak.is_zero();
        let mut owners: Vec<_> = self.accounts.iter().filter(held_some).cloned().collect();
        owners.sort_by(|a, b| a.owner.cmp(&b.owner));
        owners
    }

    pub(crate) fn size_of(&self, count: usize) -> Option<Bytes> {
        self.granule.checked_mul(count as u64)
    }

    fn kept(&self) -> Bytes {
        self.granule.saturating_mul((self.cached + self.preparing) as u64)
    }

    fn check(&self, allowance: &Allowance, need: Bytes) -> Result<(), Refusal> {
        match need {
            _ if need > self.limit(allowance) => Err(Refusal::TooLarge),
            _ if need > self.free(allowance) => Err(Refusal::Full),
            _ => Ok(()),
        }
    }

    /// How many cached granules, besides those to be reused, have to go so that `need` fits.
    fn in_the_way(&self, allowance: &Allowance, need: Bytes, reuse: usize) -> Result<usize, Refusal> {
        let reused = self.granule.saturating_mul(reuse as u64);
        let own = self.held.saturating_add(need).saturating_add(self.kept().saturating_sub(reused));
        let over = own.saturating_sub(self.limit).max(allowance.over(need, reused));
        let pieces = over.pieces_of(self.granule).unwrap_or(0);
        let drop = pieces.min(self.cached - reuse);
        let left = over.saturating_sub(self.granule.saturating_mul(drop as u64));
        if left.is_zero() { Ok(drop) } else { Err(Refusal::InTheWay(left)) }
    }

    /// Puts granules into the cache; answers how many are too many.
    fn cache(&mut self, allowance: &mut Allowance, count: usize) -> usize {
        self.cached += count;
        allowance.keep(self.granule.saturating_mul(count as u64));
        let drop = if self.cached > self.marks.high { self.cached - self.marks.low } else { 0 };
        self.uncache(allowance, drop);
        drop
    }

    fn uncache(&mut self, allowance: &mut Allowance, count: usize) {
        self.cached -= count;
        allowance.unkeep(self.granule.saturating_mul(count as u64));
    }

    fn book(&mut self, allowance: &mut Allowance, account: Account, size: Bytes) {
        allowance.hold(size);
        self.held = self.held.saturating_add(size);
        if let Some(account) = self.accounts.get_mut(account.0) {
            account.current = account.current.saturating_add(size);
        }
    }

    /// What was booked is there.
    fn note_peak(&mut self, account: Account) {
        self.peak = self.peak.max(self.held);
        if let Some(account) = self.accounts.get_mut(account.0) {
            account.peak = account.peak.max(account.current);
        }
    }

    fn unbook(&mut self, allowance: &mut Allowance, account: Account, size: Bytes) {
        allowance.unhold(size);
        self.held = self.held.saturating_sub(size);
        if let Some(account) = self.accounts.get_mut(account.0) {
            account.current = account.current.saturating_sub(size);
        }
    }
}
