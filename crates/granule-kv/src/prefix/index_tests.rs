//! The index against the naive one: a list of token lists, compared one by one.

use proptest::prelude::*;

use super::*;

/// What the index must equal, in obvious lines.
#[derive(Default)]
struct Naive {
    entries: Vec<Known>,
    uses: u64,
    age: u64,
}

struct Known {
    key: u8,
    tokens: Vec<u32>,
    value: u64,
    id: Id,
    pins: usize,
    used: u64,
    aged: u64,
}

fn common(a: &[u32], b: &[u32]) -> usize {
    (0..=a.len().min(b.len())).rev().find(|&n| a[..n] == b[..n]).unwrap()
}

impl Naive {
    fn longest(&self, key: u8, tokens: &[u32]) -> usize {
        self.entries.iter().filter(|e| e.key == key).map(|e| common(&e.tokens, tokens)).max().unwrap_or(0)
    }

    fn own(&self, at: usize) -> usize {
        let this = &self.entries[at];
        let others = self.entries.iter().enumerate().filter(|&(other, e)| other != at && e.key == this.key);
        this.tokens.len() - others.map(|(_, e)| common(&e.tokens, &this.tokens)).max().unwrap_or(0)
    }

    fn use_of(&mut self, at: usize) {
        self.uses += 1;
        (self.entries[at].used, self.entries[at].aged) = (self.uses, self.age);
    }

    /// (priority, which) of the first to go; every third value is not to be had.
    fn first_to_go(&self) -> Option<(u64, usize)> {
        let all = (0..self.entries.len()).filter(|&at| self.entries[at].pins == 0);
        let all = all.filter_map(|at| {
            let price = tokens_per_gib(self.own(at), bytes(&self.entries[at].value)?);
            Some((self.entries[at].aged + price, self.entries[at].used, at))
        });
        all.min().map(|(priority, _, at)| (priority, at))
    }
}

/// By counting up, where the index counts bits.
fn tokens_per_gib(tokens: usize, bytes: u64) -> u64 {
    let exact = tokens as f64 * f64::from(1u32 << 30) / bytes as f64;
    (0..64).map(|log| 1u64 << log).take_while(|&power| power as f64 <= exact).last().unwrap_or(0)
}

fn bytes(value: &u64) -> Option<u64> {
    (!value.is_multiple_of(3)).then_some(value * 1000)
}

impl<K: Ord + Clone, T> Index<K, T> {
    /// Panics where the index is not as its first page says.
    fn check(&self) {
        let mut seen = 0;
        for &root in self.roots.values() {
            let root_node = &self.nodes[root];
            assert!(root_node.parent.is_none() && root_node.edge.is_empty() && root_node.entry.is_none());
            assert!(!root_node.children.is_empty(), "a root that leads nowhere");
            let mut open = vec![root];
            while let Some(at) = open.pop() {
                seen += 1;
                let node = &self.nodes[at];
                assert!(at == root || !node.edge.is_empty());
                assert!(at == root || node.entry.is_some() || node.children.len() > 1, "a needless node");
                assert!(node.children.is_sorted_by(|a, b| a.0 < b.0));
                for &(first, child) in &node.children {
                    assert_eq!((self.nodes[child].parent, self.nodes[child].edge[0]), (Some(at), first));
                    open.push(child);
                }
                assert!(node.entry.is_none_or(|entry| self.entries[entry].node == at));
            }
        }
        assert_eq!(seen, self.nodes.len(), "a node that no root leads to");
        assert_eq!(self.tokens, self.nodes.iter().map(|(_, node)| node.edge.len()).sum::<usize>());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u8, Vec<u32>),
    /// Begins as an entry does and goes on as it likes.
    Longer(usize, usize, Vec<u32>),
    Find(u8, Vec<u32>),
    Touch(usize),
    Pin(usize),
    Unpin(usize),
    Remove(usize),
    Evict,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let tokens = || prop::collection::vec(0..3u32, 0..7);
    let op = prop_oneof![
        4 => (0..2u8, tokens()).prop_map(|(key, tokens)| Op::Insert(key, tokens)),
        4 => (any::<usize>(), 0..9usize, tokens()).prop_map(|(which, keep, tokens)| Op::Longer(which, keep, tokens)),
        3 => (0..3u8, tokens()).prop_map(|(key, tokens)| Op::Find(key, tokens)),
        2 => any::<usize>().prop_map(Op::Touch),
        1 => any::<usize>().prop_map(Op::Pin),
        1 => any::<usize>().prop_map(Op::Unpin),
        1 => any::<usize>().prop_map(Op::Remove),
        2 => Just(Op::Evict),
    ];
    prop::collection::vec(op, 0..if cfg!(miri) { 25 } else { 60 })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 512 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_equals_a_list_of_token_lists(ops in ops()) {
        let (mut index, mut naive) = (Index::<u8, u64>::new(), Naive::default());
        let mut gone = Vec::new();
        for (number, op) in ops.into_iter().enumerate() {
            let pick = |which: usize| which.checked_rem(naive.entries.len());
            let op = match op {
                Op::Longer(which, keep, more) => match pick(which).map(|at| &naive.entries[at]) {
                    Some(e) => Op::Insert(e.key, e.tokens.iter().take(keep).chain(&more).copied().collect()),
                    None => continue,
                },
                op => op,
            };
            match op {
                Op::Insert(key, tokens) => {
                    let value = number as u64 + 1;
                    let known = naive.longest(key, &tokens) == tokens.len();
                    match index.insert(&key, &tokens, value) {
                        Err(back) => prop_assert!(known && back == value),
                        Ok((id, contained)) => {
                            prop_assert!(!known);
                            let begins = |e: &mut Known| e.key == key && e.pins == 0 && tokens.starts_with(&e.tokens);
                            let mut expected = Vec::new();
                            for e in naive.entries.extract_if(.., begins) {
                                expected.push(e.value);
                                gone.push(e.id);
                            }
                            // From the longest on; all are values of their own.
                            let sorted = |mut values: Vec<u64>| { values.sort(); values };
                            prop_assert_eq!(sorted(contained), sorted(expected));
                            naive.entries.push(Known { key, tokens, value, id, pins: 0, used: 0, aged: 0 });
                            naive.use_of(naive.entries.len() - 1);
                        }
                    }
                }
                Op::Longer(..) => unreachable!(),
                Op::Find(key, tokens) => {
                    let found = index.find(&key, &tokens);
                    prop_assert_eq!(found.map_or(0, |found| found.len), naive.longest(key, &tokens));
                    if let Some(Match { id, len }) = found {
                        let entry = naive.entries.iter().find(|e| e.id == id).unwrap();
                        prop_assert_eq!(entry.key, key);
                        prop_assert_eq!(&entry.tokens[..len], &tokens[..len]);
                    }
                }
                Op::Touch(which) => if let Some(at) = pick(which) {
                    index.touch(naive.entries[at].id);
                    naive.use_of(at);
                },
                Op::Pin(which) => if let Some(at) = pick(which) {
                    index.pin(naive.entries[at].id);
                    naive.entries[at].pins += 1;
                },
                Op::Unpin(which) => if let Some(at) = pick(which) {
                    index.unpin(naive.entries[at].id);
                    naive.entries[at].pins = naive.entries[at].pins.saturating_sub(1);
                },
                Op::Remove(which) => if let Some(at) = pick(which) {
                    let Known { id, pins, value, .. } = naive.entries[at];
                    prop_assert_eq!(index.remove(id), (pins == 0).then_some(value));
                    if pins == 0 {
                        gone.push(naive.entries.remove(at).id);
                    }
                },
                Op::Evict => {
                    let victim = index.first_to_go(bytes);
                    prop_assert_eq!(index.to_go(bytes).first().copied(), victim);
                    let expected = naive.first_to_go();
                    prop_assert_eq!(
                        victim.map(|victim| (victim.priority, victim.id)),
                        expected.map(|(priority, at)| (priority, naive.entries[at].id))
                    );
                    if let (Some(victim), Some((priority, at))) = (victim, expected) {
                        let known = naive.entries.remove(at);
                        prop_assert_eq!(victim.bytes, known.value * 1000);
                        prop_assert_eq!(index.evict(victim), Some(known.value));
                        naive.age = naive.age.max(priority);
                        gone.push(known.id);
                    }
                }
            }
            index.check();
            prop_assert_eq!(index.len(), naive.entries.len());
            for (at, known) in naive.entries.iter().enumerate() {
                prop_assert_eq!(index.get(known.id), Some(&known.value));
                let own = index.unpinned().find(|(id, ..)| *id == known.id).map(|(.., own)| own);
                prop_assert_eq!(own, (known.pins == 0).then(|| naive.own(at)));
            }
            for &id in &gone {
                prop_assert!(index.get(id).is_none() && index.remove(id).is_none());
            }
        }
    }
}

#[test]
fn the_picture_on_the_first_page() {
    let mut index = Index::new();
    let (c, _) = index.insert(&"model", &[1, 2], 'c').unwrap();
    index.pin(c);
    let (a, none) = index.insert(&"model", &[1, 2, 3, 4], 'a').unwrap();
    assert_eq!(none, []);
    let (b, _) = index.insert(&"model", &[1, 2, 3, 9], 'b').unwrap();
    index.unpin(c);
    let own = |index: &Index<_, _>, wanted| index.unpinned().find(|(id, ..)| *id == wanted).unwrap().2;
    assert_eq!((own(&index, a), own(&index, b), own(&index, c), index.tokens()), (1, 1, 0, 5));
    assert_eq!(index.find(&"model", &[1, 2, 3, 7]), Some(Match { id: a, len: 3 }));
    assert_eq!(index.find(&"model", &[1, 2]), Some(Match { id: c, len: 2 }));
    assert_eq!(index.find(&"model", &[1]), Some(Match { id: c, len: 1 }));
    assert_eq!(index.find(&"other", &[1, 2]), None);
    assert_eq!(index.remove(b), Some('b'));
    assert_eq!(own(&index, a), 2);
    assert_eq!(index.remove(a), Some('a'));
    assert_eq!((own(&index, c), index.tokens()), (2, 2));
    let (_, contained) = index.insert(&"model", &[1, 2, 5], 'd').unwrap();
    assert_eq!((contained, index.len(), index.tokens()), (vec!['c'], 1, 3));
}

#[test]
fn of_equal_cost_the_least_recently_used_goes_and_a_dear_one_stays_until_it_is_old() {
    let mut index = Index::new();
    let [dear, first, second] =
        [vec![9; 64], vec![1, 1], vec![2, 2]].map(|tokens| index.insert(&(), &tokens, 1 << 20).unwrap().0);
    index.touch(first);
    let mut next = || {
        let victim = index.first_to_go(|&bytes| Some(bytes)).unwrap();
        index.evict(victim).map(|_| victim.id).unwrap()
    };
    assert_eq!((next(), next()), (second, first));
    // Each that goes makes the next that comes worth more: 2 tokens a step, until the 64 of the dear one are no more.
    let mut rounds = 0;
    loop {
        rounds += 1;
        index.insert(&(), &[3, rounds], 1 << 20).unwrap();
        let victim = index.first_to_go(|&bytes| Some(bytes)).unwrap();
        index.evict(victim).unwrap();
        if victim.id == dear {
            break;
        }
    }
    // One step was made by the two before.
    assert_eq!(rounds, 64 / 2 - 1);
}

#[test]
fn long_lists_are_walked_and_not_recursed_into() {
    let count = if cfg!(miri) { 30 } else { 20_000 };
    let tokens: Vec<u32> = (0..count).collect();
    let mut index = Index::new();
    let ids = (1..=tokens.len()).map(|n| {
        let (id, _) = index.insert(&(), &tokens[..n], n).unwrap();
        index.pin(id);
        id
    });
    let ids: Vec<Id> = ids.collect();
    assert_eq!(index.find(&(), &tokens).map(|found| found.len), Some(tokens.len()));
    assert_eq!(index.tokens(), tokens.len());
    ids.iter().for_each(|&id| index.unpin(id));
    ids.into_iter().rev().for_each(|id| assert!(index.remove(id).is_some()));
    assert_eq!((index.len(), index.tokens(), index.nodes.len(), index.roots.len()), (0, 0, 0, 0));
}
