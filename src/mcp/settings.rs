//! What the MCP domain is told by the configuration, checked.

pub mod pattern;
pub mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use self::policy::PolicySettings;
use crate::child::{Identity, ResourceLimits};
use crate::secret::SecretText;
use crate::tls::Files;

#[derive(Debug, Clone, PartialEq)]
pub struct McpSettings {
    /// `None`: no Unix sockets at all.
    pub unix: Option<UnixSettings>,
    /// `None`: no streamable HTTP over TCP.
    pub http: Option<ListenSettings>,
    /// The process's own standard input and output are a client of all services.
    pub stdio: bool,
    pub services: BTreeMap<String, ServiceSettings>,
    pub limits: Limits,
    pub aggregate: AggregateSettings,
    pub leak_guard: LeakAction,
    /// The key of digests of arguments and results in audit events. `None`: there are none.
    pub digest: Option<SecretText>,
}

/// How all services are served as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateSettings {
    /// Two tools, one that finds and one that calls, in place of all.
    pub search: bool,
    /// A service that takes longer is left out of a merged list.
    pub list_timeout: Duration,
    /// Items of one page of a merged list.
    pub page_size: usize,
}

impl Default for AggregateSettings {
    fn default() -> Self {
        Self { search: false, list_timeout: Duration::from_secs(5), page_size: 1000 }
    }
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
    /// Primary groups that may connect as well.
    pub allow_gids: Vec<u32>,
}

/// Streamable HTTP over TCP.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenSettings {
    pub address: SocketAddr,
    /// What a request must bring.
    pub token: SecretText,
    /// Names in `Host` besides those of this machine; with or without a port.
    pub allowed_hosts: Vec<String>,
    /// Besides origins on this machine.
    pub allowed_origins: Vec<String>,
    pub tls: Option<ListenTls>,
}

/// The server's certificate, and those between it and its authority, and its key; PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub max_connections: usize,
    /// Of one message in either direction.
    pub max_message_bytes: usize,
    /// Requests of one client that are not answered yet.
    pub max_in_flight: usize,
    /// Sessions of HTTP clients at one time.
    pub max_sessions: usize,
    /// An HTTP client's session that nothing is asked of for so long ends.
    pub idle_timeout: Duration,
    /// How long a client may take to answer what a service asks of it (sampling, elicitation, roots).
    pub input_timeout: Duration,
    /// What one HTTP session keeps of its streams, to send again.
    pub replay_bytes: usize,
    /// How long a shutdown waits for answers that are under way.
    pub drain: Duration,
}

#[cfg(test)]
impl Limits {
    /// Small ones, for the tests of this domain.
    pub fn small() -> Self {
        Self {
            max_connections: 1,
            max_message_bytes: 1 << 20,
            max_in_flight: 3,
            max_sessions: 4,
            idle_timeout: Duration::from_secs(60),
            input_timeout: Duration::from_secs(60),
            replay_bytes: 4096,
            drain: Duration::from_secs(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSettings {
    pub upstream: UpstreamSettings,
    /// From a request's arrival to its answer.
    pub timeout: Duration,
    pub policy: PolicySettings,
}

#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamSettings {
    Stdio(StdioSettings),
    Http(HttpSettings),
    Local(LocalSettings),
}

/// A service that mcpeg serves itself: what it is, another domain knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalSettings {
    /// The service file's `type`.
    pub kind: &'static str,
    /// The items of secrets whose change concerns the service.
    pub items: BTreeSet<String>,
    /// Another one for another content of the service file, so that what was answered before is not taken for an answer of now.
    pub content: u64,
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
    /// Files that the child reads when it starts: a change of one is as one of a secret.
    pub files: Vec<PathBuf>,
    pub limits: ResourceLimits,
}

/// What happens to a running child when a secret in its environment changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRotate {
    /// A new child gets ready beside the running one and takes over between two messages.
    Swap,
    /// New requests wait, those under way are answered, then a new child takes over the session.
    Restart,
    /// The next child gets the new value.
    Ignore,
}

/// How messages travel over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpTransport {
    /// As the server is found to want it: streamable HTTP, else the older one.
    Found,
    Streamable,
    /// The older one, of 2024-11-05.
    Sse,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpSettings {
    /// `http` or `https`: the MCP endpoint.
    pub url: Url,
    /// A Unix socket that is connected to in place of the URL's host.
    pub socket: Option<PathBuf>,
    pub transport: HttpTransport,
    /// HTTP/2 without asking, also where there is no TLS; else as the server chooses.
    pub http2_only: bool,
    /// Read at each request.
    pub headers: Vec<(HeaderName, SecretText)>,
    /// Put on the URL at each request.
    pub query: Vec<(String, SecretText)>,
    pub tls: Files,
    /// The name that the server has to prove, and that it is asked for, where it is not the URL's.
    pub server_name: Option<String>,
}
