//! `RenderHandle`, what the rest of the process holds; `Staged`, new templates beside the running ones; `Job`, one template and its state.
//!
//! Invariants: staging compiles and changes nothing; a template whose settings are the same keeps its worker.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::RenderError;
use super::context::Context;
use super::settings::{OnRemove, TemplateSettings};
use super::template::Template;

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
    /// The locks of the destinations that a job writes.
    writing: Mutex<HashMap<PathBuf, Weak<Mutex<()>>>>,
    /// Retired jobs whose files are to go; taken by the part's task.
    removals: Mutex<Vec<Arc<Job>>>,
}

pub(super) type Jobs = Arc<Vec<Arc<Job>>>;

impl RenderHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn jobs(&self) -> Jobs {
        self.shared.jobs.borrow().clone()
    }

    /// Compiles what is new; all templates that do not compile are reported together.
    pub fn stage(&self, templates: Vec<TemplateSettings>) -> Result<Staged, RenderError> {
        let old = self.jobs();
        let mut jobs = Vec::with_capacity(templates.len());
        let mut failures = Vec::new();
        for settings in templates {
            match old.iter().find(|job| job.settings == settings) {
                Some(job) => jobs.push(job.clone()),
                None => match Template::load(&settings.source) {
                    Ok(template) => {
                        let writing = self.shared.writing(&settings.file.destination);
                        jobs.push(Arc::new(Job::new(settings, template, writing)));
                    }
                    Err(error) => failures.push(error),
                },
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
        let (writing, removals) = (Mutex::default(), Mutex::default());
        Self { context, jobs: watch::Sender::default(), progress: Notify::new(), writing, removals }
    }

    /// Some job writes this file.
    pub fn wants(&self, destination: &Path) -> bool {
        self.jobs.borrow().iter().any(|job| job.settings.file.destination == destination)
    }

    pub fn take_removals(&self) -> Vec<Arc<Job>> {
        std::mem::take(&mut *lock(&self.removals))
    }

    /// One for each destination, also when its job went and came again.
    fn writing(&self, destination: &Path) -> Arc<Mutex<()>> {
        let mut locks = lock(&self.writing);
        locks.retain(|_, held| held.strong_count() > 0);
        if let Some(held) = locks.get(destination).and_then(Weak::upgrade) {
            return held;
        }
        let held = Arc::default();
        locks.insert(destination.to_owned(), Arc::downgrade(&held));
        held
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
            let file = &job.settings.file;
            let is_gone = !self.jobs.iter().any(|kept| kept.settings.file.destination == file.destination);
            if is_gone && file.on_remove == OnRemove::Remove {
                lock(&self.shared.removals).push(job.clone());
            }
        }
        // This wakes the task that looks at both.
        self.shared.jobs.send_replace(self.jobs);
    }
}

/// One template and what became of it.
pub(super) struct Job {
    pub settings: TemplateSettings,
    /// Compiled when staged; taken by the worker.
    template: Mutex<Option<Arc<Template>>>,
    state: Mutex<State>,
    /// Held while the file is written; one for each destination, so that an old job and the new one do not write at once.
    writing: Arc<Mutex<()>>,
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
    fn new(settings: TemplateSettings, template: Template, writing: Arc<Mutex<()>>) -> Self {
        let (template, state) = (Mutex::new(Some(Arc::new(template))), Mutex::default());
        Self { settings, template, state, writing, is_retired: AtomicBool::new(false) }
    }

    /// Runs `write`, unless the job was replaced.
    pub fn exclusively<T>(&self, write: impl FnOnce() -> T) -> Option<T> {
        let _guard = lock(&self.writing);
        (!self.is_retired.load(Ordering::Acquire)).then(write)
    }

    /// Runs `change` though the job was replaced.
    pub fn while_nobody_writes<T>(&self, change: impl FnOnce() -> T) -> T {
        let _guard = lock(&self.writing);
        change()
    }

    pub fn take_template(&self) -> Option<Arc<Template>> {
        lock(&self.template).take()
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
    pub fn note(&self, outcome: &Result<bool, RenderError>) -> bool {
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

    pub fn note_hook(&self, told: Result<(), String>) {
        self.lock().hook_problem = told.err();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn is_early(error: &RenderError) -> bool {
    use crate::ports::SecretUnavailable::NotFetched;
    let RenderError::Secret { problem: super::SecretProblem::Unavailable(unavailable), .. } = error else {
        return false;
    };
    matches!(unavailable, NotFetched { reason: None, .. })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
