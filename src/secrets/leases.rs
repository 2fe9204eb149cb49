//! `Leases`: every lease that this process holds at a provider, and the reaper that gives back those that were replaced.
//!
//! Invariants: a lease is revoked only after its item's `overlap` has passed since newer values were published and nobody holds its
//! version any more (`hold`), or at once where its values were never used; of one item at most one lease is current; at most `MOST_WAITING` wait to be revoked, beyond which the
//! oldest does not wait any longer; a revocation is tried until it works, the provider refuses it, or the lease has ended by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::ports::Hold;

use super::context::Context;
use super::provider::Provider;
use super::schedule::{BACKOFF_CAP, backoff_in, chance};
use super::source::{FailureKind, LeaseId};
use super::store::Item;

#[derive(Default)]
pub(super) struct Leases {
    entries: Mutex<Vec<Entry>>,
    changed: Notify,
    holds: Arc<Holds>,
}

/// Who has not moved to newer values yet: how often each item is held from which version on.
#[derive(Default)]
struct Holds {
    counts: Mutex<BTreeMap<(String, u64), usize>>,
    released: Notify,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub item: String,
    pub provider: Arc<Provider>,
    pub id: LeaseId,
    /// Of the item's values.
    version: u64,
    ends: Instant,
    overlap: Duration,
    /// When it is to be revoked, and why; `None`: its values are in use.
    doom: Option<(Instant, &'static str)>,
    failures: u32,
    /// Too many wait: this one does not wait for those who hold it.
    is_hurried: bool,
}

impl Entry {
    fn new(item: &Item, version: u64, id: LeaseId, ttl: Duration) -> Self {
        Self {
            item: item.name().to_owned(),
            provider: item.provider.clone(),
            id,
            version,
            ends: Instant::now() + ttl,
            overlap: item.settings.overlap,
            doom: None,
            failures: 0,
            is_hurried: false,
        }
    }

    /// When it is to be revoked; what is held waits for the lease's own end.
    fn due(&self, holds: &Holds) -> Option<Instant> {
        let (at, _) = self.doom?;
        let is_held = !self.is_hurried && holds.has(&self.item, self.version);
        Some(if is_held { at.max(self.ends) } else { at })
    }
}

impl Holds {
    /// Somebody holds this version, or an older one.
    fn has(&self, item: &str, version: u64) -> bool {
        let range = (item.to_owned(), 0)..=(item.to_owned(), version);
        self.counts().range(range).next().is_some()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<(String, u64), usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct OneHold {
    holds: Arc<Holds>,
    key: (String, u64),
}

impl Drop for OneHold {
    fn drop(&mut self) {
        let mut counts = self.holds.counts();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
        drop(counts);
        self.holds.released.notify_one();
    }
}

impl Leases {
    /// Leases of these versions, and of newer ones that are replaced meanwhile, are kept until what this gives is dropped.
    pub fn hold(&self, item: &str, since: u64) -> Hold {
        let key = (item.to_owned(), since);
        *self.holds.counts().entry(key.clone()).or_default() += 1;
        Box::new(OneHold { holds: self.holds.clone(), key })
    }

    /// New values of `item` were published, with this lease or without one: what it had before is revoked after the overlap.
    pub fn published(&self, item: &Item, version: u64, lease: Option<(LeaseId, Duration)>) {
        let mut entries = self.entries();
        for entry in entries.iter_mut().filter(|entry| entry.item == item.name() && entry.doom.is_none()) {
            entry.doom = Some((Instant::now() + entry.overlap, "replaced"));
        }
        entries.extend(lease.map(|(id, ttl)| Entry::new(item, version, id, ttl)));
        bound(&mut entries);
        drop(entries);
        self.changed.notify_one();
    }

    /// Values that nobody has seen, nor will: their lease is revoked at once.
    pub fn unused(&self, item: &Item, (id, ttl): (LeaseId, Duration)) {
        let mut entries = self.entries();
        entries.push(Entry { doom: Some((Instant::now(), "not_used")), ..Entry::new(item, 0, id, ttl) });
        bound(&mut entries);
        drop(entries);
        self.changed.notify_one();
    }

    /// It was prolonged, and lives for `ttl` from now.
    pub fn prolonged(&self, id: &LeaseId, ttl: Duration) {
        if let Some(entry) = self.entries().iter_mut().find(|entry| entry.id == *id) {
            entry.ends = Instant::now() + ttl;
        }
    }

    /// Items that are in the configuration no more: their leases are revoked after their overlap.
    pub fn keep_only(&self, is_wanted: impl Fn(&str) -> bool) {
        for entry in self.entries().iter_mut().filter(|entry| entry.doom.is_none() && !is_wanted(&entry.item)) {
            entry.doom = Some((Instant::now() + entry.overlap, "removed"));
        }
        self.changed.notify_one();
    }

    /// How many are in use, and how many wait to be revoked.
    pub fn count(&self) -> (usize, usize) {
        let entries = self.entries();
        let waiting = entries.iter().filter(|entry| entry.doom.is_some()).count();
        (entries.len() - waiting, waiting)
    }

    /// Never ends: revokes what is due.
    pub async fn reap(&self, context: &Context) {
        loop {
            let next = self.entries().iter().filter_map(|entry| entry.due(&self.holds)).min();
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.revoke_due(context).await,
                () = self.changed.notified() => {}
                () = self.holds.released.notified() => {}
            }
        }
    }

    /// Revokes every lease, current or not, trying once; for the end of the process.
    pub async fn revoke_all(&self, context: &Context) {
        let entries: Vec<Entry> = std::mem::take(&mut *self.entries());
        join_all(entries.iter().map(async |entry| {
            let outcome = entry.provider.source.revoke(&entry.id).await;
            context.revoked(entry, "exit", outcome.as_ref().err());
        }))
        .await;
    }

    async fn revoke_due(&self, context: &Context) {
        let now = Instant::now();
        let due: Vec<Entry> = {
            let entries = self.entries();
            let is_due = |entry: &&Entry| entry.due(&self.holds).is_some_and(|at| at <= now);
            entries.iter().filter(is_due).take(AT_ONCE).cloned().collect()
        };
        join_all(due.iter().map(|entry| self.revoke(entry, context))).await;
    }

    async fn revoke(&self, entry: &Entry, context: &Context) {
        let reason = entry.doom.map_or("replaced", |(_, reason)| reason);
        if entry.ends <= Instant::now() {
            return self.forget(&entry.id);
        }
        match entry.provider.source.revoke(&entry.id).await {
            Ok(()) => context.revoked(entry, reason, None),
            Err(error) if !is_final(error.kind) && entry.failures < MOST_TRIES => {
                let wait = backoff_in(entry.failures + 1, BACKOFF_CAP, chance()).max(error.after.unwrap_or_default());
                if let Some(entry) = self.entries().iter_mut().find(|other| other.id == entry.id) {
                    entry.failures += 1;
                    entry.doom = Some((Instant::now() + wait, reason));
                }
                return;
            }
            Err(error) => context.revoked(entry, reason, Some(&error)),
        }
        self.forget(&entry.id);
    }

    fn forget(&self, id: &LeaseId) {
        self.entries().retain(|entry| entry.id != *id);
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Trying again would be refused again.
fn is_final(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Denied | FailureKind::NotFound | FailureKind::Malformed)
}

/// Where too many wait, the one that has the least left to wait goes first.
fn bound(entries: &mut [Entry]) {
    let mut waiting: Vec<&mut Entry> = entries.iter_mut().filter(|entry| entry.doom.is_some()).collect();
    if waiting.len() > MOST_WAITING {
        waiting.sort_by_key(|entry| entry.doom.map(|(at, _)| at));
        for entry in waiting.into_iter().take(AT_ONCE) {
            entry.doom = entry.doom.map(|(_, reason)| (Instant::now(), reason));
            entry.is_hurried = true;
        }
    }
}

const MOST_WAITING: usize = 1000;
const AT_ONCE: usize = 4;
const MOST_TRIES: u32 = 100;
