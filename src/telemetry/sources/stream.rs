//! Lines from a pipe, read as those of a file are: chunk, records, spool.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroize;

use super::{Surroundings, pacing};
use crate::lifecycle::Shutdown;
use crate::telemetry::intake::{Entry, Kind};
use crate::telemetry::lines::batch::LogBatch;
use crate::telemetry::lines::rules::Rules;
use crate::telemetry::lines::{Cursor, End, LineReader, Placed, Work};

pub struct Stream<F> {
    pub scope: &'static str,
    pub rules: Rules,
    pub around: Surroundings,
    /// Where the source stands after these bytes, as it would like to hear it again.
    pub checkpoint: F,
    pub on_records: Box<dyn Fn(u64) + Send>,
}

impl<F> Stream<F>
where
    F: FnMut(&[u8]) -> Option<(&'static str, Vec<u8>)>,
{
    /// Reads until the end of the pipe or of the process. Whether the pipe ended.
    pub async fn run(mut self, mut from: impl AsyncRead + Unpin, shutdown: &mut Shutdown) -> bool {
        let mut buffer = vec![0; CHUNK.max(2 * self.rules.longest_read())];
        let (mut filled, mut position) = (0, 0);
        let (mut reader, mut cursor, mut batch) = (LineReader::default(), Cursor::default(), LogBatch::default());
        let owner = self.around.owner(self.scope);
        loop {
            let read = tokio::select! {
                read = from.read(&mut buffer[filled..]) => Some(read.unwrap_or(0)),
                // What waits for more has waited long enough.
                () = tokio::time::sleep(QUIET), if filled > 0 => None,
                () = shutdown.requested() => Some(0),
            };
            let is_over = read == Some(0);
            filled += read.unwrap_or(0);
            let end = match read {
                Some(0) => End::Closed,
                None => End::Quiet,
                Some(_) if filled == buffer.len() => End::Full,
                Some(_) => End::Open,
            };
            batch.begin(&owner);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let mut work = Work {
                rules: &self.rules,
                redactor: &*self.around.redactor,
                source: self.around.run,
                constant: &[],
                now: u64::try_from(now).unwrap_or(u64::MAX),
                batch: &mut batch,
                most_bytes: usize::MAX,
            };
            let used = reader.read(Placed { bytes: &buffer[..filled], position, end }, &mut cursor, &mut work);
            let records = batch.records();
            if records > 0 {
                let place = (self.checkpoint)(&buffer[..used]);
                let checkpoint = place.as_ref().map(|(name, place)| (*name, place.as_slice()));
                let entry = Entry { kind: Kind::Logs, records, body: batch.finish(&owner), checkpoint };
                if !pacing::append(&*self.around.intake, entry, shutdown).await {
                    return false;
                }
                (self.on_records)(u64::from(records));
            }
            buffer.copy_within(used..filled, 0);
            let left = filled - used;
            if reader.wipe() {
                buffer[left..filled].zeroize();
            }
            (filled, position) = (left, position + used as u64);
            if is_over {
                return !shutdown.is_requested();
            }
        }
    }
}

const CHUNK: usize = 64 * 1024;
const QUIET: Duration = Duration::from_secs(1);
