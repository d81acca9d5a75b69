//! Memory of several ranks, and what must come of it: to the bit, element by element.

use crate::machine::Placed;
use crate::random::Random;

/// What several ranks have.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// For sums all as long; each at a place of its own past a multiple of 16.
    pub(crate) parts: Vec<Placed>,
    /// Which part is written over, if one is.
    pub(crate) over: Option<usize>,
    /// Where the result lies past a multiple of 16, and past that past the begin of the parts that are put together.
    pub(crate) past: usize,
}

/// Adds up and puts together.
pub(crate) trait Collects {
    /// The sum, and where it was written over a part: all the bytes around that too.
    fn sum(&self, case: &Case) -> Placed;
    /// The parts one behind the other. With `over` the result has that part where it goes before.
    fn gather(&self, case: &Case) -> Placed;
}

fn floats(placed: &Placed) -> Vec<f32> {
    placed.bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

impl Case {
    /// `even`: all parts as long.
    fn draw(seed: u64, even: bool) -> Case {
        let mut random = Random(seed);
        let ranks = 1 + random.below(16);
        let aligned = random.below(2) == 0;
        let past = |random: &mut Random| if aligned { 0 } else { 4 * random.below(4) };
        let len = |random: &mut Random| {
            [random.below(8), random.below(300), 4 * random.below(1200)][random.below(3)]
        };
        let same = len(&mut random);
        let parts = (0..ranks)
            .map(|_| {
                let len = if even { same } else { len(&mut random) };
                let numbers = (0..len).map(|_| {
                    let size = 2.0_f32.powi(random.below(40) as i32 - 20);
                    if random.below(9) == 0 { -0.0 } else { size * random.signed() }
                });
                let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
                Placed::of(&bytes, past(&mut random))
            })
            .collect();
        let over = (random.below(2) == 0).then(|| random.below(ranks));
        Case { parts, over, past: past(&mut random) }
    }

    /// Elements of the result up to each part, and behind the last.
    pub(crate) fn begins(&self) -> Vec<usize> {
        let mut begins = vec![0];
        for part in &self.parts {
            begins.push(begins[begins.len() - 1] + part.len() / 4);
        }
        begins
    }

    /// Where the result is written: a place of its own, or the part that is written over.
    pub(crate) fn sum_target(&self) -> Placed {
        self.over.map_or_else(|| Placed::new(self.parts[0].len(), self.past), |over| self.parts[over].clone())
    }

    /// A place of its own for all parts, with the part in it that lies there already.
    pub(crate) fn gather_target(&self) -> Placed {
        let begins = self.begins();
        let mut target = Placed::new(4 * begins[self.parts.len()], self.past);
        if let Some(over) = self.over {
            let range = 4 * begins[over]..4 * begins[over + 1];
            target.bytes_mut()[range].copy_from_slice(self.parts[over].bytes());
        }
        target
    }
}

pub(crate) fn sums_are_in_the_order_of_the_ranks(machine: &impl Collects, seed: u64) {
    let case = Case::draw(seed, true);
    let parts: Vec<Vec<f32>> = case.parts.iter().map(floats).collect();
    let mut expected = case.sum_target();
    for i in 0..parts[0].len() {
        let sum = parts[1..].iter().fold(parts[0][i], |sum, part| sum + part[i]);
        expected.bytes_mut()[4 * i..4 * i + 4].copy_from_slice(&sum.to_le_bytes());
    }
    let sum = machine.sum(&case);
    let wrong = floats(&sum).iter().zip(floats(&expected)).position(|(x, y)| x.to_bits() != y.to_bits());
    let what = (parts.len(), parts[0].len(), case.over, case.past);
    assert!(sum == expected, "seed {seed}, ranks, elements and places {what:?}: {wrong:?} is wrong");
}

pub(crate) fn parts_are_put_together(machine: &impl Collects, seed: u64) {
    let case = Case::draw(seed, false);
    let mut expected = case.gather_target();
    let all: Vec<u8> = case.parts.iter().flat_map(|part| part.bytes().to_vec()).collect();
    expected.bytes_mut().copy_from_slice(&all);
    assert!(machine.gather(&case) == expected, "seed {seed}: {:?}", case.begins());
}
