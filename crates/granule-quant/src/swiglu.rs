//! SwiGLU: the feed-forward's gate, written so that compilers make vectors of it and compiled once for each instruction set.

use crate::attend::portable_softmax::exp;
use crate::error::check_len;
use crate::isa::by_isa;
use crate::{Error, Isa};

impl Isa {
    /// `gate[i] = silu(gate[i]) * up[i]`, in place, with `silu(x) = x / (1 + exp(-x))` (Elfwing et al., 2018): within `2^-20` of
    /// the exact one, relatively. Below -87 the exponential stays at its value there.
    ///
    /// # Errors
    /// [`Error::Length`] where the two have different lengths. `gate` is then as it was.
    pub fn swiglu(self, gate: &mut [f32], up: &[f32]) -> Result<(), Error> {
        check_len("up", gate.len(), up.len())?;
        by_isa!(self, activation::swiglu(gate, up));
        Ok(())
    }
}

/// [`Isa::swiglu`], which has checked the lengths.
#[inline(always)]
pub(crate) fn portable<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (g, &u) in gate.iter_mut().zip(up) {
        // Of the magnitude, so that nothing overflows: 1 / (1 + exp(-x)) is exp(x) / (1 + exp(x)).
        let e = exp::<FMA>(-g.abs());
        let share = if *g < 0.0 { e } else { 1.0 };
        *g *= share / (1.0 + e) * u;
    }
}
