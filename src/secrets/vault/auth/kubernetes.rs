//! Kubernetes: the pod's service account token, which the server has the cluster review
//! (developer.hashicorp.com/vault/docs/auth/kubernetes). The kubelet replaces the token in its file long before it ends.

use std::path::PathBuf;

use vaultrs::auth::kubernetes;

use super::super::super::source::{BoxFuture, FetchError};
use super::super::transport::{Request, Transport};
use super::{AuthMethod, Grant};

pub(super) struct Kubernetes {
    pub mount: String,
    pub role: String,
    pub token_file: PathBuf,
}

impl Kubernetes {
    async fn exchange(&self, transport: &Transport) -> Result<Grant, FetchError> {
        let token = super::credential::in_file(&self.token_file).await?;
        let token = super::text_of(&token, "the service account token")?;
        let login = async |client: &_| kubernetes::login(client, &self.mount, &self.role, token).await;
        transport.call(Request::Login("the Kubernetes login"), None, login).await.map(Grant::from)
    }
}

impl AuthMethod for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn login<'a>(&'a self, transport: &'a Transport) -> BoxFuture<'a, Result<Grant, FetchError>> {
        Box::pin(self.exchange(transport))
    }
}
