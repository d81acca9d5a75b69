//! What the driver says about a pointer.

use super::memory::Holder;
use super::queue::Action;
use super::{Caller, Result, Simulation};
use crate::code::Code;
use std::ffi::c_void;

/// The value of a pointer's attribute: 1, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Flag(bool),
    Number(i32),
    Word(u64),
}

impl Value {
    /// # Safety
    /// `to` is null or may be written for as many bytes as the value has.
    pub(crate) unsafe fn write(self, to: *mut c_void) -> Result<()> {
        if to.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller's promise.
        unsafe {
            match self {
                Value::Flag(v) => to.cast::<u8>().write(v.into()),
                Value::Number(v) => to.cast::<i32>().write(v),
                Value::Word(v) => to.cast::<u64>().write(v),
            }
        }
        Ok(())
    }
}

/// What the driver knows about an address.
#[derive(Clone, Copy, Default)]
struct Known {
    context: u64,
    /// 1 host, 2 device.
    kind: i32,
    device: i32,
    start: u64,
    len: u64,
    managed: bool,
    host_pointer: Option<u64>,
    pool: u64,
}

impl Simulation {
    fn about(&self, at: u64) -> Option<Known> {
        if let Some(a) = self.memory.around(at) {
            let on_host = a.holder.on_host();
            let managed = a.holder == Holder::Managed;
            return Some(Known {
                context: a.context,
                kind: if on_host && !managed { 1 } else { 2 },
                device: a.device as i32,
                start: a.start,
                len: a.len,
                managed,
                host_pointer: on_host.then_some(at),
                pool: if let Holder::Pool(pool) = a.holder { pool } else { 0 },
            });
        }
        let m = self.memory.granules.mapping(at)?;
        let device = if m.store < self.config.devices { m.store as i32 } else { -2 };
        Some(Known { kind: 2, device, start: m.start, len: m.len, ..Known::default() })
    }

    /// One `CUpointer_attribute`. An address that the driver does not know is an error.
    pub(crate) fn pointer_attribute(&self, attribute: i32, at: u64) -> Result<Value> {
        let k = self.about(at).ok_or(Code::INVALID_VALUE)?;
        Ok(match attribute {
            1 => Value::Word(k.context),
            2 => Value::Number(k.kind),
            3 => Value::Word(at),
            4 => Value::Word(k.host_pointer.ok_or(Code::INVALID_VALUE)?),
            6 => Value::Flag(true),
            7 => Value::Word(k.start),
            8 => Value::Flag(k.managed),
            9 => Value::Number(k.device),
            11 => Value::Word(k.start),
            12 => Value::Word(k.len),
            13 => Value::Flag(true),
            17 => Value::Word(k.pool),
            _ => return Err(Code::NOT_SUPPORTED),
        })
    }

    /// As [`Simulation::pointer_attribute`], with nothing for an address that the driver does not know.
    pub(crate) fn pointer_attribute_or_none(&self, attribute: i32, at: u64) -> Result<Value> {
        match self.pointer_attribute(attribute, at) {
            Err(Code::INVALID_VALUE) => Ok(match attribute {
                2 => Value::Number(0),
                9 => Value::Number(-2),
                6 | 8 | 13 => Value::Flag(false),
                _ => Value::Word(0),
            }),
            other => other,
        }
    }

    /// The allocation around a pointer: start and length.
    pub(crate) fn address_range(&self, at: u64) -> Result<(u64, u64)> {
        self.about(at).map(|k| (k.start, k.len)).ok_or(Code::INVALID_VALUE)
    }

    /// The flags of pinned or registered memory; `None` for other memory of the driver.
    pub(crate) fn host_flags(&self, at: u64) -> Result<Option<u32>> {
        let holder = self.memory.around(at).ok_or(Code::INVALID_VALUE)?.holder;
        Ok(match holder {
            Holder::Pinned(flags) | Holder::Registered(flags) => Some(flags),
            Holder::Device | Holder::Pool(_) | Holder::Managed => None,
        })
    }

    /// Whether these bytes are managed memory.
    pub(crate) fn managed_range(&self, at: u64, len: u64) -> Result<()> {
        let a = self.memory.around(at).filter(|a| a.holder == Holder::Managed).ok_or(Code::INVALID_VALUE)?;
        if len <= a.start + a.len - at { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    /// A prefetch or an attachment: a place in the stream, and no effect.
    pub(crate) fn hint(&mut self, caller: &Caller, stream: u64, at: u64, len: u64) -> Result<()> {
        self.managed_range(at, len)?;
        self.issue(caller, stream, Action::Mark, false).map(|_| ())
    }
}
