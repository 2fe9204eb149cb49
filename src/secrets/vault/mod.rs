//! The `vault` kind: HashiCorp Vault and OpenBao, over their HTTP API (developer.hashicorp.com/vault/api-docs, openbao.org/api-docs).
//!
//! `transport` makes requests and puts failures into words, `auth` holds one file for each way to log in, `session` keeps the token
//! alive, `answer` turns a body into fields, `freshness` sees that a KV version has moved without reading it, and
//! `events` is told so where the server has events. An item's path is an API path without `/v1/`: `secret/data/weather` for a KV v2 engine,
//! `kv/weather` for KV v1; `database/creds/app` and any other path that answers with a lease, which is renewed, replaced and revoked by its id.
//! Invariants: a value or token is kept only in locked memory; a connection is closed within a second of its opening, whatever
//! goes on over it, so that no buffer keeps an answer.

mod answer;
mod auth;
mod events;
mod freshness;
mod session;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;

use super::cache::binding_of;
use super::context::Context;
use super::settings::VaultSettings;
use super::source::{BoxFuture, FailureKind, FetchError, Fetched, Known, Lease, LeaseId, SecretSource, Sign};

use events::Events;
use freshness::Freshness;
use session::{Session, Token};
use transport::{Ask, Transport};

/// What tokens and leases of this server are kept under: the settings that tell whose they are. A secret among them prints as what it is not.
pub(super) fn binding(settings: &VaultSettings) -> String {
    binding_of(&format!("vault {} {:?} {:?}", settings.address, settings.namespace, settings.auth))
}

pub(super) struct VaultSource {
    transport: Arc<Transport>,
    session: Session,
    freshness: Freshness,
    events: Events,
    /// Paths at which the server failed though it was well, and when that was asked.
    failing: Mutex<BTreeMap<String, Instant>>,
}

impl VaultSource {
    /// Reads roots and checks what can be checked without the server.
    pub fn build(provider: &str, settings: &VaultSettings, context: Arc<Context>) -> Result<Self, String> {
        let transport = Arc::new(Transport::build(settings)?);
        let method = auth::build(&settings.auth)?;
        let session = Session::new(provider, transport.clone(), method, binding(settings), context);
        Ok(Self {
            session,
            transport,
            freshness: Freshness::default(),
            events: Events::default(),
            failing: Mutex::default(),
        })
    }

    async fn read(&self, ask: Ask<'_>) -> Result<Fetched, FetchError> {
        let path = ask.path();
        let (body, token) = self.exchange(ask).await?;
        let mut fetched = with_wiped_stack(|| answer::parse(&body)).map_err(|problem| {
            FetchError::new(problem.kind(), format!("{} answered for {path} with {problem}", self.transport.address()))
        })?;
        if let Some(Lease::Held { login, .. }) = &mut fetched.lease {
            *login = token.login;
        }
        Ok(fetched)
    }

    /// One request with a token that lives, and that token.
    async fn exchange(&self, ask: Ask<'_>) -> Result<(Zeroizing<Vec<u8>>, Arc<Token>), FetchError> {
        let token = self.session.token().await?;
        match self.transport.ask(ask.again(), &token.secret).await {
            // Either the token is dead, or this path is not for it: only the server knows which.
            Err(error) if error.kind == FailureKind::Denied => {
                let token = self.session.renew_dead(token, ask.path(), error).await?;
                self.transport.ask(ask, &token.secret).await.map(|body| (body, token))
            }
            Err(error) if error.kind == FailureKind::ServerError => Err(self.place(ask.path(), error).await),
            outcome => outcome.map(|body| (body, token)),
        }
    }

    fn address(&self) -> &str {
        self.transport.address()
    }

    /// As `exchange`, for a WebSocket.
    async fn subscribe(&self, path: &str, key: &str) -> Result<(reqwest::Response, Arc<Token>), FetchError> {
        let token = self.session.token().await?;
        match self.transport.subscribe(path, key, &token.secret).await {
            Err(error) if error.kind == FailureKind::Denied => {
                let token = self.session.renew_dead(token, path, error).await?;
                self.transport.subscribe(path, key, &token.secret).await.map(|response| (response, token))
            }
            outcome => outcome.map(|response| (response, token)),
        }
    }

    /// Whether a failure at one path is the server's or the path's: its health tells, which is asked once for a path.
    async fn place(&self, path: &str, error: FetchError) -> FetchError {
        let is_known = {
            let mut failing = self.failing();
            failing.retain(|_, at| at.elapsed() < LOOK_AGAIN);
            failing.contains_key(path) || failing.len() >= MOST_FAILING
        };
        if is_known {
            return error;
        }
        match self.transport.probe().await {
            Err(out) if out.kind.is_outage() => out,
            _ => {
                self.failing().insert(path.to_owned(), Instant::now());
                error
            }
        }
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn renew_lease(&self, lease: &LeaseId, ttl: Duration) -> Result<Duration, FetchError> {
        let body = json!({ "lease_id": lease.expose(), "increment": ttl.as_secs() }).to_string();
        let (body, _) = self.exchange(Ask::put("sys/leases/renew", body)).await?;
        answer::renewed(&body).ok_or_else(|| {
            let message = format!("{} answered the renewal of a lease with something else", self.transport.address());
            FetchError::new(FailureKind::ServerError, message)
        })
    }

    /// developer.hashicorp.com/vault/api-docs/system/leases#read-lease; where that is not allowed, a renewal tells as much.
    async fn look_up(&self, lease: &LeaseId, ttl: Duration) -> Result<(Duration, bool), FetchError> {
        let body = json!({ "lease_id": lease.expose() }).to_string();
        let body = match self.exchange(Ask::put("sys/leases/lookup", body)).await {
            Err(error) if error.kind == FailureKind::Denied => return Ok((self.renew_lease(lease, ttl).await?, true)),
            outcome => outcome?.0,
        };
        answer::looked_up(&body).ok_or_else(|| {
            let message = format!("{} answered the lookup of a lease with something else", self.transport.address());
            FetchError::new(FailureKind::ServerError, message)
        })
    }

    async fn revoke_lease(&self, lease: &LeaseId) -> Result<(), FetchError> {
        let body = json!({ "lease_id": lease.expose() }).to_string();
        self.exchange(Ask::put("sys/leases/revoke", body)).await.map(drop)
    }
}

impl SecretSource for VaultSource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.read(Ask::get(path)))
    }

    fn issue<'a>(
        &'a self,
        path: &'a str,
        parameters: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.read(Ask::put(path, json!(parameters).to_string())))
    }

    fn watch<'a>(&'a self, path: &'a str, known: Known<'a>) -> BoxFuture<'a, Result<Sign, FetchError>> {
        Box::pin(self.freshness.watch(self, path, known))
    }

    fn renew<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> BoxFuture<'a, Result<Duration, FetchError>> {
        Box::pin(self.renew_lease(lease, ttl))
    }

    fn look<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> BoxFuture<'a, Result<(Duration, bool), FetchError>> {
        Box::pin(self.look_up(lease, ttl))
    }

    fn revoke<'a>(&'a self, lease: &'a LeaseId) -> BoxFuture<'a, Result<(), FetchError>> {
        Box::pin(self.revoke_lease(lease))
    }

    fn superseded(&self, login: u64) -> BoxFuture<'_, Instant> {
        Box::pin(self.session.superseded(login))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(async {
            self.transport.probe().await?;
            self.transport.spare();
            Ok(())
        })
    }

    fn tend<'a>(&'a self, _changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(async {
            tokio::join!(self.session.tend(), self.transport.tend(), self.events.tend(self));
        })
    }

    fn trouble(&self) -> Option<String> {
        self.transport.trouble()
    }
}

/// For how long a path at which the server fails is taken to be at fault itself.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
const MOST_FAILING: usize = 256;
