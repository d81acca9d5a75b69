//! A plan, made from a file alone, is what contexts then say of their memory: every figure, to the byte.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
#![allow(dead_code, reason = "of what tests share, these need a part")]

#[cfg(feature = "cuda")]
mod cuda;
mod host;
#[path = "../support/mod.rs"]
mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_kv::{KvOptions, KvType};
use granule_llama::{
    Context, ContextOptions, GenerateOptions, KvTransformMode, LoadOptions, Model, ModelPlan, Placement,
    PlannedText, TokenId,
};
use granule_quant::DType;
use granule_split::Shares;

use crate::support::make::{Made, Shape, Vocab};

/// The model that comes with this crate.
fn tales() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tales-5m.q8_0.gguf"))
}

/// Numbers to choose by.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Types of keys and of values.
    fn types(&mut self) -> [KvType; 2] {
        [self.one(KvType::ALL), self.one(KvType::ALL)]
    }

    /// A model, in weights of three types, that was trained for few tokens: so many are computed for a transform.
    fn model(&mut self, dir: &Path, n_ctx: u32) -> PathBuf {
        let types = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0];
        let (n_heads, n_kv_heads) = self.one(&[(4, 2), (2, 1), (6, 6), (8, 2)]);
        let head_dim = self.one(&[32, 64]);
        let shape = Shape {
            n_embd: n_heads * 32,
            n_layers: 2 + self.below(3),
            n_heads,
            n_kv_heads,
            head_dim: Some(head_dim),
            rope_dims: self.one(&[None, Some(head_dim / 2)]),
            n_ff: self.one(&[96, 256, 320]),
            n_ctx,
            separate_output: self.below(2) == 0,
            weights: (0..3).map(|_| self.one(&types)).collect(),
            vocab: self.one(&[Vocab::Spm, Vocab::Bpe]),
            seed: self.below(1000) as u64 + 1,
            ..Shape::default()
        };
        Made::new(&shape).write(dir)
    }
}

/// What a context evaluates.
#[derive(Clone, Copy, Debug)]
struct Case {
    options: ContextOptions,
    text: PlannedText,
    threads: [usize; 2],
    no_mmap: bool,
    no_repack: bool,
}

impl Case {
    fn new(dice: &mut Dice, most: usize) -> Case {
        let [type_k, type_v] = dice.types();
        let n_ctx = 8 + dice.below(most);
        let prompt = 1 + dice.below(n_ctx);
        let options = ContextOptions {
            n_ctx: Some(n_ctx),
            n_batch: 1 + dice.below(n_ctx),
            type_k,
            type_v,
            layers_per_row: dice.one(&[None, Some(1), Some(2)]),
            kv_transform: dice.one(&[KvTransformMode::Auto, KvTransformMode::None]),
            // What is mapped ahead comes when it comes.
            kv: KvOptions::new().ahead(0),
            graphs: dice.below(2) == 0,
            ..ContextOptions::default()
        };
        let sequences = dice.one(&[1, 1, 2, 3]);
        let len = prompt + dice.below(n_ctx - prompt + 1);
        Case {
            options,
            text: PlannedText { sequences, prompt, len, draws: false },
            threads: [1 + dice.below(3), 1 + dice.below(3)],
            no_mmap: dice.below(3) == 0,
            no_repack: dice.below(3) == 0,
        }
    }

    fn load(&self, placement: &Placement) -> LoadOptions<'static> {
        LoadOptions {
            placement: Some(placement.clone()),
            threads: NonZeroUsize::new(self.threads[0]),
            threads_batch: NonZeroUsize::new(self.threads[1]),
            no_mmap: self.no_mmap,
            no_repack: self.no_repack,
            ..LoadOptions::default()
        }
    }
}

/// `n` layers in turn on each of these banks, as the dice have it.
fn placed(dice: &mut Dice, banks: &[Bank], n: usize) -> Placement {
    let mut placement = Placement::new();
    let mut left = n;
    for (index, bank) in banks.iter().enumerate() {
        let here = if index + 1 == banks.len() { left } else { dice.below(left + 1) };
        left -= here;
        placement = placement.layers(bank, here);
    }
    placement
}

/// `n` layers in runs as the dice have it, each whole in one of these banks or split over some of them.
fn split(dice: &mut Dice, banks: &[Bank], n: usize, legal: &[usize]) -> Placement {
    let mut placement = Placement::new();
    let mut left = n;
    while left > 0 {
        let here = 1 + dice.below(left);
        left -= here;
        let most = banks.len().min(legal.len());
        let ranks = 1 + dice.below(most);
        let first = dice.below(banks.len() - ranks + 1);
        let shares: Vec<u64> = (0..ranks).map(|_| dice.one(&[1, 1, 2, 5])).collect();
        let shares = Shares::ratio(&shares).unwrap();
        placement = match ranks {
            1 => placement.layers(&banks[first], here),
            _ => placement.split(&banks[first..first + ranks], shares, here),
        };
    }
    placement
}

fn bank(device: Device) -> Bank {
    Bank::new(device, BankOptions::new()).unwrap()
}

fn tokens(range: std::ops::Range<usize>) -> Vec<TokenId> {
    range.map(|i| TokenId::new(1 + (i * 7 % 200) as u32)).collect()
}

/// Evaluates a case, and compares what the context says with what was planned, at each stage of it.
fn compare(path: &Path, placement: &Placement, case: &Case) {
    let plan = ModelPlan::open(path).unwrap();
    let Case { options, text, .. } = case;
    let planned = |text: &PlannedText| plan.memory(&case.load(placement), options, text).unwrap();
    let model = Model::load(path, case.load(placement)).unwrap();
    let mut context = Context::new(Arc::clone(&model), *options).unwrap();
    let mut sequences = vec![context.first_sequence()];
    let check = |context: &Context, text: &PlannedText| {
        assert_eq!(context.memory_info().devices, planned(text), "{text:?} of {case:#?} on {placement:?}");
    };
    check(&context, &PlannedText::default());
    (1..text.sequences).for_each(|_| sequences.push(context.add_sequence().unwrap()));
    if text.draws {
        let options = GenerateOptions { n_predict: Some(text.len - text.prompt + 1), ..Default::default() };
        let written = context.generate(&tokens(0..text.prompt), options).unwrap();
        written.for_each(|piece| drop(piece.unwrap()));
        // The model may have ended its text.
        let len = context.tokens().len();
        return check(&context, &PlannedText { len, ..*text });
    }
    for &sequence in &sequences {
        drop(context.eval_batch(&[(sequence, &tokens(0..text.prompt))]).unwrap());
    }
    check(&context, &PlannedText { len: text.prompt, ..*text });
    for at in text.prompt..text.len {
        let token = tokens(at..at + 1);
        let batch: Vec<_> = sequences.iter().map(|&sequence| (sequence, &token[..])).collect();
        drop(context.eval_batch(&batch).unwrap());
    }
    check(&context, text);
}
