//! `Script`: allocations and frees in a fixed order, drawn before anything is timed.

use std::collections::BTreeMap;

/// Operations whose time is taken together. One is an allocation or a free.
pub const BATCH: usize = 64;

/// One operation: 8 bytes, so that reading them costs next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Bytes to allocate; 0 frees.
    pub size: u32,
    /// Which entry of the table of live blocks it fills or empties.
    pub slot: u32,
}

/// Operations that are played once, and those that are then played over and over.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// What it is called in tables.
    pub name: String,
    /// Entries of the table of live blocks.
    pub slots: usize,
    /// What brings about the state in which the cycle begins.
    pub prologue: Vec<Op>,
    /// Ends with the sizes that it began with, each in its slot.
    pub cycle: Vec<Op>,
}

/// Part of a history that does not repeat itself; memory is looked at after it.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// What happens in it.
    pub name: String,
    /// Its operations.
    pub ops: Vec<Op>,
}

/// Writes operations, and hands out slots.
#[derive(Debug, Default)]
pub struct Writer {
    ops: Vec<Op>,
    unused: Vec<u32>,
    slots: u32,
}

impl Writer {
    /// With no operations.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Allocates `size` bytes; answers the slot of the block.
    ///
    /// # Panics
    /// Where `size` is 0 or over 4 GiB - 1.
    pub fn alloc(&mut self, size: u64) -> u32 {
        let size = u32::try_from(size).expect("a size of at most 4 GiB - 1");
        assert!(size > 0, "an operation of size 0 frees");
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.ops.push(Op { size, slot });
        slot
    }

    /// Frees the block in `slot`.
    pub fn free(&mut self, slot: u32) {
        self.ops.push(Op { size: 0, slot });
        self.unused.push(slot);
    }

    /// Frees the blocks in `slots`, one after the other.
    pub fn free_all(&mut self, slots: impl IntoIterator<Item = u32>) {
        slots.into_iter().for_each(|slot| self.free(slot));
    }

    /// What was written since the last time.
    pub fn take(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.ops)
    }

    /// Slots handed out so far.
    pub fn slots(&self) -> usize {
        self.slots as usize
    }
}

impl Script {
    /// The most bytes that are live at once, as they were asked for.
    pub fn peak_live(&self) -> u64 {
        let (mut live, mut now, mut peak) = (vec![0u64; self.slots], 0, 0);
        for op in self.prologue.iter().chain(&self.cycle) {
            now -= std::mem::replace(&mut live[op.slot as usize], u64::from(op.size));
            now += u64::from(op.size);
            peak = peak.max(now);
        }
        peak
    }

    /// Says what is wrong with it: a slot that is filled twice or emptied twice, a cycle that ends otherwise than it began.
    pub fn check(&self) -> Result<(), String> {
        let mut live = BTreeMap::new();
        let mut play = |ops: &[Op], what: &str| {
            for (at, op) in ops.iter().enumerate() {
                let before = if op.size == 0 { live.remove(&op.slot) } else { live.insert(op.slot, op.size) };
                if before.is_some() != (op.size == 0) || op.slot as usize >= self.slots {
                    return Err(format!("{}: operation {at} of the {what} does not fit: {op:?}", self.name));
                }
            }
            Ok(live.clone())
        };
        let begins = play(&self.prologue, "prologue")?;
        let ends = play(&self.cycle, "cycle")?;
        if begins == ends {
            Ok(())
        } else {
            Err(format!("{}: the cycle ends otherwise than it began", self.name))
        }
    }
}
