//! Sampling against a naive twin, and the draws against the probabilities.

use granule_llama::{Error, Sampler, SamplingOptions, TokenId};
use proptest::prelude::*;

/// The probabilities that the options leave, by definition: sort everything, step after step. `None` where a threshold
/// falls on a tie in rounding, so that either answer is right.
fn twin(logits: &[f32], recent: &[u32], o: &SamplingOptions) -> Option<Vec<f64>> {
    let mut l: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let last = &recent[recent.len().saturating_sub(o.repeat_last_n)..];
    for (i, x) in l.iter_mut().enumerate() {
        if last.contains(&(i as u32)) && o.repeat_penalty != 1.0 {
            let x32 = *x as f32;
            *x = f64::from(if x32 <= 0.0 { x32 * o.repeat_penalty } else { x32 / o.repeat_penalty });
        }
    }
    let mut order: Vec<usize> = (0..l.len()).collect();
    order.sort_by(|&a, &b| l[b].total_cmp(&l[a]).then(a.cmp(&b)));
    order.retain(|&i| l[i] > f64::NEG_INFINITY);
    if o.temp == 0.0 {
        order.truncate(1);
    }
    if o.top_k > 0 {
        order.truncate(o.top_k);
    }
    let max = l[order[0]];
    let softmax = |order: &[usize], temp: f64| -> Vec<f64> {
        let e: Vec<f64> = order.iter().map(|&i| ((l[i] - max) / temp).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|x| x / sum).collect()
    };
    if o.top_p < 1.0 {
        let p = softmax(&order, 1.0);
        let mut sum = 0.0;
        let mut kept = 0;
        while kept < p.len() && (kept == 0 || sum < f64::from(o.top_p)) {
            sum += p[kept];
            kept += 1;
            if (sum - f64::from(o.top_p)).abs() < 1e-9 {
                return None;
            }
        }
        order.truncate(kept);
    }
    if o.min_p > 0.0 {
        let ratio = |i: usize| (l[i] - max).exp();
        if order.iter().any(|&i| (ratio(i) - f64::from(o.min_p)).abs() < 1e-9) {
            return None;
        }
        order.retain(|&i| ratio(i) >= f64::from(o.min_p));
    }
    let p = softmax(&order, if o.temp == 0.0 { 1.0 } else { f64::from(o.temp) });
    let mut all = vec![0.0; l.len()];
    order.iter().zip(p).for_each(|(&i, p)| all[i] = p);
    Some(all)
}

fn options() -> impl Strategy<Value = SamplingOptions> {
    (
        prop::sample::select(vec![0.0f32, 0.2, 0.8, 1.0, 1.7]),
        prop::sample::select(vec![0usize, 1, 2, 5, 100]),
        prop::sample::select(vec![0.05f32, 0.3, 0.5, 0.9, 0.999, 1.0]),
        prop::sample::select(vec![0.0f32, 0.01, 0.2, 0.7, 1.0]),
        prop::sample::select(vec![1.0f32, 1.3, 0.7]),
        0usize..6,
        any::<u64>(),
    )
        .prop_map(|(temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed)| SamplingOptions {
            temp,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            seed,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn draws_only_what_the_twin_leaves(
        steps in prop::collection::vec(-20i8..20, 1..300),
        banned in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        recent in prop::collection::vec(0u32..300, 0..12),
        o in options(),
    ) {
        // Quarters, so that ties are common.
        let mut logits: Vec<f32> = steps.iter().map(|&s| f32::from(s) / 4.0).collect();
        banned.iter().for_each(|i| logits[i.index(steps.len())] = f32::NEG_INFINITY);
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        let Some(p) = twin(&logits, &recent, &o) else { return Ok(()) };
        let mut s = Sampler::new(o).unwrap();
        let certain = p.iter().position(|&p| p > 1.0 - 1e-12);
        for _ in 0..20 {
            // Each draw from the same state, so that the penalty sees what the twin saw.
            s = Sampler::new(SamplingOptions { seed: o.seed ^ s.options().seed.wrapping_add(1), ..o }).unwrap();
            recent.iter().for_each(|&t| s.accept(TokenId::new(t)));
            let drawn = s.sample(&logits).unwrap().index();
            prop_assert!(p[drawn] > 0.0, "{drawn} {:?}", p);
            if let Some(certain) = certain {
                prop_assert_eq!(drawn, certain);
            }
        }
    }
}

/// Pearson's chi-squared over 100,000 draws, from a fixed seed, stays under its 99.9% quantile.
#[test]
fn draws_follow_the_probabilities() {
    let logits = [1.0f32, 0.5, -1.0, 2.0, 2.0, -0.5, 0.0, 1.5, f32::NEG_INFINITY, 0.25];
    let base = SamplingOptions {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_last_n: 0,
        seed: 42,
        ..Default::default()
    };
    for o in [
        SamplingOptions { temp: 1.0, ..base },
        SamplingOptions { temp: 0.5, ..base },
        SamplingOptions { temp: 2.0, top_k: 4, ..base },
        SamplingOptions { temp: 1.0, top_p: 0.8, ..base },
        SamplingOptions { temp: 1.5, min_p: 0.15, ..base },
        SamplingOptions { temp: 0.8, top_k: 6, top_p: 0.9, min_p: 0.1, ..base },
    ] {
        let p = twin(&logits, &[], &o).unwrap();
        let mut sampler = Sampler::new(o).unwrap();
        const DRAWS: usize = 100_000;
        let mut counts = [0usize; 10];
        for _ in 0..DRAWS {
            counts[sampler.sample(&logits).unwrap().index()] += 1;
        }
        let cell = |(&n, &p): (&usize, &f64)| (n as f64 - DRAWS as f64 * p).powi(2) / (DRAWS as f64 * p);
        let possible = counts.iter().zip(&p).filter(|(_, p)| **p > 0.0);
        let chi_squared: f64 = possible.clone().map(cell).sum();
        // Wilson and Hilferty's approximation of the quantile.
        let freedom = (possible.count() - 1) as f64;
        let (a, z) = (2.0 / (9.0 * freedom), 3.09);
        let quantile = freedom * (1.0 - a + z * a.sqrt()).powi(3);
        assert!(chi_squared < quantile, "{o:?}: {chi_squared} of {quantile}, {counts:?}");
        assert!(counts.iter().zip(&p).all(|(&n, &p)| (n > 0) == (p > 0.0)), "{counts:?}");
    }
}

#[test]
fn the_same_seed_draws_the_same() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
    let draw = |seed| -> Vec<u32> {
        let mut s = Sampler::new(SamplingOptions { seed, temp: 1.0, ..Default::default() }).unwrap();
        let first: Vec<u32> = (0..50).map(|_| s.sample(&logits).unwrap().get()).collect();
        s.reset();
        let again: Vec<u32> = (0..50).map(|_| s.sample(&logits).unwrap().get()).collect();
        assert_eq!(first, again);
        first
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

/// `pcg64` by hand: PCG XSL RR 128/64 with the multiplier of O'Neill's paper, seeded as `seed_from_u64` documents it, by
/// 32 bytes of `pcg32`. A seed must mean the same tomorrow.
fn pcg64(mut seed: u64) -> impl FnMut() -> u64 {
    let mut word = || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0xa176_54e4_6fbe_17f3);
        let x = (((seed >> 18) ^ seed) >> 27) as u32;
        u128::from(x.rotate_right((seed >> 59) as u32))
    };
    let mut half = || word() | word() << 32 | word() << 64 | word() << 96;
    let (start, increment) = (half(), half() | 1);
    let step =
        move |x: u128| x.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(increment);
    let mut state = step(start.wrapping_add(increment));
    move || {
        state = step(state);
        ((state >> 64) as u64 ^ state as u64).rotate_right((state >> 122) as u32)
    }
}

#[test]
fn the_generator_is_pcg64() {
    for seed in [0, 1, u64::MAX] {
        let all = SamplingOptions { temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed, ..Default::default() };
        let mut sampler = Sampler::new(all).unwrap();
        let mut generator = pcg64(seed);
        for _ in 0..100 {
            // Of a thousand equals the one at the draw's place.
            let place = (generator() >> 11) as f64 / (1u64 << 53) as f64 * 1000.0;
            assert_eq!(sampler.sample(&[0.25; 1000]).unwrap().get(), place as u32);
        }
    }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let mut s = Sampler::new(SamplingOptions::greedy()).unwrap();
    assert_eq!(s.sample(&[-1.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap().get(), 1);
    assert_eq!(s.sample(&[f32::MIN, f32::NEG_INFINITY]).unwrap().get(), 0);
    // A penalty moves it away from what was just said, and back when that is long ago.
    let o = SamplingOptions { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplingOptions::greedy() };
    let mut s = Sampler::new(o).unwrap();
    let drawn: Vec<u32> = (0..6).map(|_| s.sample(&[4.0, 3.0, 2.5, -1.0]).unwrap().get()).collect();
    assert_eq!(drawn, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn broken_logits_and_options_are_errors() {
    for o in [SamplingOptions::greedy(), SamplingOptions::default()] {
        let mut s = Sampler::new(o).unwrap();
        for (bad, index) in [(f32::NAN, 1), (f32::INFINITY, 1)] {
            let error = s.sample(&[0.0, bad]).unwrap_err();
            assert!(matches!(error, Error::InvalidLogit { index: i, .. } if i == index), "{error}");
        }
        assert!(matches!(s.sample(&[f32::NEG_INFINITY; 3]), Err(Error::NoCandidates { count: 3 })));
        assert!(matches!(s.sample(&[]), Err(Error::NoCandidates { count: 0 })));
    }
    let d = SamplingOptions::default();
    for (o, name) in [
        (SamplingOptions { temp: -0.1, ..d }, "temp"),
        (SamplingOptions { temp: f32::NAN, ..d }, "temp"),
        (SamplingOptions { temp: f32::INFINITY, ..d }, "temp"),
        (SamplingOptions { top_p: 0.0, ..d }, "top_p"),
        (SamplingOptions { top_p: 1.1, ..d }, "top_p"),
        (SamplingOptions { min_p: -0.1, ..d }, "min_p"),
        (SamplingOptions { min_p: f32::NAN, ..d }, "min_p"),
        (SamplingOptions { repeat_penalty: 0.0, ..d }, "repeat_penalty"),
        (SamplingOptions { repeat_penalty: f32::NAN, ..d }, "repeat_penalty"),
    ] {
        let error = Sampler::new(o).unwrap_err();
        assert!(matches!(error, Error::InvalidSampling { option, .. } if option == name), "{error}");
    }
    // The smallest temperature and the greatest spread: still a draw.
    let o = SamplingOptions { temp: f32::MIN_POSITIVE, repeat_penalty: f32::MIN_POSITIVE, ..d };
    let mut s = Sampler::new(o).unwrap();
    for _ in 0..3 {
        assert_eq!(s.sample(&[f32::MAX, f32::MIN, 0.0]).unwrap().get(), 0);
    }
}
