//! `Term`: what is to be done about one lease and when. Pure but for the clock that it is measured by.
//!
//! A lease is renewed at two thirds of what is left, up to a tenth earlier. When a renewal gives less than was asked for, the maximum
//! life is near: the lease is replaced instead, early enough for its `overlap`, so that no consumer is left with values that ended.

use std::time::Duration;

use tokio::time::Instant;

use super::schedule::{renew_in, replace_in};

pub(super) struct Term {
    /// What it lived for when it was new, which each renewal asks for.
    ttl: Duration,
    since: Instant,
    left: Duration,
    renewable: bool,
    overlap: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Renew,
    Replace,
}

impl Term {
    pub fn new(since: Instant, ttl: Duration, renewable: bool, overlap: Duration) -> Self {
        Self { ttl, since, left: ttl, renewable, overlap }
    }

    /// It was new before `since`, and has only `left`.
    pub fn resumed(mut self, left: Duration) -> Self {
        self.left = left;
        self
    }

    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The next thing to do; in the past when it is overdue.
    pub fn next(&self, chance: f64) -> (Instant, Step) {
        if self.renewable {
            (self.since + renew_in(self.left, chance), Step::Renew)
        } else {
            (self.since + replace_in(self.left, self.overlap, chance), Step::Replace)
        }
    }

    /// It was prolonged and lives for `left` from now.
    pub fn renewed(&mut self, left: Duration) {
        self.since = Instant::now();
        self.left = left;
        self.renewable = left >= self.ttl.mul_f64(CAPPED_BELOW);
    }

    pub fn is_over(&self) -> bool {
        self.since.elapsed() >= self.left
    }

    pub fn cannot_be_renewed(&mut self) {
        self.renewable = false;
    }
}

/// Servers count in whole seconds, so a little less than what was asked for is not yet a cap.
const CAPPED_BELOW: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_at_two_thirds_until_a_renewal_gives_less() {
        let start = Instant::now();
        let mut term = Term::new(start, HOUR, true, Duration::from_secs(30));
        assert_eq!(term.next(0.0), (start + HOUR.mul_f64(2.0 / 3.0), Step::Renew));
        tokio::time::sleep(HOUR * 2 / 3).await;
        term.renewed(HOUR - Duration::from_secs(1));
        assert_eq!(term.next(0.0).1, Step::Renew);
        tokio::time::sleep(HOUR * 2 / 3).await;
        term.renewed(HOUR / 2);
        let (at, step) = term.next(0.0);
        assert_eq!(step, Step::Replace);
        assert_eq!(at - Instant::now(), (HOUR / 2).mul_f64(2.0 / 3.0));
        assert_eq!(term.ttl(), HOUR, "each renewal asks for the whole time");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_up_is_renewed_by_what_is_left_of_it() {
        let start = Instant::now();
        let term = Term::new(start, HOUR, true, Duration::ZERO).resumed(HOUR / 10);
        assert_eq!(term.next(0.0), (start + (HOUR / 10).mul_f64(2.0 / 3.0), Step::Renew));
        assert_eq!(term.ttl(), HOUR, "a renewal asks for the whole time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replacement_leaves_the_overlap() {
        let (start, overlap) = (Instant::now(), Duration::from_secs(40));
        let term = Term::new(start, Duration::from_secs(60), false, overlap);
        assert_eq!(term.next(0.0), (start + Duration::from_secs(20), Step::Replace));
        let long = Term::new(start, Duration::from_secs(60), false, HOUR);
        assert_eq!(
            long.next(0.0).0,
            start + Duration::from_secs(20),
            "an overlap that cannot be had is no reason to hurry"
        );
    }
}
