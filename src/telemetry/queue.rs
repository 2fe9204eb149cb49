//! The queue of encoded records between whoever has something to say and the exporter.
//!
//! `RecordQueue` is the seam: the exporter takes a batch, sends it, and acknowledges it only after the collector said that it has it.
//! Until then the same records come first in the next batch. What a bound forces out is counted by the queue and never silently lost.
//! A queue knows nothing of the network and nothing of what is in a record.
//!
//! `MemoryQueue` keeps the records in memory. When it is full it drops the oldest record that is not on its way, because an exporter
//! that comes back has more use for what happened last.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Records in, batches out, at least once.
pub trait RecordQueue: Send + Sync {
    /// Takes one encoded record. Returns how many records had to go to make room.
    fn append(&self, record: Bytes) -> u64;

    /// The oldest records that nobody acknowledged, at most `limit` of them. `None` when there are none.
    fn next_batch(&self, limit: BatchLimit) -> Option<Batch>;

    /// The records of `batch`, and all before them, are with the collector (or given up): they do not come again.
    fn acknowledge(&self, batch: &Batch);

    /// What waits, on its way included.
    fn depth(&self) -> Depth;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimit {
    pub records: usize,
    pub bytes: usize,
}

/// A batch holds at least one record, even one that is larger than the limit in bytes.
#[derive(Debug, Clone)]
pub struct Batch {
    pub records: Vec<Bytes>,
    /// The position after the last record, counted from the first record that the queue ever handed out.
    end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    pub records: usize,
    pub bytes: usize,
}

/// A queue that ends with the process.
pub struct MemoryQueue {
    state: Mutex<State>,
    appended: Notify,
}

struct State {
    /// Handed out, not acknowledged. Bounded by the largest batch, beside `capacity`.
    leased: VecDeque<Bytes>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// The position of the first leased record.
    start: u64,
    capacity: usize,
}

impl MemoryQueue {
    /// `capacity` counts records that wait; beside it at most one batch is on its way.
    pub fn new(capacity: usize) -> Self {
        let state = State {
            leased: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            start: 0,
            capacity: capacity.max(1),
        };
        Self { state: Mutex::new(state), appended: Notify::new() }
    }

    /// Changes the bound. A smaller one takes effect with the next record.
    pub fn set_capacity(&self, capacity: usize) {
        self.lock().capacity = capacity.max(1);
    }

    /// Completes when a record was appended since the last call completed.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordQueue for MemoryQueue {
    fn append(&self, record: Bytes) -> u64 {
        let mut state = self.lock();
        let mut dropped = 0;
        while state.waiting.len() >= state.capacity
            || (state.waiting_bytes + record.len() > MAX_WAITING_BYTES && !state.waiting.is_empty())
        {
            if let Some(oldest) = state.waiting.pop_front() {
                state.waiting_bytes -= oldest.len();
                dropped += 1;
            }
        }
        state.waiting_bytes += record.len();
        state.waiting.push_back(record);
        drop(state);
        self.appended.notify_one();
        dropped
    }

    fn next_batch(&self, limit: BatchLimit) -> Option<Batch> {
        let mut state = self.lock();
        if state.leased.is_empty() {
            state.lease(limit);
        }
        let mut bytes = 0;
        let fitting = state.leased.iter().take(limit.records.max(1)).take_while(|record| {
            bytes += record.len();
            bytes <= limit.bytes || bytes == record.len()
        });
        let records: Vec<Bytes> = fitting.cloned().collect();
        if records.is_empty() {
            return None;
        }
        let end = state.start + records.len() as u64;
        Some(Batch { records, end })
    }

    fn acknowledge(&self, batch: &Batch) {
        let mut state = self.lock();
        while state.start < batch.end && state.leased.pop_front().is_some() {
            state.start += 1;
        }
        if state.leased.is_empty() && state.waiting.is_empty() {
            state.leased.shrink_to(KEPT_SLOTS);
            state.waiting.shrink_to(KEPT_SLOTS);
        }
    }

    fn depth(&self) -> Depth {
        let state = self.lock();
        Depth {
            records: state.leased.len() + state.waiting.len(),
            bytes: state.waiting_bytes + state.leased.iter().map(Bytes::len).sum::<usize>(),
        }
    }
}

impl State {
    fn lease(&mut self, limit: BatchLimit) {
        let mut bytes = 0;
        while self.leased.len() < limit.records.max(1) {
            let Some(next) = self.waiting.front() else { break };
            bytes += next.len();
            if bytes > limit.bytes && !self.leased.is_empty() {
                break;
            }
            // The front was just looked at under the same lock.
            if let Some(record) = self.waiting.pop_front() {
                self.waiting_bytes -= record.len();
                self.leased.push_back(record);
            }
        }
    }
}

/// However many records the configuration allows, they never take more than this.
const MAX_WAITING_BYTES: usize = 16 * 1024 * 1024;
/// Slots that an empty queue keeps, so that a backlog that is gone takes no memory.
const KEPT_SLOTS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: BatchLimit = BatchLimit { records: 1000, bytes: usize::MAX };

    fn record(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn a_batch_comes_again_until_it_is_acknowledged() {
        let queue = MemoryQueue::new(10);
        queue.append(record("a"));
        queue.append(record("b"));
        let first = queue.next_batch(ALL).unwrap();
        queue.append(record("c"));
        assert_eq!(queue.next_batch(ALL).unwrap().records, first.records);
        let half = queue.next_batch(BatchLimit { records: 1, bytes: 100 }).unwrap();
        assert_eq!(half.records, [record("a")]);
        queue.acknowledge(&half);
        queue.acknowledge(&half);
        assert_eq!(queue.next_batch(ALL).unwrap().records, [record("b")]);
        queue.acknowledge(&first);
        assert_eq!(queue.next_batch(ALL).unwrap().records, [record("c")]);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_that_is_not_on_its_way() {
        let queue = MemoryQueue::new(2);
        queue.append(record("a"));
        let leased = queue.next_batch(ALL).unwrap();
        assert_eq!(queue.append(record("b")) + queue.append(record("c")), 0);
        assert_eq!(queue.append(record("d")), 1);
        queue.acknowledge(&leased);
        assert_eq!(queue.next_batch(ALL).unwrap().records, [record("c"), record("d")]);
    }

    #[test]
    fn a_record_larger_than_the_limit_goes_alone() {
        let queue = MemoryQueue::new(10);
        queue.append(record("0123456789"));
        queue.append(record("x"));
        let limit = BatchLimit { records: 10, bytes: 5 };
        let batch = queue.next_batch(limit).unwrap();
        assert_eq!(batch.records.len(), 1);
        queue.acknowledge(&batch);
        assert_eq!(queue.next_batch(limit).unwrap().records, [record("x")]);
    }

    proptest! {
        /// Whatever the order of appends, batches and acknowledgements: nothing vanishes uncounted, and order is kept.
        #[test]
        fn delivered_and_dropped_add_up(steps in proptest::collection::vec((0_u8..3, 1_usize..5), 1..200)) {
            let queue = MemoryQueue::new(5);
            let (mut next, mut dropped, mut delivered) = (0_u64, 0, Vec::new());
            let mut taken: Option<Batch> = None;
            for (step, size) in steps {
                match step {
                    0 => {
                        dropped += queue.append(record(&next.to_string()));
                        next += 1;
                    }
                    1 => taken = queue.next_batch(BatchLimit { records: size, bytes: 100 }),
                    _ => if let Some(batch) = taken.take() {
                        queue.acknowledge(&batch);
                        delivered.extend(batch.records);
                    },
                }
            }
            let left = queue.depth().records as u64;
            prop_assert_eq!(delivered.len() as u64 + dropped + left, next);
            let order: Vec<u64> =
                delivered.iter().map(|r| std::str::from_utf8(r).unwrap().parse().unwrap()).collect();
            prop_assert!(order.is_sorted());
        }
    }
}
