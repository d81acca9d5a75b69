//! Stream-ordered allocation: memory that begins and ends at points of streams.

use super::call::Call;
use super::granules::{Access, Location};
use super::issue::Work;
use super::memory::Holder;
use super::queue::Action;
use super::races::Trace;
use super::span::Touch;
use super::{Caller, Result, Simulation};
use crate::code::Code;

/// A pool. It keeps no freed memory: what comes back goes back to the device.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) made: Call,
    pub(crate) default: bool,
    device: usize,
    used: u64,
    used_high: u64,
    /// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`, and the three kinds of reuse: kept for whoever asks.
    threshold: u64,
    reuse: [i32; 3],
    /// 0: as much as the device has.
    most: u64,
}

/// The value of a pool's attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolAttribute {
    Switch(i32),
    Bytes(u64),
}

impl Simulation {
    fn pools_exist(&self) -> Result<()> {
        if self.config.pools { Ok(()) } else { Err(Code::NOT_SUPPORTED) }
    }

    fn new_pool(&mut self, made: Call, device: usize, default: bool, most: u64) -> u64 {
        let handle = self.new_handle();
        let pool = Pool { made, default, device, used: 0, used_high: 0, threshold: 0, reuse: [1; 3], most };
        self.pools.insert(handle, pool);
        handle
    }

    pub(crate) fn default_pool(&mut self, caller: &Caller, device: i32) -> Result<u64> {
        self.pools_exist()?;
        let device = self.device(device)?;
        if let Some(pool) = self.devices[device].default_pool {
            return Ok(pool);
        }
        let pool = self.new_pool(caller.call, device, true, 0);
        self.devices[device].default_pool = Some(pool);
        Ok(pool)
    }

    pub(crate) fn current_pool(&mut self, caller: &Caller, device: i32) -> Result<u64> {
        let default = self.default_pool(caller, device)?;
        let device = self.device(device)?;
        Ok(self.devices[device].current_pool.filter(|p| self.pools.contains_key(p)).unwrap_or(default))
    }

    pub(crate) fn set_current_pool(&mut self, caller: &Caller, device: i32, pool: u64) -> Result<()> {
        let device = self.device(device)?;
        if self.pool(caller, pool)?.device != device {
            return Err(Code::INVALID_VALUE);
        }
        self.devices[device].current_pool = Some(pool);
        Ok(())
    }

    fn pool(&mut self, caller: &Caller, pool: u64) -> Result<&mut Pool> {
        if !self.pools.contains_key(&pool) {
            return self.bad_handle(caller, "pool", pool);
        }
        self.pools.get_mut(&pool).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn create_pool(
        &mut self,
        caller: &Caller,
        (kind, device): Location,
        most: u64,
    ) -> Result<u64> {
        self.pools_exist()?;
        if kind != 1 {
            return Err(Code::NOT_SUPPORTED);
        }
        let device = self.device(device)?;
        Ok(self.new_pool(caller.call, device, false, most))
    }

    pub(crate) fn destroy_pool(&mut self, caller: &Caller, pool: u64) -> Result<()> {
        if self.pool(caller, pool)?.default {
            return Err(Code::INVALID_VALUE);
        }
        self.pools.remove(&pool);
        self.memory.pool_access.retain(|(p, _)| *p != pool);
        Ok(())
    }

    pub(crate) fn trim_pool(&mut self, caller: &Caller, pool: u64) -> Result<()> {
        self.pool(caller, pool).map(|_| ())
    }

    /// One `CUmemPool_attribute`.
    pub(crate) fn pool_attribute(
        &mut self,
        caller: &Caller,
        pool: u64,
        attribute: i32,
    ) -> Result<PoolAttribute> {
        let p = self.pool(caller, pool)?;
        Ok(match attribute {
            1..=3 => PoolAttribute::Switch(p.reuse[attribute as usize - 1]),
            4 => PoolAttribute::Bytes(p.threshold),
            5 | 7 => PoolAttribute::Bytes(p.used),
            6 | 8 => PoolAttribute::Bytes(p.used_high),
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    pub(crate) fn set_pool_attribute(
        &mut self,
        caller: &Caller,
        pool: u64,
        attribute: i32,
        value: PoolAttribute,
    ) -> Result<()> {
        let p = self.pool(caller, pool)?;
        match (attribute, value) {
            (1..=3, PoolAttribute::Switch(on)) => p.reuse[attribute as usize - 1] = on,
            (4, PoolAttribute::Bytes(bytes)) => p.threshold = bytes,
            // The high-water marks can only be set back.
            (6 | 8, PoolAttribute::Bytes(0)) => p.used_high = p.used,
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }

    pub(crate) fn set_pool_access(&mut self, caller: &Caller, pool: u64, access: &[Access]) -> Result<()> {
        let owner = self.pool(caller, pool)?.device;
        for &((kind, id), flags) in access {
            let device = self.device(id)?;
            match (kind, flags) {
                (1, _) if device != owner && !self.config.peers => return Err(Code::INVALID_DEVICE),
                (1, 3) => {
                    self.memory.pool_access.insert((pool, device));
                }
                (1, 0) if device != owner => {
                    self.memory.pool_access.remove(&(pool, device));
                }
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        Ok(())
    }

    pub(crate) fn pool_access(&mut self, caller: &Caller, pool: u64, (kind, id): Location) -> Result<i32> {
        let owner = self.pool(caller, pool)?.device;
        let device = self.device(id)?;
        if kind != 1 {
            return Err(Code::INVALID_VALUE);
        }
        let reached = device == owner || self.memory.pool_access.contains(&(pool, device));
        Ok(if reached { 3 } else { 0 })
    }

    /// Memory from a pool, from this point of the stream on.
    pub(crate) fn allocate_async(
        &mut self,
        caller: &Caller,
        len: u64,
        pool: Option<u64>,
        stream: u64,
    ) -> Result<u64> {
        self.pools_exist()?;
        let context = self.stream(stream)?.context;
        self.context_health(context)?;
        if self.capture_of(stream)?.is_some() {
            // A memory node of a graph: not simulated.
            return self.capture_breaks(stream, Code::NOT_SUPPORTED);
        }
        self.capture_forbids_legacy(stream)?;
        let pool = match pool {
            Some(pool) => pool,
            None => {
                let device = self.context_info(context)?.device;
                self.current_pool(caller, device as i32)?
            }
        };
        let p = self.pool(caller, pool)?;
        let device = p.device;
        if p.most > 0 && p.used.saturating_add(len) > p.most {
            return Err(Code::OUT_OF_MEMORY);
        }
        let holder = Holder::Pool(pool);
        let mut got = self.allocate_on(caller, context, device, len, holder);
        while got == Err(Code::OUT_OF_MEMORY) && self.run_one(None) {
            // Memory whose end is queued comes back when the streams get there.
            got = self.allocate_on(caller, context, device, len, holder);
        }
        self.machine.close();
        let start = got?;
        let p = self.pool(caller, pool)?;
        p.used += len;
        p.used_high = p.used_high.max(p.used);
        // To the happens-before check the beginning is a write: whoever uses the memory must come after it.
        let span = self.memory.around(start).ok_or(Code::UNKNOWN)?.span;
        let trace = Trace { touch: Touch { span, write: true, atomic: false }, at: start };
        self.push(caller, stream, Work { action: Action::Mark, traces: vec![trace] }, &[])?;
        Ok(start)
    }

    /// The memory ends at this point of the stream.
    pub(crate) fn free_async(&mut self, caller: &Caller, start: u64, stream: u64) -> Result<()> {
        self.pools_exist()?;
        self.context_health(self.stream(stream)?.context)?;
        if self.capture_of(stream)?.is_some() {
            return self.capture_breaks(stream, Code::NOT_SUPPORTED);
        }
        let a = self.held(caller, start, |h| matches!(h, Holder::Device | Holder::Pool(_)))?;
        // Whichever device frees it: the end is no access.
        self.issue(caller, stream, Action::Free { start, len: a.len }, true)?;
        if let Some(a) = self.memory.live.get_mut(&start) {
            a.freed = Some(caller.call);
        }
        Ok(())
    }

    /// Memory of a pool is gone.
    pub(crate) fn pool_shrinks(&mut self, pool: u64, len: u64) {
        if let Some(p) = self.pools.get_mut(&pool) {
            p.used = p.used.saturating_sub(len);
        }
    }
}
