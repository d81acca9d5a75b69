//! `Segments`: which rows the tokens of a sequence lie in, and how far each key's rotation is from where its token stands now.
//!
//! Pure arithmetic on lists, no memory: what a sequence does to granules follows from what changes here.
//!
//! ```text
//! after appending 10 tokens        rows 0..10, stored at positions 0..10                        next position 10
//! after removing tokens 4..7       rows 0..4, turn +3    rows 7..10, turn 0                     next position 10
//! after appending 2 more           rows 0..4, turn +3    rows 7..12, turn 0                     next position 12
//! ```
//!
//! A key that was stored keeps its rotation. Rotation is relative: what counts is how far apart a query and a key are. So a
//! hole is closed by counting the tokens *before* it as standing further on (`turn`), and those behind it stay as they are;
//! what is appended next goes on behind them with no turn either. A sliding window over any number of tokens is two segments.

use std::ops::Range;

use crate::Error;

/// A run of tokens that follow one another, at rows that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The physical number of the first one's row.
    pub row: usize,
    /// How many tokens.
    pub len: usize,
    /// The position at which the first one's key was rotated; the others follow.
    pub stored: usize,
    /// How many positions further the tokens stand now than where they were stored.
    pub turn: i32,
}

impl Segment {
    /// Its rows.
    pub fn rows(&self) -> Range<usize> {
        self.row..self.row + self.len
    }

    /// Its tokens from the `from`-th on, `len` of them.
    fn part(&self, from: usize, len: usize) -> Segment {
        Segment { row: self.row + from, len, stored: self.stored + from, ..*self }
    }
}

/// The segments of a sequence, in the order of its tokens. Invariants: no row is in two of them; none is empty; the last one
/// has turn 0; two neighbours that could be one are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    list: Vec<Segment>,
    len: usize,
}

impl Segments {
    /// How many tokens.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.list
    }

    /// One past the last row that a token lies in.
    pub(crate) fn rows_end(&self) -> usize {
        self.list.iter().map(|segment| segment.rows().end).max().unwrap_or(0)
    }

    /// The position of the next token.
    pub(crate) fn position(&self) -> usize {
        self.list.last().map_or(0, |last| last.stored + last.len)
    }

    /// `n` tokens more, at rows from `row` on, stored at the next positions.
    pub(crate) fn push(&mut self, row: usize, n: usize) {
        let stored = self.position();
        self.len += n;
        match self.list.last_mut() {
            Some(last) if last.row + last.len == row => last.len += n,
            _ if n > 0 => self.list.push(Segment { row, len: n, stored, turn: 0 }),
            _ => {}
        }
    }

    /// The rows where the next tokens go, out of `rows` in all: behind the last one as far as nothing is there, else the
    /// longest run of free ones. Rows below `sinks` are only used for the first tokens of all.
    pub(crate) fn room(&self, rows: usize, sinks: usize) -> Range<usize> {
        let Some(last) = self.list.last() else { return 0..rows };
        let mut taken: Vec<Range<usize>> = self.list.iter().map(Segment::rows).collect();
        taken.push(0..sinks.min(last.rows().end));
        taken.push(rows..rows);
        taken.sort_by_key(|rows| rows.start);
        let mut longest = 0..0;
        let mut end = 0;
        for next in taken {
            if end == last.rows().end && next.start > end {
                return end..next.start;
            }
            if next.start.saturating_sub(end) > longest.len() {
                longest = end..next.start;
            }
            end = end.max(next.end);
        }
        longest
    }

    /// The tokens of this range on their own.
    ///
    /// # Errors
    /// [`Error::NoSuchTokens`], [`Error::Positions`].
    pub(crate) fn part(&self, tokens: Range<usize>) -> Result<Segments, Error> {
        self.check(&tokens)?;
        let mut list = Vec::new();
        self.pieces(tokens, &mut list);
        Segments::of(list)
    }

    /// The tokens without those of this range.
    ///
    /// # Errors
    /// [`Error::NoSuchTokens`], [`Error::Positions`].
    pub(crate) fn without(&self, tokens: Range<usize>) -> Result<Segments, Error> {
        self.check(&tokens)?;
        let mut list = Vec::new();
        self.pieces(0..tokens.start, &mut list);
        if tokens.end < self.len {
            turn(&mut list, i32::try_from(tokens.len()).ok())?;
            self.pieces(tokens.end..self.len, &mut list);
        }
        Segments::of(list)
    }

    /// The same tokens, those of this range `delta` positions further on than they were. Tokens that are appended go on behind
    /// the last one.
    ///
    /// # Errors
    /// [`Error::NoSuchTokens`], [`Error::Positions`].
    pub(crate) fn shifted(&self, tokens: Range<usize>, delta: i32) -> Result<Segments, Error> {
        self.check(&tokens)?;
        let (mut list, mut middle) = (Vec::new(), Vec::new());
        self.pieces(0..tokens.start, &mut list);
        self.pieces(tokens.clone(), &mut middle);
        turn(&mut middle, Some(delta))?;
        list.append(&mut middle);
        self.pieces(tokens.end..self.len, &mut list);
        Segments::of(list)
    }

    /// The same tokens in other rows: sinks stay where they are, the others follow one another behind them.
    pub(crate) fn packed(list: &[Segment], sinks: usize) -> Result<Segments, Error> {
        let mut next = sinks.min(list.iter().map(|segment| segment.rows().end).max().unwrap_or(0));
        let mut packed = Vec::with_capacity(list.len() + 1);
        for segment in list {
            let in_sinks = sinks.saturating_sub(segment.row).min(segment.len);
            packed.push(segment.part(0, in_sinks));
            packed.push(Segment { row: next, ..segment.part(in_sinks, segment.len - in_sinks) });
            next += segment.len - in_sinks;
        }
        packed.retain(|segment| segment.len > 0);
        Segments::of(packed)
    }

    /// The rows of these tokens, in order.
    pub(crate) fn rows_of(&self, tokens: Range<usize>) -> Result<Vec<Range<usize>>, Error> {
        self.check(&tokens)?;
        let mut list = Vec::new();
        self.pieces(tokens, &mut list);
        Ok(list.iter().map(Segment::rows).collect())
    }

    pub(crate) fn check(&self, tokens: &Range<usize>) -> Result<(), Error> {
        if tokens.start > tokens.end || tokens.end > self.len {
            return Err(Error::NoSuchTokens { tokens: tokens.clone(), len: self.len });
        }
        Ok(())
    }

    /// The pieces of segments that these tokens, which there are, lie in.
    fn pieces(&self, tokens: Range<usize>, into: &mut Vec<Segment>) {
        let mut first = 0;
        for segment in &self.list {
            let (from, to) = (tokens.start.max(first), tokens.end.min(first + segment.len));
            if from < to {
                into.push(segment.part(from - first, to - from));
            }
            first += segment.len;
        }
    }

    /// Restores the invariants: what counts are the turns relative to each other, so the last one's becomes 0.
    fn of(mut list: Vec<Segment>) -> Result<Segments, Error> {
        let last = list.last().map_or(0, |last| last.turn);
        turn(&mut list, last.checked_neg())?;
        list.dedup_by(|next, before| {
            let same = next.turn == before.turn
                && next.row == before.rows().end
                && next.stored == before.stored + before.len;
            if same {
                before.len += next.len;
            }
            same
        });
        let len = list.iter().map(|segment| segment.len).sum();
        Ok(Segments { list, len })
    }
}

/// Has all of them stand `delta` positions further on.
fn turn(list: &mut [Segment], delta: Option<i32>) -> Result<(), Error> {
    for segment in list {
        let turned = delta.and_then(|delta| segment.turn.checked_add(delta));
        segment.turn = turned.ok_or(Error::Positions { position: segment.stored })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One token: its row, where it was stored, where it stands.
    type Token = (usize, usize, i64);

    fn tokens(segments: &Segments) -> Vec<Token> {
        let of = |segment: &Segment| {
            let segment = *segment;
            (0..segment.len).map(move |i| {
                let stored = segment.stored + i;
                (segment.row + i, stored, stored as i64 + i64::from(segment.turn))
            })
        };
        segments.as_slice().iter().flat_map(of).collect()
    }

    /// Where tokens stand counts relative to the last one.
    fn relative(mut list: Vec<Token>) -> Vec<Token> {
        let last = list.last().map_or(0, |last| last.2);
        list.iter_mut().for_each(|token| token.2 -= last);
        list
    }

    fn check(segments: &Segments, model: &[Token]) -> Result<(), TestCaseError> {
        prop_assert_eq!(relative(tokens(segments)), relative(model.to_vec()));
        prop_assert_eq!(segments.len(), model.len());
        prop_assert_eq!(segments.position(), model.last().map_or(0, |last| last.1 + 1));
        let list = segments.as_slice();
        prop_assert!(list.iter().all(|segment| segment.len > 0));
        prop_assert_eq!(list.last().map_or(0, |last| last.turn), 0);
        // As few as can be.
        let joints = model.windows(2).filter(|pair| {
            let (a, b) = (pair[0], pair[1]);
            !(b.0 == a.0 + 1 && b.1 == a.1 + 1 && b.2 == a.2 + 1)
        });
        prop_assert_eq!(list.len(), joints.count() + usize::from(!model.is_empty()));
        Ok(())
    }

    const ROWS: usize = 44;
    const SINKS: usize = 3;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]
        /// Any operations are what they are on a list of tokens; rows are never in two places, and are used again.
        #[test]
        fn like_a_list(ops in proptest::collection::vec((0..6u8, 0..=100usize, 0..=100usize, -9..9i32), 1..40)) {
            let mut segments = Segments::default();
            let mut model: Vec<Token> = Vec::new();
            for (op, a, b, delta) in ops {
                let len = model.len();
                let span = a.min(b) * len / 100..a.max(b) * len / 100;
                match op {
                    0 | 1 => {
                        let room = segments.room(ROWS, SINKS);
                        let taken = |row: usize| model.iter().any(|token| token.0 == row);
                        prop_assert!(!room.clone().any(taken), "{room:?}");
                        let is_free = |row: usize| (SINKS..ROWS).contains(&row) && !taken(row);
                        prop_assert_eq!(room.is_empty(), !model.is_empty() && !(0..ROWS).any(is_free), "{:?}", &room);
                        let last = model.last().map(|last| last.0);
                        if let Some(next) = last.map(|row| row + 1).filter(|&row| row >= SINKS && is_free(row)) {
                            prop_assert_eq!(room.start, next);
                            prop_assert!(!is_free(room.end));
                        }
                        let n = (a / 9).min(room.len());
                        for row in room.start..room.start + n {
                            let last = model.last().copied();
                            model.push((row, last.map_or(0, |l| l.1 + 1), last.map_or(0, |l| l.2 + 1)));
                        }
                        segments.push(room.start, n);
                    }
                    2 => {
                        segments = segments.without(span.clone()).unwrap();
                        model[span.end..].iter_mut().for_each(|token| token.2 -= span.len() as i64);
                        model.drain(span);
                    }
                    3 => {
                        segments = segments.part(span.clone()).unwrap();
                        model = model[span].to_vec();
                    }
                    4 => {
                        segments = segments.shifted(span.clone(), delta).unwrap();
                        model[span].iter_mut().for_each(|token| token.2 += i64::from(delta));
                    }
                    _ => {
                        let rows: Vec<usize> = segments.rows_of(span.clone()).unwrap().into_iter().flatten().collect();
                        let expected: Vec<usize> = model[span].iter().map(|token| token.0).collect();
                        prop_assert_eq!(rows, expected);
                        segments = Segments::packed(segments.as_slice(), SINKS).unwrap();
                        // Sinks stay, the others follow one another.
                        let first = SINKS.min(model.iter().map(|token| token.0 + 1).max().unwrap_or(0));
                        let others = model.iter_mut().filter(|token| token.0 >= SINKS);
                        others.zip(first..).for_each(|(token, row)| token.0 = row);
                    }
                }
                check(&segments, &model)?;
            }
            let len = segments.len();
            let beyond = Err(Error::NoSuchTokens { tokens: len..len + 1, len }).map_err(|error| error.to_string());
            prop_assert_eq!(segments.part(len..len + 1).map_err(|error| error.to_string()), beyond);
        }
    }

    #[test]
    fn turns_are_counted_in_32_bits() {
        let mut segments = Segments::default();
        segments.push(0, 10);
        let far = segments.shifted(0..5, i32::MAX).unwrap();
        assert!(matches!(far.shifted(0..1, 1), Err(Error::Positions { position: 0 })));
        assert!(matches!(far.without(7..8), Err(Error::Positions { .. })));
        assert_eq!(far.without(0..5).unwrap().as_slice()[0].turn, 0);
        assert!(segments.shifted(5..10, i32::MIN).is_err(), "those before cannot be turned so far on");
    }
}
