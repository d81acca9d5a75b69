//! Operations that were issued and have not run: what each waits for, and which may run now.

use super::blas::Gemm;
use super::call::Call;
use super::clock::{Clock, Lane};
use super::launches::Launch;
use super::leases::Leases;
use super::nccl::Exchange;
use super::random::Random;
use crate::machine::{Extent, HostFunction};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// One end of a copy.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Memory that the driver knows.
    Known(u64),
    /// Pageable memory of the program.
    Pageable(Extent),
    /// Pageable memory as it was when the call was made.
    Snapshot(Arc<[u8]>),
}

/// What an operation does.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Nothing: it stands for a point in a stream.
    Mark,
    Copy {
        to: End,
        from: End,
        len: u64,
    },
    Fill {
        to: u64,
        len: u64,
        pattern: Vec<u8>,
    },
    Call(HostFunction),
    Launch(Arc<Launch>),
    /// A product by cuBLAS.
    Gemm(Arc<Gemm>),
    /// What a rank of NCCL's sends in a group of calls is read.
    Send(Arc<Exchange>),
    /// What it gets in the same group is written.
    Receive(Arc<Exchange>),
    /// The end of an allocation in stream order.
    Free {
        start: u64,
        len: u64,
    },
}

/// An operation of a stream.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) call: Call,
    pub(crate) context: u64,
    pub(crate) device: usize,
    pub(crate) lane: Lane,
    pub(crate) tick: u64,
    /// What is certain to have run before it, itself included.
    pub(crate) clock: Clock,
    /// Operations that must have run.
    pub(crate) after: Vec<u64>,
    pub(crate) action: Action,
    /// The leases in force when it was issued.
    pub(crate) leases: Leases,
    /// Pinned memory that it reads, and what that held when the call was made.
    pub(crate) source: Option<(Extent, u64)>,
    /// A host function comes before it, or came before it when it was issued.
    pub(crate) behind_call: bool,
}

struct Waiting {
    op: Op,
    left: usize,
}

/// All operations that have not run.
#[derive(Default)]
pub(crate) struct Queue {
    ops: BTreeMap<u64, Waiting>,
    followers: HashMap<u64, Vec<u64>>,
    ready: Vec<u64>,
    next: u64,
}

impl Queue {
    /// Takes an operation; its number.
    pub(crate) fn push(&mut self, mut op: Op) -> u64 {
        self.next += 1;
        let id = self.next;
        op.after.retain(|before| self.ops.contains_key(before));
        op.after.sort_unstable();
        op.after.dedup();
        for &before in &op.after {
            self.followers.entry(before).or_default().push(id);
        }
        let left = op.after.len();
        if left == 0 {
            self.ready.push(id);
        }
        self.ops.insert(id, Waiting { op, left });
        id
    }

    pub(crate) fn is_pending(&self, id: u64) -> bool {
        self.ops.contains_key(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Op> + Clone {
        self.ops.values().map(|w| &w.op)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Op> {
        self.ops.values_mut().map(|w| &mut w.op)
    }

    /// Whether a host function is among these operations, or came before one of them.
    pub(crate) fn behind_call(&self, ids: &[u64]) -> bool {
        let pending = ids.iter().filter_map(|id| self.ops.get(id));
        pending.into_iter().any(|w| w.op.behind_call || matches!(w.op.action, Action::Call(_)))
    }

    /// The pending operations of `ids`, and everything that they wait for.
    pub(crate) fn with_ancestors(&self, ids: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut open: Vec<u64> = ids.into_iter().filter(|id| self.is_pending(*id)).collect();
        while let Some(id) = open.pop() {
            if found.insert(id)
                && let Some(waiting) = self.ops.get(&id)
            {
                open.extend(waiting.op.after.iter().filter(|id| self.is_pending(**id)));
            }
        }
        found
    }

    /// Takes one operation that may run, at random; only from `among` where that is given. `None` where there is none.
    pub(crate) fn take(&mut self, random: &mut Random, among: Option<&BTreeSet<u64>>) -> Option<(u64, Op)> {
        let candidates: Vec<usize> = match among {
            None => (0..self.ready.len()).collect(),
            Some(set) => (0..self.ready.len()).filter(|&n| set.contains(&self.ready[n])).collect(),
        };
        let place = *candidates.get(random.below(candidates.len()))?;
        let id = self.ready.swap_remove(place);
        let waiting = self.ops.remove(&id)?;
        Some((id, waiting.op))
    }

    /// Has one pending operation run after another, which may be pending or not.
    pub(crate) fn follow(&mut self, id: u64, before: u64) {
        if !self.ops.contains_key(&before) || !self.hold(id) {
            return;
        }
        if let Some(waiting) = self.ops.get_mut(&id) {
            waiting.op.after.push(before);
        }
        self.followers.entry(before).or_default().push(id);
    }

    /// Has a pending operation wait for what is not known yet; false where it is not pending.
    pub(crate) fn hold(&mut self, id: u64) -> bool {
        let Some(waiting) = self.ops.get_mut(&id) else { return false };
        waiting.left += 1;
        self.ready.retain(|&ready| ready != id);
        true
    }

    /// Takes one [`Queue::hold`] back.
    pub(crate) fn unhold(&mut self, id: u64) {
        if let Some(waiting) = self.ops.get_mut(&id) {
            waiting.left -= 1;
            if waiting.left == 0 {
                self.ready.push(id);
            }
        }
    }

    /// Takes all of its holds back, so that a pending operation waits for operations only.
    pub(crate) fn release(&mut self, id: u64) {
        let Some(waiting) = self.ops.get(&id) else { return };
        let left = waiting.op.after.iter().filter(|before| self.ops.contains_key(before)).count();
        let held = waiting.left - left;
        (0..held).for_each(|_| self.unhold(id));
    }

    /// An operation that was taken has run: what waited for it may run.
    pub(crate) fn done(&mut self, id: u64) {
        for follower in self.followers.remove(&id).unwrap_or_default() {
            if let Some(waiting) = self.ops.get_mut(&follower) {
                waiting.left -= 1;
                if waiting.left == 0 {
                    self.ready.push(follower);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(after: Vec<u64>) -> Op {
        Op {
            call: Call { number: 0, name: "test" },
            context: 0,
            device: 0,
            lane: Lane(0),
            tick: 0,
            clock: Clock::default(),
            after,
            action: Action::Mark,
            leases: Leases::default(),
            source: None,
            behind_call: false,
        }
    }

    fn order(seed: u64) -> Vec<u64> {
        let mut queue = Queue::default();
        let mut random = Random::new(seed);
        // Two streams of three, and the last of the second waits for the second of the first.
        for after in [vec![], vec![1], vec![2], vec![], vec![4], vec![5, 2]] {
            queue.push(mark(after));
        }
        let mut order = Vec::new();
        while let Some((id, _)) = queue.take(&mut random, None) {
            order.push(id);
            queue.done(id);
        }
        assert!(queue.is_empty());
        order
    }

    #[test]
    fn every_order_that_is_allowed_comes_up_and_no_other() {
        let mut seen = BTreeSet::new();
        for seed in 0..400 {
            let order = order(seed);
            let place = |id: u64| order.iter().position(|&o| o == id).unwrap();
            for (before, after) in [(1, 2), (2, 3), (4, 5), (5, 6), (2, 6)] {
                assert!(place(before) < place(after), "{order:?}");
            }
            seen.insert(order);
        }
        // Interleavings of abc and def with b before f: 20, less those where f comes before b (abc after at least def: 4).
        assert_eq!(seen.len(), 16);
    }

    #[test]
    fn the_lazy_order_runs_only_what_is_needed() {
        let mut queue = Queue::default();
        let mut random = Random::new(3);
        for after in [vec![], vec![1], vec![], vec![3, 1]] {
            queue.push(mark(after));
        }
        let needed = queue.with_ancestors([4]);
        assert_eq!(needed, BTreeSet::from([1, 3, 4]));
        while let Some((id, _)) = queue.take(&mut random, Some(&needed)) {
            queue.done(id);
        }
        assert!(queue.is_pending(2) && !queue.is_pending(4));
    }
}
