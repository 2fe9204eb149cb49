//! How often and how many at a time: bounds that all clients of a service share, and all processes of one store.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use crate::mcp::settings::policy::Rate;
use crate::ports::StateStore;

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

    /// As `take`, counted by all who share the store under `key`, by the clock of the system. Where the store does not answer, or too many
    /// want it at once, this process counts alone.
    pub async fn take_shared(&self, state: &dyn StateStore, key: &str) -> Result<(), Duration> {
        for _ in 0..ATTEMPTS {
            let Ok(before) = state.get(key).await else { break };
            let due = before.as_deref().and_then(|due| due.try_into().ok()).map_or(0, u64::from_be_bytes);
            let now = micros();
            let tolerance = u64::try_from(self.tolerance.as_micros()).unwrap_or(u64::MAX);
            // A clock that was set back does not close it for longer than its period.
            let early = due.saturating_sub(now).min(tolerance.saturating_add(self.step()));
            if early > tolerance {
                return Err(Duration::from_micros(early - tolerance));
            }
            let next = (now + early).saturating_add(self.step());
            match state.compare_and_set(key, before, Bytes::copy_from_slice(&next.to_be_bytes())).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => break,
            }
        }
        self.take()
    }

    fn step(&self) -> u64 {
        u64::try_from(self.interval.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Since the epoch.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// When others change the same meanwhile.
const ATTEMPTS: usize = 8;

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
