//! A circuit breaker: after so many failures in a row a service is left alone for a while, and whoever asks is answered at once.
//!
//! Closed: everything goes through. Open: nothing does, until `reset_timeout` is over. Half-open: one request goes through, and what
//! becomes of it decides. Shared by all sessions of a service. It keeps count only: sessions tell it what has happened, and record changes.
//!
//! Invariants: at most one probe is under way; one that ends without a verdict (its client has gone) lets the next request be one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::remembered::{Kept, millis};
use super::settings::policy::BreakerSettings;

pub struct Breaker {
    settings: BreakerSettings,
    inner: Mutex<Inner>,
}

struct Inner {
    phase: Phase,
    /// In a row.
    failures: u32,
    /// When it last opened or closed, in milliseconds since the epoch; 0: never.
    changed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    HalfOpen,
    Open,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// It has come to another state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub state: State,
    /// In a row, so far.
    pub failures: u32,
}

/// What becomes of a request.
pub enum Admission {
    Pass,
    /// It goes through to find out. The probe is to be kept until it has ended.
    Probe(Probe, Change),
    /// It does not go; so long at least.
    Refused(Duration),
}

/// The right to be the one request that finds out.
pub struct Probe(Arc<Breaker>);

impl Breaker {
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, inner: Mutex::new(Inner { phase: Phase::Closed, failures: 0, changed: 0 }) }
    }

    /// `may_probe`: the request has an end that says something, soon.
    pub fn admit(self: &Arc<Self>, may_probe: bool) -> Admission {
        let mut inner = self.inner();
        match inner.phase {
            Phase::Closed => Admission::Pass,
            Phase::Open { until } => {
                let wait = until.saturating_duration_since(Instant::now());
                if !wait.is_zero() || !may_probe {
                    return Admission::Refused(wait);
                }
                inner.phase = Phase::HalfOpen;
                let change = Change { state: State::HalfOpen, failures: inner.failures };
                drop(inner);
                Admission::Probe(Probe(self.clone()), change)
            }
            Phase::HalfOpen => Admission::Refused(Duration::ZERO),
        }
    }

    /// The service has answered. Late answers to what was asked before it opened do not count.
    pub fn succeeded(&self) -> Option<Change> {
        let mut inner = self.inner();
        match inner.phase {
            Phase::Open { .. } => return None,
            Phase::Closed => {
                inner.failures = 0;
                return None;
            }
            Phase::HalfOpen => {}
        }
        *inner = Inner { phase: Phase::Closed, failures: 0, changed: millis() };
        Some(Change { state: State::Closed, failures: 0 })
    }

    /// The service could not answer.
    pub fn failed(&self) -> Option<Change> {
        let mut inner = self.inner();
        inner.failures = inner.failures.saturating_add(1);
        let opens = match inner.phase {
            Phase::Closed => inner.failures >= self.settings.failure_threshold,
            Phase::HalfOpen => true,
            Phase::Open { .. } => false,
        };
        if !opens {
            return None;
        }
        inner.phase = Phase::Open { until: Instant::now() + self.settings.reset_timeout };
        inner.changed = millis();
        Some(Change { state: State::Open, failures: inner.failures })
    }

    /// Something has changed that may have been the reason: the next request finds out.
    pub fn try_again(&self) {
        if let Phase::Open { until } = &mut self.inner().phase {
            *until = Instant::now();
        }
    }

    /// The state, the failures in a row, and how long nothing is tried.
    pub fn state(&self) -> (State, u32, Duration) {
        let inner = self.inner();
        let (state, wait) = match inner.phase {
            Phase::Closed => (State::Closed, Duration::ZERO),
            Phase::HalfOpen => (State::HalfOpen, Duration::ZERO),
            Phase::Open { until } => (State::Open, until.saturating_duration_since(Instant::now())),
        };
        (state, inner.failures, wait)
    }

    /// As it is to be kept. Who finds out is nobody else's: half-open is open until now.
    pub fn kept(&self) -> Kept {
        let inner = self.inner();
        let wait = match inner.phase {
            Phase::Open { until } => until.saturating_duration_since(Instant::now()),
            Phase::Closed | Phase::HalfOpen => Duration::ZERO,
        };
        let open = inner.phase != Phase::Closed;
        // Counted from when it opened, so that it is the same whenever it is asked for.
        let until = if open && !wait.is_zero() {
            inner.changed.saturating_add(u64::try_from(self.settings.reset_timeout.as_millis()).unwrap_or(u64::MAX))
        } else {
            inner.changed
        };
        Kept { open, failures: if open { inner.failures } else { 0 }, until, changed: inner.changed }
    }

    /// Takes over what another process has found out later. Whether that is another state.
    pub fn take_over(&self, kept: &Kept) -> bool {
        let mut inner = self.inner();
        if kept.changed <= inner.changed || inner.phase == Phase::HalfOpen {
            return false;
        }
        let before = inner.phase != Phase::Closed;
        let wait = Duration::from_millis(kept.until.saturating_sub(millis())).min(self.settings.reset_timeout);
        inner.phase = if kept.open { Phase::Open { until: Instant::now() + wait } } else { Phase::Closed };
        inner.failures = kept.failures;
        inner.changed = kept.changed;
        before != kept.open
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        if inner.phase == Phase::HalfOpen {
            inner.phase = Phase::Open { until: Instant::now() };
        }
    }
}

/// Whether a failure says that the service is not there or does not work; by its `error.type`.
pub fn counts(kind: &str) -> bool {
    COUNTED.contains(&kind)
}

const COUNTED: [&str; 8] = [
    "upstream_not_started",
    "upstream_died",
    "upstream_unreachable",
    "connection_broken",
    "stream_ended",
    "replay_failed",
    "http_5xx",
    "timeout",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Arc<Breaker> {
        Arc::new(Breaker::new(BreakerSettings { failure_threshold: 3, reset_timeout: Duration::from_secs(60) }))
    }

    fn open(breaker: &Breaker) {
        let changes: Vec<_> = (0..3).filter_map(|_| breaker.failed()).collect();
        assert_eq!(changes, [Change { state: State::Open, failures: 3 }]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_successes_between_do_not() {
        let breaker = breaker();
        for _ in 0..5 {
            assert_eq!((breaker.failed(), breaker.failed(), breaker.succeeded()), (None, None, None));
        }
        open(&breaker);
        assert!(matches!(breaker.admit(true), Admission::Refused(wait) if wait == Duration::from_secs(60)));
        assert_eq!((breaker.succeeded(), breaker.failed()), (None, None), "late ones do not count");
        assert_eq!(breaker.state().0, State::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_finds_out() {
        let breaker = breaker();
        open(&breaker);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(matches!(breaker.admit(false), Admission::Refused(_)));
        let Admission::Probe(probe, change) = breaker.admit(true) else { panic!("no probe") };
        assert_eq!(change.state, State::HalfOpen);
        assert!(matches!(breaker.admit(true), Admission::Refused(_)), "there is one already");
        assert_eq!(breaker.failed().map(|change| change.state), Some(State::Open));
        drop(probe);
        assert!(matches!(breaker.admit(true), Admission::Refused(wait) if wait == Duration::from_secs(60)));
        tokio::time::advance(Duration::from_secs(60)).await;
        let Admission::Probe(probe, _) = breaker.admit(true) else { panic!("no probe") };
        assert_eq!(breaker.succeeded(), Some(Change { state: State::Closed, failures: 0 }));
        drop(probe);
        assert!(matches!(breaker.admit(true), Admission::Pass));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_without_a_verdict_leaves_it_to_the_next() {
        let breaker = breaker();
        open(&breaker);
        breaker.try_again();
        let Admission::Probe(probe, _) = breaker.admit(true) else { panic!("no probe") };
        drop(probe);
        assert!(matches!(breaker.admit(true), Admission::Probe(..)));
    }

    #[tokio::test]
    async fn what_is_kept_of_one_is_taken_over_by_another_and_the_later_word_counts() {
        let (one, other) = (breaker(), breaker());
        assert_eq!(one.kept().changed, 0);
        open(&one);
        let kept = one.kept();
        assert!(kept.open && kept.failures == 3 && kept.until == kept.changed + 60_000, "{kept:?}");
        assert!(other.take_over(&kept));
        assert!(!other.take_over(&kept), "it has it already");
        let (state, failures, wait) = other.state();
        assert!(state == State::Open && failures == 3 && wait > Duration::from_secs(50), "{wait:?}");
        assert_eq!(other.kept(), kept);
        let later = Kept { open: false, failures: 0, changed: kept.changed + 1, until: kept.changed + 1 };
        assert!(other.take_over(&later));
        assert!(!other.take_over(&kept), "it is older");
        assert!(matches!(other.admit(true), Admission::Pass));
        // One of long ago is tried at once.
        let old = Kept { changed: kept.changed + 2, until: 7, ..kept };
        assert!(other.take_over(&old));
        assert!(matches!(other.admit(true), Admission::Probe(..)));
    }

    #[test]
    fn what_the_server_or_we_are_to_blame_for_otherwise_does_not_count() {
        for kind in ["http_5xx", "timeout", "upstream_died"] {
            assert!(counts(kind));
        }
        for kind in ["http_401", "http_429", "credential_unavailable", "closing", "cancelled", "bad_answer"] {
            assert!(!counts(kind));
        }
    }
}
