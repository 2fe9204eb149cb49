//! `telemetry.logs` and `telemetry.receiver`, to the telemetry domain's settings.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use super::{Check, join, seconds};
use crate::config::raw::scalar::RawPath;
use crate::config::raw::sources::{
    RawContent, RawExceptions, RawJournald, RawLanguage, RawLineFormat, RawLogFiles, RawLogs, RawMultiline,
    RawReceiver, RawReceiverAddress, RawSeverity, RawSeverityName, RawStartAt, RawStdin, RawSyslog, RawTime,
};
use crate::process::settings::ProcessSettings;
use crate::secret::SecretText;
use crate::telemetry::settings::{
    Content, DEFAULT_MAX_LINE, FileSet, JournaldSettings, Language, MOST_REQUEST, Multiline, PathPattern, Pattern,
    ReceiverSettings, Rules, SourceSettings, StartAt, SyslogSettings, TimeFormat, Wrapping, check_time_pattern,
};

/// `resource`: attributes of what others have written, as far as the configuration says.
pub fn settings(
    logs: Option<RawLogs>,
    receiver: Option<RawReceiver>,
    resource: BTreeMap<String, String>,
    exported: bool,
    check: &mut Check<'_>,
) -> SourceSettings {
    for (given, name) in [(logs.is_some(), "logs"), (receiver.is_some(), "receiver")] {
        if given && !exported {
            check.problem(&["telemetry", name], "there is nowhere to send it: `telemetry.otlp` is missing");
        }
    }
    let logs = logs.unwrap_or_default();
    let files = logs.files.into_iter().enumerate().map(|(at, raw)| file_set(raw, at, check)).collect();
    SourceSettings {
        files,
        stdin: match logs.stdin {
            Some(RawStdin::Enabled(true)) => Some(Rules::default()),
            Some(RawStdin::Format(format)) => Some(Rules { content: content(format), ..Rules::default() }),
            Some(RawStdin::Enabled(false)) | None => None,
        },
        syslog: logs.syslog.map(|raw| syslog(raw, check)),
        journald: logs.journald.map(journald),
        set_env: receiver.as_ref().is_some_and(|raw| raw.set_env),
        receiver: receiver.map(|raw| self::receiver(raw, check)),
        resource,
    }
}

/// Tells the supervised process where the receiver is.
pub fn tell_process(sources: &SourceSettings, process: Option<&mut ProcessSettings>, check: &mut Check<'_>) {
    let Some(receiver) = sources.receiver.as_ref().filter(|_| sources.set_env) else { return };
    let path = ["telemetry", "receiver", "set_env"];
    let Some(address) = receiver.addresses.first() else {
        check.problem(&path, "the variables need an address: `http` or `grpc` is missing");
        return;
    };
    if let Some(process) = process {
        let mut tell = |name: &str, value: &str| {
            process.env.entry(name.to_owned()).or_insert_with(|| SecretText::literal(value));
        };
        tell("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{address}"));
        tell("OTEL_EXPORTER_OTLP_PROTOCOL", if receiver.is_grpc_first { "grpc" } else { "http/protobuf" });
    }
}

fn file_set(raw: RawLogFiles, at: usize, check: &mut Check<'_>) -> FileSet {
    let number = at.to_string();
    let path = ["telemetry", "logs", "files", number.as_str()];
    let (wrapping, of_format) = match raw.format.unwrap_or(RawLineFormat::Plain) {
        RawLineFormat::Plain => (Wrapping::None, Content::Plain),
        RawLineFormat::Json => (Wrapping::None, Content::Json),
        RawLineFormat::Logfmt => (Wrapping::None, Content::Logfmt),
        RawLineFormat::Cri => (Wrapping::Cri, Content::Plain),
        RawLineFormat::Docker => (Wrapping::Docker, Content::Plain),
    };
    if raw.content.is_some() && wrapping == Wrapping::None {
        check.problem(&join(&path, &["content"]), "`content` belongs to the formats `cri` and `docker`");
    }
    let max_line_bytes = raw.max_line_bytes.map_or(DEFAULT_MAX_LINE, |size| size.0);
    if !(MIN_LINE..=MAX_LINE).contains(&max_line_bytes) {
        check.problem(&join(&path, &["max_line_bytes"]), "expected from `1KiB` to `256KiB`");
    }
    let mut rules = Rules {
        wrapping,
        content: raw.content.map_or(of_format, content),
        max_line_bytes: max_line_bytes.clamp(MIN_LINE, MAX_LINE),
        ..Rules::default()
    };
    rules.body_keys = raw.body_key.map_or(rules.body_keys, |key| vec![key]);
    time(raw.time, &mut rules, &join(&path, &["time"]), check);
    severity(raw.severity, &mut rules, &join(&path, &["severity"]), check);
    let flush_after = raw.multiline.as_ref().and_then(|raw| raw.flush_after.as_ref()).map_or(seconds(1), |wait| wait.0);
    rules.multiline = raw.multiline.and_then(|raw| multiline(raw, &join(&path, &["multiline"]), check));
    let patterns = |paths: Vec<RawPath>| paths.iter().map(|path| PathPattern::new(&path.0)).collect();
    FileSet {
        include: patterns(raw.include),
        exclude: patterns(raw.exclude),
        rules,
        start_at: start_at(raw.start_at, StartAt::Beginning),
        flush_after,
        resource: raw.resource,
        attributes: raw.attributes,
    }
}

fn content(raw: RawContent) -> Content {
    match raw {
        RawContent::Plain => Content::Plain,
        RawContent::Json => Content::Json,
        RawContent::Logfmt => Content::Logfmt,
    }
}

fn start_at(raw: Option<RawStartAt>, default: StartAt) -> StartAt {
    match raw {
        Some(RawStartAt::Beginning) => StartAt::Beginning,
        Some(RawStartAt::End) => StartAt::End,
        None => default,
    }
}

fn time(raw: RawTime, rules: &mut Rules, path: &[&str], check: &mut Check<'_>) {
    if let Some(key) = raw.key {
        rules.time.keys = vec![key];
    }
    if let Some(format) = raw.format {
        if check_time_pattern(&format).is_none() {
            check.problem(&join(path, &["format"]), "a letter after `%` is none of Y y m d e H M S f z b j s");
        }
        rules.time.format = TimeFormat::Pattern(format);
    }
    rules.time.pattern = raw.pattern.and_then(|text| pattern(&text, &join(path, &["pattern"]), check));
}

fn severity(raw: RawSeverity, rules: &mut Rules, path: &[&str], check: &mut Check<'_>) {
    if let Some(key) = raw.key {
        rules.severity.keys = vec![key];
    }
    let number = |name| match name {
        RawSeverityName::Trace => 1,
        RawSeverityName::Debug => 5,
        RawSeverityName::Info => 9,
        RawSeverityName::Warn => 13,
        RawSeverityName::Error => 17,
        RawSeverityName::Fatal => 21,
    };
    rules.severity.names =
        raw.map.into_iter().map(|(name, level)| (name.to_ascii_lowercase(), number(level))).collect();
    rules.severity.pattern = raw.pattern.and_then(|text| pattern(&text, &join(path, &["pattern"]), check));
}

fn multiline(raw: RawMultiline, path: &[&str], check: &mut Check<'_>) -> Option<Multiline> {
    match (raw.start_pattern, raw.exception) {
        (Some(text), None) => pattern(&text, &join(path, &["start_pattern"]), check).map(Multiline::Start),
        (None, Some(RawExceptions::One(one))) => Some(Multiline::Exceptions(languages(&[one]))),
        (None, Some(RawExceptions::Several(several))) => Some(Multiline::Exceptions(languages(&several))),
        _ => {
            check.problem(path, "expected one of `start_pattern` and `exception`");
            None
        }
    }
}

fn languages(raw: &[RawLanguage]) -> Vec<Language> {
    let each = raw.iter().flat_map(|language| match language {
        RawLanguage::All => Language::ALL.to_vec(),
        RawLanguage::Java => vec![Language::Java],
        RawLanguage::Python => vec![Language::Python],
        RawLanguage::Go => vec![Language::Go],
        RawLanguage::Javascript => vec![Language::JavaScript],
        RawLanguage::Dotnet => vec![Language::DotNet],
        RawLanguage::Ruby => vec![Language::Ruby],
        RawLanguage::Php => vec![Language::Php],
        RawLanguage::Rust => vec![Language::Rust],
    });
    each.collect()
}

fn pattern(text: &str, path: &[&str], check: &mut Check<'_>) -> Option<Pattern> {
    match Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(reason) => {
            check.problem(path, format!("not a usable regular expression: {reason}"));
            None
        }
    }
}

fn syslog(raw: RawSyslog, check: &mut Check<'_>) -> SyslogSettings {
    check.socket_path(&["telemetry", "logs", "syslog", "path"], &raw.path.0);
    SyslogSettings { path: raw.path.0, mode: raw.mode.map_or(0o600, |mode| mode.0) }
}

fn journald(raw: RawJournald) -> JournaldSettings {
    let from_beginning = start_at(raw.start_at, StartAt::End) == StartAt::Beginning;
    JournaldSettings { units: raw.units, from_beginning }
}

fn receiver(raw: RawReceiver, check: &mut Check<'_>) -> ReceiverSettings {
    let path = ["telemetry", "receiver"];
    if raw.http.is_none() && raw.grpc.is_none() && raw.unix.is_none() {
        check.problem(&path, "expected one or more of `http`, `grpc` and `unix`");
    }
    let is_grpc_first = raw.http.is_none();
    let mut addresses = Vec::new();
    for (given, key, port) in [(raw.http, "http", 4318), (raw.grpc, "grpc", 4317)] {
        addresses.extend(given.map(|given| address(&given, &join(&path, &[key]), port, check)));
    }
    let max = raw.max_request_size.map_or(MOST_REQUEST, |size| size.0);
    if max > MOST_REQUEST {
        check.problem(&join(&path, &["max_request_size"]), "expected at most `3MiB`");
    }
    if let Some(unix) = &raw.unix {
        check.socket_path(&join(&path, &["unix", "path"]), &unix.path.0);
    }
    ReceiverSettings {
        addresses,
        is_grpc_first,
        unix: raw.unix.map(|unix| (unix.path.0, unix.mode.map_or(0o600, |mode| mode.0))),
        max_request_bytes: max.min(MOST_REQUEST),
        max_connections: raw.max_connections.unwrap_or(64) as usize,
        max_requests: raw.max_requests.unwrap_or(16) as usize,
    }
}

fn address(raw: &RawReceiverAddress, path: &[&str], port: u16, check: &mut Check<'_>) -> SocketAddr {
    let address = raw.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if !address.is_loopback() {
        check.problem(&join(path, &["address"]), "expected a loopback address, such as `127.0.0.1`");
    }
    SocketAddr::new(address, raw.port.unwrap_or(port))
}

/// Reports a source that this system or another setting cannot serve.
pub fn can_be_served(sources: &SourceSettings, search: Option<&str>, stdio: bool, check: &mut Check<'_>) {
    let is_program = |folder: &Path| folder.join("journalctl").is_file();
    if sources.journald.is_some() && !search.is_some_and(|path| std::env::split_paths(path).any(|at| is_program(&at))) {
        check.problem(
            &["telemetry", "logs", "journald"],
            "`journalctl` is not on this system: the journal cannot be read",
        );
    }
    if sources.stdin.is_some() && stdio {
        check.problem(&["telemetry", "logs", "stdin"], "standard input belongs to `transports.stdio`");
    }
}

const MIN_LINE: usize = 1024;
const MAX_LINE: usize = 256 * 1024;
