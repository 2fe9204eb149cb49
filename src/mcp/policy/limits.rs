//! How often and how many at a time: bounds that all clients of a service share.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::mcp::settings::policy::Rate;

/// Lets so many through in a period, as many of them at once, by the generic cell rate algorithm: it knows only when the next one
/// would be due if they came evenly.
pub struct Limiter {
    /// Between two that come evenly.
    interval: Duration,
    /// How much earlier than due one may come.
    tolerance: Duration,
    due: Mutex<Instant>,
}

impl Limiter {
    pub fn new(rate: Rate) -> Self {
        let interval = rate.period / rate.count.get();
        Self { interval, tolerance: rate.period.saturating_sub(interval), due: Mutex::new(Instant::now()) }
    }

    /// Lets one through, or says how long it has to wait.
    pub fn take(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let early = due.saturating_duration_since(now);
        if early > self.tolerance {
            return Err(early - self.tolerance);
        }
        *due = (*due).max(now) + self.interval;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limiter(count: u32, period: Duration) -> Limiter {
        Limiter::new(Rate { count: NonZeroU32::new(count).unwrap(), period })
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_the_rate_come_at_once_and_then_evenly() {
        let limiter = limiter(3, Duration::from_secs(3));
        for _ in 0..3 {
            assert_eq!(limiter.take(), Ok(()));
        }
        assert_eq!(limiter.take(), Err(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(limiter.take(), Err(Duration::from_millis(600)));
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!((limiter.take().is_ok(), limiter.take().is_ok()), (true, false));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!((0..9).filter(|_| limiter.take().is_ok()).count(), 3, "rest does not save up");
    }

    #[tokio::test(start_paused = true)]
    async fn one_in_a_period_is_one() {
        let limiter = limiter(1, Duration::from_secs(60));
        assert_eq!((limiter.take(), limiter.take()), (Ok(()), Err(Duration::from_secs(60))));
    }
}
