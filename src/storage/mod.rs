//! Storage: where what may be kept is kept: state, and the cache of answers.
//!
//! `records` is what every kind is, `kinds` are the kinds; `state` and `cache` say what a record means. `sturdy` puts memory in the place of a
//! store that is away, `keeper` heals it and makes things last. `StorageHandle` holds what is configured; a reload can put another cache in
//! its place, another store of state needs a restart. This domain must not know what the values are.

pub mod cache;
mod keeper;
pub mod kinds;
pub mod login;
pub mod metrics;
pub mod records;
pub mod settings;
mod snapshot;
mod state;
mod sturdy;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use opentelemetry::metrics::Meter;
use serde_json::json;
use tracing::error;

use self::cache::external::ExternalCache;
use self::cache::memory::MemoryCache;
use self::cache::seal::Seal;
use self::kinds::memory::MemoryRecords;
use self::kinds::postgres::PostgresRecords;
use self::kinds::redis::RedisRecords;
use self::kinds::sqlite::{SqliteRecords, Sync};
use self::login::Login;
use self::records::{Records, StoreFailure};
use self::settings::{CacheKind, CacheSettings, RuntimeKind, RuntimeSettings, ServerSettings, StorageSettings};
use self::state::State;
use self::sturdy::{Away, Sturdy};
use crate::lifecycle::Part;
use crate::ports::{Cache, CacheFuture, CacheStats, Condition, ConditionState, SecretReader, StateStore, StatusReport};

/// What the rest of the process has of storage.
#[derive(Clone)]
pub struct StorageHandle {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: RuntimeSettings,
    records: Arc<dyn Records>,
    /// `None`: a store in memory, which is never away.
    sturdy: Option<Arc<Sturdy>>,
    /// What was wrong with what an earlier process left.
    set_aside: Option<String>,
    /// Why the last attempt to make things last has failed.
    unwritten: Mutex<Option<String>>,
    cache: ArcSwap<Configured>,
    secrets: Arc<dyn SecretReader>,
}

/// A kind and the settings that it was made from.
struct Configured {
    settings: CacheSettings,
    cache: Arc<dyn Cache>,
    external: Option<ExternalCache>,
}

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("storage.runtime: {0}")]
    Runtime(StoreFailure),
    #[error("storage.cache: {0}")]
    Cache(StoreFailure),
    #[error("storage.runtime: a change needs a restart")]
    NeedsRestart,
}

/// Settings that are ready to be taken. Dropping it leaves everything as it is.
pub struct Staged {
    handle: StorageHandle,
    /// `None`: what there is is what is wanted.
    cache: Option<Configured>,
}

/// Makes what the settings ask for. Servers are connected to when they are first needed.
pub fn build(
    settings: StorageSettings,
    secrets: Arc<dyn SecretReader>,
    meter: &Meter,
) -> Result<(StorageHandle, Part), StorageError> {
    let Opened { records, sturdy, set_aside } = open(&settings.runtime, &secrets).map_err(StorageError::Runtime)?;
    if let Some(said) = &set_aside {
        error!(said, "what an earlier process kept is lost");
    }
    let cache = configured(settings.cache, &secrets).map_err(StorageError::Cache)?;
    let shared = Shared {
        runtime: settings.runtime,
        records,
        sturdy,
        set_aside,
        unwritten: Mutex::default(),
        cache: ArcSwap::from_pointee(cache),
        secrets,
    };
    let handle = StorageHandle { shared: Arc::new(shared) };
    metrics::observe(handle.clone(), meter);
    Ok((handle.clone(), keeper::part(handle)))
}

/// A store, ready for use.
struct Opened {
    records: Arc<dyn Records>,
    sturdy: Option<Arc<Sturdy>>,
    set_aside: Option<String>,
}

fn open(settings: &RuntimeSettings, secrets: &Arc<dyn SecretReader>) -> Result<Opened, StoreFailure> {
    let login = |server: &ServerSettings| Login::new(server.password.clone(), secrets.clone());
    let (store, set_aside): (Arc<dyn Records>, _) = match &settings.kind {
        RuntimeKind::Memory { file: None } => (Arc::new(MemoryRecords::default()), None),
        RuntimeKind::Memory { file: Some(path) } => {
            let (records, trouble) = MemoryRecords::open(path)?;
            (Arc::new(records), trouble)
        }
        RuntimeKind::Sqlite { path } => {
            let (records, trouble) = SqliteRecords::open(path, Sync::Full)?;
            (Arc::new(records), trouble)
        }
        RuntimeKind::Redis(server) => (Arc::new(RedisRecords::new(server.clone(), login(server))), None),
        RuntimeKind::Postgres(server) => (Arc::new(PostgresRecords::new(server.clone(), login(server))), None),
    };
    if matches!(settings.kind, RuntimeKind::Memory { .. }) {
        return Ok(Opened { records: store, sturdy: None, set_aside });
    }
    let sturdy = Arc::new(Sturdy::new(store, "runtime"));
    Ok(Opened { records: sturdy.clone(), sturdy: Some(sturdy), set_aside })
}

fn configured(settings: CacheSettings, secrets: &Arc<dyn SecretReader>) -> Result<Configured, StoreFailure> {
    let (max_bytes, ttl) = (settings.max_bytes, settings.ttl);
    let (records, key): (Arc<dyn Records>, _) = match &settings.kind {
        CacheKind::Memory => {
            return Ok(Configured { cache: Arc::new(MemoryCache::new(max_bytes, ttl)), external: None, settings });
        }
        CacheKind::Sqlite { path, key } => {
            let (records, trouble) = SqliteRecords::open(path, Sync::Normal)?;
            if let Some(said) = trouble {
                error!(said, "cached answers are lost");
            }
            (Arc::new(records), key.clone())
        }
        CacheKind::Redis { server, key } => {
            let login = Login::new(server.password.clone(), secrets.clone());
            (Arc::new(RedisRecords::new(server.clone(), login)), key.clone())
        }
    };
    let external = ExternalCache::new(records, Seal::new(key, secrets.clone()), max_bytes, ttl);
    Ok(Configured { cache: Arc::new(external.clone()), external: Some(external), settings })
}

impl StorageHandle {
    pub fn state(&self) -> Arc<dyn StateStore> {
        let shared = self.shared.runtime.kind.is_shared();
        Arc::new(State { records: self.shared.records.clone(), shared })
    }

    /// Makes everything ready that the settings need, beside what is in use.
    pub fn stage(&self, settings: StorageSettings) -> Result<Staged, StorageError> {
        if self.shared.runtime != settings.runtime {
            return Err(StorageError::NeedsRestart);
        }
        let changed = self.shared.cache.load().settings != settings.cache;
        let cache = changed.then(|| configured(settings.cache, &self.shared.secrets)).transpose();
        Ok(Staged { handle: self.clone(), cache: cache.map_err(StorageError::Cache)? })
    }

    /// Stores by name, with what is wrong with them.
    fn stores(&self) -> [(&'static str, Option<Away>); 2] {
        let external = self.shared.cache.load().external.clone();
        let runtime = self.shared.sturdy.as_ref().and_then(|sturdy| sturdy.away());
        [("runtime", runtime), ("cache", external.and_then(|cache| cache.away()))]
    }

    fn unwritten(&self) -> Option<String> {
        self.shared.unwritten.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cache(&self) -> Arc<dyn Cache> {
        self.shared.cache.load().cache.clone()
    }
}

impl Staged {
    /// Takes the settings. What another cache held is not taken over.
    pub fn commit(self) {
        if let Some(cache) = self.cache {
            self.handle.shared.cache.store(Arc::new(cache));
        }
    }
}

impl Cache for StorageHandle {
    fn get(&self, key: &str) -> CacheFuture<Option<Bytes>> {
        self.cache().get(key)
    }

    fn set(&self, key: &str, value: Bytes, ttl: Duration) -> CacheFuture<()> {
        self.cache().set(key, value, ttl)
    }

    fn delete(&self, key: &str) -> CacheFuture<()> {
        self.cache().delete(key)
    }

    fn clear(&self, prefix: &str) -> CacheFuture<()> {
        self.cache().clear(prefix)
    }

    fn stats(&self) -> CacheStats {
        self.cache().stats()
    }

    fn shrink(&self) -> u64 {
        self.cache().shrink()
    }

    fn outlives(&self) -> bool {
        self.cache().outlives()
    }

    fn digest(&self, bytes: &[u8]) -> Option<[u8; 32]> {
        self.cache().digest(bytes)
    }
}

impl StatusReport for StorageHandle {
    fn section(&self) -> &'static str {
        "storage"
    }

    fn conditions(&self) -> Vec<Condition> {
        let keyless = self.shared.cache.load().external.as_ref().and_then(|cache| cache.keyless());
        let mut conditions = Vec::new();
        for (name, away) in self.stores() {
            let trouble = match (away, name) {
                (Some(away), _) => {
                    let seconds = away.since.elapsed().as_secs();
                    Some(format!("{}; memory has taken its place for {seconds} s, and it is tried again", away.reason))
                }
                (None, "cache") => keyless.as_ref().map(|reason| format!("{reason}; nothing is cached")),
                (None, _) => self
                    .unwritten()
                    .map(|reason| format!("{reason}; it is tried again"))
                    .or_else(|| self.shared.set_aside.clone()),
            };
            let state = if trouble.is_some() { ConditionState::Degraded } else { ConditionState::Ok };
            let component = format!("storage/{name}");
            conditions.push(Condition { component, state, message: trouble.unwrap_or_default() });
        }
        conditions
    }

    fn detail(&self) -> serde_json::Value {
        let configured = self.shared.cache.load();
        let sturdy = self.shared.sturdy.as_ref();
        json!({
            "runtime": {
                "type": self.shared.runtime.kind.as_str(),
                "failures": sturdy.map_or(0, |sturdy| sturdy.failures()),
                "waiting": sturdy.map_or(0, |sturdy| sturdy.waiting()),
            },
            "cache": {
                "type": configured.settings.kind.as_str(),
                "max_bytes": configured.settings.max_bytes,
                "stats": configured.cache.stats(),
            }
        })
    }
}
