//! How long to wait before the process is started again: it doubles with each end in a row, with jitter downwards.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::settings::RestartSettings;

/// Counts the ends in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    pub in_a_row: u32,
}

impl Backoff {
    /// After one more end of a process that had `lived` for so long. `None`: it has been started often enough.
    pub fn after_end(&mut self, lived: Duration, settings: &RestartSettings) -> Option<Duration> {
        if lived >= settings.max_backoff {
            self.in_a_row = 0;
        }
        if settings.max_restarts.is_some_and(|most| self.in_a_row >= most) {
            return None;
        }
        let doubled = 1_u32.checked_shl(self.in_a_row).unwrap_or(u32::MAX);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let ceiling = settings.initial_backoff.saturating_mul(doubled).min(settings.max_backoff);
        // Between three quarters and the whole of it: long enough to be one, and not all at the same time.
        let part = RandomState::new().hash_one(Instant::now()) as f64 / u64::MAX as f64;
        Some(ceiling.mul_f64((0.75 + part / 4.0).min(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::settings::Policy;

    fn settings(max_restarts: Option<u32>) -> RestartSettings {
        RestartSettings {
            policy: Policy::Always,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            max_restarts,
        }
    }

    #[test]
    fn it_doubles_up_to_the_longest_and_begins_again_after_a_good_life() {
        let (mut backoff, settings) = (Backoff::default(), settings(None));
        for ceiling in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.after_end(Duration::ZERO, &settings).unwrap().as_millis();
            assert!((ceiling * 3 / 4..=ceiling).contains(&wait), "{wait} of {ceiling}");
        }
        assert!(backoff.after_end(Duration::from_secs(1), &settings).unwrap() <= Duration::from_millis(100));
        backoff.in_a_row = u32::MAX;
        assert!(backoff.after_end(Duration::ZERO, &settings).unwrap() <= Duration::from_secs(1));
    }

    #[test]
    fn it_gives_up_after_so_many_in_a_row() {
        let (mut backoff, settings) = (Backoff::default(), settings(Some(2)));
        let waits: Vec<bool> = (0..3).map(|_| backoff.after_end(Duration::ZERO, &settings).is_some()).collect();
        assert_eq!(waits, [true, true, false]);
        assert!(backoff.after_end(Duration::from_secs(2), &settings).is_some());
    }
}
