//! A lane's way out: batches from the spool, acknowledged only when the collector has them or will never take them.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use crate::telemetry::spool::{Batch, BatchLimit, Lane};
use crate::telemetry::tallies::{Reason, Signal};

use super::Exports;
use super::answer::{Answer, Trouble};
use super::backoff::Pause;
use super::destination::Destination;
use super::pump::Source;
use super::request::{self, Request};
use super::suspects::Suspects;
use super::wire::Wire;

pub struct LaneSource {
    exports: Arc<Exports>,
    destination: Arc<Destination>,
    lane: Lane,
    arrivals: watch::Receiver<u64>,
    /// What is on its way.
    batch: Option<Batch>,
    limit: BatchLimit,
    /// Of the batch, when it was refused.
    suspects: Suspects,
    /// Failures in a row that may be the batch's own fault.
    doubts: u32,
}

impl LaneSource {
    pub fn new(exports: Arc<Exports>, destination: Arc<Destination>, lane: Lane) -> Self {
        let arrivals = exports.spool.arrivals(lane);
        Self {
            exports,
            destination,
            lane,
            arrivals,
            batch: None,
            limit: LARGEST,
            suspects: Suspects::default(),
            doubts: 0,
        }
    }

    fn signal(&self) -> Signal {
        Signal::of(self.lane)
    }

    /// The records of `request` do not come again.
    fn done(&mut self, request: &Request) {
        if let Some(batch) = &mut self.batch {
            batch.skip_to(request.upto);
        }
        self.batch.take_if(|batch| batch.is_empty());
        if let Err(error) = self.exports.spool.acknowledge(self.lane, &self.destination.name, request.upto) {
            let destination = self.destination.name.as_str();
            warn!(%error, destination, "the spool's cursor could not be written: records may be sent twice after a restart");
        }
        self.doubts = 0;
    }

    /// Gives a request up, counted, and keeps it if there is a folder for that.
    fn give_up(&mut self, request: &Request, reason: Reason, why: &str) {
        let Destination { name, tally, .. } = &*self.destination;
        let kept = self
            .exports
            .dead_letters
            .as_ref()
            .is_some_and(|letters| letters.keep(name, self.signal(), reason, &request.body));
        if kept {
            tally.kept(request.records);
        }
        tally.dropped(self.signal(), reason, request.records);
        let (destination, records, reason) = (name.as_str(), request.records, reason.as_str());
        warn!(destination, records, reason, answer = why, kept, "the collector did not take records");
        self.suspects.given_up(request.records);
        self.done(request);
    }

    /// The collector will never take the request as it is: less at a time finds the records that are the reason.
    fn refused(&mut self, request: &Request, wanted: usize, why: &str) {
        self.doubts = 0;
        if !self.suspects.refused(request.records, wanted) {
            self.give_up(request, Reason::Refused, why);
        }
    }

    /// `wanted`: so many records were to be in it. One with more cannot be taken apart.
    fn too_large(&mut self, request: &Request, wanted: usize) {
        match request.records {
            1 => self.give_up(request, Reason::TooLarge, "one record alone is too large"),
            records if records > wanted as u64 => {
                self.give_up(request, Reason::TooLarge, "too large, and it cannot be taken apart");
            }
            _ => self.halve(request),
        }
    }

    fn halve(&mut self, request: &Request) {
        let records = usize::try_from(request.records / 2).unwrap_or(usize::MAX).max(1);
        self.limit = BatchLimit { records, bytes: (request.body.len() / 2).max(SMALLEST_BYTES) };
    }

    /// Back towards the largest batch, slowly: a collector that refused a size will refuse it again.
    fn grow(&mut self) {
        let grown = |now: usize, most: usize| (now + now / 8 + 1).min(most);
        self.limit.records = grown(self.limit.records, LARGEST.records);
        self.limit.bytes = grown(self.limit.bytes, LARGEST.bytes);
    }

    fn delivered(&mut self, request: &Request, rejected: u64) {
        let (rejected, signal) = (rejected.min(request.records), self.signal());
        self.suspects.taken(request.records);
        self.done(request);
        self.destination.tally.exported(signal, request.records - rejected);
        if rejected > 0 {
            self.destination.tally.dropped(signal, Reason::Rejected, rejected);
        }
        self.grow();
    }

    fn failed(&mut self, request: &Request, wanted: usize, trouble: Trouble) -> Result<(), Trouble> {
        if trouble.overload {
            self.halve(request);
        }
        self.doubts = if trouble.doubtful { self.doubts + 1 } else { 0 };
        // Where the reason is known to be among a few records, it takes less to be convinced.
        let most = if self.suspects.are_some() { MOST_DOUBTS_OF_SUSPECTS } else { MOST_DOUBTS };
        if self.doubts >= most {
            self.refused(request, wanted, &trouble.phrase);
            return Ok(());
        }
        if trouble.uncertain {
            self.destination.tally.repeated(self.signal(), request.records);
        }
        Err(trouble)
    }
}

impl Source for LaneSource {
    fn signal(&self) -> Signal {
        self.signal()
    }

    fn waiting(&self) -> u64 {
        self.exports.spool.depth(self.lane, &self.destination.name).records
    }

    async fn arrived(&mut self) {
        if self.arrivals.changed().await.is_err() {
            // The spool is gone, and nothing will ever arrive.
            std::future::pending::<()>().await;
        }
    }

    async fn send(&mut self, wire: &Wire) -> Result<(), Trouble> {
        if self.batch.is_none() {
            let taken = self.exports.spool.take(self.lane, &self.destination.name, LARGEST);
            self.batch = taken.map_err(|error| {
                Trouble::new(format!("is not asked: the spool cannot be read: {error}"), Pause::Busy)
            })?;
            self.suspects.begin();
        }
        let Some(batch) = &self.batch else { return Ok(()) };
        let wanted = self.suspects.limit(self.limit.records);
        let request = request::first_of(batch, BatchLimit { records: wanted, ..self.limit });
        let (answer, rejected) = wire.send(self.signal(), request.body.clone()).await;
        match answer {
            Answer::Delivered => self.delivered(&request, rejected),
            Answer::TooLarge => self.too_large(&request, wanted),
            Answer::Refused(why) => self.refused(&request, wanted, &why),
            Answer::Failed(trouble) => return self.failed(&request, wanted, trouble),
        }
        Ok(())
    }
}

const LARGEST: BatchLimit = BatchLimit { records: 4096, bytes: 1024 * 1024 };
const SMALLEST_BYTES: usize = 1024;
/// So often a request is tried on which the collector fails without saying why.
const MOST_DOUBTS: u32 = 8;
const MOST_DOUBTS_OF_SUSPECTS: u32 = 2;
