//! The connections of one socket: bounded, and a new one always gets in.
//!
//! When the bound is reached, the connection that has been idle longest is cut: one that sends nothing, or does not take its answer.
//! A connection whose request is being worked on is never cut. Invariant: at most `bound` connections are in the list.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub struct Connections {
    bound: usize,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// Counts what happens, so that the smallest number is the longest ago.
    clock: u64,
    /// By when each became idle, or began to work.
    entries: BTreeMap<u64, Entry>,
}

struct Entry {
    working: bool,
    cut: watch::Sender<bool>,
}

/// The place of one connection; given back when it is dropped.
pub struct Place {
    connections: Arc<Connections>,
    at: Mutex<u64>,
    cut: watch::Receiver<bool>,
}

/// A request is being worked on as long as this lives.
pub struct Working<'a>(&'a Place);

impl Connections {
    pub fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { bound, list: Mutex::default() })
    }

    /// A place for a new connection, another's if need be. `None`: every connection is being worked for.
    pub fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut list = self.lock();
        if list.entries.len() >= self.bound {
            let oldest = list.entries.iter().find(|(_, entry)| !entry.working).map(|(at, _)| *at)?;
            if let Some(entry) = list.entries.remove(&oldest) {
                entry.cut.send_replace(true);
            }
        }
        let (sender, cut) = watch::channel(false);
        let at = list.put(Entry { working: false, cut: sender });
        Some(Place { connections: self.clone(), at: Mutex::new(at), cut })
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn put(&mut self, entry: Entry) -> u64 {
        self.clock += 1;
        self.entries.insert(self.clock, entry);
        self.clock
    }
}

impl Place {
    /// Completes when the place was given to another. Cancel-safe.
    pub async fn cut(&self) {
        let mut cut = self.cut.clone();
        // The sender goes with the entry, which is taken out only to cut it or by the drop of this place.
        let _ = cut.wait_for(|cut| *cut).await;
    }

    pub fn work(&self) -> Working<'_> {
        self.turn(true);
        Working(self)
    }

    fn turn(&self, working: bool) {
        let mut list = self.connections.lock();
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was cut has no entry any more.
        if let Some(mut entry) = list.entries.remove(&at) {
            entry.working = working;
            *at = list.put(entry);
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.turn(false);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let at = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        self.connections.lock().entries.remove(&at);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_longest_idle_makes_room_and_one_at_work_does_not() {
        let connections = Connections::new(2);
        let (first, second) = (connections.admit().unwrap(), connections.admit().unwrap());
        let working = first.work();
        let third = connections.admit().unwrap();
        assert!(second.cut().now_or_never().is_some() && first.cut().now_or_never().is_none());
        drop(second);
        let also = third.work();
        assert!(connections.admit().is_none(), "both are at work");
        drop(working);
        drop(also);
        let fourth = connections.admit().unwrap();
        assert!(first.cut().now_or_never().is_some(), "idle for longer than the third");
        drop((first, third, fourth));
        assert!(connections.lock().entries.is_empty());
    }
}
