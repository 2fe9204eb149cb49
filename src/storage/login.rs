//! The password of a server, read from the current secret whenever a connection is made.
//!
//! A connection was made with certain versions of secrets; when there are newer ones it is to be made again, so that no buffer of it outlives
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::records::StoreFailure;
use crate::ports::SecretReader;
use crate::secret::{Secret, SecretText};

#[derive(Clone)]
pub struct Login {
    text: Option<SecretText>,
    secrets: Arc<dyn SecretReader>,
    waited: Arc<AtomicBool>,
}

/// The versions by item that were used.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Used(BTreeMap<String, u64>);

impl Login {
    pub fn new(text: Option<SecretText>, secrets: Arc<dyn SecretReader>) -> Self {
        Self { text, secrets, waited: Arc::default() }
    }

    /// Waits for the secrets that the password is made of, once and not for long: when the process starts they are being fetched.
    pub async fn fetched(&self) {
        if self.waited.load(Ordering::Relaxed) {
            return;
        }
        let all = async {
            for reference in self.text.iter().flat_map(SecretText::references) {
                if let Some(mut version) = self.secrets.subscribe(&reference.item) {
                    // An error means that the item is gone, which the use says.
                    let _ = version.wait_for(|version| *version > 0).await;
                }
            }
        };
        // Late: the use says what is missing.
        let _ = timeout(FETCHED_WITHIN, all).await;
        self.waited.store(true, Ordering::Relaxed);
    }

    pub fn password(&self) -> Result<(Option<Secret>, Used), StoreFailure> {
        let Some(text) = &self.text else { return Ok((None, Used::default())) };
        let mut used = Used::default();
        let secret = text.resolve(|reference| {
            let version = self.secrets.current(&reference.item)?;
            used.0.insert(reference.item.clone(), version.version);
            Ok::<_, crate::ports::SecretUnavailable>(version)
        });
        let secret = secret.map_err(|error| StoreFailure::of("the password", &error))?;
        Ok((Some(secret), used))
    }

    /// Whether these are still the newest versions, as far as is known.
    pub fn is_current(&self, used: &Used) -> bool {
        used.0.iter().all(|(item, used)| self.secrets.current(item).is_ok_and(|now| now.version == *used))
    }
}

const FETCHED_WITHIN: Duration = Duration::from_secs(5);
