//! Contexts: whose streams and memory are whose, and what happens when one goes.

use super::call::Call;
use super::{Caller, Result, Simulation};
use crate::code::Code;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: usize,
    /// Times retained; 0 for a context of `cuCtxCreate`, which lives until it is destroyed.
    pub(crate) retained: u32,
    pub(crate) made: Call,
    pub(crate) flags: u32,
    /// An error of the device that nothing but the context's end repairs.
    pub(crate) sticky: Option<Code>,
    /// Devices whose plain memory this context's work may reach.
    pub(crate) peers: Vec<usize>,
    /// The legacy default stream under `None`, threads' default streams under their thread.
    pub(crate) default_streams: BTreeMap<Option<u64>, u64>,
    pub(crate) limits: BTreeMap<i32, u64>,
}

impl Simulation {
    fn new_context(&mut self, made: Call, device: usize, flags: u32, retained: u32) -> Result<u64> {
        self.charge(device, self.config.context)?;
        let handle = self.new_handle();
        let limits = BTreeMap::from([(0, 1024), (1, 1 << 20), (2, 8 << 20), (5, 64), (6, 0)]);
        let context = Context {
            device,
            retained,
            made,
            flags,
            sticky: None,
            peers: Vec::new(),
            default_streams: BTreeMap::new(),
            limits,
        };
        self.contexts.insert(handle, context);
        Ok(handle)
    }

    pub(crate) fn retain_primary(&mut self, caller: &Caller, device: i32) -> Result<u64> {
        let device = self.device(device)?;
        if let Some(handle) = self.devices[device].primary
            && let Some(context) = self.contexts.get_mut(&handle)
        {
            context.retained += 1;
            return Ok(handle);
        }
        let flags = self.devices[device].primary_flags;
        let handle = self.new_context(caller.call, device, flags, 1)?;
        self.devices[device].primary = Some(handle);
        Ok(handle)
    }

    pub(crate) fn release_primary(&mut self, caller: &Caller, device: i32) -> Result<()> {
        let device = self.device(device)?;
        let handle = self.devices[device].primary.ok_or(Code::INVALID_CONTEXT)?;
        let context = self.contexts.get_mut(&handle).ok_or(Code::INVALID_CONTEXT)?;
        context.retained -= 1;
        if context.retained == 0 {
            self.end_context(caller, handle);
        }
        Ok(())
    }

    pub(crate) fn reset_primary(&mut self, caller: &Caller, device: i32) -> Result<()> {
        let device = self.device(device)?;
        if let Some(handle) = self.devices[device].primary {
            self.end_context(caller, handle);
        }
        Ok(())
    }

    /// Flags, and whether it is active.
    pub(crate) fn primary_state(&self, device: i32) -> Result<(u32, bool)> {
        let device = &self.devices[self.device(device)?];
        Ok((device.primary_flags, device.primary.is_some()))
    }

    pub(crate) fn set_primary_flags(&mut self, device: i32, flags: u32) -> Result<()> {
        let device = self.device(device)?;
        self.devices[device].primary_flags = flags;
        Ok(())
    }

    pub(crate) fn create_context(&mut self, caller: &Caller, device: i32, flags: u32) -> Result<u64> {
        let device = self.device(device)?;
        self.new_context(caller.call, device, flags, 0)
    }

    pub(crate) fn destroy_context(&mut self, caller: &Caller, handle: u64) -> Result<()> {
        if !self.contexts.contains_key(&handle) {
            return Err(Code::INVALID_CONTEXT);
        }
        self.end_context(caller, handle);
        Ok(())
    }

    /// What is queued runs, what is left is a leak, and then it is gone.
    fn end_context(&mut self, caller: &Caller, handle: u64) {
        // What waits for other ranks of NCCL goes on without them.
        let comms: Vec<u64> =
            self.nccl.comms.iter().filter(|(_, c)| c.context == handle).map(|(&comm, _)| comm).collect();
        comms.iter().for_each(|&comm| self.let_nccl_pass(comm));
        // All work: another context's may use this one's memory.
        self.wait_for_streams(|_| true);
        self.report_leaks(caller.call, handle);
        let Some(context) = self.contexts.remove(&handle) else { return };
        let device = &mut self.devices[context.device];
        device.used -= self.config.context;
        if device.primary == Some(handle) {
            device.primary = None;
        }
        self.end_captures_of_context(handle);
        self.streams.retain(|_, s| s.context != handle);
        self.events.retain(|_, e| e.context != handle);
        self.modules.retain(|_, m| m.context != handle);
        self.blas.retain(|_, b| b.context != handle);
        self.nccl.comms.retain(|_, c| c.context != handle);
        self.functions.retain(|_, f| f.context != handle);
        let held: Vec<u64> =
            self.memory.live.values().filter(|a| a.context == handle).map(|a| a.start).collect();
        for start in held {
            self.drop_allocation(caller.call, start);
        }
    }

    /// The caller's context, in good health.
    pub(crate) fn context(&self, caller: &Caller) -> Result<u64> {
        let handle = caller.context.ok_or(Code::INVALID_CONTEXT)?;
        if !self.contexts.contains_key(&handle) {
            return Err(Code::CONTEXT_IS_DESTROYED);
        }
        self.context_health(handle)?;
        Ok(handle)
    }

    pub(crate) fn context_exists(&self, handle: u64) -> bool {
        self.contexts.contains_key(&handle)
    }

    /// The sticky error, if there is one.
    pub(crate) fn context_health(&self, handle: u64) -> Result<()> {
        self.contexts.get(&handle).and_then(|c| c.sticky).map_or(Ok(()), Err)
    }

    pub(crate) fn context_info(&self, handle: u64) -> Result<&Context> {
        self.contexts.get(&handle).ok_or(Code::INVALID_CONTEXT)
    }

    pub(crate) fn context_info_mut(&mut self, handle: u64) -> Result<&mut Context> {
        self.contexts.get_mut(&handle).ok_or(Code::INVALID_CONTEXT)
    }

    pub(crate) fn context_device(&self, caller: &Caller) -> Result<usize> {
        let handle = self.context(caller)?;
        self.context_info(handle).map(|c| c.device)
    }

    pub(crate) fn synchronize_context(&mut self, caller: &Caller) -> Result<()> {
        let handle = self.context(caller)?;
        self.refuse_if_any_captures(handle)?;
        if !self.nccl.comms.is_empty() {
            self.run_streams(|s| s.context == handle)?;
        }
        self.wait_for_streams(|s| s.context == handle);
        self.context_health(handle)
    }

    pub(crate) fn enable_peer_access(&mut self, caller: &Caller, peer: u64) -> Result<()> {
        let handle = self.context(caller)?;
        let other = self.context_info(peer)?.device;
        let peers = self.config.peers;
        let context = self.context_info_mut(handle)?;
        if other == context.device {
            return Err(Code::INVALID_DEVICE);
        }
        if !peers {
            return Err(Code::PEER_ACCESS_UNSUPPORTED);
        }
        if context.peers.contains(&other) {
            return Err(Code::PEER_ACCESS_ALREADY_ENABLED);
        }
        context.peers.push(other);
        Ok(())
    }

    pub(crate) fn disable_peer_access(&mut self, caller: &Caller, peer: u64) -> Result<()> {
        let handle = self.context(caller)?;
        let other = self.context_info(peer)?.device;
        let context = self.context_info_mut(handle)?;
        let place = context.peers.iter().position(|&p| p == other).ok_or(Code::PEER_ACCESS_NOT_ENABLED)?;
        context.peers.remove(place);
        Ok(())
    }
}
