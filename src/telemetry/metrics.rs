//! The telemetry domain's own metrics, and the process's: declared here and nowhere else.
//!
//! Counts live in `Tallies`, plain atomics, so that counting costs nothing on the way of a request; the instruments read them when
//! somebody collects. Instruments are OpenTelemetry's; what `/metrics` shows comes from the same ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};

use super::process;
use crate::ports::Redactor;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Logs,
    Traces,
    Metrics,
}

impl Signal {
    pub const ALL: [Self; 3] = [Self::Logs, Self::Traces, Self::Metrics];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

/// Why a record or span was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    QueueFull,
    /// The collector said that it will never take the request.
    Refused,
    /// The collector took the request and rejected some of what was in it.
    Rejected,
    /// One record alone is larger than the collector takes.
    TooLarge,
}

impl Reason {
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::Refused, Self::Rejected, Self::TooLarge];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::TooLarge => "too_large",
        }
    }
}

/// What became of an audit event at the audit file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFate {
    Recorded,
    /// It could not be written, and what it is about went on.
    Lost,
    /// It could not be written, and what it is about was refused.
    Refused,
}

impl AuditFate {
    pub const ALL: [Self; 3] = [Self::Recorded, Self::Lost, Self::Refused];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// Everything that the domain counts.
#[derive(Debug, Default)]
pub struct Tallies {
    exported: [AtomicU64; Signal::ALL.len()],
    dropped: [[AtomicU64; Reason::ALL.len()]; Signal::ALL.len()],
    audit: [AtomicU64; AuditFate::ALL.len()],
}

impl Tallies {
    pub fn exported(&self, signal: Signal, count: u64) {
        self.exported[signal as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub fn dropped(&self, signal: Signal, reason: Reason, count: u64) {
        self.dropped[signal as usize][reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub fn audit(&self, fate: AuditFate) {
        self.audit[fate as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn total_exported(&self, signal: Signal) -> u64 {
        self.exported[signal as usize].load(Ordering::Relaxed)
    }

    pub fn total_dropped(&self, signal: Signal) -> u64 {
        self.dropped[signal as usize].iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub fn total_audit(&self, fate: AuditFate) -> u64 {
        self.audit[fate as usize].load(Ordering::Relaxed)
    }
}

/// How long exports take.
#[derive(Clone)]
pub struct ExportTimes(Histogram<f64>);

impl ExportTimes {
    pub fn new(meter: &Meter) -> Self {
        let histogram = meter
            .f64_histogram("mcpeg.telemetry.export.duration")
            .with_description("Time that one request to the collector took")
            .with_unit("s")
            .with_boundaries(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
            .build();
        Self(histogram)
    }

    pub fn record(&self, signal: Signal, delivered: bool, took: Duration) {
        let outcome = if delivered { "success" } else { "failure" };
        let labels = [KeyValue::new("signal", signal.as_str()), KeyValue::new("outcome", outcome)];
        self.0.record(took.as_secs_f64(), &labels);
    }
}

/// Declares the instruments that read `tallies` and the queues.
pub fn observe_tallies(meter: &Meter, tallies: &Arc<Tallies>, queued: impl Fn(Signal) -> u64 + Send + Sync + 'static) {
    let source = tallies.clone();
    meter
        .u64_observable_counter("mcpeg.telemetry.exported")
        .with_description("Log records, spans and metric exports that the collector has taken")
        .with_unit("{item}")
        .with_callback(move |observer| {
            for signal in Signal::ALL {
                observer.observe(source.total_exported(signal), &[KeyValue::new("signal", signal.as_str())]);
            }
        })
        .build();
    let source = tallies.clone();
    meter
        .u64_observable_counter("mcpeg.telemetry.dropped")
        .with_description("Log records and spans that will never reach the collector")
        .with_unit("{item}")
        .with_callback(move |observer| {
            for (signal, reason) in QUEUED.into_iter().flat_map(|s| Reason::ALL.map(|r| (s, r))) {
                let labels = [KeyValue::new("signal", signal.as_str()), KeyValue::new("reason", reason.as_str())];
                observer.observe(source.dropped[signal as usize][reason as usize].load(Ordering::Relaxed), &labels);
            }
        })
        .build();
    let source = tallies.clone();
    meter
        .u64_observable_counter("mcpeg.audit.records")
        .with_description("Audit events by what became of them at the audit file")
        .with_unit("{record}")
        .with_callback(move |observer| {
            for fate in AuditFate::ALL {
                observer.observe(source.total_audit(fate), &[KeyValue::new("fate", fate.as_str())]);
            }
        })
        .build();
    meter
        .u64_observable_gauge("mcpeg.telemetry.queue.size")
        .with_description("Log records and spans that wait for the collector")
        .with_unit("{item}")
        .with_callback(move |observer| {
            for signal in QUEUED {
                observer.observe(queued(signal), &[KeyValue::new("signal", signal.as_str())]);
            }
        })
        .build();
}

/// Declares the instrument that reads what was taken out of logs, events and spans.
pub fn observe_redacted(meter: &Meter, redactor: Arc<dyn Redactor>) {
    meter
        .u64_observable_counter("mcpeg.telemetry.redacted")
        .with_description("Secrets that were taken out of logs, audit events and spans")
        .with_unit("{match}")
        .with_callback(move |observer| {
            for count in redactor.counts() {
                let labels =
                    [KeyValue::new("kind", count.kind.as_str()), KeyValue::new("name", count.name.to_string())];
                observer.observe(count.count, &labels);
            }
        })
        .build();
}

/// Declares the process's own figures, under OpenTelemetry's names. What `/proc` does not tell is not reported.
pub fn observe_process(meter: &Meter, started: Instant) {
    meter
        .i64_observable_up_down_counter("process.memory.usage")
        .with_description("Physical memory in use")
        .with_unit("By")
        .with_callback(|observer| {
            if let Some(bytes) = process::resident_bytes() {
                observer.observe(bytes, &[]);
            }
        })
        .build();
    meter
        .f64_observable_counter("process.cpu.time")
        .with_description("CPU time used")
        .with_unit("s")
        .with_callback(|observer| {
            if let Some(times) = process::cpu_times() {
                observer.observe(times.user.as_secs_f64(), &[KeyValue::new("cpu.mode", "user")]);
                observer.observe(times.system.as_secs_f64(), &[KeyValue::new("cpu.mode", "system")]);
            }
        })
        .build();
    meter
        .i64_observable_up_down_counter("process.unix.file_descriptor.count")
        .with_description("Open file descriptors")
        .with_unit("{file_descriptor}")
        .with_callback(|observer| {
            if let Some(count) = process::open_files() {
                observer.observe(count, &[]);
            }
        })
        .build();
    meter
        .f64_observable_gauge("process.uptime")
        .with_description("Time since the process started")
        .with_unit("s")
        .with_callback(move |observer| observer.observe(started.elapsed().as_secs_f64(), &[]))
        .build();
}

/// Metrics are not queued: what an export lacks, the next one has.
const QUEUED: [Signal; 2] = [Signal::Logs, Signal::Traces];
