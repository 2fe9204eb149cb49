//! What is known of secrets beyond their values, kept as state under `secret/ITEM`: versions, where they come from, when each is asked for again. A look
//! at another process's leases, or at those before a restart; never a value.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::records::{Record, Records, Space, StoreFailure, now};
use crate::ports::{SecretControl, SecretSummary};

/// What was written last: the number of the version, and the provider's name for it, by item.
#[derive(Default)]
pub struct Leases(BTreeMap<String, (Option<u64>, Option<String>)>);

impl Leases {
    /// Writes those that have another version than at the last look.
    pub async fn keep(&mut self, control: &dyn SecretControl, records: &dyn Records) -> Result<(), StoreFailure> {
        for secret in control.list() {
            let seen = (secret.version, secret.provider_version.clone());
            if self.0.get(&secret.item) == Some(&seen) {
                continue;
            }
            let record = Record::new(format!("secret/{}", secret.item), Bytes::from(described(&secret)));
            records.set(Space::State, vec![record]).await?;
            self.0.insert(secret.item, seen);
        }
        Ok(())
    }
}

fn described(secret: &SecretSummary) -> String {
    let millis =
        |seconds: f64| u64::try_from(Duration::from_secs_f64(seconds.max(0.0)).as_millis()).unwrap_or(u64::MAX);
    json!({
        "provider": secret.provider,
        "version": secret.version,
        "provider_version": secret.provider_version,
        "state": secret.state,
        "fetched": secret.age_seconds.map(|age| now().saturating_sub(millis(age))),
        "next": secret.next_seconds.map(|next| now().saturating_add(millis(next))),
    })
    .to_string()
}
