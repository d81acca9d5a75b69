//! What every test needs: caches whose granules hold a few rows, tokens that say who they are, and a model made of a vector.

use std::ops::Range;
use std::time::{Duration, Instant};

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, DeviceSlice, DeviceSliceMut, Event, Stream};
use granule_kv::{Error, KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};

pub(crate) use crate::devices::*;

pub(crate) const LAYERS: usize = 3;

/// A bank of so many granules which keeps so many that nobody holds.
pub(crate) fn bank(open: Open<'_>, granules: usize, cached: usize) -> Bank {
    let device = open(granules);
    let size = |count| device.granularity().saturating_mul(count as u64);
    let options = BankOptions::new().budget(size(granules)).cache(size(cached));
    let options = options.patience(Duration::from_secs(10));
    Bank::new(device, options).unwrap()
}

/// Nothing ahead, nothing parked: what is held is what tokens lie in.
pub(crate) fn exact() -> KvOptions {
    KvOptions::new().ahead(0).parked(Bytes::ZERO)
}

/// Nothing ahead, and so many granules parked.
pub(crate) fn parked(bank: &Bank, count: u64) -> KvOptions {
    exact().parked(granules(bank, count))
}

/// Work on a stream that takes so many milliseconds, and when it is done.
pub(crate) fn work(stream: &Stream, millis: u64) -> Event {
    stream.call(move || std::thread::sleep(Duration::from_millis(millis))).unwrap();
    stream.record().unwrap()
}

/// A layout of which a granule holds eight rows of all layers and a bit, whatever a granule is.
pub(crate) fn layout(bank: &Bank, layers_per_row: usize, sinks: usize) -> KvLayout {
    let heads = bank.granule().get() as usize / 2048;
    let shape = KvShape { n_layers: LAYERS, n_kv_heads: heads, head_dim: 10 };
    KvLayout::new(shape, KvType::F32, KvType::F32, Some(layers_per_row), sinks).unwrap()
}

pub(crate) fn cache(bank: &Bank, layers_per_row: usize, sinks: usize, options: KvOptions) -> KvCache {
    KvCache::new(bank, layout(bank, layers_per_row, sinks), options).unwrap()
}

/// Bytes of a mark at the beginning and at the end of each plane; that much of a sink.
const MARK: usize = 16;

/// What stands at one end of a plane of a token's row: who it is, where its key was rotated, where it stands.
fn mark(token: u32, stored: usize, layer: usize, place: usize) -> [u8; MARK] {
    let mut mark = [0; MARK];
    let words = [token, stored as u32, layer as u32, place as u32 + 100];
    for (bytes, word) in mark.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    mark
}

/// Where the marks of a row are.
fn marks(row: &granule_ops::KvRowLayout) -> [usize; 4] {
    let plane = row.elements() * 4;
    [row.k_quants, row.k_quants + plane - MARK, row.v_quants, row.v_quants + plane - MARK]
}

/// Writes what a kernel would: no call of what is tested, so where it is struck it is done again.
fn put(device: &Device, bytes: &[u8], mut to: DeviceSliceMut<'_>) {
    match to.as_host_mut() {
        Some(to) => to.copy_from_slice(bytes),
        None => {
            let once = device.copy(DeviceSlice::from(bytes), to.reborrow());
            once.or_else(|_| device.copy(DeviceSlice::from(bytes), to.reborrow())).unwrap();
        }
    }
}

fn get(device: &Device, from: DeviceSlice<'_>) -> [u8; MARK] {
    let mut bytes = [0; MARK];
    // What is looked at is no call of what is tested: on the host it makes none that could fail.
    match from.as_host() {
        Some(from) => bytes.copy_from_slice(from),
        None => device.copy(from, DeviceSliceMut::from(&mut bytes[..])).unwrap(),
    }
    bytes
}

/// One token as a vector knows it: who it is and where it stands, gaps closed, relative to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) at: i64,
}

/// A sequence as a plain vector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model(pub(crate) Vec<Token>);

impl Model {
    pub(crate) fn push(&mut self, id: u32) {
        let at = self.0.last().map_or(0, |last| last.at + 1);
        self.0.push(Token { id, at });
    }

    pub(crate) fn remove(&mut self, tokens: Range<usize>) {
        let closed = tokens.len() as i64;
        let start = tokens.start;
        self.0.drain(tokens);
        self.0[start..].iter_mut().for_each(|token| token.at -= closed);
    }

    pub(crate) fn keep(&mut self, tokens: Range<usize>) {
        self.0 = self.0[tokens].to_vec();
    }

    pub(crate) fn shift(&mut self, tokens: Range<usize>, delta: i32) {
        self.0[tokens].iter_mut().for_each(|token| token.at += i64::from(delta));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Writes what an engine would, into the prepared rows: the marks of these tokens.
fn write(sequence: &mut Sequence, ids: &[u32]) -> Result<(), Error> {
    let (device, position) = (sequence.cache().bank().device().clone(), sequence.position());
    for layer in 0..LAYERS {
        let mut view = sequence.rows_mut(layer)?;
        assert_eq!(view.len(), ids.len());
        let (layout, first) = (*view.layout(), view.row());
        for (index, &id) in ids.iter().enumerate() {
            let start = index * layout.row_stride;
            for (place, at) in marks(&layout).into_iter().enumerate() {
                let to = view.rows().subslice(start + at..start + at + MARK).unwrap();
                put(&device, &mark(id, position + index, layer, place), to);
            }
            let row = first + index;
            if let Some(sinks) = layout.sinks.filter(|sinks| row < sinks.rows) {
                for (place, base) in [(4, sinks.k), (5, sinks.v)] {
                    let at = base + row * layout.elements() * 2;
                    let to = view.sinks().unwrap().subslice(at..at + MARK).unwrap();
                    put(&device, &mark(id, position + index, layer, place), to);
                }
            }
        }
        let seen = sequence.view(layer, sequence.len() + ids.len())?;
        assert_eq!(seen.len(), sequence.len() + ids.len());
    }
    Ok(())
}

/// Appends tokens as an engine does; the model has those that were committed, also where it fails on the way.
pub(crate) fn append(sequence: &mut Sequence, model: &mut Model, ids: &[u32]) -> Result<(), Error> {
    let mut left = ids;
    while !left.is_empty() {
        let n = sequence.prepare(left.len())?;
        assert!(n >= 1 && n <= left.len());
        let (these, rest) = left.split_at(n);
        write(sequence, these)?;
        sequence.commit(n)?;
        these.iter().for_each(|&id| model.push(id));
        left = rest;
    }
    Ok(())
}

/// Asserts that the sequence holds exactly these tokens, in every layer, rotated where it says and standing where they should.
pub(crate) fn assert_holds(sequence: &Sequence, model: &Model) {
    assert_eq!(sequence.len(), model.len());
    let device = sequence.cache().bank().device();
    let segments = sequence.segments();
    // Where each token was stored, and where it stands now.
    let stored: Vec<(usize, i64)> = segments
        .iter()
        .flat_map(|segment| {
            (0..segment.len)
                .map(|i| (segment.stored + i, (segment.stored + i) as i64 + i64::from(segment.turn)))
        })
        .collect();
    if let (Some(last), Some(&(stored_last, now_last))) = (model.0.last(), stored.last()) {
        assert_eq!(sequence.position(), stored_last + 1);
        for (token, (_, now)) in model.0.iter().zip(&stored) {
            assert_eq!(now_last - now, last.at - token.at, "where token {} stands", token.id);
        }
    }
    let mut rows: Vec<Range<usize>> = segments.iter().map(|segment| segment.rows()).collect();
    rows.sort_by_key(|rows| rows.start);
    assert!(rows.windows(2).all(|pair| pair[0].end <= pair[1].start), "{rows:?} overlap");
    for layer in 0..LAYERS {
        let view = sequence.view(layer, model.len()).unwrap();
        let layout = *view.layout();
        let mut tokens = model.0.iter().zip(&stored);
        for segment in view.segments() {
            for index in 0..segment.len {
                let (token, &(stored, _)) = tokens.next().unwrap();
                for (place, at) in marks(&layout).into_iter().enumerate() {
                    let start = index * layout.row_stride + at;
                    let found = get(device, segment.rows.subslice(start..start + MARK).unwrap());
                    assert_eq!(
                        found,
                        mark(token.id, stored, layer, place),
                        "token {} of layer {layer}",
                        token.id
                    );
                }
                let row = segment.row + index;
                if let Some(sinks) = layout.sinks.filter(|sinks| row < sinks.rows) {
                    for (place, base) in [(4, sinks.k), (5, sinks.v)] {
                        let at = base + row * layout.elements() * 2;
                        let found = get(device, view.sinks().unwrap().subslice(at..at + MARK).unwrap());
                        assert_eq!(
                            found,
                            mark(token.id, stored, layer, place),
                            "the sink of token {}",
                            token.id
                        );
                    }
                }
            }
        }
        assert_eq!(tokens.next(), None);
    }
}

/// The numbers of a cache's report beside the same ones made from what its sequences, the bank and the device say.
fn report<'a>(cache: &KvCache, sequences: impl Iterator<Item = &'a Sequence> + Clone) -> [(u64, u64); 4] {
    let memory = cache.memory();
    let bank = cache.bank().stats();
    let alone: u64 = sequences.clone().map(|s| s.memory().held.get() - s.memory().shared.get()).sum();
    let used: u64 = sequences.map(|s| s.memory().used.get()).sum();
    let live = cache.bank().device().live().granules as u64 * bank.granule.get();
    [
        (memory.held.get(), bank.held.get()),
        (memory.held.get() - memory.shared.get() - cache.stats().parked.get(), alone),
        (memory.used.get(), used),
        (live, bank.held.get() + bank.cached.get()),
    ]
}

pub(crate) fn is_reported<'a>(
    cache: &KvCache,
    sequences: impl Iterator<Item = &'a Sequence> + Clone,
) -> bool {
    report(cache, sequences).iter().all(|(a, b)| a == b)
}

pub(crate) fn assert_reported<'a>(cache: &KvCache, sequences: impl Iterator<Item = &'a Sequence> + Clone) {
    for (index, (a, b)) in report(cache, sequences).into_iter().enumerate() {
        assert_eq!(a, b, "number {index} of the report");
    }
    let bank = cache.bank().stats();
    assert!(bank.held.get() + bank.cached.get() <= bank.budget.get());
}

/// Waits until something is so, a few seconds at most.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(Duration::from_micros(100));
    }
}

pub(crate) fn granules(bank: &Bank, count: u64) -> Bytes {
    bank.granule().saturating_mul(count)
}
