//! AppRole: a role and a secret id are exchanged for a token (developer.hashicorp.com/vault/docs/auth/approle).

use std::path::PathBuf;

use vaultrs::auth::approle;

use crate::secret::Secret;

use super::super::super::source::{BoxFuture, FailureKind, FetchError};
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Grant};

pub(super) struct AppRole {
    pub mount: String,
    pub role_id: String,
    pub secret_id: SecretId,
}

pub(super) enum SecretId {
    Inline(Secret),
    File(PathBuf),
}

impl AppRole {
    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let from_file;
        let secret_id = match &self.secret_id {
            SecretId::Inline(secret_id) => secret_id,
            SecretId::File(path) => {
                from_file = super::credential_in(path).await?;
                &from_file
            }
        };
        let secret_id = secret_id
            .expose_str()
            .ok_or_else(|| FetchError::new(FailureKind::Login, "the secret id of the AppRole is not text"))?;
        let login = async |client: &_| approle::login(client, &self.mount, &self.role_id, secret_id).await;
        let info = transport.call(Request::Login("the AppRole login"), None, login).await?;
        Ok(Grant::from(info))
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
