//! The pump: takes from a source, sends, waits as long as it must, and empties the source before it ends.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::lifecycle::Shutdown;
use crate::telemetry::metrics::ExportTimes;
use crate::telemetry::tallies::Signal;

use super::answer::Trouble;
use super::backoff::Backoff;
use super::destination::Destination;
use super::wire::{Link, Wire};

/// What a pump takes from.
pub trait Source: Send {
    fn signal(&self) -> Signal;

    /// How much waits to be sent.
    fn waiting(&self) -> u64;

    /// Completes when something has arrived since it last completed.
    fn arrived(&mut self) -> impl Future<Output = ()> + Send;

    /// Sends one batch. After an error the same batch is still there; `Ok` means that it is done with, one way or another.
    fn send(&mut self, wire: &Wire) -> impl Future<Output = Result<(), Trouble>> + Send;
}

pub struct Pump<S> {
    source: S,
    link: Link,
    backoff: Backoff,
    destination: Arc<Destination>,
    times: ExportTimes,
}

impl<S: Source> Pump<S> {
    pub fn new(source: S, destination: Arc<Destination>, times: ExportTimes) -> Self {
        let link = destination.link(source.signal());
        Self { source, link, backoff: Backoff::default(), destination, times }
    }

    /// Runs until it is told to stop and everything is sent, or `FLUSH_WITHIN` has passed since.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut asked = shutdown.clone();
        {
            let mut pumping = pin!(self.pump(shutdown));
            tokio::select! {
                () = &mut pumping => return,
                () = asked.requested() => {}
            }
            // Whether time was enough shows in what is left.
            let _ = timeout(FLUSH_WITHIN, pumping).await;
        }
        let left = self.source.waiting();
        if left > 0 {
            let destination = self.destination.name.as_str();
            warn!(
                destination,
                signal = self.source.signal().as_str(),
                left,
                "not everything was exported before the end"
            );
        }
    }

    async fn pump(&mut self, mut shutdown: Shutdown) {
        loop {
            if self.source.waiting() == 0 {
                if shutdown.is_requested() {
                    return;
                }
                self.idle(&mut shutdown).await;
            } else if let Some(wait) = self.attempt().await {
                self.link.rest();
                self.pause(wait, &mut shutdown).await;
            }
        }
    }

    /// Waits for something to send, and a little longer for more of it.
    async fn idle(&mut self, shutdown: &mut Shutdown) {
        let tired = self.link.tires_after();
        tokio::select! {
            () = self.source.arrived() => {}
            () = self.link.changed() => return,
            () = shutdown.requested() => return,
            () = sleep(tired.unwrap_or_default()), if tired.is_some() => {
                self.link.rest();
                return;
            }
        }
        tokio::select! {
            () = sleep(GATHER) => {}
            () = shutdown.requested() => {}
        }
    }

    /// Sends one batch. `Some`: it failed, and this is how long to wait.
    async fn attempt(&mut self) -> Option<Duration> {
        let started = Instant::now();
        let signal = self.source.signal();
        let result = match self.link.wire() {
            Ok(wire) => wire.guard(self.source.send(wire)).await,
            Err(trouble) => Err(trouble),
        };
        self.times.record(&self.destination.name, signal, result.is_ok(), started.elapsed());
        match result {
            Ok(()) => {
                self.backoff.reset();
                self.destination.health.delivered(signal);
                None
            }
            Err(trouble) => {
                let wait = self.backoff.next(trouble.pause);
                self.destination.health.failed(signal, &trouble.phrase, wait);
                Some(wait)
            }
        }
    }

    /// A new configuration is tried at once; at the end there is no time for long waits.
    async fn pause(&mut self, wait: Duration, shutdown: &mut Shutdown) {
        if shutdown.is_requested() {
            sleep(wait.min(LAST_WAITS)).await;
            return;
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = self.link.changed() => self.backoff.reset(),
            () = shutdown.requested() => {}
        }
    }
}

/// How long an export may take that was asked for by the stop of the process.
pub const FLUSH_WITHIN: Duration = Duration::from_secs(3);
/// Records that arrive within this time travel together.
const GATHER: Duration = Duration::from_millis(200);
const LAST_WAITS: Duration = Duration::from_millis(250);
