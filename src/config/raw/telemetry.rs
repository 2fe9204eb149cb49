//! The written shape of `telemetry` and `audit`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::operation::RawRotation;
use super::scalar::{RawDuration, RawPath, RawSecretText, RawUrl};
use super::secrets::RawTls;
use super::sources::{RawLogs, RawReceiver};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTelemetry {
    /// The collector. Left out: nothing is exported, unless `destinations` or `OTEL_EXPORTER_OTLP_ENDPOINT` say where to.
    pub otlp: Option<RawOtlp>,
    /// More collectors, by name, each with everything: every record goes to all of them, at the pace of each.
    #[serde(default)]
    pub destinations: BTreeMap<String, RawOtlp>,
    /// Resource attributes, beside `service.name` and what `metadata` gives.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    #[serde(default)]
    pub traces: RawTraces,
    #[serde(default)]
    pub metrics: RawMetrics,
    /// Logs of other programs, from files, pipes and sockets.
    pub logs: Option<RawLogs>,
    /// Takes the agent's own telemetry and passes it on.
    pub receiver: Option<RawReceiver>,
    /// Records wait on disk, and outlive the process. Left out: they wait in memory.
    pub spool: Option<RawSpool>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawOtlp {
    /// The base address, such as `http://127.0.0.1:4318` (HTTP) or `http://127.0.0.1:4317` (gRPC). Only `telemetry.otlp` may leave it
    /// out, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
    pub endpoint: Option<RawUrl>,
    /// Default: `OTEL_EXPORTER_OTLP_PROTOCOL` (for `telemetry.otlp`, as all of these), else `http/protobuf`.
    pub protocol: Option<RawProtocol>,
    /// Headers of each export, beside those of `OTEL_EXPORTER_OTLP_HEADERS`.
    #[serde(default)]
    pub headers: BTreeMap<String, RawSecretText>,
    /// Default: `OTEL_EXPORTER_OTLP_COMPRESSION`, else `none`.
    pub compression: Option<RawCompression>,
    /// For one export. Default: `OTEL_EXPORTER_OTLP_TIMEOUT`, else `10s`.
    pub timeout: Option<RawDuration>,
    /// Files that change are read again. Default: the files that `OTEL_EXPORTER_OTLP_CERTIFICATE`, `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`
    /// and `OTEL_EXPORTER_OTLP_CLIENT_KEY` name.
    #[serde(default)]
    pub tls: RawTls,
    /// How many log records wait in memory for the collector where there is no spool. Default: 8192.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_records: Option<u32>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub enum RawProtocol {
    #[serde(rename = "grpc")]
    Grpc,
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawCompression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTraces {
    /// Default: `true` when there is a collector.
    pub enabled: Option<bool>,
    /// The share of traces that are kept, of those that start here. Default: as `OTEL_TRACES_SAMPLER` and its `_ARG` say, else 1.0.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample_ratio: Option<f64>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawMetrics {
    /// Default: `true` when there is a collector. The Prometheus text on the admin socket is always there.
    pub enabled: Option<bool>,
    /// Between two exports. Default: `OTEL_METRIC_EXPORT_INTERVAL`, else `30s`.
    pub interval: Option<RawDuration>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSpool {
    /// The folder, for this process alone. Made if it is not there.
    pub path: RawPath,
    /// Of all that waits, in MiB. An eighth of it is for audit events only. Default: 256.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_size_mb: Option<u64>,
    /// What becomes of a record for which there is no room. An audit event is never dropped: it is refused, and with `audit.required`
    /// what it is about too. Default: `drop_oldest`.
    pub when_full: Option<RawWhenFull>,
    /// Of what collectors refuse for good and is kept in the folder `dead-letters`, in MiB. 0: nothing is kept. Default: 16.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub dead_letters_mb: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawWhenFull {
    /// The oldest records go.
    DropOldest,
    /// The record is not taken.
    DropNewest,
    /// Sources wait; what cannot wait (a line that a program has printed) is dropped.
    Block,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAudit {
    /// The file of JSON lines. Left out: events go to the log and to the collector only.
    pub path: Option<RawPath>,
    /// Refuse what an event is about when the event cannot be written. Default: `true` when there is a path.
    pub required: Option<bool>,
    /// Default: `interval`.
    pub sync: Option<RawSync>,
    /// When the file is set aside and a new one begun, beside when it is `max_size_mb`; in UTC. Default: `size`, by that alone.
    pub rotation: Option<RawRotation>,
    /// A file of this size is set aside. Default: no bound; with `rotation: size` 100.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_size_mb: Option<u64>,
    /// For how long a file that was set aside is kept. Default: for good.
    pub retention: Option<RawDuration>,
    /// Whether a file that was set aside is compressed with gzip. Default: `false`.
    #[serde(default)]
    pub compress: bool,
    /// After so many records the hash of the last goes to the collector, as the event `audit.anchor`. Default: 1000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub anchor_every: Option<u64>,
    /// Puts keyed digests (HMAC-SHA-256) of the arguments and the result of each MCP request into its event. Left out: none.
    pub digest: Option<RawDigest>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDigest {
    /// The key, at least 16 bytes: `${secret.ITEM.FIELD}`. The event names the version that was used.
    pub key: RawSecretText,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawSync {
    /// `fdatasync` a few times a second.
    Interval,
    /// `fdatasync` for each record.
    Each,
}
