//! Keeps one unit up to date: attempt, tell, wait for a change of a secret or of a source.
//!
//! Invariants: no change is missed between an attempt and the wait that follows it; hooks run inside the worker, so they never overlap; no
//! old value is held while a hook runs or while waiting, but the versions that readers may still have are known to their provider as in
//! use (`SecretReader::hold`) until the hooks of a newer one have worked; who was not told before a reload or an end is told after it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::RenderError;
use super::attempt::{self, Switched, Tell};
use super::file;
use super::generation::Place;
use super::handle::{Held, Job, Shared};
use super::hook::{self, HookKind};
use super::settings::{GroupSettings, OnChange};
use super::tell::{Pending, Untold, after_rollback};
use super::template::{ItemRead, Reads, Template};
use super::unit::Unit;

type Outcome = Result<Option<Switched>, RenderError>;

pub(super) async fn work(job: Arc<Job>, shared: Arc<Shared>) {
    let templates = job.take_templates();
    let mut worker =
        Worker { templates, job, shared, failures: 0, rollbacks: 0, retry: None, pending: None, is_told: true };
    worker.take_up().await;
    loop {
        let started = Instant::now();
        let (reads, outcome) = worker.attempt().await;
        worker.note(&outcome, started.elapsed());
        worker.follow(&reads, &outcome);
        // A hook may take long, and may be waiting for this process to be ready.
        worker.shared.progress.notify_one();
        worker.tell_if_due().await;
        let stops = match worker.wait(&reads).await {
            Due::Changed => worker.shared.stops_within(worker.job.unit.settle()).await,
            Due::Retry => false,
            Due::Stop => true,
        };
        if stops {
            // Who waits for a hook would not hear of it at the next start, when the bytes are the same.
            return worker.tell().await;
        }
    }
}

/// Why another attempt is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Changed,
    Retry,
    Stop,
}

struct Worker {
    job: Arc<Job>,
    shared: Arc<Shared>,
    /// One for each member; `None`: to be loaded.
    templates: Vec<Option<Arc<Template>>>,
    /// In a row.
    failures: u32,
    /// In a row.
    rollbacks: u32,
    /// When to try again although nothing has changed.
    retry: Option<Instant>,
    pending: Option<Pending>,
    /// Everybody knows what is on disk.
    is_told: bool,
}

impl Worker {
    /// What was left by a process, or a job, before this one.
    async fn take_up(&mut self) {
        let (turn, job) = (self.job.turn().await, self.job.clone());
        let found = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            Untold::find(&job.unit)
        });
        match (found.await, self.job.unit.on_change()) {
            (Ok(Some(untold)), Some(on_change)) => {
                self.pending = Some(Pending::after(on_change, None, untold.generation, None));
                self.is_told = false;
            }
            // A reload took the hooks away.
            (Ok(Some(_)), None) => self.settle(),
            (Ok(None) | Err(_), _) => {}
        }
    }

    /// Files are read, written and synced on a thread that may block; the turn goes with them, so that it lasts as long as they do.
    async fn attempt(&mut self) -> (Reads, Outcome) {
        let turn = self.job.turn().await;
        let (job, shared) = (self.job.clone(), self.shared.clone());
        let mut templates = std::mem::take(&mut self.templates);
        let prepared = tokio::task::spawn_blocking(move || {
            let loaded = load(&job, &mut templates);
            let (reads, fresh) = match loaded {
                Err(error) => (Reads::default(), Err(error)),
                Ok(_) if job.is_retired() => (Reads::default(), Err(interrupted(&job, RETIRED))),
                Ok(loaded) => attempt::prepare(&job.unit, &loaded, &*shared.context.secrets),
            };
            (turn, templates, reads, fresh)
        });
        let (turn, reads, fresh) = match prepared.await {
            Ok((turn, templates, reads, fresh)) => {
                self.templates = templates;
                (turn, reads, fresh)
            }
            Err(error) => {
                self.templates = vec![None; self.job.unit.members().len()];
                let reason = if error.is_panic() { "it panicked" } else { "it was cancelled" };
                return (Reads::default(), Err(interrupted(&self.job, reason)));
            }
        };
        let fresh = match fresh {
            Ok(Some(fresh)) => fresh,
            Ok(None) => return (reads, Ok(None)),
            Err(error) => return (reads, Err(error)),
        };
        if let Err(error) = attempt::validate(&self.job.unit, &fresh, &reads).await {
            return (reads, Err(error));
        }
        // Before somebody can read it.
        self.hold(&reads);
        let (job, shared, tell) = (self.job.clone(), self.shared.clone(), self.whom_to_tell());
        let committed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let outcome = match job.is_retired() {
                true => Err(interrupted(&job, RETIRED)),
                false => attempt::commit(&job.unit, fresh, &reads, &*shared.context.audit, tell),
            };
            (reads, outcome)
        });
        match committed.await {
            Ok((reads, outcome)) => (reads, outcome.map(Some)),
            Err(_) => (Reads::default(), Err(interrupted(&self.job, "it ended early"))),
        }
    }

    fn whom_to_tell(&self) -> Tell {
        match self.job.unit.on_change() {
            None => Tell::Nobody,
            Some(_) => {
                let generation = self.pending.as_ref().and_then(|pending| pending.generation);
                Tell::Hooks { back_to: generation.and_then(|(_, good)| good) }
            }
        }
    }

    fn note(&mut self, outcome: &Outcome, took: Duration) {
        let context = &self.shared.context;
        let destination = self.job.unit.label();
        let label = match outcome {
            Ok(Some(_)) => "changed",
            Ok(None) => "unchanged",
            Err(error) => error.kind(),
        };
        context.metrics.attempted(&destination, label, took);
        if let Ok(Some(Switched::Generation { .. })) = outcome {
            context.metrics.switched(&destination, "switched");
        }
        match outcome {
            Ok(_) => self.failures = 0,
            Err(_) => self.failures = self.failures.saturating_add(1),
        }
        self.retry = outcome.as_ref().err().map(|error| Instant::now() + self.retry_in(error));
        if let (true, Err(error)) = (self.job.note(outcome), outcome) {
            context.failed(&self.job.unit, error);
        }
    }

    /// Works out what is to be told of an attempt.
    fn follow(&mut self, reads: &Reads, outcome: &Outcome) {
        match (outcome, self.job.unit.on_change()) {
            (Ok(Some(switched)), Some(on_change)) => {
                let generation = match switched {
                    Switched::File => None,
                    Switched::Generation { number, before } => Some((*number, *before)),
                };
                self.pending = Some(Pending::after(on_change, Some(reads.clone()), generation, self.pending.as_ref()));
                self.is_told = false;
            }
            (Ok(Some(_)), None) => {
                self.let_go(reads);
                self.prune(None);
            }
            (Ok(None), _) if self.is_told => self.let_go(reads),
            (Ok(None), _) => {
                self.hold(reads);
                // The same bytes: what is on disk may as well have been rendered from these.
                if let Some(pending) = &mut self.pending {
                    pending.reads = Some(reads.clone());
                }
            }
            (Err(_), _) => {}
        }
    }

    async fn tell_if_due(&mut self) {
        if self.pending.as_ref().is_some_and(|pending| pending.due <= Instant::now()) {
            self.tell().await;
        }
    }

    /// Runs what is pending, once.
    async fn tell(&mut self) {
        let job = self.job.clone();
        let (Some(on_change), Some(pending)) = (job.unit.on_change(), self.pending.take()) else { return };
        let attempt = pending.tries + 1;
        let context = &self.shared.context;
        let left = hook::run(context, &job.unit, on_change, &pending.kinds, pending.reads.as_ref(), attempt).await;
        if left.kinds.is_empty() {
            self.is_told = true;
            self.rollbacks = 0;
            self.job.note_hook(None);
            if let Some(reads) = &pending.reads {
                self.let_go(reads);
            }
            self.settle();
            return;
        }
        let (generation, kinds) = (pending.generation, left.kinds);
        self.pending = pending.again(on_change, kinds);
        let again = if self.pending.is_some() { "; it is tried again" } else { "" };
        self.job.note_hook(Some(format!("{}{again}", left.problem)));
        if let (None, Some((from, Some(to))), Some(group)) = (&self.pending, generation, job.unit.group())
            && group.rollback
        {
            self.go_back(group, on_change, (from, to), &left.problem).await;
        }
    }

    /// The hook has failed for good: readers get the generation before, and are told so, once.
    async fn go_back(&mut self, group: &GroupSettings, on_change: &OnChange, (from, to): (u64, u64), problem: &str) {
        let (place, turn) = (Place::of(group), self.job.turn().await);
        let switched = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let switched = place.switch_to(to);
            let hollowed = if switched.is_ok() { place.hollow(from) } else { Ok(()) };
            (switched, hollowed)
        });
        let job = self.job.clone();
        match switched.await {
            Ok((Ok(()), hollowed)) => {
                if let Err(error) = hollowed {
                    warn!(destination = job.unit.label(), %error, "leftovers stay");
                }
            }
            Ok((Err(error), _)) => return self.job.note_hook(Some(format!("{problem}; {error}"))),
            Err(_) => return,
        }
        let context = &self.shared.context;
        context.rolled_back(&job.unit, from, to, problem);
        let left = hook::run(context, &job.unit, on_change, &HookKind::of(on_change), None, 1).await;
        self.is_told = left.kinds.is_empty();
        if self.is_told {
            self.settle();
        }
        self.rollbacks = self.rollbacks.saturating_add(1);
        self.retry = Some(Instant::now() + after_rollback(self.rollbacks));
        let error = RenderError::RolledBack { folder: group.folder.clone(), reason: problem.to_owned() };
        self.job.note(&Err(error));
        self.job.note_hook((!self.is_told).then(|| format!("it was told again: {}", left.problem)));
        // Versions that are newer than what is there again are in use by nobody, but the oldest one stays held: see `follow`.
    }

    /// Everybody knows: the mark goes, and so do generations that nobody needs.
    fn settle(&self) {
        let marked = match &self.job.unit {
            Unit::File(settings) => file::mark_told(&settings.file),
            Unit::Group(group, _) => Place::of(group).mark_told(),
        };
        if let Err(error) = marked {
            warn!(destination = self.job.unit.label(), %error, "leftovers stay");
        }
        self.prune(None);
    }

    fn prune(&self, also: Option<u64>) {
        let Some((place, keep)) = self.place() else { return };
        if let Err(error) = place.prune(keep, also) {
            warn!(destination = self.job.unit.label(), %error, "old generations stay");
        }
    }

    fn place(&self) -> Option<(Place, usize)> {
        self.job.unit.group().map(|group| (Place::of(group), group.keep))
    }

    /// Completes when another attempt is due; meanwhile it tells what is to be told.
    async fn wait(&mut self, reads: &Reads) -> Due {
        let Some(mut changes) = self.subscribe(reads) else { return Due::Changed };
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        let stopping = self.shared.clone();
        loop {
            let due = self.pending.as_ref().map(|pending| pending.due);
            tokio::select! {
                () = stopping.stops() => return Due::Stop,
                () = any_of(&mut changes) => return Due::Changed,
                () = at(due) => self.tell().await,
                // What could not be loaded is loaded anew in any case.
                () = at(self.retry) => {
                    // An edit may be as old as the last look.
                    self.a_source_has_changed().await;
                    return Due::Retry;
                }
                _ = look.tick() => {
                    if self.a_source_has_changed().await {
                        return Due::Changed;
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

    /// Those that have are to be loaded anew.
    async fn a_source_has_changed(&mut self) -> bool {
        let templates = self.templates.clone();
        let look = move || {
            let is_current = |template: Arc<Template>| (!template.has_changed()).then_some(template);
            templates.into_iter().map(|template| template.and_then(is_current)).collect::<Vec<_>>()
        };
        let Ok(current) = tokio::task::spawn_blocking(look).await else { return true };
        let missing = |templates: &[Option<_>]| templates.iter().filter(|template| template.is_none()).count();
        let changed = missing(&current) > missing(&self.templates);
        self.templates = current;
        changed
    }

    /// From now on these versions are in use too.
    fn hold(&self, reads: &Reads) {
        let mut held = self.job.held();
        for (item, version) in versions(reads) {
            if !held.contains_key(item) {
                held.insert(item.clone(), (version, self.shared.context.secrets.hold(item, version)));
            }
        }
    }

    /// These versions are the only ones in use: older ones are not any more.
    fn let_go(&self, reads: &Reads) {
        let mut held = self.job.held();
        if self.job.is_retired() {
            // What is in use is known to the job that took over.
            return;
        }
        let mut in_use = Held::new();
        for (item, version) in versions(reads) {
            let hold = match held.remove(item) {
                Some((since, hold)) if since == version => hold,
                _ => self.shared.context.secrets.hold(item, version),
            };
            in_use.insert(item.clone(), (version, hold));
        }
        *held = in_use;
    }

    /// A secret that is missing is asked for often, because that costs nothing; other failures less and less often.
    fn retry_in(&self, error: &RenderError) -> Duration {
        let (first, cap) = match error.is_waiting() {
            true => (WAITING_FIRST, LOOK_EVERY),
            false if self.templates.iter().any(Option::is_none) => (LOOK_EVERY, LOOK_EVERY),
            false => (LOOK_EVERY, RETRY_CAP),
        };
        first.saturating_mul(1 << self.failures.saturating_sub(1).min(8)).min(cap)
    }
}

/// All templates, or why one cannot be loaded.
fn load(job: &Job, templates: &mut [Option<Arc<Template>>]) -> Result<Vec<Arc<Template>>, RenderError> {
    let both = job.unit.members().iter().zip(templates);
    both.map(|(settings, template)| match template {
        Some(template) => Ok(template.clone()),
        None => Ok(template.insert(Arc::new(Template::load(&settings.source)?)).clone()),
    })
    .collect()
}

fn versions(reads: &Reads) -> impl Iterator<Item = (&String, u64)> {
    reads.0.iter().filter_map(|(item, read)| match read {
        ItemRead::Version { version, .. } => Some((item, *version)),
        ItemRead::NotFetched | ItemRead::Refused => None,
    })
}

fn interrupted(job: &Job, reason: &str) -> RenderError {
    let source_file = job.unit.members().first().map(|settings| settings.source.clone()).unwrap_or_default();
    RenderError::Interrupted { source_file, reason: reason.to_owned() }
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

const RETIRED: &str = "a reload has replaced it";
/// An edited template takes effect within a second.
const LOOK_EVERY: Duration = Duration::from_millis(750);
/// A fetch takes this long when all is well.
const WAITING_FIRST: Duration = Duration::from_millis(20);
const RETRY_CAP: Duration = Duration::from_secs(30);
