//! What the engine's tests share: the naive twin, and a maker of models.

pub(crate) mod make;
pub(crate) mod naive;
