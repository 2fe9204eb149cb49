//! When to try again: exponential with full jitter, so that many who failed together do not come back together.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Counts the failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long somebody who asks has to wait after the failures so far: nothing after one, and never so long that it would be noticed.
    pub fn on_demand(&self) -> Duration {
        if self.failures <= 1 { Duration::ZERO } else { within(ON_DEMAND, random()) }
    }

    /// How long to wait after one more failure. `lived`: how long it had worked before.
    pub fn after_failure(&mut self, lived: Duration) -> Duration {
        if lived >= GOOD_LIFE {
            self.failures = 0;
        }
        let ceiling = ceiling(self.failures);
        self.failures = self.failures.saturating_add(1);
        within(ceiling, random())
    }
}

/// The longest wait after so many failures in a row.
fn ceiling(failures: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST)
}

/// A part of `ceiling`, uniform over all values of `random`.
fn within(ceiling: Duration, random: u64) -> Duration {
    ceiling.mul_f64(random as f64 / u64::MAX as f64).min(ceiling)
}

/// Not for secrets: the standard library seeds its hash maps with it.
pub fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

const FIRST: Duration = Duration::from_millis(100);
/// Each try answers whoever has waited for it, so that there are no more of them than there are requests.
const ON_DEMAND: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(30);
/// Who has worked for so long is not in a crash loop.
const GOOD_LIFE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_longest() {
        let ceilings: Vec<u128> = (0..11).map(|n| ceiling(n).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(ceiling(u32::MAX), LONGEST);
    }

    #[test]
    fn who_asks_waits_for_no_more_than_a_moment() {
        let mut backoff = Backoff::default();
        backoff.after_failure(Duration::ZERO);
        assert_eq!(backoff.on_demand(), Duration::ZERO);
        for _ in 0..20 {
            backoff.after_failure(Duration::ZERO);
            assert!(backoff.on_demand() <= ON_DEMAND);
        }
    }

    #[test]
    fn a_good_life_starts_the_count_anew() {
        let mut backoff = Backoff { failures: 9 };
        assert!(backoff.after_failure(GOOD_LIFE) <= FIRST);
        assert_eq!(backoff.failures, 1);
    }

    proptest! {
        #[test]
        fn a_wait_is_within_its_ceiling(failures in 0_u32..100, random: u64) {
            prop_assert!(within(ceiling(failures), random) <= ceiling(failures));
        }
    }
}
