//! What is known of services beyond this process: their breakers and whether they work, kept in the store of state.
//!
//! At the start what an earlier process knew is taken over, before the process is ready. A change is written at once. Where other processes
//! share the store, it is looked at every second, and whatever changed last holds for all. Keys: `breaker/SERVICE`, `health/SERVICE`; values
//! are JSON, times milliseconds since the epoch. Nothing of a request or an answer is in them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::breaker::Breaker;
use super::registry::Shared;
use super::service::Service;
use crate::lifecycle::{PartError, ReadySignal, Shutdown};
use crate::ports::StateStore;

/// A breaker as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub open: bool,
    /// In a row.
    pub failures: u32,
    /// Nothing is tried before.
    pub until: u64,
    /// When it came to be so.
    pub changed: u64,
}

pub async fn run(
    shared: Arc<Shared>,
    state: Arc<dyn StateStore>,
    ready: ReadySignal,
    mut shutdown: Shutdown,
) -> Result<(), PartError> {
    let mut written = Written::default();
    written.exchange(&shared, &*state, true).await;
    ready.ready();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut registry = shared.registry.subscribe();
    loop {
        tokio::select! {
            () = shutdown.requested() => break,
            // Nothing is looked at while there is no service.
            _ = async {
                let _ = registry.wait_for(|registry| !registry.services.is_empty()).await;
                tick.tick().await
            } => {}
        }
        written.exchange(&shared, &*state, false).await;
    }
    written.exchange(&shared, &*state, false).await;
    Ok(())
}

/// What was written or read last.
#[derive(Default)]
struct Written {
    breakers: BTreeMap<String, Kept>,
    health: BTreeMap<String, bool>,
    /// Counts the looks: others are asked at every fourth.
    looks: u64,
    failed: bool,
}

impl Written {
    async fn exchange(&mut self, shared: &Shared, state: &dyn StateStore, first: bool) {
        let registry = shared.registry.borrow().clone();
        let ask = first || (state.is_shared() && self.looks.is_multiple_of(LOOKS_A_QUESTION));
        self.looks += 1;
        for (name, service) in &registry.services {
            let done = async {
                // One that is new since a reload is asked for, too.
                let ask = ask || !self.health.contains_key(name);
                if let Some(breaker) = &service.policy().breaker {
                    self.breaker(name, breaker, state, ask).await?;
                }
                self.health(name, service, state).await
            };
            if let Err(error) = done.await {
                if !std::mem::replace(&mut self.failed, true) {
                    warn!(%error, "what is known of services is not kept");
                }
                return;
            }
        }
        self.failed = false;
        self.breakers.retain(|name, _| registry.services.contains_key(name));
        self.health.retain(|name, _| registry.services.contains_key(name));
    }

    async fn breaker(
        &mut self,
        name: &str,
        breaker: &Arc<Breaker>,
        state: &dyn StateStore,
        ask: bool,
    ) -> Result<(), crate::ports::StoreError> {
        let key = format!("breaker/{name}");
        let own = breaker.kept();
        if ask && let Some(bytes) = state.get(&key).await? {
            match serde_json::from_slice::<Kept>(&bytes) {
                Ok(theirs) if theirs.changed > own.changed => {
                    if breaker.take_over(&theirs) {
                        info!(
                            service = name,
                            open = theirs.open,
                            failures = theirs.failures,
                            "the breaker was taken over"
                        );
                    }
                    self.breakers.insert(name.to_owned(), theirs);
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => debug!(service = name, %error, "a kept breaker cannot be read"),
            }
        }
        if own.changed != 0 && self.breakers.get(name) != Some(&own) {
            state.set(&key, Bytes::from(json!(own).to_string())).await?;
            self.breakers.insert(name.to_owned(), own);
        }
        Ok(())
    }

    async fn health(
        &mut self,
        name: &str,
        service: &Service,
        state: &dyn StateStore,
    ) -> Result<(), crate::ports::StoreError> {
        let works = service.failure().is_none();
        let key = format!("health/{name}");
        if !self.health.contains_key(name)
            && let Some(bytes) = state.get(&key).await?
        {
            service.was(serde_json::from_slice(&bytes).unwrap_or_default());
        }
        if self.health.get(name) == Some(&works) {
            return Ok(());
        }
        let word = if works { "ok" } else { "failed" };
        let health = json!({ "state": word, "since": millis(), "restarts": service.restarts() });
        state.set(&key, Bytes::from(health.to_string())).await?;
        self.health.insert(name.to_owned(), works);
        Ok(())
    }
}

/// Since the epoch.
pub fn millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

const LOOK: Duration = Duration::from_millis(250);
const LOOKS_A_QUESTION: u64 = 4;
