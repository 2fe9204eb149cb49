//! `templates`, `admin`, `security`, and the sections of later versions.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{Check, groups, hooks, join};
use crate::admin::settings::{AdminHttpSettings, AdminSettings, AdminUnixSettings};
use crate::config::LockMemory;
use crate::config::raw::hooks::RawGroup;
use crate::config::raw::operation::{
    RawAdmin, RawAdminHttp, RawAdminUnix, RawLeakGuard, RawLockMemory, RawRuntimeKind, RawSecurity,
    RawStorage, RawTemplate,
};
use crate::render::settings::{FileSettings, TemplateSettings};

pub fn templates(
    raw: Vec<RawTemplate>,
    groups: BTreeMap<String, RawGroup>,
    check: &mut Check<'_>,
) -> Vec<TemplateSettings> {
    let names: Vec<Option<String>> = raw.iter().map(|raw| raw.group.clone()).collect();
    let mut seen: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut settings = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let number = index.to_string();
        let path = ["templates", number.as_str()];
        let (source, destination) = (raw.source.0, raw.destination.0);
        check.readable(&join(&path, &["source"]), &source);
        if source == destination {
            check.problem(&join(&path, &["destination"]), "the destination is the template itself");
        }
        if let Some(first) = seen.insert(destination.clone(), index) {
            let message = format!("template {} already writes this file", first + 1);
            check.problem(&join(&path, &["destination"]), message);
        }
        let on_change = raw.on_change.map(|raw| hooks::on_change(raw, &join(&path, &["on_change"]), check));
        let file = FileSettings { destination, mode: raw.mode.map_or(0o600, |mode| mode.0) };
        let validate = hooks::validation(raw.validate, raw.timeout, &path, check);
        settings.push(TemplateSettings { source, file, on_change, validate, group: None });
    }
    groups::assign(&mut settings, &names, groups, check);
    settings
}

pub fn admin(raw: RawAdmin, folder: &Path, check: &mut Check<'_>) -> AdminSettings {
    AdminSettings { unix: admin_unix(raw.unix, folder, check), http: admin_http(raw.http, check) }
}

fn admin_unix(raw: RawAdminUnix, folder: &Path, check: &mut Check<'_>) -> Option<AdminUnixSettings> {
    if !raw.enabled.unwrap_or(true) {
        return None;
    }
    let path = raw.path.map_or_else(|| folder.join("run/admin.sock"), |path| path.0);
    check.socket_path(&["admin", "unix", "path"], &path);
    Some(AdminUnixSettings { path, mode: raw.mode.map_or(0o600, |mode| mode.0) })
}

fn admin_http(raw: RawAdminHttp, check: &mut Check<'_>) -> Option<AdminHttpSettings> {
    if !raw.enabled {
        return None;
    }
    let path = ["admin", "http"];
    let address = raw.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if !address.is_loopback() {
        check.problem(&join(&path, &["address"]), "expected a loopback address, such as `127.0.0.1`");
    }
    let Some(token) = raw.token else {
        check.problem(&path, "`token` is missing: every local user can reach a loopback address");
        return None;
    };
    Some(AdminHttpSettings { address: SocketAddr::new(address, raw.port.unwrap_or(9464)), token: token.0 })
}

pub fn security(raw: &RawSecurity, check: &mut Check<'_>) -> LockMemory {
    let guarded = !matches!(raw.leak_guard, None | Some(RawLeakGuard::Off));
    check.unavailable_if(guarded, &["security", "leak_guard"]);
    check.unavailable_if(raw.sandbox, &["security", "sandbox"]);
    match raw.lock_memory {
        Some(RawLockMemory::Require(_)) => LockMemory::Require,
        Some(RawLockMemory::Warn(false)) => LockMemory::Ignore,
        Some(RawLockMemory::Warn(true)) | None => LockMemory::Warn,
    }
}

/// In this version nothing is stored: memory that is not kept is the one kind there is.
pub fn storage(raw: &RawStorage, check: &mut Check<'_>) {
    if let Some(runtime) = &raw.runtime {
        check.unavailable_if(runtime.kind != RawRuntimeKind::Memory, &["storage", "runtime", "type"]);
        check.unavailable_if(runtime.persistence, &["storage", "runtime", "persistence"]);
        check.unavailable_if(runtime.path.is_some(), &["storage", "runtime", "path"]);
        check.unavailable_if(runtime.url.is_some(), &["storage", "runtime", "url"]);
        check.unavailable_if(runtime.snapshot_interval.is_some(), &["storage", "runtime", "snapshot_interval"]);
    }
    check.unavailable_if(raw.cache.is_some(), &["storage", "cache"]);
    check.unavailable_if(raw.logs.is_some(), &["storage", "logs"]);
}
