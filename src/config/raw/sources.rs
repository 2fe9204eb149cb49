//! The written shape of `telemetry.logs` and `telemetry.receiver`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{RawDuration, RawMode, RawPath, RawSize};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawLogs {
    /// Log files to follow.
    #[serde(default)]
    pub files: Vec<RawLogFiles>,
    /// Lines of mcpeg's own standard input, for a program whose output is piped into it. `true`: plain lines.
    pub stdin: Option<RawStdin>,
    /// A Unix datagram socket for messages of syslog (RFC 5424 and RFC 3164).
    pub syslog: Option<RawSyslog>,
    /// The journal of systemd, where `journalctl` is on the system.
    pub journald: Option<RawJournald>,
}

/// Files that are read by the same rules.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawLogFiles {
    /// Paths, in which `*`, `?`, `[a-z]` and `**` (any number of folders) may stand. Files that come later are found too.
    #[schemars(length(min = 1))]
    pub include: Vec<RawPath>,
    /// Paths of files that are not read, written in the same way.
    #[serde(default)]
    pub exclude: Vec<RawPath>,
    /// Default: `plain`.
    pub format: Option<RawLineFormat>,
    /// For `cri` and `docker`: what the container itself prints. Default: `plain`.
    pub content: Option<RawContent>,
    /// Which lines are one record. Default: each line is.
    pub multiline: Option<RawMultiline>,
    #[serde(default)]
    pub time: RawTime,
    #[serde(default)]
    pub severity: RawSeverity,
    /// Of JSON and logfmt: the key of the record's body. Default: the first of `message`, `msg`, `log`, `body` and `event`.
    pub body_key: Option<String>,
    /// Where a file is begun that is there at the first start; one that comes later is read whole. Default: `beginning`.
    pub start_at: Option<RawStartAt>,
    /// Of a line, and of a record of several; the rest is cut off and marked. Default: `64KiB`.
    pub max_line_bytes: Option<RawSize>,
    /// Attributes of the resource, such as `service.name`; they win over those of `telemetry.resource` and of the path.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// Attributes of each record.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLineFormat {
    Plain,
    Json,
    Logfmt,
    /// What container runtimes write in Kubernetes.
    Cri,
    /// Docker's `json-file`.
    Docker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawContent {
    Plain,
    Json,
    Logfmt,
}

/// One of `start_pattern` and `exception`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawMultiline {
    /// A regular expression that the first line of each record fits.
    pub start_pattern: Option<String>,
    /// The lines of an exception, and the line that announces it, are one record.
    pub exception: Option<RawExceptions>,
    /// How long lines wait for those that belong to them. Default: `1s`.
    pub flush_after: Option<RawDuration>,
}

/// One language, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawExceptions {
    One(RawLanguage),
    Several(Vec<RawLanguage>),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLanguage {
    /// All of them.
    All,
    Java,
    Python,
    Go,
    Javascript,
    Dotnet,
    Ruby,
    Php,
    Rust,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTime {
    /// Of JSON and logfmt. Default: the first of `time`, `timestamp`, `ts`, `@timestamp`, `datetime` and `t`.
    pub key: Option<String>,
    /// Of plain lines: a regular expression whose first group is the time.
    pub pattern: Option<String>,
    /// As strptime(3) has it: `%d/%b/%Y:%H:%M:%S %z`. Default: RFC 3339 and what is like it, or a number of seconds, milliseconds,
    /// microseconds or nanoseconds. A time without a zone is UTC.
    pub format: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSeverity {
    /// Of JSON and logfmt. Default: the first of `level`, `severity`, `lvl`, `log.level`, `levelname`, `loglevel` and `severity_text`.
    pub key: Option<String>,
    /// Of plain lines: a regular expression whose first group is the severity.
    pub pattern: Option<String>,
    /// What names of the program's own stand for, in lower case.
    #[serde(default)]
    pub map: BTreeMap<String, RawSeverityName>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawSeverityName {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawStartAt {
    Beginning,
    End,
}

/// `true`, or the format of the lines.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawStdin {
    Enabled(bool),
    Format(RawContent),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSyslog {
    pub path: RawPath,
    /// Permission bits of the socket. Default: `"0600"`.
    pub mode: Option<RawMode>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawJournald {
    /// Only entries of these units. Default: all.
    #[serde(default)]
    pub units: Vec<String>,
    /// Default: `end`.
    pub start_at: Option<RawStartAt>,
}

/// Takes the agent's own telemetry over OTLP. Each address takes HTTP and gRPC.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawReceiver {
    /// A loopback address for OTLP/HTTP, on port 4318 if none is given.
    pub http: Option<RawReceiverAddress>,
    /// A loopback address for OTLP/gRPC, on port 4317 if none is given.
    pub grpc: Option<RawReceiverAddress>,
    pub unix: Option<RawReceiverUnix>,
    /// Of a request, as it comes and unpacked. Default and most: `3MiB`.
    pub max_request_size: Option<RawSize>,
    /// Default: 64.
    #[schemars(range(min = 1, max = 4096))]
    pub max_connections: Option<u32>,
    /// Requests that are answered at a time; others are asked to come again. Default: 16.
    #[schemars(range(min = 1, max = 1024))]
    pub max_requests: Option<u32>,
    /// Puts `OTEL_EXPORTER_OTLP_ENDPOINT` and `OTEL_EXPORTER_OTLP_PROTOCOL` into the environment of `process`. Default: `false`.
    #[serde(default)]
    pub set_env: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawReceiverAddress {
    /// Default: `127.0.0.1`.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawReceiverUnix {
    pub path: RawPath,
    /// Permission bits of the socket. Default: `"0600"`.
    pub mode: Option<RawMode>,
}
