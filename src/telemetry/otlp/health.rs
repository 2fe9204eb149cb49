//! How the export is doing, in words: the condition `otlp`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::ports::{Condition, ConditionState};
use crate::telemetry::metrics::Signal;

#[derive(Default)]
pub struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    problems: [Option<Problem>; Signal::ALL.len()],
    /// When a bound last forced records out, and how many in this outage.
    dropped: Option<(Instant, u64)>,
}

struct Problem {
    phrase: String,
    since: Instant,
    again_at: Instant,
}

impl Health {
    /// An export failed and will be tried again after `wait`.
    pub fn failed(&self, signal: Signal, phrase: &str, wait: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        let known = state.problems[signal as usize].as_ref();
        let since = known.map_or(now, |known| known.since);
        let news = known.is_none_or(|known| known.phrase != phrase);
        state.problems[signal as usize] = Some(Problem { phrase: phrase.to_owned(), since, again_at: now + wait });
        drop(state);
        if news {
            warn!(signal = signal.as_str(), problem = phrase, "export failed, the collector is tried again");
        }
    }

    /// An export was delivered.
    pub fn delivered(&self, signal: Signal) {
        let problem = self.lock().problems[signal as usize].take();
        if let Some(problem) = problem {
            let seconds = problem.since.elapsed().as_secs();
            info!(signal = signal.as_str(), outage_seconds = seconds, "export works again");
        }
    }

    /// Records had to go without having been delivered.
    pub fn dropped(&self, signal: Signal, reason: &'static str, count: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        let before = state.dropped.filter(|(last, _)| now.duration_since(*last) < REMEMBERED);
        state.dropped = Some((now, before.map_or(0, |(_, count)| count) + count));
        drop(state);
        if before.is_none() {
            warn!(signal = signal.as_str(), reason, "records are dropped");
        }
    }

    /// `waiting`: the records that wait for the collector at `endpoint`.
    pub fn condition(&self, endpoint: &str, waiting: u64) -> Condition {
        let state = self.lock();
        let now = Instant::now();
        let mut parts = Vec::new();
        if let Some(problem) = state.problems.iter().flatten().next() {
            parts.push(format!("the collector at {endpoint} {}", problem.phrase));
            parts.push(records_wait(waiting));
            let seconds = problem.again_at.saturating_duration_since(now).as_secs_f64().ceil();
            parts.push(if seconds > 0.0 { format!("trying again in {seconds} s") } else { "trying again now".into() });
        }
        if let Some((_, count)) = state.dropped.filter(|(last, _)| now.duration_since(*last) < REMEMBERED) {
            parts.push(format!("{count} records were dropped in the last minutes"));
        }
        let (verdict, message) = if parts.is_empty() {
            (ConditionState::Ok, format!("exports to {endpoint}"))
        } else {
            (ConditionState::Degraded, parts.join("; "))
        };
        Condition { component: "otlp".into(), state: verdict, message }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn records_wait(count: u64) -> String {
    match count {
        0 => "no record waits".into(),
        1 => "1 record waits".into(),
        count => format!("{count} records wait"),
    }
}

/// How long after the last dropped record the condition still tells of it.
const REMEMBERED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_says_what_is_wrong_and_what_is_done() {
        let health = Health::default();
        let at = "http://127.0.0.1:4318";
        assert_eq!(health.condition(at, 0).state, ConditionState::Ok);
        health.failed(Signal::Logs, "refused the connection", Duration::from_millis(1900));
        let condition = health.condition(at, 12);
        assert_eq!(condition.state, ConditionState::Degraded);
        let expected =
            "the collector at http://127.0.0.1:4318 refused the connection; 12 records wait; trying again in 2 s";
        assert_eq!(condition.message, expected);
        health.dropped(Signal::Logs, "queue_full", 3);
        health.delivered(Signal::Logs);
        assert_eq!(health.condition(at, 0).message, "3 records were dropped in the last minutes");
    }
}
