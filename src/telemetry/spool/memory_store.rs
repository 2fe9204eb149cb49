//! The spool without a folder: it ends with the process.
//!
//! When a lane is full its oldest records go that are not on their way to everybody, because a collector that comes back has more use for
//! what happened last. A source that can wait waits, unless a destination has the oldest already: the foremost one sets the pace. What is taken is kept by whoever took it, and does not count here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::frame::Checkpoint;
use super::{Batch, BatchLimit, Chunk, Depth, Lane, Loss, Losses, NotTaken};

pub struct MemoryStore {
    state: Mutex<State>,
    losses: Arc<dyn Losses>,
}

struct State {
    lanes: [LaneState; Lane::ALL.len()],
    /// Records in each lane.
    capacity: u64,
}

#[derive(Default)]
struct LaneState {
    /// What not everybody has taken.
    waiting: VecDeque<(Chunk, SystemTime)>,
    bytes: usize,
    next: u64,
    readers: BTreeMap<String, Reader>,
}

struct Reader {
    taken: u64,
    acknowledged: u64,
    /// When the oldest record was appended that is on its way.
    oldest: Option<SystemTime>,
}

impl MemoryStore {
    pub fn new(capacity: usize, losses: Arc<dyn Losses>) -> Self {
        let state = State { lanes: Default::default(), capacity: capacity.max(1) as u64 };
        Self { state: Mutex::new(state), losses }
    }

    /// A smaller one takes effect with the next record.
    pub fn set_capacity(&self, capacity: usize) {
        self.lock().capacity = capacity.max(1) as u64;
    }

    /// A new one begins with the oldest record that is left.
    pub fn set_destinations(&self, names: &[String]) {
        for lane in &mut self.lock().lanes {
            let first = lane.first();
            lane.readers.retain(|name, _| names.contains(name));
            for name in names {
                let new = Reader { taken: first, acknowledged: first, oldest: None };
                lane.readers.entry(name.clone()).or_insert(new);
            }
            lane.let_go();
        }
    }

    pub fn append(
        &self,
        lane: Lane,
        records: u32,
        body: &[u8],
        checkpoint: Option<Checkpoint<'_>>,
    ) -> Result<u64, NotTaken> {
        let mut state = self.lock();
        let capacity = state.capacity;
        let lane_state = &mut state.lanes[lane as usize];
        if lane_state.readers.is_empty() || records == 0 {
            return Ok(lane_state.next);
        }
        while lane_state.is_full(capacity, u64::from(records), body.len()) {
            if checkpoint.is_some() && !lane_state.is_oldest_with_somebody() {
                return Err(NotTaken::Full);
            }
            lane_state.drop_oldest(lane, &*self.losses);
        }
        let chunk = Chunk { first: lane_state.next, records, skip: 0, body: Bytes::copy_from_slice(body) };
        lane_state.bytes += body.len();
        lane_state.next += u64::from(records);
        lane_state.waiting.push_back((chunk, SystemTime::now()));
        Ok(lane_state.next)
    }

    pub fn has_room(&self, lane: Lane) -> bool {
        let state = self.lock();
        !state.lanes[lane as usize].is_full(state.capacity, 1, 1)
    }

    /// Whether there is room for something whose source can wait.
    pub fn make_spare(&self, lane: Lane) -> bool {
        let mut state = self.lock();
        let capacity = state.capacity;
        let lane_state = &mut state.lanes[lane as usize];
        while lane_state.is_full(capacity, 1, 1) {
            if !lane_state.is_oldest_with_somebody() {
                return false;
            }
            lane_state.drop_oldest(lane, &*self.losses);
        }
        true
    }

    pub fn take(&self, lane: Lane, destination: &str, limit: BatchLimit) -> Option<Batch> {
        let mut state = self.lock();
        let lane = &mut state.lanes[lane as usize];
        let reader = lane.readers.get_mut(destination)?;
        // Whoever asks for more is done with what it had.
        (reader.acknowledged, reader.oldest) = (reader.taken, None);
        let start = lane.waiting.partition_point(|(chunk, _)| chunk.first + u64::from(chunk.records) <= reader.taken);
        let mut batch = Batch { chunks: Vec::new(), end: reader.taken, appended: None };
        let (mut records, mut bytes) = (0, 0);
        for (chunk, appended) in lane.waiting.range(start..) {
            bytes += chunk.body.len();
            if records >= limit.records || (bytes > limit.bytes && !batch.is_empty()) {
                break;
            }
            records += chunk.records as usize;
            batch.appended.get_or_insert(*appended);
            batch.end = chunk.first + u64::from(chunk.records);
            batch.chunks.push(chunk.clone());
        }
        batch.skip_to(reader.taken);
        if batch.is_empty() {
            return None;
        }
        (reader.taken, reader.oldest) = (batch.end, batch.appended);
        lane.let_go();
        Some(batch)
    }

    pub fn acknowledge(&self, lane: Lane, destination: &str, upto: u64) {
        if let Some(reader) = self.lock().lanes[lane as usize].readers.get_mut(destination) {
            reader.acknowledged = reader.acknowledged.max(upto);
            if reader.acknowledged >= reader.taken {
                reader.oldest = None;
            }
        }
    }

    pub fn depth(&self, lane: Lane, destination: &str) -> Depth {
        let state = self.lock();
        let lane = &state.lanes[lane as usize];
        let Some(reader) = lane.readers.get(destination) else { return Depth::default() };
        let waits =
            || lane.waiting.iter().find(|(chunk, _)| chunk.first >= reader.taken).map(|(_, appended)| *appended);
        Depth { records: lane.next - reader.acknowledged, oldest: reader.oldest.or_else(waits) }
    }

    pub fn next(&self, lane: Lane) -> u64 {
        self.lock().lanes[lane as usize].next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneState {
    /// The number of the oldest record that waits.
    fn first(&self) -> u64 {
        self.waiting.front().map_or(self.next, |(chunk, _)| chunk.first)
    }

    /// A lane that is empty takes whatever comes.
    fn is_full(&self, capacity: u64, records: u64, bytes: usize) -> bool {
        let waiting = self.next - self.first();
        waiting > 0 && (waiting + records > capacity || self.bytes + bytes > MOST_BYTES)
    }

    /// A destination has the oldest chunk, so that only those lose something by its end that are behind.
    fn is_oldest_with_somebody(&self) -> bool {
        let foremost = self.readers.values().map(|reader| reader.acknowledged).max().unwrap_or(0);
        self.waiting.front().is_some_and(|(chunk, _)| chunk.first + u64::from(chunk.records) <= foremost)
    }

    fn drop_oldest(&mut self, lane: Lane, losses: &dyn Losses) {
        let Some((chunk, _)) = self.waiting.pop_front() else { return };
        self.bytes -= chunk.body.len();
        let end = chunk.first + u64::from(chunk.records);
        for (name, reader) in &mut self.readers {
            let lost = end.saturating_sub(reader.taken);
            if lost > 0 {
                if reader.acknowledged == reader.taken {
                    reader.acknowledged = end;
                }
                reader.taken = end;
                losses.lost(name, lane, Loss::Full, lost);
            }
        }
    }

    /// Lets go of what everybody has taken.
    fn let_go(&mut self) {
        let lowest = self.readers.values().map(|reader| reader.taken).min().unwrap_or(self.next);
        while let Some((chunk, _)) = self.waiting.front()
            && chunk.first + u64::from(chunk.records) <= lowest
        {
            self.bytes -= chunk.body.len();
            self.waiting.pop_front();
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(KEPT_SLOTS);
        }
    }
}

/// However many records the configuration allows, those of a lane never take more than this.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Slots that an empty lane keeps, so that a backlog that is gone takes no memory.
const KEPT_SLOTS: usize = 64;
