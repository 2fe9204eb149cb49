//! The `oauth` kind: access tokens of an authorization server, by the grants that a program uses by itself (RFC 6749, 4.4 and 6).
//!
//! `discovery` finds the token endpoint, `exchange` makes requests and reads answers, `chain` keeps refresh tokens, which a server may
//! replace at each use. An item's path is the scopes that are wanted, separated by spaces; what comes is its fields `access_token`,
//! `token_type`, `expires_at` (seconds since 1970) and `scope`. A token that tells its life is replaced before it ends.
//! Invariants: a request that uses a refresh token is seen through although nobody waits for it any more, since it may be worth nothing
//! afterwards; no message holds a token, a secret, or words of the server that are not of RFC 6749.

pub(super) mod chain;
mod discovery;
mod exchange;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{SHA256, digest};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::ports::SecretReader;
use crate::secret::{Secret, SecretText};
use crate::tls::Trust;

use super::cache::{KeptToken, binding_of};
use super::context::Context;
use super::credential;
use super::settings::{Credential, OAuthGrant, OAuthSettings};
use super::source::{BoxFuture, FailureKind, FetchError, Fetched, SecretSource};

use chain::Chain;
use discovery::Discovery;
use exchange::{Answer, Wish};

/// What refresh tokens and access tokens are kept under: whose they are.
pub(super) fn binding(settings: &OAuthSettings) -> String {
    binding_of(&format!("oauth {:?} {:?} {:?}", settings.server, settings.client_id, settings.grant))
}

pub(super) struct OAuthSource {
    inner: Arc<Inner>,
    /// Requests that use a refresh token.
    running: Mutex<JoinSet<()>>,
}

struct Inner {
    provider: String,
    settings: OAuthSettings,
    trust: Trust,
    discovery: Discovery,
    chain: Arc<Chain>,
    context: Arc<Context>,
    binding: String,
}

impl OAuthSource {
    /// Reads the roots; asks nothing of the network.
    pub fn build(provider: &str, settings: &OAuthSettings, context: Arc<Context>) -> Result<Self, String> {
        let address = settings.server.address();
        let trust = Trust::build(&address.origin().ascii_serialization(), address.scheme(), settings.tls.clone())
            .map_err(|error| error.to_string())?;
        let binding = binding(settings);
        let chain = context.chain_of(&format!("{provider} {binding}"), || {
            context.cache.take_token(provider, &binding).map(|kept| kept.token)
        });
        let discovery = Discovery::new(settings.server.clone(), settings.tls.client.is_some());
        let (provider, settings) = (provider.to_owned(), settings.clone());
        let inner = Inner { provider, settings, trust, discovery, chain, context, binding };
        Ok(Self { inner: Arc::new(inner), running: Mutex::default() })
    }

    async fn token(&self, scopes: &str, parameters: &BTreeMap<String, String>) -> Result<Fetched, FetchError> {
        let wish = Wish { scopes: self.inner.scopes(scopes), parameters: parameters.clone() };
        if matches!(self.inner.settings.grant, OAuthGrant::ClientCredentials) {
            return self.inner.by_client(&wish).await;
        }
        let (done, outcome) = oneshot::channel();
        let inner = self.inner.clone();
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            while running.try_join_next().is_some() {}
            running.spawn(async move {
                // Who asked may be gone; the token is kept all the same.
                let _ = done.send(inner.by_refresh(&wish).await);
            });
        }
        outcome.await.unwrap_or_else(|_| Err(FetchError::new(FailureKind::Malformed, "the request ended early")))
    }
}

impl Inner {
    /// Those of the item, else those of the provider.
    fn scopes(&self, of_item: &str) -> String {
        let of_item: Vec<&str> = of_item.split_whitespace().collect();
        if of_item.is_empty() { self.settings.scopes.join(" ") } else { of_item.join(" ") }
    }

    async fn by_client(&self, wish: &Wish) -> Result<Fetched, FetchError> {
        self.ask(&[("grant_type", b"client_credentials")], wish).await.map(|answer| answer.fetched)
    }

    /// One at a time: each may replace the refresh token.
    async fn by_refresh(&self, wish: &Wish) -> Result<Fetched, FetchError> {
        let OAuthGrant::RefreshToken(configured) = &self.settings.grant else { return self.by_client(wish).await };
        let mut link = self.chain.link().await;
        if let Some(token) = link.current() {
            match self.use_token(&token, wish, &mut link).await {
                Err(error) if error.kind == FailureKind::Login && error.message.contains(exchange::DEAD_GRANT) => {
                    self.context.cache.forget_token(&self.provider);
                    link.forget();
                    let configured = self.credential(configured).await?;
                    // The one that was given first is dead too, and to use it again may look like a theft.
                    if link.was_spent(digest_of(&configured)) || configured == *token {
                        return Err(error);
                    }
                    return self.use_token(&Arc::new(configured), wish, &mut link).await;
                }
                outcome => return outcome,
            }
        }
        let configured = Arc::new(self.credential(configured).await?);
        self.use_token(&configured, wish, &mut link).await
    }

    async fn use_token(
        &self,
        token: &Arc<Secret>,
        wish: &Wish,
        link: &mut chain::Link<'_>,
    ) -> Result<Fetched, FetchError> {
        let answer = self.ask(&[("grant_type", b"refresh_token"), ("refresh_token", token.expose())], wish).await?;
        if let Some(next) = answer.refresh_token.filter(|next| next != &**token) {
            let next = Arc::new(next);
            link.replace(next.clone(), digest_of(token));
            self.keep(next).await;
        }
        Ok(answer.fetched)
    }

    /// For the next process, before the token that came with it is used.
    async fn keep(&self, token: Arc<Secret>) {
        let binding = self.binding.clone();
        let kept = KeptToken { binding, token, ttl: None, renewable: false, ends: None, login: 0 };
        self.context.cache.put_token(&self.provider, kept);
        self.context.cache.save().await;
    }

    async fn ask(&self, grant: &[(&str, &[u8])], wish: &Wish) -> Result<Answer, FetchError> {
        self.trust.follow();
        let secret = match &self.settings.client_secret {
            Some(secret) => Some(self.credential(secret).await?),
            None => None,
        };
        let web = exchange::Web { tls: self.trust.config(), timeout: self.settings.timeout };
        let endpoint = self.discovery.endpoint(&web).await?;
        let outcome = exchange::ask(&web, &endpoint, &self.settings, secret.as_ref(), grant, wish).await;
        if outcome.as_ref().is_err_and(|error| error.kind != FailureKind::Login) {
            self.discovery.doubt();
        }
        outcome
    }

    async fn credential(&self, credential: &Credential) -> Result<Secret, FetchError> {
        match credential {
            Credential::File(path) => credential::in_file(path).await,
            Credential::Inline(text) => self.resolved(text).await,
        }
    }

    /// Waits for the first value of the items that the text refers to.
    async fn resolved(&self, text: &SecretText) -> Result<Secret, FetchError> {
        let missing = |reason: String| FetchError::new(FailureKind::Incomplete, reason);
        let Some(secrets) = self.context.reader() else { return Err(missing("the process is ending".to_owned())) };
        for reference in text.references() {
            if let Some(mut newest) = secrets.subscribe(&reference.item) {
                let first = newest.wait_for(|version| *version > 0);
                let _ = tokio::time::timeout(self.settings.timeout, first).await;
            }
        }
        text.resolve(|reference| secrets.current(&reference.item)).map_err(|error| missing(error.to_string()))
    }
}

impl SecretSource for OAuthSource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move { self.token(path, &BTreeMap::new()).await })
    }

    fn issue<'a>(
        &'a self,
        path: &'a str,
        parameters: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.token(path, parameters))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(async {
            let web = exchange::Web { tls: self.inner.trust.config(), timeout: PROBE_TIMEOUT };
            exchange::answers(&web, self.inner.settings.server.address()).await
        })
    }

    fn tend<'a>(&'a self, _changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(std::future::pending())
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trust.trouble()
    }
}

fn digest_of(token: &Secret) -> chain::Digest {
    digest(&SHA256, token.expose()).as_ref().try_into().unwrap_or_default()
}

/// Less than the time between two probes.
const PROBE_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(800);
