//! The `granule` command.
fn main() {}
