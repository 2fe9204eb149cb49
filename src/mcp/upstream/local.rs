//! A local upstream: a service that mcpeg serves itself, asked by calls in this process.
//!
//! The far side keeps no session, so nothing is told to it again, and each request is a future of its own: to cancel one is to drop it.
//! What a legacy session has said is noted all the same, for a successor of another kind.
//!
//! Invariants: `running` has a future for each request that is not answered, and no more than `max_in_flight` of them are begun before
//! the client is not read any more.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;

use super::outgoing::Outgoing;
use super::replay::Replay;
use super::{Event, Failure, Gone, Inheritance, Surroundings};
use crate::mcp::message::IdKey;
use crate::ports::LocalAnswer;

pub struct LocalUpstream {
    around: Surroundings,
    /// Not before `begin`.
    begun: bool,
    held: VecDeque<Outgoing>,
    running: FuturesUnordered<Running>,
    awaited: HashMap<IdKey, Awaited>,
    inbox: VecDeque<Bytes>,
    lost: VecDeque<Event>,
    replay: Replay,
}

type Running = Pin<Box<dyn Future<Output = Option<(Option<IdKey>, LocalAnswer)>> + Send>>;

struct Awaited {
    give_up: AbortHandle,
    /// Known once it is answered.
    versions: Arc<[String]>,
}

impl LocalUpstream {
    pub fn new(around: Surroundings) -> Self {
        Self {
            around,
            begun: false,
            held: VecDeque::new(),
            running: FuturesUnordered::new(),
            awaited: HashMap::new(),
            inbox: VecDeque::new(),
            lost: VecDeque::new(),
            replay: Replay::default(),
        }
    }

    pub fn begin(&mut self, inheritance: Inheritance) {
        self.replay = inheritance.replay;
        self.begun = true;
        let held = std::mem::take(&mut self.held);
        inheritance.again.into_iter().chain(held).for_each(|message| self.ask(message));
    }

    pub fn send(&mut self, message: Outgoing) {
        if self.begun { self.ask(message) } else { self.held.push_back(message) }
    }

    /// Cancel-safe: what has ended is put into `inbox` or `lost` at once.
    pub async fn event(&mut self, read: bool) -> Event {
        loop {
            if let Some(lost) = self.lost.pop_front() {
                return lost;
            }
            if read && !self.inbox.is_empty() {
                return Event::Lines;
            }
            match self.running.next().await {
                Some(Some((key, answer))) => self.take(key, answer),
                // It was given up.
                Some(None) => {}
                None => std::future::pending().await,
            }
        }
    }

    pub fn next_line(&mut self) -> Option<Bytes> {
        self.inbox.pop_front()
    }

    pub fn answered(&mut self, key: &IdKey, result: Option<&str>) {
        if let Some(awaited) = self.awaited.remove(key) {
            awaited.give_up.abort();
        }
        self.replay.answered(key, result);
        if result.is_some() {
            self.around.service.works();
        }
    }

    /// Gives the work up, at the place where it waits.
    pub fn cancel(&mut self, key: &IdKey) {
        self.held.retain(|message| message.key.as_ref() != Some(key));
        if let Some(awaited) = self.awaited.remove(key) {
            awaited.give_up.abort();
        }
    }

    pub fn is_drained(&self) -> bool {
        self.awaited.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.running.len() + self.held.len() + self.inbox.len() < self.around.limits.max_in_flight.max(1) * 2
    }

    pub fn versions_for(&self, key: &IdKey) -> Arc<[String]> {
        self.awaited.get(key).map(|awaited| awaited.versions.clone()).unwrap_or_default()
    }

    pub fn bequeath(&mut self) -> Inheritance {
        Inheritance { replay: std::mem::take(&mut self.replay), again: self.held.drain(..).collect() }
    }

    fn ask(&mut self, message: Outgoing) {
        self.replay.passed(&message);
        let answer = self.around.local.answer(&self.around.service.name, message.bytes);
        let (give_up, registration) = AbortHandle::new_pair();
        let key = message.key;
        if let Some(key) = &key {
            self.awaited.insert(key.clone(), Awaited { give_up, versions: Arc::default() });
        }
        let work = Abortable::new(async move { (key, answer.await) }, registration);
        self.running.push(Box::pin(async move { work.await.ok() }));
    }

    fn take(&mut self, key: Option<IdKey>, answer: LocalAnswer) {
        match answer {
            LocalAnswer::Nothing => {}
            LocalAnswer::Line { line, versions } => {
                if let Some(awaited) = key.and_then(|key| self.awaited.get_mut(&key)) {
                    awaited.versions = versions;
                }
                self.inbox.push_back(line);
            }
            LocalAnswer::Failed { kind, reason, versions } => {
                let failure = Failure::new(&self.around.service.name, kind, reason);
                self.around.service.failed(&failure);
                let keys: Vec<IdKey> = key.into_iter().collect();
                keys.iter().for_each(|key| drop(self.awaited.remove(key)));
                self.lost.push_back(Event::Lost { keys, failure, versions, gone: Gone::No });
            }
        }
    }
}
