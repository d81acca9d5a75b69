//! Granule's command line, and a facade over its library crates.
