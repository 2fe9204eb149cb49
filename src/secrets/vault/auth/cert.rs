//! TLS certificate: the one that the connection shows (`tls.cert_file`) is the login (developer.hashicorp.com/vault/docs/auth/cert).

use vaultrs::auth::cert;

use super::super::super::source::{BoxFuture, FetchError};
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Grant};

pub(super) struct Cert {
    pub mount: String,
    pub role: Option<String>,
}

impl Cert {
    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        // An empty name has the server try them all.
        let role = self.role.as_deref().unwrap_or_default();
        let login = async |client: &_| cert::login(client, &self.mount, role).await;
        transport.call(Request::Login("the login by TLS certificate"), None, login).await.map(Grant::from)
    }
}

impl AuthMethod for Cert {
    fn name(&self) -> &'static str {
        "cert"
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.exchange(transport))
    }
}
