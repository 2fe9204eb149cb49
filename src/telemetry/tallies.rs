//! Everything that the domain counts: plain atomics, so that counting costs nothing on the way of a request. `metrics` reads them when
//! somebody collects.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tracing::warn;

use super::spool::{Lane, Loss, Losses};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Logs,
    Traces,
    Metrics,
}

impl Signal {
    pub const ALL: [Self; 3] = [Self::Logs, Self::Traces, Self::Metrics];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }

    pub fn of(lane: Lane) -> Self {
        match lane {
            Lane::Audit | Lane::Logs => Self::Logs,
            Lane::Traces => Self::Traces,
            Lane::Metrics => Self::Metrics,
        }
    }
}

/// Why a record or span was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A bound forced it out.
    QueueFull,
    /// The collector said that it will never take the request.
    Refused,
    /// The collector took the request and rejected some of what was in it.
    Rejected,
    /// One record alone is larger than the collector takes.
    TooLarge,
    /// The spool's disk did not take it.
    Disk,
    /// It could not be read back from the spool.
    Damaged,
}

impl Reason {
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::Refused, Self::Rejected, Self::TooLarge, Self::Disk, Self::Damaged];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::TooLarge => "too_large",
            Self::Disk => "disk",
            Self::Damaged => "damaged",
        }
    }
}

/// What became of an audit event at the audit file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFate {
    Recorded,
    /// It could not be written, and what it is about went on.
    Lost,
    /// It could not be written, and what it is about was refused.
    Refused,
}

impl AuditFate {
    pub const ALL: [Self; 3] = [Self::Recorded, Self::Lost, Self::Refused];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

#[derive(Debug, Default)]
pub struct Tallies {
    audit: [AtomicU64; AuditFate::ALL.len()],
    /// One that is not configured any more stays: a count never goes back.
    destinations: RwLock<BTreeMap<String, Arc<Tally>>>,
}

impl Tallies {
    /// The counts of one destination.
    pub fn of(&self, destination: &str) -> Arc<Tally> {
        if let Some(known) = self.destinations.read().unwrap_or_else(PoisonError::into_inner).get(destination) {
            return known.clone();
        }
        let mut all = self.destinations.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(destination.to_owned()).or_insert_with(|| Arc::new(Tally::new(destination))).clone()
    }

    pub fn destinations(&self) -> Vec<Arc<Tally>> {
        self.destinations.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn audit(&self, fate: AuditFate) {
        self.audit[fate as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn total_audit(&self, fate: AuditFate) -> u64 {
        self.audit[fate as usize].load(Ordering::Relaxed)
    }
}

impl Losses for Tallies {
    fn lost(&self, destination: &str, lane: Lane, why: Loss, records: u64) {
        let reason = match why {
            Loss::Full => Reason::QueueFull,
            Loss::Disk => Reason::Disk,
            Loss::Damaged => Reason::Damaged,
        };
        self.of(destination).dropped(Signal::of(lane), reason, records);
    }
}

/// The counts of one destination.
#[derive(Debug)]
pub struct Tally {
    pub destination: String,
    exported: [AtomicU64; Signal::ALL.len()],
    dropped: [[AtomicU64; Reason::ALL.len()]; Signal::ALL.len()],
    repeated: [AtomicU64; Signal::ALL.len()],
    kept: AtomicU64,
    /// When something was last dropped, and how much since it began.
    recent: Mutex<Option<(Instant, u64)>>,
}

impl Tally {
    fn new(destination: &str) -> Self {
        Self {
            destination: destination.to_owned(),
            exported: Default::default(),
            dropped: Default::default(),
            repeated: Default::default(),
            kept: AtomicU64::new(0),
            recent: Mutex::new(None),
        }
    }

    pub fn exported(&self, signal: Signal, count: u64) {
        self.exported[signal as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub fn dropped(&self, signal: Signal, reason: Reason, count: u64) {
        self.dropped[signal as usize][reason as usize].fetch_add(count, Ordering::Relaxed);
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let before = recent.filter(|(last, _)| now.duration_since(*last) < REMEMBERED);
        *recent = Some((now, before.map_or(0, |(_, count)| count) + count));
        drop(recent);
        if before.is_none() {
            let destination = self.destination.as_str();
            warn!(destination, signal = signal.as_str(), reason = reason.as_str(), "records are dropped");
        }
    }

    /// What was sent may have arrived, and is sent again.
    pub fn repeated(&self, signal: Signal, count: u64) {
        self.repeated[signal as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Records of a refused request went to the dead letters.
    pub fn kept(&self, count: u64) {
        self.kept.fetch_add(count, Ordering::Relaxed);
    }

    pub fn total_exported(&self, signal: Signal) -> u64 {
        self.exported[signal as usize].load(Ordering::Relaxed)
    }

    pub fn total_dropped(&self, signal: Signal) -> u64 {
        Reason::ALL.into_iter().map(|reason| self.dropped_for(signal, reason)).sum()
    }

    pub fn dropped_for(&self, signal: Signal, reason: Reason) -> u64 {
        self.dropped[signal as usize][reason as usize].load(Ordering::Relaxed)
    }

    pub fn total_repeated(&self, signal: Signal) -> u64 {
        self.repeated[signal as usize].load(Ordering::Relaxed)
    }

    pub fn total_kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// How many were dropped in the last minutes.
    pub fn dropped_lately(&self) -> u64 {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.filter(|(last, _)| last.elapsed() < REMEMBERED).map_or(0, |(_, count)| count)
    }
}

/// How long after the last dropped record the condition still tells of it.
const REMEMBERED: Duration = Duration::from_secs(120);
