//! Storage: where what may be kept is kept. So far the cache of answers.
//!
//! A kind implements a trait of `ports`; `StorageHandle` holds the one that is configured, and puts another in its place on a reload.
//! This domain must not know what the values are: whoever sets one has sealed it if it has to be.

mod memory;
pub mod metrics;
pub mod settings;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use opentelemetry::metrics::Meter;
use serde_json::json;

use self::memory::MemoryCache;
use self::settings::{CacheKind, CacheSettings, StorageSettings};
use crate::ports::{Cache, CacheFuture, CacheStats, Condition, StatusReport};

/// What the rest of the process has of storage.
#[derive(Clone)]
pub struct StorageHandle {
    cache: Arc<ArcSwap<Configured>>,
}

/// A kind and the settings that it was made from.
struct Configured {
    settings: CacheSettings,
    cache: Arc<dyn Cache>,
}

/// Settings that are ready to be taken. Dropping it leaves everything as it is.
pub struct Staged {
    handle: StorageHandle,
    /// `None`: what there is is what is wanted.
    cache: Option<Configured>,
}

/// Makes what the settings ask for.
pub fn build(settings: StorageSettings, meter: &Meter) -> StorageHandle {
    let handle = StorageHandle { cache: Arc::new(ArcSwap::from_pointee(configured(settings.cache))) };
    metrics::observe(handle.clone(), meter);
    handle
}

fn configured(settings: CacheSettings) -> Configured {
    let cache: Arc<dyn Cache> = match settings.kind {
        CacheKind::Memory => Arc::new(MemoryCache::new(settings.max_bytes, settings.ttl)),
    };
    Configured { settings, cache }
}

impl StorageHandle {
    /// Makes everything ready that the settings need, beside what is in use.
    pub fn stage(&self, settings: StorageSettings) -> Staged {
        let changed = self.cache.load().settings != settings.cache;
        Staged { handle: self.clone(), cache: changed.then(|| configured(settings.cache)) }
    }
}

impl Staged {
    /// Takes the settings. What another cache held is not taken over.
    pub fn commit(self) {
        if let Some(cache) = self.cache {
            self.handle.cache.store(Arc::new(cache));
        }
    }
}

impl Cache for StorageHandle {
    fn get(&self, key: &str) -> CacheFuture<Option<Bytes>> {
        self.cache.load().cache.get(key)
    }

    fn set(&self, key: &str, value: Bytes, ttl: Duration) -> CacheFuture<()> {
        self.cache.load().cache.set(key, value, ttl)
    }

    fn delete(&self, key: &str) -> CacheFuture<()> {
        self.cache.load().cache.delete(key)
    }

    fn clear(&self, prefix: &str) -> CacheFuture<()> {
        self.cache.load().cache.clear(prefix)
    }

    fn stats(&self) -> CacheStats {
        self.cache.load().cache.stats()
    }
}

impl StatusReport for StorageHandle {
    fn section(&self) -> &'static str {
        "storage"
    }

    fn conditions(&self) -> Vec<Condition> {
        Vec::new()
    }

    fn detail(&self) -> serde_json::Value {
        let configured = self.cache.load();
        json!({
            "cache": {
                "type": configured.settings.kind.as_str(),
                "max_bytes": configured.settings.max_bytes,
                "stats": configured.cache.stats(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(max_bytes: u64) -> StorageSettings {
        StorageSettings { cache: CacheSettings { max_bytes, ..CacheSettings::default() } }
    }

    #[tokio::test]
    async fn a_reload_keeps_what_is_cached_unless_the_cache_is_another_one() {
        let storage = build(settings(1 << 20), &opentelemetry::global::meter("test"));
        storage.set("s/1", Bytes::from_static(b"x"), Duration::from_secs(60)).await;
        storage.stage(settings(1 << 20)).commit();
        assert_eq!(storage.get("s/1").await.as_deref(), Some(&b"x"[..]));
        storage.stage(settings(2 << 20)).commit();
        assert_eq!(storage.get("s/1").await, None);
        drop(storage.stage(settings(3 << 20)));
        assert_eq!(storage.detail()["cache"]["max_bytes"], 2 << 20);
    }
}
