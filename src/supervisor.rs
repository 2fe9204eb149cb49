//! Runs Parts, stops them stage by stage, reports the first failure.
//!
//! The only place where something long-lived is spawned. A part that ends before it was told to, with an error or by a panic, stops the
//! whole process in the same orderly way. Each stage gets a share of the deadline; what has not ended then is dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info, warn};

use crate::lifecycle::{Part, PartError, Readiness, ReadyState, Shutdown, ShutdownTrigger, Stage};

/// Everything that runs.
pub struct Supervisor {
    stages: BTreeMap<Stage, Running>,
    readiness: Vec<(&'static str, Readiness)>,
}

struct Running {
    trigger: ShutdownTrigger,
    shutdown: Shutdown,
    tasks: JoinSet<Result<(), PartError>>,
    names: BTreeMap<Id, &'static str>,
}

/// Why the process stops although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[error("{part} ended: {reason}")]
pub struct PartFailed {
    pub part: &'static str,
    pub reason: String,
}

impl Supervisor {
    /// Spawns the parts, the last stage first, so that what serves others is there before them.
    pub fn start(parts: Vec<Part>) -> Self {
        let mut supervisor = Self { stages: BTreeMap::new(), readiness: Vec::new() };
        let mut parts = parts;
        parts.sort_by_key(|part| std::cmp::Reverse(part.stage));
        for part in parts {
            supervisor.spawn(part);
        }
        supervisor
    }

    fn spawn(&mut self, part: Part) {
        let running = self.stages.entry(part.stage).or_insert_with(Running::new);
        self.readiness.push((part.name, part.ready));
        let task = running.tasks.spawn((part.task)(running.shutdown.clone()));
        running.names.insert(task.id(), part.name);
        debug!(part = part.name, stage = part.stage.as_str(), "started");
    }

    /// The readiness of every part, for `/readyz`.
    pub fn readiness(&self) -> Vec<(&'static str, Readiness)> {
        self.readiness.clone()
    }

    /// Waits until every part is ready; the reasons of those that are not.
    pub async fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        for (name, readiness) in &self.readiness {
            if let ReadyState::Failed(reason) = readiness.clone().settled().await {
                reasons.push(format!("{name}: {reason}"));
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// Completes when a part ends by itself, with what it ended of.
    pub async fn failure(&mut self) -> PartFailed {
        let ends = self.stages.values_mut().map(|running| Box::pin(running.next_end()));
        let (failed, _, _) = futures_util::future::select_all(ends).await;
        failed
    }

    /// Stops one stage ahead of the others, with a deadline of its own. The names of parts that had to be dropped.
    pub async fn stop_stage(&mut self, stage: Stage, deadline: Duration) -> Vec<&'static str> {
        match self.stages.remove(&stage) {
            Some(running) => running.stop(stage, deadline.max(SHORTEST_SHARE)).await,
            None => Vec::new(),
        }
    }

    /// Stops everything by stage within `deadline`. The names of parts that had to be dropped.
    pub async fn stop(mut self, deadline: Duration) -> Vec<&'static str> {
        let started = Instant::now();
        let mut dropped = Vec::new();
        let stages = std::mem::take(&mut self.stages);
        let mut left = u32::try_from(stages.len()).unwrap_or(1).max(1);
        for (stage, running) in stages {
            // A stage may use what earlier ones left over, and leaves a fair share to those after it.
            let share = deadline.saturating_sub(started.elapsed()) / left;
            left -= 1;
            // In-flight work is what the deadline is for: it may use half of what there is.
            let share = if stage == Stage::InFlight {
                share.max(deadline.saturating_sub(started.elapsed()) / 2)
            } else {
                share
            };
            dropped.extend(running.stop(stage, share.max(SHORTEST_SHARE)).await);
        }
        info!(duration_ms = millis(started.elapsed()), "stopped");
        dropped
    }
}

impl Running {
    fn new() -> Self {
        let (trigger, shutdown) = Shutdown::channel();
        Self { trigger, shutdown, tasks: JoinSet::new(), names: BTreeMap::new() }
    }

    /// The next part of this stage that ends; never completes when there is none.
    async fn next_end(&mut self) -> PartFailed {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, Ok(())))) => self.failed(id, "it was not told to".to_owned()),
            Some(Ok((id, Err(error)))) => self.failed(id, describe(error.as_ref())),
            Some(Err(error)) => self.failed(error.id(), "it panicked".to_owned()),
            None => std::future::pending().await,
        }
    }

    fn failed(&mut self, id: Id, reason: String) -> PartFailed {
        PartFailed { part: self.names.remove(&id).unwrap_or("a part"), reason }
    }

    async fn stop(mut self, stage: Stage, share: Duration) -> Vec<&'static str> {
        self.trigger.fire();
        let until = Instant::now() + share;
        while let Ok(Some(end)) = timeout_at(until, self.tasks.join_next_with_id()).await {
            match end {
                Ok((id, result)) => {
                    let name = self.names.remove(&id).unwrap_or("a part");
                    if let Err(error) = result {
                        error!(part = name, error = describe(error.as_ref()), "failed while stopping");
                    }
                }
                Err(error) => {
                    let name = self.names.remove(&error.id()).unwrap_or("a part");
                    error!(part = name, "panicked while stopping");
                }
            }
        }
        let late: Vec<&'static str> =
            if self.tasks.is_empty() { Vec::new() } else { self.names.into_values().collect() };
        self.tasks.shutdown().await;
        for name in &late {
            warn!(part = name, stage = stage.as_str(), after_ms = millis(share), "did not stop in time; dropped");
        }
        late
    }
}

/// The error with its sources, on one line.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const SHORTEST_SHARE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn part(name: &'static str, stage: Stage, order: &Arc<Mutex<Vec<&'static str>>>) -> Part {
        let order = order.clone();
        Part::new(name, stage, Readiness::immediate(), move |mut shutdown| async move {
            shutdown.requested().await;
            order.lock().unwrap().push(name);
            Ok(())
        })
    }

    #[tokio::test(start_paused = true)]
    async fn stages_stop_in_their_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let parts = vec![
            part("telemetry", Stage::Telemetry, &order),
            part("listener", Stage::Intake, &order),
            part("secrets", Stage::Workers, &order),
            part("sessions", Stage::InFlight, &order),
        ];
        let supervisor = Supervisor::start(parts);
        supervisor.ready().await.unwrap();
        assert!(supervisor.stop(Duration::from_secs(5)).await.is_empty());
        assert_eq!(*order.lock().unwrap(), ["listener", "sessions", "secrets", "telemetry"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_hangs_is_dropped_and_named_and_the_rest_still_stops() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let hanging =
            Part::new("hanging", Stage::Intake, Readiness::immediate(), |_| async { std::future::pending().await });
        let supervisor = Supervisor::start(vec![hanging, part("telemetry", Stage::Telemetry, &order)]);
        let started = Instant::now();
        assert_eq!(supervisor.stop(Duration::from_secs(4)).await, ["hanging"]);
        assert!(started.elapsed() <= Duration::from_secs(4));
        assert_eq!(*order.lock().unwrap(), ["telemetry"]);
    }

    #[tokio::test]
    async fn the_first_failure_is_reported_with_its_part() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let failing = Part::new("secrets", Stage::Workers, Readiness::immediate(), |_| async {
            Err(PartError::from("the store is gone"))
        });
        let mut supervisor = Supervisor::start(vec![part("telemetry", Stage::Telemetry, &order), failing]);
        assert_eq!(supervisor.failure().await.to_string(), "secrets ended: the store is gone");
        let panicking = Part::new("mcp", Stage::Intake, Readiness::immediate(), |_| async { panic!("oh") });
        assert_eq!(Supervisor::start(vec![panicking]).failure().await.to_string(), "mcp ended: it panicked");
    }
}
