//! What a test asks for: types, shapes, sequences of segments; and numbers for it.

use granule_ops::{KvFold, KvRowLayout, KvSinks, KvTransform, PLANE_ALIGN, Rope};
use granule_quant::{DType, planar_bytes};

use crate::random::Random;

/// Element types that a cache may have.
pub(crate) const TYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0];

/// A run of rows of one sequence: physical number of the first, rows, turn.
pub(crate) type Rows = (usize, usize, i32);

/// One layer's cache of some sequences, and a step over it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) k_type: DType,
    pub(crate) v_type: DType,
    pub(crate) head_dim: usize,
    pub(crate) n_kv_heads: usize,
    /// Query heads of a KV head.
    pub(crate) group: usize,
    /// Segments and query tokens of each sequence.
    pub(crate) sequences: Vec<(Vec<Rows>, usize)>,
    /// Elements of a head that are rotated.
    pub(crate) rope_dims: usize,
    /// Keys and values are transformed, and the first four rows are kept in f16 too.
    pub(crate) transform: bool,
    /// Parts that the keys are cut into on a device; `None`: by its rule.
    pub(crate) splits: Option<usize>,
    pub(crate) seed: u64,
}

impl Case {
    /// Sequences of one segment from row 0 on: rows and query tokens of each.
    pub(crate) fn plain(
        types: [DType; 2],
        head_dim: usize,
        heads: [usize; 2],
        of: &[(usize, usize)],
    ) -> Case {
        Case {
            k_type: types[0],
            v_type: types[1],
            head_dim,
            n_kv_heads: heads[0],
            group: heads[1],
            sequences: of.iter().map(|&(rows, tokens)| (vec![(0, rows, 0)], tokens)).collect(),
            rope_dims: head_dim / 4 * 2,
            transform: false,
            splits: None,
            seed: 1,
        }
    }

    pub(crate) fn n_heads(&self) -> usize {
        self.n_kv_heads * self.group
    }

    pub(crate) fn tokens(&self) -> usize {
        self.sequences.iter().map(|(_, tokens)| tokens).sum()
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    pub(crate) fn rope(&self) -> Rope {
        Rope::new(self.rope_dims, 10_000.0, 1.0, None).unwrap()
    }

    /// A layout with something before, between and behind the planes.
    pub(crate) fn layout(&self) -> KvRowLayout {
        let elements = self.n_kv_heads * self.head_dim;
        let sink_bytes = (4 * elements * 2).next_multiple_of(PLANE_ALIGN);
        let sinks = self.transform.then_some(KvSinks { rows: 4, k: 32, v: 32 + sink_bytes });
        let (k, v) =
            (planar_bytes(self.k_type, elements).unwrap(), planar_bytes(self.v_type, elements).unwrap());
        let mut at = 48;
        let mut place = |bytes: usize| {
            let start = at;
            at = (start + bytes).next_multiple_of(PLANE_ALIGN);
            start
        };
        let places = [k.quants, k.scales, v.quants, v.scales].map(&mut place);
        KvRowLayout {
            k_type: self.k_type,
            v_type: self.v_type,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            row_stride: at + 16,
            rows_at: if self.transform { 64 + 2 * sink_bytes } else { 0 },
            k_quants: places[0],
            k_scales: places[1],
            v_quants: places[2],
            v_scales: places[3],
            sinks,
        }
    }

    /// The transform, with constants and scales of their own for each channel.
    pub(crate) fn kv_transform(&self) -> Option<KvTransform> {
        let (heads, dim) = (self.n_kv_heads, self.head_dim);
        let fold = |seed| {
            let mut random = Random(seed);
            let constants = (0..heads * dim).map(|_| random.signed()).collect();
            let scales = (0..heads * dim).map(|_| 1.0 + random.signed() / 2.0).collect();
            KvFold::new(heads, dim, constants, scales).unwrap()
        };
        self.transform.then(|| KvTransform::new(heads, dim, Some(fold(7)), Some(fold(8))).unwrap())
    }

    /// Numbers of about a unit of size, the same for the same salt.
    pub(crate) fn numbers(&self, n: usize, salt: u64) -> Vec<f32> {
        let mut random = Random(self.seed ^ (salt << 32));
        (0..n).map(|_| random.signed() + random.signed() + random.signed()).collect()
    }
}
