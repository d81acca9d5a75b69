//! Storing keys and values on the host.

use granule_quant::{DType, encode_planar, planar_bytes};

use crate::error::expect_len;
use crate::threads::Disjoint;
use crate::{Error, KvViewMut, Threads};

/// Encodes the keys and values of `k.len() / elements` tokens into the rows from `first` on. `k` and `v` are tokens x
/// kv heads x head dim; keys are already rotated.
///
/// # Errors
/// [`Error::Shape`] if the rows do not fit the view (nothing is written), [`Error::Quant`] if a number is not finite or
/// too large for the type (rows of the call may then be written in part; they are not part of the sequence yet).
pub fn kv_store(
    threads: &Threads,
    cache: &mut KvViewMut<'_>,
    first: usize,
    k: &[f32],
    v: &[f32],
) -> Result<(), Error> {
    let layout = *cache.layout();
    let elements = layout.elements().max(1);
    let tokens = k.len() / elements;
    expect_len("new keys", k.len(), tokens * elements)?;
    expect_len("new values", v.len(), k.len())?;
    if first.saturating_add(tokens) > cache.len() {
        return Err(Error::Shape {
            what: "rows for new tokens",
            got: cache.len(),
            want: first.saturating_add(tokens),
        });
    }
    let (bytes, _) = cache.host()?;
    let rows = &mut bytes[first * layout.row_stride..(first + tokens) * layout.row_stride];
    if tokens == 1 {
        store_plane(rows, layout.k_type, layout.k_quants, layout.k_scales, k)?;
        return store_plane(rows, layout.v_type, layout.v_quants, layout.v_scales, v);
    }
    let row_stride = layout.row_stride;
    let rows = Disjoint::new(rows);
    threads.try_for_each_chunk(tokens, 4, &|_, range| {
        for i in range {
            // SAFETY: each token has its own row, and each token is in one chunk.
            let row = unsafe { rows.range(i * row_stride..(i + 1) * row_stride) };
            let token = i * elements..(i + 1) * elements;
            store_plane(row, layout.k_type, layout.k_quants, layout.k_scales, &k[token.clone()])?;
            store_plane(row, layout.v_type, layout.v_quants, layout.v_scales, &v[token])?;
        }
        Ok(())
    })
}

fn store_plane(row: &mut [u8], dtype: DType, quants: usize, scales: usize, x: &[f32]) -> Result<(), Error> {
    let bytes = planar_bytes(dtype, x.len())?;
    let (before, after) = row.split_at_mut(scales);
    Ok(encode_planar(dtype, x, &mut before[quants..quants + bytes.quants], &mut after[..bytes.scales])?)
}
