//! `telemetry`, `audit` and the own log, to the telemetry domain's settings.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use super::otel::{Otel, SIGNALS};
use super::{Check, join, seconds, sources};
use crate::config::raw::operation::{RawLogStorage, RawLogStorageKind, RawRotation};
use crate::config::raw::telemetry::{
    RawAudit, RawCompression, RawMetrics, RawOtlp, RawProtocol, RawSpool, RawSync, RawTelemetry, RawTraces, RawWhenFull,
};
use crate::config::raw::{RawGlobal, RawLogFormat, RawLogLevel, RawMetadata};
use crate::secret::SecretText;
use crate::telemetry::settings::{
    AuditSettings, AuditSync, Compression, DestinationSettings, LogFileSettings, LogFormat, LogLevel, LogSettings,
    MetricSettings, OtlpProtocol, OtlpSettings, Rolling, Rotation, SpoolBounds, SpoolSettings, TelemetrySettings,
    TraceSettings, WhenFull,
};

use crate::tls::Files;

pub fn settings(
    raw: RawTelemetry,
    audit: RawAudit,
    global: &RawGlobal,
    metadata: &RawMetadata,
    logs: Option<RawLogStorage>,
    otel: &Otel<'_>,
    check: &mut Check<'_>,
) -> TelemetrySettings {
    let mut of_others = raw.resource.clone();
    for key in ["service.name", "deployment.environment.name"] {
        let value = otel.resource(key).or_else(|| match key {
            "service.name" => metadata.name.clone(),
            _ => metadata.environment.clone(),
        });
        if let Some(value) = value {
            of_others.entry(key.to_owned()).or_insert(value);
        }
    }
    let mut resource = raw.resource;
    let mut or_else = |key: &str, value: Option<String>| {
        if let Some(value) = otel.resource(key).or(value) {
            resource.entry(key.to_owned()).or_insert(value);
        }
    };
    or_else("service.name", Some("mcpeg".to_owned()));
    or_else("service.version", Some(env!("CARGO_PKG_VERSION").to_owned()));
    or_else("service.instance.id", metadata.name.clone());
    or_else("deployment.environment.name", metadata.environment.clone());
    let destinations = destinations(raw.otlp, raw.destinations, otel, check);
    let exported = !destinations.is_empty();
    if raw.spool.is_some() && !exported {
        check.problem(&["telemetry", "spool"], "nobody would take what is in it: `telemetry.otlp` is missing");
    }
    let sources = sources::settings(raw.logs, raw.receiver, of_others, exported, check);
    TelemetrySettings {
        resource,
        sources,
        traces: traces(raw.traces, exported, otel, check),
        metrics: metrics(raw.metrics, exported, otel, check),
        destinations,
        spool: raw.spool.map(spool),
        log: log(global, logs),
        audit: audit_settings(audit, check),
    }
}

/// `telemetry.otlp` is one of them, or what variables say in its place.
fn destinations(
    otlp: Option<RawOtlp>,
    named: BTreeMap<String, RawOtlp>,
    otel: &Otel<'_>,
    check: &mut Check<'_>,
) -> BTreeMap<String, DestinationSettings> {
    let nothing = Otel { variable: &|_| None };
    let mut destinations = BTreeMap::new();
    for (name, raw) in named {
        let path = ["telemetry", "destinations", &name];
        if name == OTLP {
            check.problem(&path, "a destination cannot be called `otlp`: that is the one of `telemetry.otlp`");
        }
        if check.name(&path, "destination", &name)
            && let Some(settings) = destination(raw, &path, &nothing, check)
        {
            destinations.insert(name, settings);
        }
    }
    let otlp = otlp.or_else(|| otel.names_an_endpoint().then(RawOtlp::default));
    if let Some(settings) = otlp.and_then(|raw| destination(raw, &["telemetry", OTLP], otel, check)) {
        destinations.insert(OTLP.to_owned(), settings);
    }
    if destinations.len() > MOST_DESTINATIONS {
        check
            .problem(&["telemetry", "destinations"], format!("at most {MOST_DESTINATIONS} destinations can be served"));
    }
    destinations
}

fn spool(raw: RawSpool) -> SpoolSettings {
    SpoolSettings {
        path: raw.path.0,
        bounds: SpoolBounds {
            max_bytes: raw.max_size_mb.unwrap_or(256) << 20,
            when_full: match raw.when_full {
                Some(RawWhenFull::DropNewest) => WhenFull::DropNewest,
                Some(RawWhenFull::Block) => WhenFull::Block,
                Some(RawWhenFull::DropOldest) | None => WhenFull::DropOldest,
            },
        },
        dead_letter_bytes: raw.dead_letters_mb.unwrap_or(16) << 20,
    }
}

/// `None`: nothing says where it is, which is reported.
fn destination(raw: RawOtlp, path: &[&str], otel: &Otel<'_>, check: &mut Check<'_>) -> Option<DestinationSettings> {
    if raw.endpoint.is_none() && !otel.names_an_endpoint() {
        check.problem(path, "the key `endpoint` is missing");
        return None;
    }
    let written = Written {
        headers: check.headers(&join(path, &["headers"]), raw.headers),
        endpoint: raw.endpoint.map(|endpoint| endpoint.0),
        protocol: raw.protocol.map(|protocol| match protocol {
            RawProtocol::Grpc => OtlpProtocol::Grpc,
            RawProtocol::HttpProtobuf => OtlpProtocol::HttpProtobuf,
        }),
        compression: raw.compression.map(|compression| match compression {
            RawCompression::None => Compression::None,
            RawCompression::Gzip => Compression::Gzip,
            RawCompression::Zstd => Compression::Zstd,
        }),
        timeout: raw.timeout.map(|timeout| timeout.0),
        queue_records: raw.queue_records.unwrap_or(8192) as usize,
    };
    let tls_of = |signal: &str, check: &mut Check<'_>| {
        let mut tls = raw.tls.clone();
        otel.tls(signal, &mut tls);
        check.tls(path, tls)
    };
    // Looked at once, so that a mistake is reported once.
    let common = tls_of("", check);
    let [logs, traces, metrics] = SIGNALS.map(|signal| {
        let (files, server_name) = if otel.has_own_tls(signal) { tls_of(signal, check) } else { common.clone() };
        written.settings(signal, files, server_name, otel, check)
    });
    Some(DestinationSettings { logs: logs?, traces: traces?, metrics: metrics? })
}

/// What stands in the configuration of a destination.
struct Written {
    endpoint: Option<Url>,
    protocol: Option<OtlpProtocol>,
    headers: Vec<(HeaderName, SecretText)>,
    compression: Option<Compression>,
    timeout: Option<Duration>,
    queue_records: usize,
}

impl Written {
    fn settings(
        &self,
        signal: &str,
        tls: Files,
        server_name: Option<String>,
        otel: &Otel<'_>,
        check: &mut Check<'_>,
    ) -> Option<OtlpSettings> {
        let protocol = self.protocol.or_else(|| otel.protocol(signal, check)).unwrap_or(OtlpProtocol::HttpProtobuf);
        let endpoint = self.endpoint.clone().map(|endpoint| (endpoint, false));
        let (endpoint, endpoint_is_whole) =
            endpoint.or_else(|| otel.endpoint(signal, protocol, check)).or_else(|| default_endpoint(protocol))?;
        let mut headers = self.headers.clone();
        otel.headers(signal, &mut headers, check);
        Some(OtlpSettings {
            endpoint,
            endpoint_is_whole,
            protocol,
            headers,
            compression: self.compression.or_else(|| otel.compression(signal, check)).unwrap_or(Compression::None),
            timeout: self.timeout.or_else(|| otel.timeout(signal, check)).unwrap_or(seconds(10)),
            tls,
            server_name,
            queue_records: self.queue_records,
        })
    }
}

/// Of a signal for which no variable says where it goes, while one of another signal does.
fn default_endpoint(protocol: OtlpProtocol) -> Option<(Url, bool)> {
    let address = match protocol {
        OtlpProtocol::Grpc => "http://localhost:4317",
        OtlpProtocol::HttpProtobuf => "http://localhost:4318",
    };
    Some((Url::parse(address).ok()?, false))
}

fn traces(raw: RawTraces, exported: bool, otel: &Otel<'_>, check: &mut Check<'_>) -> Option<TraceSettings> {
    if raw.enabled == Some(true) && !exported {
        needs_otlp("traces", check);
    }
    let enabled = raw.enabled.unwrap_or_else(|| otel.is_exported("TRACES")) && exported;
    let sample_ratio = raw.sample_ratio.or_else(|| otel.sample_ratio(check)).unwrap_or(1.0);
    enabled.then_some(TraceSettings { sample_ratio })
}

fn metrics(raw: RawMetrics, exported: bool, otel: &Otel<'_>, check: &mut Check<'_>) -> Option<MetricSettings> {
    if raw.enabled == Some(true) && !exported {
        needs_otlp("metrics", check);
    }
    let interval = raw.interval.map(|interval| interval.0).or_else(|| otel.metric_interval(check));
    let interval = interval.unwrap_or(seconds(30));
    if interval < seconds(1) {
        check.problem(&["telemetry", "metrics", "interval"], "expected at least `1s`");
    }
    let enabled = raw.enabled.unwrap_or_else(|| otel.is_exported("METRICS")) && exported;
    enabled.then_some(MetricSettings { interval })
}

fn needs_otlp(what: &str, check: &mut Check<'_>) {
    check.problem(&["telemetry", what, "enabled"], "there is nowhere to send them: `telemetry.otlp` is missing");
}

fn log(global: &RawGlobal, logs: Option<RawLogStorage>) -> LogSettings {
    LogSettings {
        file: logs.map(log_file),
        level: match global.log_level {
            Some(RawLogLevel::Error) => LogLevel::Error,
            Some(RawLogLevel::Warn) => LogLevel::Warn,
            Some(RawLogLevel::Info) | None => LogLevel::Info,
            Some(RawLogLevel::Debug) => LogLevel::Debug,
            Some(RawLogLevel::Trace) => LogLevel::Trace,
        },
        format: match global.log_format {
            Some(RawLogFormat::Json) => LogFormat::Json,
            Some(RawLogFormat::Text) | None => LogFormat::Text,
        },
    }
}

fn log_file(raw: RawLogStorage) -> LogFileSettings {
    let RawLogStorageKind::File = raw.kind;
    LogFileSettings {
        path: raw.path.0.join("mcpeg.log"),
        rolling: Rolling {
            rotation: rotation(raw.rotation.unwrap_or(RawRotation::Daily)),
            max_bytes: Some(raw.max_size_mb.unwrap_or(100) * MIB),
            retention: Some(raw.retention.map_or(seconds(30 * 86_400), |retention| retention.0)),
            compress: raw.compress.unwrap_or(true),
        },
    }
}

fn rotation(raw: RawRotation) -> Rotation {
    match raw {
        RawRotation::Daily => Rotation::Daily,
        RawRotation::Hourly => Rotation::Hourly,
        RawRotation::Size => Rotation::Size,
    }
}

fn audit_settings(raw: RawAudit, check: &mut Check<'_>) -> AuditSettings {
    let path = raw.path.map(|path| path.0);
    if raw.required == Some(true) && path.is_none() {
        check.problem(&["audit", "required"], "there is no file to write to: `audit.path` is missing");
    }
    AuditSettings {
        required: raw.required.unwrap_or(path.is_some()),
        path,
        rolling: Rolling {
            rotation: raw.rotation.map_or(Rotation::Size, rotation),
            max_bytes: raw
                .max_size_mb
                .or(matches!(raw.rotation, Some(RawRotation::Size)).then_some(100))
                .map(|size| size * MIB),
            retention: raw.retention.map(|retention| retention.0),
            compress: raw.compress,
        },
        anchor_every: raw.anchor_every.unwrap_or(1000),
        sync: match raw.sync {
            Some(RawSync::Each) => AuditSync::Each,
            Some(RawSync::Interval) | None => AuditSync::Interval,
        },
    }
}

const MIB: u64 = 1024 * 1024;
/// The destination that `telemetry.otlp` describes.
const OTLP: &str = "otlp";
/// Each has connections and tasks of its own.
const MOST_DESTINATIONS: usize = 8;
