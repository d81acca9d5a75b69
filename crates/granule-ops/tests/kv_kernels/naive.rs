//! Attention in f64, one number after the other, on what the cache's bytes stand for: keys and values are brought back to
//! what they were before they were transformed, and turned forward, where the kernels turn queries back.

use crate::cache::Cache;
use crate::case::Case;

/// The result, and by how much each number of it may differ: an eighth of what `granule_ops::attention::cuda` promises, since
/// random numbers are not the worst there are.
pub(crate) struct Exact {
    pub(crate) out: Vec<f64>,
    pub(crate) bound: Vec<f64>,
}

impl Exact {
    /// Holds `got` to the result: answers the largest part of its bound that an error has.
    pub(crate) fn check(&self, what: &str, case: &Case, got: &[f32]) -> f64 {
        assert_eq!(got.len(), self.out.len());
        let mut worst = 0f64;
        for (i, ((&got, &exact), &bound)) in got.iter().zip(&self.out).zip(&self.bound).enumerate() {
            let (row, d) = (i / case.head_dim, i % case.head_dim);
            let error = (f64::from(got) - exact).abs();
            assert!(
                error <= bound,
                "{what}: {got} for {exact} +- {bound}, row {row}, element {d} of {case:?}"
            );
            worst = worst.max(error / bound.max(f64::MIN_POSITIVE));
        }
        worst
    }
}

/// Undoes a fold of tables `(constants, inverses)`: the Hadamard matrix of entries 1 and -1 from its definition, then each
/// channel.
fn unfold(x: &[f32], constants: &[f32], inverses: &[f32]) -> Vec<f64> {
    let width = 1 << x.len().trailing_zeros();
    (0..x.len())
        .map(|i| {
            let part = i / width * width;
            let sign = |j: usize| if ((i - part) & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let sum: f64 = (0..width).map(|j| sign(j) * f64::from(x[part + j])).sum();
            sum * f64::from(inverses[i]) + f64::from(constants[i])
        })
        .collect()
}

/// Rotates the first elements, in adjacent pairs, `by` positions further.
fn rotate(x: &mut [f64], dims: usize, by: i32) {
    for pair in 0..dims / 2 {
        let angle = f64::from(by) * 10_000f64.powf(-2.0 * pair as f64 / dims as f64);
        let (a, b) = (x[2 * pair], x[2 * pair + 1]);
        x[2 * pair] = a * angle.cos() - b * angle.sin();
        x[2 * pair + 1] = a * angle.sin() + b * angle.cos();
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Attention of a case's queries over its caches.
pub(crate) fn attention(case: &Case, caches: &[Cache], q: &[f32]) -> Exact {
    let (dim, heads) = (case.head_dim, case.n_heads());
    let transform = case.kv_transform();
    let mut exact = Exact { out: Vec::new(), bound: Vec::new() };
    let mut queries = q.chunks_exact(dim);
    for ((segments, tokens), cache) in case.sequences.iter().zip(caches) {
        // Keys and values of each token, for each KV head.
        let mut rows = Vec::new();
        for &(first, len, turn) in segments {
            for row in first..first + len {
                let [k, v] = cache.get(row);
                let of_head = |x: &[f32], fold: Option<&granule_ops::KvFold>, head: usize| {
                    let at = head * dim..(head + 1) * dim;
                    fold.map_or_else(
                        || x[at.clone()].iter().copied().map(f64::from).collect(),
                        |fold| {
                            unfold(
                                &x[at.clone()],
                                &fold.constants()[at.clone()],
                                &fold.inverses()[at.clone()],
                            )
                        },
                    )
                };
                let of_heads: Vec<(Vec<f64>, Vec<f64>)> = (0..case.n_kv_heads)
                    .map(|head| {
                        let mut k = of_head(&k, transform.as_ref().and_then(|t| t.key_fold()), head);
                        rotate(&mut k, case.rope_dims, turn);
                        (k, of_head(&v, transform.as_ref().and_then(|t| t.value_fold()), head))
                    })
                    .collect();
                rows.push(of_heads);
            }
        }
        for token in 0..*tokens {
            let seen = &rows[..rows.len() - (tokens - 1 - token)];
            for head in 0..heads {
                let q: Vec<f64> = queries.next().unwrap().iter().copied().map(f64::from).collect();
                let of = |row: &'_ [(Vec<f64>, Vec<f64>)]| row[head / case.group].clone();
                let scale = f64::from(case.scale());
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|row| of(row).0.iter().zip(&q).map(|(k, q)| k * q).sum::<f64>() * scale)
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut out = vec![0.0; dim];
                for (row, w) in seen.iter().zip(&weights) {
                    out.iter_mut().zip(of(row).1).for_each(|(o, v)| *o += w / total * v);
                }
                let k = seen.iter().map(|row| norm(&of(row).0)).fold(0.0, f64::max);
                let v = seen.iter().flat_map(|row| of(row).1).fold(0.0, |a: f64, b| a.max(b.abs()));
                let bound = (1.0 + norm(&q) * k * scale) * v / 32768.0;
                exact.out.extend(out);
                exact.bound.extend(std::iter::repeat_n(bound, dim));
            }
        }
    }
    exact
}
