//! What a Llama engine allocates for its activations, step by step and layer by layer, when each result has a block of its
//! own and is freed after its last use.

use super::Model;
use crate::Script;
use crate::script::Writer;

/// Cache rows that one part of attention reads when it is split over the cache (flash decoding).
const SPLIT: u64 = 256;

/// `steps` steps of `tokens` tokens each, logits for `outputs` of them, with `context` tokens in the cache at first. f32
/// activations, Q8_0 for what meets a quantized matrix.
pub fn decode(model: &Model, tokens: u64, outputs: u64, context: u64, steps: u64) -> Script {
    let mut writer = Writer::new();
    for step in 0..steps {
        one_step(&mut writer, model, tokens, outputs, context + step);
    }
    let name = if outputs < tokens {
        format!("a prompt of {tokens}, {}", model.name)
    } else {
        format!("decode of {tokens}, {}", model.name)
    };
    Script { name, slots: writer.slots(), prologue: Vec::new(), cycle: writer.take() }
}

fn one_step(writer: &mut Writer, model: &Model, tokens: u64, outputs: u64, context: u64) {
    let floats = |n: u64| 4 * tokens * n;
    let quantized = |n: u64| tokens * n / 32 * 34;
    let Model { embd, ff, .. } = *model;
    let (q_width, kv_width) = (model.q_width(), model.kv_width());
    let splits = context.div_ceil(SPLIT).max(1);
    let positions = writer.alloc(4 * tokens);
    let mut residual = writer.alloc(floats(embd));
    for _ in 0..model.layers {
        let normed = writer.alloc(floats(embd));
        let input = writer.alloc(quantized(embd));
        writer.free(normed);
        let [q, k, v] = [q_width, kv_width, kv_width].map(|n| writer.alloc(floats(n)));
        writer.free(input);
        // Each part leaves its sum of values, its maximum and its sum of weights.
        let parts = writer.alloc(floats(splits * model.heads * (model.head_dim + 2)));
        let mixed = writer.alloc(floats(q_width));
        writer.free_all([parts, q, k, v]);
        let input = writer.alloc(quantized(q_width));
        writer.free(mixed);
        let out = writer.alloc(floats(embd));
        writer.free(input);
        let sum = writer.alloc(floats(embd));
        writer.free_all([out, residual]);
        let normed = writer.alloc(floats(embd));
        let input = writer.alloc(quantized(embd));
        writer.free(normed);
        let [gate, up] = [ff, ff].map(|n| writer.alloc(floats(n)));
        writer.free(input);
        let input = writer.alloc(quantized(ff));
        writer.free_all([gate, up]);
        let down = writer.alloc(floats(embd));
        writer.free(input);
        residual = writer.alloc(floats(embd));
        writer.free_all([down, sum]);
    }
    let normed = writer.alloc(4 * outputs * embd);
    writer.free_all([residual, positions]);
    let logits = writer.alloc(4 * outputs * model.vocab);
    writer.free_all([normed, logits]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::model::{LLAMA_1B, SMOL};

    #[test]
    fn every_step_frees_all_of_its_blocks() {
        let script = decode(&SMOL, 3, 3, 500, 20);
        script.check().unwrap();
        let allocations = script.cycle.iter().filter(|op| op.size != 0).count();
        assert_eq!(2 * allocations, script.cycle.len());
        assert_eq!(allocations, 20 * (4 + 17 * 30));
        assert!(script.slots < 16, "a step needs few blocks at once: {}", script.slots);
    }

    #[test]
    fn the_logits_are_the_largest_of_a_token() {
        let script = decode(&LLAMA_1B, 1, 1, 0, 1);
        let largest = script.cycle.iter().map(|op| op.size).max().unwrap();
        assert_eq!(u64::from(largest), 4 * LLAMA_1B.vocab);
    }
}
