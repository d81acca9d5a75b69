//! The policy of the pool: pure, on offsets and ids; no unsafe, no device.
