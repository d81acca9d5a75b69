//! SwiGLU, `y = gate * sigmoid(gate) * up` (Shazeer, 2020).

mod cpu;

pub use cpu::swiglu;
