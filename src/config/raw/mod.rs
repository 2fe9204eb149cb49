//! The written shape of the configuration: serde types that never leave `config/`.
//!
//! They are the one source of the JSON Schema, of the reference in docs/CONFIGURATION.md and of the shape check. A doc comment here is
//! what a user reads there. Sections that later versions serve are parsed, and refused by name, so some fields are not read yet.

#![allow(dead_code)]

pub mod hooks;
pub mod mcp;
pub mod operation;
pub mod policy;
pub mod render;
pub mod scalar;
pub mod secrets;
pub mod source;
pub mod sources;
pub mod storage;
pub mod telemetry;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use scalar::{RawDuration, RawPath};

/// `mcpeg.yaml`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// The version of this format: `"1.0"`.
    pub version: RawVersion,
    #[serde(default)]
    pub metadata: RawMetadata,
    #[serde(default)]
    pub global: RawGlobal,
    /// How agents reach the MCP services.
    #[serde(default)]
    pub transports: mcp::RawTransports,
    #[serde(default)]
    pub secrets: secrets::RawSecrets,
    /// The MCP servers behind mcpeg, by name.
    #[serde(default)]
    pub services: BTreeMap<String, mcp::RawService>,
    /// Files that are rendered from secrets.
    #[serde(default)]
    pub templates: Vec<operation::RawTemplate>,
    /// What holds for all rendered files.
    #[serde(default)]
    pub render: render::RawRender,
    /// A program that mcpeg supervises.
    pub process: Option<operation::RawProcess>,
    #[serde(default)]
    pub telemetry: telemetry::RawTelemetry,
    #[serde(default)]
    pub audit: telemetry::RawAudit,
    #[serde(default)]
    pub storage: storage::RawStorage,
    #[serde(default)]
    pub admin: operation::RawAdmin,
    #[serde(default)]
    pub security: operation::RawSecurity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum RawVersion {
    #[serde(rename = "1.0")]
    V1,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawMetadata {
    /// The instance's name: `service.instance.id` in telemetry. Default: `mcpeg`.
    pub name: Option<String>,
    /// Chooses the overlay `mcpeg-<environment>.yaml` and becomes `deployment.environment.name`.
    pub environment: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawGlobal {
    /// How long an MCP request may take where its service says nothing else. Default: `30s`.
    pub timeout: Option<RawDuration>,
    /// How much memory may be allocated. From three quarters on caches give theirs back; at the limit new MCP sessions are refused, and those that
    /// there are go on. Default: no limit.
    #[schemars(range(min = 16))]
    pub memory_limit_mb: Option<u64>,
    /// A file that holds the number of the process while it runs.
    pub pid_file: Option<RawPath>,
    /// Of the own log on standard error. Default: `info`.
    pub log_level: Option<RawLogLevel>,
    /// Of the own log on standard error. Default: `text`.
    pub log_format: Option<RawLogFormat>,
    /// How long a stop waits for what is under way. Default: `10s`.
    pub shutdown_timeout: Option<RawDuration>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawLogFormat {
    Text,
    Json,
}
