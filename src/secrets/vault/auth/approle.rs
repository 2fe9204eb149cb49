//! AppRole: a role and a secret id are exchanged for a token (developer.hashicorp.com/vault/docs/auth/approle).
//!
//! The secret id may come wrapped: what is given is then a token that gives the real one away, once
//! (developer.hashicorp.com/vault/docs/concepts/response-wrapping). It is unwrapped once and kept in locked memory, for a login after the
//! token has died; a new wrapping token in the file takes its place.

use ring::digest::{Digest, SHA256, digest};
use tokio::sync::Mutex;
use vaultrs::auth::approle;

use crate::memory::with_wiped_stack;
use crate::secret::Secret;

use super::super::super::source::{BoxFuture, FailureKind, FetchError};
use super::super::answer;
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Credential, Grant};

pub(super) struct AppRole {
    mount: String,
    role_id: String,
    secret_id: Credential,
    /// `None`: the secret id is not wrapped.
    unwrapped: Option<Mutex<Option<Unwrapped>>>,
}

struct Unwrapped {
    secret_id: Secret,
    /// Of the wrapping token that it came from, which is worth nothing any more.
    digest: Digest,
}

impl AppRole {
    pub fn new(mount: String, role_id: String, secret_id: Credential, wrapped: bool) -> Self {
        Self { mount, role_id, secret_id, unwrapped: wrapped.then(Mutex::default) }
    }

    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let given = self.secret_id.read().await?;
        let Some(unwrapped) = &self.unwrapped else { return self.log_in(&given, transport).await };
        let mut unwrapped = unwrapped.lock().await;
        let digest = digest(&SHA256, given.expose());
        let (secret_id, known) = match unwrapped.take() {
            Some(kept) if kept.digest.as_ref() == digest.as_ref() => (kept.secret_id, true),
            _ => (self.unwrap(&given, transport).await?, false),
        };
        let kept = unwrapped.insert(Unwrapped { secret_id, digest });
        self.log_in(&kept.secret_id, transport).await.map_err(|mut error| {
            if known && error.kind == FailureKind::Login {
                error.message = format!(
                    "{}; the secret id was unwrapped from {} before and is refused now: a new wrapping token is needed",
                    error.message,
                    self.place()
                );
            }
            error
        })
    }

    async fn log_in(&self, secret_id: &Secret, transport: &Transport) -> Result<Grant, FetchError> {
        let secret_id = super::text_of(secret_id, "the secret id of the AppRole")?;
        let login = async |client: &_| approle::login(client, &self.mount, &self.role_id, secret_id).await;
        transport.call(Request::Login("the AppRole login"), None, login).await.map(Grant::from)
    }

    async fn unwrap(&self, token: &Secret, transport: &Transport) -> Result<Secret, FetchError> {
        let body = transport.unwrap("the unwrapping of the secret id", token).await.map_err(|mut error| {
            if error.kind == FailureKind::Login {
                error.message = format!(
                    "the wrapping token in {} was used already or has expired, and it works only once: put a new one \
                     there, and find out who used it if it was not this process ({})",
                    self.place(),
                    error.message
                );
            }
            error
        })?;
        let wrong = |reason: String| FetchError::new(FailureKind::Login, reason);
        let mut inside = with_wiped_stack(|| answer::parse(&body))
            .map_err(|problem| wrong(format!("{} unwrapped to {problem}", self.place())))?;
        inside.fields.remove("secret_id").ok_or_else(|| {
            wrong(format!("what was wrapped in {} is not the answer to a request for a secret id", self.place()))
        })
    }

    /// Where the secret id is given.
    fn place(&self) -> String {
        match &self.secret_id {
            Credential::Inline(_) => "`secret_id`".to_owned(),
            Credential::File(path) => path.display().to_string(),
        }
    }
}

impl AuthMethod for AppRole {
    fn name(&self) -> &'static str {
        "approle"
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.exchange(transport))
    }
}
