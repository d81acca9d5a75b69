//! Spans of steps and of their layers: for whoever subscribes to `tracing`, and under the same names as NVTX ranges for a profiler
//! that is attached. Where nobody looks, each costs a relaxed load, and one more for the profiler. The crate's documentation lists them.

#[cfg(feature = "cuda")]
use granule_device::NvtxRange;
use tracing::span::EnteredSpan;

/// What all spans are found by, whatever their module.
const TARGET: &str = "granule";

/// A span of this thread, and its range: both end when this is dropped.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub(crate) struct Entered {
    _span: EnteredSpan,
    #[cfg(feature = "cuda")]
    _range: NvtxRange,
}

/// A step of so many tokens of so many sequences.
#[inline]
pub(crate) fn step(tokens: usize, sequences: usize) -> Entered {
    Entered {
        _span: tracing::debug_span!(target: TARGET, "step", tokens, sequences).entered(),
        #[cfg(feature = "cuda")]
        _range: NvtxRange::new(c"step", tokens as u64),
    }
}

/// A layer, by its place in the model, on a device.
#[inline]
pub(crate) fn layer(index: usize, device: &str) -> Entered {
    Entered {
        _span: tracing::trace_span!(target: TARGET, "layer", index, device).entered(),
        #[cfg(feature = "cuda")]
        _range: NvtxRange::new(c"layer", index as u64),
    }
}
