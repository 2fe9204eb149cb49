//! The `vault` kind: HashiCorp Vault and OpenBao, over their HTTP API (developer.hashicorp.com/vault/api-docs, openbao.org/api-docs).
//!
//! `transport` makes requests and puts failures into words, `auth` holds one file for each way to log in, `session` keeps the token
//! alive, `answer` turns a body into fields. An item's path is an API path without `/v1/`: `secret/data/weather` for a KV v2 engine,
//! `kv/weather` for KV v1; an engine that gives leased credentials is read again before the lease ends.
//! Invariants: a value or token is kept only in locked memory; a connection is closed within a second of its opening, whatever
//! goes on over it, so that no buffer keeps an answer.

mod answer;
mod auth;
mod session;
#[cfg(test)]
mod tests;
mod transport;

use std::sync::Arc;

use crate::memory::with_wiped_stack;

use super::context::Context;
use super::settings::VaultSettings;
use super::source::{BoxFuture, FailureKind, FetchError, Fetched, SecretSource};

use session::Session;
use transport::Transport;

pub(super) struct VaultSource {
    transport: Arc<Transport>,
    session: Session,
}

impl VaultSource {
    /// Reads roots and checks what can be checked without the server.
    pub fn build(provider: &str, settings: &VaultSettings, context: Arc<Context>) -> Result<Self, String> {
        let transport = Arc::new(Transport::build(settings)?);
        let method = auth::build(&settings.auth)?;
        Ok(Self { session: Session::new(provider, transport.clone(), method, context), transport })
    }

    async fn read(&self, path: &str) -> Result<Fetched, FetchError> {
        let token = self.session.token().await?;
        let body = match self.transport.read(path, &token.secret).await {
            // Either the token is dead, or this path is not for it: only the server knows which.
            Err(error) if error.kind == FailureKind::Denied => {
                let token = self.session.renew_dead(token, error).await?;
                self.transport.read(path, &token.secret).await
            }
            outcome => outcome,
        }?;
        with_wiped_stack(|| answer::parse(&body)).map_err(|problem| {
            FetchError::new(problem.kind(), format!("{} answered for {path} with {problem}", self.transport.address()))
        })
    }
}

impl SecretSource for VaultSource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.read(path))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(self.transport.probe())
    }

    fn tend<'a>(&'a self, _changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(async {
            tokio::join!(self.session.tend(), self.transport.tend());
        })
    }

    fn trouble(&self) -> Option<String> {
        self.transport.trouble()
    }
}
