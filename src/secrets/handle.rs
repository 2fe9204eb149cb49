//! `SecretsHandle`, what the rest of the process holds, and `Staged`, a new configuration beside the running one.
//!
//! Invariants: staging changes nothing; a commit is one swap, after which no reader sees a mixture; an item whose settings and provider
//! are the same keeps its value and its rotator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ports::{Condition, Hold, SecretObserver, SecretReader, SecretUnavailable};
use crate::secret::SecretVersion;

use super::SecretsError;
use super::context::Context;
use super::provider::Provider;
use super::rotator::{first_fetch, note_failure};
use super::settings::SecretsSettings;
use super::store::{Item, Retry, Slot};

#[derive(Clone)]
pub struct SecretsHandle {
    shared: Arc<Shared>,
}

/// What the handle and the part's task have in common.
pub(super) struct Shared {
    pub context: Arc<Context>,
    roster: watch::Sender<Arc<Roster>>,
    owners: AtomicU64,
}

/// All providers and items of one configuration.
#[derive(Default)]
pub(super) struct Roster {
    pub providers: BTreeMap<String, Arc<Provider>>,
    pub items: BTreeMap<String, Arc<Item>>,
    pub revoke_on_exit: bool,
}

impl SecretsHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(super) fn roster(&self) -> Arc<Roster> {
        self.shared.roster()
    }

    pub(super) fn cache_condition(&self) -> Option<Condition> {
        self.shared.context.cache.condition()
    }

    /// Says who sees every value before it can be read. Once, before the part runs.
    pub fn attach_observer(&self, observer: Arc<dyn SecretObserver>) {
        let _ = self.shared.context.observer.set(observer);
    }

    /// Builds the new beside the old; reads files that the settings name, asks nothing of the network.
    pub fn stage(&self, settings: SecretsSettings) -> Result<Staged, SecretsError> {
        if settings.cache.as_ref() != self.shared.context.cache_settings() {
            return Err(SecretsError::NeedsRestart { what: "secrets.cache" });
        }
        let old = self.shared.roster();
        let mut new = Roster { revoke_on_exit: settings.revoke_on_exit, ..Roster::default() };
        for (name, settings) in &settings.providers {
            let provider = match old.providers.get(name) {
                Some(provider) if provider.settings == *settings => provider.clone(),
                _ => Arc::new(Provider::build(name, settings, &self.shared.context)?),
            };
            new.providers.insert(name.clone(), provider);
        }
        for (name, settings) in settings.items {
            let provider = new.providers.get(&settings.provider).cloned();
            let Some(provider) = provider else {
                return Err(SecretsError::NoSuchProvider { item: name, provider: settings.provider });
            };
            let item = match old.items.get(&name) {
                Some(item) if item.settings == settings && Arc::ptr_eq(&item.provider, &provider) => item.clone(),
                before => Arc::new(Item {
                    slot: before.map_or_else(|| Slot::new(&name), |item| item.slot.clone()),
                    settings,
                    provider,
                    owner: self.shared.owners.fetch_add(1, Ordering::Relaxed),
                }),
            };
            new.items.insert(name, item);
        }
        Ok(Staged { shared: self.shared.clone(), roster: Arc::new(new) })
    }

    /// Fetches every item once, without the part; all failures are reported together.
    pub async fn fetch_all_once(&self) -> Result<(), SecretsError> {
        let roster = self.shared.roster();
        let context = &self.shared.context;
        let fetches = roster.items.values().map(|item| async move {
            let error = first_fetch(item, context).await.err()?;
            note_failure(item, context, error.clone(), Retry::At(Instant::now()));
            Some(format!("secret {}: {error}", item.name()))
        });
        let failures: Vec<String> = join_all(fetches).await.into_iter().flatten().collect();
        if failures.is_empty() { Ok(()) } else { Err(SecretsError::Fetch(failures)) }
    }
}

impl SecretReader for SecretsHandle {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        match self.shared.roster().items.get(item) {
            Some(item) => item.current(),
            None => Err(SecretUnavailable::Unknown { item: item.to_owned() }),
        }
    }

    fn subscribe(&self, item: &str) -> Option<watch::Receiver<u64>> {
        self.shared.roster().items.get(item).map(|item| item.slot.subscribe())
    }

    fn hold(&self, item: &str, since: u64) -> Hold {
        self.shared.context.leases.hold(item, since)
    }
}

impl Shared {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, roster: watch::Sender::default(), owners: AtomicU64::new(1) }
    }

    pub fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    #[cfg(test)]
    pub fn put_roster(&self, roster: Roster) {
        self.roster.send_replace(Arc::new(roster));
    }

    pub fn subscribe_roster(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.subscribe()
    }
}

/// A checked configuration that is ready to take over. Dropping it changes nothing.
pub struct Staged {
    shared: Arc<Shared>,
    roster: Arc<Roster>,
}

/// A new configuration that has taken over, while items that are not in it are still served to whoever has not moved yet.
#[must_use = "items that are gone keep their values until it is finished"]
pub struct Introduced {
    shared: Arc<Shared>,
    roster: Arc<Roster>,
}

impl Staged {
    /// Swaps in what is new and changed; changed items keep the last good value until they are fetched anew. What is gone stays for now.
    pub fn introduce(self) -> Introduced {
        for item in self.roster.items.values() {
            item.slot.hand_over_to(item.owner);
        }
        let old = self.shared.roster();
        let mut both = Roster {
            providers: old.providers.clone(),
            items: old.items.clone(),
            revoke_on_exit: self.roster.revoke_on_exit,
        };
        both.providers.extend(self.roster.providers.iter().map(|(name, provider)| (name.clone(), provider.clone())));
        both.items.extend(self.roster.items.iter().map(|(name, item)| (name.clone(), item.clone())));
        self.shared.roster.send_replace(Arc::new(both));
        Introduced { shared: self.shared, roster: self.roster }
    }

    /// Swaps in one step: items that are gone lose their values at once.
    pub fn commit(self) {
        self.introduce().finish();
    }
}

impl Introduced {
    /// Lets go of what is gone.
    pub fn finish(self) {
        let both = self.shared.roster.send_replace(self.roster.clone());
        for (name, item) in &both.items {
            if !self.roster.items.contains_key(name) {
                item.slot.retire();
                self.shared.context.retired(name);
            }
        }
        self.shared.context.leases.keep_only(|item| self.roster.items.contains_key(item));
    }
}
