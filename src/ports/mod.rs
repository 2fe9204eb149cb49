//! The traits through which domains meet. A domain imports no other domain: it takes one of these, and `app` puts it in.
//!
//! Each trait has one to three methods; those of stores (`stores`) have as many as a store can do. Nothing here does any work.

mod stores;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

pub use self::stores::*;
use crate::secret::{Secret, SecretVersion};

/// The current secrets. Implemented by the store, used by whatever puts a credential somewhere.
pub trait SecretReader: Send + Sync {
    /// The version to use now, which may be the last known good one.
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable>;

    /// Changes to the number of the newest published version (0: none yet). `None`: no item of that name.
    fn subscribe(&self, item: &str) -> Option<watch::Receiver<u64>>;

    /// Somebody uses versions of `item` from number `since` on, and has not followed to newer ones yet: until the hold is dropped no
    /// lease of them is given back, except that a lease may end by itself. No value is kept for it.
    fn hold(&self, _item: &str, _since: u64) -> Hold {
        Box::new(())
    }
}

/// Ends when it is dropped.
pub type Hold = Box<dyn Send + Sync>;

/// The process that mcpeg runs. Implemented by the process domain, used by hooks.
pub trait SupervisedProcess: Send + Sync {
    /// Sends a signal by its number on this system. The reason why not, in words.
    fn signal(&self, signal: i32) -> Result<(), String>;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretUnavailable {
    #[error("secret {item}: no such item")]
    Unknown { item: String },
    #[error("secret {item}: not fetched yet{}", because(.reason))]
    NotFetched { item: String, reason: Option<String> },
    #[error("secret {item}: the last known value is older than max_stale{}", because(.reason))]
    Stale { item: String, reason: Option<String> },
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// Is told of every value before anybody can read it. Implemented by the guard, called by the store.
pub trait SecretObserver: Send + Sync {
    /// These will be the item's current fields. When this returns, what it is told for is in force.
    fn published(&self, item: &str, fields: &BTreeMap<String, Secret>);

    /// The item has no value any more.
    fn retired(&self, item: &str);
}

/// Takes secrets out of what is to be kept or sent: live values in any common encoding, and what looks like a vendor's key.
pub trait Redactor: Send + Sync {
    /// The text with `[REDACTED:name]` in place of each; the text itself, without a copy, if there is none.
    fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]>;

    /// What was replaced since the process started.
    fn counts(&self) -> Vec<RedactedCount>;

    /// Whether `redact` would leave it as it is. Counts nothing.
    fn is_clean(&self, bytes: &[u8]) -> bool {
        matches!(self.redact(bytes), Cow::Borrowed(_))
    }

    /// As `redact`, for a text that stays one.
    fn redact_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.redact(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedactedCount {
    pub kind: RedactedKind,
    /// The item's, or the pattern's.
    pub name: Arc<str>,
    pub count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RedactedKind {
    /// The value of an item.
    Secret,
    /// What looks like a credential.
    Pattern,
}

impl RedactedKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Pattern => "pattern",
        }
    }
}

/// What is known of the secrets, and a fetch out of turn. Implemented by the secrets domain, used by the admin socket, and by MCP when an
/// upstream refuses a credential.
pub trait SecretControl: Send + Sync {
    /// Every configured item; names, versions and ages, never a value.
    fn list(&self) -> Vec<SecretSummary>;

    /// Fetches one item now and waits for the outcome.
    fn refresh<'a>(
        &'a self,
        item: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Refreshed, RefreshError>> + Send + 'a>>;
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SecretSummary {
    pub item: String,
    pub provider: String,
    pub state: ConditionState,
    /// Counted by this process from 1.
    pub version: Option<u64>,
    pub provider_version: Option<String>,
    /// Since it was last fetched with success.
    pub age_seconds: Option<f64>,
    /// Until the provider is asked again; `None` while it is out.
    pub next_seconds: Option<f64>,
    /// What is wrong; empty when nothing is.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refreshed {
    pub item: String,
    pub version: u64,
    pub provider_version: Option<String>,
    /// Whether the fetch brought another value.
    pub changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    #[error("secret {item}: no such item")]
    Unknown { item: String },
    #[error("it was fetched out of turn less than a second ago")]
    TooSoon,
    #[error("secret {item}: {reason}")]
    Failed { item: String, reason: String },
    #[error("there is no outcome after {seconds} s")]
    Late { seconds: u64 },
}

/// Takes audit events.
pub trait AuditLog: Send + Sync {
    /// When it returns `Ok` the event is in the audit file (if one is configured) and queued for export.
    fn record(&self, event: AuditEvent) -> Result<(), AuditRefused>;

    /// Whether events can be recorded, asked before something is done that could not be undone if its event were refused. Cheap enough
    /// for every request.
    fn ready(&self) -> Result<(), AuditRefused>;
}

/// The event could not be written and `audit.required` is set: the caller must refuse what the event is about.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit event could not be written: {reason}")]
pub struct AuditRefused {
    pub reason: String,
}

/// Reads the audit trail back. Implemented by telemetry, used by the admin socket.
pub trait AuditReader: Send + Sync {
    /// The newest records, at most `most`, oldest first. The reason why not, in words.
    fn tail(&self, most: usize) -> Result<AuditTail, String>;
}

/// Where the audit trail stands, and its end.
#[derive(Debug, Clone, Serialize)]
pub struct AuditTail {
    /// `None`: there is no audit file, and no records can be read back.
    pub path: Option<PathBuf>,
    /// The number of the last event.
    pub seq: u64,
    /// The hash of the last record.
    pub hash: Option<String>,
    /// As they stand in the file.
    pub records: Vec<Box<RawValue>>,
}

/// One fact for the record. It names things and versions; it never holds a secret, an argument or a result.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// `domain.what`, for example `secret.rotated`; the list of names is in docs/AUDIT.md.
    pub name: &'static str,
    pub outcome: Outcome,
    pub time: SystemTime,
    /// Attribute names are OpenTelemetry's where it has one, else dotted lower case under `mcpeg.`.
    pub attributes: Vec<(&'static str, AuditValue)>,
    pub trace: Option<TraceIds>,
}

impl AuditEvent {
    pub fn new(name: &'static str, outcome: Outcome) -> Self {
        Self { name, outcome, time: SystemTime::now(), attributes: Vec::new(), trace: None }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<AuditValue>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds the attribute only when there is a value.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<AuditValue>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Success,
    Failure,
    /// Refused by policy or by a bound, before anything was tried.
    Denied,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Denied => "denied",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum AuditValue {
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<String>),
}

impl From<&str> for AuditValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for AuditValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<i64> for AuditValue {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<u32> for AuditValue {
    fn from(value: u32) -> Self {
        Self::Integer(i64::from(value))
    }
}

impl From<u64> for AuditValue {
    fn from(value: u64) -> Self {
        Self::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<f64> for AuditValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for AuditValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<Vec<String>> for AuditValue {
    fn from(value: Vec<String>) -> Self {
        Self::List(value)
    }
}

/// W3C trace context, as far as a record needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceIds {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
}

/// What a domain says of itself in `/v1/status`, `mcpeg status` and `/readyz`.
pub trait StatusReport: Send + Sync {
    /// The key under which `detail` stands, for example `secrets`.
    fn section(&self) -> &'static str;

    /// One condition for each thing that can fail by itself.
    fn conditions(&self) -> Vec<Condition>;

    /// Facts for a person or a program; never a secret value.
    fn detail(&self) -> serde_json::Value;
}

/// The state of one thing that can fail by itself, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `provider/corp`, `secret/weather`, `service/github`, `template/app.conf`, `otlp`, `audit`.
    pub component: String,
    pub state: ConditionState,
    /// What is wrong and what is done about it; for `Ok` a short fact or nothing.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConditionState {
    Ok,
    /// Goes on with what it has; not a reason to be unready.
    Degraded,
    /// Cannot do its job now: `/readyz` answers 503.
    Failed,
}

/// Loads the configuration anew and applies it. Implemented by the composition root, used by the admin socket.
pub trait Reload: Send + Sync {
    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadOutcome> + Send + '_>>;

    /// Reads it anew and says what a reload would change. The reason why it cannot be read, in words.
    fn compare(&self) -> Pin<Box<dyn Future<Output = Result<Drift, String>> + Send + '_>>;
}

/// What runs against what is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Drift {
    pub differs: bool,
    /// `None`: the configuration is in a folder, which has no revisions.
    pub running_revision: Option<String>,
    pub written_revision: Option<String>,
    pub keys: Vec<KeyDifference>,
    /// Why what is written cannot be applied.
    pub problems: Vec<String>,
}

/// A key that one side has, or with another value; `***` stands for what may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyDifference {
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum ReloadOutcome {
    /// What is written is what is running.
    Unchanged,
    Applied {
        /// The parts of the configuration that changed, as dotted paths.
        changed: Vec<String>,
    },
    /// Nothing was changed.
    Rejected { problems: Vec<String> },
}

impl ReloadOutcome {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Applied { .. } => "applied",
            Self::Rejected { .. } => "rejected",
        }
    }
}

/// The process's own metrics in the Prometheus text format (version 0.0.4).
pub trait MetricsText: Send + Sync {
    fn prometheus(&self) -> String;
}

/// Takes lines that programs have printed, as log records for the collector. Implemented by telemetry.
pub trait LogSink: Send + Sync {
    /// Queues the line; does nothing where there is no collector. The text was redacted before.
    fn ship(&self, line: &LogLine<'_>);
}

/// One line of a program's output.
#[derive(Debug, Clone, Copy)]
pub struct LogLine<'a> {
    pub time: SystemTime,
    pub origin: LogOrigin<'a>,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    pub pid: u32,
    pub text: &'a str,
}

/// Which program it was.
#[derive(Debug, Clone, Copy)]
pub enum LogOrigin<'a> {
    /// The supervised process, by the name of its program.
    Process(&'a str),
    /// The child of an MCP service.
    Service(&'a str),
}

/// The services that mcpeg serves itself. Implemented by the services domain, asked by MCP as it asks any upstream.
pub trait LocalServer: Send + Sync {
    /// What comes of one message to the service of this name. Nothing is done before the future is polled, and dropping it gives the
    /// work up.
    fn answer(&self, service: &str, message: Bytes) -> LocalFuture;
}

/// It borrows nothing, so that it may be waited for beside other work.
pub type LocalFuture = Pin<Box<dyn Future<Output = LocalAnswer> + Send>>;

#[derive(Debug)]
pub enum LocalAnswer {
    /// It was no request.
    Nothing,
    Line {
        line: Bytes,
        /// `item@version` of the secrets that were used.
        versions: Arc<[String]>,
    },
    /// What stands behind the service is not there, or does not work.
    Failed {
        /// A value of `error.type`.
        kind: &'static str,
        reason: String,
        versions: Arc<[String]>,
    },
}
