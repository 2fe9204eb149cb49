//! What every kind of store is to this domain: records in spaces, each a key with bytes.
//!
//! State, metric points and cached answers are all kept as records, so a kind implements one trait and knows nothing of what it keeps; what a
//! record means is said by `state`, `series` and `cache`. Keys are texts, ordered by their bytes.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

/// One kind of store. A failure is of the store: an absent key is none.
pub trait Records: Send + Sync {
    fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>>;

    /// All of them or none.
    fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()>;

    /// Sets the value if the present one is `expected` (`None`: there is none), in one step. Whether it was.
    fn swap<'a>(&'a self, space: Space, key: &'a str, expected: Option<Bytes>, value: Bytes) -> Pending<'a, bool>;

    fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()>;

    /// The records whose keys begin with `prefix`, by key, at most `most` of them; with `after`, only those behind it.
    fn list<'a>(
        &'a self,
        space: Space,
        prefix: &'a str,
        after: Option<&'a str>,
        most: usize,
    ) -> Pending<'a, Vec<Record>>;

    /// Removes every record whose key begins with `prefix`.
    fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()>;

    /// Removes what is over, and then what ends first until the rest has at most `most` bytes. A kind whose server bounds itself, or that
    /// cannot count, does nothing and has `None`.
    fn trim(&self, space: Space, most: u64) -> Pending<'_, Option<Trimmed>>;

    /// Makes what was set outlive the process, as far as the kind can.
    fn flush(&self) -> Pending<'_, ()>;

    /// Whether it can be used now.
    fn probe(&self) -> Pending<'_, ()>;
}

pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreFailure>> + Send + 'a>>;

/// What a space holds after it was trimmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trimmed {
    pub entries: u64,
    pub bytes: u64,
    /// Of those that were removed: the ones that were not over.
    pub evicted: u64,
}

/// Things of one sort: keys of different spaces never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    State,
    Metrics,
    Cache,
}

impl Space {
    pub const ALL: [Self; 3] = [Self::State, Self::Metrics, Self::Cache];
    /// What is worth to be carried elsewhere.
    pub const KEPT: [Self; 2] = [Self::State, Self::Metrics];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Metrics => "metrics",
            Self::Cache => "cache",
        }
    }

    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|space| space.number() == number)
    }

    /// In files and tables.
    pub fn number(self) -> u8 {
        match self {
            Self::State => 1,
            Self::Metrics => 2,
            Self::Cache => 3,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    pub value: Bytes,
    /// Milliseconds since the epoch; it is not there any more from then on.
    pub until: Option<u64>,
}

impl Record {
    pub fn new(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: value.into(), until: None }
    }
}

/// Why a store did not do what it was asked for, in words that hold neither values nor credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreFailure(pub String);

impl StoreFailure {
    pub fn of(doing: &str, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{doing}: {error}"))
    }
}

/// Milliseconds since the epoch.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
