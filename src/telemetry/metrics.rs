//! The telemetry domain's own metrics, and the process's: declared here and nowhere else.
//!
//! Counts live in `Tallies`; the instruments read them when somebody collects. Instruments are OpenTelemetry's; what `/metrics` shows comes from the same ones.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};

use super::process;
use super::spool::{Depth, Spool};
use super::tallies::{AuditFate, Reason, Signal, Tallies, Tally};
use crate::memory;
use crate::ports::Redactor;

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

    pub fn record(&self, destination: &str, signal: Signal, delivered: bool, took: Duration) {
        let outcome = if delivered { "success" } else { "failure" };
        let labels = [
            KeyValue::new("destination", destination.to_owned()),
            KeyValue::new("signal", signal.as_str()),
            KeyValue::new("outcome", outcome),
        ];
        self.0.record(took.as_secs_f64(), &labels);
    }
}

/// Declares the instruments that read `tallies`.
pub fn observe_tallies(meter: &Meter, tallies: &Arc<Tallies>) {
    counter("mcpeg.telemetry.exported", EXPORTED, meter, tallies, Tally::total_exported);
    counter("mcpeg.telemetry.repeated", REPEATED, meter, tallies, Tally::total_repeated);
    let source = tallies.clone();
    meter
        .u64_observable_counter("mcpeg.telemetry.dropped")
        .with_description("Log records, spans and metrics that will never reach the collector")
        .with_unit("{item}")
        .with_callback(move |observer| {
            for tally in source.destinations() {
                for (signal, reason) in Signal::ALL.into_iter().flat_map(|s| Reason::ALL.map(|r| (s, r))) {
                    let [destination, signal_label] = labels(&tally.destination, signal);
                    let labels = [destination, signal_label, KeyValue::new("reason", reason.as_str())];
                    observer.observe(tally.dropped_for(signal, reason), &labels);
                }
            }
        })
        .build();
    let source = tallies.clone();
    meter
        .u64_observable_counter("mcpeg.telemetry.dead_letters")
        .with_description("Records of refused requests that were kept in the folder of dead letters")
        .with_unit("{item}")
        .with_callback(move |observer| {
            for tally in source.destinations() {
                observer.observe(tally.total_kept(), &[KeyValue::new("destination", tally.destination.clone())]);
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
}

/// Declares a counter of every destination and each signal.
fn counter(
    name: &'static str,
    description: &'static str,
    meter: &Meter,
    tallies: &Arc<Tallies>,
    count: fn(&Tally, Signal) -> u64,
) {
    let source = tallies.clone();
    meter
        .u64_observable_counter(name)
        .with_description(description)
        .with_unit("{item}")
        .with_callback(move |observer| {
            for tally in source.destinations() {
                for signal in Signal::ALL {
                    observer.observe(count(&tally, signal), &labels(&tally.destination, signal));
                }
            }
        })
        .build();
}

/// What waits for one destination.
pub struct Waiting {
    pub destination: String,
    pub signal: Signal,
    pub depth: Depth,
}

/// Declares the instruments that read the queues and the spool.
pub fn observe_queues(meter: &Meter, spool: Spool, waiting: impl Fn() -> Vec<Waiting> + Send + Sync + 'static) {
    let waiting = Arc::new(waiting);
    let source = waiting.clone();
    meter
        .u64_observable_gauge("mcpeg.telemetry.queue.size")
        .with_description("Log records, spans and metrics that wait for the collector")
        .with_unit("{item}")
        .with_callback(move |observer| {
            for Waiting { destination, signal, depth } in source() {
                observer.observe(depth.records, &labels(&destination, signal));
            }
        })
        .build();
    meter
        .f64_observable_gauge("mcpeg.telemetry.queue.age")
        .with_description("Age of the oldest of those that wait")
        .with_unit("s")
        .with_callback(move |observer| {
            let now = SystemTime::now();
            for Waiting { destination, signal, depth } in waiting() {
                let age = depth.oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default();
                observer.observe(age.as_secs_f64(), &labels(&destination, signal));
            }
        })
        .build();
    gauge("mcpeg.telemetry.spool.size", "Bytes of the spool on disk", meter, spool.clone(), |(used, _, _)| used);
    gauge("mcpeg.telemetry.spool.limit", "The most that they may be", meter, spool, |(_, most, _)| most);
}

/// Declares a gauge of the spool on disk; in memory it shows nothing.
fn gauge(
    name: &'static str,
    description: &'static str,
    meter: &Meter,
    spool: Spool,
    pick: fn((u64, u64, Option<String>)) -> u64,
) {
    meter
        .u64_observable_gauge(name)
        .with_description(description)
        .with_unit("By")
        .with_callback(move |observer| {
            if let Some(usage) = spool.usage() {
                observer.observe(pick(usage), &[]);
            }
        })
        .build();
}

fn labels(destination: &str, signal: Signal) -> [KeyValue; 2] {
    [KeyValue::new("destination", destination.to_owned()), KeyValue::new("signal", signal.as_str())]
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
        .u64_observable_gauge("mcpeg.memory.live")
        .with_description("Memory that was allocated and not freed")
        .with_unit("By")
        .with_callback(|observer| observer.observe(memory::live_bytes(), &[]))
        .build();
    meter
        .u64_observable_gauge("mcpeg.memory.limit")
        .with_description("The most that it may be (`global.memory_limit_mb`)")
        .with_unit("By")
        .with_callback(|observer| memory::limit().into_iter().for_each(|limit| observer.observe(limit, &[])))
        .build();
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

const EXPORTED: &str = "Log records, spans and metric exports that the collector has taken";
const REPEATED: &str = "Records that were sent again though they may have arrived: duplicates are possible";
