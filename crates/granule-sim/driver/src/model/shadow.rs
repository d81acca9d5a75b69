//! Which bytes of a store were ever written: one bit a byte, by pages, kept only where a checked kernel may ask.

use std::collections::BTreeMap;

const PAGE: u64 = 4096;
const WORDS: usize = (PAGE / 64) as usize;

enum Page {
    All,
    Some(Box<[u64; WORDS]>),
}

/// The written bytes of one store. A page that is not in the map was not written.
#[derive(Default)]
pub(crate) struct Shadow(BTreeMap<u64, Page>);

impl Shadow {
    /// Bytes were written.
    pub(crate) fn set(&mut self, start: u64, len: u64) {
        self.each(start, len, |pages, number, from, to| {
            if to - from == PAGE {
                pages.insert(number, Page::All);
                return;
            }
            let page = pages.entry(number).or_insert_with(|| Page::Some(Box::new([0; WORDS])));
            if let Page::Some(bits) = page {
                mark(bits, from, to, true);
                if bits.iter().all(|&w| w == u64::MAX) {
                    *page = Page::All;
                }
            }
        });
    }

    /// Bytes are fresh: nobody wrote them yet.
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

    /// The first byte that was not written, if there is one.
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

    /// `to` is written where `from` is: a copy of `len` bytes, from another store where `source` is given.
    pub(crate) fn copy(&mut self, to: u64, source: Option<&Shadow>, from: u64, len: u64) {
        let mut runs = Vec::new();
        let mut at = from;
        let end = from.saturating_add(len);
        let shadow = source.unwrap_or(self);
        while at < end {
            let stop = shadow.first_unset(at, end - at).unwrap_or(end);
            if stop > at {
                runs.push((at, stop - at));
            }
            at = stop;
            while at < end && shadow.first_unset(at, 1).is_some() {
                let whole_page_missing = at.is_multiple_of(PAGE) && !shadow.0.contains_key(&(at / PAGE));
                at = if whole_page_missing { end.min(at + PAGE) } else { at + 1 };
            }
        }
        self.clear(to, len);
        for (start, len) in runs {
            self.set(to + (start - from), len);
        }
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

fn mark(bits: &mut [u64; WORDS], from: u64, to: u64, set: bool) {
    for byte in from..to {
        let bit = 1 << (byte % 64);
        let word = &mut bits[(byte / 64) as usize];
        if set { *word |= bit } else { *word &= !bit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::random::Random;

    #[test]
    fn equals_a_list_of_booleans() {
        let size = 3 * PAGE;
        let mut random = Random::new(11);
        let mut shadow = Shadow::default();
        let mut naive = vec![false; size as usize];
        for _ in 0..400 {
            let start = random.next() % size;
            let len = [1, 16, 700, PAGE, 2 * PAGE][random.below(5)].min(size - start);
            let range = start as usize..(start + len) as usize;
            match random.below(4) {
                0 => {
                    shadow.clear(start, len);
                    naive[range.clone()].fill(false);
                }
                1 => {
                    let to = random.next() % (size - len + 1);
                    shadow.copy(to, None, start, len);
                    naive.copy_within(range.clone(), to as usize);
                }
                _ => {
                    shadow.set(start, len);
                    naive[range.clone()].fill(true);
                }
            }
            let expected = naive[range.clone()].iter().position(|&b| !b).map(|n| start + n as u64);
            assert_eq!(shadow.first_unset(start, len), expected);
            assert_eq!(shadow.first_unset(0, size), naive.iter().position(|&b| !b).map(|n| n as u64));
        }
    }
}
