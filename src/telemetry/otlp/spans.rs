//! The spans' way out: from the SDK into a bounded queue for each destination, and from there in batches through the SDK's OTLP exporter.
//!
//! It stands in for the SDK's batch processor, which runs a thread of its own without a reactor, holds on to one exporter for good and
//! does not tell what it dropped. Here a full queue refuses the newest span, counted, and a failed batch is tried again some times.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use opentelemetry::Context;
use opentelemetry::trace::{Link as SpanLink, SpanKind, TraceId};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SamplingResult, ShouldSample, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;
use tracing::warn;

use crate::ports::Redactor;
use crate::telemetry::redact;
use crate::telemetry::tallies::{Reason, Signal, Tally};

use super::Exports;
use super::answer::{Answer, Trouble};
use super::destination::Destination;
use super::pump::Source;
use super::wire::Wire;

/// Ended spans that wait for the collector.
#[derive(Clone)]
pub struct SpanQueue(Arc<Queue>);

struct Queue {
    spans: Mutex<VecDeque<SpanData>>,
    arrived: Notify,
    tally: Arc<Tally>,
}

impl SpanQueue {
    pub fn new(tally: Arc<Tally>) -> Self {
        Self(Arc::new(Queue { spans: Mutex::default(), arrived: Notify::new(), tally }))
    }

    fn push(&self, span: SpanData) {
        let mut spans = self.lock();
        if spans.len() >= CAPACITY {
            drop(spans);
            self.0.tally.dropped(Signal::Traces, Reason::QueueFull, 1);
            return;
        }
        spans.push_back(span);
        drop(spans);
        self.0.arrived.notify_one();
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn take(&self, most: usize) -> Vec<SpanData> {
        let mut spans = self.lock();
        let count = spans.len().min(most);
        let batch = spans.drain(..count).collect();
        if spans.is_empty() {
            spans.shrink_to(0);
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<SpanData>> {
        self.0.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives every ended span to the queue of each destination.
#[derive(Clone)]
pub struct SpanFan(Arc<Fan>);

struct Fan {
    queues: ArcSwap<Vec<SpanQueue>>,
    redactor: Arc<dyn Redactor>,
}

impl SpanFan {
    pub fn new(redactor: Arc<dyn Redactor>) -> Self {
        Self(Arc::new(Fan { queues: ArcSwap::default(), redactor }))
    }

    pub fn set(&self, queues: Vec<SpanQueue>) {
        self.0.queues.store(Arc::new(queues));
    }
}

impl fmt::Debug for SpanFan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanFan({} queues)", self.0.queues.load().len())
    }
}

impl SpanProcessor for SpanFan {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        let queues = self.0.queues.load();
        let Some((last, others)) = queues.split_last().filter(|_| span.span_context.is_sampled()) else { return };
        redact::span(&*self.0.redactor, &mut span);
        for queue in others {
            queue.push(span.clone());
        }
        last.push(span);
    }

    /// The pump sends within a fraction of a second; there is nothing to hurry.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// The pump ends with its part, not with the provider.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

pub struct SpanSource {
    exports: Arc<Exports>,
    destination: Arc<Destination>,
    /// The batch that is on its way.
    batch: Vec<SpanData>,
    failures: u32,
}

impl SpanSource {
    pub fn new(exports: Arc<Exports>, destination: Arc<Destination>) -> Self {
        Self { exports, destination, batch: Vec::new(), failures: 0 }
    }

    fn done(&mut self) -> u64 {
        self.failures = 0;
        std::mem::take(&mut self.batch).len() as u64
    }

    fn give_up(&mut self, why: &str) {
        let count = self.done();
        self.destination.tally.dropped(Signal::Traces, Reason::Refused, count);
        warn!(
            destination = self.destination.name.as_str(),
            spans = count,
            answer = why,
            "the collector did not take spans"
        );
    }
}

impl Source for SpanSource {
    fn signal(&self) -> Signal {
        Signal::Traces
    }

    fn waiting(&self) -> u64 {
        (self.batch.len() + self.destination.spans.len()) as u64
    }

    async fn arrived(&mut self) {
        self.destination.spans.0.arrived.notified().await;
    }

    async fn send(&mut self, wire: &Wire) -> Result<(), Trouble> {
        if self.batch.is_empty() {
            self.batch = self.destination.spans.take(LARGEST_BATCH);
        }
        let exporter = wire.span_exporter(&self.exports.resource)?;
        let Err(error) = exporter.export(self.batch.clone()).await else {
            let count = self.done();
            self.destination.tally.exported(Signal::Traces, count);
            return Ok(());
        };
        self.failures += 1;
        match wire.answer_of(&error) {
            Answer::Failed(trouble) if self.failures < MOST_FAILURES => Err(trouble),
            Answer::TooLarge if self.batch.len() > 1 => {
                // The second half goes back to the front of the queue.
                let rest = self.batch.split_off(self.batch.len() / 2);
                let mut spans = self.destination.spans.lock();
                for span in rest.into_iter().rev() {
                    spans.push_front(span);
                }
                Ok(())
            }
            Answer::Failed(trouble) => {
                self.give_up(&trouble.phrase);
                Err(trouble)
            }
            Answer::TooLarge => {
                self.give_up("one span alone is too large");
                Ok(())
            }
            Answer::Refused(why) => {
                self.give_up(&why);
                Ok(())
            }
            Answer::Delivered => {
                self.done();
                Ok(())
            }
        }
    }
}

/// Samples a share of the traces that start here; the share can change while the process runs.
#[derive(Debug, Clone)]
pub struct Ratio(Arc<AtomicU64>);

impl Ratio {
    pub fn new(ratio: f64) -> Self {
        Self(Arc::new(AtomicU64::new(ratio.to_bits())))
    }

    pub fn set(&self, ratio: f64) {
        self.0.store(ratio.to_bits(), Ordering::Relaxed);
    }

    /// A caller's own decision is kept.
    pub fn below_parents(&self) -> Sampler {
        Sampler::ParentBased(Box::new(self.clone()))
    }
}

impl ShouldSample for Ratio {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[opentelemetry::KeyValue],
        links: &[SpanLink],
    ) -> SamplingResult {
        let ratio = f64::from_bits(self.0.load(Ordering::Relaxed));
        Sampler::TraceIdRatioBased(ratio).should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

/// What resource and scope the spans carry is the provider's; the exporter is told.
pub fn provider(spans: &SpanFan, resource: Resource, ratio: &Ratio) -> opentelemetry_sdk::trace::SdkTracerProvider {
    opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(ratio.below_parents())
        .with_span_processor(spans.clone())
        .build()
}

const CAPACITY: usize = 2048;
const LARGEST_BATCH: usize = 512;
/// About a minute of waits of two seconds at most.
const MOST_FAILURES: u32 = 60;
