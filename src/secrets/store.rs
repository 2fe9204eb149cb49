//! `Slot`, the place of one item's value, and `Item`, a slot with what fills it.
//!
//! A slot outlives a change of the item's settings, so that the last good value and its subscribers stay. Invariants: at most one
//! version is held here; a new one is published only when its fields differ; the one before is wiped when its last holder lets go.
//! Only the owner that was named last may write, so that a rotator that a reload has replaced cannot publish any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::ports::SecretUnavailable;
use crate::secret::SecretVersion;

use super::cache::binding_of;
use super::provider::{Provider, binding};
use super::refresh::Demand;
use super::settings::{ItemSettings, ProviderSettings};
use super::source::{FetchError, Fetched};

/// One configured item. A change of its settings or of its provider's makes a new one over the same slot.
pub(super) struct Item {
    pub slot: Arc<Slot>,
    pub settings: ItemSettings,
    pub provider: Arc<Provider>,
    /// Who writes to the slot; unique within the process.
    pub owner: u64,
}

impl Item {
    pub fn name(&self) -> &str {
        &self.slot.name
    }

    /// What leased values of this item are kept under: other settings are not served with them.
    pub fn binding(&self) -> String {
        let (provider, settings) = (binding(&self.provider.settings), &self.settings);
        let wish = match &self.provider.settings {
            ProviderSettings::OAuth(oauth) => format!(" {:?} {:?}", oauth.scopes, oauth.resource),
            _ => String::new(),
        };
        binding_of(&format!("{provider:?} {:?} {:?}{wish}", settings.path, settings.parameters))
    }

    /// The version to use now.
    pub fn current(&self) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        let state = self.slot.state();
        let item = self.slot.name.clone();
        let reason = state.failure.as_ref().map(|failure| failure.error.message.clone());
        match &state.value {
            None => Err(SecretUnavailable::NotFetched { item, reason }),
            Some(_) if self.is_stale(&state) => Err(SecretUnavailable::Stale { item, reason }),
            Some(value) => Ok(value.clone()),
        }
    }

    /// The last known value has outlived `max_stale`, and the provider is failing.
    fn is_stale(&self, state: &State) -> bool {
        let Some(max_stale) = self.settings.max_stale else { return false };
        state.failure.is_some() && state.confirmed.is_some_and(|at| at.elapsed() > max_stale)
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = self.slot.state();
        Snapshot {
            version: state.value.as_ref().map(|value| value.version),
            provider_version: state.value.as_ref().and_then(|value| value.provider_version.clone()),
            fields: state.value.iter().flat_map(|value| value.fields.keys().cloned()).collect(),
            age: state.confirmed.map(|at| at.elapsed()),
            stale: state.value.is_some() && self.is_stale(&state),
            failure: state.failure.clone(),
        }
    }
}

/// What is known of an item at one moment, without its value.
pub(super) struct Snapshot {
    pub version: Option<u64>,
    pub provider_version: Option<String>,
    pub fields: Vec<String>,
    /// Since it was last fetched with success.
    pub age: Option<Duration>,
    pub stale: bool,
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub error: FetchError,
    pub retry: Retry,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Retry {
    At(Instant),
    /// As soon as a probe finds the provider back.
    WhenBack,
}

pub(super) struct Slot {
    name: String,
    state: Mutex<State>,
    newest: watch::Sender<u64>,
    pub demand: Demand,
}

#[derive(Default)]
struct State {
    owner: u64,
    value: Option<Arc<SecretVersion>>,
    last_version: u64,
    confirmed: Option<Instant>,
    failure: Option<Failure>,
    /// When the values end, or are replaced by the provider.
    ends: Option<Instant>,
}

/// How a fetched value relates to the one that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    First,
    New,
    Same,
}

impl Slot {
    pub fn new(name: &str) -> Arc<Self> {
        let (newest, _) = watch::channel(0);
        Arc::new(Self { name: name.to_owned(), state: Mutex::default(), newest, demand: Demand::new() })
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Names who may write from now on.
    pub fn hand_over_to(&self, owner: u64) {
        self.state().owner = owner;
    }

    pub fn is_written_by(&self, owner: u64) -> bool {
        self.state().owner == owner
    }

    /// Lets go of the value: the item is gone from the configuration.
    pub fn retire(&self) {
        *self.state() = State::default();
    }

    pub fn has_value(&self) -> bool {
        self.state().value.is_some()
    }

    pub fn value(&self) -> Option<Arc<SecretVersion>> {
        self.state().value.clone()
    }

    pub fn version_and_age(&self) -> Option<(u64, Duration)> {
        let state = self.state();
        Some((state.value.as_ref()?.version, state.confirmed?.elapsed()))
    }

    /// Compares in locked memory, and tells the number that a new version would get.
    pub fn compare(&self, fetched: &Fetched) -> (Change, u64) {
        let state = self.state();
        let change = match &state.value {
            None if state.last_version == 0 => Change::First,
            Some(value) if value.fields == fetched.fields => Change::Same,
            _ => Change::New,
        };
        (change, state.last_version + 1)
    }

    /// Makes `fetched` the current version and tells the subscribers; false when this owner may not any more.
    pub fn publish(&self, owner: u64, fetched: Fetched) -> bool {
        let mut state = self.state();
        if state.owner != owner {
            return false;
        }
        state.last_version += 1;
        let version = state.last_version;
        let replaced = state.value.replace(Arc::new(SecretVersion {
            version,
            provider_version: fetched.provider_version,
            fields: fetched.fields,
            fetched_at: SystemTime::now(),
        }));
        state.confirmed = Some(Instant::now());
        drop(state);
        drop(replaced);
        self.newest.send_replace(version);
        true
    }

    /// Notes when the current values end.
    pub fn ends_at(&self, owner: u64, ends: Option<Instant>) {
        let mut state = self.state();
        if state.owner == owner {
            state.ends = ends;
        }
    }

    /// Until the values end; below zero when they have.
    pub fn seconds_left(&self) -> Option<f64> {
        let (ends, now) = (self.state().ends?, Instant::now());
        let overdue = now.saturating_duration_since(ends).as_secs_f64();
        Some(ends.saturating_duration_since(now).as_secs_f64() - overdue)
    }

    /// Notes that what is held is still what the provider has.
    pub fn confirm(&self, owner: u64) {
        let mut state = self.state();
        if state.owner == owner {
            state.confirmed = Some(Instant::now());
        }
    }

    /// Notes a failure; true when the item was not failing before.
    pub fn fail(&self, owner: u64, failure: Failure) -> bool {
        let mut state = self.state();
        state.owner == owner && state.failure.replace(failure).is_none()
    }

    /// Notes the end of failures; true when there was one.
    pub fn recover(&self, owner: u64) -> bool {
        let mut state = self.state();
        state.owner == owner && state.failure.take().is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
