//! The tables of a transform on a device.

use std::ops::Range;

use granule_bank::{Bank, Charge, Owner};
use granule_device::{Buffer, Bytes};
use granule_ops::KvTransformTables;

use crate::error::Result;
use crate::kv_tables::Tables;

/// Where a layer's tables of keys and of values lie.
type Places = [Option<Range<usize>>; 2];

/// The tables of a stage's layers, in device memory.
#[derive(Debug)]
pub(super) struct Folds {
    /// Of which tables.
    id: u64,
    memory: Buffer,
    layers: Vec<Places>,
    charge: Charge,
}

impl Folds {
    pub(super) fn new(bank: &Bank, tables: &Tables, of: Range<usize>) -> Result<Self> {
        let mut numbers: Vec<f32> = Vec::new();
        let mut layers = Vec::with_capacity(of.len());
        for index in of {
            let layer = tables.transforms().layer(index);
            let folds = [layer.and_then(|l| l.key_fold()), layer.and_then(|l| l.value_fold())];
            layers.push(folds.map(|fold| {
                let at = size_of_val(&numbers[..]);
                numbers.extend(fold?.tables());
                Some(at..size_of_val(&numbers[..]))
            }));
        }
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        let size = Bytes::from_usize(bytes.len().max(1));
        let charge = bank.charge(&Owner::new("kv transform"), size)?;
        let mut memory = bank.device().alloc(size)?;
        bank.device().copy(bytes.into(), memory.slice_mut(..bytes.len())?)?;
        Ok(Self { id: tables.id(), memory, layers, charge })
    }

    /// Whether they are those of these tables.
    pub(super) fn are_of(&self, tables: &Tables) -> bool {
        self.id == tables.id()
    }

    pub(super) fn layer(&self, index: usize) -> Result<KvTransformTables<'_>> {
        let none = [None, None];
        let [keys, values] = self.layers.get(index).unwrap_or(&none);
        let slice = |at: &Option<Range<usize>>| at.clone().map(|at| self.memory.slice(at)).transpose();
        Ok(KvTransformTables { keys: slice(keys)?, values: slice(values)? })
    }

    pub(super) fn held(&self) -> Bytes {
        self.charge.size()
    }
}
