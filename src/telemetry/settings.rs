//! What the telemetry domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

pub use super::rolling::{Rolling, Rotation};
use crate::secret::SecretText;
use crate::tls::Files;

pub use super::lines::multiline::{Language, Multiline};
pub use super::lines::rules::{Content, DEFAULT_MAX_LINE, Pattern, Rules, Wrapping};
pub use super::lines::time::{TimeFormat, check_pattern as check_time_pattern};
pub use super::receiver::ReceiverSettings;
pub use super::sources::journald::JournaldSettings;
pub use super::sources::syslog::SyslogSettings;
pub use super::spool::{SpoolBounds, SpoolSettings, WhenFull};
pub use super::tail::PathPattern;
pub use super::tail::settings::{FileSet, StartAt};

#[derive(Debug, Clone, PartialEq)]
pub struct TelemetrySettings {
    /// `service.name` and what else describes this process.
    pub resource: BTreeMap<String, String>,
    /// By name; `telemetry.otlp` is the one called `otlp`. None: nothing is exported; metrics are still served as Prometheus text.
    pub destinations: BTreeMap<String, DestinationSettings>,
    /// `None`: records wait in memory.
    pub spool: Option<SpoolSettings>,
    /// `None`: no spans are made.
    pub traces: Option<TraceSettings>,
    /// `None`: metrics are not exported (they are still served as Prometheus text).
    pub metrics: Option<MetricSettings>,
    pub log: LogSettings,
    pub audit: AuditSettings,
    pub sources: SourceSettings,
}

/// What others say, and where it comes in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceSettings {
    pub files: Vec<FileSet>,
    /// `None`: standard input is not read.
    pub stdin: Option<Rules>,
    pub syslog: Option<SyslogSettings>,
    pub journald: Option<JournaldSettings>,
    pub receiver: Option<ReceiverSettings>,
    /// The supervised process is told where the receiver is.
    pub set_env: bool,
    /// Attributes of what others have written, as far as the configuration says.
    pub resource: BTreeMap<String, String>,
}

/// Of a request to the receiver: less than the spool takes, as a mark may be longer than the secret that it stands for.
pub const MOST_REQUEST: usize = 3 * 1024 * 1024;

/// One collector. All signals go there in the same way, unless variables say otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationSettings {
    pub logs: OtlpSettings,
    pub traces: OtlpSettings,
    pub metrics: OtlpSettings,
}

impl DestinationSettings {
    pub fn same(settings: OtlpSettings) -> Self {
        Self { logs: settings.clone(), traces: settings.clone(), metrics: settings }
    }

    /// In the order of `Signal`.
    pub fn all(&self) -> [&OtlpSettings; 3] {
        [&self.logs, &self.traces, &self.metrics]
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct OtlpSettings {
    /// Base URL. For `http/protobuf`, `/v1/traces` and so on are appended to its path.
    pub endpoint: Url,
    /// With `http/protobuf`, nothing is appended: the variable of one signal gives a whole address.
    pub endpoint_is_whole: bool,
    pub protocol: OtlpProtocol,
    /// Read at each request.
    pub headers: Vec<(HeaderName, SecretText)>,
    pub compression: Compression,
    pub timeout: Duration,
    pub tls: Files,
    /// What the server has to prove to be, where that is not the endpoint's host.
    pub server_name: Option<String>,
    /// Log records (audit events among them) that wait in memory for the collector.
    pub queue_records: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    Grpc,
    HttpProtobuf,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// 0.0 to 1.0, of traces that start here; a caller's own decision is kept.
    pub sample_ratio: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MetricSettings {
    pub interval: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    pub level: LogLevel,
    pub format: LogFormat,
    /// `None`: standard error alone.
    pub file: Option<LogFileSettings>,
}

/// A file of the own log, mode 0600, beside standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFileSettings {
    pub path: PathBuf,
    pub rolling: Rolling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AuditSettings {
    /// JSON lines, mode 0600. `None`: events go to the log and to OTLP only.
    pub path: Option<PathBuf>,
    /// Refuse what an event is about when the event cannot be written.
    pub required: bool,
    pub sync: AuditSync,
    pub rolling: Rolling,
    /// So many records lie between two whose hashes go to the collector.
    pub anchor_every: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditSync {
    /// `fdatasync` a few times a second.
    Interval,
    /// `fdatasync` for each record.
    Each,
}
