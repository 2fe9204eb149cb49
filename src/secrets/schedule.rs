//! When to ask again: pure arithmetic, no clock and no source of chance of its own.
//!
//! Each function takes `chance`, a number from 0 up to but not including 1, so that a test can put in the ends. `chance()` gives one
//! in production. Invariants: no wait is longer than its cap, and none is so short that a failing provider is asked without a pause.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

/// The pause before the next regular fetch: `refresh`, or up to a tenth less, so that items do not march in step and none is late.
pub(super) fn refresh_in(refresh: Duration, chance: f64) -> Duration {
    refresh.mul_f64(1.0 - 0.1 * chance).max(SHORTEST)
}

/// The pause after the `failures`-th failure in a row (from 1): full jitter below a bound that doubles up to `cap`.
pub(super) fn backoff_in(failures: u32, cap: Duration, chance: f64) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(cap).mul_f64(chance).max(SHORTEST)
}

/// When to renew what lives for `ttl`: at two thirds of it, up to a tenth earlier.
pub(super) fn renew_in(ttl: Duration, chance: f64) -> Duration {
    ttl.mul_f64((2.0 / 3.0) * (1.0 - 0.1 * chance)).max(SHORTEST)
}

/// When to replace what lives for `left` more: early enough to leave `overlap`, but not in the first third, nor after the second.
pub(super) fn replace_in(left: Duration, overlap: Duration, chance: f64) -> Duration {
    let latest = left.mul_f64(2.0 / 3.0);
    left.saturating_sub(overlap).clamp(left / 3, latest).mul_f64(1.0 - 0.1 * chance).max(SHORTEST)
}

/// When to fetch what the provider itself replaces after `left`: a little later.
pub(super) fn rotated_in(left: Duration, chance: f64) -> Duration {
    left + ROTATION_MARGIN.mul_f64(1.0 + chance)
}

/// The pause after the `failures`-th failure in a row (from 1) of an item whose provider is well: at most six tries a minute,
/// and with the lookup of the token that the first of them costs, six requests.
pub(super) fn item_backoff_in(failures: u32, chance: f64) -> Duration {
    let bound = if failures <= 1 { FIRST_ITEM_BACKOFF } else { BACKOFF_CAP };
    bound.mul_f64(0.5 + 0.5 * chance)
}

/// From the beginning of one question whether a provider that failed is back to that of the next, whatever the answer: at most one a
/// second, and soon enough that what has healed is found within two.
pub(super) fn probe_in(chance: f64) -> Duration {
    PROBE.mul_f64(1.0 + 0.4 * chance)
}

/// The same where the provider was found well `relapses` times in a row, and then failed at what was really asked of it.
pub(super) fn probe_after_relapses(relapses: u32, chance: f64) -> Duration {
    let backed_off = if relapses == 0 { Duration::ZERO } else { backoff_in(relapses, BACKOFF_CAP, chance) };
    probe_in(chance).max(backed_off)
}

/// The pause of an item after its provider was found well again.
pub(super) fn ask_again_in(chance: f64) -> Duration {
    SPREAD.mul_f64(chance)
}

/// From the finding of a healed server to the `turn`-th request (from 0) of one of `agents` processes. Each has one turn in each of a
/// row of equal spans, at any place in it, so that together they make `TOGETHER` requests a second on average, and twenty in no second.
/// A process that is alone has nobody to spare.
pub(super) fn turn_in(agents: u32, turn: u32, chance: f64) -> Duration {
    if agents <= 1 {
        return Duration::ZERO;
    }
    Duration::from_secs_f64(f64::from(agents) / TOGETHER * (f64::from(turn) + chance))
}

/// How long a server asks to be left alone by `Retry-After`, in seconds or until a date (RFC 9110, 10.2.3), at most five minutes.
pub(super) fn asked_wait(retry_after: &str, now: SystemTime) -> Option<Duration> {
    let asked = retry_after.trim();
    let wait = match asked.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A date that is past asks for no wait.
        Err(_) => httpdate::parse_http_date(asked).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_WAIT))
}

/// A number from 0 up to but not including 1, good enough to keep many processes out of step; not for keys.
pub(super) fn chance() -> f64 {
    // Each `RandomState` carries new keys; what the hasher makes of no input differs with them.
    let bits = RandomState::new().build_hasher().finish() >> (u64::BITS - f64::MANTISSA_DIGITS);
    bits as f64 / (1_u64 << f64::MANTISSA_DIGITS) as f64
}

/// The longest pause between two tries of something that failed.
pub(super) const BACKOFF_CAP: Duration = Duration::from_secs(30);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const SPREAD: Duration = Duration::from_millis(300);
const SHORTEST: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_secs(1);
/// Requests a second on average: one of twenty or more in a second is then rarer than one outage in ten thousand.
const TOGETHER: f64 = 4.0;
const FIRST_ITEM_BACKOFF: Duration = Duration::from_secs(6);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
const ROTATION_MARGIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_refresh_is_never_late_and_at_most_a_tenth_early(seconds in 1_u64..1_000_000, chance in 0.0..1.0_f64) {
            let wait = refresh_in(Duration::from_secs(seconds), chance).as_secs_f64();
            prop_assert!(wait >= seconds as f64 * 0.899 && wait <= seconds as f64);
        }

        #[test]
        fn a_backoff_is_bounded_on_both_sides(failures in 0_u32.., chance in 0.0..1.0_f64) {
            let wait = backoff_in(failures, BACKOFF_CAP, chance);
            prop_assert!(wait >= SHORTEST && wait <= BACKOFF_CAP);
        }

        #[test]
        fn more_failures_never_shorten_the_backoff(failures in 1_u32..64, chance in 0.0..1.0_f64) {
            prop_assert!(backoff_in(failures + 1, BACKOFF_CAP, chance) >= backoff_in(failures, BACKOFF_CAP, chance));
        }

        #[test]
        fn a_renewal_comes_before_the_end(seconds in 1_u64..100_000_000, chance in 0.0..1.0_f64) {
            let ttl = Duration::from_secs(seconds);
            let wait = renew_in(ttl, chance);
            prop_assert!(wait <= ttl.mul_f64(0.667) && wait >= ttl.mul_f64(0.599));
        }

        #[test]
        fn a_replacement_leaves_the_overlap_where_the_lease_is_long_enough(
            left in 1_u64..100_000, overlap in 0_u64..1000, chance in 0.0..1.0_f64,
        ) {
            let (left, overlap) = (Duration::from_secs(left), Duration::from_secs(overlap));
            let wait = replace_in(left, overlap, chance);
            prop_assert!(wait <= left.mul_f64(0.667) && wait >= left.mul_f64(0.299));
            prop_assert!(overlap > left.mul_f64(0.666) || wait + overlap <= left);
        }

        #[test]
        fn a_broken_item_is_tried_at_most_five_times_in_any_minute(chances in prop::collection::vec(0.0..1.0_f64, 40)) {
            let mut at = Duration::ZERO;
            let tries: Vec<Duration> = chances.iter().zip(1..).map(|(chance, failures)| {
                let this = at;
                at += item_backoff_in(failures, *chance);
                this
            }).collect();
            for start in &tries {
                let minute = tries.iter().filter(|at| *at >= start && **at < *start + Duration::from_secs(60));
                prop_assert!(minute.count() <= 5);
            }
        }
    }

    #[test]
    fn a_server_asks_to_wait_in_seconds_or_until_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let wait = |asked| asked_wait(asked, now).map(|wait| wait.as_secs());
        assert_eq!((wait("7"), wait(" 90 "), wait("86400")), (Some(7), Some(90), Some(300)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:57 GMT"), Some(20));
        assert_eq!(wait("Sunday, 06-Nov-94 08:50:07 GMT"), Some(30));
        assert_eq!(wait("Mon, 07 Nov 1994 08:49:37 GMT"), Some(300));
        assert_eq!(wait("Sun, 06 Nov 1994 08:40:00 GMT"), Some(0));
        assert_eq!((wait("soon"), wait(""), wait("-1")), (None, None, None));
    }

    #[test]
    fn chance_is_spread_over_the_unit_interval() {
        let drawn: Vec<f64> = (0..1000).map(|_| chance()).collect();
        assert!(drawn.iter().all(|c| (0.0..1.0).contains(c)));
        let mean = drawn.iter().sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "the mean of 1000 draws was {mean}");
    }
}
