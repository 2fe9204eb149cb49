//! `templates`, `admin` and `security`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::{Check, files, groups, hooks, join};
use crate::admin::settings::{AdminHttpSettings, AdminSettings, AdminUnixSettings};
use crate::config::LockMemory;
use crate::config::raw::operation::{
    RawAdmin, RawAdminHttp, RawAdminUnix, RawLeakGuard, RawLockMemory, RawPattern, RawRedaction, RawSecurity,
    RawTemplate,
};
use crate::config::raw::render::RawRender;
use crate::guard::patterns::Custom;
use crate::guard::{self, GuardError};
use crate::mcp::settings::LeakAction;
use crate::render::settings::{MAX_SIZE, TemplateSettings};

pub fn templates(raw: Vec<RawTemplate>, render: RawRender, check: &mut Check<'_>) -> Vec<TemplateSettings> {
    let allowed = files::allowed_folders(&render);
    let names: Vec<Option<String>> = raw.iter().map(|raw| raw.group.clone()).collect();
    let mut settings = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let number = index.to_string();
        let path = ["templates", number.as_str()];
        let file = files::file(&raw, &allowed, &path, check);
        let source = raw.source.0;
        check.readable(&join(&path, &["source"]), &source);
        if source == file.destination {
            check.problem(&join(&path, &["destination"]), "the destination is the template itself");
        }
        let on_change = raw.on_change.map(|raw| hooks::on_change(raw, &join(&path, &["on_change"]), check));
        settings.push(TemplateSettings {
            source,
            max_size: raw.max_size.map_or(MAX_SIZE, |size| size.0),
            file,
            on_change,
            validate: hooks::validation(raw.validate, raw.timeout, &path, check),
            group: None,
        });
    }
    files::differ(&settings.iter().map(|settings| &settings.file).collect::<Vec<_>>(), check);
    groups::assign(&mut settings, &names, render.groups, check);
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
    check.unavailable_if(raw.sandbox, &["security", "sandbox"]);
    match raw.lock_memory {
        Some(RawLockMemory::Require(_)) => LockMemory::Require,
        Some(RawLockMemory::Warn(false)) => LockMemory::Ignore,
        Some(RawLockMemory::Warn(true)) | None => LockMemory::Warn,
    }
}

pub fn leak_guard(raw: &RawSecurity) -> LeakAction {
    match raw.leak_guard {
        Some(RawLeakGuard::Off) => LeakAction::Off,
        Some(RawLeakGuard::Redact) | None => LeakAction::Redact,
        Some(RawLeakGuard::Block) => LeakAction::Block,
        Some(RawLeakGuard::Report) => LeakAction::Report,
    }
}

pub fn redaction(raw: RawRedaction, check: &mut Check<'_>) -> guard::Settings {
    let path = ["security", "redaction", "patterns"];
    if raw.patterns.len() > MOST_PATTERNS {
        check.problem(&path, format!("expected at most {MOST_PATTERNS} patterns"));
    }
    let mut custom: Vec<Custom> = Vec::new();
    for (index, RawPattern { name, regex }) in raw.patterns.into_iter().enumerate() {
        let number = index.to_string();
        let at = |key| join(&path, &[number.as_str(), key]);
        check.name(&at("name"), "pattern", &name);
        if custom.iter().any(|before| before.name == name) {
            check.problem(&at("name"), "another pattern has this name");
        }
        let pattern = Custom { name, regex };
        if let Err(GuardError::Pattern { reason, .. }) = guard::patterns::compile(&pattern) {
            // The last line says what is wrong; those before quote the expression.
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            check.problem(&at("regex"), format!("not a usable regular expression: {reason}"));
        }
        custom.push(pattern);
    }
    guard::Settings { builtin: raw.builtin.unwrap_or(true), custom }
}

const MOST_PATTERNS: usize = 64;
