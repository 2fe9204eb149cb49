//! The spool: encoded records between whoever has something to say and the exporters, on disk or in memory.
//!
//! `append` takes the bytes of one OTLP export request with the position of the source that they came from, in one frame: either both are
//! in the spool or neither is, so a source that begins again at its last checkpoint neither misses a record nor repeats one. On disk a
//! frame is with the kernel when `append` returns, which `SIGKILL` does not undo; a part syncs it to the disk a few times a second.
//! Each destination reads each lane at its own pace, from a cursor that moves when the destination has acknowledged, and a segment that
//! everybody has is unlinked. What a bound forces out is counted and never silently lost. The spool knows nothing of the network, and of
//! the records no more than how many they are.
//!
//! `frame` is the format, `segments` the files of a lane, `walk` and `reader` the way through them, `cursor` how far a destination is,
//! `checkpoints` where the sources stand, `keeper` syncs, `disk_store` all of it together behind one bound, `memory_store` what is used without a folder.

mod checkpoints;
mod cursor;
pub mod disk;
mod disk_store;
pub mod frame;
pub mod keeper;
mod memory_store;
mod reader;
mod segments;
mod walk;

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use disk_store::DiskStore;
pub use frame::{Checkpoint, MOST_BODY_BYTES, MOST_POSITION_BYTES, MOST_SOURCE_BYTES};
use memory_store::MemoryStore;

/// Kinds of records that do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Audit events, which no other record may force out.
    Audit,
    /// All other log records.
    Logs,
    /// Spans of others.
    Traces,
    /// Metrics of others.
    Metrics,
}

impl Lane {
    pub const ALL: [Self; 4] = [Self::Audit, Self::Logs, Self::Traces, Self::Metrics];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Logs => "logs",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

/// What to do with a record for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    DropOldest,
    DropNewest,
    /// Not taken: the source waits, and goes on where it stopped.
    Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolBounds {
    pub max_bytes: u64,
    pub when_full: WhenFull,
}

impl SpoolBounds {
    /// Small enough that dropping the oldest does not drop most.
    fn segment_bytes(self) -> u64 {
        (self.max_bytes / 8).clamp(64 * 1024, 8 * 1024 * 1024)
    }
}

/// Where the spool is, and its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolSettings {
    pub path: PathBuf,
    pub bounds: SpoolBounds,
    /// The most that is kept of what collectors refuse.
    pub dead_letter_bytes: u64,
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Come again when there is room: `Spool::room` tells.
    #[error("the spool is full")]
    Full,
    #[error("{bytes} bytes are more than one request may have")]
    TooLarge { bytes: usize },
}

/// Why records will not be delivered to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// A bound forced them out.
    Full,
    /// The disk did not take them.
    Disk,
    /// They cannot be read any more.
    Damaged,
}

/// Is told of every record that is lost.
pub trait Losses: Send + Sync {
    fn lost(&self, destination: &str, lane: Lane, why: Loss, records: u64);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimit {
    pub records: usize,
    pub bytes: usize,
}

/// Consecutive records of a lane. Holds at least one frame, even one that is larger than the limit in bytes.
#[derive(Debug, Clone)]
pub struct Batch {
    pub chunks: Vec<Chunk>,
    /// The number after the last record.
    pub end: u64,
    /// When the first of them was appended.
    pub appended: Option<SystemTime>,
}

/// The records of one frame: an encoded export request.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The number of its first record.
    pub first: u64,
    pub records: u32,
    /// So many at its beginning are done with.
    pub skip: u32,
    pub body: Bytes,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many records are left in it.
    pub fn records(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.records - chunk.skip)).sum()
    }

    /// Takes the records before number `upto` out.
    pub fn skip_to(&mut self, upto: u64) {
        self.chunks.retain_mut(|chunk| {
            let done = upto.saturating_sub(chunk.first).min(u64::from(chunk.records));
            // `done` is at most `records`, which is a `u32`.
            chunk.skip = chunk.skip.max(u32::try_from(done).unwrap_or(chunk.records));
            chunk.skip < chunk.records
        });
        self.end = self.end.max(upto);
    }
}

/// What waits for a destination, on its way included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    pub records: u64,
    /// When the oldest of them was appended.
    pub oldest: Option<SystemTime>,
}

/// The one spool of the process. Clones are the same spool.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    store: Store,
    /// The number of the next record of each lane.
    arrivals: [watch::Sender<u64>; Lane::ALL.len()],
    room: Notify,
    /// Something waits to be synced.
    written: Notify,
}

enum Store {
    Memory(Box<MemoryStore>),
    Disk(Box<DiskStore>),
}

impl Spool {
    /// Records wait in memory, and end with the process. `capacity`: so many in each lane.
    pub fn in_memory(capacity: usize, losses: Arc<dyn Losses>) -> Self {
        Self::with(Store::Memory(Box::new(MemoryStore::new(capacity, losses))))
    }

    /// Opens or makes the spool on disk. Whatever is damaged in it is stepped over. `WouldBlock`: another process has it open.
    pub fn on_disk(settings: &SpoolSettings, losses: Arc<dyn Losses>) -> io::Result<Self> {
        Ok(Self::with(Store::Disk(Box::new(DiskStore::open(&settings.path, settings.bounds, losses)?))))
    }

    fn with(store: Store) -> Self {
        let arrivals = Lane::ALL.map(|lane| watch::Sender::new(store.next(lane)));
        Self(Arc::new(Inner { store, arrivals, room: Notify::new(), written: Notify::new() }))
    }

    /// Whether records and checkpoints outlive the process.
    pub fn is_durable(&self) -> bool {
        matches!(self.0.store, Store::Disk(_))
    }

    /// Takes `records` records, encoded as one OTLP export request of the lane's signal, and where their source stands after them.
    /// Both may be empty but not the two together: a position alone moves the checkpoint.
    ///
    /// After `Ok` they are in the spool, or a bound had them dropped and counted. When no destination is configured nothing is kept.
    /// In memory, what comes with a checkpoint drops nothing that no destination has: its source is told to wait.
    pub fn append(
        &self,
        lane: Lane,
        records: u32,
        body: &[u8],
        checkpoint: Option<Checkpoint<'_>>,
    ) -> Result<(), NotTaken> {
        let position = checkpoint.map_or(0, |checkpoint| checkpoint.position.len());
        let source = checkpoint.map_or(0, |checkpoint| checkpoint.source.len());
        if body.len() > MOST_BODY_BYTES || position > MOST_POSITION_BYTES || source > MOST_SOURCE_BYTES {
            return Err(NotTaken::TooLarge { bytes: body.len() });
        }
        let next = match &self.0.store {
            Store::Memory(store) => store.append(lane, records, body, checkpoint)?,
            Store::Disk(store) => store.append(lane, records, body, checkpoint)?,
        };
        self.0.written.notify_one();
        self.0.arrivals[lane as usize].send_if_modified(|known| std::mem::replace(known, next.max(*known)) < next);
        Ok(())
    }

    /// As `append`, but waits for room as long as it takes. Cancelled, nothing was taken.
    pub async fn append_when_there_is_room(
        &self,
        lane: Lane,
        records: u32,
        body: &[u8],
        checkpoint: Option<Checkpoint<'_>>,
    ) -> Result<(), NotTaken> {
        loop {
            match self.append(lane, records, body, checkpoint) {
                Err(NotTaken::Full) => self.room(lane, body.len()).await,
                done => return done,
            }
        }
    }

    /// Completes when a request of `bytes` may find room.
    pub async fn room(&self, lane: Lane, bytes: usize) {
        let mut freed = pin!(self.0.room.notified());
        freed.as_mut().enable();
        if self.has_room(lane, bytes) && self.usage().is_none_or(|(_, _, failing)| failing.is_none()) {
            return;
        }
        // A disk that is full makes no sound when it has room again.
        let _ = tokio::time::timeout(LOOK_AGAIN, freed).await;
    }

    /// Whether the bounds have room for a request of `bytes` now.
    pub fn has_room(&self, lane: Lane, bytes: usize) -> bool {
        match &self.0.store {
            Store::Memory(store) => store.has_room(lane),
            Store::Disk(store) => store.has_room(lane, bytes),
        }
    }

    /// Whether a request of `bytes` finds room without another one having to go, and leaves some for those who cannot wait. Where the oldest
    /// may go, what the foremost destination has is no reason to wait: those that are behind lose it, counted.
    pub fn make_spare(&self, lane: Lane, bytes: usize) -> bool {
        match &self.0.store {
            Store::Memory(store) => store.make_spare(lane),
            Store::Disk(store) => store.make_spare(lane, bytes),
        }
    }

    /// The last position that was appended for this source, in this process or, on disk, in one before it.
    pub fn checkpoint(&self, source: &str) -> Option<Vec<u8>> {
        match &self.0.store {
            Store::Memory(_) => None,
            Store::Disk(store) => store.checkpoint(source),
        }
    }

    /// Every source with its last position.
    pub fn checkpoints(&self) -> Vec<(String, Vec<u8>)> {
        match &self.0.store {
            Store::Memory(_) => Vec::new(),
            Store::Disk(store) => store.checkpoints(),
        }
    }
}

/// What exporters use.
impl Spool {
    /// Makes these the destinations, each with a cursor of its own.
    pub fn set_destinations(&self, names: &[String]) -> io::Result<()> {
        match &self.0.store {
            Store::Memory(store) => store.set_destinations(names),
            Store::Disk(store) => store.set_destinations(names)?,
        }
        self.0.written.notify_one();
        self.0.room.notify_waiters();
        Ok(())
    }

    /// Changes the bound in memory; smaller ones take effect with the next record.
    pub fn set_capacity(&self, records: usize) {
        if let Store::Memory(store) = &self.0.store {
            store.set_capacity(records);
        }
    }

    /// Changes the bounds on disk.
    pub fn set_bounds(&self, bounds: SpoolBounds) {
        if let Store::Disk(store) = &self.0.store {
            store.set_bounds(bounds);
        }
        self.0.room.notify_waiters();
    }

    /// Changes whenever something is appended to the lane.
    pub fn arrivals(&self, lane: Lane) -> watch::Receiver<u64> {
        self.0.arrivals[lane as usize].subscribe()
    }

    /// The next records for a destination. They are on their way then: they come again after a restart, but not before.
    pub fn take(&self, lane: Lane, destination: &str, limit: BatchLimit) -> io::Result<Option<Batch>> {
        match &self.0.store {
            Store::Memory(store) => Ok(store.take(lane, destination, limit)),
            Store::Disk(store) => store.take(lane, destination, limit),
        }
    }

    /// The records before number `upto` are with the destination, or given up.
    pub fn acknowledge(&self, lane: Lane, destination: &str, upto: u64) -> io::Result<()> {
        match &self.0.store {
            Store::Memory(store) => store.acknowledge(lane, destination, upto),
            Store::Disk(store) => {
                if !store.acknowledge(lane, destination, upto)? {
                    return Ok(());
                }
            }
        }
        self.0.written.notify_one();
        self.0.room.notify_waiters();
        Ok(())
    }

    pub fn depth(&self, lane: Lane, destination: &str) -> Depth {
        match &self.0.store {
            Store::Memory(store) => store.depth(lane, destination),
            Store::Disk(store) => store.depth(lane, destination),
        }
    }

    /// What it takes on the disk, the most that it may take, and why the disk takes no more. `None` in memory.
    pub fn usage(&self) -> Option<(u64, u64, Option<String>)> {
        match &self.0.store {
            Store::Memory(_) => None,
            Store::Disk(store) => Some(store.usage()),
        }
    }

    /// Completes when something was written since it last did.
    pub async fn written(&self) {
        self.0.written.notified().await;
    }

    /// Whether there is something to sync.
    pub fn is_dirty(&self) -> bool {
        match &self.0.store {
            Store::Memory(_) => false,
            Store::Disk(store) => store.is_dirty(),
        }
    }

    /// Syncs to the disk what was written since the last call. Blocks.
    pub fn sync(&self) -> io::Result<()> {
        match &self.0.store {
            Store::Memory(_) => Ok(()),
            Store::Disk(store) => store.take_unsynced().iter().try_for_each(segments::Unsynced::sync),
        }
    }
}

impl Store {
    fn next(&self, lane: Lane) -> u64 {
        match self {
            Self::Memory(store) => store.next(lane),
            Self::Disk(store) => store.next(lane),
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
