//! `telemetry`, `audit` and the own log, to the telemetry domain's settings.

use super::{Check, seconds};
use crate::config::raw::operation::{RawLogStorage, RawLogStorageKind, RawRotation};
use crate::config::raw::telemetry::{
    RawAudit, RawCompression, RawMetrics, RawOtlp, RawProtocol, RawSync, RawTelemetry, RawTraces,
};
use crate::config::raw::{RawGlobal, RawLogFormat, RawLogLevel, RawMetadata};
use crate::telemetry::settings::{
    AuditSettings, AuditSync, LogFileSettings, LogFormat, LogLevel, LogSettings, MetricSettings, OtlpProtocol,
    OtlpSettings, Rolling, Rotation, TelemetrySettings, TraceSettings,
};

pub fn settings(
    raw: RawTelemetry,
    audit: RawAudit,
    global: &RawGlobal,
    metadata: &RawMetadata,
    logs: Option<RawLogStorage>,
    check: &mut Check<'_>,
) -> TelemetrySettings {
    check.unavailable_if(raw.logs.is_some(), &["telemetry", "logs"]);
    check.unavailable_if(raw.spool.is_some(), &["telemetry", "spool"]);
    let mut resource = raw.resource;
    resource.entry("service.name".to_owned()).or_insert_with(|| "mcpeg".to_owned());
    resource.entry("service.version".to_owned()).or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
    if let Some(name) = &metadata.name {
        resource.entry("service.instance.id".to_owned()).or_insert_with(|| name.clone());
    }
    if let Some(environment) = &metadata.environment {
        resource.entry("deployment.environment.name".to_owned()).or_insert_with(|| environment.clone());
    }
    let otlp = raw.otlp.map(|otlp| otlp_settings(otlp, check));
    TelemetrySettings {
        resource,
        traces: traces(raw.traces, otlp.is_some(), check),
        metrics: metrics(raw.metrics, otlp.is_some(), check),
        otlp,
        log: log(global, logs),
        audit: audit_settings(audit, check),
    }
}

fn otlp_settings(raw: RawOtlp, check: &mut Check<'_>) -> OtlpSettings {
    let path = ["telemetry", "otlp"];
    OtlpSettings {
        endpoint: raw.endpoint.0,
        protocol: match raw.protocol {
            Some(RawProtocol::Grpc) => OtlpProtocol::Grpc,
            Some(RawProtocol::HttpProtobuf) | None => OtlpProtocol::HttpProtobuf,
        },
        headers: check.headers(&["telemetry", "otlp", "headers"], raw.headers),
        gzip: raw.compression == Some(RawCompression::Gzip),
        timeout: raw.timeout.map_or(seconds(10), |timeout| timeout.0),
        ca_file: check.ca_file(&path, raw.tls),
        queue_records: raw.queue_records.unwrap_or(8192) as usize,
    }
}

fn traces(raw: RawTraces, exported: bool, check: &mut Check<'_>) -> Option<TraceSettings> {
    if raw.enabled == Some(true) && !exported {
        needs_otlp("traces", check);
    }
    let enabled = raw.enabled.unwrap_or(exported) && exported;
    enabled.then(|| TraceSettings { sample_ratio: raw.sample_ratio.unwrap_or(1.0) })
}

fn metrics(raw: RawMetrics, exported: bool, check: &mut Check<'_>) -> Option<MetricSettings> {
    if raw.enabled == Some(true) && !exported {
        needs_otlp("metrics", check);
    }
    let interval = raw.interval.map_or(seconds(30), |interval| interval.0);
    if interval < seconds(1) {
        check.problem(&["telemetry", "metrics", "interval"], "expected at least `1s`");
    }
    let enabled = raw.enabled.unwrap_or(exported) && exported;
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
