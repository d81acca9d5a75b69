//! Activations from every source in every form, and what they must be: sources in f64, forms by ten obvious lines each, and the
//! fixed form by `granule_quant::quantize_fixed`.

use granule_ops::activate::Form;
use half::{bf16, f16};

use crate::oracle::NOT_FINITE;
use crate::random::Random;

/// What activations are made from.
#[derive(Clone, Debug)]
pub(crate) enum From {
    Plain,
    /// With the numbers of the rows to take, out of this many.
    Norm(f32, Option<(Vec<u32>, usize)>),
    Swiglu,
}

/// A source with its numbers.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) from: From,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `x` or the gate; the norm's weights or `up`.
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}

/// Makes activations; answers the bytes of the form, untouched bytes as [`UNTOUCHED`], and the flag.
pub(crate) trait Activates {
    fn activate(&self, case: &Case, form: Form) -> (Vec<u8>, u32);
}

/// A byte that no kernel has written.
pub(crate) const UNTOUCHED: u8 = 0xa5;

const FORMS: [Form; 4] = [Form::F32, Form::Fixed, Form::F16, Form::Bf16];

/// Numbers of the ordinary and of every other kind; `wild`: some rows have a NaN or an infinity.
fn numbers(random: &mut Random, rows: usize, cols: usize, wild: bool) -> Vec<f32> {
    let mut all = Vec::with_capacity(rows * cols);
    for _ in 0..rows {
        let scale = match random.below(8) {
            0 => 0.0,
            1 => 1e-42,
            4 => 32512.0,
            2 => f32::from_bits(random.below(0x7f80_0000) as u32),
            3 => 2f32.powi(random.below(250) as i32 - 125),
            _ => 3.0,
        };
        // Halves between two numbers of 16 bits and their neighbours, the largest at a power of two, and what is not special.
        let (kind, unit) = (random.below(4), scale / 32512.0);
        let mut row: Vec<f32> = (0..cols)
            .map(|_| match kind {
                0 => {
                    let half = (random.below(9) as f32 / 2.0 + [0.0, 16250.0][random.below(2)])
                        * unit
                        * random.sign();
                    [half, half.next_down(), half.next_up()][random.below(3)]
                }
                1 if random.below(8) != 0 => scale * random.signed() * 1e-3,
                _ => scale * random.signed(),
            })
            .collect();
        if kind < 2 {
            (0..cols).step_by(32).for_each(|first| row[first] = scale * random.sign());
        }
        if wild && random.below(2) == 0 {
            row[random.below(cols)] =
                [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(4)];
        }
        all.extend(row);
    }
    all
}

impl Case {
    pub(crate) fn plain(rows: usize, cols: usize, seed: u64, wild: bool) -> Case {
        let a = numbers(&mut Random(seed), rows, cols, wild);
        Case { from: From::Plain, rows, cols, a, b: Vec::new() }
    }

    /// With numbers of rows out of `of`, which repeat and are in no order.
    pub(crate) fn norm(rows: usize, cols: usize, of: Option<usize>, seed: u64, wild: bool) -> Case {
        let mut random = Random(seed);
        let numbers_of = of.map(|of| ((0..rows).map(|_| random.below(of) as u32).collect(), of));
        let eps = [1e-5, 0.0, 1e-6][random.below(3)];
        let a = numbers(&mut random, of.unwrap_or(rows), cols, wild);
        let b = (0..cols).map(|_| 2.0 * random.signed()).collect();
        Case { from: From::Norm(eps, numbers_of), rows, cols, a, b }
    }

    pub(crate) fn swiglu(rows: usize, cols: usize, seed: u64, wild: bool) -> Case {
        let mut random = Random(seed);
        let spread = [1.0, 20.0, 200.0][random.below(3)];
        let mut a: Vec<f32> = (0..rows * cols).map(|_| spread * random.signed()).collect();
        let b = (0..rows * cols).map(|_| 4.0 * random.signed()).collect();
        if wild {
            a[random.below(rows * cols)] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][random.below(3)];
        }
        Case { from: From::Swiglu, rows, cols, a, b }
    }

    /// Holds every form to the numbers that [`Form::F32`] gives, and those to f64.
    pub(crate) fn check(&self, machine: &impl Activates) {
        let made = self.check_numbers(machine);
        for form in FORMS {
            if form == Form::Fixed && !self.cols.is_multiple_of(32) {
                continue;
            }
            let (bytes, flag) = machine.activate(self, form);
            let (expected, raised) = keep(form, self.rows, self.cols, &made);
            let (got, expected) = (one_nan(form, self, &bytes), one_nan(form, self, &expected));
            let first = got.iter().zip(&expected).position(|(got, expected)| got != expected);
            assert_eq!(first, None, "the first byte that differs in {form:?} of {}", self.shape());
            assert_eq!(flag, raised, "{form:?} of {}", self.shape());
        }
    }

    fn shape(&self) -> String {
        format!("{:?}, {} x {}", self.from, self.rows, self.cols)
    }

    /// What the machine makes of the source, held to f64.
    fn check_numbers(&self, machine: &impl Activates) -> Vec<f32> {
        let layout = Form::F32.layout(self.rows, self.cols).unwrap();
        let (bytes, _) = machine.activate(self, Form::F32);
        let rows = bytes.chunks_exact(4 * layout.stride).take(self.rows);
        let made: Vec<f32> = rows.flat_map(|row| floats(&row[..4 * self.cols])).collect();
        for (i, (&got, (exact, bound))) in made.iter().zip(self.exact()).enumerate() {
            let same = if exact.is_nan() { got.is_nan() } else { (f64::from(got) - exact).abs() <= bound };
            // An infinity is one on both sides.
            let same = same || f64::from(got) == exact || bound == f64::INFINITY;
            assert!(same, "element {i} is {got}, not {exact} within {bound}: {}", self.shape());
        }
        made
    }

    /// The exact numbers, and how far off they may be.
    fn exact(&self) -> Vec<(f64, f64)> {
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        match &self.from {
            From::Plain => wide(&self.a).into_iter().map(|x| (x, 0.0)).collect(),
            From::Norm(eps, numbers) => (0..self.rows)
                .flat_map(|i| {
                    let i = numbers.as_ref().map_or(i, |(numbers, _)| numbers[i] as usize);
                    let row = wide(&self.a[i * self.cols..][..self.cols]);
                    // Squares are f32 as on the host: a sum beyond that makes all zeros, and with squares near nothing
                    // too few digits are left.
                    let squares = row.iter().map(|&x| f64::from(x as f32 * x as f32));
                    let sum: f64 = squares.sum();
                    let mean = sum / self.cols as f64 + f64::from(*eps);
                    let scale = if sum > f64::from(f32::MAX) { 0.0 } else { 1.0 / mean.sqrt() };
                    let any = if mean < 1e-30 { f64::INFINITY } else { 1e-44 };
                    let products = row.into_iter().zip(&self.b).map(move |(x, &w)| x * scale * f64::from(w));
                    products.map(|y| (y, 2f64.powi(-18) * y.abs() + any)).collect::<Vec<_>>()
                })
                .collect(),
            From::Swiglu => wide(&self.a)
                .into_iter()
                .zip(wide(&self.b))
                .map(|(gate, up)| {
                    // Below -87 the exponential stays at its value there.
                    let exact = gate / (1.0 + (-gate).min(87.0).exp()) * up;
                    let exact = if gate.is_nan() { gate } else { exact };
                    (exact, 2f64.powi(-20) * exact.abs() + 1e-42)
                })
                .collect(),
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Activations in a form, and the flag.
fn keep(form: Form, rows: usize, cols: usize, x: &[f32]) -> (Vec<u8>, u32) {
    let layout = form.layout(rows, cols).unwrap();
    let mut bytes = vec![UNTOUCHED; layout.bytes];
    let mut flag = 0;
    let mut put = |at: usize, piece: &[u8]| bytes[at..at + piece.len()].copy_from_slice(piece);
    for (i, row) in x.chunks_exact(cols).enumerate() {
        let mut row = row.to_vec();
        row.resize(layout.stride, 0.0);
        match form {
            Form::F32 => put(4 * i * cols.next_multiple_of(4), bytemuck::cast_slice(&row)),
            Form::Fixed => {
                for (j, block) in row.chunks_exact(32).enumerate() {
                    let at = i * cols / 32 + j;
                    let (mut high, mut low, mut d, mut sums) = ([0i8; 32], [0i8; 32], [f32::NAN], [[0; 2]]);
                    let done = granule_quant::quantize_fixed(block, &mut high, &mut low, &mut d, &mut sums);
                    flag |= if done.is_err() { NOT_FINITE } else { 0 };
                    put(layout.parts[0] + 32 * at, bytemuck::cast_slice(&high));
                    put(layout.parts[1] + 32 * at, bytemuck::cast_slice(&low));
                    put(layout.parts[2] + 4 * at, bytemuck::cast_slice(&d));
                    put(layout.parts[3] + 8 * at, bytemuck::cast_slice(&sums));
                }
            }
            Form::F16 => {
                let finite = row.iter().all(|x| x.is_finite());
                let largest = row.iter().fold(0f64, |most, &x| most.max(f64::from(x).abs()));
                let mut factor = 1.0;
                while finite && largest * factor >= 32768.0 {
                    factor /= 2.0;
                }
                while finite && largest > 0.0 && largest * factor < 16384.0 && factor < 2f64.powi(126) {
                    factor *= 2.0;
                }
                let inverse = if finite { 1.0 / factor } else { f64::NAN };
                flag |= if finite { 0 } else { NOT_FINITE };
                let halves: Vec<f16> = row.iter().map(|&x| f16::from_f64(f64::from(x) * factor)).collect();
                put(2 * i * layout.stride, bytemuck::cast_slice(&bits(&halves, f16::to_bits)));
                put(layout.parts[1] + 4 * i, &(inverse as f32).to_le_bytes());
            }
            Form::Bf16 => {
                let high: Vec<bf16> = row.iter().map(|&x| bf16::from_f32(x)).collect();
                let left = row.iter().zip(&high).map(|(x, high)| bf16::from_f32(x - high.to_f32()));
                let low: Vec<bf16> = left.collect();
                put(2 * i * layout.stride, bytemuck::cast_slice(&bits(&high, bf16::to_bits)));
                put(
                    layout.parts[1] + 2 * i * layout.stride,
                    bytemuck::cast_slice(&bits(&low, bf16::to_bits)),
                );
            }
        }
    }
    (bytes, flag)
}

fn bits<T: Copy>(x: &[T], of: fn(T) -> u16) -> Vec<u16> {
    x.iter().map(|&x| of(x)).collect()
}

/// The form with every NaN the same one, since which it is, is not promised.
fn one_nan(form: Form, case: &Case, bytes: &[u8]) -> Vec<u8> {
    let layout = form.layout(case.rows, case.cols).unwrap();
    let n = case.rows * layout.stride;
    let (words, halves) = match form {
        Form::F32 => (0..n, 0..0),
        Form::Fixed => (layout.parts[2] / 4..layout.parts[2] / 4 + n / 32, 0..0),
        Form::F16 => (layout.parts[1] / 4..layout.parts[1] / 4 + case.rows, 0..n),
        Form::Bf16 => (0..0, 0..layout.bytes / 2),
    };
    let mut same = bytes.to_vec();
    for i in words {
        let cell = &mut same[4 * i..4 * i + 4];
        if f32::from_le_bytes((&*cell).try_into().unwrap()).is_nan() {
            cell.copy_from_slice(&f32::NAN.to_le_bytes());
        }
    }
    for i in halves {
        let cell = &mut same[2 * i..2 * i + 2];
        let half: [u8; 2] = (&*cell).try_into().unwrap();
        let nan = if form == Form::F16 {
            f16::from_le_bytes(half).is_nan()
        } else {
            bf16::from_le_bytes(half).is_nan()
        };
        if nan {
            cell.fill(0xff);
        }
    }
    same
}

/// One case of each source for a seed, of at most `cols` columns.
pub(crate) fn sources(seed: u64, cols: usize) -> [Case; 4] {
    let mut random = Random(seed ^ 0x5eed);
    let mut shape = || {
        let cols = match random.below(3) {
            0 => 1 + random.below(70),
            1 => 32 * (1 + random.below(cols / 32)),
            _ => 1 + random.below(cols),
        };
        (1 + random.below(4), cols, random.below(4) == 0)
    };
    let ((r0, c0, w0), (r1, c1, w1), (r2, c2, w2), (r3, c3, w3)) = (shape(), shape(), shape(), shape());
    [
        Case::plain(r0, c0, seed, w0),
        Case::norm(r1, c1, None, seed, w1),
        Case::norm(r2, c2, Some(r2 + 3), seed, w2),
        Case::swiglu(r3, c3, seed, w3),
    ]
}
