//! What fits: how many layers, and how they are shared out.

/// The largest number up to `most` that fits, where everything below what fits does too; `None` where not even 0 does.
///
/// # Errors
/// Those of `fits`.
///
/// ```
/// assert_eq!(granule_plan::most(100, |n| Ok::<_, ()>(n * n <= 200)), Ok(Some(14)));
/// assert_eq!(granule_plan::most(100, |_| Ok::<_, ()>(false)), Ok(None));
/// ```
pub fn most<E>(most: usize, mut fits: impl FnMut(usize) -> Result<bool, E>) -> Result<Option<usize>, E> {
    if !fits(0)? {
        return Ok(None);
    }
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high - (high - low) / 2;
        if fits(middle)? { low = middle } else { high = middle - 1 }
    }
    Ok(Some(low))
}

/// `n` layers in shares as near to these weights as whole layers can be (the largest remainders get one more, of equals the first),
/// but none larger than its cap: what is over goes to the first that have room. `None` where the caps hold fewer, or nothing weighs
/// anything.
///
/// ```
/// use granule_plan::shares;
/// assert_eq!(shares(32, &[3, 1], &[32, 32]), Some(vec![24, 8]));
/// assert_eq!(shares(32, &[3, 1], &[20, 32]), Some(vec![20, 12]));
/// assert_eq!(shares(32, &[3, 1], &[20, 11]), None);
/// ```
#[must_use]
pub fn shares(n: usize, weights: &[u64], caps: &[usize]) -> Option<Vec<usize>> {
    let all: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    if all == 0 || weights.len() != caps.len() {
        return None;
    }
    let part = |weight: u64| n as u128 * u128::from(weight);
    let mut shares: Vec<usize> = weights.iter().map(|&weight| (part(weight) / all) as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(part(weights[i]) % all), i));
    let left = n - shares.iter().sum::<usize>();
    order.into_iter().take(left).for_each(|i| shares[i] += 1);
    let mut over = 0;
    for (share, cap) in shares.iter_mut().zip(caps) {
        over += share.saturating_sub(*cap);
        *share = (*share).min(*cap);
    }
    for (share, cap) in shares.iter_mut().zip(caps) {
        let more = over.min(cap - *share);
        (*share, over) = (*share + more, over - more);
    }
    (over == 0).then_some(shares)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn shares_are_whole_within_their_caps_and_near_their_weights(
            n in 0..200usize,
            of in prop::collection::vec((1..1u64 << 40, 0..100usize), 1..6),
        ) {
            let (weights, caps): (Vec<u64>, Vec<usize>) = of.into_iter().unzip();
            let got = shares(n, &weights, &caps);
            prop_assert_eq!(got.is_some(), caps.iter().sum::<usize>() >= n);
            let all = weights.iter().sum::<u64>() as f64;
            if let Some(got) = &got {
                prop_assert_eq!(got.iter().sum::<usize>(), n);
                prop_assert!(got.iter().zip(&caps).all(|(share, cap)| share <= cap));
                let exact = |weight: u64| n as f64 * weight as f64 / all;
                if caps.iter().zip(&weights).all(|(&cap, &weight)| cap as f64 > exact(weight) + 1.0) {
                    prop_assert!(got.iter().zip(&weights).all(|(&share, &weight)| (share as f64 - exact(weight)).abs() < 1.0));
                }
            }
        }

        #[test]
        fn the_most_is_the_first_before_one_that_does_not_fit(limit in 0..50usize, up_to in 0..50usize) {
            let got = most(up_to, |n| Ok::<_, ()>(n < limit));
            prop_assert_eq!(got, Ok((limit > 0).then(|| up_to.min(limit.saturating_sub(1)))));
        }
    }
}
