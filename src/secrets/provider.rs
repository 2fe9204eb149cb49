//! `Provider`: one configured source of secrets, and whether it answers.
//!
//! It is made when a configuration is staged, which reads what has to be read (roots, for example) and asks nothing of the network.
//! While the provider is out, one task probes it for all its items.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::SecretsError;
use super::aws::AwsSource;
use super::context::Context;
use super::directory::DirectorySource;
use super::environment::EnvironmentSource;
use super::file::FileSource;
use super::oauth::{self, OAuthSource};
use super::schedule;
use super::settings::ProviderSettings;
use super::source::{FetchError, SecretSource};
use super::vault::{self, VaultSource};

pub(super) struct Provider {
    pub name: String,
    pub settings: ProviderSettings,
    pub source: Box<dyn SecretSource>,
    health: watch::Sender<Health>,
    /// Counts how often the source said that its items are worth fetching now.
    stirred: watch::Sender<u64>,
    /// Counts how often an item at which the provider had failed was served again.
    mended: watch::Sender<u64>,
    /// Something that was asked since the last probe was answered.
    served: AtomicBool,
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
            ProviderSettings::AwsSecretsManager(aws) => Box::new(
                AwsSource::build(aws).map_err(|reason| SecretsError::Provider { provider: name.to_owned(), reason })?,
            ),
            ProviderSettings::OAuth(oauth) => Box::new(
                OAuthSource::build(name, oauth, context.clone())
                    .map_err(|reason| SecretsError::Provider { provider: name.to_owned(), reason })?,
            ),
            ProviderSettings::Directory { path } => Box::new(DirectorySource::new(path.clone())),
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
            mended: watch::Sender::new(0),
            served: AtomicBool::new(false),
        }
    }

    pub fn kind(&self) -> &'static str {
        match self.settings {
            ProviderSettings::Vault(_) => "vault",
            ProviderSettings::AwsSecretsManager(_) => "aws-secrets-manager",
            ProviderSettings::OAuth(_) => "oauth",
            ProviderSettings::Directory { .. } => "directory",
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

    /// Draws the conclusion from what one fetch or look met.
    pub fn note(&self, outcome: Result<(), &FetchError>) {
        if outcome.is_ok() {
            self.served.store(true, Ordering::Relaxed);
        }
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

    /// Tells the items at which the provider failed that it has served another of them.
    pub fn mend(&self) {
        self.mended.send_modify(|count| *count += 1);
    }

    pub fn subscribe_mended(&self) -> watch::Receiver<u64> {
        self.mended.subscribe()
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

    /// Probes start at intervals of their own, however long one takes to fail. A provider that is found well and fails before it
    /// has answered anything is found well later and later: its own word is not worth much.
    async fn probe_while_out(&self) {
        let mut health = self.health.subscribe();
        let (mut relapses, mut found_well) = (0_u32, None::<Instant>);
        loop {
            // As in `back`.
            let _ = health.wait_for(|health| matches!(health, Health::Out(_))).await;
            let relapsed =
                found_well.take().is_some_and(|at| at.elapsed() < RELAPSE) && !self.served.load(Ordering::Relaxed);
            relapses = if relapsed { relapses.saturating_add(1) } else { 0 };
            let mut due = Instant::now() + schedule::probe_after_relapses(relapses, schedule::chance());
            while matches!(&*health.borrow_and_update(), Health::Out(_)) {
                sleep_until(due).await;
                due = Instant::now() + schedule::probe_in(schedule::chance());
                self.served.store(false, Ordering::Relaxed);
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
            found_well = Some(Instant::now());
        }
    }
}

/// A provider that fails so soon after it was found well has not healed.
const RELAPSE: Duration = Duration::from_secs(10);

/// What tokens and leases of a provider are kept under.
pub(super) fn binding(settings: &ProviderSettings) -> String {
    match settings {
        ProviderSettings::Vault(settings) => vault::binding(settings),
        ProviderSettings::OAuth(settings) => oauth::binding(settings),
        // They lease nothing.
        _ => String::new(),
    }
}
