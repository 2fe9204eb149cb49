//! Userpass: a name and a password (developer.hashicorp.com/vault/docs/auth/userpass).

use vaultrs::auth::userpass;

use super::super::super::source::{BoxFuture, FetchError};
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Credential, Grant};

pub(super) struct Userpass {
    pub mount: String,
    pub username: String,
    pub password: Credential,
}

impl Userpass {
    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let password = self.password.read().await?;
        let password = super::text_of(&password, "the password")?;
        let login = async |client: &_| userpass::login(client, &self.mount, &self.username, password).await;
        transport.call(Request::Login("the login by user name"), None, login).await.map(Grant::from)
    }
}

impl AuthMethod for Userpass {
    fn name(&self) -> &'static str {
        "userpass"
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.exchange(transport))
    }
}
