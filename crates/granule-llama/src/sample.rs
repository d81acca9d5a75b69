//! Sampling: one token from a model's logits.
//!
//! The steps are llama.cpp's, in this order: repetition penalty, top-k, top-p, min-p, temperature, draw. Each sees
//! what the one before it left. The draw comes from `pcg64` (`rand_pcg::Pcg64`, PCG XSL RR 128/64 of O'Neill, PCG: A
//! Family of Simple Fast Space-Efficient Statistically Good Algorithms, 2014), seeded by `seed_from_u64`: the same
//! logits, options and seed give the same tokens on every machine, up to the last digit of its exponential function.

use crate::error::{Error, Result};
use crate::tokenizer::TokenId;
#[cfg(feature = "cuda")]
use granule_ops::sample::Draw;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// The logits are divided by it before the draw: below 1 the likely becomes likelier. 0 takes the likeliest token
    /// always, the one with the lowest id of equals.
    pub temp: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens until their probabilities sum to `top_p`, above 0 and at most 1; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the likeliest, from 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// Tokens among the last `repeat_last_n` have their logit divided by it where it is positive, multiplied where
    /// it is not. 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens the penalty looks at; 0 turns it off.
    pub repeat_last_n: usize,
    /// Where the generator starts.
    pub seed: u64,
}

impl Default for SamplingOptions {
    /// llama.cpp's defaults.
    fn default() -> Self {
        Self {
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplingOptions {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temp: 0.0, ..Self::default() }
    }

    /// Check every option's range.
    ///
    /// # Errors
    /// [`Error::InvalidSampling`], which names the option.
    pub fn validate(&self) -> Result<()> {
        let check = |option, value: f32, ok: bool, allowed| {
            if ok { Ok(()) } else { Err(Error::InvalidSampling { option, value, allowed }) }
        };
        let Self { temp, top_p, min_p, repeat_penalty, .. } = *self;
        check("temp", temp, temp >= 0.0 && temp.is_finite(), "0 or a positive number")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        let positive = repeat_penalty > 0.0 && repeat_penalty.is_finite();
        check("repeat_penalty", repeat_penalty, positive, "a positive number")
    }
}

#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// Draws tokens and remembers the last ones. Its buffers are reused from token to token.
///
/// ```
/// use granule_llama::sample::{Sampler, SamplingOptions};
/// let mut sampler = Sampler::new(SamplingOptions::greedy())?;
/// assert_eq!(sampler.sample(&[0.5, 3.0, -1.0])?.get(), 1);
/// # Ok::<(), granule_llama::Error>(())
/// ```
#[derive(Clone)]
pub struct Sampler {
    options: SamplingOptions,
    generator: Pcg64,
    /// It before the draw that a device was last asked for.
    #[cfg(feature = "cuda")]
    before: Option<Pcg64>,
    /// The tokens that the penalty looks at, oldest first, and how often each is among them.
    recent: VecDeque<TokenId>,
    counts: HashMap<TokenId, usize>,
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the beginning of its generator's sequence.
    ///
    /// # Errors
    /// [`Error::InvalidSampling`] for an option outside its range.
    pub fn new(options: SamplingOptions) -> Result<Self> {
        options.validate()?;
        // Room from the start, twice over where keys come and go, so that drawing takes no memory.
        let remembered = options.repeat_last_n.min(4096);
        Ok(Self {
            options,
            generator: Pcg64::seed_from_u64(options.seed),
            #[cfg(feature = "cuda")]
            before: None,
            recent: VecDeque::with_capacity(remembered),
            counts: HashMap::with_capacity(2 * remembered),
            logits: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Let the penalty know of a token that was not drawn here: the prompt's.
    pub fn accept(&mut self, token: TokenId) {
        if self.options.repeat_last_n == 0 {
            return;
        }
        if self.recent.len() == self.options.repeat_last_n
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Forget the tokens seen and start the generator over.
    pub fn reset(&mut self) {
        self.generator = Pcg64::seed_from_u64(self.options.seed);
        self.recent.clear();
        self.counts.clear();
    }

    /// Draw a token and remember it. `logits`: one for each token of the vocabulary; negative infinity rules out.
    ///
    /// # Errors
    /// [`Error::InvalidLogit`] for NaN and positive infinity, [`Error::NoCandidates`] where none is above negative
    /// infinity. The sampler is then as it was.
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId> {
        if let Some(index) = first_of(logits, |l| l.is_nan() || l == f32::INFINITY) {
            return Err(Error::InvalidLogit { index, value: logits[index] });
        }
        let token = if self.options.repeat_penalty == 1.0 || self.counts.is_empty() {
            self.choose(logits)?
        } else {
            let mut penalized = std::mem::take(&mut self.logits);
            penalized.clear();
            penalized.extend_from_slice(logits);
            self.penalize(&mut penalized);
            let chosen = self.choose(&penalized);
            self.logits = penalized;
            chosen?
        };
        self.accept(token);
        Ok(token)
    }

    /// How a device is to draw the next token, by the same rules and with this sampler's next random number; `None` where the
    /// penalty changes logits first, which the host does. What was drawn is for [`accept`](Self::accept); where nothing was, for
    /// [`take_back`](Self::take_back).
    #[cfg(feature = "cuda")]
    pub(crate) fn draw_elsewhere(&mut self) -> Option<Draw> {
        let SamplingOptions { temp, top_k, top_p, min_p, repeat_penalty, .. } = self.options;
        if repeat_penalty != 1.0 && !self.counts.is_empty() {
            return None;
        }
        self.before = Some(self.generator.clone());
        let random = if temp == 0.0 { 0.0 } else { self.random() };
        Some(Draw { random, temp, top_k, top_p, min_p, repeat_penalty: 1.0, penalized: 0 })
    }

    /// Has the generator as it was before the last [`draw_elsewhere`](Self::draw_elsewhere).
    #[cfg(feature = "cuda")]
    pub(crate) fn take_back(&mut self) {
        if let Some(before) = self.before.take() {
            self.generator = before;
        }
    }

    /// 53 random bits as a number from 0 up to but not including 1.
    fn random(&mut self) -> f64 {
        (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn choose(&mut self, logits: &[f32]) -> Result<TokenId> {
        let best = argmax(logits).ok_or(Error::NoCandidates { count: logits.len() })?;
        Ok(if self.options.temp == 0.0 { TokenId::new(best.token) } else { self.draw(logits, best.logit) })
    }

    /// Keskar et al., CTRL (2019), with llama.cpp's correction for negative logits.
    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.options.repeat_penalty;
        for token in self.counts.keys() {
            if let Some(logit) = logits.get_mut(token.index()) {
                let scaled = if *logit <= 0.0 { *logit * penalty } else { *logit / penalty };
                // A penalty far below 1 must not overflow.
                *logit = scaled.min(f32::MAX);
            }
        }
    }

    /// From top-k to the draw; `max` is the greatest logit.
    fn draw(&mut self, logits: &[f32], max: f32) -> TokenId {
        let SamplingOptions { temp, top_k, top_p, min_p, .. } = self.options;
        let random = self.random();
        let candidates = &mut self.candidates;
        let mut sorted = collect_best(logits, if top_k > 0 { top_k } else { usize::MAX }, candidates);
        let weight = |c: &Candidate, temp: f32| (f64::from(c.logit - max) / f64::from(temp)).exp();
        if top_p < 1.0 {
            let wanted = f64::from(top_p) * candidates.iter().map(|c| weight(c, 1.0)).sum::<f64>();
            let mut sum = 0.0;
            let mut kept = 0;
            while kept < candidates.len() && (kept == 0 || sum < wanted) {
                if kept == sorted {
                    sorted = sort_best(candidates, sorted, (4 * sorted).max(64));
                }
                sum += weight(&candidates[kept], 1.0);
                kept += 1;
            }
            candidates.truncate(kept);
        }
        if min_p > 0.0 {
            let least = f64::from(min_p).ln();
            candidates.retain(|c| f64::from(c.logit - max) >= least);
        }
        let total: f64 = candidates.iter().map(|c| weight(c, temp)).sum();
        let mut left = total * random;
        let mut drawn = 0;
        for candidate in &*candidates {
            let weight = weight(candidate, temp);
            // Rounding may leave a rest at the end: it goes to the last token that can be drawn at all.
            if weight > 0.0 {
                drawn = candidate.token;
            }
            if left < weight {
                break;
            }
            left -= weight;
        }
        TokenId::new(drawn)
    }
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Logits that are looked at together; a multiple of what a vector unit holds.
const CHUNK: usize = 64;

/// The first logit of this kind. A chunk is looked at as a whole first, without branches.
fn first_of(logits: &[f32], is_one: impl Fn(f32) -> bool) -> Option<usize> {
    let has_one = |chunk: &[f32]| chunk.iter().fold(false, |any, &l| any | is_one(l));
    let chunk = logits.chunks(CHUNK).position(has_one)?;
    logits[chunk * CHUNK..].iter().position(|&l| is_one(l)).map(|at| chunk * CHUNK + at)
}

/// The greatest logit, of equals the one with the lowest id; `None` where none is above negative infinity.
fn argmax(logits: &[f32]) -> Option<Candidate> {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    // A maximum of its own for each place in a chunk, so that they are made side by side.
    let mut greatest = [f32::NEG_INFINITY; CHUNK];
    for chunk in logits.chunks(CHUNK) {
        greatest.iter_mut().zip(chunk).for_each(|(most, &l)| *most = greater(*most, l));
    }
    let logit = greatest.into_iter().fold(f32::NEG_INFINITY, greater);
    let token = first_of(logits, |l| l == logit).filter(|_| logit > f32::NEG_INFINITY)?;
    Some(Candidate { logit, token: token as u32 })
}

/// The likelier first, of equals the one with the lower id. There is no NaN.
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Makes `best` the `count` likeliest tokens above negative infinity, in order, or all of them by id where there are not more.
/// Returns how many are sorted.
///
/// What has been seen gives a bound that a token has to exceed; few of the rest do, and those are gathered until it is time
/// for a better bound.
fn collect_best(logits: &[f32], count: usize, best: &mut Vec<Candidate>) -> usize {
    let room = count.saturating_mul(4).clamp(CHUNK, logits.len().max(CHUNK));
    best.clear();
    best.reserve(room + CHUNK);
    let mut bound = f32::NEG_INFINITY;
    for (chunk, first) in logits.chunks(CHUNK).zip((0u32..).step_by(CHUNK)) {
        if !chunk.iter().fold(false, |any, &l| any | (l > bound)) {
            continue;
        }
        let above = (first..).zip(chunk).filter(|(_, l)| **l > bound);
        best.extend(above.map(|(token, &logit)| Candidate { logit, token }));
        if best.len() > room && best.len() > count {
            // Of equals a later token has the higher id, so it has to exceed the bound.
            bound = best.select_nth_unstable_by(count - 1, likelier).1.logit;
            best.truncate(count);
        }
    }
    if best.len() <= count && bound == f32::NEG_INFINITY {
        return 0;
    }
    let sorted = sort_best(best, 0, count);
    best.truncate(count);
    sorted
}

/// Given the best `from` candidates in order at the front, bring the best `to` there. Returns how many are sorted.
fn sort_best(candidates: &mut [Candidate], from: usize, to: usize) -> usize {
    let to = to.min(candidates.len());
    let rest = &mut candidates[from..];
    if to - from < rest.len() {
        rest.select_nth_unstable_by(to - from, likelier);
    }
    rest[..to - from].sort_unstable_by(likelier);
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        #[test]
        fn the_best_are_those_of_a_full_sort(
            steps in prop::collection::vec(prop::option::weighted(0.9, -40i8..40), 0..1500),
            spread in 1u16..2000,
            count in prop::sample::select(vec![1usize, 2, 3, 17, 40, 63, 64, 65, 500, 1499, 1500, usize::MAX]),
        ) {
            // Steps alone have many ties; with a spread few of them are left.
            let logit = |(i, step): (usize, &Option<i8>)| match step {
                Some(step) => f32::from(*step) + (i * 7919 % usize::from(spread)) as f32 / f32::from(spread),
                None => f32::NEG_INFINITY,
            };
            let logits: Vec<f32> = steps.iter().enumerate().map(logit).collect();
            let all = (0u32..).zip(&logits).map(|(token, &logit)| Candidate { logit, token });
            let mut sorted: Vec<Candidate> = all.filter(|c| c.logit > f32::NEG_INFINITY).collect();
            let plain = |list: &[Candidate]| list.iter().map(|c| (c.token, c.logit)).collect::<Vec<_>>();
            let by_id = plain(&sorted);
            sorted.sort_by(likelier);
            let mut best = Vec::new();
            let n_sorted = collect_best(&logits, count, &mut best);
            if sorted.len() > count {
                prop_assert_eq!(n_sorted, count);
                prop_assert_eq!(plain(&best), plain(&sorted[..count]));
            } else {
                prop_assert_eq!(n_sorted, 0);
                prop_assert_eq!(plain(&best), by_id);
            }
            let naive = sorted.first().map(|c| (c.token, c.logit));
            prop_assert_eq!(argmax(&logits).map(|c| (c.token, c.logit)), naive);
        }
    }
}
