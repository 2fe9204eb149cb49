//! Ways to log in to Vault: one file each, behind `AuthMethod`.

mod approle;
mod token;

use std::path::Path;
use std::time::Duration;

use vaultrs::api::AuthInfo;
use zeroize::Zeroizing;

use crate::secret::{Secret, SecretText};

use super::super::settings::{SecretIdSource, VaultAuth};
use super::super::source::{BoxFuture, FailureKind, FetchError};
use super::transport::Transport;

pub(super) trait AuthMethod: Send + Sync {
    /// As the configuration calls it.
    fn name(&self) -> &'static str;

    /// Obtains a token. What it needs from a file is read anew each time.
    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>>;
}

/// A token and how long it lives.
pub(super) struct Grant {
    pub token: Secret,
    /// `None`: it does not end.
    pub ttl: Option<Duration>,
    pub renewable: bool,
}

impl From<AuthInfo> for Grant {
    fn from(info: AuthInfo) -> Self {
        let ttl = (info.lease_duration > 0).then(|| Duration::from_secs(info.lease_duration));
        Self { token: Secret::from(info.client_token), ttl, renewable: info.renewable }
    }
}

pub(super) fn build(settings: &VaultAuth) -> Result<Box<dyn AuthMethod>, String> {
    Ok(match settings {
        VaultAuth::Token(text) => Box::new(token::Token::fixed(literal(text)?)),
        VaultAuth::TokenFile(path) => Box::new(token::Token::in_file(path.clone())),
        VaultAuth::AppRole { mount, role_id, secret_id } => {
            let secret_id = match secret_id {
                SecretIdSource::Inline(text) => approle::SecretId::Inline(literal(text)?),
                SecretIdSource::File(path) => approle::SecretId::File(path.clone()),
            };
            Box::new(approle::AppRole { mount: mount.clone(), role_id: role_id.clone(), secret_id })
        }
    })
}

/// A provider logs in before there are secrets, so a text that refers to one cannot be had.
fn literal(text: &SecretText) -> Result<Secret, String> {
    text.resolve(|reference| Err(format!("${{{reference}}} cannot be used to log in to a provider of secrets")))
        .map_err(|error: crate::secret::ResolveError<String>| error.to_string())
}

/// Reads a credential of one line from a file of at most 64 KiB.
async fn credential_in(path: &Path) -> Result<Secret, FetchError> {
    let failed =
        |reason: String| FetchError::new(FailureKind::Login, format!("cannot read {}: {reason}", path.display()));
    let facts = tokio::fs::metadata(path).await.map_err(|error| failed(error.to_string()))?;
    if !facts.is_file() || facts.len() > LARGEST_CREDENTIAL {
        return Err(failed(format!("it is not a regular file of at most {LARGEST_CREDENTIAL} bytes")));
    }
    let text = Zeroizing::new(tokio::fs::read(path).await.map_err(|error| failed(error.to_string()))?);
    let credential = text.trim_ascii();
    if credential.is_empty() {
        return Err(failed("it is empty".to_owned()));
    }
    Ok(Secret::copy_from(credential))
}

const LARGEST_CREDENTIAL: u64 = 64 * 1024;
