//! Export to OpenTelemetry collectors by OTLP, HTTP or gRPC: what is in the spool by an own sender, the process's spans and metrics by the
//! SDK's exporters.
//!
//! `destination` is one collector with all that is known of it, `plan` where it is and how to speak to it, `wire` a connection, `pump`
//! drives `lanes` and `spans`, `push` drives the metrics, `request` cuts and joins encoded requests, `suspects` finds the records
//! for which a request is refused, `answer` says what a collector's answer means, `backoff` how long to wait, `health` how it is going, `dead_letters` keeps what is refused. Everything runs in one part;
//! each destination has a connection and waits of its own for each signal, so that one that fails does not hold up the others. All of it
//! can change while the process runs, except the resource.

mod answer;
mod backoff;
mod connect;
mod dead_letters;
mod destination;
mod grpc;
mod headers;
mod health;
mod http;
mod lanes;
mod plan;
mod pump;
mod push;
mod record;
pub mod request;
mod spans;
mod suspects;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::Resource;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use crate::lifecycle::{Part, PartError, Readiness, Shutdown, Stage};
use crate::ports::{AuditEvent, Condition, ConditionState, LogLine};

use super::metrics::{ExportTimes, Waiting};
use super::reader::SharedReader;
use super::spool::{Depth, Lane, NotTaken, Spool};
use super::tallies::{Reason, Signal, Tallies};

pub use dead_letters::DeadLetters;
use destination::Destination;
pub use headers::SecretSlot;
pub use plan::SignalPlans;
use record::{RecordEncoder, RequestFrame};
pub use spans::{Ratio, SpanFan, provider};

/// What is on its way to the collectors, shared by those who add to it and those who send.
pub struct Exports {
    pub spool: Spool,
    pub spans: SpanFan,
    audit: RequestFrame,
    lines: RequestFrame,
    encoder: RecordEncoder,
    resource: Resource,
    tallies: Arc<Tallies>,
    dead_letters: Option<DeadLetters>,
    destinations: watch::Sender<Destinations>,
    interval: watch::Sender<Option<Duration>>,
}

type Destinations = Arc<BTreeMap<String, Arc<Destination>>>;

/// The plans of all destinations.
pub type Plans = BTreeMap<String, SignalPlans>;

/// What exports are made of besides their destinations.
pub struct Parts {
    pub spool: Spool,
    pub spans: SpanFan,
    pub resource: Resource,
    /// Tells this process's records from those of any other.
    pub run: String,
    pub tallies: Arc<Tallies>,
    /// `None`: what is refused is dropped.
    pub dead_letters: Option<DeadLetters>,
}

impl Exports {
    pub fn new(parts: Parts, plans: Plans, interval: Option<Duration>) -> Self {
        let Parts { spool, spans, resource, run, tallies, dead_letters } = parts;
        let exports = Self {
            spool,
            spans,
            audit: RequestFrame::new(&resource, "mcpeg.audit"),
            lines: RequestFrame::new(&resource, "mcpeg.process"),
            encoder: RecordEncoder::new(run),
            resource,
            tallies,
            dead_letters,
            destinations: watch::Sender::default(),
            interval: watch::Sender::new(interval),
        };
        exports.change(plans, interval);
        exports
    }

    /// Appends an audit event as a log record. Does nothing when no collector is configured.
    pub fn audit(&self, event: &AuditEvent, seq: u64) -> Result<(), NotTaken> {
        if !self.has_destinations() {
            return Ok(());
        }
        let body = self.audit.request(&[self.encoder.encode(event, seq)]);
        self.spool.append(Lane::Audit, 1, &body, None).inspect_err(|_| self.lost(Lane::Audit))
    }

    /// Whether an audit event would find room.
    pub fn takes_audit(&self) -> bool {
        self.spool.has_room(Lane::Audit, AUDIT_EVENT_BYTES)
    }

    /// Appends a line that a program has printed. Does nothing when no collector is configured.
    pub fn line(&self, line: &LogLine<'_>) {
        if self.has_destinations() {
            let body = self.lines.request(&[self.encoder.encode_line(line)]);
            if self.spool.append(Lane::Logs, 1, &body, None).is_err() {
                // Whoever printed it cannot be told to wait.
                self.lost(Lane::Logs);
            }
        }
    }

    fn lost(&self, lane: Lane) {
        for destination in self.destinations.borrow().values() {
            destination.tally.dropped(Signal::of(lane), Reason::QueueFull, 1);
        }
    }

    pub fn has_destinations(&self) -> bool {
        !self.destinations.borrow().is_empty()
    }

    /// Makes these the destinations. One that stays keeps its cursor, whatever else about it changes.
    pub fn change(&self, plans: Plans, interval: Option<Duration>) {
        if let Some(most) = plans.values().map(|plans| plans.of(Signal::Logs).settings.queue_records).max() {
            self.spool.set_capacity(most);
        }
        let names: Vec<String> = plans.keys().cloned().collect();
        if let Err(error) = self.spool.set_destinations(&names) {
            warn!(%error, "a cursor of the spool could not be kept: records may be sent twice after a restart");
        }
        let known = self.destinations.borrow().clone();
        let destination = |(name, plans): (String, SignalPlans)| {
            let destination = match known.get(&name) {
                Some(known) => {
                    known.change(plans);
                    known.clone()
                }
                None => Arc::new(Destination::new(name.clone(), plans, &self.tallies)),
            };
            (name, destination)
        };
        let destinations: BTreeMap<String, Arc<Destination>> = plans.into_iter().map(destination).collect();
        self.spans.set(destinations.values().map(|destination| destination.spans.clone()).collect());
        self.destinations.send_replace(Arc::new(destinations));
        self.change_interval(interval);
    }

    /// `None`: metrics are not exported.
    pub fn change_interval(&self, interval: Option<Duration>) {
        self.interval.send_if_modified(|now| std::mem::replace(now, interval) != interval);
    }

    pub fn set_dead_letters(&self, max_bytes: u64) {
        if let Some(dead_letters) = &self.dead_letters {
            dead_letters.set_max_bytes(max_bytes);
        }
    }

    /// What waits for each destination.
    pub fn waiting(&self) -> Vec<Waiting> {
        let destinations = self.destinations.borrow().clone();
        let of = |destination: &Arc<Destination>| {
            Signal::ALL.map(|signal| Waiting {
                destination: destination.name.clone(),
                signal,
                depth: self.depth(destination, signal),
            })
        };
        destinations.values().flat_map(of).collect()
    }

    fn depth(&self, destination: &Destination, signal: Signal) -> Depth {
        let lanes = Lane::ALL.into_iter().filter(|lane| Signal::of(*lane) == signal);
        let mut depth = lanes.map(|lane| self.spool.depth(lane, &destination.name)).fold(Depth::default(), |a, b| {
            Depth { records: a.records + b.records, oldest: [a.oldest, b.oldest].into_iter().flatten().min() }
        });
        if signal == Signal::Traces {
            depth.records += destination.spans.len() as u64;
        }
        depth
    }

    /// One for each destination, and one for a spool that cannot be written.
    pub fn conditions(&self) -> Vec<Condition> {
        let destinations = self.destinations.borrow().clone();
        let conditions = destinations.values().map(|destination| {
            destination.condition(self.depth(destination, Signal::Logs).records, destination.tally.dropped_lately())
        });
        let mut conditions: Vec<_> = conditions.collect();
        if let Some((used, most, failing)) = self.spool.usage() {
            let (state, message) = match failing {
                Some(error) => (ConditionState::Degraded, format!("the spool cannot be written: {error}")),
                None => (ConditionState::Ok, format!("{} of {} MiB", used.div_ceil(1 << 20), most >> 20)),
            };
            conditions.push(Condition { component: "spool".into(), state, message });
        }
        conditions
    }

    pub fn detail(&self) -> serde_json::Value {
        let destinations = self.destinations.borrow().clone();
        let of = |destination: &Arc<Destination>| {
            let signals: serde_json::Map<String, serde_json::Value> = Signal::ALL
                .into_iter()
                .map(|signal| {
                    let counts = json!({
                        "waiting": self.depth(destination, signal).records,
                        "exported": destination.tally.total_exported(signal),
                        "dropped": destination.tally.total_dropped(signal),
                        "repeated": destination.tally.total_repeated(signal),
                    });
                    (signal.as_str().to_owned(), counts)
                })
                .collect();
            let plan = destination.plan();
            let detail = json!({ "endpoint": plan.shown(), "protocol": plan.protocol(), "signals": signals });
            (destination.name.clone(), detail)
        };
        serde_json::Value::Object(destinations.values().map(of).collect())
    }
}

/// The part that exports. When it is told to stop, it sends what waits, within `pump::FLUSH_WITHIN`.
pub fn part(exports: Arc<Exports>, reader: SharedReader, times: ExportTimes) -> Part {
    Part::new("otlp export", Stage::Telemetry, Readiness::immediate(), move |shutdown| {
        Sending { exports, reader, times, tasks: JoinSet::new(), running: BTreeMap::new() }.run(shutdown)
    })
}

struct Sending {
    exports: Arc<Exports>,
    reader: SharedReader,
    times: ExportTimes,
    tasks: JoinSet<()>,
    running: BTreeMap<String, (Arc<Destination>, Vec<AbortHandle>)>,
}

impl Sending {
    async fn run(mut self, mut shutdown: Shutdown) -> Result<(), PartError> {
        let mut destinations = self.exports.destinations.subscribe();
        loop {
            let wanted = destinations.borrow_and_update().clone();
            self.follow(&wanted, &shutdown);
            tokio::select! {
                _ = destinations.changed() => {}
                () = shutdown.requested() => break,
                Some(ended) = self.tasks.join_next() => told(ended)?,
            }
        }
        while let Some(ended) = self.tasks.join_next().await {
            told(ended)?;
        }
        Ok(())
    }

    /// Ends the tasks of destinations that are gone, and starts those of new ones.
    fn follow(&mut self, wanted: &Destinations, shutdown: &Shutdown) {
        self.running.retain(|name, (running, tasks)| {
            let stays = wanted.get(name).is_some_and(|wanted| Arc::ptr_eq(wanted, running));
            if !stays {
                tasks.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        for (name, destination) in wanted.iter() {
            if !self.running.contains_key(name) {
                let tasks = self.start(destination, shutdown);
                self.running.insert(name.clone(), (destination.clone(), tasks));
            }
        }
    }

    fn start(&mut self, destination: &Arc<Destination>, shutdown: &Shutdown) -> Vec<AbortHandle> {
        let mut started = Vec::new();
        for lane in Lane::ALL {
            let source = lanes::LaneSource::new(self.exports.clone(), destination.clone(), lane);
            let pump = pump::Pump::new(source, destination.clone(), self.times.clone());
            started.push(self.tasks.spawn(pump.run(shutdown.clone())));
        }
        let source = spans::SpanSource::new(self.exports.clone(), destination.clone());
        let pump = pump::Pump::new(source, destination.clone(), self.times.clone());
        started.push(self.tasks.spawn(pump.run(shutdown.clone())));
        let metrics = push::MetricPush {
            destination: destination.clone(),
            reader: self.reader.clone(),
            interval: self.exports.interval.subscribe(),
            link: destination.link(Signal::Metrics),
            backoff: backoff::Backoff::default(),
            times: self.times.clone(),
        };
        started.push(self.tasks.spawn(metrics.run(shutdown.clone())));
        started
    }
}

/// A task that neither came to its end nor was ended has panicked: a bug, which the supervisor reports.
fn told(ended: Result<(), tokio::task::JoinError>) -> Result<(), PartError> {
    match ended {
        Err(error) if !error.is_cancelled() => Err(error.into()),
        _ => Ok(()),
    }
}

/// More than an audit event takes, the resource included.
const AUDIT_EVENT_BYTES: usize = 64 * 1024;
