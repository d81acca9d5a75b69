//! How much of a whole each rank is to hold.

use std::fmt;

use granule_device::Bytes;

use super::MAX_RANKS;
use crate::{Error, Result};

/// The share of each rank, as weights above zero in lowest terms.
///
/// ```
/// use granule_split::Shares;
/// assert_eq!(Shares::ratio(&[6, 2])?, Shares::ratio(&[3, 1])?);
/// assert_eq!(Shares::ratio(&[6, 2])?.to_string(), "3:1");
/// # Ok::<(), granule_split::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shares {
    weights: Vec<u64>,
}

impl Shares {
    /// The same for each of so many ranks.
    ///
    /// # Errors
    /// [`Error::Ranks`] for none, or more than [`MAX_RANKS`].
    pub fn equal(ranks: usize) -> Result<Shares> {
        check_ranks(ranks)?;
        Ok(Shares { weights: vec![1; ranks] })
    }

    /// As these numbers are to one another.
    ///
    /// # Errors
    /// [`Error::Ranks`], [`Error::NoShare`] for a zero.
    pub fn ratio(weights: &[u64]) -> Result<Shares> {
        let ranks = weights.len();
        check_ranks(ranks)?;
        if let Some(rank) = weights.iter().position(|&weight| weight == 0) {
            return Err(Error::NoShare { rank, ranks });
        }
        let divisor = weights.iter().copied().fold(0, gcd);
        Ok(Shares { weights: weights.iter().map(|weight| weight / divisor).collect() })
    }

    /// As the bytes that each rank's device has free.
    ///
    /// # Errors
    /// [`Error::Ranks`], [`Error::NoShare`] for a device that has none.
    pub fn by_free(free: &[Bytes]) -> Result<Shares> {
        Shares::ratio(&free.iter().map(|free| free.get()).collect::<Vec<_>>())
    }

    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.weights.len()
    }

    /// The weights, one for each rank.
    #[must_use]
    pub fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// Whether all have the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.weights.iter().all(|&weight| weight == 1)
    }

    /// The shares of some of the ranks among themselves.
    pub(super) fn some(&self, ranks: std::ops::Range<usize>) -> Shares {
        Shares { weights: self.weights[ranks].to_vec() }
    }

    /// How many of `units` each rank gets; there are at least as many as ranks.
    pub(super) fn of(&self, units: usize) -> Vec<usize> {
        debug_assert!(units >= self.ranks());
        let mut got = vec![0; self.ranks()];
        let (mut units, mut total) =
            (units as u128, self.weights.iter().map(|&weight| u128::from(weight)).sum());
        // Whoever has less than one unit by right gets one, which takes from the others, of whom one more may then have less than one.
        // Those that are left never all have less: there are as many units as of them.
        loop {
            let few = |rank: usize| got[rank] == 0 && units * u128::from(self.weights[rank]) < total;
            let Some(rank) = (0..got.len()).find(|&rank| few(rank)) else { break };
            got[rank] = 1;
            units -= 1;
            total -= u128::from(self.weights[rank]);
        }
        let shared: Vec<usize> = (0..got.len()).filter(|&rank| got[rank] == 0).collect();
        let mut remainders: Vec<(u128, usize)> = Vec::new();
        let mut left = units;
        for rank in shared {
            let exact = units * u128::from(self.weights[rank]);
            left -= exact / total;
            got[rank] = (exact / total) as usize;
            remainders.push((exact % total, rank));
        }
        // Stable, so that the first of equals stays first.
        remainders.sort_by(|(a, _), (b, _)| b.cmp(a));
        remainders.iter().take(left as usize).for_each(|&(_, rank)| got[rank] += 1);
        got
    }
}

impl fmt::Display for Shares {
    /// "3:1".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rank, weight) in self.weights.iter().enumerate() {
            write!(f, "{}{weight}", if rank == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

pub(super) fn check_ranks(ranks: usize) -> Result<()> {
    if (1..=MAX_RANKS).contains(&ranks) { Ok(()) } else { Err(Error::Ranks { ranks, most: MAX_RANKS }) }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
