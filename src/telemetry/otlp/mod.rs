//! Export to an OpenTelemetry collector by OTLP, HTTP or gRPC: log records by an own sender, spans and metrics by the SDK's exporters.
//!
//! `plan` is where to and how, `wire` a connection, `pump` drives `logs` and `spans`, `push` drives the metrics, `answer` says what a
//! collector's answer means, `backoff` how long to wait, `health` how it is going. Everything runs in one part; each signal has its own
//! connection and its own waits, so that one that fails does not hold up the others. All of it can change while the process runs,
//! except the resource.

mod answer;
mod backoff;
mod grpc;
mod headers;
mod health;
mod http;
mod logs;
mod plan;
mod pump;
mod push;
mod record;
mod spans;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_sdk::Resource;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::lifecycle::{Part, Readiness, Stage};
use crate::ports::{AuditEvent, Condition, LogLine, Redactor};

use super::metrics::{ExportTimes, Reason, Signal, Tallies};
use super::queue::{MemoryQueue, RecordQueue};
use super::reader::SharedReader;

pub use headers::SecretSlot;
use health::Health;
pub use plan::Plan;
use record::{RecordEncoder, RequestFrame};
pub use spans::{Ratio, SpanQueue, provider};

/// What is on its way to the collector, shared by those who add to it and those who send.
pub struct Exports {
    pub spans: SpanQueue,
    audit: Records,
    /// Apart, so that a program that prints much does not force audit events out.
    lines: Records,
    encoder: RecordEncoder,
    resource: Resource,
    tallies: Arc<Tallies>,
    health: Arc<Health>,
    plan: watch::Sender<Option<Arc<Plan>>>,
    interval: watch::Sender<Option<Duration>>,
}

/// Log records of one kind on their way.
struct Records {
    queue: MemoryQueue,
    frame: RequestFrame,
}

impl Exports {
    /// `run` tells this process's records from those of any other.
    pub fn new(
        plan: Option<Plan>,
        interval: Option<Duration>,
        resource: Resource,
        run: String,
        tallies: Arc<Tallies>,
        redactor: Arc<dyn Redactor>,
    ) -> Self {
        let capacity = plan.as_ref().map_or(1, |plan| plan.settings.queue_records);
        Self {
            spans: SpanQueue::new(tallies.clone(), redactor),
            audit: Records { queue: MemoryQueue::new(capacity), frame: RequestFrame::new(&resource, "mcpeg.audit") },
            lines: Records { queue: MemoryQueue::new(capacity), frame: RequestFrame::new(&resource, "mcpeg.process") },
            encoder: RecordEncoder::new(run),
            resource,
            tallies,
            health: Arc::default(),
            plan: watch::Sender::new(plan.map(Arc::new)),
            interval: watch::Sender::new(interval),
        }
    }

    /// Queues an audit event as a log record. Does nothing when no collector is configured.
    pub fn audit(&self, event: &AuditEvent, seq: u64) {
        if self.plan.borrow().is_none() {
            return;
        }
        self.append(&self.audit, self.encoder.encode(event, seq));
    }

    /// Queues a line that a program has printed. Does nothing when no collector is configured.
    pub fn line(&self, line: &LogLine<'_>) {
        if self.plan.borrow().is_some() {
            self.append(&self.lines, self.encoder.encode_line(line));
        }
    }

    fn append(&self, records: &Records, record: Bytes) {
        let dropped = records.queue.append(record);
        if dropped > 0 {
            self.drop_counted(Signal::Logs, Reason::QueueFull, dropped);
        }
    }

    /// Puts another collector, or none, in the place of the present one.
    pub fn change(&self, plan: Option<Plan>, interval: Option<Duration>) {
        if let Some(plan) = &plan {
            self.audit.queue.set_capacity(plan.settings.queue_records);
            self.lines.queue.set_capacity(plan.settings.queue_records);
        }
        self.plan.send_replace(plan.map(Arc::new));
        self.change_interval(interval);
    }

    /// `None`: metrics are not exported.
    pub fn change_interval(&self, interval: Option<Duration>) {
        self.interval.send_if_modified(|now| std::mem::replace(now, interval) != interval);
    }

    pub fn waiting(&self, signal: Signal) -> u64 {
        match signal {
            Signal::Logs => (self.audit.queue.depth().records + self.lines.queue.depth().records) as u64,
            Signal::Traces => self.spans.len() as u64,
            Signal::Metrics => 0,
        }
    }

    /// `None` when no collector is configured.
    pub fn condition(&self) -> Option<Condition> {
        let plan = self.plan.borrow().clone()?;
        Some(self.health.condition(&plan.shown(), self.waiting(Signal::Logs)))
    }

    pub fn detail(&self) -> serde_json::Value {
        let Some(plan) = self.plan.borrow().clone() else { return serde_json::Value::Null };
        let counts: serde_json::Map<String, serde_json::Value> = Signal::ALL
            .into_iter()
            .map(|signal| {
                let counts = json!({
                    "waiting": self.waiting(signal),
                    "exported": self.tallies.total_exported(signal),
                    "dropped": self.tallies.total_dropped(signal),
                });
                (signal.as_str().to_owned(), counts)
            })
            .collect();
        json!({ "endpoint": plan.shown(), "protocol": plan.protocol(), "signals": counts })
    }

    fn drop_counted(&self, signal: Signal, reason: Reason, count: u64) {
        self.tallies.dropped(signal, reason, count);
        self.health.dropped(signal, reason.as_str(), count);
    }
}

/// The part that exports. When it is told to stop, it sends what waits, within `pump::FLUSH_WITHIN`.
pub fn part(exports: Arc<Exports>, reader: SharedReader, times: ExportTimes) -> Part {
    Part::new("otlp export", Stage::Telemetry, Readiness::immediate(), move |shutdown| async move {
        let link = || wire::Link::new(exports.plan.subscribe());
        let logs = |of: logs::Of| pump::Pump {
            source: logs::LogSource::new(exports.clone(), of),
            link: link(),
            backoff: backoff::Backoff::default(),
            health: exports.health.clone(),
            times: times.clone(),
        };
        let spans = pump::Pump {
            source: spans::SpanSource::new(exports.clone()),
            link: link(),
            backoff: backoff::Backoff::default(),
            health: exports.health.clone(),
            times: times.clone(),
        };
        let metrics = push::MetricPush {
            exports: exports.clone(),
            reader,
            interval: exports.interval.subscribe(),
            link: link(),
            backoff: backoff::Backoff::default(),
            times: times.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(logs(|exports| &exports.audit).run(shutdown.clone()));
        tasks.spawn(logs(|exports| &exports.lines).run(shutdown.clone()));
        tasks.spawn(spans.run(shutdown.clone()));
        tasks.spawn(metrics.run(shutdown));
        while let Some(ended) = tasks.join_next().await {
            // A task that did not come to its end has panicked: a bug, which the supervisor reports.
            ended?;
        }
        Ok(())
    })
}
