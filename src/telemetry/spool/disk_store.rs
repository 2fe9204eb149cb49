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
        let mut state = self.lock();
        let state = &mut *state;
        if state.lanes[lane as usize].readers.is_empty() {
            return Ok(state.lanes[lane as usize].segments.next);
        }
        let length = frame::length_of(body.len(), checkpoint) as u64;
        while !state.fits(lane, length) {
            let when_full = state.bounds.when_full;
            if when_full == WhenFull::DropNewest && lane != Lane::Audit {
                state.lose(lane, Loss::Full, records, &*self.losses);
                return Ok(state.lanes[lane as usize].segments.next);
            }
            if when_full != WhenFull::DropOldest || !state.drop_oldest(lane, &*self.losses) {
                return Err(NotTaken::Full);
            }
        }
        let mut written = state.lanes[lane as usize].segments.append(records, body, checkpoint);
        if written.is_err() && state.bounds.when_full == WhenFull::DropOldest && state.drop_oldest(lane, &*self.losses)
        {
            written = state.lanes[lane as usize].segments.append(records, body, checkpoint);
        }
        match written {
            Ok(()) => {
                state.recovered();
                let lane_state = &mut state.lanes[lane as usize];
                for reader in lane_state.readers.values_mut() {
                    reader.oldest.get_or_insert_with(SystemTime::now);
                }
                Ok(lane_state.segments.next)
            }
            Err(error) => {
                state.failed(&error);
                // Who can come again with the same is asked to; for others it is lost now.
                if checkpoint.is_some() || state.bounds.when_full == WhenFull::Block || lane == Lane::Audit {
                    return Err(NotTaken::Full);
                }
                state.lose(lane, Loss::Disk, records, &*self.losses);
                Ok(state.lanes[lane as usize].segments.next)
            }
        }
    }

    /// Whether a record of this length would be taken now.
    pub fn has_room(&self, lane: Lane, length: usize) -> bool {
        let state = self.lock();
        let may_drop = match state.bounds.when_full {
            WhenFull::Block => false,
            _ => lane != Lane::Audit,
        };
        state.failing.is_none() && (may_drop || state.fits(lane, length as u64))
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

    fn unlink_drained(&mut self) -> bool {
        let lowest = self.readers.values().map(|reader| reader.acknowledged).min();
        lowest.is_some_and(|lowest| self.segments.unlink_drained(lowest))
    }
}

impl State {
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

    /// Makes room for `lane`: from its own oldest records, or if it has none to give, from the largest other lane but audit.
    fn drop_oldest(&mut self, lane: Lane, losses: &dyn Losses) -> bool {
        let mut order: Vec<Lane> = Lane::ALL.into_iter().filter(|other| *other != Lane::Audit).collect();
        order.sort_by_key(|other| (*other != lane, std::cmp::Reverse(self.lanes[*other as usize].segments.bytes())));
        for victim in order {
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
                    losses.lost(name, victim, Loss::Full, lost);
                }
            }
            return true;
        }
        false
    }

    fn lose(&self, lane: Lane, why: Loss, records: u32, losses: &dyn Losses) {
        for name in self.lanes[lane as usize].readers.keys() {
            losses.lost(name, lane, why, u64::from(records));
        }
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

/// One part in so many.
const AUDIT_SHARE: u64 = 8;
