//! Numbers to quantize and blocks to dequantize: the ordinary and every kind of extreme, the same for the same seed.

use granule_quant::DType;

use crate::oracle::float_row;
use crate::random::Random;

/// The largest finite number of a float type.
fn largest(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => 65504.0,
        DType::BF16 => half::bf16::MAX.to_f32(),
        _ => f32::MAX,
    }
}

/// Quants' steps below the largest magnitude: 127 of Q8_0, 8 of Q4_0.
const STEPS: [f32; 2] = [127.0, 8.0];

/// 32 numbers of one of the kinds that a quantizer can get wrong.
fn block(random: &mut Random, dtype: DType, wild: bool) -> [f32; 32] {
    let steps = STEPS[random.below(2)];
    let scale = match random.below(6) {
        0 => 1.0,
        1 => steps,
        // 1/d stops being finite at d = 2^-128, about 2.94e-39.
        2 => (2.5 + random.signed().abs()) * 1e-39 * steps,
        3 => largest(dtype),
        // Where the scale rounds to infinity in f16, and just below.
        4 => f32::from_bits((65520.0 * steps).to_bits() - random.below(3) as u32 + 1),
        _ => f32::from_bits(random.below(0x7f80_0000) as u32),
    };
    let mut x: [f32; 32] = std::array::from_fn(|_| random.signed() * scale);
    match random.below(8) {
        0 => x = [0.0; 32],
        1 => x = std::array::from_fn(|_| 0.0 * random.sign()),
        // The same magnitude with both signs: the first one decides.
        2 => (0..1 + random.below(31)).for_each(|_| x[random.below(32)] = scale * random.sign()),
        // Quants that lie exactly between two, on one, and right beside.
        3 => {
            let unit = scale / steps;
            let halves = |random: &mut Random| random.below(4 * steps as usize + 1) as f32 / 2.0 - steps;
            x = std::array::from_fn(|_| {
                let y = halves(random) * unit;
                [y, y.next_down(), y.next_up()][random.below(3)]
            });
            x[random.below(32)] = scale;
        }
        4 => x = std::array::from_fn(|_| f32::from_bits(random.next() as u32 & 0x7fff_ffff) * random.sign()),
        _ => {}
    }
    // Products with the largest scale may be infinite; that is for `wild` alone to decide.
    x = x.map(|x| if x.is_finite() { x.clamp(-largest(dtype), largest(dtype)) } else { largest(dtype) });
    if wild {
        x[random.below(32)] = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(4)];
    }
    x
}

/// A row of `cols` numbers as floats of type `dtype`. With `wild` about one block in eight has a NaN or an infinity.
pub(crate) fn float_bytes(random: &mut Random, dtype: DType, cols: usize, wild: bool) -> Vec<u8> {
    let mut x = Vec::with_capacity(cols);
    for _ in 0..cols / 32 {
        let wild = wild && random.below(8) == 0;
        x.extend(block(random, dtype, wild));
    }
    float_row(dtype, &x)
}

/// Random bytes: as blocks they have every kind of scale.
pub(crate) fn any_bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.next() as u8).collect()
}
