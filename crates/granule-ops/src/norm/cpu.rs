//! Root mean square normalization on the host.

use crate::error::expect_len;
use crate::{Error, Threads};

/// Rows that one thread takes at a time.
const ROWS: usize = 8;

/// Normalizes each row: `x` and `out` are rows of `weight.len()` elements.
///
/// # Errors
/// [`Error::Shape`] if `x` is no whole number of rows or `out` has another length.
pub fn rms_norm(
    threads: &Threads,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<(), Error> {
    let n = weight.len().max(1);
    expect_len("norm input", x.len(), x.len() / n * n)?;
    expect_len("norm output", out.len(), x.len())?;
    threads.try_zip_chunks(x, ROWS * n, out, ROWS * n, &|x, out| {
        for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let scale = 1.0 / (sum_of_squares(row) / n as f32 + eps).sqrt();
            for ((y, &x), &w) in out.iter_mut().zip(row).zip(weight) {
                *y = x * scale * w;
            }
        }
        Ok(())
    })
}

/// In sixteen lanes, so that the compiler vectorizes it and the error stays small.
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, tail) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().map(|x| x * x).sum::<f32>()
}
