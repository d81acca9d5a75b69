//! Random sizes at a fixed number of live blocks.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use crate::script::BATCH;
use crate::{Op, Script};

/// Sizes from `from` to `to` bytes, each doubling equally likely.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The smallest.
    pub from: u32,
    /// The largest.
    pub to: u32,
}

impl Sizes {
    /// What a pool serves from its classes: 64 bytes to 1 MiB.
    pub const CLASSES: Sizes = Sizes { from: 64, to: 1 << 20 };
    /// Up to 16 MiB: the upper quarter is beyond the classes.
    pub const WIDE: Sizes = Sizes { from: 256, to: 16 << 20 };

    fn draw(self, random: &mut Pcg64) -> u32 {
        let (low, high) = (f64::from(self.from).ln(), f64::from(self.to).ln());
        let unit = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        ((low + unit * (high - low)).exp() as u32).clamp(self.from, self.to)
    }
}

/// `live` blocks; the cycle frees one of them at random, allocates another size in its place, and so on `pairs` times at
/// least, then gives each slot the size back that it had at first, in a random order.
pub fn churn(live: usize, sizes: Sizes, pairs: usize, seed: u64) -> Script {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut below = |n: usize| ((u128::from(random.next_u64()) * n as u128) >> 64) as usize;
    let slots: Vec<u32> = (0..live as u32).collect();
    let mut order = slots.clone();
    for i in (1..live).rev() {
        order.swap(i, below(i + 1));
    }
    // Whole batches, so that each is timed.
    let pairs = pairs.saturating_sub(live).next_multiple_of(BATCH) + live.next_multiple_of(BATCH) - live;
    let victims: Vec<u32> = (0..pairs).map(|_| below(live) as u32).collect();
    let first: Vec<u32> = slots.iter().map(|_| sizes.draw(&mut random)).collect();
    let prologue = slots.iter().map(|&slot| Op { size: first[slot as usize], slot }).collect();
    let replaced = victims.iter().map(|&slot| (slot, sizes.draw(&mut random))).collect::<Vec<_>>();
    let restored = order.iter().map(|&slot| (slot, first[slot as usize]));
    let cycle = replaced
        .into_iter()
        .chain(restored)
        .flat_map(|(slot, size)| [Op { size: 0, slot }, Op { size, slot }])
        .collect();
    let most = if sizes.to >= 1 << 20 { (sizes.to >> 20, "MiB") } else { (sizes.to >> 10, "KiB") };
    let name = format!("random sizes to {} {}, {live} live", most.0, most.1);
    Script { name, slots: live, prologue, cycle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_ends_as_it_began_in_whole_batches() {
        for live in [1, 7, 100, 1000] {
            let script = churn(live, Sizes::CLASSES, 5000, 1);
            script.check().unwrap();
            assert_eq!(script.cycle.len() % BATCH, 0);
            assert!(script.cycle.len() >= 2 * 5000);
            let sizes = script.cycle.iter().map(|op| op.size).filter(|size| *size != 0);
            assert!(sizes.clone().all(|size| (64..=1 << 20).contains(&size)));
            // Each of the 14 doublings is as likely as the next.
            let small = sizes.clone().filter(|size| *size < 64 << 7).count() as f64 / sizes.count() as f64;
            assert!(live > 1000 || (small - 0.5).abs() < 0.05, "{small}");
        }
    }
}
