//! The written shape of `templates`, `process`, `storage.logs`, `admin` and `security`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::hooks::RawOnChange;
use super::scalar::{RawAccount, RawDuration, RawMode, RawPath, RawSecretText, RawSignal, RawSize};
use super::secrets::RawSealedWith;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTemplate {
    /// The template: Jinja, with `secret.ITEM.FIELD` and `env("NAME")`.
    pub source: RawPath,
    /// The file that is written, whole or not at all.
    pub destination: RawPath,
    /// Default: `"0600"`.
    pub mode: Option<RawMode>,
    /// `USER`, `USER:GROUP` or `:GROUP`, names or ids. Default: mcpeg's own.
    pub owner: Option<String>,
    /// The SELinux label: `system_u:object_r:httpd_config_t:s0`. Default: what the system gives.
    pub selinux_label: Option<String>,
    /// Keeps the file that is replaced as `NAME.bak`, with the same mode and owner.
    #[serde(default)]
    pub backup: bool,
    /// What becomes of the file when a reload takes the template away. Default: `keep`.
    pub on_remove: Option<super::render::RawOnRemove>,
    /// The most that the template may render to. Default: `1MiB`.
    pub max_size: Option<RawSize>,
    /// What follows a change of the file's bytes.
    pub on_change: Option<RawOnChange>,
    /// A command that has to succeed before new bytes take effect. `{file}` stands for the file that holds them.
    #[schemars(length(min = 1))]
    pub validate: Option<Vec<String>>,
    /// For `validate`. Default: `10s`.
    pub timeout: Option<RawDuration>,
    /// One of `render.groups`: files that change together.
    pub group: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawProcess {
    /// Program and arguments; no shell. May be left out where it is given as `mcpeg run -- PROGRAM ARGUMENTS`, which wins.
    #[schemars(length(min = 1))]
    pub command: Option<Vec<String>>,
    /// Variables of the process.
    #[serde(default)]
    pub env: BTreeMap<String, RawSecretText>,
    /// Which of mcpeg's own variables it gets besides: all that hold no credential of mcpeg, none, or those named. Default: `true`.
    pub inherit_env: Option<RawInheritEnv>,
    /// What happens when a secret of `env` changes. Default: `restart`.
    pub on_change: Option<RawProcessOnChange>,
    /// Sent to the process by `on_change: signal`. Default: `SIGHUP`.
    pub signal: Option<RawSignal>,
    /// Default: mcpeg's own.
    pub working_directory: Option<RawPath>,
    /// The user that the process runs as, by name or number. Default: mcpeg's own. Needs CAP_SETUID, CAP_SETGID and CAP_KILL.
    pub user: Option<RawAccount>,
    /// Its only group, by name or number. Default: the user's.
    pub group: Option<RawAccount>,
    #[serde(default)]
    pub restart: RawRestart,
    /// Sent to the process group to end it. Default: `SIGTERM`.
    pub stop_signal: Option<RawSignal>,
    /// How long it may take to end before SIGKILL. Default: `10s`.
    pub stop_timeout: Option<RawDuration>,
    /// Default: `log`, for `mcpeg run -- PROGRAM` `inherit`.
    pub output: Option<RawOutput>,
    #[serde(default)]
    pub log: RawProcessLog,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawInheritEnv {
    All(bool),
    Names(Vec<String>),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawProcessOnChange {
    /// It is stopped and started with the new values.
    Restart,
    /// It gets `signal`; its environment stays as it is.
    Signal,
    /// The next start has the new values.
    Ignore,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOutput {
    /// It writes to mcpeg's own standard output and error; nothing is read.
    Inherit,
    /// Its lines become lines of the own log and OTLP log records.
    Log,
    /// Its lines go to mcpeg's standard output and error, and become OTLP log records.
    Both,
}

/// What happens when the process ends by itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRestart {
    /// Default: `on-failure`, for `mcpeg run -- PROGRAM` `never`.
    pub policy: Option<RawRestartPolicy>,
    /// The wait before the first start anew; it doubles with each failure in a row. Default: `1s`.
    pub initial_backoff: Option<RawDuration>,
    /// The longest wait; who runs for longer starts with the first again. Default: `1m`.
    pub max_backoff: Option<RawDuration>,
    /// Failures in a row that are followed by a start anew. Default: no limit.
    pub max_restarts: Option<u32>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawRestartPolicy {
    Always,
    /// A status other than 0, or a signal.
    OnFailure,
    Never,
}

/// Bounds of what is taken from the process's output.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawProcessLog {
    /// The rest of a longer line is left out. Default: 16384.
    #[schemars(range(min = 64, max = 262144))]
    pub max_line_bytes: Option<u32>,
    /// Lines beyond are counted and left out of log and records. Default: 1000.
    #[schemars(range(min = 1, max = 1000000))]
    pub max_lines_per_second: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawLogStorage {
    #[serde(rename = "type")]
    pub kind: RawLogStorageKind,
    /// The folder; the file in it is `mcpeg.log`, mode 0600.
    pub path: RawPath,
    /// When the file is set aside and a new one begun, beside when it is `max_size_mb`; in UTC. Default: `daily`.
    pub rotation: Option<RawRotation>,
    /// A file of this size is set aside. Default: 100.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_size_mb: Option<u64>,
    /// For how long a file that was set aside is kept. Default: `30d`.
    pub retention: Option<RawDuration>,
    /// Whether a file that was set aside is compressed with gzip. Default: `true`.
    pub compress: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLogStorageKind {
    File,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRotation {
    /// At each midnight.
    Daily,
    /// At each full hour.
    Hourly,
    /// By its size alone.
    Size,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAdmin {
    #[serde(default)]
    pub unix: RawAdminUnix,
    #[serde(default)]
    pub http: RawAdminHttp,
}

/// Health, metrics, status and reload on a Unix socket.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAdminUnix {
    /// Default: `true`.
    pub enabled: Option<bool>,
    /// Default: `run/admin.sock`.
    pub path: Option<RawPath>,
    /// Default: `"0600"`.
    pub mode: Option<RawMode>,
}

/// The same on a loopback address, for probes and Prometheus.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAdminHttp {
    #[serde(default)]
    pub enabled: bool,
    /// A loopback address. Default: `127.0.0.1`.
    pub address: Option<std::net::IpAddr>,
    /// Default: 9464.
    pub port: Option<u16>,
    /// Asked for as `Authorization: Bearer`, except by `/livez` and `/readyz`. Needed when it is enabled.
    pub token: Option<RawSecretText>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSecurity {
    /// What happens to a live secret in what goes to the agent: its value is replaced (`redact`), the message is withheld (`block`), it
    /// is put on record alone (`report`), or nobody looks (`off`). Default: `redact`.
    pub leak_guard: Option<RawLeakGuard>,
    /// What else is taken out of logs, audit events and traces.
    #[serde(default)]
    pub redaction: RawRedaction,
    /// What opens the values that are sealed in the configuration's files (`!sealed ...`, by `mcpeg seal --path`).
    pub sealed_with: Option<RawSealedWith>,
    /// Whether a start fails (`require`) or warns (`true`) when the secrets' memory cannot be locked. Default: `true`.
    pub lock_memory: Option<RawLockMemory>,
    /// Not available in this version: `true`.
    #[serde(default)]
    pub sandbox: bool,
}

/// Live secrets are always taken out of telemetry. So is what looks like a credential, by these patterns.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRedaction {
    /// The keys of the large vendors, JWTs, private keys, passwords in URLs. Default: `true`.
    pub builtin: Option<bool>,
    /// More of them, at most 64.
    #[serde(default)]
    pub patterns: Vec<RawPattern>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPattern {
    /// Stands in the mark, `[REDACTED:name]`, and in the metric.
    pub name: String,
    /// In the syntax of the Rust crate `regex`, over bytes: `\w` and `\d` are ASCII. What fits is replaced.
    pub regex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLeakGuard {
    Off,
    Redact,
    Block,
    Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawLockMemory {
    Warn(bool),
    Require(RawRequire),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRequire {
    Require,
}
