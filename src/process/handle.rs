//! `ProcessHandle`, what the rest of the process holds; `Staged`, other settings that can take over; the state, for `status`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::ports::{Condition, ConditionState, StatusReport, SupervisedProcess};

use super::ProcessError;
use super::settings::{OnChange, ProcessSettings};

#[derive(Clone)]
pub struct ProcessHandle {
    shared: Arc<Shared>,
}

/// What the handle and the part's task have in common.
pub(super) struct Shared {
    settings: watch::Sender<Option<Arc<ProcessSettings>>>,
    /// The exit code of a process that has ended for good.
    ended: watch::Sender<Option<u8>>,
    signals: mpsc::Sender<i32>,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
pub(super) enum State {
    /// Nothing is configured.
    Absent,
    Waiting {
        reason: String,
    },
    Running {
        pid: u32,
        since: SystemTime,
        versions: Vec<String>,
    },
    Stopping {
        pid: u32,
    },
    Backoff {
        until: Instant,
        how: String,
        in_a_row: u32,
    },
    Ended {
        how: String,
    },
}

impl ProcessHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Other settings, or none. Checks what can be checked without starting anything.
    pub fn stage(&self, settings: Option<ProcessSettings>) -> Result<Staged, ProcessError> {
        let identity = settings.as_ref().and_then(|settings| settings.identity.as_ref());
        if let Some(reason) = identity.and_then(crate::child::Identity::refused) {
            return Err(ProcessError::Identity { reason });
        }
        Ok(Staged { shared: self.shared.clone(), settings: settings.map(Arc::new) })
    }

    /// Completes when the process has ended for good, with the exit code that is to be passed on.
    pub async fn ended(&self) -> u8 {
        let mut ended = self.shared.ended.subscribe();
        // The sender is held here, so that there is no error.
        let code = ended.wait_for(Option::is_some).await.map(|code| *code);
        code.ok().flatten().unwrap_or(0)
    }

    /// The exit code of the process, once it has ended for good or with everything else.
    pub fn exit_code(&self) -> Option<u8> {
        *self.shared.ended.borrow()
    }

    /// How long its end may take at most.
    pub fn stop_within(&self) -> Duration {
        let settings = self.shared.settings.borrow();
        settings.as_ref().map_or(Duration::ZERO, |settings| settings.stop_timeout.saturating_add(AFTER_KILL))
    }
}

impl SupervisedProcess for ProcessHandle {
    fn signal(&self, signal: i32) -> Result<(), String> {
        match &*self.shared.state() {
            State::Running { .. } => {}
            // It will read what is there when it starts.
            State::Waiting { .. } | State::Backoff { .. } => return Ok(()),
            state => return Err(format!("the process does not run: {}", state.words())),
        }
        self.shared.signals.try_send(signal).map_err(|_| "too many signals are waiting for the process".to_owned())
    }
}

impl StatusReport for ProcessHandle {
    fn section(&self) -> &'static str {
        "process"
    }

    fn conditions(&self) -> Vec<Condition> {
        let shown = self.shared.state().clone();
        let state = match &shown {
            State::Absent => return Vec::new(),
            State::Running { .. } => ConditionState::Ok,
            State::Stopping { .. } => ConditionState::Degraded,
            State::Waiting { .. } | State::Backoff { .. } | State::Ended { .. } => ConditionState::Failed,
        };
        vec![Condition { component: "process".to_owned(), state, message: shown.words() }]
    }

    fn detail(&self) -> serde_json::Value {
        let Some(settings) = self.shared.settings.borrow().clone() else { return serde_json::Value::Null };
        let on_change = match &settings.on_change {
            OnChange::Restart => "restart".to_owned(),
            OnChange::Signal(signal) => format!("signal {}", signal.name),
            OnChange::Ignore => "ignore".to_owned(),
        };
        let mut detail = json!({ "program": settings.argv.first(), "on_change": on_change });
        match self.shared.state().clone() {
            State::Running { pid, since, versions } => {
                let seconds = since.elapsed().unwrap_or_default().as_secs_f64();
                detail["pid"] = json!(pid);
                detail["uptime_seconds"] = json!(seconds);
                detail["secret_versions"] = json!(versions);
            }
            state => detail["state"] = json!(state.words()),
        }
        detail
    }
}

impl State {
    fn words(&self) -> String {
        match self {
            Self::Absent => "none is configured".to_owned(),
            Self::Waiting { reason } => format!("waits to be started: {reason}"),
            Self::Running { pid, .. } => format!("runs, pid {pid}"),
            Self::Stopping { pid } => format!("pid {pid} is being stopped"),
            Self::Backoff { until, how, in_a_row } => {
                let left = until.saturating_duration_since(Instant::now()).as_secs_f32();
                let times = if *in_a_row == 1 { String::new() } else { format!(" ({in_a_row} times in a row)") };
                format!("{how}{times}; is started again in {left:.1} s")
            }
            Self::Ended { how } => format!("{how}; it is not started again"),
        }
    }
}

impl Shared {
    pub fn new(signals: mpsc::Sender<i32>) -> Self {
        let (settings, ended) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { settings, ended, signals, state: Mutex::new(State::Absent) }
    }

    pub fn settings(&self) -> watch::Receiver<Option<Arc<ProcessSettings>>> {
        self.settings.subscribe()
    }

    pub fn set(&self, state: State) {
        *self.state() = state;
    }

    pub fn end(&self, code: u8) {
        self.ended.send_replace(Some(code));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped, nothing has changed.
#[must_use = "nothing changes until it is committed"]
pub struct Staged {
    shared: Arc<Shared>,
    settings: Option<Arc<ProcessSettings>>,
}

impl Staged {
    /// Puts the settings in force: the process is started again if they would start another one. Cannot fail.
    pub fn commit(self) {
        let Self { shared, settings } = self;
        shared.settings.send_if_modified(|now| {
            let differs = *now != settings;
            *now = settings;
            differs
        });
    }
}

/// From SIGKILL to the end.
const AFTER_KILL: Duration = Duration::from_secs(2);
