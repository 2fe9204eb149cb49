//! What every part of the domain reports to: the audit log, the metrics, and the task that waits for progress.
//!
//! The events of the domain are put together here and nowhere else; they name items, providers and versions, never a value.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::memory::{self, Protection};
use crate::ports::{AuditEvent, AuditLog, AuditRefused, Outcome, SecretObserver};
use crate::secret::Secret;

use super::cache::Cache;
use super::handle::{SecretsHandle, Shared};
use super::leases::{Entry, Leases};
use super::metrics::Metrics;
use super::oauth::chain::Chain;
use super::rotator::Reason;
use super::settings::CacheSettings;
use super::source::{FetchError, Fetched, Lease, LeaseId};
use super::store::Item;

pub(super) struct Context {
    audit: Arc<dyn AuditLog>,
    pub metrics: Metrics,
    pub leases: Leases,
    pub cache: Cache,
    cache_settings: Option<CacheSettings>,
    /// Rung when an item got a value.
    pub progress: Notify,
    /// Sees each value before it can be read.
    pub observer: OnceLock<Arc<dyn SecretObserver>>,
    /// Whether it was said that memory cannot be locked; it is where the process starts so.
    unlocked: Once,
    shared: OnceLock<Weak<Shared>>,
    chains: Mutex<BTreeMap<String, Arc<Chain>>>,
}

impl Context {
    pub fn new(audit: Arc<dyn AuditLog>, metrics: Metrics) -> Self {
        let (leases, cache, progress) = (Leases::default(), Cache::default(), Notify::new());
        let unlocked = Once::new();
        if memory::protection() == Protection::Unlocked {
            unlocked.call_once(|| {});
        }
        let (observer, shared, chains) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        Self { audit, metrics, leases, cache, cache_settings: None, progress, observer, unlocked, shared, chains }
    }

    #[must_use]
    pub fn with_cache(self, cache_settings: Option<CacheSettings>, cache: Cache) -> Self {
        Self { cache, cache_settings, ..self }
    }

    /// What the cache was made of, which a reload does not change.
    pub fn cache_settings(&self) -> Option<&CacheSettings> {
        self.cache_settings.as_ref()
    }

    /// Says where other items are read, for providers whose login is kept in one. Once.
    pub fn attach(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
    }

    /// `None` at the end of the process.
    pub fn reader(&self) -> Option<SecretsHandle> {
        Some(SecretsHandle::new(self.shared.get()?.upgrade()?))
    }

    /// The chain of refresh tokens of one login, which outlives a change of its provider.
    pub fn chain_of(&self, login: &str, first: impl FnOnce() -> Option<Arc<Secret>>) -> Arc<Chain> {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        chains.entry(login.to_owned()).or_insert_with(|| Arc::new(Chain::from(first()))).clone()
    }

    /// Says once that the memory of secrets has grown beyond what may be locked.
    pub fn note_protection(&self) {
        if memory::protection() == Protection::Unlocked {
            self.unlocked.call_once(|| {
                warn!("secrets may be swapped out: their memory has grown beyond RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=)");
            });
        }
    }

    /// Shows values that will be published to whoever watches over them.
    pub fn show(&self, item: &str, fields: &BTreeMap<String, Secret>) {
        if let Some(observer) = self.observer.get() {
            observer.published(item, fields);
        }
    }

    pub fn retired(&self, item: &str) {
        if let Some(observer) = self.observer.get() {
            observer.retired(item);
        }
    }

    /// The event that has to be on record before a new value may be used.
    pub fn new_version(
        &self,
        item: &Item,
        first: bool,
        version: u64,
        fetched: &Fetched,
        reason: Reason,
    ) -> Result<(), AuditRefused> {
        let name = if first { "secret.fetched" } else { "secret.rotated" };
        let lease = match &fetched.lease {
            Some(Lease::Held { id, .. }) => Some(id.hash()),
            _ => None,
        };
        let event = about(item, name, Outcome::Success)
            .with("mcpeg.secret.version", version)
            .with_some("mcpeg.secret.provider_version", fetched.provider_version.as_deref())
            .with_some("mcpeg.secret.lease", lease)
            .with_some("mcpeg.secret.reason", (!first || reason == Reason::Resumed).then(|| reason.as_str()));
        self.audit.record(event)?;
        info!(secret = item.name(), provider = item.provider.name, version, "{name}");
        Ok(())
    }

    pub fn renewed(&self, item: &Item, lease: &LeaseId, left: Duration) {
        self.metrics.lease_done(&item.provider.name, "renew", None);
        debug!(secret = item.name(), provider = item.provider.name, ?left, "secret.renewed");
        let event = about(item, "secret.renewed", Outcome::Success)
            .with("mcpeg.secret.lease", lease.hash())
            .with("mcpeg.secret.ttl", left.as_secs());
        self.note(event);
    }

    /// A lease was given back, or could not be.
    pub fn revoked(&self, entry: &Entry, reason: &'static str, error: Option<&FetchError>) {
        let (secret, provider, lease) = (entry.item.as_str(), entry.provider.name.as_str(), entry.id.hash());
        self.metrics.lease_done(provider, "revoke", error.map(|error| error.kind));
        let outcome = if error.is_some() { Outcome::Failure } else { Outcome::Success };
        let event = AuditEvent::new("secret.revoked", outcome)
            .with("mcpeg.secret.item", secret)
            .with("mcpeg.secret.provider", provider)
            .with("mcpeg.secret.lease", lease)
            .with("mcpeg.secret.reason", reason);
        match error {
            None => {
                info!(secret, provider, reason, "secret.revoked");
                self.note(event);
            }
            Some(error) => {
                warn!(secret, provider, reason, %error, "a lease was not revoked and ends by itself");
                self.note(with_error(event, error));
            }
        }
    }

    pub fn failed(&self, item: &Item, error: &FetchError) {
        warn!(secret = item.name(), provider = item.provider.name, %error, "secret.failed");
        self.note(with_error(about(item, "secret.failed", Outcome::Failure), error));
    }

    pub fn recovered(&self, item: &Item) {
        info!(secret = item.name(), provider = item.provider.name, "secret.recovered");
        self.note(about(item, "secret.recovered", Outcome::Success));
    }

    /// A login that cannot be put on record must not be used.
    pub fn logged_in(&self, provider: &str, method: &'static str) -> Result<(), AuditRefused> {
        self.metrics.logged_in(provider, None);
        info!(provider, method, "provider.login");
        self.audit.record(about_login(provider, method, Outcome::Success))
    }

    /// As `logged_in`, of a token that an earlier process had.
    pub fn resumed_login(&self, provider: &str, method: &'static str) -> Result<(), AuditRefused> {
        info!(provider, method, "the login of before goes on");
        let event = about_login(provider, method, Outcome::Success);
        self.audit.record(event.with("mcpeg.secret.reason", Reason::Resumed.as_str()))
    }

    pub fn login_failed(&self, provider: &str, method: &'static str, error: &FetchError) {
        self.metrics.logged_in(provider, Some(error.kind));
        warn!(provider, method, %error, "provider.login");
        self.note(with_error(about_login(provider, method, Outcome::Failure), error));
    }

    /// For events about something that has already happened, so that there is nothing left to refuse.
    fn note(&self, event: AuditEvent) {
        if let Err(error) = self.audit.record(event) {
            warn!(%error, "audit event lost");
        }
    }
}

fn about(item: &Item, name: &'static str, outcome: Outcome) -> AuditEvent {
    AuditEvent::new(name, outcome)
        .with("mcpeg.secret.item", item.name())
        .with("mcpeg.secret.provider", item.provider.name.as_str())
}

fn about_login(provider: &str, method: &'static str, outcome: Outcome) -> AuditEvent {
    AuditEvent::new("provider.login", outcome)
        .with("mcpeg.secret.provider", provider)
        .with("mcpeg.secret.auth_method", method)
}

fn with_error(event: AuditEvent, error: &FetchError) -> AuditEvent {
    event.with("error.type", error.kind.as_str()).with("error.message", error.message.as_str())
}
