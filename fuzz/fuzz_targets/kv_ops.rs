//! Operations of the fuzzer's making on the sequences of a small cache, with faults in the device's calls, against plain vectors
//! of tokens: every sequence is its vector, whatever is done to the others; a call that fails has changed nothing; prefixes that
//! are found are the tokens asked for; a state that is restored is what was saved; and everything goes back.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use granule_bank::{Bank, BankOptions, Owner};
use granule_device::{Bytes, Device, FaultGuard, FaultPlan, HostOptions, LiveCounts};
use granule_kv::state::{SaveSequence, StateFile, save};
use granule_kv::{
    Error, Identity, KvCache, KvLayout, KvOptions, KvShape, KvType, PrefixCache, PrefixKey, PrefixOptions,
    Sequence,
};
use granule_ops::KvRowLayout;
use libfuzzer_sys::fuzz_target;

const GRANULE: u64 = 4 << 10;
const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 32 };
const N_CTX: usize = 120;

static PATH: LazyLock<std::path::PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("granule-fuzz-ops-{}", std::process::id())));

#[derive(Arbitrary, Debug)]
enum Step {
    New,
    Append { which: u8, n: u8, token: u8 },
    Truncate { which: u8, to: u8 },
    Remove { which: u8, from: u8, n: u8 },
    Keep { which: u8, from: u8, n: u8 },
    Slide { which: u8, first: u8, last: u8 },
    Shift { which: u8, from: u8, n: u8, delta: i8 },
    Fork { which: u8 },
    Copy { which: u8, from: u8, n: u8 },
    Clear { which: u8 },
    Trim { which: u8 },
    Drop { which: u8 },
    Remember { which: u8, n: u8 },
    Recall { which: u8, n: u8, token: u8 },
    Forget,
    TrimCache,
    /// Somebody else takes memory, and gives it back.
    Press { granules: u8 },
    SaveAndRestore { which: u8, layers_per_row: u8 },
    Fault { nth: u8, lasting: bool },
    NoFault,
}

#[derive(Arbitrary, Debug)]
struct Input {
    layers_per_row: u8,
    sinks: bool,
    ahead: u8,
    parked: u8,
    granules: u8,
    steps: Vec<Step>,
}

/// A token as the model has it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    token: u32,
    /// What its row was filled with: another one for each history.
    mark: u64,
    stored: i64,
    turn: i64,
    /// Its row is among the first: it is a sink, where there are any.
    row: Option<usize>,
}

struct Mine {
    sequence: Sequence,
    tokens: Vec<Token>,
    /// How many first tokens were computed in sight of those before them and no others.
    pure: usize,
}

fn mix(a: u64, b: u64) -> u64 {
    let z = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 29)
}

fn fill(mark: u64, layer: usize, plane: usize, to: &mut [u8]) {
    let mut state = mix(mark, (layer * 8 + plane) as u64);
    for part in to.chunks_mut(8) {
        state = mix(state, 1);
        part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
    }
}

fn planes(row: &KvRowLayout) -> [(usize, usize); 4] {
    let bytes = |dtype| granule_quant::planar_bytes(dtype, row.elements()).unwrap();
    let (k, v) = (bytes(row.k_type), bytes(row.v_type));
    [(row.k_quants, k.quants), (row.k_scales, k.scales), (row.v_quants, v.quants), (row.v_scales, v.scales)]
}

fn sink_planes(layout: &KvRowLayout, row: usize) -> [std::ops::Range<usize>; 2] {
    let (sinks, each) = (layout.sinks.unwrap(), layout.elements() * 2);
    [sinks.k, sinks.v].map(|at| at + row * each..at + (row + 1) * each)
}

/// Has the last token stand where it was stored, and all others as far from it as they are.
fn normal(mut tokens: Vec<Token>) -> Vec<Token> {
    let last = tokens.last().map_or(0, |last| last.turn);
    tokens.iter_mut().for_each(|token| token.turn -= last);
    tokens
}

impl Mine {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Appends as an engine does: in as many steps as the cache wants.
    fn append(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let mut left = tokens;
        while !left.is_empty() {
            let n = self.sequence.prepare(left.len())?;
            assert!(n >= 1 && n <= left.len());
            let position = self.sequence.position();
            let mut new: Vec<Token> = Vec::new();
            for (i, &token) in left[..n].iter().enumerate() {
                let before = new.last().or(self.tokens.last()).map_or(1, |before| before.mark);
                let stored = (position + i) as i64;
                // What came before is in the mark, removed tokens that it was computed in sight of too.
                new.push(Token { token, mark: mix(before, mix(u64::from(token), stored as u64)), stored, turn: 0, row: None });
            }
            for layer in 0..SHAPE.n_layers {
                let mut view = self.sequence.rows_mut(layer)?;
                let (layout, first) = (*view.layout(), view.row());
                for (i, token) in new.iter_mut().enumerate() {
                    let mut rows = view.rows();
                    let row = &mut rows.as_host_mut().unwrap()[i * layout.row_stride..];
                    for (plane, (at, len)) in planes(&layout).into_iter().enumerate() {
                        fill(token.mark, layer, plane, &mut row[at..at + len]);
                    }
                    if layout.sinks.is_some_and(|sinks| first + i < sinks.rows) {
                        token.row = Some(first + i);
                        let mut sinks = view.sinks().unwrap();
                        for (plane, span) in [4, 5].into_iter().zip(sink_planes(&layout, first + i)) {
                            fill(token.mark, layer, plane, &mut sinks.as_host_mut().unwrap()[span]);
                        }
                    }
                }
            }
            self.sequence.commit(n)?;
            if self.pure == self.len() && (self.pure == 0 || self.tokens.iter().all(|token| token.turn == 0)) {
                self.pure += n;
            }
            self.tokens.extend(new);
            left = &left[n..];
        }
        Ok(())
    }

    /// The sequence is its vector.
    fn check(&self) {
        let Mine { sequence, tokens, .. } = self;
        assert_eq!(sequence.len(), tokens.len());
        assert_eq!(sequence.position() as i64, tokens.last().map_or(0, |last| last.stored + 1));
        let stored = sequence.segments().iter().flat_map(|segment| {
            (0..segment.len).map(|i| ((segment.stored + i) as i64, i64::from(segment.turn)))
        });
        assert!(stored.eq(tokens.iter().map(|token| (token.stored, token.turn))), "positions");
        let mut bytes = [0; 256];
        for layer in 0..SHAPE.n_layers {
            let view = sequence.view(layer, tokens.len()).unwrap();
            let layout = *view.layout();
            let mut left = tokens.iter();
            for segment in view.segments() {
                let rows = segment.rows.as_host().unwrap().chunks_exact(layout.row_stride);
                for (number, row) in (segment.row..).zip(rows) {
                    let token = left.next().unwrap();
                    assert_eq!(token.turn, i64::from(segment.turn));
                    for (plane, (at, len)) in planes(&layout).into_iter().enumerate() {
                        fill(token.mark, layer, plane, &mut bytes[..len]);
                        assert!(row[at..at + len] == bytes[..len], "token {token:?} of layer {layer}");
                    }
                    let sink = layout.sinks.filter(|sinks| number < sinks.rows).map(|_| number);
                    assert_eq!(sink, token.row);
                    if let Some(number) = sink {
                        for (plane, span) in [4, 5].into_iter().zip(sink_planes(&layout, number)) {
                            fill(token.mark, layer, plane, &mut bytes[..span.len()]);
                            assert!(view.sinks().unwrap().as_host().unwrap()[span.clone()] == bytes[..span.len()]);
                        }
                    }
                }
            }
            assert!(left.next().is_none());
        }
    }
}

struct World {
    bank: Bank,
    cache: KvCache,
    layout: KvLayout,
    prefixes: PrefixCache,
    key: PrefixKey,
    remembered: Vec<Vec<Token>>,
    live: Vec<Mine>,
    fault: Option<FaultGuard>,
}

fn layout(layers_per_row: u8, sinks: bool) -> KvLayout {
    let layers_per_row = 1 + usize::from(layers_per_row) % SHAPE.n_layers;
    KvLayout::new(SHAPE, KvType::Q8_0, KvType::Q4_0, Some(layers_per_row), if sinks { 4 } else { 0 }).unwrap()
}

impl World {
    fn new(input: &Input) -> World {
        let granules = 8 + u64::from(input.granules) % 120;
        let capacity = Bytes::new(GRANULE * granules);
        let options = HostOptions::new().granule(Bytes::new(GRANULE)).capacity(capacity);
        let bank = Bank::new(Device::host_with(options).unwrap(), BankOptions::new()).unwrap();
        let options = KvOptions::new()
            .ahead(usize::from(input.ahead % 3) * 20)
            .parked(Bytes::new(GRANULE * u64::from(input.parked % 30)));
        let layout = layout(input.layers_per_row, input.sinks);
        let cache = KvCache::new(&bank, layout, options).unwrap();
        let prefixes = PrefixCache::new(&bank, PrefixOptions::new().entries(4).least(1));
        let key = PrefixKey::new(&Identity::default(), &layout, N_CTX);
        World { bank, cache, layout, prefixes, key, remembered: Vec::new(), live: Vec::new(), fault: None }
    }

    fn at(&self, which: u8) -> Option<usize> {
        usize::from(which).checked_rem(self.live.len())
    }

    fn one(&mut self, which: u8) -> Option<&mut Mine> {
        let at = self.at(which)?;
        self.live.get_mut(at)
    }

    /// A range of the tokens of a sequence.
    fn span(&self, which: u8, from: u8, n: u8) -> std::ops::Range<usize> {
        let len = self.at(which).map_or(0, |at| self.live[at].len());
        let from = usize::from(from) % (len + 1);
        from..(from + usize::from(n)).min(len)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::New => {
                if self.live.len() < 5
                    && let Ok(sequence) = self.cache.sequence(N_CTX)
                {
                    self.live.push(Mine { sequence, tokens: Vec::new(), pure: 0 });
                }
            }
            Step::Append { which, n, token } => {
                if let Some(one) = self.one(which) {
                    let n = (1 + usize::from(n) % 40).min(N_CTX - one.len());
                    let _ = one.append(&vec![u32::from(token % 3); n]);
                }
            }
            Step::Truncate { which, to } => {
                if let Some(one) = self.one(which) {
                    let to = usize::from(to) % (one.len() + 1);
                    one.sequence.truncate(to).unwrap();
                    one.tokens = normal(one.tokens[..to].to_vec());
                    one.pure = one.pure.min(to);
                }
            }
            Step::Remove { which, from, n } => {
                let span = self.span(which, from, n);
                if let Some(one) = self.one(which) {
                    one.sequence.remove(span.clone()).unwrap();
                    one.tokens[..span.start].iter_mut().for_each(|token| token.turn += span.len() as i64);
                    one.tokens.drain(span.clone());
                    one.tokens = normal(std::mem::take(&mut one.tokens));
                    if !span.is_empty() {
                        one.pure = one.pure.min(span.start);
                    }
                }
            }
            Step::Keep { which, from, n } => {
                let span = self.span(which, from, n);
                if let Some(one) = self.one(which) {
                    one.sequence.keep(span.clone()).unwrap();
                    one.tokens = normal(one.tokens[span.clone()].to_vec());
                    one.pure = if span.start == 0 { one.pure.min(span.end) } else { 0 };
                }
            }
            Step::Slide { which, first, last } => {
                if let Some(one) = self.one(which) {
                    let (first, last) = (usize::from(first) % 8, usize::from(last));
                    one.sequence.slide(first, last).unwrap();
                    let end = one.len().saturating_sub(last);
                    if first < end {
                        one.tokens[..first].iter_mut().for_each(|token| token.turn += (end - first) as i64);
                        one.tokens.drain(first..end);
                        one.tokens = normal(std::mem::take(&mut one.tokens));
                        one.pure = one.pure.min(first);
                    }
                }
            }
            Step::Shift { which, from, n, delta } => {
                let span = self.span(which, from, n);
                if let Some(one) = self.one(which) {
                    one.sequence.shift(span.clone(), i32::from(delta)).unwrap();
                    one.tokens[span].iter_mut().for_each(|token| token.turn += i64::from(delta));
                    one.tokens = normal(std::mem::take(&mut one.tokens));
                }
            }
            Step::Fork { which } => {
                if self.live.len() < 5
                    && let Some(one) = self.one(which)
                    && let Ok(sequence) = one.sequence.fork()
                {
                    let fork = Mine { sequence, tokens: one.tokens.clone(), pure: one.pure };
                    self.live.push(fork);
                }
            }
            Step::Copy { which, from, n } => {
                let span = self.span(which, from, n);
                if self.live.len() < 5
                    && let Some(one) = self.one(which)
                    && let Ok(sequence) = one.sequence.copy(span.clone())
                {
                    let pure = if span.start == 0 { one.pure.min(span.end) } else { 0 };
                    let copy = Mine { sequence, tokens: normal(one.tokens[span].to_vec()), pure };
                    self.live.push(copy);
                }
            }
            Step::Clear { which } => {
                if let Some(one) = self.one(which) {
                    one.sequence.clear();
                    (one.tokens, one.pure) = (Vec::new(), 0);
                }
            }
            Step::Trim { which } => {
                if let Some(one) = self.one(which) {
                    let _ = one.sequence.trim();
                }
            }
            Step::Drop { which } => {
                if let Some(at) = self.at(which) {
                    self.live.swap_remove(at);
                }
            }
            Step::Remember { which, n } => self.remember(which, n),
            Step::Recall { which, n, token } => self.recall(which, n, token),
            Step::Forget => {
                self.prefixes.clear();
            }
            Step::TrimCache => {
                self.cache.trim();
            }
            Step::Press { granules } => drop(self.bank.take(&Owner::new("somebody"), usize::from(granules))),
            Step::SaveAndRestore { which, layers_per_row } => self.save_and_restore(which, layers_per_row),
            Step::Fault { nth, lasting } => {
                self.fault = None;
                let nth = 1 + u64::from(nth % 20);
                let plan = if lasting { FaultPlan::from_nth(nth) } else { FaultPlan::nth(nth) };
                self.fault = Some(self.bank.device().inject_fault(plan));
            }
            Step::NoFault => self.fault = None,
        }
    }

    fn remember(&mut self, which: u8, n: u8) {
        let (prefixes, key) = (self.prefixes.clone(), self.key.clone());
        let Some(one) = self.one(which) else { return };
        let n = usize::from(n) % (one.len() + 1);
        let names: Vec<u32> = one.tokens[..n].iter().map(|token| token.token).collect();
        let known = one.tokens[..n.min(one.pure)].to_vec();
        match prefixes.insert(&key, &names, &mut one.sequence) {
            // Shifted tokens may be left out though they are right.
            Ok(kept) => assert!(!kept || known.len() == n, "{n} remembered, {} pure", known.len()),
            Err(_) => assert!(self.fault.is_some()),
        }
        self.remembered.push(known);
    }

    fn recall(&mut self, which: u8, n: u8, token: u8) {
        // As another sequence begins, and then something else.
        let Some(at) = self.at(which) else { return };
        let n = usize::from(n) % (self.live[at].len() + 1);
        let mut names: Vec<u32> = self.live[at].tokens[..n].iter().map(|token| token.token).collect();
        names.extend([u32::from(token % 3); 3]);
        let Ok(Some(hit)) = self.prefixes.lookup(&self.key, &names) else { return };
        let found = self.remembered.iter().find(|known| {
            known.len() >= hit.matched && known.iter().zip(&names).take(hit.matched).all(|(known, name)| known.token == *name)
        });
        let tokens = found.expect("found, and never remembered")[..hit.matched].to_vec();
        let mine = Mine {
            sequence: hit.sequence,
            tokens: tokens.into_iter().map(|token| Token { turn: 0, ..token }).collect(),
            pure: hit.matched,
        };
        mine.check();
        if self.live.len() < 5 {
            self.live.push(mine);
        }
    }

    fn save_and_restore(&mut self, which: u8, layers_per_row: u8) {
        let Some(at) = self.at(which) else { return };
        let one = &self.live[at];
        let names: Vec<u32> = one.tokens.iter().map(|token| token.token).collect();
        let saved = SaveSequence { sequence: &one.sequence, further: &[], heads: &[], tokens: &names, extra: b"" };
        if save(&*PATH, &Identity::default(), &[saved]).is_err() {
            assert!(self.fault.is_some());
            return;
        }
        let layout = layout(layers_per_row, self.layout.sinks() > 0);
        let options = KvOptions::new().ahead(0).parked(Bytes::ZERO);
        let Ok(other) = KvCache::new(&self.bank, layout, options) else { return };
        let file = StateFile::open(&*PATH).unwrap();
        assert_eq!(file.tokens(0).unwrap(), names);
        let Ok(sequence) = file.restore(0, &other, one.len() + 1, &Identity::default()) else { return };
        Mine { sequence, tokens: one.tokens.clone(), pure: 0 }.check();
    }

    /// Everything goes back, whatever happened.
    fn end(mut self) {
        self.fault = None;
        self.live.iter().for_each(Mine::check);
        let World { bank, cache, prefixes, live, .. } = self;
        drop(live);
        prefixes.clear();
        assert_eq!(prefixes.stats().entries, 0);
        drop(prefixes);
        cache.trim();
        drop(cache);
        bank.drain();
        assert_eq!(bank.stats().held, Bytes::ZERO);
        let device = bank.device().clone();
        drop(bank);
        let until = Instant::now() + Duration::from_secs(5);
        while device.live() != LiveCounts::default() {
            assert!(Instant::now() < until, "left behind: {:?}", device.live());
            std::thread::yield_now();
        }
    }
}

fuzz_target!(|input: Input| {
    let mut world = World::new(&input);
    for step in input.steps.iter().take(100) {
        world.step(step);
        for one in &world.live {
            one.check();
        }
        let stats = world.bank.stats();
        assert!(stats.held <= stats.budget);
    }
    world.end();
});
