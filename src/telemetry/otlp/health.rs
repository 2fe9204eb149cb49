//! How the export to one destination is doing, in words: the condition `otlp`, or `otlp.NAME`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::ports::{Condition, ConditionState};
use crate::telemetry::tallies::Signal;

pub struct Health {
    destination: String,
    problems: Mutex<[Option<Problem>; Signal::ALL.len()]>,
}

struct Problem {
    phrase: String,
    since: Instant,
    again_at: Instant,
}

impl Health {
    pub fn new(destination: &str) -> Self {
        Self { destination: destination.to_owned(), problems: Mutex::default() }
    }

    /// An export failed and will be tried again after `wait`.
    pub fn failed(&self, signal: Signal, phrase: &str, wait: Duration) {
        let now = Instant::now();
        let mut problems = self.lock();
        let known = problems[signal as usize].as_ref();
        let since = known.map_or(now, |known| known.since);
        let news = known.is_none_or(|known| known.phrase != phrase);
        problems[signal as usize] = Some(Problem { phrase: phrase.to_owned(), since, again_at: now + wait });
        drop(problems);
        if news {
            let destination = self.destination.as_str();
            warn!(
                destination,
                signal = signal.as_str(),
                problem = phrase,
                "export failed, the collector is tried again"
            );
        }
    }

    /// An export was delivered.
    pub fn delivered(&self, signal: Signal) {
        let problem = self.lock()[signal as usize].take();
        if let Some(problem) = problem {
            let seconds = problem.since.elapsed().as_secs();
            let destination = self.destination.as_str();
            info!(destination, signal = signal.as_str(), outage_seconds = seconds, "export works again");
        }
    }

    /// `waiting`: the records that wait for the collector at `endpoint`. `dropped`: those that were dropped lately. `trouble`: why the
    /// files of TLS are not used as they are.
    pub fn condition(
        &self,
        component: String,
        endpoint: &str,
        waiting: u64,
        dropped: u64,
        trouble: Option<String>,
    ) -> Condition {
        let problems = self.lock();
        let now = Instant::now();
        let mut parts = Vec::new();
        if let Some(problem) = problems.iter().flatten().next() {
            parts.push(format!("the collector at {endpoint} {}", problem.phrase));
            parts.push(records_wait(waiting));
            let seconds = problem.again_at.saturating_duration_since(now).as_secs_f64().ceil();
            parts.push(if seconds > 0.0 { format!("trying again in {seconds} s") } else { "trying again now".into() });
        }
        if let Some(trouble) = trouble {
            parts.push(format!("the files of tls changed and cannot be used: {trouble}"));
        }
        if dropped > 0 {
            parts.push(format!("{dropped} records were dropped in the last minutes"));
        }
        let (verdict, message) = if parts.is_empty() {
            (ConditionState::Ok, format!("exports to {endpoint}"))
        } else {
            (ConditionState::Degraded, parts.join("; "))
        };
        Condition { component, state: verdict, message }
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Problem>; Signal::ALL.len()]> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn records_wait(count: u64) -> String {
    match count {
        0 => "no record waits".into(),
        1 => "1 record waits".into(),
        count => format!("{count} records wait"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_says_what_is_wrong_and_what_is_done() {
        let health = Health::new("otlp");
        let at = "http://127.0.0.1:4318";
        let condition = |waiting, dropped| health.condition("otlp".to_owned(), at, waiting, dropped, None);
        assert_eq!(condition(0, 0).state, ConditionState::Ok);
        health.failed(Signal::Logs, "refused the connection", Duration::from_millis(1900));
        assert_eq!(condition(12, 0).state, ConditionState::Degraded);
        let expected =
            "the collector at http://127.0.0.1:4318 refused the connection; 12 records wait; trying again in 2 s";
        assert_eq!(condition(12, 0).message, expected);
        health.delivered(Signal::Logs);
        assert_eq!(condition(0, 3).message, "3 records were dropped in the last minutes");
    }
}
