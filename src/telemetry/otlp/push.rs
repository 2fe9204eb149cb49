//! The metrics' way out: a collection every interval, and one at the end, through the SDK's OTLP exporter.
//!
//! Metrics are cumulative: an export that failed is made good by the next, so nothing is kept.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::lifecycle::Shutdown;
use crate::telemetry::metrics::ExportTimes;
use crate::telemetry::reader::SharedReader;
use crate::telemetry::tallies::Signal;

use super::answer::{Answer, Trouble};
use super::backoff::{Backoff, Pause};
use super::destination::Destination;
use super::pump::FLUSH_WITHIN;
use super::wire::Link;

pub struct MetricPush {
    pub destination: Arc<Destination>,
    pub reader: SharedReader,
    /// `None`: metrics are not exported.
    pub interval: watch::Receiver<Option<Duration>>,
    pub link: Link,
    pub backoff: Backoff,
    pub times: ExportTimes,
}

impl MetricPush {
    pub async fn run(mut self, mut shutdown: Shutdown) {
        let mut sooner = None;
        loop {
            let interval = *self.interval.borrow_and_update();
            let due = interval.map(|interval| sooner.map_or(interval, |s| interval.min(s)));
            let wait = async {
                match due {
                    Some(wait) => sleep(wait).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = wait => sooner = self.attempt().await,
                changed = self.interval.changed() => if changed.is_err() { return },
                () = self.link.changed() => {}
                () = shutdown.requested() => {
                    if due.is_some() {
                        // An end without the last figures is still an end.
                        let _ = timeout(FLUSH_WITHIN, self.attempt()).await;
                    }
                    return;
                }
            }
        }
    }

    /// Exports once. `Some`: it failed, and this is when to try again.
    async fn attempt(&mut self) -> Option<Duration> {
        let started = Instant::now();
        let result = self.export().await;
        self.link.rest();
        self.times.record(&self.destination.name, Signal::Metrics, result.is_ok(), started.elapsed());
        match result {
            Ok(()) => {
                self.destination.tally.exported(Signal::Metrics, 1);
                self.destination.health.delivered(Signal::Metrics);
                self.backoff.reset();
                None
            }
            Err(trouble) => {
                let wait = self.backoff.next(trouble.pause);
                self.destination.health.failed(Signal::Metrics, &trouble.phrase, wait);
                Some(wait)
            }
        }
    }

    async fn export(&mut self) -> Result<(), Trouble> {
        let wire = self.link.wire()?;
        let metrics = self.reader.now().map_err(|error| Trouble::new(format!("is not asked: {error}"), Pause::Busy))?;
        let exporter = wire.metric_exporter()?;
        let sent = async {
            let Err(error) = exporter.export(&metrics).await else { return Ok(()) };
            match wire.answer_of(&error) {
                Answer::Failed(trouble) => Err(trouble),
                Answer::Refused(phrase) => Err(Trouble::new(phrase, Pause::Busy)),
                Answer::TooLarge => Err(Trouble::new("takes no request as large as all metrics", Pause::Busy)),
                Answer::Delivered => Ok(()),
            }
        };
        wire.guard(sent).await
    }
}
