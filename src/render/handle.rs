//! `RenderHandle`, what the rest of the process holds; `Staged`, new templates beside the running ones; `Job`, one unit and its state.
//!
//! Invariants: staging compiles and changes nothing; a file or a group whose settings are the same keeps its worker.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard, watch};
use tokio::time::Instant;

use crate::ports::{Hold, SupervisedProcess};

use super::RenderError;
use super::attempt::Switched;
use super::context::Context;
use super::settings::{OnRemove, TemplateSettings};
use super::template::Template;
use super::unit::Unit;

#[derive(Clone)]
pub struct RenderHandle {
    shared: Arc<Shared>,
}

/// What the handle and the part's task have in common.
pub(super) struct Shared {
    pub context: Context,
    jobs: watch::Sender<Jobs>,
    /// Rung after each attempt.
    pub progress: Notify,
    is_stopping: watch::Sender<bool>,
    /// By the path of a unit.
    spots: Mutex<HashMap<PathBuf, Weak<Spot>>>,
    /// Retired jobs whose files are to go; taken by the part's task.
    removals: Mutex<Vec<Arc<Job>>>,
}

pub(super) type Jobs = Arc<Vec<Arc<Job>>>;

/// What is known of a place that is written to, by whichever job: it outlives a reload that changes how it is written.
#[derive(Default)]
struct Spot {
    /// Held from the first byte that is written until it takes effect, so that an old job and the new one do not write at once.
    turn: Arc<Turn<()>>,
    held: Mutex<Held>,
}

/// By item: the oldest version that a reader may still have.
pub(super) type Held = BTreeMap<String, (u64, Hold)>;

impl RenderHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn jobs(&self) -> Jobs {
        self.shared.jobs.borrow().clone()
    }

    /// Whom `supervised` hooks signal. The first call decides.
    pub fn attach_process(&self, process: Arc<dyn SupervisedProcess>) {
        self.shared.context.attach_process(process);
    }

    /// Compiles what is new; all templates that do not compile are reported together.
    pub fn stage(&self, templates: Vec<TemplateSettings>) -> Result<Staged, RenderError> {
        let old = self.jobs();
        let mut jobs = Vec::with_capacity(templates.len());
        let mut failures = Vec::new();
        for unit in Unit::of_all(&templates) {
            if let Some(job) = old.iter().find(|job| job.unit == unit) {
                jobs.push(job.clone());
                continue;
            }
            let before = failures.len();
            let mut compiled = Vec::with_capacity(unit.members().len());
            for settings in unit.members() {
                match Template::load(&settings.source) {
                    Ok(template) => compiled.push(Some(Arc::new(template))),
                    Err(error) => failures.push(error),
                }
            }
            if failures.len() == before {
                let spot = self.shared.spot(unit.path());
                jobs.push(Arc::new(Job::new(unit, compiled, spot)));
            }
        }
        match failures.len() {
            0 => Ok(Staged { shared: self.shared.clone(), jobs: Arc::new(jobs) }),
            1 => Err(failures.remove(0)),
            _ => Err(RenderError::Several(failures.iter().map(ToString::to_string).collect())),
        }
    }
}

impl Shared {
    pub fn new(context: Context) -> Self {
        let (spots, removals, is_stopping) = (Mutex::default(), Mutex::default(), watch::Sender::new(false));
        Self { context, jobs: watch::Sender::default(), progress: Notify::new(), is_stopping, spots, removals }
    }

    /// Some job writes this file.
    pub fn wants(&self, destination: &Path) -> bool {
        self.jobs.borrow().iter().any(|job| job.writes(destination))
    }

    pub fn take_removals(&self) -> Vec<Arc<Job>> {
        std::mem::take(&mut *lock(&self.removals))
    }

    /// One for each path, also when its job went and came again.
    fn spot(&self, path: &Path) -> Arc<Spot> {
        let mut spots = lock(&self.spots);
        spots.retain(|_, spot| spot.strong_count() > 0);
        if let Some(spot) = spots.get(path).and_then(Weak::upgrade) {
            return spot;
        }
        let spot = Arc::default();
        spots.insert(path.to_owned(), Arc::downgrade(&spot));
        spot
    }

    /// Workers run what waits to be run, and end.
    pub fn stop(&self) {
        self.is_stopping.send_replace(true);
    }

    /// Completes when they are to end.
    pub async fn stops(&self) {
        // The sender is in `self`.
        let _ = self.is_stopping.subscribe().wait_for(|is_stopping| *is_stopping).await;
    }

    /// Waits that long, unless they are to end before.
    pub async fn stops_within(&self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.stops()).await.is_ok()
    }

    pub fn subscribe_jobs(&self) -> watch::Receiver<Jobs> {
        self.jobs.subscribe()
    }
}

/// Compiled templates that are ready to take over. Dropping it changes nothing.
pub struct Staged {
    shared: Arc<Shared>,
    jobs: Jobs,
}

impl Staged {
    /// Swaps. The files of templates that are gone stay or go as their settings said.
    pub fn commit(self) {
        let old = self.shared.jobs.borrow().clone();
        for job in old.iter().filter(|job| !self.jobs.iter().any(|kept| Arc::ptr_eq(kept, job))) {
            job.is_retired.store(true, Ordering::Release);
            let Unit::File(settings) = &job.unit else { continue };
            let is_gone = !self.jobs.iter().any(|kept| kept.writes(&settings.file.destination));
            if is_gone && settings.file.on_remove == OnRemove::Remove {
                lock(&self.shared.removals).push(job.clone());
            }
        }
        // This wakes the task that looks at both.
        self.shared.jobs.send_replace(self.jobs);
    }
}

/// One unit and what became of it.
pub(super) struct Job {
    pub unit: Unit,
    /// Compiled when staged, one for each member; taken by the worker.
    templates: Mutex<Vec<Option<Arc<Template>>>>,
    state: Mutex<State>,
    spot: Arc<Spot>,
    /// A reload has replaced it: it must not write any more.
    is_retired: AtomicBool,
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// When the file was last known to be what it should be.
    pub current_at: Option<Instant>,
    pub failure: Option<Failure>,
    /// What went wrong when somebody was to be told of the last change.
    pub hook_problem: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub words: String,
    /// A secret that was never fetched, and nobody knows yet whether it can be.
    pub is_early: bool,
    is_waiting: bool,
}

impl Job {
    fn new(unit: Unit, templates: Vec<Option<Arc<Template>>>, spot: Arc<Spot>) -> Self {
        let (templates, state) = (Mutex::new(templates), Mutex::default());
        Self { unit, templates, state, spot, is_retired: AtomicBool::new(false) }
    }

    /// Waits until nobody else writes at this place.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        self.spot.turn.clone().lock_owned().await
    }

    /// What readers at this place may have.
    pub fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.spot.held)
    }

    /// It keeps the file that readers know under this path.
    fn writes(&self, destination: &Path) -> bool {
        self.unit.members().iter().any(|settings| settings.file.destination == destination)
    }

    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// One for each member; `None` where it is to be loaded.
    pub fn take_templates(&self) -> Vec<Option<Arc<Template>>> {
        let mut templates = std::mem::take(&mut *lock(&self.templates));
        templates.resize(self.unit.members().len(), None);
        templates
    }

    pub fn state(&self) -> State {
        self.lock().clone()
    }

    /// It was rendered, or there is a reason why not.
    pub fn is_settled(&self) -> bool {
        let state = self.lock();
        state.failure.as_ref().map_or(state.current_at.is_some(), |failure| !failure.is_early)
    }

    /// True when this is a failure that is to be told: the first, or the first that is more than waiting.
    pub fn note(&self, outcome: &Result<Option<Switched>, RenderError>) -> bool {
        let mut state = self.lock();
        let error = match outcome {
            Ok(_) => {
                state.current_at = Some(Instant::now());
                state.failure = None;
                return false;
            }
            Err(error) => error,
        };
        let failure = Failure { words: error.to_string(), is_early: is_early(error), is_waiting: error.is_waiting() };
        let is_news = match &state.failure {
            None => !failure.is_early,
            Some(before) => before.is_early && !failure.is_early || before.is_waiting && !failure.is_waiting,
        };
        state.failure = Some(failure);
        is_news
    }

    pub fn note_hook(&self, problem: Option<String>) {
        self.lock().hook_problem = problem;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn is_early(error: &RenderError) -> bool {
    use crate::ports::SecretUnavailable::NotFetched;
    let RenderError::Secret { problem, .. } = error else { return false };
    matches!(**problem, super::SecretProblem::Unavailable(NotFetched { reason: None, .. }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
