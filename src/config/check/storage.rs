//! `storage`: each kind takes its own keys and refuses those of another.

use std::path::Path;
use std::time::Duration;

use url::{Host, Url};

use super::{Check, join};
use crate::config::raw::scalar::{RawPath, RawSecretText};
use crate::config::raw::secrets::RawTls;
use crate::config::raw::storage::{
    RawBackup, RawCache, RawCacheKind, RawPoints, RawRuntime, RawRuntimeKind, RawStorage,
};
use crate::sealed::Recipient;
use crate::secret::SecretText;
use crate::storage::settings::{
    BackupSettings, CacheKind, CacheSettings, MetricsSettings, RuntimeKind, RuntimeSettings, ServerSettings,
    StorageSettings,
};
use crate::tls::Files;

/// `folder` is where the configuration lies. `logs` is left for telemetry.
pub fn storage(
    raw: &mut RawStorage,
    pid_file: Option<RawPath>,
    folder: &Path,
    check: &mut Check<'_>,
) -> StorageSettings {
    let metrics = points(raw.metrics.take(), raw.runtime.is_some(), check);
    let backup = raw.backup.take().and_then(|raw| backup(raw, check));
    let runtime = raw.runtime.take().and_then(|raw| runtime(raw, folder, check));
    let cache = raw.cache.take().and_then(|raw| cache(raw, folder, check));
    let settings = StorageSettings {
        runtime: runtime.unwrap_or_default(),
        cache: cache.unwrap_or_default(),
        metrics,
        backup,
        pid_file: RawPath::given(pid_file),
    };
    if let (RuntimeKind::Sqlite { path: one }, CacheKind::Sqlite { path: other, .. }) =
        (&settings.runtime.kind, &settings.cache.kind)
        && one == other
    {
        check.problem(&["storage", "cache", "path"], "`storage.runtime` has this file already");
    }
    settings
}

pub fn runtime(raw: RawRuntime, folder: &Path, check: &mut Check<'_>) -> Option<RuntimeSettings> {
    let place = ["storage", "runtime"];
    let is_file = matches!(raw.kind, RawRuntimeKind::Memory | RawRuntimeKind::Sqlite);
    let path = raw.path.map(|path| path.0);
    foreign(path.is_some() && !is_file, &place, "path", check);
    if raw.persistence.is_some() && raw.kind != RawRuntimeKind::Memory {
        check.problem(&join(&place, &["persistence"]), "it belongs to `type: memory`: the other kinds always last");
    }
    let server =
        Server { url: raw.url, username: raw.username, password: raw.password, tls: raw.tls, namespace: raw.namespace };
    let kind = match raw.kind {
        RawRuntimeKind::Memory | RawRuntimeKind::Sqlite => {
            server.refuse(&place, check);
            let path = |name: &str| path.unwrap_or_else(|| folder.join("data/runtime").join(name));
            if raw.kind == RawRuntimeKind::Sqlite {
                RuntimeKind::Sqlite { path: path("mcpeg.db") }
            } else {
                RuntimeKind::Memory { file: (raw.persistence == Some(true)).then(|| path("mcpeg.snapshot")) }
            }
        }
        RawRuntimeKind::Redis => RuntimeKind::Redis(server.checked(&REDIS, &place, check)?),
        RawRuntimeKind::Postgres => RuntimeKind::Postgres(server.checked(&POSTGRES, &place, check)?),
    };
    let default = RuntimeSettings::default();
    let snapshot_interval = raw.snapshot_interval.map_or(default.snapshot_interval, |interval| interval.0);
    if snapshot_interval < Duration::from_secs(1) {
        check.problem(&join(&place, &["snapshot_interval"]), "expected one second at least");
    }
    Some(RuntimeSettings { kind, snapshot_interval })
}

fn backup(raw: RawBackup, check: &mut Check<'_>) -> Option<BackupSettings> {
    let mut recipients = Vec::new();
    for (index, text) in raw.recipients.iter().enumerate() {
        match text.parse::<Recipient>() {
            Ok(recipient) => recipients.push(recipient),
            Err(error) => {
                check.problem(&["storage", "backup", "recipients", &index.to_string()], error.to_string());
            }
        }
    }
    let keep = raw.keep.unwrap_or(7) as usize;
    Some(BackupSettings { every: raw.every.0, keep, folder: raw.path.0, recipients })
}

/// They are kept where something says what is to be kept.
fn points(raw: Option<RawPoints>, has_runtime: bool, check: &mut Check<'_>) -> Option<MetricsSettings> {
    let place = ["storage", "metrics"];
    if !has_runtime && raw.is_none() {
        return None;
    }
    let raw = raw.unwrap_or_default();
    let interval = raw.interval.map_or(Duration::from_secs(15), |interval| interval.0);
    let retention = raw.retention.map_or(Duration::from_secs(3 * 3600), |retention| retention.0);
    if interval < Duration::from_secs(1) {
        check.problem(&join(&place, &["interval"]), "expected one second at least");
    }
    if retention < interval || retention.as_secs() / interval.as_secs().max(1) > MOST_POINTS {
        let words = format!("expected 1 to {MOST_POINTS} times the `interval`");
        check.problem(&join(&place, &["retention"]), words);
    }
    raw.enabled.unwrap_or(true).then_some(MetricsSettings { interval, retention })
}

fn cache(raw: RawCache, folder: &Path, check: &mut Check<'_>) -> Option<CacheSettings> {
    let place = ["storage", "cache"];
    foreign(raw.path.is_some() && raw.kind != RawCacheKind::Sqlite, &place, "path", check);
    foreign(raw.key.is_some() && raw.kind == RawCacheKind::Memory, &place, "key", check);
    let server =
        Server { url: raw.url, username: raw.username, password: raw.password, tls: raw.tls, namespace: raw.namespace };
    let kind = match raw.kind {
        RawCacheKind::Memory => {
            server.refuse(&place, check);
            CacheKind::Memory
        }
        RawCacheKind::Sqlite => {
            server.refuse(&place, check);
            let path = raw.path.map_or_else(|| folder.join("data/cache/mcpeg.db"), |path| path.0);
            CacheKind::Sqlite { path, key: sealing_key(raw.key, &place, check)? }
        }
        RawCacheKind::Redis => {
            let server = server.checked(&REDIS, &place, check);
            let key = sealing_key(raw.key, &place, check);
            CacheKind::Redis { server: server?, key: key? }
        }
    };
    let default = CacheSettings::default();
    Some(CacheSettings {
        kind,
        max_bytes: raw.max_size_mb.map_or(default.max_bytes, |size| u64::from(size) << 20),
        ttl: raw.ttl.map_or(default.ttl, |ttl| ttl.0),
    })
}

fn sealing_key(key: Option<RawSecretText>, place: &[&str], check: &mut Check<'_>) -> Option<SecretText> {
    if key.is_none() {
        check.problem_with(
            place,
            "`key` is missing: answers that leave the process have to be sealed",
            "a secret of 16 bytes or more, such as `key: ${secret.cache.key}`",
        );
    }
    key.map(|key| key.0)
}

/// A key that another kind has.
fn foreign(given: bool, place: &[&str], key: &str, check: &mut Check<'_>) {
    if given {
        check.problem(&join(place, &[key]), format!("`{key}` does not belong to this type"));
    }
}

/// What is written of a server.
struct Server {
    url: Option<String>,
    username: Option<String>,
    password: Option<RawSecretText>,
    tls: RawTls,
    namespace: Option<String>,
}

/// What a kind of server is asked by.
struct Protocol {
    kind: &'static str,
    plain: &'static [&'static str],
    encrypted: &'static [&'static str],
    port: u16,
    database: &'static str,
    example: &'static str,
}

const REDIS: Protocol = Protocol {
    kind: "Redis",
    plain: &["redis", "valkey"],
    encrypted: &["rediss", "valkeys"],
    port: 6379,
    database: "0",
    example: "redis://127.0.0.1:6379/0",
};
const POSTGRES: Protocol = Protocol {
    kind: "PostgreSQL",
    plain: &["postgres", "postgresql"],
    encrypted: &[],
    port: 5432,
    database: "postgres",
    example: "postgres://127.0.0.1:5432/mcpeg",
};

impl Server {
    fn refuse(&self, place: &[&str], check: &mut Check<'_>) {
        foreign(self.url.is_some(), place, "url", check);
        foreign(self.username.is_some(), place, "username", check);
        foreign(self.password.is_some(), place, "password", check);
        foreign(self.namespace.is_some(), place, "namespace", check);
        let tls = &self.tls;
        let given = tls.ca_file.is_some() || tls.cert_file.is_some() || tls.key_file.is_some();
        foreign(given || tls.server_name.is_some(), place, "tls", check);
    }

    fn checked(self, protocol: &Protocol, place: &[&str], check: &mut Check<'_>) -> Option<ServerSettings> {
        let at = join(place, &["url"]);
        let Some(text) = self.url else {
            check.problem(place, format!("`url` is missing, such as `{}`", protocol.example));
            return None;
        };
        let known = |url: &Url| [protocol.plain, protocol.encrypted].concat().contains(&url.scheme());
        let Some(url) = Url::parse(&text).ok().filter(|url| known(url) && url.host_str().is_some()) else {
            check.problem(&at, format!("expected an address such as `{}`", protocol.example));
            return None;
        };
        if !url.username().is_empty() || url.password().is_some() {
            check.problem(
                &at,
                "user and password do not stand in the address: `username` and `password` are their keys",
            );
            return None;
        }
        let options: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let plain_asked = options.iter().any(|(key, value)| key == "sslmode" && value == "disable");
        let unknown = options.iter().find(|(key, value)| {
            key != "sslmode"
                || !["disable", "require"].contains(&value.as_str())
                || protocol.encrypted != POSTGRES.encrypted
        });
        if unknown.is_some() {
            check.problem(&at, "after `?` only PostgreSQL takes something: `sslmode=disable` or `sslmode=require`");
        }
        // A host was found above; that of another scheme than `http` may still be an address in brackets.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let encrypted = match protocol.encrypted {
            [] => !plain_asked && (options.iter().any(|(_, value)| value == "require") || !is_loopback(&host)),
            schemes => schemes.contains(&url.scheme()),
        };
        let database = url.path().trim_start_matches('/');
        let database = if database.is_empty() { protocol.database } else { database }.to_owned();
        if protocol.kind == REDIS.kind && database.parse::<u16>().is_err() {
            check.problem(&at, "a database of Redis is a number");
        }
        let namespace = self.namespace.unwrap_or_else(|| "mcpeg".to_owned());
        check.name(&join(place, &["namespace"]), "namespace", &namespace);
        Some(ServerSettings {
            kind: protocol.kind,
            host,
            port: url.port().unwrap_or(protocol.port),
            database,
            username: self.username,
            password: self.password.map(|password| password.0),
            encrypted,
            tls: tls(self.tls, encrypted, place, check),
            namespace,
        })
    }
}

fn tls(raw: RawTls, encrypted: bool, place: &[&str], check: &mut Check<'_>) -> Files {
    let files = check.tls_files(place, raw);
    if !encrypted && !files.is_empty() {
        check.problem(&join(place, &["tls"]), "this address is asked without TLS");
    }
    files
}

/// Of one series.
const MOST_POINTS: u64 = 20_000;

fn is_loopback(host: &str) -> bool {
    match Host::parse(host) {
        Ok(Host::Domain(name)) => name == "localhost",
        Ok(Host::Ipv4(address)) => address.is_loopback(),
        Ok(Host::Ipv6(address)) => address.is_loopback(),
        Err(_) => host.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.is_loopback()),
    }
}
