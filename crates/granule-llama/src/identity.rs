//! What a model is told apart by: whether keys and values of one are those of another.
//!
//! The digest is FNV-1a of 128 bits over the numbers that the forward pass uses, and over each tensor's name, dimensions, type
//! and a sample of its bytes: all of a tensor up to 16 KiB, of a larger one 64 pieces of 64 bytes, evenly spread, the first
//! and the last among them. That reads less than a MiB of most models, where all of a file would be read twice.
//!
//! What it tells apart: other shapes and types, other trainings, fine-tunes and quantizations, which change nearly every block of
//! the tensors that they change. What it does not: files that differ only between the pieces, as a flipped bit or an edit by hand
//! would; and whoever wants to deceive it. What it leaves out on purpose: whatever makes no difference to keys and values, such as
//! the vocabulary's texts, the chat template, and how many files the model comes in.

use granule_kv::Identity;

use crate::config::Config;
use crate::error::Result;
use crate::weights::Weights;

/// Tensors up to this size are read whole.
const WHOLE: usize = 16 << 10;
/// Pieces of a larger tensor, and bytes of each.
const PIECES: usize = 64;
const PIECE: usize = 64;

/// The identity of a model without a transform.
///
/// # Errors
/// None in practice: a loaded model has its weights.
pub(crate) fn identity(config: &Config, weights: &Weights) -> Result<Identity> {
    let mut digest = Fnv::new();
    let numbers =
        [config.n_embd, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim, config.n_ff];
    for number in numbers.into_iter().chain([config.n_vocab]) {
        digest.add(&(number as u64).to_le_bytes());
    }
    digest.add(&config.rms_eps.to_le_bytes());
    // By name: in which file a tensor lies, and in which order, makes no difference.
    let mut tensors = weights.files().tensors_with_bytes()?;
    tensors.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for (info, bytes) in tensors {
        digest.add(&(info.name.len() as u64).to_le_bytes());
        digest.add(info.name.as_bytes());
        digest.add(info.ty.name().as_bytes());
        digest.add(&(info.dims.len() as u64).to_le_bytes());
        info.dims.iter().for_each(|dim| digest.add(&dim.to_le_bytes()));
        sample(bytes, &mut |piece| digest.add(piece));
    }
    let mut rope = (config.rope_dims as u64).to_le_bytes().to_vec();
    rope.extend(config.rope_base.to_le_bytes());
    rope.extend(config.rope_linear.to_le_bytes());
    rope.extend(weights.rope_factors.iter().flatten().flat_map(|factor| factor.to_le_bytes()));
    Ok(Identity { model: digest.0.to_le_bytes().to_vec(), rope, transform: Vec::new() })
}

fn sample(bytes: &[u8], piece: &mut dyn FnMut(&[u8])) {
    if bytes.len() <= WHOLE {
        return piece(bytes);
    }
    let last = bytes.len() - PIECE;
    for i in 0..PIECES {
        let at = (last as u128 * i as u128 / (PIECES - 1) as u128) as usize;
        piece(&bytes[at..at + PIECE]);
    }
}

/// FNV-1a of 128 bits (Fowler, Noll and Vo; RFC 9923).
struct Fnv(u128);

impl Fnv {
    const PRIME: u128 = (1 << 88) + 0x13b;

    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(Self::PRIME);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification's test vectors.
    #[test]
    fn the_digest_is_fnv_1a() {
        let of = |text: &str| {
            let mut digest = Fnv::new();
            digest.add(text.as_bytes());
            digest.0
        };
        assert_eq!(of(""), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(of("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(of("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn samples_begin_and_end_with_the_tensor() {
        for len in [0, 1, WHOLE, WHOLE + 1, 5 * WHOLE + 3] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut pieces = Vec::new();
            sample(&bytes, &mut |piece| pieces.push(piece.to_vec()));
            assert_eq!(pieces.len(), if len > WHOLE { PIECES } else { 1 });
            assert!(bytes.starts_with(&pieces[0]) && bytes.ends_with(&pieces[pieces.len() - 1]), "{len}");
        }
    }
}
