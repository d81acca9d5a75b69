//! Encoders for the types of weights that granule-quant only reads: short ones that try some scales and take the nearest codes.
//! What a code stands for they ask the public decoder, so that they know the places of bits and nothing else.

use granule_quant::{
    BlockIQ2_XXS, BlockIQ4_NL, BlockIQ4_XS, BlockQ2_K, BlockQ3_K, DType, decode as granule_decode,
};
use half::f16;

/// Rows of `dtype`, whole blocks of which `x` is.
pub(crate) fn encode(dtype: DType, x: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(dtype.row_bytes(x.len()).unwrap());
    match dtype {
        DType::Q2_K => x.as_chunks().0.iter().for_each(|x| bytes.extend(bytemuck::bytes_of(&q2_k(x)))),
        DType::Q3_K => x.as_chunks().0.iter().for_each(|x| bytes.extend(bytemuck::bytes_of(&q3_k(x)))),
        DType::IQ4_NL => {
            let values = Uneven::new();
            x.as_chunks().0.iter().for_each(|x| bytes.extend(bytemuck::bytes_of(&iq4_nl(x, &values))));
        }
        DType::IQ4_XS => {
            let values = Uneven::new();
            x.as_chunks().0.iter().for_each(|x| bytes.extend(bytemuck::bytes_of(&iq4_xs(x, &values))));
        }
        DType::IQ2_XXS => {
            let grid = Grid::new();
            x.as_chunks().0.iter().for_each(|x| bytes.extend(bytemuck::bytes_of(&grid.block(x))));
        }
        _ => {
            bytes.resize(dtype.row_bytes(x.len()).unwrap(), 0);
            granule_quant::encode(dtype, x, &mut bytes).unwrap();
        }
    }
    bytes
}

/// The elements of a row.
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut x = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    granule_decode(dtype, bytes, &mut x).unwrap();
    x
}

fn squared(x: &[f32], code: impl Fn(f32) -> f32) -> f32 {
    x.iter().map(|&x| (x - code(x)).powi(2)).sum()
}

/// The one of these for which `cost` is least.
fn best<T: Copy>(tried: impl Iterator<Item = T>, cost: impl Fn(T) -> f32) -> T {
    tried.map(|t| (t, cost(t))).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// How often `step` goes into `x`: none where there is no step.
fn times(x: f32, step: f32) -> f32 {
    if step == 0.0 { 0.0 } else { (x / step).round() }
}

/// Codes 0 to 3, of 16 elements a scale and what is subtracted, in four bits each.
fn q2_k(x: &[f32; 256]) -> BlockQ2_K {
    let mut block: BlockQ2_K = bytemuck::Zeroable::zeroed();
    let found: Vec<(f32, f32)> = x
        .as_chunks::<16>()
        .0
        .iter()
        .map(|x| {
            let low = x.iter().fold(0.0f32, |low, &x| low.min(x));
            let high = x.iter().fold(0.0f32, |high, &x| high.max(x));
            let tried =
                (10..=20).map(|part| part as f32 / 20.0).map(|part| ((high - low) * part / 3.0, -low * part));
            best(tried, |(step, less)| squared(x, |x| times(x + less, step).clamp(0.0, 3.0) * step - less))
        })
        .collect();
    block.d = f16::from_f32(found.iter().fold(0.0, |d, found| found.0.max(d)) / 15.0);
    block.dmin = f16::from_f32(found.iter().fold(0.0, |d, found| found.1.max(d)) / 15.0);
    let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
    for (scale, &(step, less)) in block.scales.iter_mut().zip(&found) {
        *scale = times(step, d).min(15.0) as u8 | (times(less, dmin).min(15.0) as u8) << 4;
    }
    for (i, &x) in x.iter().enumerate() {
        let scale = block.scales[i / 16];
        let (step, less) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let code = times(x + less, step).clamp(0.0, 3.0) as u8;
        block.q[i / 128 * 32 + i % 32] |= code << (i % 128 / 32 * 2);
    }
    block
}

/// Codes -4 to 3, of 16 elements a scale of six bits.
fn q3_k(x: &[f32; 256]) -> BlockQ3_K {
    let mut block: BlockQ3_K = bytemuck::Zeroable::zeroed();
    let code = |x: f32, step: f32| times(x, step).clamp(-4.0, 3.0);
    let found: Vec<f32> = x
        .as_chunks::<16>()
        .0
        .iter()
        .map(|x| {
            let most = largest(x);
            let tried = (16..=32).flat_map(|part| [16.0 / part as f32, -16.0 / part as f32]);
            best(tried.map(|part| most * part / 3.0), |step| squared(x, |x| code(x, step) * step))
        })
        .collect();
    block.d = f16::from_f32(largest(&found) / 31.0);
    let d = block.d.to_f32();
    let scales: Vec<f32> = found.iter().map(|&step| times(step, d)).collect();
    for (g, scale) in scales.iter().enumerate() {
        let s = (scale + 32.0) as u8;
        block.scales[g % 8] |= (s & 15) << (g / 8 * 4);
        block.scales[8 + g % 4] |= s >> 4 << (g / 4 * 2);
    }
    for (i, &x) in x.iter().enumerate() {
        let code = (code(x, d * scales[i / 16]) + 4.0) as u8;
        block.q[i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
        block.h[i % 32] |= code >> 2 << (i / 32);
    }
    block
}

/// What the codes of `IQ4_NL` and `IQ4_XS` stand for, in rising order.
struct Uneven([f32; 16]);

impl Uneven {
    fn new() -> Uneven {
        let q = std::array::from_fn(|j| j as u8 | (j as u8) << 4);
        let values = decode(DType::IQ4_NL, bytemuck::bytes_of(&BlockIQ4_NL { d: f16::ONE, q }));
        assert!(values[..16].is_sorted());
        Uneven(values[..16].try_into().unwrap())
    }

    /// The nearest code: as many as there are middles between two values below.
    fn code(&self, x: f32, step: f32) -> usize {
        let x = if step == 0.0 { 0.0 } else { x / step };
        (1..16).filter(|&code| x > (self.0[code - 1] + self.0[code]) / 2.0).count()
    }

    /// The scale of 32 elements, before it is rounded.
    fn scale(&self, x: &[f32; 32]) -> f32 {
        let most = largest(x) / largest(&self.0);
        let tried = (12..=18).flat_map(|part| [most * 16.0 / part as f32, -most * 16.0 / part as f32]);
        best(tried, |step| squared(x, |x| step * self.0[self.code(x, step)]))
    }

    /// The codes of 32 elements, two in a byte.
    fn codes(&self, x: &[f32; 32], step: f32) -> [u8; 16] {
        let code = |x| self.code(x, step) as u8;
        std::array::from_fn(|j| code(x[j]) | code(x[j + 16]) << 4)
    }
}

fn iq4_nl(x: &[f32; 32], values: &Uneven) -> BlockIQ4_NL {
    let d = f16::from_f32(values.scale(x));
    BlockIQ4_NL { d, q: values.codes(x, d.to_f32()) }
}

/// The same with a scale of six bits for each 32 elements.
fn iq4_xs(x: &[f32; 256], values: &Uneven) -> BlockIQ4_XS {
    let mut block: BlockIQ4_XS = bytemuck::Zeroable::zeroed();
    let runs = x.as_chunks::<32>().0;
    let found: Vec<f32> = runs.iter().map(|x| values.scale(x)).collect();
    block.d = f16::from_f32(largest(&found) / 31.0);
    let d = block.d.to_f32();
    let mut high = 0;
    for (i, (x, &step)) in runs.iter().zip(&found).enumerate() {
        let scale = times(step, d);
        let s = (scale + 32.0) as u8;
        block.l[i / 2] |= (s & 15) << (i % 2 * 4);
        high |= u16::from(s >> 4) << (2 * i);
        block.q[16 * i..][..16].copy_from_slice(&values.codes(x, d * scale));
    }
    block.h = high.to_le_bytes();
    block
}

/// The points that `IQ2_XXS` has for eight elements, each a magnitude that is one of three.
struct Grid {
    points: Vec<[f32; 8]>,
    magnitudes: Vec<f32>,
    /// For each way to take one of the magnitudes eight times, the points that are nearest to that.
    near: Vec<[u8; NEAR]>,
}

/// Points that are looked at for eight elements.
const NEAR: usize = 4;

impl Grid {
    fn new() -> Grid {
        let points: Vec<[f32; 8]> = (0..=255)
            .map(|point| {
                let mut block: BlockIQ2_XXS = bytemuck::Zeroable::zeroed();
                // A scale of 8 makes up for the eighth that the smallest of a run's scales is.
                block.d = f16::from_f32(8.0);
                block.q[0][0] = point;
                decode(DType::IQ2_XXS, bytemuck::bytes_of(&block))[..8].try_into().unwrap()
            })
            .collect();
        let mut magnitudes: Vec<f32> = points.iter().flatten().copied().collect();
        magnitudes.sort_by(f32::total_cmp);
        magnitudes.dedup();
        assert_eq!(magnitudes.len(), 3);
        let near = (0..3usize.pow(8)).map(|way| {
            let x: [f32; 8] = std::array::from_fn(|j| magnitudes[way / 3usize.pow(j as u32) % 3]);
            let mut order: Vec<u8> = (0..=255).collect();
            let far = |p: u8| (0..8).map(|j| (x[j] - points[usize::from(p)][j]).powi(2)).sum::<f32>();
            order.sort_by(|&a, &b| far(a).total_cmp(&far(b)));
            order[..NEAR].try_into().unwrap()
        });
        Grid { near: near.collect(), points, magnitudes }
    }

    /// The nearest point to these magnitudes in units of a step, and how far it is.
    fn point(&self, x: &[f32; 8], step: f32) -> (u8, f32) {
        let way = x.iter().rev().fold(0, |way, &x| {
            3 * way + self.magnitudes.windows(2).filter(|m| x > step * (m[0] + m[1]) / 2.0).count()
        });
        let far = |p: u8| {
            let point = &self.points[usize::from(p)];
            x.iter().zip(point).map(|(x, g)| (x - step * g).powi(2)).sum::<f32>()
        };
        self.near[way].iter().map(|&p| (p, far(p))).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
    }

    fn block(&self, x: &[f32; 256]) -> BlockIQ2_XXS {
        let mut block: BlockIQ2_XXS = bytemuck::Zeroable::zeroed();
        // Of eight an even number is negative: where it is not, the smallest changes sides.
        let signed: Vec<([f32; 8], u32)> = x
            .as_chunks::<8>()
            .0
            .iter()
            .map(|x| {
                let mut magnitudes = x.map(f32::abs);
                let mut signs = (0..8).fold(0, |signs, j| signs | u32::from(x[j] < 0.0) << j);
                if signs.count_ones() % 2 == 1 {
                    let smallest = (0..8).min_by(|&a, &b| magnitudes[a].total_cmp(&magnitudes[b])).unwrap();
                    magnitudes[smallest] = -magnitudes[smallest];
                    signs ^= 1 << smallest;
                }
                (magnitudes, signs & 127)
            })
            .collect();
        let cost =
            |run: &[([f32; 8], u32)], step| run.iter().map(|(x, _)| self.point(x, step).1).sum::<f32>();
        let most = self.magnitudes[2];
        let found: Vec<f32> = signed
            .chunks(4)
            .map(|run| {
                let largest = run.iter().fold(0.0, |most, (x, _)| largest(x).max(most)) / most;
                best((4..=10).map(|part| largest * 5.0 / part as f32), |step| cost(run, step))
            })
            .collect();
        // Scales are odd multiples, from 1 to 31, of an eighth of d.
        block.d = f16::from_f32(largest(&found) * 8.0 / 31.0);
        let eighth = block.d.to_f32() / 8.0;
        for (i, (run, &step)) in signed.chunks(4).zip(&found).enumerate() {
            let s = times(step - eighth, 2.0 * eighth).clamp(0.0, 15.0);
            let step = (2.0 * s + 1.0) * eighth;
            let mut word = (s as u32) << 28;
            for (n, (x, signs)) in run.iter().enumerate() {
                block.q[i][n] = self.point(x, step).0;
                word |= signs << (7 * n);
            }
            block.q[i][4..].copy_from_slice(&word.to_le_bytes());
        }
        block
    }
}
