//! Telemetry: the own log, audit, metrics, traces, and their export by OpenTelemetry.
//!
//! Owns the tracing subscriber, the SDK's providers, the audit file, the spool and everything that travels to the collector. Knows nothing of what
//! the other domains do: they record through `ports::AuditLog`, measure through the `Meter`, and make spans with `tracing`.
//!
//! A failing collector or disk is a condition here, never an error of somebody's request, except with `audit.required`.

pub mod audit;
mod civil;
mod error;
mod inflow;
mod intake;
mod lines;
mod log;
mod log_file;
mod metrics;
mod otlp;
mod points;
mod process;
mod prometheus;
mod reader;
mod receiver;
mod redact;
pub mod rolling;
mod series;
pub mod settings;
mod sources;
pub mod spool;
mod tail;
mod tallies;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::json;

use crate::lifecycle::Part;
use crate::ports::{
    AuditEvent, AuditLog, AuditReader, AuditRefused, AuditTail, Condition, LogLine, LogSink, MetricPoint,
    MetricsSource, MetricsText, Redactor, SecretReader, StatusReport,
};

use audit::{AuditTrail, Recorded, StagedAudit};
pub use error::TelemetryError;
use inflow::Inflow;
use intake::Intake;
use log::LogControl;
use metrics::ExportTimes;
use otlp::{DeadLetters, Exports, Plans, Ratio, SecretSlot, SignalPlans, SpanFan};
use reader::SharedReader;
use settings::{DestinationSettings, SourceSettings, SpoolSettings, TelemetrySettings};
use spool::Spool;
use tallies::Tallies;

/// Opens the audit file and makes the providers. Installs nothing global, connects to nothing. Everything that is logged, recorded or
/// traced goes through `redactor` first. `named` is how many things of one kind the configuration names; metrics have room for them.
pub fn build(
    settings: TelemetrySettings,
    redactor: Arc<dyn Redactor>,
    named: usize,
) -> Result<(TelemetryHandle, Vec<Part>), TelemetryError> {
    let started = Instant::now();
    let tallies = Arc::new(Tallies::default());
    let secrets = Arc::new(SecretSlot::default());
    let resource = resource(&settings);
    let plans = plans(&settings, &secrets)?;
    let audit = Arc::new(AuditTrail::open(settings.audit.clone(), tallies.clone())?);
    let interval = settings.metrics.as_ref().map(|metrics| metrics.interval);
    let spool = open_spool(&settings, &tallies)?;
    let exports = otlp::Parts {
        spool: spool.clone(),
        spans: SpanFan::new(redactor.clone()),
        resource: resource.clone(),
        run: run_id(),
        tallies: tallies.clone(),
        dead_letters: settings.spool.as_ref().map(dead_letters),
    };
    let exports = Arc::new(Exports::new(exports, plans, interval));

    let reader = SharedReader::new();
    let meters = SdkMeterProvider::builder()
        .with_resource(resource.clone())
        .with_reader(reader.clone())
        .with_view(series::view(named))
        .build();
    let meter = meters.meter(METER);
    metrics::observe_tallies(&meter, &tallies);
    let queues = exports.clone();
    metrics::observe_queues(&meter, spool.clone(), move || queues.waiting());
    metrics::observe_redacted(&meter, redactor.clone());
    metrics::observe_process(&meter, started);

    let ratio = Ratio::new(sample_ratio(&settings));
    let tracers = otlp::provider(&exports.spans, resource, &ratio);
    let log = LogControl::new(&settings.log, traces_are_on(&settings), redactor.clone())?;
    let mut parts = vec![
        otlp::part(exports.clone(), reader.clone(), ExportTimes::new(&meter)),
        audit::keeper::part(audit.clone()),
        log.part(),
    ];
    let intake: Arc<dyn Intake> = Arc::new(spool.clone());
    let (inflow, more) = inflow::build(&settings.sources, &intake, &redactor, run_number())?;
    inflow.observe(&meter);
    parts.extend(more);
    if spool.is_durable() {
        parts.push(spool::keeper::part(spool));
    }
    let shared = Shared {
        log,
        audit,
        exports,
        reader,
        meters,
        tracers,
        ratio,
        secrets,
        redactor,
        inflow,
        settings: Mutex::new(settings),
    };
    Ok((TelemetryHandle(Arc::new(shared)), parts))
}

/// What the rest of the process holds of telemetry.
#[derive(Clone)]
pub struct TelemetryHandle(Arc<Shared>);

struct Shared {
    log: Arc<LogControl>,
    audit: Arc<AuditTrail>,
    exports: Arc<Exports>,
    reader: SharedReader,
    meters: SdkMeterProvider,
    tracers: SdkTracerProvider,
    ratio: Ratio,
    secrets: Arc<SecretSlot>,
    redactor: Arc<dyn Redactor>,
    inflow: Inflow,
    settings: Mutex<TelemetrySettings>,
}

/// Changed settings with everything opened that they need; dropped, nothing has changed.
#[must_use = "nothing changes until it is committed"]
pub struct Staged {
    shared: Arc<Shared>,
    settings: TelemetrySettings,
    /// `None`: the ways to the collectors stay as they are.
    plans: Option<Plans>,
    audit: StagedAudit,
    log_file: Option<log_file::Open>,
}

impl TelemetryHandle {
    /// The one meter of the process.
    pub fn meter(&self) -> Meter {
        self.0.meters.meter(METER)
    }

    /// Makes the own log the process's tracing subscriber. Once in a process.
    pub fn install_logging(&self) -> Result<(), TelemetryError> {
        self.0.log.install(self.0.tracers.tracer(METER))
    }

    /// Says where the secrets are that OTLP headers refer to. Until then exports that need them wait.
    pub fn attach_secrets(&self, secrets: Arc<dyn SecretReader>) {
        self.0.secrets.attach(secrets);
    }

    /// Prepares other settings. Everything can change while the process runs, except `telemetry.resource`, where the spool is, and the sources
    /// other than files.
    pub fn stage(&self, settings: TelemetrySettings) -> Result<Staged, TelemetryError> {
        let (same_resource, same_spool, same_destinations, same_sources) = {
            let current = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
            let place = |spool: &Option<SpoolSettings>| spool.as_ref().map(|spool| spool.path.clone());
            let same_spool = place(&current.spool) == place(&settings.spool);
            (
                current.resource == settings.resource,
                same_spool,
                current.destinations == settings.destinations,
                SourceSettings { files: settings.sources.files.clone(), ..current.sources.clone() } == settings.sources,
            )
        };
        if !same_resource {
            return Err(TelemetryError::NeedsRestart { what: "telemetry.resource" });
        }
        if !same_sources {
            return Err(TelemetryError::NeedsRestart {
                what: "telemetry.receiver, and of telemetry.logs all but its files,",
            });
        }
        if !same_spool {
            return Err(TelemetryError::NeedsRestart { what: "telemetry.spool.path" });
        }
        let plans = if same_destinations { None } else { Some(plans(&settings, &self.0.secrets)?) };
        let audit = self.0.audit.stage(settings.audit.clone())?;
        let log_file = LogControl::open(&settings.log)?;
        Ok(Staged { shared: self.0.clone(), settings, plans, audit, log_file })
    }
}

impl Staged {
    /// Puts the settings in force. Cannot fail.
    pub fn commit(self) {
        let Self { shared, settings, plans, audit, log_file } = self;
        shared.audit.commit(audit);
        shared.ratio.set(sample_ratio(&settings));
        shared.inflow.follow(settings.sources.files.clone());
        shared.log.change(&settings.log, traces_are_on(&settings), log_file);
        let interval = settings.metrics.as_ref().map(|metrics| metrics.interval);
        if let Some(spool) = &settings.spool {
            shared.exports.spool.set_bounds(spool.bounds);
            shared.exports.set_dead_letters(spool.dead_letter_bytes);
        }
        match plans {
            Some(plans) => shared.exports.change(plans, interval),
            None => shared.exports.change_interval(interval),
        }
        *shared.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }
}

impl AuditLog for TelemetryHandle {
    fn record(&self, mut event: AuditEvent) -> Result<(), AuditRefused> {
        redact::event(&*self.0.redactor, &mut event);
        self.0.room_for_audit()?;
        let Recorded { seq, anchor } = self.0.audit.record(&event)?;
        let mut taken = self.0.exports.audit(&event, seq);
        if let Some(anchor) = anchor {
            taken = taken.and(self.0.exports.audit(&audit::anchor_event(anchor), anchor.seq));
        }
        match taken {
            Err(error) if self.0.audit.is_required() => Err(AuditRefused { reason: error.to_string() }),
            _ => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), AuditRefused> {
        self.0.room_for_audit()?;
        self.0.audit.ready()
    }
}

impl AuditReader for TelemetryHandle {
    fn tail(&self, most: usize) -> Result<AuditTail, String> {
        self.0.audit.tail(most).map_err(|cause| format!("the audit file cannot be read: {cause}"))
    }
}

impl Shared {
    /// A required event has to find room in the spool too, where there is one.
    fn room_for_audit(&self) -> Result<(), AuditRefused> {
        if self.exports.spool.is_durable() && self.audit.is_required() && !self.exports.takes_audit() {
            return Err(AuditRefused { reason: FULL.to_owned() });
        }
        Ok(())
    }
}

impl LogSink for TelemetryHandle {
    fn ship(&self, line: &LogLine<'_>) {
        self.0.exports.line(line);
    }
}

impl MetricsText for TelemetryHandle {
    fn prometheus(&self) -> String {
        match self.0.reader.now() {
            Ok(metrics) => prometheus::render(&metrics),
            Err(error) => {
                tracing::error!(%error, "metrics could not be collected");
                String::new()
            }
        }
    }
}

impl MetricsSource for TelemetryHandle {
    fn points(&self) -> Vec<MetricPoint> {
        match self.0.reader.now() {
            Ok(metrics) => points::points(&metrics),
            Err(error) => {
                tracing::error!(%error, "metrics could not be collected");
                Vec::new()
            }
        }
    }
}

impl StatusReport for TelemetryHandle {
    fn section(&self) -> &'static str {
        "telemetry"
    }

    fn conditions(&self) -> Vec<Condition> {
        let sources = self.0.inflow.condition();
        self.0.exports.conditions().into_iter().chain([self.0.audit.condition()]).chain(sources).collect()
    }

    fn detail(&self) -> serde_json::Value {
        let traces = traces_are_on(&self.0.settings.lock().unwrap_or_else(PoisonError::into_inner));
        let log = json!({ "lost": self.0.log.lost() });
        let destinations = self.0.exports.detail();
        let (audit, sources) = (self.0.audit.detail(), self.0.inflow.detail());
        json!({ "destinations": destinations, "traces": traces, "audit": audit, "log_file": log, "sources": sources })
    }
}

/// `OTEL_RESOURCE_ATTRIBUTES`, then the configuration, which wins.
fn resource(settings: &TelemetrySettings) -> Resource {
    let configured = settings.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_attributes(configured)
        .build()
}

fn plans(settings: &TelemetrySettings, secrets: &Arc<SecretSlot>) -> Result<Plans, TelemetryError> {
    let plan = |(name, one): (&String, &DestinationSettings)| Ok((name.clone(), SignalPlans::new(one, secrets)?));
    settings.destinations.iter().map(plan).collect()
}

fn open_spool(settings: &TelemetrySettings, tallies: &Arc<Tallies>) -> Result<Spool, TelemetryError> {
    match &settings.spool {
        None => Ok(Spool::in_memory(1, tallies.clone())),
        Some(spool) => Spool::on_disk(spool, tallies.clone()).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => TelemetryError::SpoolInUse { path: spool.path.clone() },
            _ => TelemetryError::Spool { path: spool.path.clone(), cause },
        }),
    }
}

fn dead_letters(spool: &SpoolSettings) -> DeadLetters {
    DeadLetters::new(spool.path.join("dead-letters"), spool.dead_letter_bytes)
}

/// Spans without a collector would be made for nobody.
fn traces_are_on(settings: &TelemetrySettings) -> bool {
    settings.traces.is_some() && !settings.destinations.is_empty()
}

fn sample_ratio(settings: &TelemetrySettings) -> f64 {
    settings.traces.as_ref().map_or(0.0, |traces| traces.sample_ratio)
}

/// As `run_id`, in a number.
fn run_number() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    micros.rotate_left(16) ^ u64::from(std::process::id())
}

/// Start time and process id: different for each run on one machine.
fn run_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}.{:x}", since.as_micros(), std::process::id())
}

const METER: &str = "mcpeg";
const FULL: &str = "the spool has no room for audit events: no destination takes them";

#[cfg(test)]
mod tests;
