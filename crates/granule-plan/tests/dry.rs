//! Properties of plans: shortcuts change nothing, and nothing gets smaller as a text gets longer. That a plan is what an engine then
//! holds is tested where the engine is.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use granule_device::Bytes;
use granule_kv::{KvLayout, KvShape, KvType};
use granule_plan::{Compute, ContextShape, DryContext, ModelShape, Stage, StageMemory};
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
        kv: KvLayout::new(kv, types[0], types[1], None, 4).unwrap(),
        products: vec![(DType::Q4_0, shape.n_embd), (DType::BF16, shape.q_width()), (DType::F32, shape.n_ff)],
        weights: Bytes::mib(8),
        loading: Bytes::mib(3),
        kv_transform: (Bytes::kib(3), Bytes::kib(5)),
        engine_scratch: Bytes::ZERO,
        context: None,
    }
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
        computes in prop::collection::vec(computes(), 1..4),
        types in types(),
        prompts in prop::collection::vec(0..600usize, 1..5),
        n_batch in 1..300usize,
        draws in any::<bool>(),
        len in 1..1500usize,
    ) {
        let options = ContextShape { n_ctx: 1400, n_batch, ahead: 7, draws_of: if draws { shape.n_vocab } else { 0 } };
        let stages: Vec<Stage> = computes.into_iter().map(|compute| stage(&shape, compute, types, 2)).collect();
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
        compute in computes(),
        types in types(),
        prompt in 0..2000usize,
        n_batch in 1..600usize,
        lens in prop::collection::vec(0..70_000usize, 1..5),
    ) {
        let options = ContextShape { n_ctx: 65_536, n_batch, ahead: 64, draws_of: 0 };
        let mut context = DryContext::new(&shape, &[stage(&shape, compute, types, 3)], options).unwrap();
        let mut before = sizes(&context.memory().unwrap()[0]);
        context.eval(prompt).unwrap();
        let mut lens = lens;
        lens.sort_unstable();
        for len in lens {
            context.go_on(len).unwrap();
            let now = sizes(&context.memory().unwrap()[0]);
            prop_assert!(before.iter().zip(&now).all(|(before, now)| before <= now), "{:?} {:?}", before, now);
            before = now;
        }
    }
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
