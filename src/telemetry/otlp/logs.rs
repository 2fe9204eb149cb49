//! The log records' way out: batches from the record queue, acknowledged only when the collector has them or will never take them.

use std::sync::Arc;

use tracing::warn;

use crate::telemetry::metrics::{Reason, Signal};
use crate::telemetry::queue::{Batch, BatchLimit, RecordQueue};

use super::answer::{Answer, Trouble};
use super::pump::Source;
use super::wire::Wire;
use super::{Exports, Records};

/// Which of the records.
pub type Of = fn(&Exports) -> &Records;

pub struct LogSource {
    exports: Arc<Exports>,
    of: Of,
    limit: BatchLimit,
    /// Failures in a row that may be the batch's own fault.
    doubts: u32,
}

impl LogSource {
    pub fn new(exports: Arc<Exports>, of: Of) -> Self {
        Self { exports, of, limit: LARGEST, doubts: 0 }
    }

    fn records(&self) -> &Records {
        (self.of)(&self.exports)
    }

    /// Gives a batch up, counted.
    fn give_up(&mut self, batch: &Batch, reason: Reason, why: &str) {
        let count = batch.records.len() as u64;
        self.records().queue.acknowledge(batch);
        self.exports.drop_counted(Signal::Logs, reason, count);
        warn!(records = count, reason = reason.as_str(), answer = why, "the collector did not take log records");
        self.doubts = 0;
    }

    fn halve(&mut self, batch: &Batch) {
        self.limit =
            BatchLimit { records: (batch.records.len() / 2).max(1), bytes: (self.limit.bytes / 2).max(SMALLEST_BYTES) };
    }

    /// Back towards the largest batch, slowly: a collector that refused a size will refuse it again.
    fn grow(&mut self) {
        let grown = |now: usize, most: usize| (now + now / 8 + 1).min(most);
        self.limit.records = grown(self.limit.records, LARGEST.records);
        self.limit.bytes = grown(self.limit.bytes, LARGEST.bytes);
    }
}

impl Source for LogSource {
    const SIGNAL: Signal = Signal::Logs;

    fn waiting(&self) -> u64 {
        self.records().queue.depth().records as u64
    }

    async fn arrived(&self) {
        self.records().queue.appended().await;
    }

    async fn send(&mut self, wire: &Wire) -> Result<(), Trouble> {
        let Some(batch) = self.records().queue.next_batch(self.limit) else { return Ok(()) };
        let request = self.records().frame.request(&batch.records);
        let (answer, rejected) = wire.send_logs(request).await;
        match answer {
            Answer::Delivered => {
                let count = batch.records.len() as u64;
                let rejected = rejected.min(count);
                self.records().queue.acknowledge(&batch);
                self.exports.tallies.exported(Signal::Logs, count - rejected);
                if rejected > 0 {
                    self.exports.drop_counted(Signal::Logs, Reason::Rejected, rejected);
                }
                self.doubts = 0;
                self.grow();
                Ok(())
            }
            Answer::TooLarge if batch.records.len() > 1 => {
                self.halve(&batch);
                Ok(())
            }
            Answer::TooLarge => {
                self.give_up(&batch, Reason::TooLarge, "one record alone is too large");
                Ok(())
            }
            Answer::Refused(why) => {
                self.give_up(&batch, Reason::Refused, &why);
                Ok(())
            }
            Answer::Failed(trouble) => {
                if trouble.overload {
                    self.halve(&batch);
                }
                self.doubts = if trouble.doubtful { self.doubts + 1 } else { 0 };
                if self.doubts >= MOST_DOUBTS {
                    self.give_up(&batch, Reason::Refused, &trouble.phrase);
                    return Ok(());
                }
                Err(trouble)
            }
        }
    }
}

const LARGEST: BatchLimit = BatchLimit { records: 512, bytes: 1024 * 1024 };
const SMALLEST_BYTES: usize = 1024;
/// So often a batch is tried on which the collector fails without saying why.
const MOST_DOUBTS: u32 = 8;
