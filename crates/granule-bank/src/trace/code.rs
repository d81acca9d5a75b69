//! Events as bytes, and back. Pure; what it reads may be anything.

use granule_device::Bytes;

use super::event::{DeviceId, Event, OwnerId, PoolId, RangeId, StreamId};
use super::{MAX_GRANULES, MAX_TEXT};

/// What one block's events are told apart from: each says only how it differs from the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    ns: u64,
    address: u64,
}

/// A block being written.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    pub(super) events: u64,
    last: Last,
}

impl Block {
    /// Adds an event that happened at `ns`, which is not before the one before.
    pub(super) fn push(&mut self, ns: u64, event: &Event) {
        if self.bytes.is_empty() {
            self.last = Last { ns, address: 0 };
            varint(&mut self.bytes, ns);
        }
        let since = ns.saturating_sub(self.last.ns);
        self.last.ns += since;
        let mut out = Out { bytes: &mut self.bytes, last: &mut self.last };
        out.event(since, event);
        self.events += 1;
    }
}

struct Out<'a> {
    bytes: &'a mut Vec<u8>,
    last: &'a mut Last,
}

impl Out<'_> {
    fn tag(&mut self, tag: u8, since: u64) -> &mut Self {
        self.bytes.push(tag);
        self.num(since)
    }

    fn num(&mut self, value: impl Into<u64>) -> &mut Self {
        varint(self.bytes, value.into());
        self
    }

    fn size(&mut self, value: Bytes) -> &mut Self {
        self.num(value.get())
    }

    fn address(&mut self, address: u64) -> &mut Self {
        let by = address.wrapping_sub(self.last.address);
        self.last.address = address;
        self.num(zigzag(by))
    }

    fn stream(&mut self, stream: Option<StreamId>) -> &mut Self {
        self.num(stream.map_or(0, |stream| u64::from(stream.0) + 1))
    }

    fn text(&mut self, text: &str) -> &mut Self {
        let text = cut(text);
        self.num(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
        self
    }

    fn granules(&mut self, granules: &[u64]) -> &mut Self {
        self.num(granules.len() as u64);
        let mut before = 0;
        for (index, granule) in granules.iter().enumerate() {
            let by = granule.wrapping_sub(before);
            self.num(if index == 0 { by } else { zigzag(by) });
            before = *granule;
        }
        self
    }

    fn event(&mut self, since: u64, event: &Event) {
        match event {
            Event::Start { unix_ms, label } => self.tag(0, since).num(*unix_ms).text(label),
            Event::Device { device, name, granule, budget } => {
                self.tag(1, since).num(device.0).text(name).size(*granule).size(*budget)
            }
            Event::Owner { owner, name } => self.tag(2, since).num(owner.0).text(name),
            Event::Pool { pool, device, owner } => self.tag(3, since).num(pool.0).num(device.0).num(owner.0),
            Event::PoolGone { pool } => self.tag(4, since).num(pool.0),
            Event::Stream { stream, device, name } => {
                self.tag(5, since).num(stream.0).num(device.0).text(name)
            }
            Event::StreamGone { stream } => self.tag(6, since).num(stream.0),
            Event::Range { range, device, owner, base, place, places } => self
                .tag(7, since)
                .num(range.0)
                .num(device.0)
                .num(owner.0)
                .address(*base)
                .size(*place)
                .num(*places),
            Event::Arena { range, pool } => self.tag(8, since).num(range.0).num(pool.0),
            Event::RangeGone { range } => self.tag(9, since).num(range.0),
            Event::Map { range, place, granules } => {
                self.tag(10, since).num(range.0).num(*place).granules(granules)
            }
            Event::Unmap { range, place, count } => self.tag(11, since).num(range.0).num(*place).num(*count),
            Event::Retire { range, place, count } => self.tag(12, since).num(range.0).num(*place).num(*count),
            Event::Length { range, used } => self.tag(13, since).num(range.0).size(*used),
            Event::Create { device, count } => self.tag(14, since).num(device.0).num(*count),
            Event::Destroy { device, count } => self.tag(15, since).num(device.0).num(*count),
            Event::Take { device, owner, granules } => {
                self.tag(16, since).num(device.0).num(owner.0).granules(granules)
            }
            Event::Give { device, owner, granules } => {
                self.tag(17, since).num(device.0).num(owner.0).granules(granules)
            }
            Event::Charge { device, owner, size } => {
                self.tag(18, since).num(device.0).num(owner.0).size(*size)
            }
            Event::Discharge { device, owner, size } => {
                self.tag(19, since).num(device.0).num(owner.0).size(*size)
            }
            Event::Refused { device, owner, requested } => {
                self.tag(20, since).num(device.0).num(owner.0).size(*requested)
            }
            Event::Alloc { at, pool, owner, stream, requested, given, align } => self
                .tag(21, since)
                .address(*at)
                .num(pool.0)
                .num(owner.0)
                .stream(*stream)
                .size(*requested)
                .size(*given)
                .size(*align),
            Event::Used { at, stream } => self.tag(22, since).address(*at).num(stream.0),
            Event::Free { at } => self.tag(23, since).address(*at),
            Event::Steal { at, from } => self.tag(24, since).address(*at).stream(*from),
            Event::Wait { stream, on } => self.tag(25, since).num(stream.0).num(on.0),
            Event::CaptureBegin { stream } => self.tag(26, since).num(stream.0),
            Event::CaptureEnd { stream } => self.tag(27, since).num(stream.0),
            Event::Trim { pool, freed } => self.tag(28, since).num(pool.0).size(*freed),
            Event::Mark { text } => self.tag(29, since).text(text),
            Event::Lost { events } => self.tag(30, since).num(*events),
            Event::End => self.tag(31, since),
        };
    }
}

/// What is wrong with bytes that are no event, and how far in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) at: usize,
    pub(super) what: &'static str,
}

/// A payload being read.
#[derive(Debug)]
pub(super) struct Payload {
    bytes: Vec<u8>,
    at: usize,
    last: Last,
}

impl Payload {
    /// Reads the payload's own time.
    pub(super) fn new(bytes: Vec<u8>) -> Result<Payload, Bad> {
        let mut payload = Payload { bytes, at: 0, last: Last::default() };
        payload.last.ns = payload.num()?;
        Ok(payload)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn none() -> Payload {
        Payload { bytes: Vec::new(), at: 0, last: Last::default() }
    }

    /// The next event and its time; none where the payload is at its end.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Event)>, Bad> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.byte()?;
        let since = self.num()?;
        let Some(ns) = self.last.ns.checked_add(since) else {
            return Err(Bad { at: start, what: "a time beyond all times" });
        };
        self.last.ns = ns;
        match self.event(tag)? {
            Some(event) => Ok(Some((ns, event))),
            None => Err(Bad { at: start, what: "an event of no known kind" }),
        }
    }

    fn event(&mut self, tag: u8) -> Result<Option<Event>, Bad> {
        Ok(Some(match tag {
            0 => Event::Start { unix_ms: self.num()?, label: self.text()? },
            1 => Event::Device {
                device: DeviceId(self.id()?),
                name: self.text()?,
                granule: self.size()?,
                budget: self.size()?,
            },
            2 => Event::Owner { owner: OwnerId(self.id()?), name: self.text()? },
            3 => Event::Pool {
                pool: PoolId(self.id()?),
                device: DeviceId(self.id()?),
                owner: OwnerId(self.id()?),
            },
            4 => Event::PoolGone { pool: PoolId(self.id()?) },
            5 => Event::Stream {
                stream: StreamId(self.id()?),
                device: DeviceId(self.id()?),
                name: self.text()?,
            },
            6 => Event::StreamGone { stream: StreamId(self.id()?) },
            7 => Event::Range {
                range: RangeId(self.id()?),
                device: DeviceId(self.id()?),
                owner: OwnerId(self.id()?),
                base: self.address()?,
                place: self.size()?,
                places: self.num()?,
            },
            8 => Event::Arena { range: RangeId(self.id()?), pool: PoolId(self.id()?) },
            9 => Event::RangeGone { range: RangeId(self.id()?) },
            10 => Event::Map { range: RangeId(self.id()?), place: self.num()?, granules: self.granules()? },
            11 => Event::Unmap { range: RangeId(self.id()?), place: self.num()?, count: self.num()? },
            12 => Event::Retire { range: RangeId(self.id()?), place: self.num()?, count: self.num()? },
            13 => Event::Length { range: RangeId(self.id()?), used: self.size()? },
            14 => Event::Create { device: DeviceId(self.id()?), count: self.num()? },
            15 => Event::Destroy { device: DeviceId(self.id()?), count: self.num()? },
            16 => Event::Take {
                device: DeviceId(self.id()?),
                owner: OwnerId(self.id()?),
                granules: self.granules()?,
            },
            17 => Event::Give {
                device: DeviceId(self.id()?),
                owner: OwnerId(self.id()?),
                granules: self.granules()?,
            },
            18 => {
                Event::Charge { device: DeviceId(self.id()?), owner: OwnerId(self.id()?), size: self.size()? }
            }
            19 => Event::Discharge {
                device: DeviceId(self.id()?),
                owner: OwnerId(self.id()?),
                size: self.size()?,
            },
            20 => Event::Refused {
                device: DeviceId(self.id()?),
                owner: OwnerId(self.id()?),
                requested: self.size()?,
            },
            21 => Event::Alloc {
                at: self.address()?,
                pool: PoolId(self.id()?),
                owner: OwnerId(self.id()?),
                stream: self.stream()?,
                requested: self.size()?,
                given: self.size()?,
                align: self.size()?,
            },
            22 => Event::Used { at: self.address()?, stream: StreamId(self.id()?) },
            23 => Event::Free { at: self.address()? },
            24 => Event::Steal { at: self.address()?, from: self.stream()? },
            25 => Event::Wait { stream: StreamId(self.id()?), on: StreamId(self.id()?) },
            26 => Event::CaptureBegin { stream: StreamId(self.id()?) },
            27 => Event::CaptureEnd { stream: StreamId(self.id()?) },
            28 => Event::Trim { pool: PoolId(self.id()?), freed: self.size()? },
            29 => Event::Mark { text: self.text()? },
            30 => Event::Lost { events: self.num()? },
            31 => Event::End,
            _ => return Ok(None),
        }))
    }

    fn bad<T>(&self, what: &'static str) -> Result<T, Bad> {
        Err(Bad { at: self.at, what })
    }

    fn byte(&mut self) -> Result<u8, Bad> {
        let Some(byte) = self.bytes.get(self.at) else { return self.bad("an event is cut off") };
        self.at += 1;
        Ok(*byte)
    }

    fn num(&mut self) -> Result<u64, Bad> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return self.bad("a number does not fit 64 bits");
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        self.bad("a number does not fit 64 bits")
    }

    fn id(&mut self) -> Result<u32, Bad> {
        match u32::try_from(self.num()?) {
            Ok(id) => Ok(id),
            Err(_) => self.bad("an id does not fit 32 bits"),
        }
    }

    fn size(&mut self) -> Result<Bytes, Bad> {
        Ok(Bytes::new(self.num()?))
    }

    fn address(&mut self) -> Result<u64, Bad> {
        let by = unzigzag(self.num()?);
        self.last.address = self.last.address.wrapping_add(by);
        Ok(self.last.address)
    }

    fn stream(&mut self) -> Result<Option<StreamId>, Bad> {
        match self.num()?.checked_sub(1).map(u32::try_from) {
            None => Ok(None),
            Some(Ok(id)) => Ok(Some(StreamId(id))),
            Some(Err(_)) => self.bad("an id does not fit 32 bits"),
        }
    }

    fn text(&mut self) -> Result<String, Bad> {
        let len = self.num()?;
        let rest = &self.bytes[self.at..];
        let text = match usize::try_from(len) {
            Ok(len) if len <= MAX_TEXT => rest.get(..len),
            _ => return self.bad("a text is too long"),
        };
        let Some(text) = text else { return self.bad("an event is cut off") };
        let Ok(text) = str::from_utf8(text) else { return self.bad("a text is not UTF-8") };
        let text = text.to_owned();
        self.at += text.len();
        Ok(text)
    }

    fn granules(&mut self) -> Result<Vec<u64>, Bad> {
        let count = match usize::try_from(self.num()?) {
            Ok(count) if count <= MAX_GRANULES => count,
            _ => return self.bad("too many granules in one event"),
        };
        let mut granules: Vec<u64> = Vec::new();
        for _ in 0..count {
            let number = self.num()?;
            granules.push(match granules.last() {
                None => number,
                Some(before) => before.wrapping_add(unzigzag(number)),
            });
        }
        Ok(granules)
    }
}

/// The longest beginning of the text that may be written.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

/// A difference modulo 2^64, read as signed, with small ones of either sign as small numbers.
fn zigzag(by: u64) -> u64 {
    let sign = by.cast_signed() >> 63;
    (by << 1) ^ sign.cast_unsigned()
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}
