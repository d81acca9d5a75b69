//! Everyone who is measured.

use granule_device::{Device, HostOptions};

use crate::Subject;
use crate::subjects::{
    ClassLifo, GgmlList, Granule, Nothing, Offsets, Plain, SlabFloor, mimalloc, system_malloc,
};

/// Meets the subjects one by one, each new.
pub trait Visitor {
    /// One of them.
    fn visit<S: Subject>(&mut self, subject: S);
}

/// What the subjects have to be fit for.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Streams.
    pub streams: usize,
    /// Bytes live at once.
    pub peak: u64,
    /// Whether those are among them that need a thousand times as long as others.
    pub slow: bool,
    /// Bytes of a granule.
    pub granule: u64,
}

impl Field {
    /// Floors, peers and ours.
    pub fn visit(self, visitor: &mut impl Visitor) {
        visitor.visit(Nothing);
        visitor.visit(ClassLifo::default());
        visitor.visit(Granule::with(self.streams, self.granule));
        visitor.visit(SlabFloor::default());
        visitor.visit(system_malloc());
        visitor.visit(mimalloc());
        visitor.visit(Offsets::new(self.peak.saturating_mul(4)));
        visitor.visit(GgmlList::new(self.streams));
        if self.slow {
            let device = Device::host_with(HostOptions::new()).expect("a host");
            visitor.visit(Plain::new(&device));
        }
    }
}
