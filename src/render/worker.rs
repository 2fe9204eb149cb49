//! Keeps one file up to date: attempt, tell, wait for a change of a secret or of a source.
//!
//! Invariants: no change is missed between an attempt and the wait that follows it; hooks run inside the worker, so they never overlap; an
//! old version is not held while a hook runs or while waiting.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::Instant;

use super::RenderError;
use super::attempt::bring_up_to_date;
use super::context::{Context, destination_of};
use super::handle::Job;
use super::handle::Shared;
use super::hook;
use super::template::{Reads, Template};

pub(super) async fn work(job: Arc<Job>, shared: Arc<Shared>) {
    let mut worker = Worker { template: job.take_template(), job, shared, failures: 0 };
    loop {
        let started = Instant::now();
        let (reads, outcome) = worker.attempt().await;
        worker.note(&outcome, started.elapsed());
        if let Ok(true) = outcome {
            let told = hook::run(&worker.shared.context, &worker.job.settings, &reads).await;
            worker.job.note_hook(told);
        }
        worker.shared.progress.notify_one();
        worker.wait(&reads, &outcome).await;
    }
}

struct Worker {
    job: Arc<Job>,
    shared: Arc<Shared>,
    /// `None`: to be loaded.
    template: Option<Arc<Template>>,
    /// In a row.
    failures: u32,
}

impl Worker {
    /// On a thread that may block: it reads, writes and syncs files.
    async fn attempt(&mut self) -> (Reads, Result<bool, RenderError>) {
        let (job, shared, template) = (self.job.clone(), self.shared.clone(), self.template.take());
        let done = tokio::task::spawn_blocking(move || {
            let settings = &job.settings;
            let loaded = match template {
                Some(template) => Ok(template),
                None => Template::load(&settings.source).map(Arc::new),
            };
            match loaded {
                Ok(template) => {
                    let Context { secrets, audit, .. } = &shared.context;
                    let done = job.exclusively(|| bring_up_to_date(settings, &template, &**secrets, &**audit));
                    let (reads, outcome) = done.unwrap_or_else(|| interrupted(&job, "a reload has replaced it"));
                    (Some(template), reads, outcome)
                }
                Err(error) => (None, Reads::default(), Err(error)),
            }
        });
        match done.await {
            Ok((template, reads, outcome)) => {
                self.template = template;
                (reads, outcome)
            }
            Err(error) => {
                let reason = if error.is_panic() { "it panicked" } else { "it was cancelled" };
                interrupted(&self.job, reason)
            }
        }
    }

    fn note(&mut self, outcome: &Result<bool, RenderError>, took: Duration) {
        let destination = destination_of(&self.job.settings);
        let label = match outcome {
            Ok(true) => "changed",
            Ok(false) => "unchanged",
            Err(error) => error.kind(),
        };
        self.shared.context.metrics.attempted(&destination, label, took);
        match outcome {
            Ok(_) => self.failures = 0,
            Err(_) => self.failures = self.failures.saturating_add(1),
        }
        if let (true, Err(error)) = (self.job.note(outcome), outcome) {
            self.shared.context.failed(&self.job.settings, error);
        }
    }

    /// Completes when another attempt is due.
    async fn wait(&mut self, reads: &Reads, outcome: &Result<bool, RenderError>) {
        let Some(mut changes) = self.subscribe(reads) else { return };
        let retry = match outcome {
            Ok(_) => None,
            Err(error) => Some(Instant::now() + self.retry_in(error)),
        };
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        loop {
            tokio::select! {
                () = any_of(&mut changes) => return,
                () = at(retry) => {
                    // What could not be loaded is loaded anew in any case.
                    return;
                }
                _ = look.tick() => {
                    if self.source_has_changed().await {
                        self.template = None;
                        return;
                    }
                }
            }
        }
    }

    /// `None`: an item has changed since it was read.
    fn subscribe(&self, reads: &Reads) -> Option<Vec<watch::Receiver<u64>>> {
        let mut changes = Vec::with_capacity(reads.0.len());
        for (item, read) in &reads.0 {
            let Some(receiver) = self.shared.context.secrets.subscribe(item) else { continue };
            if read.is_behind(*receiver.borrow()) {
                return None;
            }
            changes.push(receiver);
        }
        Some(changes)
    }

    async fn source_has_changed(&self) -> bool {
        let Some(template) = self.template.clone() else { return false };
        tokio::task::spawn_blocking(move || template.has_changed()).await.unwrap_or(true)
    }

    /// A secret that is missing is asked for often, because that costs nothing; other failures less and less often.
    fn retry_in(&self, error: &RenderError) -> Duration {
        let (first, cap) = match error.is_waiting() {
            true => (WAITING_FIRST, LOOK_EVERY),
            false if self.template.is_none() => (LOOK_EVERY, LOOK_EVERY),
            false => (LOOK_EVERY, RETRY_CAP),
        };
        first.saturating_mul(1 << self.failures.saturating_sub(1).min(8)).min(cap)
    }
}

fn interrupted(job: &Job, reason: &str) -> (Reads, Result<bool, RenderError>) {
    let source_file = job.settings.source.clone();
    (Reads::default(), Err(RenderError::Interrupted { source_file, reason: reason.to_owned() }))
}

/// Completes when one of them changes, or its item goes away.
async fn any_of(changes: &mut [watch::Receiver<u64>]) {
    if changes.is_empty() {
        return std::future::pending().await;
    }
    // An error means that the item was removed from the configuration: the next attempt says so.
    let _ = select_all(changes.iter_mut().map(|change| Box::pin(change.changed()))).await;
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// An edited template takes effect within a second.
const LOOK_EVERY: Duration = Duration::from_millis(750);
/// A fetch takes this long when all is well.
const WAITING_FIRST: Duration = Duration::from_millis(20);
const RETRY_CAP: Duration = Duration::from_secs(30);
