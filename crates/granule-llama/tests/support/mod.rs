//! What the engine's tests share: the naive twin, and a maker of models.

pub mod make;
pub mod naive;
