//! The requests of one session that are not answered yet, and their deadlines.
//!
//! Invariant: a call leaves the ledger by being settled, whatever happens to the session: what is left when the ledger is dropped is
//! recorded as unanswered then.

use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::mcp::call::{Call, Ending, Peer, Recorder};
use crate::mcp::message::IdKey;
use crate::ports::AuditRefused;

pub struct Ledger {
    calls: HashMap<IdKey, Entry>,
    /// Not later than the first deadline. Kept for the next request when nothing is due.
    alarm: Pin<Box<Sleep>>,
    armed: bool,
    recorder: Arc<Recorder>,
    service: Arc<str>,
    pub peer: Peer,
}

struct Entry {
    call: Call,
    deadline: Option<Instant>,
}

impl Ledger {
    pub fn new(recorder: Arc<Recorder>, service: Arc<str>, peer: Peer) -> Self {
        let alarm = Box::pin(sleep_until(Instant::now()));
        Self { calls: HashMap::new(), alarm, armed: false, recorder, service, peer }
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn contains(&self, key: &IdKey) -> bool {
        self.calls.contains_key(key)
    }

    pub fn get(&self, key: &IdKey) -> Option<&Call> {
        self.calls.get(key).map(|entry| &entry.call)
    }

    pub fn get_mut(&mut self, key: &IdKey) -> Option<&mut Call> {
        self.calls.get_mut(key).map(|entry| &mut entry.call)
    }

    /// Only calls without a deadline are left, which may take for ever.
    pub fn only_endless(&self) -> bool {
        self.calls.values().all(|entry| entry.deadline.is_none())
    }

    /// Enters a call. `timeout`: `None` for a request that lasts as long as the client wants.
    pub fn enter(&mut self, key: IdKey, mut call: Call, timeout: Option<Duration>) {
        call.timeout = timeout;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        if let Some(deadline) = deadline
            && (!self.armed || deadline < self.alarm.deadline())
        {
            self.alarm.as_mut().reset(deadline);
            self.armed = true;
        }
        self.calls.insert(key, Entry { call, deadline });
    }

    /// The client is asked something first: the call, or every call, has at least so much time from now on.
    pub fn extend(&mut self, key: Option<&IdKey>, to: Duration) {
        let until = Instant::now() + to;
        // The alarm rings too early once, and is then set for the next deadline.
        self.deadlines(key).for_each(|deadline| *deadline = (*deadline).max(until));
    }

    /// The client has answered: the call, or every call, has no more time than this.
    pub fn shorten(&mut self, key: Option<&IdKey>, to: Duration) {
        let until = Instant::now() + to;
        self.deadlines(key).for_each(|deadline| *deadline = (*deadline).min(until));
        let first = self.calls.values().filter_map(|entry| entry.deadline).min();
        if let Some(first) = first.filter(|first| *first < self.alarm.deadline()) {
            self.alarm.as_mut().reset(first);
        }
    }

    fn deadlines(&mut self, key: Option<&IdKey>) -> impl Iterator<Item = &mut Instant> {
        let calls = self.calls.iter_mut().filter(move |(its, _)| key.is_none_or(|key| key == *its));
        calls.filter_map(|(_, entry)| entry.deadline.as_mut())
    }

    /// Takes a call out and records its end. `None`: there is no such call. On `Err` the client must get an error.
    pub fn settle(
        &mut self,
        key: &IdKey,
        versions: Arc<[String]>,
        ending: &Ending<'_>,
    ) -> Option<(Call, Result<(), AuditRefused>)> {
        let mut call = self.calls.remove(key)?.call;
        call.versions = versions;
        let recorded = self.recorder.settle(&call, &self.service, self.peer, ending);
        Some((call, recorded))
    }

    /// Records a call that was never entered.
    pub fn settle_at_once(&self, call: &Call, ending: &Ending<'_>) -> Result<(), AuditRefused> {
        self.recorder.settle(call, &self.service, self.peer, ending)
    }

    /// Completes when a deadline may have passed. Cancel-safe.
    pub async fn alarm(&mut self) {
        if self.armed { self.alarm.as_mut().await } else { pending().await }
    }

    /// The calls whose deadline has passed; sets the alarm for the next.
    pub fn overdue(&mut self) -> Vec<IdKey> {
        let now = Instant::now();
        let due = self.calls.iter().filter(|(_, entry)| entry.deadline.is_some_and(|deadline| deadline <= now));
        let due: Vec<IdKey> = due.map(|(key, _)| key.clone()).collect();
        let next = self.calls.values().filter_map(|entry| entry.deadline).filter(|deadline| *deadline > now).min();
        self.armed = next.is_some();
        if let Some(next) = next {
            self.alarm.as_mut().reset(next);
        }
        due
    }

    pub fn keys(&self) -> Vec<IdKey> {
        self.calls.keys().cloned().collect()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        for entry in std::mem::take(&mut self.calls).into_values() {
            if let Err(error) = self.recorder.settle(&entry.call, &self.service, self.peer, &Ending::ClientGone) {
                tracing::error!(%error, service = &*self.service, "an unanswered request could not be audited");
            }
        }
    }
}
