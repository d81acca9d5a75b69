//! What takes long and proves nothing about an order of events.

mod faults;
mod wide;
