//! Secrets: fetched from providers, held in locked memory, kept fresh, given to whoever reads them through `ports::SecretReader`.
//!
//! `SecretSource` is the seam, with one file or folder a kind: `vault`, `aws`, `oauth`, `directory`, `file`,
//! `environment`. A `Provider` is a configured source and its
//! health; an `Item` is a path in a provider, its settings, and a `Slot` that holds the current version. One `rotator` per item fetches,
//! `cache` keeps leases over a restart, `crew` runs rotators and providers inside the part's task, `leases` gives back what was replaced, `handle` is what the rest of the
//! process holds, `refresh` asks for a fetch out of turn, `status` puts all of it into words; `serve` hands items to local programs.
//! This domain does not know what a secret is for, and never writes one anywhere.

mod aws;
mod cache;
mod causes;
mod context;
mod credential;
mod crew;
mod directory;
mod environment;
mod file;
mod handle;
mod json;
mod leases;
mod metrics;
mod oauth;
mod provider;
mod refresh;
mod resume;
mod rotator;
mod schedule;
pub mod serve;
pub mod settings;
mod source;
mod status;
mod store;
mod term;
#[cfg(test)]
mod tests;
mod vault;

use std::sync::Arc;

use opentelemetry::metrics::Meter;

use crate::lifecycle::{Part, Readiness, Stage};
use crate::ports::AuditLog;

use cache::Cache;
use context::Context;
use handle::Shared;
use metrics::Metrics;
use settings::SecretsSettings;

pub use handle::{Introduced, SecretsHandle, Staged};

/// Makes the providers and items, and the part that keeps them fresh. Reads files that the settings name; asks nothing of the network.
pub fn build(
    settings: SecretsSettings,
    audit: Arc<dyn AuditLog>,
    meter: Meter,
) -> Result<(SecretsHandle, Part), SecretsError> {
    let cache = match &settings.cache {
        Some(cache) => Cache::open(cache, &settings.providers.values().map(provider::binding).collect()),
        None => Cache::default(),
    };
    let context = Arc::new(Context::new(audit, Metrics::new(&meter)).with_cache(settings.cache.clone(), cache));
    let shared = Arc::new(Shared::new(context));
    shared.context.attach(&shared);
    let handle = SecretsHandle::new(shared.clone());
    handle.stage(settings)?.commit();
    metrics::observe(&meter, &shared);
    metrics::observe_leases(&meter, &shared);
    let (signal, readiness) = Readiness::channel();
    let part = Part::new("secrets", Stage::Workers, readiness, move |shutdown| async move {
        crew::run(shared, signal, shutdown).await;
        Ok(())
    });
    Ok((handle, part))
}

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("secrets.providers.{provider}: {reason}")]
    Provider { provider: String, reason: String },
    #[error("secrets.items.{item}: there is no provider called {provider}")]
    NoSuchProvider { item: String, provider: String },
    #[error("{what}: a change needs a restart")]
    NeedsRestart { what: &'static str },
    /// One line for each item that could not be fetched.
    #[error("{}", .0.join("\n"))]
    Fetch(Vec<String>),
}
