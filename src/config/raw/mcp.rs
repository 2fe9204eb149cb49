//! The written shape of `transports`, `services` and of a service file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::policy::{RawBreaker, RawPeerRules, RawResource, RawRules, RawTool};
use super::scalar::{RawAccount, RawDuration, RawMode, RawPath, RawSecretText, RawUrl};
use super::secrets::RawTls;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTransports {
    #[serde(default)]
    pub unix: RawUnix,
    #[serde(default)]
    pub stdio: RawStdio,
    #[serde(default)]
    pub http: RawHttp,
    #[serde(default)]
    pub aggregate: RawAggregate,
    #[serde(default)]
    pub limits: RawLimits,
}

/// All services as one: on the socket of all, at `/mcp`, on standard input and output.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAggregate {
    /// What `tools/list` gives. Default: `all`.
    pub mode: Option<RawAggregateMode>,
    /// A service that takes longer to give its tools, prompts or resources is left out of the list, and named in it; it is asked again. Default: `5s`.
    pub list_timeout: Option<RawDuration>,
    /// Items of one page of a merged list. Clients that know no pages see the first alone. Default: 1000.
    #[schemars(range(min = 1, max = 100000))]
    pub page_size: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawAggregateMode {
    /// The tools of all services.
    All,
    /// Two tools, `find_tools` and `call_tool`, for catalogues that would fill a model's context.
    Search,
}

/// The Unix sockets: one for all services, and beside it `services/NAME.sock` for each.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawUnix {
    /// Default: `true`.
    pub enabled: Option<bool>,
    /// Default: `run/mcpeg.sock`.
    pub path: Option<RawPath>,
    /// Permission bits of the sockets. Default: `"0600"`.
    pub mode: Option<RawMode>,
    /// Users that may connect besides mcpeg's own.
    #[serde(default)]
    pub allow_uids: Vec<u32>,
    /// Groups whose members may connect, by the primary group of the program that does.
    #[serde(default)]
    pub allow_gids: Vec<u32>,
}

/// mcpeg as a server that an MCP client spawns: all services on its own standard input and output. It ends when the input does.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawStdio {
    /// Default: `false`.
    #[serde(default)]
    pub enabled: bool,
}

/// Streamable HTTP: all services at `/mcp`, one at `/mcp/NAME`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawHttp {
    /// Default: `false`.
    #[serde(default)]
    pub enabled: bool,
    /// One that is not loopback wants `tls`. Default: `127.0.0.1`.
    pub address: Option<std::net::IpAddr>,
    /// Default: 8080.
    pub port: Option<u16>,
    /// What a request must bring as `Authorization: Bearer`; read anew for each. Required.
    pub token: Option<RawSecretText>,
    /// Names that `Host` may have besides `localhost` and loopback addresses.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// Origins, such as `https://tools.example.com`, whose pages may ask, besides those on this machine.
    #[serde(default)]
    pub allowed_origins: Vec<String>,
    /// Left out: no TLS.
    pub tls: Option<RawServerTls>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServerTls {
    /// PEM: the certificate, then those between it and its authority.
    pub cert_file: RawPath,
    /// PEM, not encrypted: PKCS#8, PKCS#1 or SEC1.
    pub key_file: RawPath,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    /// Connections at one time, over all sockets. Default: 1024.
    #[schemars(range(min = 1, max = 65536))]
    pub max_connections: Option<u32>,
    /// Of one message. Default: 16.
    #[schemars(range(min = 1, max = 1024))]
    pub max_message_mb: Option<u32>,
    /// Unanswered requests of one client. Default: 256.
    #[schemars(range(min = 1, max = 65536))]
    pub max_in_flight: Option<u32>,
    /// Sessions of HTTP clients at one time; a new one takes the place of the one that has been idle longest. Default: 256.
    #[schemars(range(min = 1, max = 65536))]
    pub max_sessions: Option<u32>,
    /// A session of an HTTP client of which nothing is asked for so long, and that has no stream open, ends. Default: `30m`.
    pub idle_timeout: Option<RawDuration>,
    /// How long a client may take to answer what a service asks of it while it works on a request: sampling, elicitation, roots. Default: `10m`.
    pub input_timeout: Option<RawDuration>,
    /// What one HTTP session keeps of its streams for clients that come back with `Last-Event-ID`. Default: 1024.
    #[schemars(range(min = 0, max = 65536))]
    pub replay_kb: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawService {
    /// Default: `true`.
    pub enabled: Option<bool>,
    /// The service file.
    pub config_file: RawPath,
}

/// A service file: what the upstream is and how it is treated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawServiceFile {
    #[serde(rename = "type")]
    pub kind: RawServiceKind,
    /// A stdio upstream: program and arguments; no shell.
    #[schemars(length(min = 1))]
    pub command: Option<Vec<String>>,
    /// A streamable HTTP upstream: the MCP endpoint.
    pub url: Option<RawUrl>,
    /// How messages travel. Default: `auto`.
    pub transport: Option<RawHttpTransport>,
    /// A Unix socket on which the upstream listens, connected to in place of the URL's host; the URL (`http://localhost/mcp`) gives path and
    /// `Host`.
    pub socket: Option<RawPath>,
    /// HTTP/2 at once, also without TLS. Left out: with TLS as the server chooses, else HTTP/1.1. Default: `false`.
    #[serde(default)]
    pub http2_only: bool,
    /// Variables of the child, in addition to `PATH`, `HOME` and the like.
    #[serde(default)]
    pub env: BTreeMap<String, RawSecretText>,
    /// The child's working directory. Default: mcpeg's own.
    pub working_directory: Option<RawPath>,
    /// The user that the child runs as, by name or number. Default: mcpeg's own. Needs CAP_SETUID, CAP_SETGID and CAP_KILL.
    pub user: Option<RawAccount>,
    /// The child's only group, by name or number. Default: the user's.
    pub group: Option<RawAccount>,
    /// Headers of each request to the upstream; of `type: http`, of each tool's request.
    #[serde(default)]
    pub headers: BTreeMap<String, RawSecretText>,
    /// Parameters that are put on the URL of each request to the upstream, for a server that takes its credential there.
    #[serde(default)]
    pub query: BTreeMap<String, RawSecretText>,
    #[serde(default)]
    pub tls: RawTls,
    /// What happens to a running child when a secret in its environment changes. Default: `swap`.
    pub on_rotate: Option<RawOnRotate>,
    /// Files that the child reads when it starts, such as rendered ones: when one of them changes, the child is treated as `on_rotate` says.
    #[serde(default)]
    pub files: Vec<RawPath>,
    /// What the child, and each of what it starts, may use. Left out: as mcpeg itself.
    #[serde(default)]
    pub limits: RawResourceLimits,
    /// From a request's arrival to its answer. Default: `global.timeout`.
    pub timeout: Option<RawDuration>,
    /// Left out: failures are not counted.
    pub circuit_breaker: Option<RawBreaker>,
    /// What may be used, where not everything may.
    pub allow: Option<RawRules>,
    /// What may not be used, whatever `allow` says.
    pub deny: Option<RawRules>,
    /// Rules for single users besides; the first entry that names a peer holds for it.
    pub peers: Option<Vec<RawPeerRules>>,
    /// What would be refused passes, and is put on record as `would_deny`. Default: `false`.
    pub dry_run: Option<bool>,
    /// Arguments of calls are checked against the `inputSchema` of their tools, once a list has shown it. Default: `false`.
    pub validate_arguments: Option<bool>,
    /// Whether answers are kept as long as a server of the modern era allows by `ttlMs`. Default: `true`.
    pub server_ttl: Option<bool>,
    /// What holds for single tools.
    pub tools: Option<Vec<RawTool>>,
    /// What holds for single resources.
    pub resources: Option<Vec<RawResource>>,
    /// Of `type: vault`: the items of `secrets.items` that are shown. Default: all.
    pub items: Option<Vec<String>>,
    /// Of `type: database`, required there: what kind of database it is.
    pub driver: Option<RawDriver>,
    /// Of `type: database`, required there: where the database is, and as whom it is asked.
    pub connection: Option<RawConnection>,
    /// Of `type: database`: how many connections there are, and how long.
    pub pool: Option<RawPool>,
    /// Of `type: database`: `false` lets statements change the database, as far as its user may. Default: `true`.
    pub read_only: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawHttpTransport {
    /// Streamable HTTP, or HTTP+SSE if the server refuses that with 400, 404 or 405.
    Auto,
    /// Streamable HTTP (2025-03-26 and later).
    Streamable,
    /// HTTP+SSE (2024-11-05): `url` is the address of the stream.
    Sse,
}

/// As setrlimit(2) has them. What is above the limit of mcpeg itself stays at that.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawResourceLimits {
    /// Memory that it writes to (RLIMIT_DATA); what it only reserves does not count.
    #[schemars(range(min = 1))]
    pub memory_mb: Option<u32>,
    /// Processor time, all in all; then it is ended, and started again when it is needed.
    #[schemars(range(min = 1))]
    pub cpu_seconds: Option<u32>,
    #[schemars(range(min = 8))]
    pub open_files: Option<u32>,
    /// Processes and threads of the child's user, others of that user included: of use with a `user` of its own.
    #[schemars(range(min = 1))]
    pub processes: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawServiceKind {
    /// An MCP server that is proxied.
    Mcp,
    /// A database, asked in SQL.
    Database,
    /// An HTTP interface: each of `tools` is a request to it.
    Http,
    /// What mcpeg knows of its secrets: names, versions and leases, never a value.
    Vault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnRotate {
    /// A new child gets ready beside the running one, takes over between two messages, and the one before answers what it was asked and ends.
    Swap,
    /// New requests wait, those under way are answered, then a new child takes over the session: for a program of which there may be only one.
    Restart,
    /// The next child gets the new value.
    Ignore,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawDriver {
    /// MySQL and MariaDB.
    Mysql,
    Postgres,
    Sqlite,
}

/// Where a database is. Files of TLS stand under `tls` of the service file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawConnection {
    /// Default: `localhost`.
    pub host: Option<String>,
    /// Default: 3306 of MySQL, 5432 of PostgreSQL.
    pub port: Option<u16>,
    /// In place of `host`, a Unix socket: of MySQL its path, of PostgreSQL the folder in which it lies.
    pub socket: Option<RawPath>,
    /// Required, but of SQLite.
    pub database: Option<String>,
    /// As whom mcpeg logs in. Read for each new connection.
    pub username: Option<RawSecretText>,
    /// Read for each new connection. Left out: none.
    pub password: Option<RawSecretText>,
    /// Of SQLite, required there: the file.
    pub path: Option<RawPath>,
    /// For a new connection to be made. Default: `10s`.
    pub timeout: Option<RawDuration>,
    /// Default: `verify` where the service file has `tls`, else `disable`.
    pub tls: Option<RawDatabaseTls>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawDatabaseTls {
    /// Nothing is encrypted.
    Disable,
    /// Encrypted, whoever the server is.
    Require,
    /// Encrypted, and the server has to prove its name.
    Verify,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPool {
    /// Connections at one time, in use or not. Default: 10.
    #[schemars(range(min = 1, max = 1000))]
    pub max_connections: Option<u32>,
    /// Connections that are kept open while nothing is asked. Default: 2.
    #[schemars(range(min = 0, max = 1000))]
    pub idle_connections: Option<u32>,
    /// An older connection is closed once nobody uses it. Default: `1h`.
    pub connection_lifetime: Option<RawDuration>,
    /// How long a call waits for a connection when all are in use. Default: `5s`.
    pub wait_timeout: Option<RawDuration>,
}
