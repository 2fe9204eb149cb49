//! `on_change` and `validate`.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, Method};

use super::{Check, join, seconds};
use crate::config::raw::hooks::{RawHookAction, RawHookHttp, RawHookMethod, RawHookSystemd, RawOnChange};
use crate::config::raw::scalar::RawDuration;
use crate::config::units::parse_signal;
use crate::render::settings::{
    CommandHook, HttpHook, OnChange, SignalHook, SystemdHook, TemplateSettings, Validation, Whom,
};

pub fn on_change(mut raw: RawOnChange, path: &[&str], check: &mut Check<'_>) -> OnChange {
    let signals = raw.signal.is_some() || raw.pid_file.is_some() || raw.process_name.is_some() || raw.supervised;
    let signal = signal(&mut raw, path, check);
    if !raw.env.is_empty() && raw.command.is_none() {
        check.problem(&join(path, &["env"]), "the environment is the command's, and there is no `command`");
    }
    let is_timed = raw.command.is_some() || raw.http.is_some() || raw.systemd.is_some();
    if raw.timeout.is_some() && !is_timed {
        check.problem(&join(path, &["timeout"]), "a signal takes no time, and there is nothing else");
    }
    if !signals && !is_timed {
        check.problem(path, "`signal`, `command`, `http` or `systemd` is missing");
    }
    let timeout = raw.timeout.map_or(TIMEOUT, |timeout| timeout.0);
    for name in raw.env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
        check.problem(&join(path, &["env", name]), "not a variable's name");
    }
    let env = raw.env.into_iter().map(|(name, text)| (name, text.0)).collect();
    let command = raw.command.map(|argv| {
        program(&argv, &join(path, &["command"]), check);
        CommandHook { argv, env, timeout }
    });
    OnChange {
        signal,
        command,
        http: raw.http.map(|raw| http(raw, timeout, &join(path, &["http"]), check)),
        systemd: raw.systemd.map(|raw| systemd(raw, timeout, &join(path, &["systemd"]), check)),
        settle: settle(raw.settle, &join(path, &["settle"]), check),
        retries: raw.retries.unwrap_or(RETRIES),
    }
}

pub fn validation(
    argv: Option<Vec<String>>,
    timeout: Option<RawDuration>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<Validation> {
    let Some(argv) = argv else {
        if timeout.is_some() {
            check.problem(&join(path, &["timeout"]), "the timeout is that of `validate`, which is missing");
        }
        return None;
    };
    let at = join(path, &["validate"]);
    program(&argv, &at, check);
    if !argv.iter().any(|word| word.contains("{file}") || word.contains("{folder}")) {
        check.problem(&at, "`{file}` or `{folder}` is missing: what to validate");
    }
    Some(Validation { argv, timeout: timeout.map_or(TIMEOUT, |timeout| timeout.0) })
}

/// How long a change waits for others.
pub fn settle(raw: Option<RawDuration>, path: &[&str], check: &mut Check<'_>) -> Duration {
    let Some(RawDuration(settle)) = raw else { return Duration::ZERO };
    if !(Duration::from_millis(250)..=seconds(5)).contains(&settle) {
        check.problem(path, "expected `250ms` to `5s`");
    }
    settle
}

/// Whoever tells the supervised process has to have one.
pub fn supervised(is_there: bool, templates: &[TemplateSettings], check: &mut Check<'_>) {
    let tells = |hook: &Option<OnChange>| {
        let whom = hook.as_ref().and_then(|hook| hook.signal.as_ref()).map(|signal| &signal.whom);
        whom.is_some_and(|whom| *whom == Whom::Supervised)
    };
    let mut groups = std::collections::BTreeSet::new();
    for (index, template) in templates.iter().enumerate().filter(|_| !is_there) {
        let number = index.to_string();
        if tells(&template.on_change) {
            check.problem(&["templates", &number, "on_change", "supervised"], "there is no `process` to signal");
        }
        if let Some(group) = template.group.as_ref().filter(|group| tells(&group.on_change))
            && groups.insert(&group.name)
        {
            let path = ["render", "groups", &group.name, "on_change", "supervised"];
            check.problem(&path, "there is no `process` to signal");
        }
    }
}

fn signal(raw: &mut RawOnChange, path: &[&str], check: &mut Check<'_>) -> Option<SignalHook> {
    // The first of several.
    let mut whom: Option<(&str, Whom)> = None;
    let named = raw.process_name.take();
    if named.as_ref().is_some_and(|name| name.is_empty() || name.contains(['/', '\0'])) {
        check.problem(&join(path, &["process_name"]), "expected the name of a program, without its folder");
    }
    for (key, found) in [
        ("pid_file", raw.pid_file.take().map(|path| Whom::PidFile(path.0))),
        ("process_name", named.map(Whom::Named)),
        ("supervised", raw.supervised.then_some(Whom::Supervised)),
    ] {
        let Some(found) = found else { continue };
        match &whom {
            Some((other, _)) => check.problem(&join(path, &[key]), format!("`{other}` says already whom to signal")),
            None => whom = Some((key, found)),
        }
    }
    match (raw.signal.take(), whom) {
        (Some(name), Some((_, whom))) => parse_signal(&name.0).map(|signal| SignalHook { signal, name: name.0, whom }),
        (Some(_), None) => {
            let message = "`pid_file`, `process_name` or `supervised` is missing: whom to signal";
            check.problem(&join(path, &["signal"]), message);
            None
        }
        (None, Some((key, _))) => {
            check.problem(&join(path, &[key]), "`signal` is missing: what to send");
            None
        }
        (None, None) => None,
    }
}

fn http(raw: RawHookHttp, timeout: Duration, path: &[&str], check: &mut Check<'_>) -> HttpHook {
    let at = join(path, &["url"]);
    if raw.socket.is_some() && raw.url.0.scheme() != "http" {
        check.problem(&at, "over a socket the URL's scheme is `http`");
    }
    let mut headers = Vec::with_capacity(raw.headers.len());
    for (name, text) in raw.headers {
        match HeaderName::try_from(name.as_str()) {
            Ok(header) if FRAMING.contains(&header.as_str()) => {
                check.problem(&join(path, &["headers", &name]), format!("`{name}` is set by mcpeg itself"));
            }
            Ok(header) => headers.push((header, text.0)),
            Err(_) => {
                check.problem(&join(path, &["headers", &name]), format!("`{name}` is not a header's name"));
            }
        }
    }
    let ca_file: Option<PathBuf> = raw.ca_file.map(|file| file.0);
    if let Some(file) = &ca_file {
        check.readable(&join(path, &["ca_file"]), file);
    }
    let method = match raw.method {
        Some(RawHookMethod::Get) => Method::GET,
        Some(RawHookMethod::Put) => Method::PUT,
        Some(RawHookMethod::Patch) => Method::PATCH,
        Some(RawHookMethod::Delete) => Method::DELETE,
        Some(RawHookMethod::Post) | None => Method::POST,
    };
    let socket = raw.socket.map(|socket| socket.0);
    if let Some(socket) = &socket {
        check.socket_path(&join(path, &["socket"]), socket);
    }
    HttpHook { method, url: raw.url.0, socket, headers, body: raw.body, status: raw.status, ca_file, timeout }
}

fn systemd(raw: RawHookSystemd, timeout: Duration, path: &[&str], check: &mut Check<'_>) -> SystemdHook {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if raw.unit.is_empty() || raw.unit.starts_with('-') || !raw.unit.bytes().all(plain) {
        check.problem(&join(path, &["unit"]), "not the name of a unit, such as `nginx.service`");
    }
    let action = match raw.action {
        Some(RawHookAction::Restart) => "restart",
        Some(RawHookAction::ReloadOrRestart) => "reload-or-restart",
        Some(RawHookAction::Reload) | None => "reload",
    };
    SystemdHook { unit: raw.unit, action, timeout }
}

fn program(argv: &[String], path: &[&str], check: &mut Check<'_>) {
    if argv.iter().any(|word| word.contains('\0')) || argv.first().is_none_or(String::is_empty) {
        check.problem(path, "the program's name is empty, or a word holds a zero byte");
    }
}

const TIMEOUT: Duration = seconds(10);
const RETRIES: u32 = 3;
/// Headers that say where a message goes and ends.
const FRAMING: [&str; 6] = ["host", "content-length", "transfer-encoding", "connection", "te", "upgrade"];
