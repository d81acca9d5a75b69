//! The bytes of a state file: numbers to bytes and back, and what makes them trusted. Pure; the ruler stands in `state`.

use granule_quant::DType;

use super::error::Part;
use crate::{Identity, KvLayout, KvShape, KvType, Segment};

pub(super) const MAGIC: [u8; 8] = *b"\x89GRANKV\n";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER: usize = 48;
/// Bytes of the rows under one checksum; the last chunk may have fewer.
pub(super) const CHUNK: usize = 64 << 10;

/// Why bytes are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Magic,
    Version(u32),
    Cut(u64),
    Damaged(Part),
}

/// What a file says of itself in its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) contents_len: u64,
    pub(super) data_len: u64,
    pub(super) contents_sum: u32,
    pub(super) table_sum: u32,
}

/// What is in a file, besides the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) shape: KvShape,
    pub(super) k: KvType,
    pub(super) v: KvType,
    /// How many first rows are kept in f16 once more.
    pub(super) sinks: usize,
    pub(super) identity: Identity,
    pub(super) sequences: Vec<Saved>,
}

/// One sequence in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) extra: Vec<u8>,
    pub(super) tokens: Vec<u32>,
    pub(super) segments: Vec<Run>,
}

impl Saved {
    /// Whether those of one layer's `count` sinks (keys of each, then values) that no token lies in are zero, as a file has them:
    /// nothing else would tell what they are.
    pub(super) fn empty_sinks_are_zero(&self, count: usize, sinks: &[u8]) -> bool {
        let has_token = |sink| self.segments.iter().any(|run| sink >= run.row && sink - run.row < run.len);
        let mut rows = sinks.chunks_exact((sinks.len() / (2 * count).max(1)).max(1)).enumerate();
        rows.all(|(i, row)| has_token(i % count.max(1)) || row.iter().all(|&byte| byte == 0))
    }
}

/// A run of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Which sink its first row is; the count of sinks where it is none.
    pub(super) row: usize,
    /// Tokens, at least 1.
    pub(super) len: usize,
    /// The position that the first one was stored at.
    pub(super) stored: usize,
    /// As in a sequence's segment.
    pub(super) turn: i32,
}

impl Run {
    pub(super) fn of(segment: &Segment) -> Run {
        let Segment { row, len, stored, turn } = *segment;
        Run { row, len, stored, turn }
    }

    pub(super) fn segment(&self) -> Segment {
        let Run { row, len, stored, turn } = *self;
        Segment { row, len, stored, turn }
    }
}

/// Brings segments into the one form that a file has: rows that are no sinks lose their number, and what then goes on where
/// the one before ended is one run with it.
pub(super) fn canonical(segments: impl Iterator<Item = Run>, sinks: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for mut run in segments.filter(|run| run.len > 0) {
        run.row = run.row.min(sinks);
        match runs.last_mut() {
            Some(last)
                if last.turn == run.turn
                    && last.stored + last.len == run.stored
                    && (last.row + last.len).min(sinks) == run.row =>
            {
                last.len += run.len;
            }
            _ => runs.push(run),
        }
    }
    runs
}

/// What one layer has of each token, and besides of the sinks of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerBytes {
    pub(super) row: usize,
    pub(super) sinks: usize,
}

impl LayerBytes {
    /// How many rows are copied at a time: about a chunk.
    pub(super) fn at_once(self, tokens: usize) -> usize {
        (CHUNK / self.row.max(1)).min(tokens).max(1)
    }

    pub(super) fn of(layout: &KvLayout) -> Option<LayerBytes> {
        Some(LayerBytes { row: layout.canonical_bytes().ok()?, sinks: layout.sink_bytes() })
    }

    /// Bytes of so many layers of a sequence.
    pub(super) fn all(self, layers: usize, tokens: usize) -> Option<u64> {
        let layer = self.row.checked_mul(tokens)?.checked_add(self.sinks)?;
        u64::try_from(layer.checked_mul(layers)?).ok()
    }
}

pub(super) fn sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

impl Header {
    pub(super) fn chunks(&self) -> u64 {
        self.data_len.div_ceil(CHUNK as u64)
    }

    /// How long the file is; `None` beyond what can be counted.
    pub(super) fn file_len(&self) -> Option<u64> {
        let table = self.chunks().checked_mul(4)?;
        (HEADER as u64).checked_add(self.contents_len)?.checked_add(self.data_len)?.checked_add(table)
    }

    pub(super) fn write(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.contents_sum.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file_len().unwrap_or(u64::MAX).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.contents_len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data_len.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.table_sum.to_le_bytes());
        let own = sum(&bytes[..44]);
        bytes[44..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Reads the header of a file of `bytes`, and holds the file's length against it.
    pub(super) fn read(bytes: &[u8]) -> Result<Header, Bad> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Bad::Magic);
        }
        let mut reader = Reader(bytes.get(8..).unwrap_or_default());
        let found = bytes.len() as u64;
        let version = reader.u32().ok_or(Bad::Cut(HEADER as u64))?;
        if version != VERSION {
            return Err(Bad::Version(version));
        }
        let header = bytes.get(..HEADER).ok_or(Bad::Cut(HEADER as u64))?;
        let damaged = Bad::Damaged(Part::Header);
        let (Some(contents_sum), Some(len), Some(contents_len), Some(data_len), Some(table_sum), Some(own)) =
            (reader.u32(), reader.u64(), reader.u64(), reader.u64(), reader.u32(), reader.u32())
        else {
            return Err(damaged);
        };
        let this = Header { contents_len, data_len, contents_sum, table_sum };
        if sum(&header[..44]) != own || this.file_len() != Some(len) {
            return Err(damaged);
        }
        match found.cmp(&len) {
            std::cmp::Ordering::Less => Err(Bad::Cut(len)),
            std::cmp::Ordering::Equal => Ok(this),
            std::cmp::Ordering::Greater => Err(Bad::Damaged(Part::Tail)),
        }
    }
}

/// A file's parts, each held against its checksum.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) contents: Contents,
    /// Where the rows begin.
    pub(super) data_at: usize,
    pub(super) data_len: usize,
    pub(super) table: Vec<u32>,
}

impl Parts {
    /// Verifies all of a file. What is allocated is bounded by the file's own length.
    pub(super) fn read(bytes: &[u8]) -> Result<Parts, Bad> {
        let header = Header::read(bytes)?;
        // The file is as long as the header says, so everything fits into it and into a usize.
        let data_at = HEADER + header.contents_len as usize;
        let (head, rest) = bytes.split_at(data_at);
        let (data, table) = rest.split_at(header.data_len as usize);
        if sum(&head[HEADER..]) != header.contents_sum {
            return Err(Bad::Damaged(Part::Contents));
        }
        if sum(table) != header.table_sum {
            return Err(Bad::Damaged(Part::Table));
        }
        let table: Vec<u32> = table.as_chunks().0.iter().map(|&four| u32::from_le_bytes(four)).collect();
        let wrong = data.chunks(CHUNK).zip(&table).position(|(chunk, &expected)| sum(chunk) != expected);
        if let Some(chunk) = wrong {
            return Err(Bad::Damaged(Part::Chunk(chunk)));
        }
        let contents = Contents::read(&head[HEADER..]).ok_or(Bad::Damaged(Part::Contents))?;
        if contents.data_len() != Some(header.data_len) {
            return Err(Bad::Damaged(Part::Contents));
        }
        Ok(Parts { contents, data_at, data_len: data.len(), table })
    }
}

impl Contents {
    /// `None` where there can be no such cache.
    pub(super) fn layer_bytes(&self) -> Option<LayerBytes> {
        LayerBytes::of(&KvLayout::new(self.shape, self.k, self.v, None, self.sinks).ok()?)
    }

    /// How many bytes of rows the file has before those of sequence `which`.
    pub(super) fn data_before(&self, which: usize) -> Option<u64> {
        let bytes = self.layer_bytes()?;
        self.sequences.iter().take(which).try_fold(0u64, |before, saved| {
            before.checked_add(bytes.all(self.shape.n_layers, saved.tokens.len())?)
        })
    }

    pub(super) fn data_len(&self) -> Option<u64> {
        self.data_before(self.sequences.len())
    }

    /// `None` where something is beyond what a file can count.
    pub(super) fn write(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let KvShape { n_layers, n_kv_heads, head_dim } = self.shape;
        for number in [n_layers, n_kv_heads, head_dim] {
            put(&mut out, number)?;
        }
        out.extend(self.k.dtype().ggml_id().to_le_bytes());
        out.extend(self.v.dtype().ggml_id().to_le_bytes());
        put(&mut out, self.sinks)?;
        for part in self.identity.parts() {
            put_bytes(&mut out, part)?;
        }
        put(&mut out, self.sequences.len())?;
        for saved in &self.sequences {
            put_bytes(&mut out, &saved.extra)?;
            put(&mut out, saved.tokens.len())?;
            out.extend(saved.tokens.iter().flat_map(|token| token.to_le_bytes()));
            put(&mut out, saved.segments.len())?;
            for run in &saved.segments {
                put(&mut out, run.row)?;
                put(&mut out, run.len)?;
                put(&mut out, run.stored)?;
                out.extend(run.turn.to_le_bytes());
            }
        }
        Some(out)
    }

    /// `None` for bytes that `write` does not write.
    fn read(bytes: &[u8]) -> Option<Contents> {
        let mut reader = Reader(bytes);
        let (n_layers, n_kv_heads, head_dim) = (reader.len()?, reader.len()?, reader.len()?);
        let shape = KvShape { n_layers, n_kv_heads, head_dim };
        let (k, v) = (reader.kv_type()?, reader.kv_type()?);
        let sinks = reader.len()?;
        let [model, rope, transform] =
            [reader.bytes()?, reader.bytes()?, reader.bytes()?].map(<[u8]>::to_vec);
        let identity = Identity { model, rope, transform };
        let mut sequences = Vec::new();
        for _ in 0..reader.len()? {
            let extra = reader.bytes()?.to_vec();
            let tokens = reader.len()?;
            let tokens = reader.take(tokens.checked_mul(4)?)?.as_chunks().0;
            let tokens: Vec<u32> = tokens.iter().map(|&four| u32::from_le_bytes(four)).collect();
            let mut segments = Vec::new();
            let mut left = tokens.len();
            for _ in 0..reader.len()? {
                let (row, len, stored) = (reader.len()?, reader.len()?, reader.len()?);
                let run = Run { row, len, stored, turn: i32::from_le_bytes(reader.four()?) };
                left = left.checked_sub(run.len)?;
                segments.push(run);
            }
            // One form only: turns are relative to the last, sinks in order and each at most once.
            let sinks_at =
                segments.iter().filter(|run| run.row < sinks).map(|run| (run.row, run.row + run.len));
            let ends: Vec<_> = sinks_at.collect();
            if left > 0
                || !can_be_counted(&segments)
                || segments.last().is_some_and(|last| last.turn != 0)
                || canonical(segments.iter().copied(), sinks) != segments
                || !ends.is_sorted_by(|before, after| before.1 <= after.0)
            {
                return None;
            }
            sequences.push(Saved { extra, tokens, segments });
        }
        (reader.0.is_empty() && !sequences.is_empty()).then_some(Contents {
            shape,
            k,
            v,
            sinks,
            identity,
            sequences,
        })
    }
}

/// Whether positions and turns can be counted, whichever of the tokens is the last: what is taken can be cut anywhere.
fn can_be_counted(runs: &[Run]) -> bool {
    let fits = |number: i64| number <= i64::from(i32::MAX);
    let turns = || runs.iter().map(|run| i64::from(run.turn));
    let apart = turns().max().unwrap_or(0) - turns().min().unwrap_or(0);
    fits(apart) && runs.iter().all(|run| fits(run.stored as i64 + run.len as i64))
}

fn put(out: &mut Vec<u8>, number: usize) -> Option<()> {
    out.extend(u32::try_from(number).ok()?.to_le_bytes());
    Some(())
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    put(out, bytes.len())?;
    out.extend(bytes);
    Some(())
}

/// Bytes that are left to read. What is longer than that is `None`, before anything is allocated for it.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn four(&mut self) -> Option<[u8; 4]> {
        self.take(4)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.four().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn len(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        self.take(len)
    }

    fn kv_type(&mut self) -> Option<KvType> {
        let dtype: DType = DType::from_ggml_id(self.u32()?)?;
        KvType::ALL.iter().copied().find(|kv_type| kv_type.dtype() == dtype)
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
