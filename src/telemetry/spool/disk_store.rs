//! The spool on disk: a folder for each lane, one bound for all of them, and a reader for each destination and lane.
//!
//! Locks are taken in this order: a reader's walker, then the state. Nothing waits for the disk's own time under the state's lock except
//! a write into the kernel's cache, and an unlink.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::cursor::{self, Cursor};
use super::disk::{Folder, Lock, RealFolder};
use super::frame::{self, Checkpoint};
use super::reader::Walker;
use super::segments::{Segments, Unsynced};
use super::{Batch, BatchLimit, Depth, Lane, Loss, Losses, NotTaken, SpoolBounds, WhenFull};

pub struct DiskStore {
    state: Mutex<State>,
    walkers: Mutex<Walkers>,
    losses: Arc<dyn Losses>,
    _lock: Option<Lock>,
}

type Walkers = BTreeMap<(Lane, String), Arc<Mutex<Walker>>>;

struct State {
    lanes: [LaneState; Lane::ALL.len()],
    bounds: SpoolBounds,
    /// Why the disk does not take more, while it does not.
    failing: Option<String>,
}

struct LaneState {
    folder: Arc<dyn Folder>,
    segments: Segments,
    readers: BTreeMap<String, Reader>,
}

/// How far a destination is.
struct Reader {
    /// What comes next in a batch.
    read: u64,
    /// What was not acknowledged yet.
    acknowledged: u64,
    /// When the oldest of it was appended.
    oldest: Option<SystemTime>,
}

impl DiskStore {
    /// Opens the spool in `path`, or makes it, and keeps others out of it.
    pub fn open(path: &Path, bounds: SpoolBounds, losses: Arc<dyn Losses>) -> io::Result<Self> {
        let lock = Lock::take(path)?;
        let mut folders: Vec<Arc<dyn Folder>> = Vec::new();
        for lane in Lane::ALL {
            folders.push(Arc::new(RealFolder::open(path.join(lane.as_str()))?));
        }
        let segment_bytes = bounds.segment_bytes();
        Self::open_in(|lane| folders[lane as usize].clone(), bounds, segment_bytes, losses, Some(lock))
    }

    pub(super) fn open_in(
        folder: impl Fn(Lane) -> Arc<dyn Folder>,
        bounds: SpoolBounds,
        segment_bytes: u64,
        losses: Arc<dyn Losses>,
        lock: Option<Lock>,
    ) -> io::Result<Self> {
        let open = |lane| LaneState::open(folder(lane), segment_bytes);
        let lanes = [open(Lane::Audit)?, open(Lane::Logs)?, open(Lane::Traces)?, open(Lane::Metrics)?];
        let state = Mutex::new(State { lanes, bounds, failing: None });
        Ok(Self { state, walkers: Mutex::default(), losses, _lock: lock })
    }

    /// Makes these the destinations. A new one begins with the oldest record that is left; of one that is gone no trace is kept.
    pub fn set_destinations(&self, names: &[String]) -> io::Result<()> {
        let mut walkers = self.walkers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let mut failed = Ok(());
        for lane in Lane::ALL {
            let lane_state = &mut state.lanes[lane as usize];
            for gone in cursor::names(&*lane_state.folder)?.into_iter().filter(|name| !names.contains(name)) {
                lane_state.readers.remove(&gone);
                walkers.remove(&(lane, gone.clone()));
                cursor::remove(&*lane_state.folder, &gone)?;
            }
            lane_state.readers.retain(|name, _| names.contains(name));
            for name in names {
                if lane_state.readers.contains_key(name) {
                    continue;
                }
                let (mut cursor, number) = Cursor::open(&*lane_state.folder, name).unwrap_or_else(|error| {
                    failed = Err(error);
                    (Cursor::unwritten(), None)
                });
                // What is not there any more was delivered, or dropped and counted, before this process began.
                let known = number.is_some();
                let number = number.unwrap_or(0).clamp(lane_state.segments.base(), lane_state.segments.next);
                // A new one fills both of its slots, so that later ones need no more room on the disk.
                let written = if known { Ok(()) } else { cursor.write(number).and_then(|()| cursor.write(number)) };
                failed = written.and(failed);
                lane_state.readers.insert(name.clone(), Reader { read: number, acknowledged: number, oldest: None });
                walkers
                    .insert((lane, name.clone()), Arc::new(Mutex::new(Walker::new(lane_state.folder.clone(), cursor))));
            }
            lane_state.unlink_drained();
        }
        failed
    }

    pub fn set_bounds(&self, bounds: SpoolBounds) {
        self.lock().bounds = bounds;
    }

    pub fn append(
        &self,
        lane: Lane,
        records: u32,
        body: &[u8],
        checkpoint: Option<Checkpoint<'_>>,
    ) -> Result<u64, NotTaken> {
        let mut lost = Vec::new();
        let taken = self.lock().append(lane, records, body, checkpoint, &mut lost);
        self.tell(lost);
        taken
    }

    /// Out of the lock, for whoever is told may have something to say.
    fn tell(&self, lost: Vec<Lost>) {
        for Lost { destination, lane, why, records } in lost {
            self.losses.lost(&destination, lane, why, records);
        }
    }

    /// Whether the bounds have room for a body of this length, made by dropping others where that is asked for.
    pub fn has_room(&self, lane: Lane, length: usize) -> bool {
        let state = self.lock();
        match (state.bounds.when_full, lane) {
            (WhenFull::DropOldest, Lane::Audit) => {
                state.lanes[lane as usize].segments.bytes() + (length + LEFT_OF_OTHERS) as u64 <= state.bounds.max_bytes
            }
            (WhenFull::Block, _) | (_, Lane::Audit) => state.fits(lane, length as u64),
            (WhenFull::DropOldest | WhenFull::DropNewest, _) => true,
        }
    }

    /// Whether it fits with an eighth of the bound to spare: beside all that is there, or where the oldest may go, beside all that the
    /// foremost destination has not got.
    pub fn make_spare(&self, lane: Lane, length: usize) -> bool {
        let mut lost = Vec::new();
        let fits = self.lock().make_spare(lane, length as u64, &mut lost);
        self.tell(lost);
        fits
    }

    pub fn checkpoint(&self, source: &str) -> Option<Vec<u8>> {
        self.lock().lanes.iter().find_map(|lane| lane.segments.checkpoints.get(source).map(<[u8]>::to_vec))
    }

    pub fn checkpoints(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.lock();
        let all = state.lanes.iter().flat_map(|lane| lane.segments.checkpoints.iter());
        all.map(|checkpoint| (checkpoint.source.to_owned(), checkpoint.position.to_vec())).collect()
    }

    /// The next records for a destination, which are then on their way. `None`: there are no more.
    pub fn take(&self, lane: Lane, destination: &str, limit: BatchLimit) -> io::Result<Option<Batch>> {
        let Some(walker) = self.walker(lane, destination) else { return Ok(None) };
        let mut walker = walker.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.reader(lane, destination, |reader, _| {
            // Whoever asks for more is done with what it had.
            reader.acknowledged = reader.read;
            reader.read
        });
        let Some(from) = from else { return Ok(None) };
        let taken = walker.take(from, limit, |look| look(&self.lock().lanes[lane as usize].segments));
        let (mut batch, lost) = taken?;
        let settled = self.reader(lane, destination, |reader, _| {
            // Meanwhile a bound may have dropped some of it, which was counted then.
            batch.skip_to(reader.read.max(from));
            reader.read = reader.read.max(batch.end);
            if reader.acknowledged < reader.read && batch.is_empty() {
                // Nothing is left of it that could be acknowledged.
                reader.acknowledged = reader.read;
            }
            if let Some(appended) = batch.appended {
                reader.oldest = Some(appended);
            }
        });
        if lost > 0 {
            self.losses.lost(destination, lane, Loss::Damaged, lost);
        }
        Ok(settled.filter(|()| !batch.is_empty()).map(|()| batch))
    }

    /// The records before `upto` are with the destination, or given up. Returns whether there is more room now.
    pub fn acknowledge(&self, lane: Lane, destination: &str, upto: u64) -> io::Result<bool> {
        let Some(walker) = self.walker(lane, destination) else { return Ok(false) };
        let mut walker = walker.lock().unwrap_or_else(PoisonError::into_inner);
        let written = walker.cursor.write(upto);
        let mut state = self.lock();
        let lane_state = &mut state.lanes[lane as usize];
        let next = lane_state.segments.next;
        if let Some(reader) = lane_state.readers.get_mut(destination) {
            reader.acknowledged = reader.acknowledged.max(upto);
            if reader.acknowledged >= next {
                reader.oldest = None;
            }
        }
        let freed = lane_state.unlink_drained();
        written.map(|()| freed)
    }

    pub fn depth(&self, lane: Lane, destination: &str) -> Depth {
        let measured = self.reader(lane, destination, |reader, segments| Depth {
            records: segments.next.saturating_sub(reader.acknowledged),
            oldest: reader.oldest,
        });
        measured.unwrap_or_default()
    }

    /// The number of the next record.
    pub fn next(&self, lane: Lane) -> u64 {
        self.lock().lanes[lane as usize].segments.next
    }

    /// What it takes on the disk, the most that it may take, and why the disk takes no more.
    pub fn usage(&self) -> (u64, u64, Option<String>) {
        let state = self.lock();
        (state.used(), state.bounds.max_bytes, state.failing.clone())
    }

    pub fn is_dirty(&self) -> bool {
        self.lock().lanes.iter().any(|lane| lane.segments.is_dirty())
    }

    /// What was written since the last call.
    pub fn take_unsynced(&self) -> Vec<Unsynced> {
        let mut state = self.lock();
        let all = state.lanes.iter_mut().map(|lane| lane.segments.take_unsynced());
        all.filter(|unsynced| !unsynced.is_empty()).collect()
    }

    fn walker(&self, lane: Lane, destination: &str) -> Option<Arc<Mutex<Walker>>> {
        let walkers = self.walkers.lock().unwrap_or_else(PoisonError::into_inner);
        walkers.get(&(lane, destination.to_owned())).cloned()
    }

    fn reader<T>(&self, lane: Lane, name: &str, look: impl FnOnce(&mut Reader, &Segments) -> T) -> Option<T> {
        let mut state = self.lock();
        let lane = &mut state.lanes[lane as usize];
        let reader = lane.readers.get_mut(name)?;
        Some(look(reader, &lane.segments))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneState {
    fn open(folder: Arc<dyn Folder>, segment_bytes: u64) -> io::Result<Self> {
        let mut at_least = 0;
        for name in cursor::names(&*folder)? {
            let (_, number) = Cursor::open(&*folder, &name)?;
            at_least = at_least.max(number.unwrap_or(0));
        }
        let segments = Segments::open(folder.clone(), segment_bytes, at_least)?;
        Ok(Self { folder, segments, readers: BTreeMap::new() })
    }

    /// A destination has all of the oldest segment, so that only those lose something by its end that are behind.
    fn is_oldest_with_somebody(&self) -> bool {
        let foremost = self.readers.values().map(|reader| reader.acknowledged).max();
        self.segments.oldest_end().zip(foremost).is_some_and(|(end, foremost)| foremost >= end)
    }

    fn unlink_drained(&mut self) -> bool {
        let lowest = self.readers.values().map(|reader| reader.acknowledged).min();
        lowest.is_some_and(|lowest| self.segments.unlink_drained(lowest))
    }
}

/// Records that a destination will not get.
struct Lost {
    destination: String,
    lane: Lane,
    why: Loss,
    records: u64,
}

impl State {
    fn append(
        &mut self,
        lane: Lane,
        records: u32,
        body: &[u8],
        checkpoint: Option<Checkpoint<'_>>,
        lost: &mut Vec<Lost>,
    ) -> Result<u64, NotTaken> {
        let next = self.lanes[lane as usize].segments.next;
        if self.lanes[lane as usize].readers.is_empty() {
            return Ok(next);
        }
        let length = frame::length_of(body.len(), checkpoint) as u64;
        let when_full = self.bounds.when_full;
        while !self.fits(lane, length) {
            if when_full == WhenFull::DropNewest && lane != Lane::Audit {
                self.lose(lane, Loss::Full, records, lost);
                return Ok(next);
            }
            if when_full != WhenFull::DropOldest || !self.drop_oldest(lane, lost) {
                return Err(NotTaken::Full);
            }
        }
        let mut written = self.lanes[lane as usize].segments.append(records, body, checkpoint);
        if written.is_err() && when_full == WhenFull::DropOldest && self.drop_oldest(lane, lost) {
            written = self.lanes[lane as usize].segments.append(records, body, checkpoint);
        }
        match written {
            Ok(()) => {
                self.recovered();
                let lane_state = &mut self.lanes[lane as usize];
                for reader in lane_state.readers.values_mut() {
                    reader.oldest.get_or_insert_with(SystemTime::now);
                }
                Ok(lane_state.segments.next)
            }
            Err(error) => {
                self.failed(&error);
                // Who can come again with the same is asked to; for others it is lost now.
                if checkpoint.is_some() || when_full == WhenFull::Block || lane == Lane::Audit {
                    return Err(NotTaken::Full);
                }
                self.lose(lane, Loss::Disk, records, lost);
                Ok(next)
            }
        }
    }

    fn used(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.segments.bytes()).sum()
    }

    /// A part of the room is for audit events only, so that nothing else keeps them out.
    fn fits(&self, lane: Lane, length: u64) -> bool {
        let most = self.bounds.max_bytes;
        let audit = self.lanes[Lane::Audit as usize].segments.bytes();
        match lane {
            Lane::Audit => self.used() + length <= most,
            _ => self.used() - audit + audit.max(most / AUDIT_SHARE) + length <= most,
        }
    }

    fn make_spare(&mut self, lane: Lane, length: u64, lost: &mut Vec<Lost>) -> bool {
        let wanted = length + self.bounds.max_bytes / 8;
        while !self.fits(lane, wanted) {
            let may_drop = self.bounds.when_full == WhenFull::DropOldest;
            if !may_drop || !self.drop_oldest_of(lane, lost, LaneState::is_oldest_with_somebody) {
                return false;
            }
        }
        true
    }

    /// Makes room for `lane`.
    fn drop_oldest(&mut self, lane: Lane, lost: &mut Vec<Lost>) -> bool {
        self.drop_oldest_of(lane, lost, |_| true)
    }

    /// Drops the oldest records of `lane`, or if it has none to give, of the largest other lane but audit.
    fn drop_oldest_of(&mut self, lane: Lane, losses: &mut Vec<Lost>, may_give: impl Fn(&LaneState) -> bool) -> bool {
        let mut order: Vec<Lane> = Lane::ALL.into_iter().filter(|other| *other != Lane::Audit).collect();
        order.sort_by_key(|other| (*other != lane, std::cmp::Reverse(self.lanes[*other as usize].segments.bytes())));
        for victim in order.into_iter().filter(|victim| may_give(&self.lanes[*victim as usize])).collect::<Vec<_>>() {
            let lane_state = &mut self.lanes[victim as usize];
            let Some(base) = lane_state.segments.drop_oldest() else { continue };
            for (name, reader) in &mut lane_state.readers {
                let lost = base.saturating_sub(reader.read);
                if lost > 0 {
                    // What was on its way is acknowledged by whoever sends it.
                    if reader.acknowledged == reader.read {
                        reader.acknowledged = base;
                    }
                    reader.read = base;
                    losses.push(Lost { destination: name.clone(), lane: victim, why: Loss::Full, records: lost });
                }
            }
            return true;
        }
        false
    }

    fn lose(&self, lane: Lane, why: Loss, records: u32, lost: &mut Vec<Lost>) {
        let names = self.lanes[lane as usize].readers.keys();
        lost.extend(names.map(|name| Lost { destination: name.clone(), lane, why, records: records.into() }));
    }

    fn failed(&mut self, error: &io::Error) {
        if self.failing.is_none() {
            tracing::error!(%error, "the spool cannot be written");
        }
        self.failing = Some(error.to_string());
    }

    fn recovered(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!("the spool is written again");
        }
    }
}

/// What lanes keep of which every record was dropped.
const LEFT_OF_OTHERS: usize = 64 * 1024;
/// One part in so many.
const AUDIT_SHARE: u64 = 8;
