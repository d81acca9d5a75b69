//! Appending on the host.

use granule_quant::{DType, encode, encode_planar, planar_bytes};

use super::AppendShape;
use crate::error::expect_len;
use crate::kv_view::KvRowLayout;
use crate::rope::rotate_token;
use crate::threads::Disjoint;
use crate::{Error, KvViewMut, Threads};

/// Tokens of a prompt that a thread takes at a time.
const CHUNK: usize = 4;

/// Stores the keys and values of `k.len() / (kv heads x head dim)` tokens in the view's first rows, the bytes being those of
/// [`granule_quant::scalar`]. `k` and `v` are tokens x kv heads x head dim, the keys not rotated yet; what is in them afterwards
/// means nothing.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Dimension`] where the shapes do not fit one another or the view (nothing is written),
/// [`Error::NotOnHost`], [`Error::Quant`] if a number is NaN, infinite or too large for the type, or for f16 in a sink: rows of
/// the call may then be written in part, and are not part of a sequence yet.
pub fn cpu(
    threads: &Threads,
    shape: &AppendShape<'_>,
    cache: &mut KvViewMut<'_>,
    k: &mut [f32],
    v: &mut [f32],
) -> Result<(), Error> {
    let layout = *cache.layout();
    let elements = layout.elements().max(1);
    let tokens = k.len() / elements;
    expect_len("new keys", k.len(), tokens * elements)?;
    expect_len("new values", v.len(), k.len())?;
    expect_len("rope angles", shape.angles.len(), tokens * shape.rope_dims)?;
    if shape.rope_dims > layout.head_dim || !shape.rope_dims.is_multiple_of(2) {
        return Err(Error::Dimension {
            what: "the rotated dimension",
            must: "even, and at most the head dimension",
            got: shape.rope_dims,
        });
    }
    if let Some(transform) = shape.transform {
        expect_len("heads of a transform", transform.n_kv_heads(), layout.n_kv_heads)?;
        expect_len("elements of a transform's head", transform.head_dim(), layout.head_dim)?;
    }
    if tokens > cache.len() {
        return Err(Error::Shape { what: "rows for new tokens", got: cache.len(), want: tokens });
    }
    let stride = layout.row_stride;
    let first = cache.row();
    let (rows, sinks) = cache.host()?;
    let sinks_from = layout.sinks.map_or(0, |sinks| sinks.rows.saturating_sub(first)).min(tokens);
    if let (Some(sinks), true) = (sinks, sinks_from > 0) {
        // A handful of rows, once in a sequence's life: they go first, and alone.
        let parts = Tokens {
            shape,
            layout: &layout,
            k: &mut k[..sinks_from * elements],
            v: &mut v[..sinks_from * elements],
            token: 0,
        };
        parts.store(&mut rows[..sinks_from * stride], Some((sinks, first)))?;
    }
    if tokens - sinks_from <= 1 {
        let at = sinks_from;
        let parts = Tokens {
            shape,
            layout: &layout,
            k: &mut k[at * elements..],
            v: &mut v[at * elements..],
            token: at,
        };
        return parts.store(&mut rows[at * stride..tokens * stride], None);
    }
    let (rows, k, v) = (Disjoint::new(rows), Disjoint::new(k), Disjoint::new(v));
    threads.try_for_each_chunk(tokens - sinks_from, CHUNK, &|_, range| {
        let (start, end) = (sinks_from + range.start, sinks_from + range.end);
        // SAFETY: each token has its own row, keys and values, and is in one chunk; those before `sinks_from` are in none.
        let (rows, k, v) = unsafe {
            let numbers = start * elements..end * elements;
            (rows.range(start * stride..end * stride), k.range(numbers.clone()), v.range(numbers))
        };
        Tokens { shape, layout: &layout, k, v, token: start }.store(rows, None)
    })
}

/// Keys and values of some tokens, of which the first is token `token` of the call.
struct Tokens<'a> {
    shape: &'a AppendShape<'a>,
    layout: &'a KvRowLayout,
    k: &'a mut [f32],
    v: &'a mut [f32],
    token: usize,
}

impl Tokens<'_> {
    /// Stores them in `rows`, which begins with the row of the first of them; and in 16 bits, where the bytes before row 0
    /// are given with the physical number of that row.
    fn store(self, rows: &mut [u8], mut sinks: Option<(&mut [u8], usize)>) -> Result<(), Error> {
        let Self { shape, layout, k, v, token } = self;
        let (elements, dims) = (layout.elements().max(1), shape.rope_dims);
        let numbers = k.chunks_exact_mut(elements).zip(v.chunks_exact_mut(elements));
        for (i, ((k, v), row)) in numbers.zip(rows.chunks_exact_mut(layout.row_stride)).enumerate() {
            let at = (token + i) * dims;
            rotate_token(k, layout.head_dim, &shape.angles[at..at + dims]);
            if let Some(transform) = shape.transform {
                for (head, k) in k.chunks_exact_mut(layout.head_dim).enumerate() {
                    transform.keys(head, k);
                }
                for (head, v) in v.chunks_exact_mut(layout.head_dim).enumerate() {
                    transform.values(head, v);
                }
            }
            store_planes(row, layout.k_type, layout.k_quants, layout.k_scales, k)?;
            store_planes(row, layout.v_type, layout.v_quants, layout.v_scales, v)?;
            if let (Some((bytes, first)), Some(area)) = (&mut sinks, layout.sinks) {
                let at = (*first + i) * elements * 2;
                encode(DType::F16, k, &mut bytes[area.k + at..area.k + at + elements * 2])?;
                encode(DType::F16, v, &mut bytes[area.v + at..area.v + at + elements * 2])?;
            }
        }
        Ok(())
    }
}

/// One token's keys, or values, into their two planes.
fn store_planes(row: &mut [u8], dtype: DType, quants: usize, scales: usize, x: &[f32]) -> Result<(), Error> {
    let bytes = planar_bytes(dtype, x.len())?;
    let (before, after) = row.split_at_mut(scales);
    Ok(encode_planar(dtype, x, &mut before[quants..quants + bytes.quants], &mut after[..bytes.scales])?)
}
