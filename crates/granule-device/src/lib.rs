//! Devices, memory kinds, virtual memory, streams and events behind one handle.
#![doc = include_str!("../README.md")]

// Where there is no device to build, nothing makes use of the seam.
#[cfg_attr(not(all(target_os = "linux", feature = "cuda")), allow(dead_code))]
mod backend;
mod buffer;
mod bytes;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod error;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod fault;
mod granule;
#[cfg(target_os = "linux")]
mod host;
#[cfg(not(target_os = "linux"))]
#[path = "host_elsewhere.rs"]
mod host;
mod lease;
mod lent;
mod live;
mod mapped_file;
mod region;
mod registered;
mod reservation;
mod retired;
mod slice;
mod stream;
mod suballocation;

pub use buffer::{Buffer, Managed, Pinned, StreamBuffer};
pub use bytes::Bytes;
#[cfg(feature = "cublas")]
pub use cuda::{Blas, Gemm, GemmType};
#[cfg(feature = "cuda")]
pub use cuda::{
    ComputeCapability, CudaInfo, CudaOptions, CudaView, CudaViewMut, ExecutableGraph, Function,
    FunctionAttributes, Graph, KernelArgument, Launch, LaunchShape, Module, NvtxRange, cuda_devices,
};
#[cfg(feature = "nccl")]
pub use cuda::{Nccl, NcclId, NcclPart};
pub use device::{Access, Device, DeviceKind, Features, HostOptions, MemoryInfo};
pub use error::Error;
pub use fault::{FaultGuard, FaultPlan, calls_made_here};
pub use granule::Granule;
pub use lease::{Lease, LeaseMode};
pub use lent::Lent;
pub use live::LiveCounts;
pub use mapped_file::MappedFile;
pub use region::{Memory, Region};
pub use registered::{Registered, RegisteredMemory};
pub use reservation::Reservation;
pub use retired::Retired;
pub use slice::{DevicePtr, DeviceSlice, DeviceSliceMut, Home, checked_range};
pub use stream::{Event, Stream};
pub use suballocation::Suballocation;
