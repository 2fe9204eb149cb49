//! The part's task: one rotator per item and one keeper per provider, in a `JoinSet`, brought in line with the roster after each commit.
//!
//! Invariants: what is in both the old and the new roster is not disturbed; a task that panicked is started again, after a pause;
//! nothing outlives the part.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::error;

use crate::lifecycle::{ReadySignal, Shutdown};

use super::handle::{Roster, Shared};
use super::rotator::rotate;

pub(super) async fn run(shared: Arc<Shared>, ready: ReadySignal, mut shutdown: Shutdown) {
    let mut roster = shared.subscribe_roster();
    let mut crew = Crew { shared: shared.clone(), tasks: JoinSet::new(), running: HashMap::new() };
    let mut is_ready = false;
    let reaper = shared.context.leases.reap(&shared.context);
    tokio::pin!(reaper);
    loop {
        let current = roster.borrow_and_update().clone();
        crew.align(&current);
        let (providers, items) = (&current.providers, &current.items);
        shared.context.cache.keep_only(|name| providers.contains_key(name), |name| items.contains_key(name));
        if !is_ready && has_what_it_needs(&current) && shared.context.cache.is_settled() {
            is_ready = true;
            ready.ready();
        }
        drop(current);
        tokio::select! {
            () = shutdown.requested() => break,
            // The sender is in `shared`, which is held here.
            _ = roster.changed() => {}
            () = shared.context.progress.notified(), if !is_ready => {}
            () = &mut reaper => {}
            () = shared.context.cache.save(), if !shared.context.cache.is_settled() => {}
            Some(ended) = crew.tasks.join_next() => crew.note_end(ended).await,
        }
    }
    crew.tasks.shutdown().await;
    shared.context.cache.save().await;
    if shared.roster().revoke_on_exit {
        shared.context.leases.revoke_all(&shared.context).await;
    }
}

fn has_what_it_needs(roster: &Roster) -> bool {
    roster.items.values().all(|item| !item.settings.require_at_start || item.slot.has_value())
}

struct Crew {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    /// By the address of the item or provider that the task works for; the task itself keeps that alive.
    running: HashMap<usize, AbortHandle>,
}

impl Crew {
    fn align(&mut self, roster: &Roster) {
        let wanted: Vec<usize> = roster.items.values().map(key).chain(roster.providers.values().map(key)).collect();
        self.running.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for provider in roster.providers.values() {
            if !self.running.contains_key(&key(provider)) {
                let worker = provider.clone();
                let task = self.tasks.spawn(async move { worker.tend().await });
                self.running.insert(key(provider), task);
            }
        }
        for item in roster.items.values() {
            if !self.running.contains_key(&key(item)) {
                let (worker, shared) = (item.clone(), self.shared.clone());
                let task = self.tasks.spawn(async move { rotate(&worker, &shared.context).await });
                self.running.insert(key(item), task);
            }
        }
    }

    /// Tasks never end by themselves: this one was aborted, or it panicked.
    async fn note_end(&mut self, ended: Result<(), JoinError>) {
        let Err(failure) = ended else { return };
        if failure.is_panic() {
            error!("a secrets task panicked and is started again");
            self.forget(failure.id());
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    fn forget(&mut self, id: Id) {
        self.running.retain(|_, task| task.id() != id);
    }
}

fn key<T>(shared: &Arc<T>) -> usize {
    Arc::as_ptr(shared).cast::<()>() as usize
}

const RESTART_PAUSE: Duration = Duration::from_secs(1);
