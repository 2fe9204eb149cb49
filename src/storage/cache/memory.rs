//! The cache in this process's own memory: bounded by bytes, each value with a time of its own; what was used longest ago goes first.
//!
//! What is forgotten is freed at once, and the allocator wipes it: a value must not be there any more when its credential is not.
//!
//! Invariants: `order` has exactly the keys of `entries`, by when they were last used; `bytes` is the sum of their weights.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::memory::{self, Room};
use crate::ports::{Cache, CacheFuture, CacheStats, MAX_CACHE_KEY};

pub struct MemoryCache {
    kept: Mutex<Kept>,
    max_bytes: u64,
    /// Nothing is kept longer.
    longest: Duration,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<Arc<str>, Entry>,
    order: BTreeMap<u64, Arc<str>>,
    /// Counts the uses.
    clock: u64,
    stats: CacheStats,
}

struct Entry {
    value: Bytes,
    until: Instant,
    used: u64,
}

impl MemoryCache {
    pub fn new(max_bytes: u64, longest: Duration) -> Self {
        Self { kept: Mutex::default(), max_bytes, longest }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache for MemoryCache {
    fn get(&self, key: &str) -> CacheFuture<Option<Bytes>> {
        at_once(self.kept().find(key))
    }

    fn set(&self, key: &str, value: Bytes, ttl: Duration) -> CacheFuture<()> {
        let ttl = ttl.min(self.longest);
        if key.len() <= MAX_CACHE_KEY && !ttl.is_zero() {
            let mut kept = self.kept();
            if memory::room() > Room::Enough {
                // It takes no more memory than it gives.
                let most = kept.stats.bytes.saturating_sub(2 * weight(key, &value));
                kept.shrink_to(most);
            }
            kept.keep(key, value, Instant::now() + ttl, self.max_bytes);
        }
        at_once(())
    }

    fn delete(&self, key: &str) -> CacheFuture<()> {
        self.kept().forget(key);
        at_once(())
    }

    fn clear(&self, prefix: &str) -> CacheFuture<()> {
        let mut kept = self.kept();
        let keys: Vec<Arc<str>> = kept.entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        keys.iter().for_each(|key| kept.forget(key));
        at_once(())
    }

    fn shrink(&self) -> u64 {
        let mut kept = self.kept();
        let before = kept.stats.bytes;
        kept.shrink_to(before / 2);
        before - kept.stats.bytes
    }

    fn stats(&self) -> CacheStats {
        let kept = self.kept();
        CacheStats { entries: kept.entries.len() as u64, ..kept.stats }
    }
}

impl Kept {
    fn find(&mut self, key: &str) -> Option<Bytes> {
        let until = self.entries.get(key).map(|entry| entry.until);
        if until.is_some_and(|until| until <= Instant::now()) {
            self.forget(key);
        }
        let Some(entry) = self.entries.get_mut(key) else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        self.clock += 1;
        let before = std::mem::replace(&mut entry.used, self.clock);
        if let Some(key) = self.order.remove(&before) {
            self.order.insert(self.clock, key);
        }
        Some(entry.value.clone())
    }

    fn keep(&mut self, key: &str, value: Bytes, until: Instant, max_bytes: u64) {
        self.forget(key);
        let weight = weight(key, &value);
        if weight > max_bytes {
            self.stats.evictions += 1;
            return;
        }
        self.shrink_to(max_bytes - weight);
        self.clock += 1;
        let key: Arc<str> = key.into();
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { value, until, used: self.clock });
        self.stats.bytes += weight;
    }

    fn shrink_to(&mut self, bytes: u64) {
        while self.stats.bytes > bytes {
            let Some(oldest) = self.order.first_key_value().map(|(_, key)| key.clone()) else { break };
            let over = self.entries.get(&oldest).is_some_and(|entry| entry.until <= Instant::now());
            self.stats.evictions += u64::from(!over);
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.stats.bytes -= weight(key, &entry.value);
        }
    }
}

fn at_once<T: Send + 'static>(value: T) -> CacheFuture<T> {
    Box::pin(std::future::ready(value))
}

fn weight(key: &str, value: &Bytes) -> u64 {
    (key.len() + value.len() + ENTRY_OVERHEAD) as u64
}

/// What an entry costs beside its bytes, about.
const ENTRY_OVERHEAD: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn cache(max_bytes: u64) -> MemoryCache {
        MemoryCache::new(max_bytes, LONG)
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_there_until_its_own_time_is_over() {
        let cache = cache(1 << 20);
        cache.set("s/short", Bytes::from_static(b"1"), Duration::from_millis(20)).await;
        cache.set("s/long", Bytes::from_static(b"2"), LONG * 2).await;
        cache.set("s/none", Bytes::from_static(b"3"), Duration::ZERO).await;
        assert_eq!(cache.get("s/short").await.as_deref(), Some(&b"1"[..]));
        assert_eq!(cache.get("s/none").await, None);
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(cache.get("s/short").await, None);
        assert_eq!(cache.stats().entries, 1, "what is over is freed when it is asked for");
        cache.set("s/short", Bytes::from_static(b"4"), LONG).await;
        assert_eq!(cache.get("s/short").await.as_deref(), Some(&b"4"[..]));
        tokio::time::advance(LONG).await;
        assert_eq!(cache.get("s/long").await, None, "nothing is kept longer than the cache allows");
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_what_is_used_stays() {
        let cache = cache(64 << 10);
        cache.set("s/used", Bytes::from(vec![0; 4 << 10]), LONG).await;
        for n in 0..100 {
            cache.set(&format!("s/{n}"), Bytes::from(vec![0; 4 << 10]), LONG).await;
            assert!(cache.get("s/used").await.is_some(), "{n}");
        }
        let stats = cache.stats();
        assert!(stats.bytes <= 64 << 10 && stats.entries >= 14, "{stats:?}");
        assert_eq!(stats.entries + stats.evictions, 101, "{stats:?}");
        assert!(cache.get("s/99").await.is_some() && cache.get("s/0").await.is_none());
        cache.set("s/huge", Bytes::from(vec![0; 1 << 20]), LONG).await;
        assert_eq!(cache.get("s/huge").await, None);
        assert_eq!(cache.stats().entries, stats.entries, "what never fits sends nobody away");
        cache.set(&"k".repeat(MAX_CACHE_KEY + 1), Bytes::new(), LONG).await;
        assert_eq!(cache.stats().entries, stats.entries);
        let given = cache.shrink();
        assert!(given >= stats.bytes / 2 && cache.stats().bytes == stats.bytes - given, "{given} of {stats:?}");
        assert!(cache.get("s/used").await.is_some() && cache.get("s/99").await.is_some(), "what was used last stays");
    }

    #[tokio::test]
    async fn groups_are_cleared_by_themselves() {
        let cache = cache(1 << 20);
        for key in ["a/1", "a/2", "ab/1"] {
            cache.set(key, Bytes::from_static(b"x"), LONG).await;
        }
        cache.clear("a/").await;
        assert_eq!((cache.get("a/1").await, cache.get("a/2").await), (None, None));
        assert!(cache.get("ab/1").await.is_some());
        cache.delete("ab/1").await;
        assert!(cache.get("ab/1").await.is_none());
        cache.set("a/1", Bytes::from_static(b"x"), LONG).await;
        cache.set("a/1", Bytes::from_static(b"longer"), LONG).await;
        cache.clear("").await;
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.bytes, stats.hits, stats.misses), (0, 0, 1, 3), "{stats:?}");
    }
}
