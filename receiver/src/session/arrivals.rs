//! Which of a channel's datagrams have arrived.
//!
//! A question says how many datagrams were sent until then; by the time it is answered later ones have come too, often more
//! than were lost of those asked about. Counted together they would hide losses in one answer and show them in the next, and
//! the search for the rate would take that for a queue that fills.

/// Counters told apart, the newest; of older datagrams only how many came is known. A fifth of a second at 10 Gb/s and an MTU of
/// 1,500, 16 KiB of memory.
const WINDOW: u64 = 1 << 17;
const WORD: u64 = u64::BITS as u64;

/// See the module's text.
pub(super) struct Arrivals {
    /// A bit for each counter in the window, at its remainder.
    bits: Box<[u64]>,
    /// Datagrams that came.
    received: u64,
    /// One more than the highest counter seen: how far the sender had got.
    reached: u64,
}

impl Arrivals {
    pub(super) fn new() -> Self {
        Self { bits: vec![0; (WINDOW / WORD) as usize].into_boxed_slice(), received: 0, reached: 0 }
    }

    /// A datagram with this counter came, its seal is right.
    pub(super) fn note(&mut self, counter: u64) {
        self.received += 1;
        // No sender counts so far, but a member can write it.
        let counter = counter.min(u64::MAX - 1);
        if counter >= self.reached {
            self.forget(self.reached, counter);
            self.reached = counter + 1;
        }
        if counter.saturating_add(WINDOW) >= self.reached {
            let (word, bit) = place(counter);
            self.bits[word] |= bit;
        }
    }

    /// All that came.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// One more than the highest counter that came.
    pub(super) fn reached(&self) -> u64 {
        self.reached
    }

    /// How many of the first `sent` datagrams came, as far as the window tells those that came later from them.
    pub(super) fn received_of(&self, sent: u64) -> u64 {
        let first = sent.max(self.reached.saturating_sub(WINDOW));
        self.received - self.count(first)
    }

    /// Datagrams in the window from this counter on.
    fn count(&self, first: u64) -> u64 {
        let (mut at, mut count) = (first, 0);
        while at < self.reached {
            let (word, bit) = place(at);
            let to_end = WORD - at % WORD;
            let mut bits = self.bits[word] & bit.wrapping_neg();
            let rest = self.reached - at;
            if rest < to_end {
                bits &= (bit << rest).wrapping_sub(1);
            }
            count += u64::from(bits.count_ones());
            at = at.saturating_add(to_end);
        }
        count
    }

    /// Makes room for the counters from `first` to `last`.
    fn forget(&mut self, first: u64, last: u64) {
        if last - first >= WINDOW {
            self.bits.fill(0);
            return;
        }
        for counter in first..=last {
            let (word, bit) = place(counter);
            self.bits[word] &= !bit;
        }
    }
}

fn place(counter: u64) -> (usize, u64) {
    let at = counter % WINDOW;
    let word = usize::try_from(at / WORD).expect("within the window");
    (word, 1 << (at % WORD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a set of all counters that came, each once, in any order within the window.
        #[test]
        fn counts_those_asked_about(
            gaps in prop::collection::vec(1_u64..200, 1..400),
            swaps in prop::collection::vec((0_usize..400, 0_usize..400), 0..100),
            asked in prop::collection::vec(0_u64..80_000, 1..20),
        ) {
            let mut at = 0;
            let mut counters: Vec<u64> = gaps.iter().map(|gap| { at += gap; at }).collect();
            for (a, b) in swaps {
                let len = counters.len();
                counters.swap(a % len, b % len);
            }
            let mut arrivals = Arrivals::new();
            let mut seen = BTreeSet::new();
            for counter in counters {
                arrivals.note(counter);
                seen.insert(counter);
                prop_assert_eq!(arrivals.reached(), seen.last().map_or(0, |last| last + 1));
            }
            for sent in asked {
                prop_assert_eq!(arrivals.received_of(sent), seen.range(..sent).count() as u64);
            }
        }
    }

    #[test]
    fn far_beyond_the_window_only_the_sum_is_known() {
        let mut arrivals = Arrivals::new();
        (0..1000).for_each(|counter| arrivals.note(counter));
        // A member that forges cannot do more than this.
        arrivals.note(u64::MAX);
        arrivals.note(1000);
        assert_eq!(arrivals.received(), 1002);
        assert_eq!(arrivals.reached(), u64::MAX);
        assert_eq!(arrivals.received_of(500), 1001, "all but the forged one");
        let mut arrivals = Arrivals::new();
        for counter in (0..3 * WINDOW).filter(|counter| counter % 3 != 0) {
            arrivals.note(counter);
        }
        let asked = 2 * WINDOW + 3;
        assert_eq!(arrivals.received_of(asked), (0..asked).filter(|counter| counter % 3 != 0).count() as u64);
    }
}
