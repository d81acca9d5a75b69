//! Properties of plans: shortcuts change nothing, and nothing gets smaller as a text gets longer. That a plan is what an engine then
//! holds is tested where the engine is.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use granule_device::Bytes;
use granule_kv::{KvLayout, KvShape, KvType};
use granule_plan::{Compute, ContextShape, DryContext, ModelShape, Part, Stage, StageMemory};
use granule_quant::DType;
use proptest::prelude::*;

/// Sizes from a model for tests to one of 8 billion weights.
fn shapes() -> impl Strategy<Value = ModelShape> {
    let heads = prop::sample::select(vec![(4, 2, 64), (9, 3, 64), (32, 8, 128), (6, 6, 80)]);
    let rest = (256..20_000usize, 300..130_000usize, prop::sample::select(vec![DType::Q8_0, DType::F16]));
    (heads, rest).prop_map(|((n_heads, n_kv_heads, head_dim), (n_ff, n_vocab, output))| ModelShape {
        n_embd: n_heads * head_dim,
        n_heads,
        n_kv_heads,
        head_dim,
        n_ff: n_ff.next_multiple_of(256),
        n_vocab,
        rope_dims: head_dim,
        output,
    })
}

fn computes() -> impl Strategy<Value = Compute> {
    let host = (1..130usize, 1..130usize);
    let host = host.prop_map(|(threads, threads_batch)| Compute::Host { threads, threads_batch });
    #[cfg(feature = "cuda")]
    let any = {
        let devices = prop::sample::select(vec![(132, (9, 0)), (108, (8, 0)), (4, (8, 6))]);
        let facts =
            |(multiprocessors, capability)| granule_ops::DeviceFacts::new(multiprocessors, capability);
        prop_oneof![host, devices.prop_map(move |of| Compute::Cuda(facts(of)))]
    };
    #[cfg(not(feature = "cuda"))]
    let any = host;
    any
}

fn stage(shape: &ModelShape, compute: Compute, types: [KvType; 2], n_layers: usize) -> Stage {
    let kv = KvShape { n_layers, n_kv_heads: shape.n_kv_heads, head_dim: shape.head_dim };
    Stage {
        device: "a device".to_owned(),
        granule: Bytes::mib(2),
        compute,
        part: None,
        kv: KvLayout::new(kv, types[0], types[1], None, 4).unwrap(),
        products: vec![(DType::Q4_0, shape.n_embd), (DType::BF16, shape.q_width()), (DType::F32, shape.n_ff)],
        weights: Bytes::mib(8),
        loading: Bytes::mib(3),
        kv_transform: (Bytes::kib(3), Bytes::kib(5)),
        engine_scratch: Bytes::ZERO,
        context: None,
    }
}

/// Run `run`, split over ranks that have a KV head or two each, and what these compute with; the last rank has the most of the rest.
fn ranks(
    shape: &ModelShape,
    run: usize,
    computes: &[Compute],
    types: [KvType; 2],
    n_layers: usize,
) -> Vec<Stage> {
    let n = computes.len();
    assert!(shape.n_kv_heads >= n);
    let per_head = shape.n_heads / shape.n_kv_heads;
    let part = |rank: usize| {
        let is_last = rank + 1 == n;
        let n_kv_heads = if is_last { shape.n_kv_heads - (n - 1) } else { 1 };
        let cut = |all: usize, unit: usize| {
            let each = all / n / unit * unit;
            if is_last { all - each * (n - 1) } else { each }
        };
        let (n_ff, n_vocab) = (cut(shape.n_ff, 32), cut(shape.n_vocab, 1));
        ModelShape { n_heads: n_kv_heads * per_head, n_kv_heads, n_ff, n_vocab, ..*shape }
    };
    let made = computes.iter().enumerate().map(|(rank, &compute)| {
        let shape = part(rank);
        Stage { part: Some(Part { run, rank, shape, sums: None }), ..stage(&shape, compute, types, n_layers) }
    });
    made.collect()
}

/// Stages, some of them split, of so many layers each.
fn placed(
    shape: &ModelShape,
    runs: &[(bool, Vec<Compute>)],
    types: [KvType; 2],
    n_layers: usize,
) -> Vec<Stage> {
    let runs = runs.iter().enumerate().flat_map(|(run, (is_split, computes))| {
        let most = computes.len().min(shape.n_kv_heads);
        match is_split {
            true => ranks(shape, run, &computes[..most], types, n_layers),
            false => computes.iter().map(|&compute| stage(shape, compute, types, n_layers)).collect(),
        }
    });
    runs.collect()
}

fn runs() -> impl Strategy<Value = Vec<(bool, Vec<Compute>)>> {
    prop::collection::vec((any::<bool>(), prop::collection::vec(computes(), 1..4)), 1..3)
}

fn types() -> impl Strategy<Value = [KvType; 2]> {
    let one = || prop::sample::select(vec![KvType::F16, KvType::F32, KvType::BF16]);
    [one(), one()]
}

fn sizes(of: &StageMemory) -> [Bytes; 7] {
    [of.weights, of.kv, of.kv_transform, of.activations, of.scratch, of.pinned, of.total()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn going_on_by_leaps_is_going_on_token_by_token(
        shape in shapes(),
        runs in runs(),
        types in types(),
        prompts in prop::collection::vec(0..600usize, 1..5),
        n_batch in 1..300usize,
        draws in any::<bool>(),
        len in 1..1500usize,
    ) {
        let options = ContextShape { n_ctx: 1400, n_batch, ahead: 7, draws_of: if draws { shape.n_vocab } else { 0 } };
        let stages = placed(&shape, &runs, types, 2);
        let made = || {
            let mut context = DryContext::new(&shape, &stages, options).unwrap();
            (1..prompts.len()).for_each(|number| assert_eq!(context.add_sequence(), number));
            prompts.iter().enumerate().for_each(|(of, &n)| context.eval_batch(&[(of, n)]).unwrap());
            context
        };
        let (mut leaps, mut steps) = (made(), made());
        leaps.go_on(len).unwrap();
        let longest = prompts.iter().max().copied().unwrap();
        // Further by one token: nothing is left that could be leapt over.
        (longest..len.min(1400)).for_each(|len| steps.go_on(len + 1).unwrap());
        prop_assert_eq!(leaps.memory().unwrap(), steps.memory().unwrap());
    }

    #[test]
    fn more_tokens_take_no_fewer_bytes(
        shape in shapes(),
        runs in runs(),
        types in types(),
        prompt in 0..2000usize,
        n_batch in 1..600usize,
        lens in prop::collection::vec(0..70_000usize, 1..5),
    ) {
        let options = ContextShape { n_ctx: 65_536, n_batch, ahead: 64, draws_of: 0 };
        let mut context = DryContext::new(&shape, &placed(&shape, &runs, types, 3), options).unwrap();
        let all = |context: &DryContext| context.memory().unwrap().iter().map(sizes).collect::<Vec<_>>();
        let mut before = all(&context);
        context.eval(prompt).unwrap();
        let mut lens = lens;
        lens.sort_unstable();
        for len in lens {
            context.go_on(len).unwrap();
            let now = all(&context);
            let mut pairs = before.iter().flatten().zip(now.iter().flatten());
            prop_assert!(pairs.all(|(before, now)| before <= now), "{:?} {:?}", before, now);
            before = now;
        }
    }
}

/// What one rank takes of a layer that is split, beside what the whole takes: worked out by hand.
#[test]
fn a_rank_takes_its_own_heads_and_its_own_logits() {
    let shape = ModelShape {
        n_embd: 2048,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
        n_ff: 8192,
        n_vocab: 128_256,
        rope_dims: 64,
        output: DType::Q8_0,
    };
    let host = Compute::Host { threads: 1, threads_batch: 1 };
    let types = [KvType::F16, KvType::F16];
    let options = ContextShape { n_ctx: 4096, n_batch: 512, ahead: 0, draws_of: 0 };
    let memory = |stages: &[Stage]| {
        let mut context = DryContext::new(&shape, stages, options).unwrap();
        context.eval(512).unwrap();
        context.go_on(1024).unwrap();
        context.memory().unwrap()
    };
    let split = |parts: [ModelShape; 2]| {
        let stage = |(rank, shape)| Stage {
            part: Some(Part { run: 0, rank, shape, sums: None }),
            ..stage(&shape, host, types, 16)
        };
        memory(&parts.into_iter().enumerate().map(stage).collect::<Vec<_>>())
    };
    let whole = &memory(&[stage(&shape, host, types, 16)])[0];
    // 1,024 rows of 32 KiB and 64 bytes, in whole granules.
    assert_eq!((whole.rank, whole.kv), (None, Bytes::mib(34)));
    let part = |n_kv_heads: usize, n_ff, n_vocab| ModelShape {
        n_heads: 4 * n_kv_heads,
        n_kv_heads,
        n_ff,
        n_vocab,
        ..shape
    };
    let even = split([part(4, 4096, 64_128), part(4, 4096, 64_128)]);
    assert_eq!([even[0].rank, even[1].rank], [Some(0), Some(1)]);
    assert_eq!([even[0].kv, even[1].kv], [Bytes::mib(18); 2]);
    // Two whole rows of logits are the first rank's alone.
    let rows = even[0].activations.saturating_sub(even[1].activations);
    assert!(rows >= Bytes::new(2 * 4 * 128_256) && rows <= Bytes::mib(4), "{rows}");
    // Queries, keys, values, what is attended to and the feed-forward part are halves; the hidden states are whole.
    let halves: u64 = 512 * 4 * (2048 + 512 + 512 + 2048 + 8192 + 8192) / 2;
    let saved = whole.activations.saturating_sub(even[0].activations);
    assert!(
        saved >= Bytes::new(halves).saturating_sub(Bytes::mib(4)) && saved <= Bytes::new(halves),
        "{saved}"
    );
    let uneven = split([part(6, 6144, 96_192), part(2, 2048, 32_064)]);
    assert_eq!([uneven[0].kv, uneven[1].kv], [Bytes::mib(26), Bytes::mib(10)]);
    assert!(uneven[0].scratch > uneven[1].scratch && uneven[0].activations > even[0].activations);
}

/// Ranks of the last run have logits, no other ones do; and a first run that is split looks no tokens up.
#[test]
fn which_ranks_have_logits() {
    let shape = ModelShape {
        n_embd: 128,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        n_ff: 256,
        n_vocab: 4 << 20,
        rope_dims: 32,
        output: DType::F16,
    };
    let host = Compute::Host { threads: 1, threads_batch: 1 };
    let types = [KvType::F16, KvType::F16];
    let options = ContextShape { n_ctx: 64, n_batch: 8, ahead: 0, draws_of: 0 };
    let two = |run| ranks(&shape, run, &[host; 2], types, 1);
    let one = || vec![stage(&shape, host, types, 1)];
    for (stages, has_logits) in [
        ([two(0), two(1)].concat(), &[false, false, true, true][..]),
        ([two(0), one()].concat(), &[false, false, true]),
        ([one(), two(1)].concat(), &[false, true, true]),
        ([one(), one()].concat(), &[false, true]),
        // This process has one rank of each run.
        (vec![two(0)[1].clone(), two(1)[1].clone()], &[false, true]),
    ] {
        let mut context = DryContext::new(&shape, &stages, options).unwrap();
        context.eval(9).unwrap();
        let memory = context.memory().unwrap();
        // 2^22 logits are 16 MiB.
        let found: Vec<bool> = memory.iter().map(|of| of.activations >= Bytes::mib(8)).collect();
        assert_eq!(found, has_logits);
    }
}

/// What sums over ranks ask for is scratch of each step on a GPU.
#[cfg(feature = "cuda")]
#[test]
fn sums_over_ranks_have_their_scratch() {
    use granule_split::{Communicator, Result, Traffic};

    /// Asks for a MiB, and for as many bytes again as there are elements.
    #[derive(Debug)]
    struct Asks;
    impl Communicator for Asks {
        fn rank(&self) -> usize {
            0
        }
        fn ranks(&self) -> usize {
            2
        }
        fn describe(&self) -> String {
            "not at all".to_owned()
        }
        fn traffic(&self) -> Traffic {
            Traffic::default()
        }
        fn abort(&self, _: &str) {}
        fn all_reduce(&self, _: &mut [f32]) -> Result<()> {
            Ok(())
        }
        fn all_gather(&self, _: &[f32], _: &[usize], _: &mut [f32]) -> Result<()> {
            Ok(())
        }
        fn reduce_scatter(&self, _: &[f32], _: &[usize], _: &mut [f32]) -> Result<()> {
            Ok(())
        }
        fn broadcast(&self, _: usize, _: &mut [f32]) -> Result<()> {
            Ok(())
        }
        fn scratch_bytes(&self, elements: usize) -> usize {
            (1 << 20) + elements
        }
    }

    let shape = ModelShape {
        n_embd: 4096,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        n_ff: 8192,
        n_vocab: 1024,
        rope_dims: 128,
        output: DType::F16,
    };
    let gpu = Compute::Cuda(granule_ops::DeviceFacts::new(132, (9, 0)));
    let options = ContextShape { n_ctx: 4096, n_batch: 2048, ahead: 0, draws_of: 0 };
    let scratch = |sums: Option<std::sync::Arc<dyn Communicator>>| {
        let mut stages = ranks(&shape, 0, &[gpu, gpu], [KvType::F16, KvType::F16], 2);
        stages.iter_mut().for_each(|stage| stage.part.as_mut().unwrap().sums = sums.clone());
        let mut context = DryContext::new(&shape, &stages, options).unwrap();
        context.eval(2048).unwrap();
        context.memory().unwrap()[1].scratch
    };
    let more = scratch(Some(std::sync::Arc::new(Asks))).saturating_sub(scratch(None));
    let asked = Bytes::new((1 << 20) + 2048 * 4096);
    assert!(more >= asked && more <= asked.saturating_add(Bytes::mib(2)), "{more}");
}

/// A model of the shape of Llama 3.1 8B, on a GPU of 132 multiprocessors: the numbers, worked out by hand.
#[cfg(feature = "cuda")]
#[test]
fn a_step_on_a_gpu_in_numbers() {
    use granule_plan::cuda::{Capacity, CudaBuffers, CudaLogits};

    let shape = ModelShape {
        n_embd: 4096,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 128,
        n_ff: 14336,
        n_vocab: 128_256,
        rope_dims: 128,
        output: DType::Q6_K,
    };
    let products = [(DType::Q4_K, 4096), (DType::Q4_K, 14336)];
    let prompt = CudaBuffers::of(&shape, &products, 512, 1000).unwrap();
    assert_eq!((prompt.x, prompt.k, prompt.gate), (512 * 4096 * 4, 512 * 1024 * 4, 512 * 14336 * 4));
    // f16, and a factor for each token.
    assert_eq!((prompt.formed, prompt.attention), (512 * 14336 * 2 + 512 * 4, 1024));
    let one = CudaBuffers::of(&shape, &products, 1, 0).unwrap();
    // Two bytes an element, and 12 for each 32.
    assert_eq!(one.formed, 2 * 14336 + 14336 / 32 * 12);
    assert_eq!(CudaLogits::of(&shape, 1).unwrap().logits, 128_256 * 4);
    let capacity = Capacity::of([(5000, 1), (3, 2)].into_iter(), false, 0);
    assert_eq!((capacity.rows, capacity.segments, capacity.sequences), (8192, 8, 2));
}
