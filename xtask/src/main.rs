//! Chores of the project: `cargo xtask check|test|tidy|oracles`.
fn main() {}
