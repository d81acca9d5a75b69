//! The space against a naive model.
