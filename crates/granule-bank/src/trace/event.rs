//! `Event`: one thing that happened to memory.

use granule_device::Bytes;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);
    )*};
}

ids! {
    /// A bank's device. [`Tracer::number`](super::Tracer::number) makes one.
    DeviceId
    /// An owner's name. [`Tracer::owner`](super::Tracer::owner) makes one.
    OwnerId
    /// A pool. [`Tracer::number`](super::Tracer::number) makes one.
    PoolId
    /// A stream. [`Tracer::number`](super::Tracer::number) makes one.
    StreamId
    /// A range of addresses. [`Tracer::number`](super::Tracer::number) makes one.
    RangeId
}

/// One thing that happened. Addresses are the device's, as numbers; sizes are bytes; counts say what they count.
///
/// What an owner *holds* on a device is what [`Event::Take`] and [`Event::Charge`] brought less what [`Event::Give`] and
/// [`Event::Discharge`] took; where it lies is told apart from that by [`Event::Map`] and [`Event::Unmap`]. A lease is told by
/// its address, which no other live lease has: it is freed in the recording before anybody else can have the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The recording began.
    Start {
        /// Milliseconds since 1970.
        unix_ms: u64,
        /// What is recorded, for people.
        label: String,
    },
    /// A bank over this device.
    Device {
        /// The device.
        device: DeviceId,
        /// Its name.
        name: String,
        /// The size of its granules.
        granule: Bytes,
        /// What its bank may hold in all.
        budget: Bytes,
    },
    /// A name that memory is taken under.
    Owner {
        /// The owner.
        owner: OwnerId,
        /// Its name.
        name: String,
    },
    /// A pool was made.
    Pool {
        /// The pool.
        pool: PoolId,
        /// Whose memory it leases.
        device: DeviceId,
        /// Who its granules are held by.
        owner: OwnerId,
    },
    /// A pool and all its leases are gone.
    PoolGone {
        /// The pool.
        pool: PoolId,
    },
    /// A stream that memory is leased for.
    Stream {
        /// The stream.
        stream: StreamId,
        /// Its device.
        device: DeviceId,
        /// Its name, for people.
        name: String,
    },
    /// Nobody uses the stream any more.
    StreamGone {
        /// The stream.
        stream: StreamId,
    },
    /// Addresses were reserved, with nothing behind them; or memory that is no granules was allocated, as one place.
    Range {
        /// The range.
        range: RangeId,
        /// Its device.
        device: DeviceId,
        /// Whose the granules behind it are.
        owner: OwnerId,
        /// Where it starts.
        base: u64,
        /// The size of one place: a granule, or all of it.
        place: Bytes,
        /// How many places.
        places: u64,
    },
    /// A pool cuts its leases from the range.
    Arena {
        /// The range.
        range: RangeId,
        /// The pool.
        pool: PoolId,
    },
    /// The addresses were given back, with whatever was behind them.
    RangeGone {
        /// The range.
        range: RangeId,
    },
    /// Granules were mapped behind the places from `place` on. One granule may stand behind several places.
    Map {
        /// The range.
        range: RangeId,
        /// The first place.
        place: u64,
        /// The granules, in the order of the places.
        granules: Vec<u64>,
    },
    /// Nothing is behind these places any more.
    Unmap {
        /// The range.
        range: RangeId,
        /// The first place.
        place: u64,
        /// How many places.
        count: u64,
    },
    /// These places are out of use, and stay mapped until device work is done.
    Retire {
        /// The range.
        range: RangeId,
        /// The first place.
        place: u64,
        /// How many places.
        count: u64,
    },
    /// How much of a range, from its start on, is in use.
    Length {
        /// The range.
        range: RangeId,
        /// From its start.
        used: Bytes,
    },
    /// The driver made granules.
    Create {
        /// The device.
        device: DeviceId,
        /// How many.
        count: u64,
    },
    /// Granules were given back to the driver.
    Destroy {
        /// The device.
        device: DeviceId,
        /// How many.
        count: u64,
    },
    /// The bank handed granules to an owner.
    Take {
        /// The bank's device.
        device: DeviceId,
        /// Who has them.
        owner: OwnerId,
        /// Which: numbers that no other granule has or will have.
        granules: Vec<u64>,
    },
    /// Granules came back to the bank: nobody holds or maps them any more.
    Give {
        /// The bank's device.
        device: DeviceId,
        /// Who had them.
        owner: OwnerId,
        /// Which: numbers that no other granule has or will have.
        granules: Vec<u64>,
    },
    /// Memory that is no granules counts as the owner's.
    Charge {
        /// The bank's device.
        device: DeviceId,
        /// Who has it.
        owner: OwnerId,
        /// How much.
        size: Bytes,
    },
    /// It does not any more.
    Discharge {
        /// The bank's device.
        device: DeviceId,
        /// Who had it.
        owner: OwnerId,
        /// How much.
        size: Bytes,
    },
    /// A bank refused memory to an owner, after everybody who could have given some was asked.
    Refused {
        /// The bank's device.
        device: DeviceId,
        /// Who asked.
        owner: OwnerId,
        /// For how much.
        requested: Bytes,
    },
    /// A pool leased memory.
    Alloc {
        /// Where: the lease's name until it is freed.
        at: u64,
        /// The pool.
        pool: PoolId,
        /// Who it is for.
        owner: OwnerId,
        /// The stream whose work uses it; none: this process's own threads.
        stream: Option<StreamId>,
        /// What was asked for.
        requested: Bytes,
        /// What it takes up.
        given: Bytes,
        /// The alignment asked for.
        align: Bytes,
    },
    /// The lease is used by a further stream.
    Used {
        /// The lease.
        at: u64,
        /// The stream.
        stream: StreamId,
    },
    /// The lease ended.
    Free {
        /// The lease.
        at: u64,
    },
    /// The lease's memory was another stream's before: it was taken from that one's heap.
    Steal {
        /// The lease, told of just before.
        at: u64,
        /// Whose it was; none: this process's own threads'.
        from: Option<StreamId>,
    },
    /// A stream was made to wait for what another one had been given so far.
    Wait {
        /// Who waits.
        stream: StreamId,
        /// For whom.
        on: StreamId,
    },
    /// The stream's work is captured from here on.
    CaptureBegin {
        /// The stream.
        stream: StreamId,
    },
    /// The capture ended.
    CaptureEnd {
        /// The stream.
        stream: StreamId,
    },
    /// A pool gave back what no lease was in.
    Trim {
        /// The pool.
        pool: PoolId,
        /// How much.
        freed: Bytes,
    },
    /// The program says where it is: "load", "token 17".
    Mark {
        /// What it says.
        text: String,
    },
    /// So many events from before this one are missing: the disk did not keep up.
    Lost {
        /// How many.
        events: u64,
    },
    /// The recording was finished. Nothing follows.
    End,
}
