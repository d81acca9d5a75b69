//! No pool: each block is an allocation of the device, as with `cudaMalloc` and `cudaFree`.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_device::{Buffer, Bytes, Device};

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// A device.
pub struct Plain {
    device: Device,
    calls_before: u64,
    held: AtomicU64,
}

impl Plain {
    /// On this device.
    pub fn new(device: &Device) -> Plain {
        Plain { device: device.clone(), calls_before: device.calls_made(), held: AtomicU64::new(0) }
    }
}

impl Subject for Plain {
    type Block = Buffer;
    type Handle<'a> = &'a Plain;

    fn name(&self) -> &'static str {
        "the device for each block"
    }

    fn handle(&self, _stream: usize) -> &Plain {
        self
    }

    fn footprint(&self) -> Footprint {
        let calls = self.device.calls_made() - self.calls_before;
        Footprint { reserved: Some(self.held.load(Ordering::Relaxed)), calls: Some(calls) }
    }
}

impl Handle for &Plain {
    type Block = Buffer;

    fn alloc(&mut self, size: u32) -> Buffer {
        self.held.fetch_add(u64::from(size), Ordering::Relaxed);
        self.device.alloc(Bytes::new(u64::from(size))).expect("room on the device")
    }

    fn free(&mut self, block: Last<'_, Buffer>) {
        let block = block.take();
        self.held.fetch_sub(block.len().get(), Ordering::Relaxed);
        drop(block);
    }

    fn address(block: &Buffer) -> u64 {
        block.ptr().addr()
    }
}
