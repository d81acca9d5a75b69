//! The table of modules: which PTX there is, what it holds, and what may load it.

/// One PTX image: all kernels of one operation for one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// The operation: the name of the `.cu` file, and of the folder in `granule-ops` that launches it.
    pub op: &'static str,
    /// PTX text, as `cuModuleLoadData` takes it once a zero byte ends it.
    pub image: &'static str,
    /// What it was compiled for.
    pub target: Target,
    /// PTX ISA version, major and minor: a driver of an older CUDA refuses it.
    pub ptx_version: (u32, u32),
    /// Names of the kernels, sorted.
    pub entries: &'static [&'static str],
}

impl Module {
    /// The oldest driver that takes it, as `cuDriverGetVersion` counts: 12040 is CUDA 12.4.
    #[must_use]
    pub const fn min_driver(&self) -> u32 {
        // PTX 7.x came with CUDA 11.x, 8.x with 12.x, 9.x with 13.x, with the same minor numbers since PTX 7.0.
        (self.ptx_version.0 + 4) * 1000 + self.ptx_version.1 * 10
    }
}

/// What a module was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Whether it runs on that compute capability alone (`sm_90a` and its like) and not on later ones.
    pub exact: bool,
}

/// Runs on compute capability 8.0 (A100) and every later one.
const SM_80: Target = Target { compute_capability: (8, 0), exact: false };

/// Every module, sorted by operation; those of one operation, the most demanding target first.
pub const MODULES: &[Module] = &[
    Module {
        op: "activate",
        image: include_str!("../ptx/activate.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["activate_bf16", "activate_f16", "activate_f32", "activate_fixed"],
    },
    Module {
        op: "attention",
        image: include_str!("../ptx/attention.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "attention_128",
            "attention_64",
            "attention_any",
            "attention_combine",
            "attention_queries",
        ],
    },
    Module {
        op: "attention_prefill",
        image: include_str!("../ptx/attention_prefill.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["attention_prefill"],
    },
    Module {
        op: "compare",
        image: include_str!("../ptx/compare.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["compare_begin", "compare_bytes"],
    },
    Module {
        op: "dequantize",
        image: include_str!("../ptx/dequantize.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "dequantize_planar_q4_0_bf16",
            "dequantize_planar_q4_0_f16",
            "dequantize_planar_q4_0_f32",
            "dequantize_planar_q8_0_bf16",
            "dequantize_planar_q8_0_f16",
            "dequantize_planar_q8_0_f32",
            "dequantize_q4_0_bf16",
            "dequantize_q4_0_f16",
            "dequantize_q4_0_f32",
            "dequantize_q8_0_bf16",
            "dequantize_q8_0_f16",
            "dequantize_q8_0_f32",
        ],
    },
    Module {
        op: "embed",
        image: include_str!("../ptx/embed.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "embed_bf16",
            "embed_f16",
            "embed_f32",
            "embed_iq2_xxs",
            "embed_iq4_nl",
            "embed_iq4_xs",
            "embed_q2_k",
            "embed_q3_k",
            "embed_q4_0",
            "embed_q4_1",
            "embed_q4_k",
            "embed_q5_0",
            "embed_q5_1",
            "embed_q5_k",
            "embed_q6_k",
            "embed_q8_0",
        ],
    },
    Module {
        op: "fill",
        image: include_str!("../ptx/fill.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["fill_bytes"],
    },
    Module {
        op: "kv_append",
        image: include_str!("../ptx/kv_append.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["kv_append"],
    },
    Module {
        op: "matmul",
        image: include_str!("../ptx/matmul.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "matmul_bf16",
            "matmul_f16",
            "matmul_f32",
            "matmul_iq2_xxs",
            "matmul_iq4_nl",
            "matmul_iq4_xs",
            "matmul_q2_k",
            "matmul_q3_k",
            "matmul_q4_0",
            "matmul_q4_1",
            "matmul_q4_k",
            "matmul_q5_0",
            "matmul_q5_1",
            "matmul_q5_k",
            "matmul_q6_k",
            "matmul_q8_0",
        ],
    },
    Module {
        op: "matvec",
        image: include_str!("../ptx/matvec.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "matvec_bf16_1",
            "matvec_bf16_4",
            "matvec_f16_1",
            "matvec_f16_4",
            "matvec_f32_1",
            "matvec_f32_4",
            "matvec_iq2_xxs_1",
            "matvec_iq2_xxs_8",
            "matvec_iq4_nl_1",
            "matvec_iq4_nl_8",
            "matvec_iq4_xs_1",
            "matvec_iq4_xs_8",
            "matvec_q2_k_1",
            "matvec_q2_k_8",
            "matvec_q3_k_1",
            "matvec_q3_k_8",
            "matvec_q4_0_1",
            "matvec_q4_0_8",
            "matvec_q4_1_1",
            "matvec_q4_1_8",
            "matvec_q4_k_1",
            "matvec_q4_k_8",
            "matvec_q5_0_1",
            "matvec_q5_0_8",
            "matvec_q5_1_1",
            "matvec_q5_1_8",
            "matvec_q5_k_1",
            "matvec_q5_k_8",
            "matvec_q6_k_1",
            "matvec_q6_k_8",
            "matvec_q8_0_1",
            "matvec_q8_0_8",
        ],
    },
    Module {
        op: "pack_weights",
        image: include_str!("../ptx/pack_weights.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "pack_weights_floats",
            "pack_weights_iq2_xxs",
            "pack_weights_iq4_nl",
            "pack_weights_iq4_xs",
            "pack_weights_q2_k",
            "pack_weights_q3_k",
            "pack_weights_q4_0",
            "pack_weights_q4_1",
            "pack_weights_q4_k",
            "pack_weights_q5_0",
            "pack_weights_q5_1",
            "pack_weights_q5_k",
            "pack_weights_q6_k",
            "pack_weights_q8_0",
        ],
    },
    Module {
        op: "quantize",
        image: include_str!("../ptx/quantize.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "quantize_planar_q4_0_bf16",
            "quantize_planar_q4_0_f16",
            "quantize_planar_q4_0_f32",
            "quantize_planar_q8_0_bf16",
            "quantize_planar_q8_0_f16",
            "quantize_planar_q8_0_f32",
            "quantize_q4_0_bf16",
            "quantize_q4_0_f16",
            "quantize_q4_0_f32",
            "quantize_q8_0_bf16",
            "quantize_q8_0_f16",
            "quantize_q8_0_f32",
        ],
    },
    Module {
        op: "ranks",
        image: include_str!("../ptx/ranks.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["ranks_gather", "ranks_sum"],
    },
    Module {
        op: "relayout",
        image: include_str!("../ptx/relayout.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "relayout_q4_0_to_ggml",
            "relayout_q4_0_to_planar",
            "relayout_q8_0_to_ggml",
            "relayout_q8_0_to_planar",
        ],
    },
    Module {
        op: "rope",
        image: include_str!("../ptx/rope.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["rope"],
    },
    Module {
        op: "sample",
        image: include_str!("../ptx/sample.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["sample_begin", "sample_draw", "sample_gather", "sample_penalize", "sample_weigh"],
    },
    Module {
        op: "scale_rows",
        image: include_str!("../ptx/scale_rows.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &["scale_rows"],
    },
    Module {
        op: "unpack_weights",
        image: include_str!("../ptx/unpack_weights.ptx"),
        target: SM_80,
        ptx_version: (8, 4),
        entries: &[
            "unpack_weights_f32",
            "unpack_weights_iq2_xxs",
            "unpack_weights_iq4_nl",
            "unpack_weights_iq4_xs",
            "unpack_weights_q2_k",
            "unpack_weights_q3_k",
            "unpack_weights_q4_0",
            "unpack_weights_q4_1",
            "unpack_weights_q4_k",
            "unpack_weights_q5_0",
            "unpack_weights_q5_1",
            "unpack_weights_q5_k",
            "unpack_weights_q6_k",
            "unpack_weights_q8_0",
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of the first line of `ptx` that starts with `directive`.
    fn directive<'a>(ptx: &'a str, directive: &str) -> &'a str {
        ptx.lines().find_map(|line| line.strip_prefix(directive)).unwrap().trim()
    }

    #[test]
    fn entries_are_those_of_the_ptx() {
        for module in MODULES {
            let mut found: Vec<&str> = module
                .image
                .lines()
                .filter_map(|line| line.trim().strip_prefix(".visible .entry ")?.strip_suffix('('))
                .collect();
            found.sort_unstable();
            assert_eq!(found, module.entries, "{}", module.op);
            assert!(found.iter().all(|entry| entry.starts_with(module.op)), "{}", module.op);
        }
    }

    #[test]
    fn targets_and_versions_are_those_of_the_ptx() {
        for Module { op, image, target, ptx_version, .. } in MODULES {
            let (major, minor) = ptx_version;
            assert_eq!(directive(image, ".version"), format!("{major}.{minor}"), "{op}");
            let (major, minor) = target.compute_capability;
            let suffix = if target.exact { "a" } else { "" };
            assert_eq!(directive(image, ".target"), format!("sm_{major}{minor}{suffix}"), "{op}");
        }
    }

    #[test]
    fn every_kernel_has_the_block_size_that_launchers_use() {
        for module in MODULES {
            let bounds = module.image.lines().filter(|line| line.starts_with(".maxntid"));
            let bounds: Vec<&str> = bounds.collect();
            assert_eq!(bounds.len(), module.entries.len(), "{}", module.op);
            let expected = format!(".maxntid {}, 1, 1", crate::THREADS);
            assert!(bounds.iter().all(|line| line.trim() == expected), "{}", module.op);
        }
    }

    #[test]
    fn numbers_are_those_of_the_sources() {
        let sources = [
            (include_str!("../include/intrinsics.cuh"), "u32 THREADS = 256;", crate::THREADS, 256),
            (include_str!("../include/rows.cuh"), "u32 TILE = 128;", crate::TILE_BLOCKS, 128),
            (include_str!("../include/encode.cuh"), "u32 NOT_FINITE = 1;", crate::FLAG_NOT_FINITE, 1),
            (include_str!("../include/encode.cuh"), "u32 OVERFLOW = 2;", crate::FLAG_OVERFLOW, 2),
            (include_str!("../include/attend.cuh"), "u32 TILE_KEYS = 16;", crate::TILE_KEYS, 16),
            (include_str!("../include/attend.cuh"), "u32 COLUMNS = 8;", crate::COLUMNS, 8),
            (include_str!("../include/attend.cuh"), "u32 ROW_PAD = 16;", crate::ROW_PAD, 16),
            (include_str!("../attention.cu"), "u32 STAGES = 3;", crate::STAGES, 3),
            (include_str!("../attention_prefill.cu"), "u32 ROWS = 128;", crate::PREFILL_ROWS, 128),
            (include_str!("../include/kv_tile.cuh"), "u32 KEYS = 64;", crate::PREFILL_KEYS, 64),
            (include_str!("../include/kv_tile.cuh"), "u32 DIM = 128;", crate::PREFILL_DIM, 128),
            (include_str!("../matvec.cu"), "u32 WARP_ROWS = 4, TILE_ROWS = 16;", crate::MATVEC_WARP_ROWS, 4),
            (include_str!("../matvec.cu"), "u32 WARP_ROWS = 4, TILE_ROWS = 16;", crate::MATVEC_TILE_ROWS, 16),
            (include_str!("../matvec.cu"), "u32 JOBS = 4;", crate::MATVEC_JOBS, 4),
            (include_str!("../matmul.cu"), "u32 JOBS = 4;", crate::MATMUL_JOBS, 4),
            (include_str!("../matmul.cu"), "u32 STAGES = 3;", crate::MATMUL_STAGES, 3),
            (include_str!("../matmul.cu"), "u32 CONVERTED = 2;", crate::MATMUL_CONVERTED, 2),
            (include_str!("../matmul.cu"), "u32 LINES = 128;", crate::MATMUL_STEP_BYTES, 128 * 128),
            (include_str!("../matmul.cu"), "u32 LINE = 64;", crate::MATMUL_STEP_BYTES, 128 * 64 * 2),
            (include_str!("../include/sample.cuh"), "u32 SLICE = 4096;", crate::SAMPLE_SLICE, 4096),
            (include_str!("../include/sample.cuh"), "u32 BOARD = 62480;", crate::SAMPLE_BOARD, 62480),
            (include_str!("../fill.cu"), "u32 ROUNDS = 4;", crate::PIECE_BYTES, 4 * 256 * 16),
            (include_str!("../compare.cu"), "u32 ROUNDS = 4;", crate::PIECE_BYTES, 4 * 256 * 16),
        ];
        for (source, line, ours, theirs) in sources {
            assert!(source.contains(&format!("constexpr {line}")), "{line}");
            assert_eq!(ours, theirs, "{line}");
        }
    }
}
