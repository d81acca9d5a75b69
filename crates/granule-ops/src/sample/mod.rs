//! Drawing tokens on a CUDA device: one for each row of logits, from what is in device memory alone, so that a captured graph draws
//! anew each time it is launched. On the host `granule-llama` samples; the rules are the same.
//!
//! Of a row, in this order: the `top_k` likeliest tokens; of these the likeliest until their probabilities sum to `top_p`; of these
//! the ones at least `min_p` times as likely as the likeliest; then one by the probabilities at temperature `temp`. Each step sees
//! what the one before it left. The likelier come first, of equals the one with the lower id; where neither `top_k` nor `top_p`
//! leaves any out, tokens are drawn in the order of their ids. Weights are whole numbers of 2^-44 of the likeliest's, so sums are
//! exact and results do not depend on the device; against exact weights a boundary between two tokens moves by at most 2^-45 of that
//! for each token before it.

mod cuda;

pub use cuda::{cuda, penalize, scratch_bytes};

/// How one row is drawn. No value is refused: what is out of range counts as the nearest that is in it, NaN as what leaves out
/// nothing (`temp`, `min_p`: everything but the likeliest).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// A random number from 0 up to but not including 1, of which 53 bits count.
    pub random: f64,
    /// Logits are divided by it before the draw; 0 takes the likeliest token.
    pub temp: f32,
    /// Keep so many of the likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest until their probabilities sum to it; 1 keeps all.
    pub top_p: f32,
    /// Keep what is at least so many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// What [`penalize`] divides positive logits by, and multiplies others with.
    pub repeat_penalty: f32,
    /// How many tokens are listed for [`penalize`].
    pub penalized: usize,
}

impl Draw {
    /// Bytes of a row's draw on a device.
    pub const BYTES: usize = 40;

    /// What kernels read: `Draw` of `kernels/include/sample.cuh`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Draw::BYTES] {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        // How far below the largest logit a token may be. None is likelier than the likeliest.
        let reach = -f64::from(self.min_p).clamp(0.0, 1.0).ln();
        let mut bytes = [0; Draw::BYTES];
        bytes[..8].copy_from_slice(&self.random.to_le_bytes());
        bytes[8..16].copy_from_slice(&reach.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.temp.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.top_p.to_le_bytes());
        bytes[24..28].copy_from_slice(&count(self.top_k).to_le_bytes());
        bytes[28..32].copy_from_slice(&self.repeat_penalty.to_le_bytes());
        bytes[32..36].copy_from_slice(&count(self.penalized).to_le_bytes());
        bytes
    }
}

/// What was drawn for one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token; none where a logit is NaN or positive infinity, or all are negative infinity.
    pub token: Option<u32>,
    /// Its logit; where there is no token NaN, or an infinity that says which of the three it is.
    pub logit: f32,
}

impl Drawn {
    /// Bytes of the result of one row.
    pub const BYTES: usize = 8;

    /// The result of row `row`, out of what [`cuda`] has left once it is copied here: the ids of all rows, u32, then their logits,
    /// f32. None past the last row.
    #[must_use]
    pub fn of(result: &[u8], row: usize) -> Option<Drawn> {
        let (ids, logits) = result.split_at(result.len() / Drawn::BYTES * 4);
        let (id, logit) = (ids.as_chunks::<4>().0.get(row)?, logits.as_chunks::<4>().0.get(row)?);
        let id = u32::from_le_bytes(*id);
        Some(Drawn { token: (id != u32::MAX).then_some(id), logit: f32::from_le_bytes(*logit) })
    }
}
