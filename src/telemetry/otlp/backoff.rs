//! How long to wait before the collector is tried again. Pure arithmetic.
//!
//! Full jitter: a wait is drawn from zero to a ceiling that doubles. A collector that is not there is asked for at least every two
//! seconds, so that its return is noticed; one that says that it is busy is left alone for up to thirty, or for as long as it asks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

/// Why to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// No answer, or a gateway's answer that nobody is behind it.
    Absent,
    /// It answered, and cannot or will not take more now.
    Busy,
    /// It named the time.
    Asked(Duration),
}

impl Backoff {
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure.
    pub fn next(&mut self, pause: Pause) -> Duration {
        let wait = wait(self.failures, pause, random());
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// `random` is in 0..=1.
fn wait(failures: u32, pause: Pause, random: f64) -> Duration {
    let ceiling = |limit: Duration| FIRST.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(limit);
    match pause {
        Pause::Absent => ceiling(LONGEST_ABSENT).mul_f64(random).max(SHORTEST),
        Pause::Busy => ceiling(LONGEST_BUSY).mul_f64(random).max(SHORTEST),
        // Somewhat later than asked, so that not everybody comes back at once; never sooner.
        Pause::Asked(time) => (time + time.mul_f64(random / 10.0)).clamp(SHORTEST, LONGEST_BUSY.max(SHORTEST)),
    }
}

/// The standard library seeds its hashers from the system's randomness, which is good enough to spread waits.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / ((1_u64 << 53) - 1) as f64
}

const FIRST: Duration = Duration::from_millis(250);
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST_ABSENT: Duration = Duration::from_secs(2);
const LONGEST_BUSY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(failures in 0_u32..1000, random in 0.0_f64..=1.0, asked in 0_u64..100_000) {
            let absent = wait(failures, Pause::Absent, random);
            prop_assert!((SHORTEST..=LONGEST_ABSENT).contains(&absent));
            let busy = wait(failures, Pause::Busy, random);
            prop_assert!((SHORTEST..=LONGEST_BUSY).contains(&busy));
            let asked = Duration::from_millis(asked);
            let told = wait(failures, Pause::Asked(asked), random);
            prop_assert!(told >= asked.min(LONGEST_BUSY) && told <= LONGEST_BUSY);
        }
    }

    #[test]
    fn the_ceiling_doubles_and_success_resets_it() {
        let ceilings: Vec<u128> = (0..9).map(|n| wait(n, Pause::Busy, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        let mut backoff = Backoff::default();
        for _ in 0..50 {
            assert!(backoff.next(Pause::Absent) <= LONGEST_ABSENT);
        }
        backoff.reset();
        assert!(backoff.next(Pause::Busy) <= FIRST);
    }
}
