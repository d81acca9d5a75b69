//! Softmax on the host.

/// In place over one row. An empty row stays empty; entries of minus infinity become 0, unless all are.
pub fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return;
    }
    let mut sum = 0f32;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in row.iter_mut() {
        *x /= sum;
    }
}

/// The natural logarithm of the probability that softmax over `row` gives entry `at`, in double precision; minus
/// infinity for an entry that is not there.
#[must_use]
pub fn log_softmax_at(row: &[f32], at: usize) -> f64 {
    let Some(&x) = row.get(at) else { return f64::NEG_INFINITY };
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - max).exp()).sum();
    f64::from(x) - max - sum.ln()
}
