//! Benchmarks live under `benches/`; their committed results under `record/`.
