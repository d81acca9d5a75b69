//! Softmax, `p_i = exp(x_i - max) / sum(exp(x_j - max))`.

mod cpu;

pub use cpu::{log_softmax_at, softmax};
