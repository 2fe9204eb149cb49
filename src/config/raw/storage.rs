//! The written shape of `storage`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::operation::RawLogStorage;
use super::scalar::{RawDuration, RawPath, RawSecretText};
use super::secrets::RawTls;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawStorage {
    /// What is known of services: breaker states, health, when secrets end.
    pub runtime: Option<RawRuntime>,
    pub cache: Option<RawCache>,
    /// Points of metrics of the last hours, kept where `runtime` is: what `mcpeg metrics query` shows. Kept when there is a `runtime` or this section.
    pub metrics: Option<RawPoints>,
    /// Backups of `runtime` that are written while mcpeg runs.
    pub backup: Option<RawBackup>,
    /// A file of the own log, beside standard error.
    pub logs: Option<RawLogStorage>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRuntime {
    /// `memory`, `sqlite`, `redis` (also Valkey) or `postgres`; the last two are shared by all processes of one `namespace`.
    #[serde(rename = "type")]
    pub kind: RawRuntimeKind,
    /// The file of `sqlite`, or of the snapshots of `memory`. Default: `data/runtime/mcpeg.db`, `data/runtime/mcpeg.snapshot`.
    pub path: Option<RawPath>,
    /// `redis://HOST:PORT/NUMBER`, `rediss://` with TLS; `postgres://HOST:PORT/DATABASE`, with TLS unless it is a loopback address or ends in
    /// `?sslmode=disable`. User and password are keys of their own.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<RawSecretText>,
    #[serde(default)]
    pub tls: RawTls,
    /// What all keys on a server begin with: processes of one namespace share them. Default: `mcpeg`.
    pub namespace: Option<String>,
    /// Whether `memory` is kept in a file, by snapshots and at the end; the other kinds always last. Default: `false`.
    pub persistence: Option<bool>,
    /// Between two snapshots. Default: `5m`.
    pub snapshot_interval: Option<RawDuration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawRuntimeKind {
    Memory,
    Sqlite,
    Redis,
    Postgres,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawBackup {
    pub every: RawDuration,
    /// How many of the newest stay. Default: 7.
    #[schemars(range(min = 1, max = 10000))]
    pub keep: Option<u32>,
    /// The folder that they are written into.
    pub path: RawPath,
    /// Who can open them: public keys of age. Without any they are not sealed.
    #[serde(default)]
    pub recipients: Vec<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPoints {
    /// Default: `true`.
    pub enabled: Option<bool>,
    /// Between two points. Default: `15s`.
    pub interval: Option<RawDuration>,
    /// Older points are removed. Default: `3h`.
    pub retention: Option<RawDuration>,
}

/// Answers of MCP services that are kept for a while. Which ones: `cache_ttl` in a service file, and what servers of the modern era say.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawCache {
    /// `memory`, `sqlite` or `redis` (also Valkey); the last two seal what they keep and need a `key`.
    #[serde(rename = "type")]
    pub kind: RawCacheKind,
    /// The file of `sqlite`. Default: `data/cache/mcpeg.db`.
    pub path: Option<RawPath>,
    /// `redis://HOST:PORT/NUMBER`, `rediss://` with TLS. User and password are keys of their own.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password: Option<RawSecretText>,
    #[serde(default)]
    pub tls: RawTls,
    /// What all keys on a server begin with: processes of one namespace and key share answers. Default: `mcpeg`.
    pub namespace: Option<String>,
    /// What answers are sealed with where they leave the process: a secret of 16 bytes or more, such as `${secret.cache.key}`.
    pub key: Option<RawSecretText>,
    /// What was used longest ago goes first when it is full; of `sqlite` what ends first; of `redis` the server decides (`maxmemory`). Default: 64.
    #[schemars(range(min = 1, max = 65536))]
    pub max_size_mb: Option<u32>,
    /// Nothing is kept longer, whatever its own time says. Default: `1d`.
    pub ttl: Option<RawDuration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawCacheKind {
    Memory,
    Sqlite,
    Redis,
}
