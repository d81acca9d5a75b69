//! The allocators: ours, the floors below it and the peers beside it.

mod ggml_list;
mod granule;
mod host_heap;
mod lifo;
mod nothing;
mod offset;
mod plain;
mod slab_floor;

pub use ggml_list::GgmlList;
pub use granule::Granule;
pub use host_heap::{HostHeap, mimalloc, system_malloc};
pub use lifo::ClassLifo;
pub use nothing::Nothing;
pub use offset::Offsets;
pub use plain::Plain;
pub use slab_floor::SlabFloor;
