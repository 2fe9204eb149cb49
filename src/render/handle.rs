//! `RenderHandle`, what the rest of the process holds; `Staged`, new templates beside the running ones; `Job`, one unit and its state.
//!
//! Invariants: staging compiles and changes nothing; a file or a group whose settings are the same keeps its worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as Turn, Notify, OwnedMutexGuard, watch};
use tokio::time::Instant;

use crate::ports::SupervisedProcess;

use super::RenderError;
use super::attempt::Switched;
use super::context::Context;
use super::settings::TemplateSettings;
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
}

pub(super) type Jobs = Arc<Vec<Arc<Job>>>;

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
                let same_place = old.iter().find(|job| job.unit.path() == unit.path());
                let writing = same_place.map(|job| job.writing.clone()).unwrap_or_default();
                jobs.push(Arc::new(Job::new(unit, compiled, writing)));
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
        Self { context, jobs: watch::Sender::default(), progress: Notify::new() }
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
    /// Swaps. The files of templates that are gone stay where they are.
    pub fn commit(self) {
        let old = self.shared.jobs.send_replace(self.jobs.clone());
        for job in old.iter().filter(|job| !self.jobs.iter().any(|kept| Arc::ptr_eq(kept, job))) {
            job.is_retired.store(true, Ordering::Release);
        }
    }
}

/// One unit and what became of it.
pub(super) struct Job {
    pub unit: Unit,
    /// Compiled when staged, one for each member; taken by the worker.
    templates: Mutex<Vec<Option<Arc<Template>>>>,
    state: Mutex<State>,
    /// Held from the first byte that is written until it takes effect; one for each place, so that an old job and the new one do not write
    /// at once.
    writing: Arc<Turn<()>>,
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
    fn new(unit: Unit, templates: Vec<Option<Arc<Template>>>, writing: Arc<Turn<()>>) -> Self {
        let (templates, state) = (Mutex::new(templates), Mutex::default());
        Self { unit, templates, state, writing, is_retired: AtomicBool::new(false) }
    }

    /// Waits until nobody else writes at this place.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        self.writing.clone().lock_owned().await
    }

    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

    /// One for each member; `None` where it is to be loaded.
    pub fn take_templates(&self) -> Vec<Option<Arc<Template>>> {
        let mut templates = std::mem::take(&mut *self.templates.lock().unwrap_or_else(PoisonError::into_inner));
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_early(error: &RenderError) -> bool {
    use crate::ports::SecretUnavailable::NotFetched;
    let RenderError::Secret { problem: super::SecretProblem::Unavailable(unavailable), .. } = error else {
        return false;
    };
    matches!(unavailable, NotFetched { reason: None, .. })
}
