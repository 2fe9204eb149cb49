//! The audit trail: every event to the audit file (or, without one, to the own log), numbered and in order.
//!
//! `record` returns when the line is with the kernel, or on the disk with `sync: each`. When the file cannot be written, the event is
//! refused (`audit.required`) or counted as lost, which the condition `audit` and the log say; as soon as a write succeeds again an
//! `audit.resumed` event says how many are missing, before any other event. `ready` tells beforehand that an event would be refused, and
//! tries the file itself a few times a second. Export by OTLP is not this module's business: the trail hands out the number.
//!
//! Each record carries a hash over the one before it (`chain`), also from one file to the next. `file` writes bytes, `line` makes them,
//! `keeper` syncs, sets a file aside when its time has come, reopens one that was moved, and tries a disk that failed; `head` remembers the
//! last record beside the file. `verify` reads a trail back, `tail` its end.

mod chain;
mod file;
mod head;
pub mod keeper;
mod line;
pub mod tail;
pub mod verify;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use tracing::{debug, enabled, error, info, warn};

use crate::ports::{AuditEvent, AuditRefused, AuditTail, Condition, ConditionState, Outcome};

use super::error::TelemetryError;
use super::settings::{AuditSettings, AuditSync};
use super::tallies::{AuditFate, Tallies};

use chain::Hash;
use file::AuditFile;
pub use file::LastRecord;
pub use line::bounded;

pub struct AuditTrail {
    state: Mutex<State>,
    /// Events are refused now: what `State` says, to be asked for every request without its lock.
    refusing: AtomicBool,
    /// `audit.required`, to be asked for every request without the lock.
    required: AtomicBool,
    /// Something was written, and waits to be synced.
    recorded: Notify,
    tallies: Arc<Tallies>,
}

struct State {
    settings: AuditSettings,
    file: Option<Arc<AuditFile>>,
    /// The number of the last event.
    seq: u64,
    /// Of the last record in a file.
    hash: Hash,
    /// What the file is to be told before its next event.
    opening: Option<Opening>,
    /// The number of the last event that became an anchor.
    anchored: u64,
    /// The number that the head file has.
    noted: u64,
    /// The head file could not be written the last time.
    headless: bool,
    /// Kept between events, so that a line costs no allocation.
    line: Vec<u8>,
    failing: Option<Failing>,
    /// When the log last said that events cannot be written.
    said: Option<Instant>,
    /// Why a file that was moved could not be opened anew; events go to the moved one.
    stray: Option<String>,
}

/// A file begins, or goes on after something that its readers could not explain.
struct Opening {
    previous: Option<LastRecord>,
    /// Records that were in the file and are not any more.
    missing: u64,
}

/// An event that is in the trail.
#[derive(Debug)]
pub struct Recorded {
    pub seq: u64,
    /// Now and then: what is to be kept elsewhere.
    pub anchor: Option<LastRecord>,
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
        let mut state = State {
            seq: 0,
            hash: Hash::START,
            opening: None,
            anchored: 0,
            noted: 0,
            headless: false,
            file: None,
            settings,
            line: Vec::with_capacity(LINE_BYTES),
            failing: None,
            said: None,
            stray: None,
        };
        state.use_file(file);
        (state.anchored, state.noted) = (state.seq, state.seq);
        let required = AtomicBool::new(state.settings.required);
        let recorded = Notify::new();
        Ok(Self { state: Mutex::new(state), refusing: AtomicBool::new(false), required, recorded, tallies })
    }

    /// Writes the event.
    pub fn record(&self, event: &AuditEvent) -> Result<Recorded, AuditRefused> {
        let mut state = self.lock();
        let Some(file) = state.file.clone() else {
            state.seq += 1;
            let seq = state.seq;
            drop(state);
            self.tallies.audit(AuditFate::Recorded);
            say(event, seq);
            return Ok(Recorded { seq, anchor: None });
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
        let anchor = written.as_ref().ok().and_then(|_| state.anchor_if_due());
        drop(state);
        self.recorded.notify_one();
        let result = match written {
            Ok(mark) if each => blocking(|| file.sync(mark)),
            written => written.map(|_| ()),
        };
        match result {
            Ok(()) => {
                self.tallies.audit(AuditFate::Recorded);
                debug!(target: OWN_LOG, event = event.name, outcome = event.outcome.as_str(), seq, "audit event");
                Ok(Recorded { seq, anchor })
            }
            Err(cause) => self.refuse(&cause, required, seq).map(|seq| Recorded { seq, anchor: None }),
        }
    }

    /// An event that cannot be kept refuses what it is about.
    pub fn is_required(&self) -> bool {
        self.required.load(Ordering::Acquire)
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

    /// The newest records, oldest first, and where the trail stands.
    pub fn tail(&self, most: usize) -> io::Result<AuditTail> {
        let state = self.lock();
        let last = state.last();
        let file = state.file.clone();
        drop(state);
        let Some(file) = file else {
            return Ok(AuditTail { path: None, seq: last.seq, hash: None, records: Vec::new() });
        };
        let records = if file.is_ordinary() { blocking(|| tail::read(file.path(), most))?.records } else { Vec::new() };
        Ok(AuditTail { path: Some(file.path().to_owned()), seq: last.seq, hash: Some(last.hash.to_string()), records })
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
        self.required.store(state.settings.required, Ordering::Release);
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
            "last_hash": state.file.is_some().then(|| state.hash.to_string()),
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
        let written = self.open_if_new(file).and_then(|()| self.put(file, event));
        if written.is_err() {
            // The event's number is missing like the event.
            self.seq += 1;
        }
        written
    }

    /// The gap first, then the event.
    fn write_after_gap(&mut self, file: &AuditFile, event: &AuditEvent) -> io::Result<u64> {
        match self.resume(file) {
            Ok(()) => self.write(file, event),
            Err(cause) => {
                self.seq += 1;
                Err(cause)
            }
        }
    }

    /// Tells a new file what it goes on from.
    fn open_if_new(&mut self, file: &AuditFile) -> io::Result<()> {
        let Some(Opening { previous, missing }) = &self.opening else { return Ok(()) };
        let outcome = if *missing == 0 { Outcome::Success } else { Outcome::Failure };
        let mut event = AuditEvent::new(verify::OPENED, outcome)
            .with_some("mcpeg.audit.previous.seq", previous.map(|record| record.seq))
            .with_some("mcpeg.audit.previous.hash", previous.map(|record| record.hash.to_string()));
        if *missing > 0 {
            event = event.with("mcpeg.audit.missing", *missing);
        }
        self.put(file, &event)?;
        self.opening = None;
        Ok(())
    }

    /// Writes the next record. Nothing has changed when that fails.
    fn put(&mut self, file: &AuditFile, event: &AuditEvent) -> io::Result<u64> {
        self.line.clear();
        line::write_line(&mut self.line, event, self.seq + 1);
        let hash = chain::seal(&mut self.line, self.hash);
        let mark = file.append(&self.line);
        self.line.shrink_to(LINE_BYTES);
        if mark.is_ok() {
            self.seq += 1;
            self.hash = hash;
        }
        mark
    }

    fn anchor_if_due(&mut self) -> Option<LastRecord> {
        if self.seq - self.anchored < self.settings.anchor_every {
            return None;
        }
        self.anchored = self.seq;
        Some(self.last())
    }

    fn last(&self) -> LastRecord {
        LastRecord { seq: self.seq, hash: self.hash }
    }

    /// Says in the file itself how many events are missing before this line. What cannot be synced, where that is asked for, still fails.
    fn resume(&mut self, file: &AuditFile) -> io::Result<()> {
        let missing = self.failing.as_ref().map_or(0, |failing| failing.missing);
        let event = AuditEvent::new(verify::RESUMED, Outcome::Success).with("mcpeg.audit.missing", missing);
        self.open_if_new(file)?;
        let mark = self.put(file, &event)?;
        if self.settings.sync == AuditSync::Each {
            file.sync(mark)?;
        }
        self.failing = None;
        warn!(missing, path = %file.path().display(), "audit events are written again");
        Ok(())
    }

    fn use_file(&mut self, file: Option<AuditFile>) {
        self.failing = None;
        self.stray = None;
        self.file = file.map(Arc::new);
        let Some(file) = self.file.clone() else { return };
        self.opening = None;
        let head = if file.is_ordinary() { head::read(file.path()) } else { None };
        let kept = head.filter(|head| file.last.is_none_or(|last| head.seq > last.seq));
        if let (Some(kept), Some(last)) = (kept, file.last) {
            let path = file.path().display();
            error!(path = %path, last = last.seq, written = kept.seq, "the end of the audit file is missing");
        }
        let before = (self.seq > 0).then(|| self.last());
        let previous = file.last.or(kept).or(before);
        self.hash = previous.map_or(Hash::START, |record| record.hash);
        let missing = kept.zip(file.last).map_or(0, |(kept, last)| kept.seq - last.seq);
        let newest = previous.into_iter().chain(kept).map(|record| record.seq).max().unwrap_or(0);
        let jumps = newest < self.seq;
        self.seq = self.seq.max(newest);
        if file.last.is_none() || file.is_torn() || missing > 0 || jumps {
            self.opening = Some(Opening { previous, missing });
        }
    }

    /// A file that goes on where the one before it has ended.
    fn continue_in(&mut self, file: AuditFile) {
        match file.last {
            None => {
                self.opening = Some(Opening { previous: (self.seq > 0).then(|| self.last()), missing: 0 });
                self.file = Some(Arc::new(file));
                self.stray = None;
            }
            // Somebody has put another trail there.
            Some(_) => self.use_file(Some(file)),
        }
    }
}

/// What the head file beside an audit file says.
pub fn read_head(audit: &Path) -> Option<LastRecord> {
    head::read(audit)
}

/// `SEQ:HASH`.
pub fn parse_anchor(text: &str) -> Result<LastRecord, String> {
    let parsed = text
        .split_once(':')
        .and_then(|(seq, hash)| Some(LastRecord { seq: seq.parse().ok()?, hash: Hash::parse(hash)? }));
    parsed.ok_or_else(|| "expected a number, a colon and 64 hexadecimal digits in lower case".to_owned())
}

/// The name of the event that carries a hash off the machine.
pub const ANCHOR: &str = "audit.anchor";

/// The log record that keeps a hash elsewhere. It is not an event of the file.
pub fn anchor_event(anchor: LastRecord) -> AuditEvent {
    AuditEvent::new(ANCHOR, Outcome::Success).with("mcpeg.audit.hash", anchor.hash.to_string())
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
