//! The domain in words: conditions for `/readyz` and people, details for programs. Names, versions and ages, never a value.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::ports::{Condition, ConditionState, StatusReport};

use super::handle::SecretsHandle;
use super::provider::{Health, Provider};
use super::settings::ProviderSettings;
use super::store::{Item, Retry, Snapshot};

impl StatusReport for SecretsHandle {
    fn section(&self) -> &'static str {
        "secrets"
    }

    fn conditions(&self) -> Vec<Condition> {
        let roster = self.roster();
        let providers = roster.providers.values().map(|provider| provider_condition(provider));
        let items = roster.items.values().map(|item| item_condition(item));
        providers.chain(items).chain(self.cache_condition()).collect()
    }

    fn detail(&self) -> Value {
        let roster = self.roster();
        let providers: Map<String, Value> =
            roster.providers.iter().map(|(name, provider)| (name.clone(), provider_detail(provider))).collect();
        let items: Map<String, Value> =
            roster.items.iter().map(|(name, item)| (name.clone(), item_detail(item))).collect();
        json!({ "providers": providers, "items": items, "memory": crate::memory::protection().as_str() })
    }
}

fn provider_condition(provider: &Provider) -> Condition {
    let (mut state, mut message) = match provider.health() {
        Health::Untried => (ConditionState::Ok, "not asked yet".to_owned()),
        Health::Up => (ConditionState::Ok, String::new()),
        Health::Troubled(error) => (ConditionState::Degraded, error.message),
        Health::Out(error) => (ConditionState::Degraded, format!("{error}; asking every second whether it is back")),
    };
    if let Some(trouble) = provider.source.trouble() {
        state = ConditionState::Degraded;
        let still = format!("{trouble}; what was read before stays in use");
        message = if message.is_empty() { still } else { format!("{message}; {still}") };
    }
    Condition { component: format!("provider/{}", provider.name), state, message }
}

pub(super) fn item_condition(item: &Item) -> Condition {
    let snapshot = item.snapshot();
    let required = item.settings.require_at_start;
    let unusable = if required { ConditionState::Failed } else { ConditionState::Degraded };
    let state = match (&snapshot.version, &snapshot.failure) {
        (None, _) => unusable,
        (Some(_), _) if snapshot.stale => unusable,
        (Some(_), Some(_)) => ConditionState::Degraded,
        (Some(_), None) => ConditionState::Ok,
    };
    Condition { component: format!("secret/{}", item.name()), state, message: item_message(&snapshot) }
}

fn item_message(snapshot: &Snapshot) -> String {
    let age = snapshot.age.map(in_words).unwrap_or_default();
    let serving = match snapshot.version {
        None => "no version yet".to_owned(),
        Some(version) if snapshot.stale => {
            format!("version {version}, fetched {age} ago, is older than max_stale and not served")
        }
        Some(version) => format!("serving version {version}, fetched {age} ago"),
    };
    match &snapshot.failure {
        None if snapshot.version.is_none() => "not fetched yet".to_owned(),
        None => serving,
        Some(failure) => {
            let retry = match failure.retry {
                Retry::WhenBack => "trying again when the provider is back".to_owned(),
                Retry::At(time) => match time.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => "trying again now".to_owned(),
                    wait => format!("trying again in {}", in_words(wait)),
                },
            };
            format!("{}; {serving}; {retry}", failure.error)
        }
    }
}

fn provider_detail(provider: &Provider) -> Value {
    let state = match provider.health() {
        Health::Untried => "untried",
        Health::Up => "up",
        Health::Troubled(_) => "refusing",
        Health::Out(_) => "out",
    };
    let place = match &provider.settings {
        ProviderSettings::Vault(vault) => Some(vault.address.origin().ascii_serialization()),
        ProviderSettings::AwsSecretsManager(aws) => {
            aws.endpoint.as_ref().map(|endpoint| endpoint.origin().ascii_serialization()).or_else(|| aws.region.clone())
        }
        ProviderSettings::OAuth(oauth) => Some(oauth.server.address().origin().ascii_serialization()),
        ProviderSettings::Directory { path } | ProviderSettings::File { path, .. } => Some(path.display().to_string()),
        ProviderSettings::Environment => None,
    };
    json!({ "kind": provider.kind(), "place": place, "state": state })
}

fn item_detail(item: &Item) -> Value {
    let snapshot = item.snapshot();
    json!({
        "provider": item.provider.name,
        "path": item.settings.path,
        "fields": snapshot.fields,
        "version": snapshot.version,
        "provider_version": snapshot.provider_version,
        "age_seconds": snapshot.age.map(|age| age.as_secs()),
        "refresh_seconds": item.settings.refresh.as_secs(),
        "expires_in_seconds": item.slot.seconds_left().map(f64::round),
        "stale": snapshot.stale,
        "error": snapshot.failure.map(|failure| failure.error.message),
    })
}

/// One number and its unit: `40 s`, `3 min`, `2 h`, `5 d`.
fn in_words(duration: Duration) -> String {
    match duration.as_secs_f64().round() as u64 {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds / 60),
        seconds if seconds < 172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}
