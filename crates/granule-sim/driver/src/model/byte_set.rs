//! Sets of bytes, one bit each, by pages: what of a store was ever written, what a kernel touched.

use std::collections::BTreeMap;

const PAGE: u64 = 4096;
const WORDS: usize = (PAGE / 64) as usize;

enum Page {
    All,
    Some(Box<[u64; WORDS]>),
}

/// Bytes by their offset or address. Of a page that is not in the map there are none.
#[derive(Default)]
pub(crate) struct ByteSet(BTreeMap<u64, Page>);

impl ByteSet {
    /// Adds bytes.
    pub(crate) fn set(&mut self, start: u64, len: u64) {
        self.each(start, len, |pages, number, from, to| {
            if to - from == PAGE {
                pages.insert(number, Page::All);
                return;
            }
            let page = pages.entry(number).or_insert_with(|| Page::Some(Box::new([0; WORDS])));
            if let Page::Some(bits) = page
                && mark(bits, from, to, true)
                && bits.iter().all(|&w| w == u64::MAX)
            {
                *page = Page::All;
            }
        });
    }

    /// Takes bytes out.
    pub(crate) fn clear(&mut self, start: u64, len: u64) {
        self.each(start, len, |pages, number, from, to| {
            if to - from == PAGE {
                pages.remove(&number);
            } else if let Some(page) = pages.get_mut(&number) {
                if let Page::All = page {
                    *page = Page::Some(Box::new([u64::MAX; WORDS]));
                }
                if let Page::Some(bits) = page {
                    mark(bits, from, to, false);
                }
            }
        });
    }

    /// The first byte that is not in the set, if there is one.
    pub(crate) fn first_unset(&self, start: u64, len: u64) -> Option<u64> {
        let mut at = start;
        let end = start.saturating_add(len);
        while at < end {
            let number = at / PAGE;
            let stop = end.min((number + 1) * PAGE);
            match self.0.get(&number) {
                Some(Page::All) => {}
                None => return Some(at),
                Some(Page::Some(bits)) => {
                    let unset = (at..stop).find(|b| bits[(b % PAGE / 64) as usize] >> (b % 64) & 1 == 0);
                    if unset.is_some() {
                        return unset;
                    }
                }
            }
            at = stop;
        }
        None
    }

    /// `len` bytes at `to` become as those at `from` are, in another set where `source` is given.
    pub(crate) fn copy(&mut self, to: u64, source: Option<&ByteSet>, from: u64, len: u64) {
        let mut runs = Vec::new();
        let mut at = from;
        let end = from.saturating_add(len);
        let source = source.unwrap_or(self);
        while at < end {
            let stop = source.first_unset(at, end - at).unwrap_or(end);
            if stop > at {
                runs.push((at, stop - at));
            }
            at = stop;
            while at < end && source.first_unset(at, 1).is_some() {
                let whole_page_missing = at.is_multiple_of(PAGE) && !source.0.contains_key(&(at / PAGE));
                at = if whole_page_missing { end.min(at + PAGE) } else { at + 1 };
            }
        }
        self.clear(to, len);
        for (start, len) in runs {
            self.set(to + (start - from), len);
        }
    }

    /// Start and length of each run of bytes, in order.
    pub(crate) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut add = |start: u64, len: u64| match runs.last_mut() {
            Some((at, size)) if *at + *size == start => *size += len,
            _ => runs.push((start, len)),
        };
        for (number, page) in &self.0 {
            let start = number * PAGE;
            match page {
                Page::All => add(start, PAGE),
                Page::Some(bits) => {
                    for (n, &word) in (0..).zip(bits.iter()) {
                        let mut at = 0;
                        while at < 64 && word >> at != 0 {
                            at += (word >> at).trailing_zeros();
                            let len = (word >> at).trailing_ones();
                            add(start + n * 64 + u64::from(at), len.into());
                            at += len;
                        }
                    }
                }
            }
        }
        runs
    }

    fn each(
        &mut self,
        start: u64,
        len: u64,
        mut change: impl FnMut(&mut BTreeMap<u64, Page>, u64, u64, u64),
    ) {
        let end = start.saturating_add(len);
        let mut at = start;
        while at < end {
            let number = at / PAGE;
            let stop = end.min((number + 1) * PAGE);
            change(&mut self.0, number, at - number * PAGE, stop - number * PAGE);
            at = stop;
        }
    }
}

/// Sets or clears the bits of bytes `from .. to` of a page; whether some word is full afterwards.
fn mark(bits: &mut [u64; WORDS], from: u64, to: u64, set: bool) -> bool {
    let mut full = false;
    let mut at = from;
    while at < to {
        let stop = to.min((at / 64 + 1) * 64);
        let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
        let word = &mut bits[(at / 64) as usize];
        if set {
            *word |= mask
        } else {
            *word &= !mask
        }
        full |= *word == u64::MAX;
        at = stop;
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::random::Random;

    #[test]
    fn equals_a_list_of_booleans() {
        let size = 3 * PAGE;
        let mut random = Random::new(11);
        let mut set = ByteSet::default();
        let mut naive = vec![false; size as usize];
        for _ in 0..400 {
            let start = random.next() % size;
            let len = [1, 16, 700, PAGE, 2 * PAGE][random.below(5)].min(size - start);
            let range = start as usize..(start + len) as usize;
            match random.below(4) {
                0 => {
                    set.clear(start, len);
                    naive[range.clone()].fill(false);
                }
                1 => {
                    let to = random.next() % (size - len + 1);
                    set.copy(to, None, start, len);
                    naive.copy_within(range.clone(), to as usize);
                }
                _ => {
                    set.set(start, len);
                    naive[range.clone()].fill(true);
                }
            }
            let expected = naive[range.clone()].iter().position(|&b| !b).map(|n| start + n as u64);
            assert_eq!(set.first_unset(start, len), expected);
            let flat = set.runs().into_iter().flat_map(|(at, len)| at..at + len);
            assert!(flat.eq((0..size).filter(|&b| naive[b as usize])));
            assert_eq!(set.first_unset(0, size), naive.iter().position(|&b| !b).map(|n| n as u64));
        }
    }
}
