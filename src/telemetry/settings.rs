//! What the telemetry domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

pub use super::rolling::{Rolling, Rotation};
use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq)]
pub struct TelemetrySettings {
    /// `service.name` and what else describes this process.
    pub resource: BTreeMap<String, String>,
    /// `None`: nothing is exported; metrics are still served as Prometheus text.
    pub otlp: Option<OtlpSettings>,
    /// `None`: no spans are made.
    pub traces: Option<TraceSettings>,
    /// `None`: metrics are not exported (they are still served as Prometheus text).
    pub metrics: Option<MetricSettings>,
    pub log: LogSettings,
    pub audit: AuditSettings,
}

#[derive(Debug, Clone, PartialEq)]
pub struct OtlpSettings {
    /// Base URL. For `http/protobuf`, `/v1/traces` and so on are appended to its path.
    pub endpoint: Url,
    pub protocol: OtlpProtocol,
    /// Read at each request.
    pub headers: Vec<(HeaderName, SecretText)>,
    pub gzip: bool,
    pub timeout: Duration,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Log records (audit events among them) that wait in memory for the collector.
    pub queue_records: usize,
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
