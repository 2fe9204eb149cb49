//! The cache in a store that is elsewhere: what leaves the process is sealed, and names are digests already.
//!
//! While the store is away a cache in memory takes its place, which is emptied when the store is back; what was to be forgotten meanwhile is
//! forgotten there before anything is read again. Without its key nothing is kept and nothing found. Room: what ends first goes first, in
//! steps of a sixteenth of `max_bytes`; a server bounds itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{info, warn};

use super::memory::MemoryCache;
use super::seal::Seal;
use crate::ports::{Cache, CacheFuture, CacheStats, MAX_CACHE_KEY};
use crate::storage::records::{Record, Records, Space, now};
use crate::storage::sturdy::Away;

#[derive(Clone)]
pub struct ExternalCache(Arc<Shared>);

struct Shared {
    records: Arc<dyn Records>,
    seal: Seal,
    fallback: MemoryCache,
    max_bytes: u64,
    longest: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stats: CacheStats,
    away: Option<Away>,
    /// Prefixes that the store was not told to forget.
    missed: Vec<String>,
    /// Why the key is not there.
    keyless: Option<String>,
    /// Bytes that were set since the room was looked at.
    fresh: u64,
}

impl ExternalCache {
    pub fn new(records: Arc<dyn Records>, seal: Seal, max_bytes: u64, longest: Duration) -> Self {
        let fallback = MemoryCache::new(max_bytes, longest);
        Self(Arc::new(Shared { records, seal, fallback, max_bytes, longest, state: Mutex::default() }))
    }

    pub fn away(&self) -> Option<Away> {
        self.0.state().away.clone()
    }

    pub fn keyless(&self) -> Option<String> {
        self.0.state().keyless.clone()
    }

    pub async fn heal(&self) {
        let shared = &self.0;
        if self.away().is_none() {
            return;
        }
        if let Err(failure) = shared.records.probe().await {
            if let Some(away) = &mut shared.state().away {
                away.reason = failure.0;
            }
            return;
        }
        let missed = std::mem::take(&mut shared.state().missed);
        for (done, prefix) in missed.iter().enumerate() {
            if shared.records.clear(Space::Cache, prefix).await.is_err() {
                shared.state().missed.extend_from_slice(&missed[done..]);
                return;
            }
        }
        if shared.came_back() {
            shared.fallback.clear("").await;
        }
    }

    pub async fn trim(&self) {
        self.0.trim().await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_away(&self) -> bool {
        self.state().away.is_some()
    }

    /// Something may have been missed meanwhile; then it is for the next time.
    fn came_back(&self) -> bool {
        let mut state = self.state();
        if !state.missed.is_empty() {
            return false;
        }
        let away = state.away.take();
        if let Some(away) = &away {
            info!(seconds = away.since.elapsed().as_secs(), "the store of the cache is back");
        }
        away.is_some()
    }

    fn lost(&self, reason: &str) {
        let mut state = self.state();
        state.stats.failures += 1;
        if state.away.is_none() {
            warn!(reason, "the store of the cache does not work: memory takes its place");
            state.away = Some(Away { since: Instant::now(), reason: reason.to_owned() });
        }
    }

    /// Notes whether the key was there.
    fn keyed<T>(&self, done: Result<T, String>) -> Option<T> {
        let mut state = self.state();
        match done {
            Ok(value) => {
                state.keyless = None;
                Some(value)
            }
            Err(reason) => {
                state.stats.failures += 1;
                if state.keyless.as_ref() != Some(&reason) {
                    warn!(reason, "nothing is cached without its key");
                }
                state.keyless = Some(reason);
                None
            }
        }
    }

    async fn get(&self, key: &str) -> Option<Bytes> {
        if !self.is_away() {
            match self.records.get(Space::Cache, key).await {
                Ok(found) => {
                    let opened = found.and_then(|sealed| self.keyed(self.seal.open(key, &sealed)).flatten());
                    let mut state = self.state();
                    match opened {
                        Some(_) => state.stats.hits += 1,
                        None => state.stats.misses += 1,
                    }
                    return opened;
                }
                Err(failure) => self.lost(&failure.0),
            }
        }
        self.fallback.get(key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Duration) {
        let ttl = ttl.min(self.longest);
        if key.len() > MAX_CACHE_KEY || ttl.is_zero() || value.len() as u64 > self.max_bytes / 4 {
            return;
        }
        if !self.is_away() {
            let Some(sealed) = self.keyed(self.seal.seal(key, &value)) else { return };
            let until = now().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
            let weight = (key.len() + sealed.len()) as u64;
            let record = Record { key: key.to_owned(), value: sealed, until: Some(until) };
            match self.records.set(Space::Cache, vec![record]).await {
                Ok(()) => {
                    let is_much = {
                        let mut state = self.state();
                        state.fresh += weight;
                        state.fresh > self.max_bytes / 16
                    };
                    if is_much {
                        self.trim().await;
                    }
                    return;
                }
                Err(failure) => self.lost(&failure.0),
            }
        }
        self.fallback.set(key, value, ttl).await;
    }

    async fn clear(&self, prefix: &str) {
        self.fallback.clear(prefix).await;
        if !self.is_away() {
            match self.records.clear(Space::Cache, prefix).await {
                Ok(()) => return,
                Err(failure) => self.lost(&failure.0),
            }
        }
        let mut state = self.state();
        if state.missed.len() >= MOST_MISSED {
            state.missed = vec![String::new()];
        } else if !state.missed.iter().any(|missed| prefix.starts_with(missed.as_str())) {
            state.missed.push(prefix.to_owned());
        }
    }

    async fn trim(&self) {
        if self.is_away() {
            return;
        }
        // Said to be empty while there is less than a sixteenth in it.
        self.state().fresh = 0;
        match self.records.trim(Space::Cache, self.max_bytes - self.max_bytes / 16).await {
            Ok(Some(trimmed)) => {
                let mut state = self.state();
                state.stats.evictions += trimmed.evicted;
                (state.stats.entries, state.stats.bytes) = (trimmed.entries, trimmed.bytes);
            }
            Ok(None) => {}
            Err(failure) => self.lost(&failure.0),
        }
    }
}

impl Cache for ExternalCache {
    fn get(&self, key: &str) -> CacheFuture<Option<Bytes>> {
        let (shared, key) = (self.0.clone(), key.to_owned());
        Box::pin(async move { shared.get(&key).await })
    }

    fn set(&self, key: &str, value: Bytes, ttl: Duration) -> CacheFuture<()> {
        let (shared, key) = (self.0.clone(), key.to_owned());
        Box::pin(async move { shared.set(&key, value, ttl).await })
    }

    fn delete(&self, key: &str) -> CacheFuture<()> {
        let (shared, key) = (self.0.clone(), key.to_owned());
        Box::pin(async move {
            shared.fallback.delete(&key).await;
            if !shared.is_away()
                && let Err(failure) = shared.records.delete(Space::Cache, vec![key]).await
            {
                shared.lost(&failure.0);
            }
        })
    }

    fn clear(&self, prefix: &str) -> CacheFuture<()> {
        let (shared, prefix) = (self.0.clone(), prefix.to_owned());
        Box::pin(async move { shared.clear(&prefix).await })
    }

    fn stats(&self) -> CacheStats {
        let (own, memory) = (self.0.state().stats, self.0.fallback.stats());
        CacheStats {
            hits: own.hits + memory.hits,
            misses: own.misses + memory.misses,
            evictions: own.evictions + memory.evictions,
            failures: own.failures,
            entries: own.entries + memory.entries,
            bytes: own.bytes + memory.bytes,
        }
    }

    fn shrink(&self) -> u64 {
        self.0.fallback.shrink()
    }

    fn outlives(&self) -> bool {
        true
    }

    fn digest(&self, bytes: &[u8]) -> Option<[u8; 32]> {
        self.0.keyed(self.0.seal.digest(bytes))
    }
}

/// Beyond them everything is forgotten.
const MOST_MISSED: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::seal::tests::seal;
    use super::*;
    use crate::storage::kinds::sqlite::{SqliteRecords, Sync};

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn what_leaves_the_process_is_sealed_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.db");
        let (records, _) = SqliteRecords::open(&path, Sync::Normal).unwrap();
        let cache = ExternalCache::new(Arc::new(records), seal("a key of more than sixteen bytes"), 256 << 10, LONG);
        cache.set("s/tools/1", Bytes::from_static(b"a telling answer"), LONG).await;
        assert_eq!(cache.get("s/tools/1").await.as_deref(), Some(&b"a telling answer"[..]));
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"telling"));
        }
        for n in 0..100 {
            cache.set(&format!("s/tools/{n}"), Bytes::from(vec![7; 8 << 10]), LONG).await;
        }
        cache.trim().await;
        let stats = cache.stats();
        assert!(stats.bytes <= 256 << 10 && stats.entries > 20 && stats.evictions > 50, "{stats:?}");
        // With another key it is as if there were nothing.
        let (records, _) = SqliteRecords::open(&path, Sync::Normal).unwrap();
        let other = ExternalCache::new(Arc::new(records), seal("another key of sixteen bytes, too"), 256 << 10, LONG);
        assert_eq!(other.get("s/tools/99").await, None);
        assert!(cache.get("s/tools/99").await.is_some());
        cache.clear("s/").await;
        assert_eq!(cache.get("s/tools/99").await, None);
    }
}
