//! The traits of what is kept: answers, state and points of metrics. Implemented by the storage domain.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Keeps answers for a while. Implemented by the storage domain, used by MCP.
///
/// A value is bytes of whoever set it, who may have sealed them. Nothing is promised to be kept: a kind that is out of room, or out of
/// reach, has nothing. Keys are texts of at most `MAX_CACHE_KEY` bytes in which `/` ends a group: `github/5f0c…`.
///
/// `get` is asked on the way of every request that may be cached: a kind in memory answers when its future is first polled, so that
/// such a request need not wait for its turn.
pub trait Cache: Send + Sync {
    /// The value, unless its time is over.
    fn get(&self, key: &str) -> CacheFuture<Option<Bytes>>;

    /// Keeps the value no longer than `ttl`; another one of the key is replaced. A failure is counted, and for nobody to handle.
    fn set(&self, key: &str, value: Bytes, ttl: Duration) -> CacheFuture<()>;

    fn delete(&self, key: &str) -> CacheFuture<()>;

    /// Forgets every key that begins with `prefix`; all of them when it is empty.
    fn clear(&self, prefix: &str) -> CacheFuture<()>;

    fn stats(&self) -> CacheStats;

    /// Gives memory back: forgets the half that was used longest ago of what is kept in this process. How many bytes that was.
    fn shrink(&self) -> u64 {
        0
    }

    /// Whether values outlive the process, and others may find them: then keys have to mean the same to all of them.
    fn outlives(&self) -> bool {
        false
    }

    /// A digest that only those can make who share the values. `None`: nothing is shared, or its key is not there now.
    fn digest(&self, _bytes: &[u8]) -> Option<[u8; 32]> {
        None
    }
}

/// It borrows nothing, so that it may be waited for beside other work.
pub type CacheFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What became of a cache since the process started, and how much is in it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    /// Values that had to go before their time, for want of room.
    pub evictions: u64,
    /// Operations that did not work; none of a kind in memory.
    pub failures: u64,
    pub entries: u64,
    /// Of keys and values, as far as the kind knows.
    pub bytes: u64,
}

/// Longer keys are not kept.
pub const MAX_CACHE_KEY: usize = 256;

/// Keeps small facts over a restart, and shares them between processes where the kind can. Implemented by the storage domain.
///
/// Never a secret, and nothing that a secret could be found from. A store that is out of reach goes on in memory; an error is of a disk
/// that is full, or of a value that is too large.
pub trait StateStore: Send + Sync {
    fn get(&self, key: &str) -> StoreFuture<Option<Bytes>>;

    fn set(&self, key: &str, value: Bytes) -> StoreFuture<()>;

    /// Sets the value if the present one is `expected` (`None`: there is none), in one step for everybody. Whether it was.
    fn compare_and_set(&self, key: &str, expected: Option<Bytes>, value: Bytes) -> StoreFuture<bool>;

    fn delete(&self, key: &str) -> StoreFuture<()>;

    /// When it returns `Ok`, what was set before outlives the process.
    fn persist(&self) -> StoreFuture<()>;

    /// Whether other processes see the same, and may change it.
    fn is_shared(&self) -> bool;
}

pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store does not work: {reason}")]
pub struct StoreError {
    pub reason: String,
}

/// Bounds of what a `StateStore` takes.
pub const MAX_STATE_KEY: usize = 256;
pub const MAX_STATE_VALUE: usize = 64 * 1024;

/// Keeps points of metrics for some hours. Implemented by the storage domain, asked by the admin socket.
pub trait MetricsStore: Send + Sync {
    /// Points of one moment, which is now.
    fn record(&self, points: Vec<MetricPoint>) -> StoreFuture<()>;

    /// The series that the query is about, oldest points first.
    fn query(&self, query: MetricQuery) -> StoreFuture<Vec<MetricSeries>>;

    /// When it returns `Ok`, what was recorded before outlives the process.
    fn snapshot(&self) -> StoreFuture<()>;
}

/// The metrics of this process as they are now. Implemented by telemetry.
pub trait MetricsSource: Send + Sync {
    fn points(&self) -> Vec<MetricPoint>;
}

/// One series at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricPoint {
    pub name: String,
    /// Sorted by their keys.
    pub tags: Vec<(String, String)>,
    pub value: MetricValue,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricValue {
    /// As it is now.
    Gauge(f64),
    /// Since the process started; it only grows, and begins anew with another process.
    Counter(f64),
    /// As a counter: so many values below each bound, and in all.
    Histogram { count: u64, sum: f64, bounds: Vec<f64>, buckets: Vec<u64> },
}

#[derive(Debug, Clone, PartialEq)]
pub struct MetricQuery {
    /// Empty: every name, with the last point of each series alone.
    pub name: String,
    /// A series has all of them.
    pub tags: Vec<(String, String)>,
    /// How far back.
    pub since: Duration,
    pub aggregate: Option<Aggregate>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricSeries {
    pub name: String,
    pub tags: BTreeMap<String, String>,
    /// Milliseconds since the epoch, and the value: of a gauge what it was, of a counter how much it grew in a second since the point before,
    /// of a histogram the mean of what came since.
    pub points: Vec<(u64, f64)>,
    /// By the query's `aggregate`; `None`: none was asked for, or there is too little to tell.
    pub value: Option<f64>,
}

/// What is made of the points of a series in the time that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregate {
    /// Of gauges their mean, of counters the mean growth in a second, of histograms the mean of the values.
    Avg,
    Max,
    Min,
    /// Of gauges their sum, of counters the growth, of histograms the sum of the values.
    Sum,
    /// Growth in a second; of histograms that of the count.
    Rate,
    P50,
    P95,
    P99,
}

impl Aggregate {
    pub const ALL: [(&'static str, Self); 8] = [
        ("avg", Self::Avg),
        ("max", Self::Max),
        ("min", Self::Min),
        ("sum", Self::Sum),
        ("rate", Self::Rate),
        ("p50", Self::P50),
        ("p95", Self::P95),
        ("p99", Self::P99),
    ];

    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == word).map(|(_, aggregate)| aggregate)
    }
}

/// All that is kept, as one run of bytes for a file. Implemented by the storage domain, asked by the admin socket.
pub trait Backup: Send + Sync {
    fn dump(&self) -> StoreFuture<Bytes>;
}
