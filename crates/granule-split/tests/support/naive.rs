//! What every communicator is held against, and numbers to do it with.
#![allow(dead_code, reason = "not every test needs all of it")]

/// Pseudo-random numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// Numbers of many magnitudes, so that sums depend on their order; zeros of both signs among them.
pub(crate) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random(seed);
    let mut number = || {
        let bits = random.next();
        let size = (bits as u32 % 20_001) as f32 / 10_000.0 - 1.0;
        match bits >> 60 {
            0 => -0.0,
            1 => 0.0,
            power => size * 2.0_f32.powi(power as i32 * 3 - 20),
        }
    };
    (0..len).map(|_| number()).collect()
}

/// Element by element in the order of the ranks.
pub(crate) fn sum(data: &[Vec<f32>]) -> Vec<f32> {
    (0..data[0].len()).map(|i| data.iter().skip(1).fold(data[0][i], |sum, x| sum + x[i])).collect()
}
