//! Logits and texts: beside the naive twin for every type of weights, beside the host for what a context can do.

mod cublas;
mod faults;
mod placement;
#[cfg(feature = "cublas")]
mod split;

use std::sync::Arc;

use granule_device::Device;
use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, GenerateOptions, KvTransformMode, Model, Sampler, SamplingOptions,
};
use granule_quant::DType;

use super::{argmax, distance, greedy, load_on, options, tales, tokens};
use crate::support::make::{Dice, Made, Shape};
use crate::support::naive::Naive;

/// With 16 bits for each activation.
const FEW: f64 = 2e-3;
/// With f16 weights and activations, as tensor cores take them.
const MANY: f64 = 2e-2;
/// Beside the host, with caches of 16 bits: f16 on tensor cores against 16 bits of a common scale.
const BESIDE: f64 = 1e-2;

/// Logits of each position of a random text, computed as one prompt, in steps of `step` and one by one, beside the twin's.
fn agrees_with_the_twin(shape: &Shape, step: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = Made::new(shape).write(dir.path());
    let model = load_on(Device::cuda(0).unwrap(), &path);
    let mut dice = Dice(shape.seed + 100);
    let numbers: Vec<u32> = (0..24).map(|_| dice.below(model.config().n_vocab) as u32).collect();
    let want = Naive::read(&path).with_cache("f32").forward(&numbers);
    let text = tokens(numbers);
    for (n_batch, most) in [(24, MANY), (step, if step > 8 { MANY } else { FEW })] {
        let mut context =
            Context::new(Arc::clone(&model), options(64, n_batch, KvType::F32, KvType::F32)).unwrap();
        let got = context.eval_all(&text).unwrap();
        for (i, (got, want)) in got.chunks(model.config().n_vocab).zip(&want).enumerate() {
            let want: Vec<f32> = want.iter().map(|w| *w as f32).collect();
            let far = distance(got, &want);
            assert!(far <= most, "position {i} of steps of {n_batch} is {far} off: {shape:?}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn weights_of_every_type_give_the_twins_logits() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        let wide = dtype.block_len() == 256;
        let (n_embd, n_ff) = if wide { (256, 256) } else { (64, 96) };
        let shape =
            Shape { n_embd, n_ff, n_layers: 1, weights: vec![dtype], seed: i as u64 + 1, ..Shape::default() };
        agrees_with_the_twin(&shape, [1, 5, 8][i % 3]);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn shapes_of_every_kind_give_the_twins_logits() {
    let mixed = vec![DType::Q4_0, DType::F16, DType::Q8_0, DType::BF16, DType::F32, DType::Q5_1];
    agrees_with_the_twin(&Shape { weights: mixed, n_layers: 2, ..Shape::default() }, 3);
    let heads =
        Shape { n_heads: 4, n_kv_heads: 1, head_dim: Some(32), rope_dims: Some(16), ..Shape::default() };
    agrees_with_the_twin(&Shape { separate_output: true, rope_freqs: true, n_layers: 1, ..heads }, 7);
    let odd = Shape { n_embd: 72, n_heads: 6, n_kv_heads: 3, n_ff: 88, n_layers: 1, ..Shape::default() };
    agrees_with_the_twin(&Shape { linear: Some(2.0), ..odd }, 1);
}

/// Contexts of one model on the host and on the device.
struct Both {
    host: Context,
    device: Context,
    /// How far apart they may be: where rows are rounded to few bits, sums in another order tip values over, so not as much as
    /// those bits cost by themselves.
    most: f64,
}

impl Both {
    fn new(options: ContextOptions) -> Both {
        let context = |device, options| Context::new(load_on(device, tales()), options).unwrap();
        let costs = |options| {
            let mut context = context(Device::host().unwrap(), options);
            context.eval(&tokens(PROMPT)).unwrap().to_vec()
        };
        let f16 = ContextOptions { type_k: KvType::F16, type_v: KvType::F16, ..options };
        let most = distance(&costs(options), &costs(f16)).max(BESIDE);
        let (host, device) = (Device::host().unwrap(), Device::cuda(0).unwrap());
        Both { host: context(host, options), device: context(device, options), most }
    }

    fn each<T>(&mut self, mut act: impl FnMut(&mut Context) -> T) -> [T; 2] {
        [act(&mut self.host), act(&mut self.device)]
    }

    /// The same logits, near enough; of each row the same likeliest token, unless the host's two likeliest are as near.
    #[track_caller]
    fn agree(&mut self, what: &str, act: impl FnMut(&mut Context) -> Vec<f32>) {
        let n_vocab = self.host.model().config().n_vocab;
        let [here, there] = self.each(act);
        assert_eq!(here.len(), there.len());
        for (i, (here, there)) in here.chunks(n_vocab).zip(there.chunks(n_vocab)).enumerate() {
            let far = distance(there, here);
            assert!(far <= self.most, "{what}, row {i}: {far}, {} allowed", self.most);
            let rms = (here.iter().map(|x| x * x).sum::<f32>() / here.len() as f32).sqrt();
            let mut ordered = here.to_vec();
            ordered.sort_by(|a, b| b.total_cmp(a));
            if f64::from(ordered[0] - ordered[1]) > 2.0 * self.most * f64::from(rms) {
                assert_eq!(argmax(there), argmax(here), "{what}, row {i}");
            }
        }
    }
}

const PROMPT: [u32; 12] = [1, 381, 555, 968, 982, 989, 264, 263, 300, 301, 302, 303];

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_tale_is_the_hosts() {
    for (k, v) in [(KvType::F16, KvType::F16), (KvType::Q8_0, KvType::Q4_0)] {
        let mut both = Both::new(options(96, 32, k, v));
        let prompt = tokens(PROMPT);
        let [here, there] = both.each(|context| greedy(context, &prompt, 12));
        assert_eq!(here, there, "{k} {v}");
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn sequences_of_a_batch_are_the_hosts() {
    for (k, v, layers_per_row) in [
        (KvType::Q4_0, KvType::Q4_0, None),
        (KvType::F32, KvType::Q8_0, Some(1)),
        (KvType::BF16, KvType::F16, None),
    ] {
        let mut both = Both::new(ContextOptions { layers_per_row, ..options(96, 48, k, v) });
        both.agree("a prompt", |context| context.eval(&tokens(PROMPT)).unwrap().to_vec());
        let first = both.each(|context| context.first_sequence());
        let fork = both.each(|context| context.fork_sequence(context.first_sequence()).unwrap());
        let batch = |both: &mut Both, what: &str, here: &[u32], there: &[u32]| {
            let (one, two) = (tokens(here.iter().copied()), tokens(there.iter().copied()));
            let mut i = 0;
            both.agree(what, |context| {
                let batch = [(first[i], &one[..]), (fork[i], &two[..])];
                i += 1;
                context.eval_batch(&batch).unwrap().flatten().copied().collect()
            });
        };
        batch(&mut both, "one token of each", &[5], &[6]);
        batch(&mut both, "again, from a graph", &[7], &[8]);
        batch(&mut both, "a short one beside a long one", &[9], &[10; 30]);
        let mut i = 0;
        both.each(|context| {
            context.remove_tokens([first, fork][1][i], 3..7).unwrap();
            i += 1;
        });
        batch(&mut both, "with a turn", &[11], &[12]);
        batch(&mut both, "with a turn, again", &[13], &[14, 15]);
        both.each(|context| context.truncate(5).unwrap());
        both.agree("after a truncation", |context| context.eval(&tokens([16])).unwrap().to_vec());
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn plain_blocks_are_the_hosts_too() {
    let none =
        ContextOptions { kv_transform: KvTransformMode::None, ..options(64, 64, KvType::Q4_0, KvType::Q4_0) };
    let mut both = Both::new(none);
    both.agree("a prompt", |context| context.eval(&tokens(PROMPT)).unwrap().to_vec());
    both.agree("a token", |context| context.eval(&tokens([9])).unwrap().to_vec());
}

/// Whether a step was replayed or given anew makes no difference to a bit.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_graph_gives_the_bits_of_its_launches() {
    let model: Arc<Model> = load_on(Device::cuda(0).unwrap(), tales());
    let mut context = Context::new(model, options(64, 16, KvType::F16, KvType::F16)).unwrap();
    context.eval(&tokens(PROMPT)).unwrap();
    let mut logits = Vec::new();
    // The first step of a shape is given launch by launch, the second captured, the third replayed.
    for _ in 0..3 {
        logits.push(context.eval(&tokens([20])).unwrap().to_vec());
        context.truncate(PROMPT.len()).unwrap();
    }
    assert!(logits[0] == logits[1] && logits[1] == logits[2]);
}

/// Tokens that the device draws are those that the host draws from the device's logits, whatever the rule; and the logits can be
/// had all the same.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn tokens_are_drawn_as_the_host_draws_them() {
    let model: Arc<Model> = load_on(Device::cuda(0).unwrap(), tales());
    let options = options(64, 16, KvType::F16, KvType::F16);
    let plain = SamplingOptions {
        temp: 1.5,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 3,
        ..SamplingOptions::default()
    };
    let rules = [
        SamplingOptions::greedy(),
        plain,
        SamplingOptions { top_k: 5, seed: 4, ..plain },
        SamplingOptions { top_p: 0.7, seed: 5, ..plain },
        SamplingOptions { min_p: 0.02, top_k: 50, top_p: 0.99, seed: 6, ..plain },
        SamplingOptions { repeat_penalty: 1.3, seed: 7, ..plain },
    ];
    for rule in rules {
        let mut context = Context::new(Arc::clone(&model), options).unwrap();
        let mut sampler = Sampler::new(rule).unwrap();
        let mut next = context.eval(&tokens(PROMPT)).unwrap().to_vec();
        tokens(PROMPT).into_iter().for_each(|token| sampler.accept(token));
        let mut want = Vec::new();
        for _ in 0..8 {
            let token = sampler.sample(&next[..model.tokenizer().n_vocab()]).unwrap();
            want.push(token);
            next = context.eval(&[token]).unwrap().to_vec();
        }
        let mut context = Context::new(Arc::clone(&model), options).unwrap();
        let generate = GenerateOptions { sampling: rule, n_predict: Some(8), ..GenerateOptions::default() };
        let mut generation = context.generate(&tokens(PROMPT), generate).unwrap();
        let mut got = Vec::new();
        while let Some(piece) = generation.next_piece() {
            got.extend(piece.unwrap().token);
            let logits = generation.context().logits().unwrap();
            assert_eq!(logits.len(), model.config().n_vocab);
        }
        assert_eq!(got, want, "{rule:?}");
        let last = context.logits().unwrap().to_vec();
        context.truncate(PROMPT.len() + 6).unwrap();
        assert!(last == context.eval(&want[6..7]).unwrap(), "{rule:?}: the logits it was drawn from");
        // What was drawn from goes with the memory it lies in, and is here before that.
        context.trim().unwrap();
        assert!(last == context.logits().unwrap());
    }
}

/// Rows that the host made, and the tables of their transform, are gone on with on the device: then both attend to the same bytes.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_state_of_the_hosts_is_gone_on_with() {
    let mut both = Both::new(options(96, 48, KvType::Q4_0, KvType::Q4_0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    both.each(|context| context.eval(&tokens([1, 17, 18])).map(|_| ()).unwrap());
    both.each(|context| context.eval(&tokens([19])).map(|_| ()).unwrap());
    both.host.clear().unwrap();
    both.host.eval(&tokens(PROMPT)).unwrap();
    both.host.save_state(&path).unwrap();
    both.device.load_state(&path).unwrap();
    both.most = BESIDE;
    for token in [20, 21, 22] {
        both.agree("a token behind it", |context| context.eval(&tokens([token])).unwrap().to_vec());
    }
}
