//! Heads to rotate, and what they must be: to the bit, pair by pair in f32 (and so [`granule_ops::rotate`], where that does not
//! contract).

use crate::random::Random;

/// Heads with their angles.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) n_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dims: usize,
    pub(crate) x: Vec<f32>,
    pub(crate) angles: Vec<f32>,
}

/// Rotates heads.
pub(crate) trait Rotates {
    fn rotate(&self, case: &Case) -> Vec<f32>;
}

impl Case {
    pub(crate) fn draw(seed: u64) -> Case {
        let mut random = Random(seed);
        let (tokens, n_heads) = (1 + random.below(5), 1 + random.below(9));
        let head_dim = [64, 128, 80, 6, 7, 34, 2 + random.below(100)][random.below(7)];
        let dims = [head_dim, head_dim / 2, 2][random.below(3)] / 2 * 2;
        let dims = dims.max(2);
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| 8.0 * random.signed()).collect() };
        let (x, angles) = (numbers(tokens * n_heads * head_dim), numbers(tokens * dims));
        Case { n_heads, head_dim, dims, x, angles }
    }

    pub(crate) fn check(&self, machine: &impl Rotates) {
        let mut expected = self.x.clone();
        for (i, x) in expected.iter_mut().enumerate() {
            let (token, at) = (i / (self.n_heads * self.head_dim), i % self.head_dim);
            if at < self.dims {
                let pair = [self.x[i - at % 2], self.x[i - at % 2 + 1]];
                let [cos, sin] = [0, 1].map(|k| self.angles[token * self.dims + at / 2 * 2 + k]);
                let products = if at % 2 == 0 {
                    [pair[0] * cos, -(pair[1] * sin)]
                } else {
                    [pair[0] * sin, pair[1] * cos]
                };
                *x = products[0] + products[1];
            }
        }
        let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
        let what = (self.n_heads, self.head_dim, self.dims, self.angles.len() / self.dims);
        assert_eq!(bits(&machine.rotate(self)), bits(&expected), "{what:?}");
    }
}
