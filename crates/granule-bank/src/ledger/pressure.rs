//! The policy of a request that did not fit: whom to ask for memory, in which order, and when to stop.
//!
//! Pure: it is told what is offered and what came of asking, and says what to do next. It ends whatever it is told: in each of
//! at most [`ROUNDS`] rounds each offer is taken up at most once, who gave nothing is not asked again, and a round in which
//! nobody gave anything is the last.

use std::collections::VecDeque;

use granule_device::Bytes;

use crate::Offer;

/// How often everybody is asked what they could give, for one request.
pub(crate) const ROUNDS: u32 = 8;

/// Where memory could come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Device work that retired memory waits for. Offered at a cost like everything else.
    Work,
    /// The reclaimer of this number.
    Reclaimer(u64),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask everybody what they could give, and [tell](Pressure::offered).
    Offers,
    /// Ask this one for so much, and [tell](Pressure::answered) what came of it.
    Ask(Source, Bytes),
    /// Refuse the request.
    Refuse,
}

/// One request under pressure.
#[derive(Debug)]
pub(crate) struct Pressure {
    rounds_left: u32,
    /// What was offered in this round and not asked for yet; cheapest first.
    queue: VecDeque<(Source, Offer)>,
    /// Who gave nothing when asked.
    spent: Vec<Source>,
    /// Whether anything was given in this round.
    gained: bool,
}

impl Pressure {
    pub(crate) fn new() -> Pressure {
        Pressure { rounds_left: ROUNDS, queue: VecDeque::new(), spent: Vec::new(), gained: true }
    }

    /// What to do for a request that lacks `missing`.
    pub(crate) fn next(&mut self, missing: Bytes) -> Next {
        if let Some((source, offer)) = self.queue.pop_front() {
            return Next::Ask(source, offer.bytes.min(missing));
        }
        if self.rounds_left == 0 || !self.gained {
            return Next::Refuse;
        }
        self.rounds_left -= 1;
        self.gained = false;
        Next::Offers
    }

    /// What everybody could give.
    pub(crate) fn offered(&mut self, offers: impl IntoIterator<Item = (Source, Offer)>) {
        let usable =
            |(source, offer): &(Source, Offer)| !offer.bytes.is_zero() && !self.spent.contains(source);
        let mut usable: Vec<_> = offers.into_iter().filter(usable).collect();
        // Stable: of two that cost the same, the one that registered first.
        usable.sort_by_key(|(_, offer)| offer.cost);
        self.queue = usable.into();
    }

    /// What asking a source brought, as the bank has seen it: not what the source said.
    pub(crate) fn answered(&mut self, source: Source, gained: Bytes) {
        self.gained |= !gained.is_zero();
        if gained.is_zero() {
            self.queue.retain(|(other, _)| *other != source);
            self.spent.push(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a source of the test says it has, and what it really gives when asked for everything.
    #[derive(Clone, Debug)]
    struct Giver {
        offers: Vec<Offer>,
        really: u64,
    }

    fn givers() -> impl Strategy<Value = Vec<Giver>> {
        let offer = (0..50u64, 0..5u64).prop_map(|(bytes, cost)| Offer { bytes: Bytes::new(bytes), cost });
        let giver = (proptest::collection::vec(offer, 0..3), 0..60u64);
        let giver = giver.prop_map(|(offers, really)| Giver { offers, really });
        proptest::collection::vec(giver, 0..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 1000 }))]
        /// Against the twin that asks for offers one at a time and always looks through all of them for the cheapest.
        #[test]
        fn it_ends_and_asks_the_cheapest_first(givers in givers(), need in 1..150u64) {
            let mut pressure = Pressure::new();
            let mut left: Vec<u64> = givers.iter().map(|giver| giver.really).collect();
            let mut missing = need;
            let mut asks = 0usize;
            let mut floor = (0u64, 0usize);
            let mut refused_by: Vec<u64> = Vec::new();
            let mut rounds = 0u32;
            loop {
                match pressure.next(Bytes::new(missing)) {
                    Next::Offers => {
                        rounds += 1;
                        floor = (0, 0);
                        let all = givers.iter().enumerate().flat_map(|(who, giver)| {
                            giver.offers.iter().map(move |&offer| (Source::Reclaimer(who as u64), offer))
                        });
                        pressure.offered(all);
                    }
                    Next::Ask(source, want) => {
                        let Source::Reclaimer(who) = source else { unreachable!("not offered") };
                        let giver = &givers[who as usize];
                        asks += 1;
                        prop_assert!(want.get() <= missing && !want.is_zero());
                        prop_assert!(!refused_by.contains(&who), "who gave nothing is asked again");
                        // Nothing cheaper is left unasked: costs rise through a round.
                        let cost = giver.offers.iter().filter(|offer| offer.bytes >= want).map(|offer| offer.cost);
                        let cost = cost.filter(|&cost| cost >= floor.0).min();
                        prop_assert!(cost.is_some(), "asked for more than was offered, or out of order");
                        floor = (cost.unwrap_or(0), who as usize);
                        let given = want.get().min(left[who as usize]);
                        left[who as usize] -= given;
                        missing -= given;
                        if given == 0 {
                            refused_by.push(who);
                        }
                        pressure.answered(source, Bytes::new(given));
                        if missing == 0 {
                            break;
                        }
                    }
                    Next::Refuse => break,
                }
                prop_assert!(rounds <= ROUNDS);
            }
            let offers: usize = givers.iter().map(|giver| giver.offers.len()).sum();
            prop_assert!(asks <= ROUNDS as usize * offers.max(1));
            // Refused: nobody who offers anything has anything left to give, unless the rounds ran out.
            if missing > 0 && rounds < ROUNDS {
                for (giver, left) in givers.iter().zip(left) {
                    prop_assert!(left == 0 || giver.offers.iter().all(|offer| offer.bytes.is_zero()));
                }
            }
        }
    }

    #[test]
    fn a_dearer_source_is_spared_while_a_cheaper_one_gives() {
        let mut pressure = Pressure::new();
        let offer = |bytes, cost| Offer { bytes: Bytes::new(bytes), cost };
        let (dear, cheap) = (Source::Reclaimer(1), Source::Reclaimer(2));
        assert_eq!(pressure.next(Bytes::new(10)), Next::Offers);
        pressure.offered([(dear, offer(100, 9)), (cheap, offer(4, 0)), (Source::Work, offer(8, 1))]);
        assert_eq!(pressure.next(Bytes::new(10)), Next::Ask(cheap, Bytes::new(4)));
        pressure.answered(cheap, Bytes::new(4));
        assert_eq!(pressure.next(Bytes::new(6)), Next::Ask(Source::Work, Bytes::new(6)));
        pressure.answered(Source::Work, Bytes::new(2));
        assert_eq!(pressure.next(Bytes::new(4)), Next::Ask(dear, Bytes::new(4)));
    }

    #[test]
    fn one_that_only_promises_is_asked_once() {
        let mut pressure = Pressure::new();
        let liar = [(Source::Reclaimer(7), Offer { bytes: Bytes::MAX, cost: 0 })];
        assert_eq!(pressure.next(Bytes::new(1)), Next::Offers);
        pressure.offered(liar);
        assert!(matches!(pressure.next(Bytes::new(1)), Next::Ask(..)));
        pressure.answered(liar[0].0, Bytes::ZERO);
        assert_eq!(pressure.next(Bytes::new(1)), Next::Refuse);
    }
}
