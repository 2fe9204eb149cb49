//! JWT: a token that another party signed (developer.hashicorp.com/vault/docs/auth/jwt): of a cloud, a CI system, SPIFFE.

use vaultrs::auth::oidc;

use super::super::super::source::{BoxFuture, FetchError};
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Credential, Grant};

pub(super) struct Jwt {
    pub mount: String,
    pub role: Option<String>,
    pub token: Credential,
}

impl Jwt {
    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let token = self.token.read().await?;
        let token = super::text_of(&token, "the JWT")?;
        let login = async |client: &_| oidc::login(client, &self.mount, token, self.role.clone()).await;
        transport.call(Request::Login("the JWT login"), None, login).await.map(Grant::from)
    }
}

impl AuthMethod for Jwt {
    fn name(&self) -> &'static str {
        "jwt"
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.exchange(transport))
    }
}
