//! `transports`, `services` and the service files, to the MCP domain's settings.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Check, join, seconds};
use crate::child::ResourceLimits;
use crate::config::raw::mcp::{
    RawAggregate, RawAggregateMode, RawHttp, RawHttpTransport, RawLimits, RawOnRotate, RawServiceFile, RawServiceKind,
    RawTransports, RawUnix,
};
use crate::config::raw::scalar::RawPath;
use crate::config::raw::telemetry::RawDigest;
use crate::mcp::settings::{
    AggregateSettings, HttpSettings, HttpTransport, Limits, ListenSettings, ListenTls, LocalSettings, OnRotate,
    ServiceSettings, StdioSettings, UnixSettings, UpstreamSettings,
};
use crate::secret::SecretText;
use crate::services::settings::ServiceSettings as Local;

/// `folder` is the main file's, from which default paths start.
pub fn unix(raw: &mut RawTransports, folder: &Path, check: &mut Check<'_>) -> Option<UnixSettings> {
    let RawUnix { enabled, path, mode, allow_uids, allow_gids } = std::mem::take(&mut raw.unix);
    if !enabled.unwrap_or(true) {
        return None;
    }
    let path = path.map_or_else(|| folder.join("run/mcpeg.sock"), |path| path.0);
    check.socket_path(&["transports", "unix", "path"], &path);
    Some(UnixSettings { path, mode: mode.map_or(0o600, |mode| mode.0), allow_uids, allow_gids })
}

pub fn listen(raw: RawHttp, check: &mut Check<'_>) -> Option<ListenSettings> {
    if !raw.enabled {
        return None;
    }
    let path = ["transports", "http"];
    let address = raw.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if !address.is_loopback() && raw.tls.is_none() {
        let message =
            "an address that is not loopback wants `tls`: the token and all messages would be readable on the way";
        check.problem_with(
            &join(&path, &["address"]),
            message,
            "give `tls`, or a loopback address such as `127.0.0.1`",
        );
    }
    let tls = raw.tls.map(|tls| {
        let tls = ListenTls { cert_file: tls.cert_file.0, key_file: tls.key_file.0 };
        check.readable(&join(&path, &["tls", "cert_file"]), &tls.cert_file);
        check.readable(&join(&path, &["tls", "key_file"]), &tls.key_file);
        check.private(&join(&path, &["tls", "key_file"]), &tls.key_file);
        tls
    });
    for (index, origin) in raw.allowed_origins.iter().enumerate() {
        if !is_origin(origin) {
            let place = index.to_string();
            let message =
                "expected an origin: a scheme, a name and perhaps a port, such as `https://tools.example.com`";
            check.problem(&join(&path, &["allowed_origins", &place]), message);
        }
    }
    let Some(token) = raw.token else {
        check.problem(&path, "`token` is missing: everybody who can reach the address could use the services");
        return None;
    };
    Some(ListenSettings {
        address: SocketAddr::new(address, raw.port.unwrap_or(8080)),
        token: token.0,
        allowed_hosts: raw.allowed_hosts,
        allowed_origins: raw.allowed_origins,
        tls,
    })
}

/// As browsers write it: without a path, without the scheme's own port.
fn is_origin(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

/// `drain` is the whole stop's deadline.
pub fn limits(raw: &RawLimits, drain: Duration) -> Limits {
    Limits {
        max_connections: raw.max_connections.unwrap_or(1024) as usize,
        max_message_bytes: raw.max_message_mb.unwrap_or(16) as usize * 1024 * 1024,
        max_in_flight: raw.max_in_flight.unwrap_or(256) as usize,
        max_sessions: raw.max_sessions.unwrap_or(256) as usize,
        idle_timeout: raw.idle_timeout.as_ref().map_or(seconds(1800), |timeout| timeout.0),
        input_timeout: raw.input_timeout.as_ref().map_or(seconds(600), |timeout| timeout.0),
        replay_bytes: raw.replay_kb.unwrap_or(1024) as usize * 1024,
        drain,
    }
}

pub fn aggregate(raw: RawAggregate, check: &mut Check<'_>) -> AggregateSettings {
    let default = AggregateSettings::default();
    let list_timeout = raw.list_timeout.map_or(default.list_timeout, |timeout| timeout.0);
    if list_timeout.is_zero() {
        check.problem(&["transports", "aggregate", "list_timeout"], "expected more than nothing");
    }
    AggregateSettings {
        search: raw.mode == Some(RawAggregateMode::Search),
        list_timeout,
        page_size: raw.page_size.map_or(default.page_size, |size| size as usize),
    }
}

pub fn digest(raw: Option<RawDigest>, check: &mut Check<'_>) -> Option<SecretText> {
    let key = raw?.key.0;
    if key.references().next().is_none() {
        check.problem(&["audit", "digest", "key"], "expected a secret by its name: `${secret.ITEM.FIELD}`");
    }
    Some(key)
}

/// The name as it becomes a socket's name and a prefix.
pub fn service_name(name: &str, unix: Option<&UnixSettings>, check: &mut Check<'_>) {
    let path = ["services", name];
    if check.name(&path, "service", name) && name.contains("__") {
        check.problem(&path, "a service's name may not contain `__`, which ends it in `service__tool`");
    }
    if let Some(folder) = unix.and_then(|unix| unix.path.parent()) {
        check.socket_path(&path, &folder.join("services").join(format!("{name}.sock")));
    }
}

/// What a service file says: how MCP treats the service, and what it is, where mcpeg serves it itself.
pub struct Service {
    pub mcp: ServiceSettings,
    pub local: Option<Local>,
}

pub fn service(mut raw: RawServiceFile, default_timeout: Duration, check: &mut Check<'_>) -> Option<Service> {
    if raw.kind != RawServiceKind::Database {
        super::database::refuse_keys(&raw, check);
    }
    let timeout = raw.timeout.as_ref().map_or(default_timeout, |timeout| timeout.0);
    if timeout.is_zero() {
        check.problem(&["timeout"], "expected more than nothing");
    }
    if raw.kind != RawServiceKind::Mcp {
        return local(raw, timeout, check);
    }
    super::services::refuse_requests(&raw, check);
    refuse_items(&raw, check);
    let policy = super::policy::settings(&mut raw, check);
    let upstream = match (raw.command.is_some(), raw.url.is_some()) {
        (true, false) => UpstreamSettings::Stdio(stdio(raw, check)),
        (false, true) => UpstreamSettings::Http(http(raw, check)?),
        (true, true) => {
            check.problem(&["url"], "only one of `command` and `url` may be given");
            return None;
        }
        (false, false) => {
            check.problem(&[], "`command` (a stdio upstream) or `url` (a streamable HTTP upstream) is missing");
            return None;
        }
    };
    Some(Service { mcp: ServiceSettings { upstream, timeout, policy }, local: None })
}

/// A service that mcpeg serves itself.
fn local(mut raw: RawServiceFile, timeout: Duration, check: &mut Check<'_>) -> Option<Service> {
    for (key, given) in [
        ("command", raw.command.is_some()),
        ("url", raw.url.is_some()),
        ("socket", raw.socket.is_some()),
        ("http2_only", raw.http2_only),
        ("env", !raw.env.is_empty()),
        ("working_directory", raw.working_directory.is_some()),
        ("user", raw.user.is_some()),
        ("group", raw.group.is_some()),
        ("on_rotate", raw.on_rotate.is_some()),
        ("transport", raw.transport.is_some()),
        ("query", !raw.query.is_empty()),
        ("files", !raw.files.is_empty()),
        ("limits", check.tree.get("limits").is_some()),
    ] {
        if given {
            check.problem(&[key], format!("`{key}` belongs to a service of `type: mcp`"));
        }
    }
    if raw.kind != RawServiceKind::Vault {
        refuse_items(&raw, check);
    }
    let settings = match raw.kind {
        RawServiceKind::Vault => super::services::vault(&mut raw, check),
        RawServiceKind::Database => super::database::settings(&mut raw, timeout, check)?,
        RawServiceKind::Http | RawServiceKind::Mcp => super::services::http(&mut raw, check),
    };
    let policy = super::policy::settings(&mut raw, check);
    let upstream = UpstreamSettings::Local(LocalSettings {
        kind: settings.kind(),
        items: settings.items(),
        content: check.tree.content(),
    });
    Some(Service { mcp: ServiceSettings { upstream, timeout, policy }, local: Some(settings) })
}

fn refuse_items(raw: &RawServiceFile, check: &mut Check<'_>) {
    if raw.items.is_some() {
        check.problem(&["items"], "`items` belongs to a service of `type: vault`");
    }
}

fn stdio(raw: RawServiceFile, check: &mut Check<'_>) -> StdioSettings {
    refuse_foreign(!raw.headers.is_empty(), "headers", "url", check);
    refuse_foreign(check.tree.get("tls").is_some(), "tls", "url", check);
    refuse_foreign(raw.transport.is_some(), "transport", "url", check);
    refuse_foreign(raw.socket.is_some(), "socket", "url", check);
    refuse_foreign(!raw.query.is_empty(), "query", "url", check);
    refuse_foreign(raw.http2_only, "http2_only", "url", check);
    let argv = raw.command.unwrap_or_default();
    if argv.iter().any(|word| word.contains('\0')) || argv.first().is_none_or(String::is_empty) {
        check.problem(&["command"], "the program's name is empty, or a word holds a zero byte");
    }
    let mut env = BTreeMap::new();
    for (name, value) in raw.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            check.problem(&["env", &name], "not a variable's name");
        }
        env.insert(name, value.0);
    }
    let working_directory: Option<PathBuf> = raw.working_directory.map(|path| path.0);
    if let Some(folder) = working_directory.as_ref().filter(|folder| !folder.is_dir()) {
        check.problem(&["working_directory"], format!("{} is not a folder", folder.display()));
    }
    let identity = super::process::identity(raw.user, raw.group, &[], check);
    let on_rotate = match raw.on_rotate {
        Some(RawOnRotate::Ignore) => OnRotate::Ignore,
        Some(RawOnRotate::Restart) => OnRotate::Restart,
        Some(RawOnRotate::Swap) | None => OnRotate::Swap,
    };
    let files = raw.files.into_iter().map(|path| path.0).collect();
    let limits = ResourceLimits {
        memory: raw.limits.memory_mb.map(|mb| u64::from(mb) * 1024 * 1024),
        cpu_seconds: raw.limits.cpu_seconds.map(u64::from),
        open_files: raw.limits.open_files.map(u64::from),
        processes: raw.limits.processes.map(u64::from),
    };
    StdioSettings { argv, env, working_directory, identity, on_rotate, files, limits }
}

fn http(raw: RawServiceFile, check: &mut Check<'_>) -> Option<HttpSettings> {
    refuse_foreign(!raw.env.is_empty(), "env", "command", check);
    refuse_foreign(raw.on_rotate.is_some(), "on_rotate", "command", check);
    refuse_foreign(raw.working_directory.is_some(), "working_directory", "command", check);
    refuse_foreign(!raw.files.is_empty(), "files", "command", check);
    refuse_foreign(check.tree.get("limits").is_some(), "limits", "command", check);
    refuse_foreign(raw.user.is_some(), "user", "command", check);
    refuse_foreign(raw.group.is_some(), "group", "command", check);
    let (tls, server_name) = check.tls(&[], raw.tls);
    let headers = check.headers(&["headers"], raw.headers);
    let transport = match raw.transport {
        Some(RawHttpTransport::Sse) => HttpTransport::Sse,
        Some(RawHttpTransport::Streamable) => HttpTransport::Streamable,
        Some(RawHttpTransport::Auto) | None => HttpTransport::Found,
    };
    let query = raw.query.into_iter().map(|(key, value)| (key, value.0)).collect();
    let url = raw.url?.0;
    let socket = RawPath::given(raw.socket);
    if url.scheme() == "https" && socket.is_some() {
        check.problem(&["socket"], "TLS is not spoken over a Unix socket: the URL has to begin with `http://`");
    }
    Some(HttpSettings { url, socket, transport, http2_only: raw.http2_only, headers, query, tls, server_name })
}

fn refuse_foreign(given: bool, key: &str, belongs_to: &str, check: &mut Check<'_>) {
    if given {
        check.problem(&[key], format!("`{key}` belongs to a service with `{belongs_to}`"));
    }
}

/// `global.timeout` where it is not given.
pub const DEFAULT_TIMEOUT: Duration = seconds(30);
