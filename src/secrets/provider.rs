//! `Provider`: one configured source of secrets, and whether it answers.
//!
//! It is made when a configuration is staged, which reads what has to be read (roots, for example) and asks nothing of the network.
//! While the provider is out, one task probes it for all its items.

use std::sync::Arc;

use tokio::sync::watch;

use super::SecretsError;
use super::context::Context;
use super::environment::EnvironmentSource;
use super::file::FileSource;
use super::schedule;
use super::settings::ProviderSettings;
use super::source::{FailureKind, FetchError, SecretSource};
use super::vault::{self, VaultSource};

pub(super) struct Provider {
    pub name: String,
    pub settings: ProviderSettings,
    pub source: Box<dyn SecretSource>,
    health: watch::Sender<Health>,
    /// Counts how often the source said that its items are worth fetching now.
    stirred: watch::Sender<u64>,
}

/// What the last answer, or the lack of one, says of the provider as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    Untried,
    Up,
    /// It answers, but refuses everything.
    Troubled(FetchError),
    /// It does not answer: probes go on until it does.
    Out(FetchError),
}

impl Provider {
    pub fn build(name: &str, settings: &ProviderSettings, context: &Arc<Context>) -> Result<Self, SecretsError> {
        let source: Box<dyn SecretSource> = match settings {
            ProviderSettings::Vault(vault) => Box::new(
                VaultSource::build(name, vault, context.clone())
                    .map_err(|reason| SecretsError::Provider { provider: name.to_owned(), reason })?,
            ),
            ProviderSettings::File { path, sealed_with } => {
                Box::new(FileSource::new(path.clone(), sealed_with.clone()))
            }
            ProviderSettings::Environment => Box::new(EnvironmentSource),
        };
        Ok(Self::with_source(name, settings.clone(), source))
    }

    pub fn with_source(name: &str, settings: ProviderSettings, source: Box<dyn SecretSource>) -> Self {
        Self {
            name: name.to_owned(),
            settings,
            source,
            health: watch::Sender::new(Health::Untried),
            stirred: watch::Sender::new(0),
        }
    }

    pub fn kind(&self) -> &'static str {
        match self.settings {
            ProviderSettings::Vault(_) => "vault",
            ProviderSettings::File { .. } => "file",
            ProviderSettings::Environment => "environment",
        }
    }

    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    pub fn subscribe_stirred(&self) -> watch::Receiver<u64> {
        self.stirred.subscribe()
    }

    /// Draws the conclusion from what one fetch met.
    pub fn note(&self, outcome: Result<(), &FetchError>) {
        let health = match outcome {
            Err(error) if error.kind.is_outage() => Health::Out(error.clone()),
            Err(error) if error.kind.is_providers() => Health::Troubled(error.clone()),
            _ => Health::Up,
        };
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        });
    }

    /// Completes when the provider is not out.
    pub async fn back(&self) {
        let mut health = self.health.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = health.wait_for(|health| !matches!(health, Health::Out(_))).await;
    }

    /// Never ends: probes while out, and lets the source tend to itself.
    pub async fn tend(&self) {
        let changed = || self.stirred.send_modify(|count| *count += 1);
        tokio::join!(self.probe_while_out(), self.source.tend(&changed));
    }

    async fn probe_while_out(&self) {
        let mut health = self.health.subscribe();
        loop {
            // As in `back`.
            let _ = health.wait_for(|health| matches!(health, Health::Out(_))).await;
            let answers = matches!(&*health.borrow(), Health::Out(error) if answers(error));
            tokio::time::sleep(schedule::probe_in(answers, schedule::chance())).await;
            let found = match self.source.probe().await {
                Ok(()) => Health::Up,
                Err(error) => Health::Out(error),
            };
            self.health.send_if_modified(|current| {
                let changed = matches!(current, Health::Out(_)) && *current != found;
                if changed {
                    *current = found;
                }
                changed
            });
        }
    }
}

/// What tokens and leases of a provider are kept under.
pub(super) fn binding(settings: &ProviderSettings) -> String {
    match settings {
        ProviderSettings::Vault(settings) => vault::binding(settings),
        // They lease nothing.
        _ => String::new(),
    }
}

/// Whether a server that is out takes connections, so that asking it costs it something.
fn answers(error: &FetchError) -> bool {
    error.kind != FailureKind::Unreachable || error.after.is_some()
}
