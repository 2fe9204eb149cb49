//! A store that is always there: while the configured one is out of reach, or its disk full, memory takes its place.
//!
//! State is kept in memory beside the store at all times, so that what was known last is known during an outage. What is changed meanwhile is
//! noted, and written when the store is back, before it is read again: the last change counts, of whichever process. `heal` is called again
//! and again by the keeper. Invariant: nothing that was acknowledged is forgotten, unless the process ends during the outage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tracing::{info, warn};

use super::kinds::memory::MemoryRecords;
use super::records::{Pending, Record, Records, Space, StoreFailure, Trimmed};

pub struct Sturdy {
    store: Arc<dyn Records>,
    /// `runtime`, in messages.
    name: &'static str,
    copy: MemoryRecords,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    away: Option<Away>,
    /// Changed while the store was away.
    changed: BTreeSet<(Space, String)>,
    failures: u64,
}

#[derive(Debug, Clone)]
pub struct Away {
    pub since: Instant,
    pub reason: String,
}

impl Sturdy {
    pub fn new(store: Arc<dyn Records>, name: &'static str) -> Self {
        Self { store, name, copy: MemoryRecords::default(), state: Mutex::default() }
    }

    pub fn away(&self) -> Option<Away> {
        self.state().away.clone()
    }

    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// How many changes wait for the store.
    pub fn waiting(&self) -> usize {
        self.state().changed.len()
    }

    /// Writes what was changed, if the store is back.
    pub async fn heal(&self) {
        if self.away().is_none() {
            return;
        }
        if let Err(failure) = self.store.probe().await {
            if let Some(away) = &mut self.state().away {
                away.reason = failure.0;
            }
            return;
        }
        loop {
            let batch: Vec<(Space, String)> = {
                let mut state = self.state();
                if state.changed.is_empty() {
                    if let Some(away) = state.away.take() {
                        let seconds = away.since.elapsed().as_secs();
                        info!(store = self.name, seconds, "the store is back, and has what was changed meanwhile");
                    }
                    break;
                }
                state.changed.iter().take(BATCH).cloned().collect()
            };
            if self.write(&batch).await.is_err() {
                return;
            }
        }
        // Points are in the store now; state stays for the next time.
        let _ = self.copy.clear(Space::Metrics, "").await;
    }

    async fn write(&self, batch: &[(Space, String)]) -> Result<(), StoreFailure> {
        for space in Space::ALL {
            let (mut present, mut gone) = (Vec::new(), Vec::new());
            for (_, key) in batch.iter().filter(|(of, _)| *of == space) {
                match self.copy.get(space, key).await? {
                    Some(value) => present.push(Record::new(key.clone(), value)),
                    None => gone.push(key.clone()),
                }
            }
            if !gone.is_empty() {
                self.store.delete(space, gone).await?;
            }
            let written: BTreeMap<String, Bytes> =
                present.iter().map(|record| (record.key.clone(), record.value.clone())).collect();
            if !present.is_empty() {
                self.store.set(space, present).await?;
            }
            // What was changed again during the writing is written again.
            let mut state = self.state();
            for (_, key) in batch.iter().filter(|(of, _)| *of == space) {
                if self.copy.peek(space, key) == written.get(key).cloned() {
                    state.changed.remove(&(space, key.clone()));
                }
            }
        }
        Ok(())
    }

    /// What the store says; `None` when memory has to answer.
    async fn ask<T>(&self, doing: &'static str, work: Pending<'_, T>) -> Option<T> {
        if self.away().is_some() {
            return None;
        }
        match work.await {
            Ok(value) => Some(value),
            Err(failure) => {
                self.lost(doing, &failure);
                None
            }
        }
    }

    fn lost(&self, doing: &'static str, failure: &StoreFailure) {
        let mut state = self.state();
        state.failures += 1;
        if state.away.is_none() {
            warn!(store = self.name, doing, reason = failure.0, "the store does not work: memory takes its place");
            state.away = Some(Away { since: Instant::now(), reason: failure.0.clone() });
        }
    }

    /// Notes keys that the store does not have as they are in memory.
    fn note(&self, space: Space, keys: impl Iterator<Item = String>) {
        self.state().changed.extend(keys.map(|key| (space, key)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records for Sturdy {
    fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>> {
        Box::pin(async move {
            let Some(found) = self.ask("get", self.store.get(space, key)).await else {
                return self.copy.get(space, key).await;
            };
            if space == Space::State {
                match &found {
                    Some(value) => self.copy.set(space, vec![Record::new(key, value.clone())]).await?,
                    None => self.copy.delete(space, vec![key.to_owned()]).await?,
                }
            }
            Ok(found)
        })
    }

    fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()> {
        Box::pin(async move {
            let keys: Vec<String> = records.iter().map(|record| record.key.clone()).collect();
            if space == Space::State {
                self.copy.set(space, records.clone()).await?;
            }
            if self.ask("set", self.store.set(space, records.clone())).await.is_none() {
                self.copy.set(space, records).await?;
                self.note(space, keys.into_iter());
            }
            Ok(())
        })
    }

    fn swap<'a>(&'a self, space: Space, key: &'a str, expected: Option<Bytes>, value: Bytes) -> Pending<'a, bool> {
        Box::pin(async move {
            let asked = self.ask("swap", self.store.swap(space, key, expected.clone(), value.clone())).await;
            match asked {
                Some(true) => {
                    self.copy.set(space, vec![Record::new(key, value)]).await?;
                    Ok(true)
                }
                Some(false) => Ok(false),
                None => {
                    let swapped = self.copy.swap(space, key, expected, value).await?;
                    if swapped {
                        self.note(space, std::iter::once(key.to_owned()));
                    }
                    Ok(swapped)
                }
            }
        })
    }

    fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()> {
        Box::pin(async move {
            self.copy.delete(space, keys.clone()).await?;
            if self.ask("delete", self.store.delete(space, keys.clone())).await.is_none() {
                self.note(space, keys.into_iter());
            }
            Ok(())
        })
    }

    fn list<'a>(
        &'a self,
        space: Space,
        prefix: &'a str,
        after: Option<&'a str>,
        most: usize,
    ) -> Pending<'a, Vec<Record>> {
        Box::pin(async move {
            match self.ask("list", self.store.list(space, prefix, after, most)).await {
                Some(found) => Ok(found),
                None => self.copy.list(space, prefix, after, most).await,
            }
        })
    }

    fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()> {
        Box::pin(async move {
            self.copy.clear(space, prefix).await?;
            self.store.clear(space, prefix).await
        })
    }

    fn trim(&self, space: Space, most: u64) -> Pending<'_, Option<Trimmed>> {
        self.store.trim(space, most)
    }

    /// Fails when something waits for the store.
    fn flush(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            match (self.ask("flush", self.store.flush()).await, self.away()) {
                (Some(()), _) => Ok(()),
                (None, Some(away)) => Err(StoreFailure(away.reason)),
                (None, None) => Ok(()),
            }
        })
    }

    fn probe(&self) -> Pending<'_, ()> {
        self.store.probe()
    }
}

/// Changes that are written in one go.
const BATCH: usize = 200;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A store in memory that can be away.
    #[derive(Default)]
    struct Fickle {
        kept: MemoryRecords,
        is_away: AtomicBool,
    }

    impl Fickle {
        fn answer<'a, T: Send + 'a>(&self, kept: impl FnOnce() -> Pending<'a, T>) -> Pending<'a, T> {
            if self.is_away.load(Ordering::Relaxed) {
                return Box::pin(std::future::ready(Err(StoreFailure("gone".to_owned()))));
            }
            kept()
        }
    }

    impl Records for Fickle {
        fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>> {
            self.answer(|| self.kept.get(space, key))
        }
        fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()> {
            self.answer(|| self.kept.set(space, records))
        }
        fn swap<'a>(&'a self, space: Space, key: &'a str, old: Option<Bytes>, new: Bytes) -> Pending<'a, bool> {
            self.answer(|| self.kept.swap(space, key, old, new))
        }
        fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()> {
            self.answer(|| self.kept.delete(space, keys))
        }
        fn list<'a>(
            &'a self,
            space: Space,
            prefix: &'a str,
            after: Option<&'a str>,
            n: usize,
        ) -> Pending<'a, Vec<Record>> {
            self.answer(|| self.kept.list(space, prefix, after, n))
        }
        fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()> {
            self.answer(|| self.kept.clear(space, prefix))
        }
        fn trim(&self, space: Space, most: u64) -> Pending<'_, Option<Trimmed>> {
            self.answer(|| self.kept.trim(space, most))
        }
        fn flush(&self) -> Pending<'_, ()> {
            self.answer(|| self.kept.flush())
        }
        fn probe(&self) -> Pending<'_, ()> {
            self.answer(|| self.kept.probe())
        }
    }

    #[tokio::test]
    async fn memory_takes_the_place_of_a_store_that_is_away_and_gives_everything_back() {
        let store = Arc::new(Fickle::default());
        let sturdy = Sturdy::new(store.clone(), "runtime");
        let record = |key: &str, value: &'static str| vec![Record::new(key, value)];
        sturdy.set(Space::State, record("kept", "1")).await.unwrap();
        sturdy.set(Space::State, record("gone", "1")).await.unwrap();
        store.is_away.store(true, Ordering::Relaxed);
        assert_eq!(sturdy.get(Space::State, "kept").await.unwrap().as_deref(), Some(&b"1"[..]), "what was known last");
        assert_eq!(sturdy.away().unwrap().reason, "gone");
        sturdy.set(Space::State, record("new", "2")).await.unwrap();
        sturdy.set(Space::Metrics, record("point", "3")).await.unwrap();
        sturdy.delete(Space::State, vec!["gone".to_owned()]).await.unwrap();
        assert!(sturdy.swap(Space::State, "kept", Some("1".into()), "4".into()).await.unwrap());
        assert!(!sturdy.swap(Space::State, "kept", Some("1".into()), "5".into()).await.unwrap());
        assert!(sturdy.flush().await.is_err());
        sturdy.heal().await;
        assert_eq!((sturdy.away().is_some(), sturdy.waiting()), (true, 4));
        store.is_away.store(false, Ordering::Relaxed);
        sturdy.heal().await;
        assert_eq!((sturdy.away().is_none(), sturdy.waiting(), sturdy.failures()), (true, 0, 1));
        let kept: Vec<_> = store.kept.list(Space::State, "", None, 9).await.unwrap();
        let kept: Vec<(&str, &[u8])> = kept.iter().map(|record| (record.key.as_str(), &record.value[..])).collect();
        assert_eq!(kept, [("kept", &b"4"[..]), ("new", b"2")]);
        assert!(store.kept.get(Space::Metrics, "point").await.unwrap().is_some());
    }
}
