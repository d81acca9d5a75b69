//! Rows of logits to draw from, and the naive rule: sort everything, walk along in f64.

use granule_ops::sample::{Draw, Drawn};

use crate::random::Random;

/// Rows of logits, each with how it is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) n_vocab: usize,
    pub(crate) logits: Vec<f32>,
    pub(crate) draws: Vec<Draw>,
}

/// Draws tokens.
pub(crate) trait Samples {
    /// A token for each row; the likeliest without `draws`.
    fn sample(&self, case: &Case, draws: bool) -> Vec<Drawn>;
    /// The logits with those of the listed tokens penalized; `ids` is rows x any number.
    fn penalize(&self, case: &Case, ids: &[u32]) -> Vec<f32>;
}

/// A row of one of the kinds that selections can get wrong.
fn logits(random: &mut Random, n: usize) -> Vec<f32> {
    let normal = |random: &mut Random| (0..6).map(|_| random.signed()).sum::<f32>() * 2.0;
    let mut row: Vec<f32> = match random.below(9) {
        // As models give them.
        0 | 1 => (0..n).map(|_| normal(random) + 3.0).collect(),
        // Ties everywhere, and both zeros.
        2 => (0..n).map(|_| (random.below(7) as f32 - 3.0) * random.sign()).collect(),
        3 => vec![random.signed() * 20.0; n],
        // One far above the others, or all very far apart.
        4 => (0..n).map(|i| if i == n / 3 { 70.0 } else { normal(random) }).collect(),
        5 => (0..n).map(|_| f32::from_bits(random.below(0x7f80_0000) as u32) * random.sign()).collect(),
        // Close to each other: all in a class or two.
        6 => (0..n).map(|_| 10.0 + random.signed() * 1e-3).collect(),
        7 => (0..n).map(|_| 0.0 * random.sign()).collect(),
        _ => (0..n).map(|_| normal(random) * 10.0).collect(),
    };
    match random.below(6) {
        0 => (0..n).for_each(|i| row[i] = if random.below(3) == 0 { row[i] } else { f32::NEG_INFINITY }),
        1 => (0..n).filter(|&i| i != n / 2).for_each(|i| row[i] = f32::NEG_INFINITY),
        _ => {}
    }
    match random.below(40) {
        0 => row[random.below(n)] = [f32::NAN, -f32::NAN][random.below(2)],
        1 => row[random.below(n)] = f32::INFINITY,
        2 => row.fill(f32::NEG_INFINITY),
        3 => (row[random.below(n)], row[n / 2]) = (f32::INFINITY, f32::NAN),
        _ => {}
    }
    row
}

/// How a row is drawn: each option off, at its ends and between.
fn draw(random: &mut Random, n: usize) -> Draw {
    let any = |random: &mut Random| (random.next() >> 11) as f64 / (1u64 << 53) as f64;
    let numbers = [0.0, 1.0 - f64::EPSILON / 2.0, 0.5];
    let random_number = if random.below(4) == 0 { numbers[random.below(3)] } else { any(random) };
    let temps = [0.0, 1e-40, 1e-4, 0.1, 0.7, 0.8, 1.0, 1.0, 1.5, 5.0, 1000.0];
    let ks = [0, 0, 1, 2, 40, 100, n.saturating_sub(1), n, n + 5, 1 + random.below(n)];
    let ps = [1.0, 1.0, 0.95, 0.5, 0.1, 1e-6, 1.0 - f32::EPSILON / 2.0, 0.999];
    let ms = [0.0, 0.0, 0.05, 0.5, 1.0, 1e-12];
    Draw {
        random: random_number,
        temp: temps[random.below(temps.len())],
        top_k: ks[random.below(ks.len())],
        top_p: ps[random.below(ps.len())],
        min_p: ms[random.below(ms.len())],
        repeat_penalty: [1.0, 1.1, 0.5, 1e-38][random.below(4)],
        penalized: random.below(12),
    }
}

/// What the rule gives for a row: the token, and before and behind it those whose stretch of the sum of weights the place that is
/// drawn comes as near as rounding may move either. `moved` moves top-p's place by so many times what rounding may.
fn naive(logits: &[f32], draw: &Draw, moved: f64) -> (u32, Vec<u32>) {
    let mut left: Vec<(f32, u32)> =
        logits.iter().copied().zip(0..).filter(|(l, _)| *l > f32::NEG_INFINITY).collect();
    if left.is_empty() || logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY) {
        return (u32::MAX, Vec::new());
    }
    // A stable sort: of equals the lower id stays first.
    let mut sorted = left.clone();
    sorted.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
    let max = sorted[0].0;
    if draw.temp == 0.0 {
        return (sorted[0].1, Vec::new());
    }
    let cuts = draw.top_k > 0 && draw.top_k < left.len();
    if cuts || draw.top_p < 1.0 {
        left = sorted;
    }
    if cuts {
        left.truncate(draw.top_k);
    }
    let weight = |logit: f32, temp: f32| (f64::from(logit - max) / f64::from(temp)).exp();
    // Half a unit of 2^-44 for each token, and what sums of f64 lose.
    let rounding = left.len() as f64 * 2f64.powi(-45) + 1e-13 * left.len() as f64;
    if draw.top_p < 1.0 {
        let total: f64 = left.iter().map(|(l, _)| weight(*l, 1.0)).sum();
        let wanted = f64::from(draw.top_p) * total + moved * rounding;
        let (mut sum, mut kept) = (0.0, 0);
        while kept < left.len() && (kept == 0 || sum < wanted) {
            sum += weight(left[kept].0, 1.0);
            kept += 1;
        }
        left.truncate(kept);
    }
    if draw.min_p > 0.0 {
        left.retain(|(l, _)| f64::from(l - max) >= f64::from(draw.min_p).ln());
    }
    let total: f64 = left.iter().map(|(l, _)| weight(*l, draw.temp)).sum();
    let place = total * draw.random;
    let (mut sum, mut drawn, mut near) = (0.0, None, Vec::new());
    for (l, id) in &left {
        let (start, weight) = (sum, weight(*l, draw.temp));
        sum += weight;
        if weight > 0.0 && (drawn.is_none() || start <= place) {
            drawn = Some(*id);
        }
        if weight > 0.0 && start - 2.0 * rounding <= place && sum + 2.0 * rounding >= place {
            near.push(*id);
        }
    }
    (drawn.unwrap(), near)
}

impl Case {
    pub(crate) fn draw(seed: u64, n_vocab: usize, rows: usize) -> Case {
        let mut random = Random(seed);
        let all = (0..rows).flat_map(|_| logits(&mut random, n_vocab)).collect();
        let draws = (0..rows).map(|_| draw(&mut random, n_vocab)).collect();
        Case { n_vocab, logits: all, draws }
    }

    /// Vocabularies around every size at which the kernels change their way.
    pub(crate) fn any(seed: u64) -> Case {
        let mut random = Random(seed ^ 0x5a);
        let sizes = [1, 2, 3, 31, 32, 33, 1000, 4095, 4096, 4097, 8193, 9000, 13000];
        Case::draw(seed, sizes[random.below(sizes.len())], 1 + random.below(4))
    }

    pub(crate) fn rows(&self) -> usize {
        self.draws.len()
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.n_vocab..][..self.n_vocab]
    }

    /// Holds what the machine draws to the rule. Where the place lies within rounding of a boundary, either neighbour will do;
    /// answers how often that was.
    pub(crate) fn check(&self, machine: &impl Samples) -> usize {
        let mut near = 0;
        for (row, drawn) in machine.sample(self, true).into_iter().enumerate() {
            let (logits, draw) = (self.row(row), &self.draws[row]);
            let (exact, _) = naive(logits, draw, 0.0);
            let got = self.check_value(row, drawn);
            if got != exact {
                let mut near_by = [-1.0, 0.0, 1.0].into_iter().flat_map(|moved| naive(logits, draw, moved).1);
                let n = self.n_vocab;
                assert!(near_by.any(|one| one == got), "row {row} of {n}: {got}, not {exact}, by {draw:?}");
                near += 1;
            }
        }
        for (row, drawn) in machine.sample(self, false).into_iter().enumerate() {
            let greedy = Draw { temp: 0.0, ..self.draws[row] };
            assert_eq!(
                self.check_value(row, drawn),
                naive(self.row(row), &greedy, 0.0).0,
                "the likeliest of {row}"
            );
        }
        near
    }

    fn check_value(&self, row: usize, drawn: Drawn) -> u32 {
        let logits = self.row(row);
        match drawn.token {
            Some(token) => assert_eq!(drawn.logit.to_bits(), logits[token as usize].to_bits()),
            None if logits.iter().any(|l| l.is_nan()) => assert!(drawn.logit.is_nan()),
            None => {
                let invalid = logits.contains(&f32::INFINITY);
                assert_eq!(drawn.logit, if invalid { f32::INFINITY } else { f32::NEG_INFINITY });
            }
        }
        drawn.token.unwrap_or(u32::MAX)
    }

    pub(crate) fn check_penalty(&self, machine: &impl Samples, seed: u64) {
        let mut random = Random(seed);
        let most = random.below(10);
        let mut ids = Vec::new();
        for _ in 0..self.rows() {
            let first = random.next() as u32 % (self.n_vocab as u32 + 3);
            // No two alike, and some are no tokens.
            ids.extend((0..most as u32).map(|i| (first + 3 * i) % (self.n_vocab as u32 + 30)));
        }
        let mut expected = self.logits.clone();
        for (row, draw) in self.draws.iter().enumerate() {
            for &id in ids[row * most..][..most].iter().take(draw.penalized) {
                if (id as usize) < self.n_vocab {
                    let logit = &mut expected[row * self.n_vocab + id as usize];
                    let scaled = if *logit <= 0.0 {
                        *logit * draw.repeat_penalty
                    } else {
                        *logit / draw.repeat_penalty
                    };
                    if logit.is_finite() {
                        *logit = scaled.min(f32::MAX);
                    }
                }
            }
        }
        let bits =
            |x: &[f32]| -> Vec<u32> { x.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect() };
        assert!(bits(&machine.penalize(self, &ids)) == bits(&expected), "{most} ids a row, {:?}", self.draws);
    }
}
