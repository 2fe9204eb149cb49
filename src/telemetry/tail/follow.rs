//! A file that is followed, and one step of it: a chunk read, encoded, and appended with the place after it.
//!
//! Invariant: the position moves only when the records before it are in the spool, or when there were none.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroize;

use super::position::{HEAD, Key, Position, Print, TAIL, source_name};
use super::read::{Filled, Source};
use super::settings::FileSet;
use crate::ports::Redactor;
use crate::telemetry::intake::{Entry, Intake, Kind, NotTaken};
use crate::telemetry::lines::batch::{LogBatch, Owner};
use crate::telemetry::lines::{End, LineReader, Placed, Work};

pub struct Followed {
    /// The name that leads to it, or has led to it.
    pub path: PathBuf,
    /// The folder that it is in when every link is followed, as the last scan found it.
    pub folder: Option<PathBuf>,
    pub key: Key,
    pub source: Source,
    pub position: Position,
    pub set: Arc<FileSet>,
    pub owner: Owner,
    pub constant: Vec<u8>,
    pub state: State,
    /// There may be something to read.
    pub is_due: bool,
    /// Where its end was, and since when.
    pub end: u64,
    pub grew: Instant,
    pub failed: Option<io::ErrorKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Live,
    /// No name that is looked for leads to it any more; whoever has it open may still write.
    Moved(Instant),
    /// Nothing will be added to it.
    Finished,
    /// It has the contents of a file that is followed, and waits for what becomes of that one.
    CopyOf(Key),
}

/// What a step came to.
#[derive(Debug)]
pub enum Step {
    /// There is nothing more for now.
    Rest,
    /// There may be more.
    More,
    /// Nothing is left, and nothing will come.
    Done,
    /// Others stand where it was read before.
    Rewritten,
    /// The spool has no room.
    Blocked,
    Failed(io::Error),
}

/// What every step uses, once.
pub struct Tools {
    pub buffer: Vec<u8>,
    pub reader: LineReader,
    pub batch: LogBatch,
    pub intake: Arc<dyn Intake>,
    pub redactor: Arc<dyn Redactor>,
    pub on_records: Box<dyn Fn(u64) + Send>,
}

impl Followed {
    pub fn step(&mut self, tools: &mut Tools, now: Instant, wall: u64) -> Step {
        if matches!(self.state, State::CopyOf(_)) {
            return Step::Rest;
        }
        match self.try_step(tools, now, wall) {
            Ok(step) => {
                self.failed = None;
                step
            }
            Err(error) => Step::Failed(error),
        }
    }

    fn try_step(&mut self, tools: &mut Tools, now: Instant, wall: u64) -> io::Result<Step> {
        let (count, is_end) = match self.source.fill(&self.position, &mut tools.buffer)? {
            Filled::Bytes { count, is_end } => (count, is_end),
            Filled::Rewritten => return Ok(Step::Rewritten),
        };
        let end = self.position.offset + count as u64;
        if end != self.end {
            (self.end, self.grew) = (end, now);
        }
        let what_follows = if is_end { self.at_end(now) } else { End::Full };
        if count == 0 {
            return Ok(self.rest(now));
        }
        let used = match self.take(count, what_follows, tools, wall)? {
            Some(used) => used,
            None => return Ok(Step::Blocked),
        };
        Ok(match (is_end, used == count) {
            (false, _) => Step::More,
            (true, true) => self.rest(now),
            // Work that was cut short by the size of a batch.
            (true, false) if used > 0 => Step::More,
            (true, false) => Step::Rest,
        })
    }

    /// Encodes and appends what is complete of the chunk. How much was done with; `None`: the spool has no room.
    fn take(&mut self, count: usize, end: End, tools: &mut Tools, wall: u64) -> io::Result<Option<usize>> {
        let bytes = &tools.buffer[TAIL..TAIL + count];
        let mut position = self.position.clone();
        if position.id == 0 && !self.identify(&mut position, bytes, end)? {
            return Ok(Some(0));
        }
        tools.batch.begin(&self.owner);
        let mut work = Work {
            rules: &self.set.rules,
            redactor: &*tools.redactor,
            source: position.id,
            constant: &self.constant,
            now: wall,
            batch: &mut tools.batch,
            most_bytes: BATCH,
        };
        let placed = Placed { bytes, position: position.offset, end };
        let used = tools.reader.read(placed, &mut position.cursor, &mut work);
        if used > 0 {
            self.advance(&mut position, &tools.buffer, used)?;
        }
        let records = tools.batch.records();
        if records > 0 {
            let (name, place) = (source_name(self.key), position.encode(&self.path));
            let body = tools.batch.finish(&self.owner);
            let checkpoint = Some((name.as_str(), place.as_slice()));
            match tools.intake.append(Entry { kind: Kind::Logs, records, body, checkpoint }) {
                Ok(()) => (tools.on_records)(u64::from(records)),
                Err(NotTaken::Full) => return Ok(None),
                Err(NotTaken::TooLarge) => {
                    tracing::warn!(path = %self.path.display(), records, "log records are larger than a request may be");
                }
            }
        }
        self.position = position;
        if tools.reader.wipe() {
            tools.buffer[..TAIL + count].zeroize();
        }
        Ok(Some(used))
    }

    /// Makes the id, if what makes it is there.
    fn identify(&self, position: &mut Position, bytes: &[u8], end: End) -> io::Result<bool> {
        let mut beginning = [0; HEAD];
        let bytes = if position.offset == 0 {
            bytes
        } else {
            let count = self.source.beginning(&mut beginning)?;
            &beginning[..count]
        };
        let is_there = end == End::Closed || bytes.len() >= HEAD || memchr::memchr(b'\n', bytes).is_some();
        if is_there {
            position.identify(self.key, bytes);
        }
        Ok(is_there)
    }

    fn advance(&self, position: &mut Position, buffer: &[u8], used: usize) -> io::Result<()> {
        // Of what is packed, the bytes before are not in the buffer.
        let before = if self.source.is_packed() { 0 } else { position.tail.length() };
        let offset = position.offset + used as u64;
        if position.head.length() < HEAD {
            let most = HEAD.min(usize::try_from(offset).unwrap_or(HEAD));
            if position.offset == 0 {
                position.head = Print::of(&buffer[TAIL..TAIL + used.min(HEAD)]);
            } else if position.head.length() < most && !self.source.is_packed() {
                let mut beginning = [0; HEAD];
                let count = self.source.beginning(&mut beginning)?.min(most);
                position.head = Print::of(&beginning[..count]);
            }
        }
        position.advance(offset, &buffer[TAIL - before..TAIL + used]);
        Ok(())
    }

    fn at_end(&self, now: Instant) -> End {
        let quiet = now.saturating_duration_since(self.grew);
        match self.state {
            State::Finished => End::Closed,
            State::Moved(_) if quiet >= MOVED_LINE_WAIT => End::Closed,
            _ if quiet >= LINE_WAIT => End::Closed,
            _ if quiet >= self.set.flush_after => End::Quiet,
            _ => End::Open,
        }
    }

    /// All of it was read.
    fn rest(&self, now: Instant) -> Step {
        let quiet = now.saturating_duration_since(self.grew);
        match self.state {
            State::Finished => Step::Done,
            State::Moved(since) if quiet >= MOVED_WAIT && now.saturating_duration_since(since) >= MOVED_WAIT => {
                Step::Done
            }
            State::Moved(since)
                if now.saturating_duration_since(since) >= UNLINKED_WAIT
                    && self.source.stat().is_ok_and(|(_, names)| names == 0) =>
            {
                Step::Done
            }
            _ => Step::Rest,
        }
    }

    /// What waits to be read.
    pub fn lag(&self) -> u64 {
        self.end.saturating_sub(self.position.offset)
    }
}

/// Encoded records of one request: a fraction of the smallest spool.
const BATCH: usize = 256 * 1024;
/// A line that does not end is one after this.
const LINE_WAIT: Duration = Duration::from_secs(30);
const MOVED_LINE_WAIT: Duration = Duration::from_secs(5);
/// Whoever has a file open that was renamed may write to it for so long without a pause longer than this.
const MOVED_WAIT: Duration = Duration::from_secs(60);
const UNLINKED_WAIT: Duration = Duration::from_secs(5);
