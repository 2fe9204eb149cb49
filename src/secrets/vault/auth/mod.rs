//! Ways to log in to Vault: one file each, behind `AuthMethod`.

mod approle;
mod aws;
mod cert;
mod jwt;
mod kubernetes;
mod sigv4;
mod token;
mod userpass;

use std::path::PathBuf;
use std::time::Duration;

use vaultrs::api::AuthInfo;

use crate::secret::{Secret, SecretText};

use super::super::credential;
use super::super::settings::{self, VaultAuth};
use super::super::source::{BoxFuture, FailureKind, FetchError};
use super::transport::Transport;

pub(super) trait AuthMethod: Send + Sync {
    /// As the configuration calls it.
    fn name(&self) -> &'static str;

    /// Whether each login makes a token, and does not only read one.
    fn makes_tokens(&self) -> bool {
        true
    }

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
    Ok(match settings.clone() {
        VaultAuth::Token(text) => Box::new(token::Token::fixed(literal(&text)?)),
        VaultAuth::TokenFile(path) => Box::new(token::Token::in_file(path)),
        VaultAuth::AppRole { mount, role_id, secret_id, wrapped } => {
            Box::new(approle::AppRole::new(mount, role_id, Credential::build(&secret_id)?, wrapped))
        }
        VaultAuth::Kubernetes { mount, role, token_file } => {
            Box::new(kubernetes::Kubernetes { mount, role, token_file })
        }
        VaultAuth::Jwt { mount, role, token } => Box::new(jwt::Jwt { mount, role, token: Credential::build(&token)? }),
        VaultAuth::Cert { mount, role } => Box::new(cert::Cert { mount, role }),
        VaultAuth::Userpass { mount, username, password } => {
            Box::new(userpass::Userpass { mount, username, password: Credential::build(&password)? })
        }
        VaultAuth::Aws(aws) => Box::new(aws::Aws::build(*aws)?),
    })
}

/// What a login shows: kept in locked memory, or in a file.
enum Credential {
    Inline(Secret),
    File(PathBuf),
}

impl Credential {
    fn build(settings: &settings::Credential) -> Result<Self, String> {
        Ok(match settings {
            settings::Credential::Inline(text) => Self::Inline(literal(text)?),
            settings::Credential::File(path) => Self::File(path.clone()),
        })
    }

    /// As it is now.
    async fn read(&self) -> Result<Secret, FetchError> {
        match self {
            Self::Inline(secret) => Ok(Secret::copy_from(secret.expose())),
            Self::File(path) => credential::in_file(path).await,
        }
    }
}

/// A provider logs in before there are secrets, so a text that refers to one cannot be had.
pub(super) fn literal(text: &SecretText) -> Result<Secret, String> {
    text.resolve(|reference| Err(format!("${{{reference}}} cannot be used to log in to a provider of secrets")))
        .map_err(|error: crate::secret::ResolveError<String>| error.to_string())
}

/// The text of a credential; `what` names it where it is none.
fn text_of<'a>(credential: &'a Secret, what: &str) -> Result<&'a str, FetchError> {
    credential.expose_str().ok_or_else(|| FetchError::new(FailureKind::Login, format!("{what} is not text")))
}
