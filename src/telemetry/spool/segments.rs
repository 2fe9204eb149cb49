//! The segments of one lane: files of frames, of which only the newest grows.
//!
//! A segment is named by the number of its first record, `00000000000000004711.seg`. It begins with two frames that say where every source
//! stands, two because a damaged one must not cost the positions; so nothing is lost when the segments before it are unlinked, and a start
//! reads no more than the newest segment. A frame is with the kernel before `append` returns. A torn tail is cut when the lane is opened.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::checkpoints::Checkpoints;
use super::disk::{DiskFile, Folder};
use super::frame::{self, Checkpoint, Kind};
use super::walk::Walk;

pub struct Segments {
    folder: Arc<dyn Folder>,
    /// Oldest first.
    list: VecDeque<Arc<Segment>>,
    /// The newest of them, open to be written; `None`: the next frame begins a new one.
    active: Option<Arc<dyn DiskFile>>,
    /// The number of the next record.
    pub next: u64,
    bytes: u64,
    segment_bytes: u64,
    pub checkpoints: Checkpoints,
    buffer: Vec<u8>,
    unsynced: Vec<Arc<dyn DiskFile>>,
    active_dirty: bool,
    folder_dirty: bool,
}

#[derive(Debug)]
pub struct Segment {
    /// The number of its first record.
    pub base: u64,
    committed: AtomicU64,
    gone: AtomicBool,
}

impl Segment {
    fn new(base: u64, committed: u64) -> Arc<Self> {
        Arc::new(Self { base, committed: AtomicU64::new(committed), gone: AtomicBool::new(false) })
    }

    /// So far it holds whole frames.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub fn name(&self) -> String {
        name_of(self.base)
    }
}

impl Segments {
    /// Finds what is there, cuts a torn tail, and reads where the sources stand. `at_least`: what readers have already counted.
    pub fn open(folder: Arc<dyn Folder>, segment_bytes: u64, at_least: u64) -> io::Result<Self> {
        let mut found: Vec<(u64, u64)> =
            folder.list()?.iter().filter_map(|(name, length)| Some((base_of(name)?, *length))).collect();
        found.sort_unstable();
        let list: VecDeque<_> = found.into_iter().map(|(base, length)| Segment::new(base, length)).collect();
        let mut segments = Self {
            folder,
            bytes: list.iter().map(|segment| segment.committed()).sum(),
            list,
            active: None,
            next: 0,
            segment_bytes,
            checkpoints: Checkpoints::default(),
            buffer: Vec::new(),
            unsynced: Vec::new(),
            active_dirty: false,
            folder_dirty: false,
        };
        segments.recover()?;
        if at_least > segments.next {
            // Records that were delivered, and lost here with the power: their numbers are not given again.
            segments.next = at_least;
        }
        Ok(segments)
    }

    fn recover(&mut self) -> io::Result<()> {
        for (age, segment) in self.list.iter().rev().enumerate() {
            let file = self.folder.open(&segment.name(), false)?;
            let seen = look_through(&file, segment)?;
            self.checkpoints.add_older(seen.sources);
            if age == 0 {
                self.next = seen.next;
                if seen.end < segment.committed() {
                    file.truncate(seen.end)?;
                    self.bytes -= segment.committed() - seen.end;
                    segment.committed.store(seen.end, Ordering::Release);
                    self.active_dirty = true;
                }
                // Without a table of its own it is not added to: the next frame begins a segment that has one.
                self.active = seen.has_table.then_some(file);
            }
            if seen.has_table {
                break;
            }
        }
        self.checkpoints.settle();
        Ok(())
    }

    /// Writes a frame and returns what it took on the disk. After an error nothing has changed.
    pub fn append(&mut self, records: u32, body: &[u8], checkpoint: Option<Checkpoint<'_>>) -> io::Result<()> {
        let length = frame::length_of(body.len(), checkpoint) as u64;
        let newest = self.list.back().map_or(0, |segment| segment.committed());
        if self.active.is_none() || (newest > 0 && newest + length > self.segment_bytes) {
            self.roll()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        frame::write(&mut buffer, self.next, records, body, checkpoint);
        let written = self.write(&buffer);
        if buffer.capacity() <= KEPT_BUFFER {
            self.buffer = buffer;
        }
        written?;
        self.next += u64::from(records);
        if let Some(checkpoint) = checkpoint {
            self.checkpoints.set(checkpoint);
        }
        Ok(())
    }

    /// Begins a new segment.
    fn roll(&mut self) -> io::Result<()> {
        let segment = Segment::new(self.next, 0);
        let file = self.folder.open(&segment.name(), true)?;
        // One of this name that holds no record may be there.
        file.truncate(0)?;
        let mut table = Vec::new();
        frame::write_checkpoints(&mut table, self.next, self.checkpoints.iter());
        table.extend_from_within(..);
        if let Err(error) = file.write_at(&table, 0) {
            match self.list.back().filter(|newest| newest.base == segment.base) {
                // It held nothing but tables, and now not even those.
                Some(emptied) => {
                    self.bytes -= emptied.committed.swap(0, Ordering::AcqRel);
                    self.active = None;
                }
                // If it stays, it is found empty and used.
                None => drop(self.folder.remove(&segment.name())),
            }
            return Err(error);
        }
        segment.committed.store(table.len() as u64, Ordering::Release);
        if self.list.back().is_some_and(|newest| newest.base == segment.base)
            && let Some(replaced) = self.list.pop_back()
        {
            replaced.gone.store(true, Ordering::Release);
            self.bytes -= replaced.committed();
        }
        if let Some(sealed) = self.active.replace(file).filter(|_| self.active_dirty) {
            self.unsynced.push(sealed);
        }
        self.bytes += table.len() as u64;
        self.list.push_back(segment);
        (self.active_dirty, self.folder_dirty) = (true, true);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(file), Some(segment)) = (&self.active, self.list.back()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let at = segment.committed();
        if let Err(error) = file.write_at(bytes, at) {
            // What got through would only waste room; the next frame is written over it.
            let _ = file.truncate(at);
            return Err(error);
        }
        segment.committed.store(at + bytes.len() as u64, Ordering::Release);
        self.bytes += bytes.len() as u64;
        self.active_dirty = true;
        Ok(())
    }

    /// Unlinks the oldest segment. `None`: there is none that could go. Else the number of the first record that is left.
    pub fn drop_oldest(&mut self) -> Option<u64> {
        if self.list.len() < 2 {
            let holds_records = self.list.back().is_some_and(|segment| segment.base < self.next);
            if !holds_records || self.roll().is_err() {
                return None;
            }
        }
        self.unlink_oldest();
        Some(self.base())
    }

    /// Unlinks the segments of which every record is below `upto`.
    pub fn unlink_drained(&mut self, upto: u64) -> bool {
        let before = self.list.len();
        while self.list.get(1).is_some_and(|second| second.base <= upto) {
            self.unlink_oldest();
        }
        let large =
            self.list.back().is_some_and(|newest| newest.committed() > WORTH_RECLAIMING && newest.base < self.next);
        if self.list.len() == 1 && upto >= self.next && large && self.roll().is_ok() {
            self.unlink_oldest();
        }
        self.list.len() < before
    }

    fn unlink_oldest(&mut self) {
        let Some(segment) = self.list.pop_front() else { return };
        segment.gone.store(true, Ordering::Release);
        self.bytes -= segment.committed();
        self.folder_dirty = true;
        if let Err(error) = self.folder.remove(&segment.name()) {
            // It is found, and drained again, at the next start.
            tracing::warn!(%error, segment = segment.name(), "a segment of the spool could not be removed");
        }
    }

    /// The number of the oldest record that is left.
    pub fn base(&self) -> u64 {
        self.list.front().map_or(self.next, |segment| segment.base)
    }

    /// The number of the first record behind the oldest segment. `None`: it holds no record.
    pub fn oldest_end(&self) -> Option<u64> {
        let end = self.list.get(1).map_or(self.next, |second| second.base);
        (self.base() < end).then_some(end)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The segment in which record `number` is, or the oldest if it is gone.
    pub fn segment_of(&self, number: u64) -> Option<Arc<Segment>> {
        let after = self.list.partition_point(|segment| segment.base <= number);
        self.list.get(after.saturating_sub(1)).cloned()
    }

    /// The segment after `segment`.
    pub fn after(&self, segment: &Segment) -> Option<Arc<Segment>> {
        self.list.get(self.list.partition_point(|other| other.base <= segment.base)).cloned()
    }

    pub fn is_dirty(&self) -> bool {
        self.active_dirty || self.folder_dirty || !self.unsynced.is_empty()
    }

    /// What was written since the last call, to be synced outside of any lock.
    pub fn take_unsynced(&mut self) -> Unsynced {
        let mut files = std::mem::take(&mut self.unsynced);
        if std::mem::take(&mut self.active_dirty) {
            files.extend(self.active.clone());
        }
        let folder = std::mem::take(&mut self.folder_dirty).then(|| self.folder.clone());
        Unsynced { files, folder }
    }
}

pub struct Unsynced {
    files: Vec<Arc<dyn DiskFile>>,
    folder: Option<Arc<dyn Folder>>,
}

impl Unsynced {
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folder.is_none()
    }

    pub fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.sync())?;
        self.folder.as_ref().map_or(Ok(()), |folder| folder.sync())
    }
}

struct Seen {
    /// Behind the last good frame.
    end: u64,
    next: u64,
    has_table: bool,
    sources: BTreeMap<String, Vec<u8>>,
}

fn look_through(file: &Arc<dyn DiskFile>, segment: &Segment) -> io::Result<Seen> {
    let mut seen = Seen { end: 0, next: segment.base, has_table: false, sources: BTreeMap::new() };
    let mut walk = Walk::new(file.clone());
    while let Some(frame) = walk.next(segment.committed(), seen.next)? {
        seen.end = walk.at();
        match frame.kind {
            Kind::Checkpoints => {
                seen.has_table = true;
                seen.sources.extend(frame::checkpoints(&frame.body).map(|(source, at)| (source, at.to_vec())));
            }
            Kind::Records => {
                // Whatever stands there, a new record's number is beyond all of them.
                seen.next = seen.next.max(frame.first + u64::from(frame.records));
                if !frame.source.is_empty() {
                    let source = String::from_utf8_lossy(&frame.source).into_owned();
                    seen.sources.insert(source, frame.position.to_vec());
                }
            }
        }
    }
    Ok(seen)
}

fn name_of(base: u64) -> String {
    format!("{base:020}{SUFFIX}")
}

fn base_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 20)?;
    let base = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())??;
    (base <= frame::MOST_NUMBER).then_some(base)
}

const SUFFIX: &str = ".seg";
/// A larger buffer is not kept between frames.
const KEPT_BUFFER: usize = 256 * 1024;
/// A newest segment of this size is unlinked too when everybody has all of it.
const WORTH_RECLAIMING: u64 = 1024 * 1024;
