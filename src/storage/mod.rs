//! Storage: where what may be kept is kept: state, points of metrics, and the cache of answers.
//!
//! `records` is what every kind is, `kinds` are the kinds; `state`, `series` and `cache` say what a record means. `sturdy` puts memory in the place of a
//! store that is away, `keeper` heals it and makes things last. `StorageHandle` holds what is configured; a reload can put another cache in
//! its place, another store of state needs a restart. This domain must not know what the values are.

mod aggregate;
mod backups;
pub mod cache;
pub mod carry;
mod keeper;
pub mod kinds;
mod leases;
mod lock;
pub mod login;
pub mod metrics;
pub mod records;
mod series;
pub mod settings;
mod snapshot;
mod state;
mod sturdy;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use opentelemetry::metrics::Meter;
use serde_json::json;
use tracing::{debug, error};

use self::cache::external::ExternalCache;
use self::cache::memory::MemoryCache;
use self::cache::seal::Seal;
use self::kinds::memory::MemoryRecords;
use self::kinds::postgres::PostgresRecords;
use self::kinds::redis::RedisRecords;
use self::kinds::sqlite::{SqliteRecords, Sync};
use self::lock::{DataLock, PidFile};
use self::login::Login;
use self::records::{Records, StoreFailure};
use self::series::Series;
use self::settings::{
    BackupSettings, CacheKind, CacheSettings, MetricsSettings, RuntimeKind, RuntimeSettings, ServerSettings,
    StorageSettings,
};
use self::state::State;
use self::sturdy::{Away, Sturdy};
use crate::lifecycle::Part;
use crate::ports::{
    Backup, Cache, CacheFuture, CacheStats, Condition, ConditionState, MetricsSource, MetricsStore, SecretControl,
    SecretReader, StateStore, StatusReport, StoreFuture,
};

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
    control: Arc<dyn SecretControl>,
    points: Option<Points>,
    /// Who this is where others share the store.
    instance: String,
    last_point: Arc<AtomicU64>,
    backup: Option<BackupSettings>,
    /// When a backup was last written, and why the last attempt has failed.
    backed_up: Mutex<(Option<SystemTime>, Option<String>)>,
    pid_file: Option<PathBuf>,
    /// No other process uses the files, for as long as this lives.
    _lock: Option<DataLock>,
}

/// Where points of metrics come from, and how they are kept.
struct Points {
    source: Arc<dyn MetricsSource>,
    settings: MetricsSettings,
}

/// What this domain needs of the others.
pub struct Outside {
    pub secrets: Arc<dyn SecretReader>,
    /// Asked for what is known of secrets, never for values.
    pub control: Arc<dyn SecretControl>,
    pub metrics: Arc<dyn MetricsSource>,
    /// The name of the configuration.
    pub name: String,
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
    #[error("global.pid_file: {0}")]
    PidFile(StoreFailure),
    #[error("storage.cache: {0}")]
    Cache(StoreFailure),
    #[error("storage.runtime, storage.metrics, storage.backup and global.pid_file: a change needs a restart")]
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
    outside: Outside,
    meter: &Meter,
) -> Result<(StorageHandle, Part), StorageError> {
    let Outside { secrets, control, metrics: source, name } = outside;
    let lock = lock(&settings.runtime.kind, &name).map_err(StorageError::Runtime)?;
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
        control,
        points: settings.metrics.map(|settings| Points { source, settings }),
        instance: format!("{name}@{}/{}", host(), std::process::id()),
        last_point: Arc::default(),
        backup: settings.backup,
        backed_up: Mutex::default(),
        pid_file: settings.pid_file,
        _lock: lock,
    };
    let handle = StorageHandle { shared: Arc::new(shared) };
    metrics::observe(handle.clone(), meter);
    let pid_file = handle.shared.pid_file.as_deref().map(PidFile::write).transpose().map_err(StorageError::PidFile)?;
    Ok((handle.clone(), keeper::part(handle, pid_file)))
}

fn lock(kind: &RuntimeKind, name: &str) -> Result<Option<DataLock>, StoreFailure> {
    kind.folder().map(|folder| DataLock::take(folder, name)).transpose()
}

/// A store for a command, which no sidecar uses meanwhile if it is in files.
pub struct Alone {
    pub records: Arc<dyn Records>,
    folder: Option<PathBuf>,
    _lock: Option<DataLock>,
}

/// Opens it, or makes it; nothing takes its place when it is away. What `beside` has may lie in the same folder.
pub fn open_alone(
    kind: &RuntimeKind,
    name: &str,
    secrets: &Arc<dyn SecretReader>,
    beside: Option<&Alone>,
) -> Result<Alone, StoreFailure> {
    if matches!(kind, RuntimeKind::Memory { file: None }) {
        return Err(StoreFailure("a store in memory without `persistence` is nowhere but in its process".to_owned()));
    }
    let folder = kind.folder().map(Path::to_owned);
    let is_held = folder.is_some() && beside.is_some_and(|beside| beside.folder == folder);
    let lock = if is_held { None } else { lock(kind, name)? };
    let (records, set_aside) = store(kind, secrets)?;
    match set_aside {
        Some(said) => Err(StoreFailure(said)),
        None => Ok(Alone { records, folder, _lock: lock }),
    }
}

/// What a backup holds, opened. The reason quotes nothing.
pub fn records_in(bytes: &[u8]) -> Result<Vec<(records::Space, records::Record)>, String> {
    snapshot::decode(bytes)
}

/// A store, ready for use.
struct Opened {
    records: Arc<dyn Records>,
    sturdy: Option<Arc<Sturdy>>,
    set_aside: Option<String>,
}

fn open(settings: &RuntimeSettings, secrets: &Arc<dyn SecretReader>) -> Result<Opened, StoreFailure> {
    let (store, set_aside) = store(&settings.kind, secrets)?;
    if matches!(settings.kind, RuntimeKind::Memory { .. }) {
        return Ok(Opened { records: store, sturdy: None, set_aside });
    }
    let sturdy = Arc::new(Sturdy::new(store, "runtime"));
    Ok(Opened { records: sturdy.clone(), sturdy: Some(sturdy), set_aside })
}

/// The kind itself, and what was wrong with what was there.
fn store(
    kind: &RuntimeKind,
    secrets: &Arc<dyn SecretReader>,
) -> Result<(Arc<dyn Records>, Option<String>), StoreFailure> {
    let login = |server: &ServerSettings| Login::new(server.password.clone(), secrets.clone());
    Ok(match kind {
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
    })
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

    /// The points of metrics; there are none unless the configuration asks for them.
    pub fn metrics(&self) -> Arc<dyn MetricsStore> {
        Arc::new(self.shared.series())
    }

    /// For a backup on demand.
    pub fn backup(&self) -> Arc<dyn Backup> {
        Arc::new(self.clone())
    }

    /// Makes everything ready that the settings need, beside what is in use.
    pub fn stage(&self, settings: StorageSettings) -> Result<Staged, StorageError> {
        if self.shared.runtime != settings.runtime
            || (&self.shared.backup, &self.shared.pid_file) != (&settings.backup, &settings.pid_file)
            || self.shared.points.as_ref().map(|points| &points.settings) != settings.metrics.as_ref()
        {
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

    fn backed_up(&self) -> (Option<SystemTime>, Option<String>) {
        self.shared.backed_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cache(&self) -> Arc<dyn Cache> {
        self.shared.cache.load().cache.clone()
    }
}

impl Shared {
    fn series(&self) -> Series {
        Series {
            records: self.records.clone(),
            instance: self.runtime.kind.is_shared().then(|| self.instance.clone()),
            retention: self.points.as_ref().map_or(Duration::ZERO, |points| points.settings.retention),
            last: self.last_point.clone(),
        }
    }

    async fn record_points(&self) {
        let Some(points) = &self.points else { return };
        if let Err(error) = self.series().record(points.source.points()).await {
            debug!(%error, "points of metrics were not kept");
        }
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
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

impl Backup for StorageHandle {
    fn dump(&self) -> StoreFuture<Bytes> {
        let records = self.shared.records.clone();
        Box::pin(async move { carry::dump(&*records).await.map(|(bytes, _)| bytes.into()).map_err(state::told) })
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
        if self.shared.backup.is_some() {
            let trouble = self.backed_up().1;
            let state = if trouble.is_some() { ConditionState::Degraded } else { ConditionState::Ok };
            let message = trouble.unwrap_or_default();
            conditions.push(Condition { component: "storage/backup".to_owned(), state, message });
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
