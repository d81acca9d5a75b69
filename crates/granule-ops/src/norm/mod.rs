//! Root mean square normalization, `y = x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich, 2019).

mod cpu;

pub use cpu::rms_norm;
