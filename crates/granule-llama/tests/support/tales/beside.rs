//! Whoever computes the model beside one device that does, step by step: near logits, and the same likeliest token wherever logits
//! as near leave no choice.

use std::fmt::Debug;

use granule_llama::{Context, EncodeOptions, TokenId};

/// More tokens than products of few are for, and names, so that what follows is no matter of course.
const PROMPT: &str = "Once upon a time the sailor Ivy, the tailor Hana";
/// Tokens that are written.
pub(crate) const WRITTEN: usize = 16;
/// Where rows are stored in few bits, what differs in the last bits of f32 may be rounded to different sides, or a block's scale get
/// the other sign, and that stays with the context. Then logits may be this many times further away than those bits have cost the
/// one device so far, beside a cache of f16: twice was seen once, mostly it is a fifth.
const ROUNDED: f64 = 3.0;

/// What one device says: the prompt, and the likeliest tokens behind it.
pub(crate) struct Told {
    steps: Vec<Step>,
    /// The likeliest token behind the last step.
    pub(crate) next: TokenId,
}

/// Some tokens, and what comes of them.
struct Step {
    tokens: Vec<TokenId>,
    logits: Vec<f32>,
    /// What the bits of the cache have cost so far, in units of the root mean square of logits.
    bits: f64,
}

impl Told {
    /// By `alone`, with the prompt in one batch or token by token and `written` tokens behind it; `exact` has the same model, and a
    /// cache of f16.
    pub(crate) fn new(alone: &mut Context, exact: &mut Context, batch: bool, written: usize) -> Told {
        let prompt = alone.model().tokenizer().encode(PROMPT, EncodeOptions::default()).unwrap();
        assert!(prompt.len() > granule_ops::activate::FEW_TOKENS, "{} tokens", prompt.len());
        let mut steps = Vec::new();
        let mut bits = 0.0;
        let mut step = |tokens: &[TokenId]| {
            let logits = alone.eval(tokens).unwrap().to_vec();
            bits = f64::max(bits, distance(&logits, exact.eval(tokens).unwrap()));
            let likeliest = argmax(&logits);
            steps.push(Step { tokens: tokens.to_vec(), logits, bits });
            likeliest
        };
        let each: Vec<&[TokenId]> = if batch { vec![&prompt] } else { prompt.chunks(1).collect() };
        let mut next = each.into_iter().map(&mut step).last().unwrap();
        for _ in 0..written {
            next = step(&[next]);
        }
        Told { steps, next }
    }

    /// Holds the logits of `there`, which is given the same tokens, against these: they may be `computed` off, and more by what the
    /// cache's bits cost; where the likeliest token leads by twice as much, it is the same.
    #[track_caller]
    pub(crate) fn holds(
        &self,
        what: &dyn Debug,
        computed: f64,
        mut there: impl FnMut(&[TokenId]) -> Vec<f32>,
    ) {
        let mut decided = 0;
        for Step { tokens, logits, bits } in &self.steps {
            let got = there(tokens);
            let (far, allowed) = (distance(&got, logits), computed + ROUNDED * bits);
            assert!(far <= allowed, "{what:?}: logits are {far} off, {allowed} allowed");
            if lead(logits) > 2.0 * allowed {
                decided += 1;
                assert_eq!(argmax(&got), argmax(logits), "{what:?}");
            }
        }
        assert!(decided >= self.steps.len() / 5, "{what:?}: {decided} tokens left no choice");
    }
}

/// The largest difference of two rows of logits, in units of the second row's root mean square.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let rms = (want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
    let differences = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - f64::from(*w)).abs());
    differences.fold(0.0, |most, d| if d.is_nan() { f64::INFINITY } else { f64::max(most, d) }) / rms
}

pub(crate) fn argmax(logits: &[f32]) -> TokenId {
    TokenId::new((0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32)
}

/// How far the likeliest token's logit is above the next one's, in units of the root mean square.
fn lead(logits: &[f32]) -> f64 {
    let mut ordered = logits.to_vec();
    ordered.sort_by(|a, b| b.total_cmp(a));
    let rms = (logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32).sqrt();
    f64::from((ordered[0] - ordered[1]) / rms)
}
