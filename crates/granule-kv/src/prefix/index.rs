//! The prefix index: which remembered lists of tokens begin as a new one does, and which to forget first. Pure policy.
//!
//! One radix tree for each key. A node's edge is a run of tokens; an entry is a node, and its tokens are the edges from the
//! root to it. There is no hashing anywhere: what matches has been compared token by token.
//!
//! ```text
//! insert and pin [1 2]; insert [1 2 3 4], [1 2 3 9]        find [1 2 3 7]: 3 tokens, of entry a (or b, as good)
//!
//!   root ──[1 2]── c ──[3]── · ──[4]── a    own tokens: a 1, b 1, c 0: all that c knows, others know too.
//!                             └──[9]── b    Without b: a 2, "3 4". Without a and b: c 2.
//! ```
//!
//! Invariants, which `check` verifies in tests: a node that is not a root has a non-empty edge, and an entry or two children
//! at least; the first tokens of a node's children differ, and stand in order; an entry without children is a leaf, and
//! the length of its edge is what only it knows.
//!
//! **Whom to forget.** Each entry has a cost: the tokens that only it knows over the bytes that only it holds, that is, what
//! it takes to have a byte again. Costs alone would let an old dear entry outlive everything, uses alone would
//! forget a long prompt as gladly as a short one; so this is GreedyDual-Size (Cao and Irani 1997). The index has
//! an age, which becomes the priority of each entry that is evicted; an entry's priority is the age at its last use plus its
//! cost; the lowest goes. Costs are rounded down to a power of two, so that what granules round off is not
//! taken for worth, and of equals the least recently used goes.

use std::collections::BTreeMap;

use slab::Slab;

/// Which entry. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    at: usize,
    serial: u64,
}

/// The longest beginning that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    /// An entry whose first `len` tokens are those asked for.
    pub(crate) id: Id,
    /// At least 1.
    pub(crate) len: usize,
}

/// The entry to forget first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) id: Id,
    /// What it was said to hold.
    pub(crate) bytes: u64,
    priority: u64,
}

#[derive(Debug)]
struct Node {
    /// The tokens from the parent to here. Empty for roots only.
    edge: Vec<u32>,
    /// `None` for a root.
    parent: Option<usize>,
    /// By the first token of their edge.
    children: Vec<(u32, usize)>,
    entry: Option<usize>,
}

#[derive(Debug)]
struct Entry<T> {
    serial: u64,
    node: usize,
    value: T,
    pins: usize,
    /// The count of uses at its last one: unique, and larger is later.
    used: u64,
    /// The index's age at its last use.
    aged: u64,
}

/// Token lists under keys, with a value each. Keys are compared in full.
#[derive(Debug)]
pub(crate) struct Index<K, T> {
    roots: BTreeMap<K, usize>,
    nodes: Slab<Node>,
    entries: Slab<Entry<T>>,
    tokens: usize,
    uses: u64,
    serials: u64,
    age: u64,
}

impl<K: Ord + Clone, T> Index<K, T> {
    pub(crate) fn new() -> Index<K, T> {
        Index {
            roots: BTreeMap::new(),
            nodes: Slab::new(),
            entries: Slab::new(),
            tokens: 0,
            uses: 0,
            serials: 0,
            age: 0,
        }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many tokens are kept, those that several entries begin with once.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whose tokens begin as these do for the longest.
    pub(crate) fn find(&self, key: &K, tokens: &[u32]) -> Option<Match> {
        let (node, len, _) = self.walk(*self.roots.get(key)?, tokens);
        (len > 0).then(|| self.below(node)).flatten().map(|id| Match { id, len })
    }

    /// Remembers a list of tokens as used just now, and forgets those that it begins with, but for pinned ones, whose values it
    /// answers: who looks for them finds them in this one. Gives the value back where all of it is known already, and for no
    /// tokens.
    pub(crate) fn insert(&mut self, key: &K, tokens: &[u32], value: T) -> Result<(Id, Vec<T>), T> {
        let root = match self.roots.get(key) {
            Some(&root) => root,
            None if tokens.is_empty() => return Err(value),
            None => {
                let root = self.nodes.insert(Node::new(Vec::new(), None));
                self.roots.insert(key.clone(), root);
                root
            }
        };
        let (mut node, len, along) = self.walk(root, tokens);
        let Some((&first, _)) = tokens.get(len..).and_then(<[u32]>::split_first) else { return Err(value) };
        if along < self.nodes[node].edge.len() {
            node = self.split(node, along);
        }
        let leaf = self.nodes.insert(Node::new(tokens[len..].to_vec(), Some(node)));
        self.tokens += tokens.len() - len;
        self.nodes[node].adopt(first, leaf);
        self.serials += 1;
        let serial = self.serials;
        let at = self.entries.insert(Entry { serial, node: leaf, value, pins: 0, used: 0, aged: 0 });
        self.nodes[leaf].entry = Some(at);
        let id = Id { at, serial };
        self.touch(id);
        let mut contained = Vec::new();
        let mut above = Some(node);
        while let Some(node) = above {
            above = self.nodes[node].parent;
            let known = self.nodes[node].entry.map(|at| Id { at, serial: self.entries[at].serial });
            contained.extend(known.and_then(|id| self.remove(id)));
        }
        Ok((id, contained))
    }

    /// Counts a use.
    pub(crate) fn touch(&mut self, id: Id) {
        self.uses += 1;
        let (used, aged) = (self.uses, self.age);
        if let Some(entry) = self.entry_mut(id) {
            (entry.used, entry.aged) = (used, aged);
        }
    }

    /// Keeps an entry until it is unpinned as often.
    pub(crate) fn pin(&mut self, id: Id) {
        if let Some(entry) = self.entry_mut(id) {
            entry.pins += 1;
        }
    }

    pub(crate) fn unpin(&mut self, id: Id) {
        if let Some(entry) = self.entry_mut(id) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }

    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        self.entry(id).map(|entry| &entry.value)
    }

    /// All entries that are not pinned: which, what they are, and how many tokens only they know.
    pub(crate) fn unpinned(&self) -> impl Iterator<Item = (Id, &T, usize)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.pins == 0)
            .map(|(at, entry)| (Id { at, serial: entry.serial }, &entry.value, self.own_tokens(entry)))
    }

    /// The entry to forget first, of those that are not pinned and that `bytes` answers for: with how many bytes only it holds.
    pub(crate) fn first_to_go(&self, bytes: impl Fn(&T) -> Option<u64>) -> Option<Victim> {
        self.victims(bytes).min_by_key(|(used, victim)| (victim.priority, *used)).map(|(_, victim)| victim)
    }

    /// As [`Index::first_to_go`], all of them, first the one to forget first. Each is weighed as if the others stayed.
    pub(crate) fn to_go(&self, bytes: impl Fn(&T) -> Option<u64>) -> Vec<Victim> {
        let mut victims: Vec<(u64, Victim)> = self.victims(bytes).collect();
        victims.sort_by_key(|(used, victim)| (victim.priority, *used));
        victims.into_iter().map(|(_, victim)| victim).collect()
    }

    /// Those that can be forgotten, each with when it was used last.
    fn victims(&self, bytes: impl Fn(&T) -> Option<u64>) -> impl Iterator<Item = (u64, Victim)> {
        self.entries.iter().filter(|(_, entry)| entry.pins == 0).filter_map(move |(at, entry)| {
            let bytes = bytes(&entry.value)?;
            let priority = entry.aged.saturating_add(cost(self.own_tokens(entry), bytes));
            Some((entry.used, Victim { id: Id { at, serial: entry.serial }, bytes, priority }))
        })
    }

    /// Forgets a victim because its room is needed: the index is older by that. `None` where it is pinned or gone.
    pub(crate) fn evict(&mut self, victim: Victim) -> Option<T> {
        let value = self.remove(victim.id)?;
        self.age = self.age.max(victim.priority);
        Some(value)
    }

    /// Forgets an entry. `None` where it is pinned or gone.
    pub(crate) fn remove(&mut self, id: Id) -> Option<T> {
        self.entry(id).filter(|entry| entry.pins == 0)?;
        let entry = self.entries.try_remove(id.at)?;
        let node = entry.node;
        self.nodes[node].entry = None;
        if self.nodes[node].children.is_empty() {
            let leaf = self.nodes.remove(node);
            self.tokens -= leaf.edge.len();
            if let (Some(parent), Some(first)) = (leaf.parent, leaf.edge.first()) {
                self.nodes[parent].children.retain(|(token, _)| token != first);
                self.join(parent);
            }
        } else {
            self.join(node);
        }
        Some(entry.value)
    }

    /// How many tokens no other entry of the same key knows.
    fn own_tokens(&self, entry: &Entry<T>) -> usize {
        let node = &self.nodes[entry.node];
        if node.children.is_empty() { node.edge.len() } else { 0 }
    }

    fn entry(&self, id: Id) -> Option<&Entry<T>> {
        self.entries.get(id.at).filter(|entry| entry.serial == id.serial)
    }

    fn entry_mut(&mut self, id: Id) -> Option<&mut Entry<T>> {
        self.entries.get_mut(id.at).filter(|entry| entry.serial == id.serial)
    }

    /// As deep as the tokens lead: the last node that any of them lies in, how many matched, and how many of those lie on
    /// that node's edge.
    fn walk(&self, root: usize, tokens: &[u32]) -> (usize, usize, usize) {
        let (mut node, mut len, mut along) = (root, 0, 0);
        while along == self.nodes[node].edge.len() {
            let Some(child) = tokens.get(len).and_then(|&token| self.nodes[node].child(token)) else { break };
            let same = self.nodes[child].edge.iter().zip(&tokens[len..]).take_while(|(a, b)| a == b).count();
            (node, len, along) = (child, len + same, same);
        }
        (node, len, along)
    }

    /// An entry at a node or below it.
    fn below(&self, mut node: usize) -> Option<Id> {
        loop {
            let this = &self.nodes[node];
            if let Some(at) = this.entry {
                return Some(Id { at, serial: self.entries[at].serial });
            }
            node = this.children.first()?.1;
        }
    }

    /// Cuts a node's edge in two; answers the new node in the middle.
    fn split(&mut self, node: usize, along: usize) -> usize {
        let lower = &mut self.nodes[node];
        let edge = lower.edge.split_off(along);
        let upper = std::mem::replace(&mut lower.edge, edge);
        let (parent, first, next) = (lower.parent, upper[0], lower.edge[0]);
        let middle = self.nodes.insert(Node::new(upper, parent));
        self.nodes[node].parent = Some(middle);
        self.nodes[middle].adopt(next, node);
        if let Some(parent) = parent {
            self.nodes[parent].adopt(first, middle);
        }
        middle
    }

    /// Takes a node out that is neither an entry nor a fork in the road, or a root that leads nowhere.
    fn join(&mut self, node: usize) {
        let this = &self.nodes[node];
        match (this.parent, this.children.as_slice()) {
            (None, []) => {
                self.nodes.remove(node);
                self.roots.retain(|_, &mut root| root != node);
            }
            (Some(parent), &[(_, child)]) if this.entry.is_none() => {
                let mut upper = self.nodes.remove(node).edge;
                let first = upper[0];
                upper.append(&mut self.nodes[child].edge);
                self.nodes[child].edge = upper;
                self.nodes[child].parent = Some(parent);
                self.nodes[parent].adopt(first, child);
            }
            _ => {}
        }
    }
}

impl Node {
    fn new(edge: Vec<u32>, parent: Option<usize>) -> Node {
        Node { edge, parent, children: Vec::new(), entry: None }
    }

    fn child(&self, token: u32) -> Option<usize> {
        let at = self.children.binary_search_by_key(&token, |(first, _)| *first).ok()?;
        Some(self.children[at].1)
    }

    /// Has a child in the place of the one that begins with that token, if there is one.
    fn adopt(&mut self, token: u32, child: usize) {
        match self.children.binary_search_by_key(&token, |(first, _)| *first) {
            Ok(at) => self.children[at].1 = child,
            Err(at) => self.children.insert(at, (token, child)),
        }
    }
}

/// Tokens to compute again for a GiB, rounded down to a power of two; 0 for no tokens.
fn cost(tokens: usize, bytes: u64) -> u64 {
    let exact = ((tokens as u128) << 30) / u128::from(bytes.max(1));
    let exact = u64::try_from(exact).unwrap_or(u64::MAX);
    exact.checked_ilog2().map_or(0, |log| 1 << log)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
