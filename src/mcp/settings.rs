//! What the MCP domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use crate::child::Identity;
use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq)]
pub struct McpSettings {
    /// `None`: no Unix sockets at all.
    pub unix: Option<UnixSettings>,
    pub services: BTreeMap<String, ServiceSettings>,
    pub limits: Limits,
    pub leak_guard: LeakAction,
}

/// What happens to a live secret in what goes to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeakAction {
    /// Nobody looks.
    Off,
    /// Its value is replaced.
    Redact,
    /// The message is withheld.
    Block,
    /// It is put on record, and goes on.
    Report,
}

#[derive(Debug, Clone, PartialEq)]
pub struct UnixSettings {
    /// The aggregate's socket. A service's own is `services/NAME.sock` in the same folder.
    pub path: PathBuf,
    pub mode: u32,
    /// Besides the process's own uid, which is always allowed.
    pub allow_uids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub max_connections: usize,
    /// Of one message in either direction.
    pub max_message_bytes: usize,
    /// Requests of one client that are not answered yet.
    pub max_in_flight: usize,
    /// How long a shutdown waits for answers that are under way.
    pub drain: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSettings {
    pub upstream: UpstreamSettings,
    /// From a request's arrival to its answer.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamSettings {
    Stdio(StdioSettings),
    Http(HttpSettings),
}

#[derive(Debug, Clone, PartialEq)]
pub struct StdioSettings {
    /// Program and arguments; no shell.
    pub argv: Vec<String>,
    /// Added to the few variables that a child gets (`PATH`, `HOME`, `LANG`, `TZ`, `TMPDIR`, `USER`, ...).
    pub env: BTreeMap<String, SecretText>,
    pub working_directory: Option<PathBuf>,
    /// `None`: as the user that mcpeg runs as.
    pub identity: Option<Identity>,
    pub on_rotate: OnRotate,
}

/// What happens to a running child when a secret in its environment changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRotate {
    /// New requests wait, those under way are answered, then a new child takes over the session.
    Restart,
    /// The next child gets the new value.
    Ignore,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// `http` or `https`: the MCP endpoint.
    pub url: Url,
    /// Read at each request.
    pub headers: Vec<(HeaderName, SecretText)>,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<PathBuf>,
}
