//! The audit trail: every event to the audit file (or, without one, to the own log), numbered and in order.
//!
//! `record` returns when the line is with the kernel, or on the disk with `sync: each`. When the file cannot be written, the event is
//! refused (`audit.required`) or counted as lost, which the condition `audit` and the log say; as soon as a write succeeds again an
//! `audit.resumed` event says how many are missing, before any other event. `ready` tells beforehand that an event would be refused, and
//! tries the file itself a few times a second. Export by OTLP is not this module's business: the trail hands out the number.
//!
//! `file` writes bytes, `line` makes them, `keeper` syncs, reopens a file that was moved, and tries a disk that failed.

mod file;
pub mod keeper;
mod line;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::{Handle, RuntimeFlavor};
use tracing::{debug, enabled, error, info, warn};

use crate::ports::{AuditEvent, AuditRefused, Condition, ConditionState, Outcome};

use super::error::TelemetryError;
use super::metrics::{AuditFate, Tallies};
use super::settings::{AuditSettings, AuditSync};

use file::AuditFile;
pub use line::bounded;

pub struct AuditTrail {
    state: Mutex<State>,
    /// Events are refused now: what `State` says, to be asked for every request without its lock.
    refusing: AtomicBool,
    tallies: Arc<Tallies>,
}

struct State {
    settings: AuditSettings,
    file: Option<Arc<AuditFile>>,
    /// The number of the last event.
    seq: u64,
    /// Kept between events, so that a line costs no allocation.
    line: Vec<u8>,
    failing: Option<Failing>,
    /// When the log last said that events cannot be written.
    said: Option<Instant>,
    /// Why a file that was moved could not be opened anew; events go to the moved one.
    stray: Option<String>,
}

/// The file cannot be written now.
struct Failing {
    reason: String,
    missing: u64,
    /// When it was last tried whether it can be again.
    tried: Instant,
}

/// A file that is open but not used yet.
#[derive(Debug)]
pub struct StagedAudit {
    settings: AuditSettings,
    /// `None`: the file stays the one that it is.
    file: Option<Option<AuditFile>>,
}

impl AuditTrail {
    pub fn open(settings: AuditSettings, tallies: Arc<Tallies>) -> Result<Self, TelemetryError> {
        let file = settings.path.as_deref().map(AuditFile::open).transpose()?;
        let state = State {
            seq: file.as_ref().map_or(0, |file| file.last_seq),
            file: file.map(Arc::new),
            settings,
            line: Vec::with_capacity(LINE_BYTES),
            failing: None,
            said: None,
            stray: None,
        };
        Ok(Self { state: Mutex::new(state), refusing: AtomicBool::new(false), tallies })
    }

    /// Writes the event and returns its number.
    pub fn record(&self, event: &AuditEvent) -> Result<u64, AuditRefused> {
        let mut state = self.lock();
        let Some(file) = state.file.clone() else {
            state.seq += 1;
            let seq = state.seq;
            drop(state);
            self.tallies.audit(AuditFate::Recorded);
            say(event, seq);
            return Ok(seq);
        };
        let each = state.settings.sync == AuditSync::Each;
        let written = if state.failing.is_some() {
            let written = blocking(|| state.write_after_gap(&file, event));
            self.publish(&state);
            written
        } else {
            state.write(&file, event)
        };
        let (seq, required) = (state.seq, state.settings.required);
        drop(state);
        let result = match written {
            Ok(mark) if each => blocking(|| file.sync(mark)),
            written => written.map(|_| ()),
        };
        match result {
            Ok(()) => {
                self.tallies.audit(AuditFate::Recorded);
                debug!(target: OWN_LOG, event = event.name, outcome = event.outcome.as_str(), seq, "audit event");
                Ok(seq)
            }
            Err(cause) => self.refuse(&cause, required, seq),
        }
    }

    /// An error while events are refused. A file that failed is tried now and then, so that it is found again without a keeper's help.
    pub fn ready(&self) -> Result<(), AuditRefused> {
        if !self.refusing.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.lock();
        if state.failing.as_ref().is_some_and(|failing| failing.tried.elapsed() >= TRY_EVERY) {
            self.try_again(&mut state);
        }
        match &state.failing {
            Some(failing) if state.settings.required => Err(AuditRefused { reason: failing.reason.clone() }),
            _ => Ok(()),
        }
    }

    /// Opens what `settings` ask for beside what is in use.
    pub fn stage(&self, settings: AuditSettings) -> Result<StagedAudit, TelemetryError> {
        let file = if self.lock().settings.path == settings.path {
            None
        } else {
            Some(settings.path.as_deref().map(AuditFile::open).transpose()?)
        };
        Ok(StagedAudit { settings, file })
    }

    pub fn commit(&self, staged: StagedAudit) {
        let mut state = self.lock();
        state.settings = staged.settings;
        if let Some(file) = staged.file {
            state.use_file(file);
        }
        self.publish(&state);
    }

    pub fn condition(&self) -> Condition {
        let state = self.lock();
        let (verdict, message) = match (&state.file, &state.failing, &state.stray) {
            (None, ..) => (ConditionState::Ok, "events go to the log and to OTLP: audit.path is not set".to_owned()),
            (Some(file), Some(failing), _) => {
                let consequence = if state.settings.required {
                    "what they are about is refused (audit.required)".to_owned()
                } else {
                    format!("{} are missing", failing.missing)
                };
                let verdict = if state.settings.required { ConditionState::Failed } else { ConditionState::Degraded };
                let path = file.path().display();
                (verdict, format!("events cannot be written to {path}: {}; {consequence}", failing.reason))
            }
            (Some(file), None, Some(reason)) => {
                let path = file.path().display();
                (ConditionState::Degraded, format!("{path} was moved and a new one cannot be opened ({reason})"))
            }
            (Some(file), None, None) => (ConditionState::Ok, format!("events go to {}", file.path().display())),
        };
        Condition { component: "audit".into(), state: verdict, message }
    }

    pub fn detail(&self) -> serde_json::Value {
        let state = self.lock();
        json!({
            "path": state.settings.path,
            "required": state.settings.required,
            "last_seq": state.seq,
            "recorded": self.tallies.total_audit(AuditFate::Recorded),
            "lost": self.tallies.total_audit(AuditFate::Lost),
            "refused": self.tallies.total_audit(AuditFate::Refused),
        })
    }

    /// Counts and says that an event is not in the file; an error if the caller must not go on.
    fn refuse(&self, cause: &io::Error, required: bool, seq: u64) -> Result<u64, AuditRefused> {
        self.tallies.audit(if required { AuditFate::Refused } else { AuditFate::Lost });
        let mut state = self.lock();
        let reason = cause.to_string();
        let missing = state.failing.as_ref().map_or(0, |failing| failing.missing) + 1;
        state.failing = Some(Failing { reason: reason.clone(), missing, tried: Instant::now() });
        self.publish(&state);
        let quiet = state.said.is_some_and(|said| said.elapsed() < SAY_EVERY);
        if !quiet {
            state.said = Some(Instant::now());
        }
        drop(state);
        if !quiet {
            error!(error = %cause, missing, required, "audit events cannot be written");
        }
        if required { Err(AuditRefused { reason }) } else { Ok(seq) }
    }

    /// Tries whether a file that failed can be written again.
    fn try_again(&self, state: &mut State) {
        let Some(file) = state.file.clone().filter(|_| state.failing.is_some()) else { return };
        let tried = blocking(|| state.resume(&file));
        if let (Err(cause), Some(failing)) = (tried, &mut state.failing) {
            failing.reason = cause.to_string();
            failing.tried = Instant::now();
        }
        self.publish(state);
    }

    /// To be called after each change of what `refusing` stands for.
    fn publish(&self, state: &State) {
        let refusing = state.file.is_some() && state.failing.is_some() && state.settings.required;
        self.refusing.store(refusing, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Numbers the event and writes its line. Returns the mark to sync up to.
    fn write(&mut self, file: &AuditFile, event: &AuditEvent) -> io::Result<u64> {
        self.seq += 1;
        self.line.clear();
        line::write_line(&mut self.line, event, self.seq);
        let mark = file.append(&self.line);
        self.line.shrink_to(LINE_BYTES);
        mark
    }

    /// The gap first, then the event; when not even that can be said, the event's number is missing like the event.
    fn write_after_gap(&mut self, file: &AuditFile, event: &AuditEvent) -> io::Result<u64> {
        match self.resume(file) {
            Ok(()) => self.write(file, event),
            Err(cause) => {
                self.seq += 1;
                Err(cause)
            }
        }
    }

    /// Says in the file itself how many events are missing before this line. What cannot be synced, where that is asked for, still fails.
    fn resume(&mut self, file: &AuditFile) -> io::Result<()> {
        let missing = self.failing.as_ref().map_or(0, |failing| failing.missing);
        let event = AuditEvent::new("audit.resumed", Outcome::Success).with("mcpeg.audit.missing", missing);
        self.line.clear();
        line::write_line(&mut self.line, &event, self.seq + 1);
        let mark = file.append(&self.line)?;
        self.seq += 1;
        if self.settings.sync == AuditSync::Each {
            file.sync(mark)?;
        }
        self.failing = None;
        warn!(missing, path = %file.path().display(), "audit events are written again");
        Ok(())
    }

    fn use_file(&mut self, file: Option<AuditFile>) {
        self.seq = self.seq.max(file.as_ref().map_or(0, |file| file.last_seq));
        self.file = file.map(Arc::new);
        self.failing = None;
        self.stray = None;
    }
}

/// Without a file, the own log is where an event is kept.
fn say(event: &AuditEvent, seq: u64) {
    if !enabled!(target: OWN_LOG, tracing::Level::INFO) {
        return;
    }
    let mut attributes = Vec::new();
    line::write_attributes(&mut attributes, event);
    let attributes = String::from_utf8_lossy(&attributes);
    info!(target: OWN_LOG, event = event.name, outcome = event.outcome.as_str(), seq, %attributes, "audit event");
}

/// Runs what may wait for the disk without holding up the runtime's other tasks, where the runtime allows it.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

const OWN_LOG: &str = "mcpeg::audit";
const LINE_BYTES: usize = 4 * 1024;
const SAY_EVERY: Duration = Duration::from_secs(30);
const TRY_EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
