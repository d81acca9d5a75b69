//! tales-5m with weights of every type, and what has to be true of whoever computes it, beside one device.

mod beside;
pub(crate) mod encode;
mod files;

pub(crate) use self::beside::{Told, WRITTEN, argmax, distance};
#[allow(unused_imports, reason = "of what tests share, each program needs a part")]
pub(crate) use self::files::{tales, tales_but, tales_of};

/// Layers of the model.
pub(crate) const LAYERS: usize = 6;
