//! The space against a naive model, and its promises one by one.

mod ladder;
mod model;
mod promises;
mod random;
