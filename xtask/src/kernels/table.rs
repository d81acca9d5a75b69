//! The table of what each kernel takes of a GPU, as markdown that is committed and compared.

use std::fmt::Write;

/// One kernel on one target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) kernel: String,
    /// With `sm_`.
    pub(super) target: String,
    pub(super) registers: u64,
    /// Bytes a thread block.
    pub(super) shared: u64,
    /// Bytes a thread.
    pub(super) stack: u64,
    /// Bytes a thread.
    pub(super) spill_stores: u64,
    /// Bytes a thread.
    pub(super) spill_loads: u64,
    /// Bytes of machine code.
    pub(super) code: u64,
}

/// Bytes of dynamic shared memory that a launcher asks for, at most, over all types: what ptxas does not know. Tests of
/// `granule-ops` hold them to the launchers. By the beginning of the kernel's name, the first one that fits.
const DYNAMIC: &[(&str, u64)] = &[
    ("activate_", 98_304),
    ("attention_128", 76_800),
    ("attention_64", 98_304),
    ("attention_prefill", 84_000),
    ("matmul_f16", 98_304),
    ("matmul_bf16", 98_304),
    // All others.
    ("matmul_", 81_920),
];

impl Row {
    fn dynamic(&self) -> u64 {
        DYNAMIC.iter().find(|(kernel, _)| self.kernel.starts_with(kernel)).map_or(0, |&(_, bytes)| bytes)
    }

    /// Whether registers are kept in memory, which is slow and found by nothing else.
    pub(super) fn spills(&self) -> bool {
        self.spill_stores + self.spill_loads > 0
    }
}

/// The page; sorts the rows.
pub(super) fn render(rows: &mut [Row], ptx_bytes: usize, budget: usize) -> String {
    rows.sort();
    let mut page = format!(
        "# What each kernel takes\n\n\
         Written by `cargo xtask kernels`, which fails where this differs from what the sources give, and where a kernel\n\
         spills. Registers, stack and spills (bytes) are a thread's, shared memory (bytes) is a thread block's: what every\n\
         launch has, and what a launch asks for besides, for the types that need most; code is bytes of machine code.\n\
         `sm_80` is the PTX that ships, `sm_90a` the same sources through nvcc 13.0; both are assembled by ptxas 13.0,\n\
         where a driver uses its own.\n\n\
         PTX that ships: {ptx_bytes} bytes, of a budget of {budget}.\n\n\
         | kernel | target | registers | shared | dynamic, at most | stack | spill stores | spill loads | code |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for row in rows.iter() {
        let Row { kernel, target, registers, shared, stack, spill_stores, spill_loads, code } = row;
        let dynamic = row.dynamic();
        let line = format!(
            "| `{kernel}` | {target} | {registers} | {shared} | {dynamic} | {stack} | {spill_stores} | {spill_loads} | {code} |"
        );
        // Writing to a string does not fail.
        writeln!(page, "{line}").ok();
    }
    page
}
