//! The login: one token for all items of a provider, renewed before it ends, replaced when it is dead.
//!
//! Invariants: at most one login is under way; after a failed login the next waits out a growing pause, whoever asks; a token that
//! is replaced is wiped when the last request that carries it is done. A token is told dead from a path denied by `lookup-self`, which
//! the server's default policy allows to every token; where it is not allowed, only the end of its life makes a token dead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::secret::Secret;

use super::super::cache::{KeptToken, OURS};
use super::super::context::Context;
use super::super::schedule::{BACKOFF_CAP, backoff_in, chance, renew_in};
use super::super::source::{FailureKind, FetchError};
use super::auth::{AuthMethod, Grant};
use super::transport::{Request, Transport};

pub(super) struct Session {
    provider: String,
    transport: Arc<Transport>,
    method: Box<dyn AuthMethod>,
    context: Arc<Context>,
    /// What the token is kept under.
    binding: String,
    state: Mutex<State>,
    /// Rung after each login, for the renewal to plan anew.
    logged_in: Notify,
    /// The newest login, and when the tokens of the ones before end (`None`: never). What was leased under a token ends with it.
    logins: watch::Sender<Logins>,
}

#[derive(Default)]
struct Logins {
    newest: u64,
    ends: BTreeMap<u64, Option<Instant>>,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Token>>,
    /// What an earlier process had, until it is known whether it lives.
    kept: Option<KeptToken>,
    logins: u64,
    failures: u32,
    /// The last failed login, and until when it stands for an answer.
    blocked: Option<(FetchError, Instant)>,
    /// Paths that were refused to a token that was alive: the login, and when.
    denied: BTreeMap<String, (u64, Instant)>,
    /// A token fresh from a login was refused a lookup of itself: a refusal tells nothing.
    lookup_refused: bool,
}

pub(super) struct Token {
    pub secret: Arc<Secret>,
    /// Which login it came from.
    pub login: u64,
    /// `None`: it does not end.
    ends: Option<Instant>,
    /// What it lived for when it was new.
    ttl: Option<Duration>,
    renewable: bool,
}

impl Session {
    pub fn new(
        provider: &str,
        transport: Arc<Transport>,
        method: Box<dyn AuthMethod>,
        binding: String,
        context: Arc<Context>,
    ) -> Self {
        let (logged_in, logins, mut state) = (Notify::new(), watch::Sender::<Logins>::default(), State::default());
        state.kept = context.cache.take_token(provider, &binding);
        if state.kept.is_some() {
            state.logins = OURS;
            logins.send_modify(|logins| logins.newest = OURS);
        }
        let (provider, state) = (provider.to_owned(), Mutex::new(state));
        Self { provider, transport, method, context, binding, state, logged_in, logins }
    }

    /// The token to use now, from a login if need be.
    pub async fn token(&self) -> Result<Arc<Token>, FetchError> {
        let mut state = self.state.lock().await;
        match &state.token {
            Some(token) if token.ends.is_none_or(|end| end > Instant::now()) => Ok(token.clone()),
            _ => self.login(&mut state).await,
        }
    }

    /// A token to try once more with after `denied` refused `path` to `used`; or that refusal, if the token was not at fault.
    pub async fn renew_dead(&self, used: Arc<Token>, path: &str, denied: FetchError) -> Result<Arc<Token>, FetchError> {
        let mut state = self.state.lock().await;
        match &state.token {
            Some(current) if current.login != used.login => return Ok(current.clone()),
            Some(_) if state.lookup_refused || state.is_known_denied(path, used.login) => return Err(denied),
            Some(_) if self.is_alive(&used).await? => {
                state.note_denied(path, used.login);
                return Err(denied);
            }
            _ => {}
        }
        self.logins.send_modify(|logins| logins.end(used.login, Some(Instant::now())));
        state.token = None;
        let token = self.login(&mut state).await?;
        state.lookup_refused = !self.is_alive(&token).await?;
        Ok(token)
    }

    async fn is_alive(&self, token: &Token) -> Result<bool, FetchError> {
        let lookup = self.transport.call(Request::LookupSelf, Some(&token.secret), vaultrs::token::lookup_self).await;
        match lookup {
            Ok(_) => Ok(true),
            Err(error) if error.kind == FailureKind::Login => Ok(false),
            // It answered, so the token is alive, though the answer has a field that nobody expected.
            Err(error) if error.kind == FailureKind::Malformed => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn login(&self, state: &mut MutexGuard<'_, State>) -> Result<Arc<Token>, FetchError> {
        if let Some((error, until)) = &state.blocked
            && *until > Instant::now()
        {
            return Err(error.clone());
        }
        if let Some(token) = self.resumed(state).await? {
            return Ok(token);
        }
        let outcome = self.method.login(&self.transport).await.and_then(|grant| self.on_record(grant));
        match outcome {
            Ok(grant) => {
                // The same token, though it was read anew: what was leased under it goes on.
                let goes_on = state.kept.take().is_some_and(|kept| kept.is(&grant.token));
                state.logins += u64::from(!goes_on);
                state.failures = 0;
                state.blocked = None;
                state.lookup_refused = false;
                let token = Arc::new(Token::new(grant, state.logins));
                let before = state.token.as_ref().map(|token| (token.login, token.ends));
                self.logins.send_modify(|logins| {
                    before.into_iter().for_each(|(login, ends)| logins.end(login, ends));
                    logins.newest = token.login;
                });
                state.token = Some(token.clone());
                self.logged_in.notify_one();
                self.keep(&token).await;
                Ok(token)
            }
            // The probes of the provider pace what comes after an outage.
            Err(error) if error.kind.is_outage() => Err(error),
            Err(error) => {
                self.context.login_failed(&self.provider, self.method.name(), &error);
                state.failures += 1;
                let pause = backoff_in(state.failures, BACKOFF_CAP, chance());
                state.blocked = Some((error.clone(), Instant::now() + pause));
                Err(error)
            }
        }
    }

    /// The token of an earlier process, if it lives. Where tokens are given and not made, a new one is read in any case.
    async fn resumed(&self, state: &mut State) -> Result<Option<Arc<Token>>, FetchError> {
        let Some(kept) = state.kept.as_ref().filter(|_| self.method.makes_tokens()) else { return Ok(None) };
        let lookup = self.transport.call(Request::LookupSelf, Some(&kept.token), vaultrs::token::lookup_self).await;
        let (left, renewable) = match lookup {
            Ok(facts) => (Some(facts.ttl).filter(|ttl| *ttl > 0), facts.renewable.unwrap_or(false)),
            Err(error) if matches!(error.kind, FailureKind::Login | FailureKind::Malformed) => {
                info!(provider = self.provider, "the login of before has ended");
                state.kept = None;
                self.context.cache.forget_token(&self.provider);
                self.logins.send_modify(|logins| logins.end(OURS, Some(Instant::now())));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.context
            .resumed_login(&self.provider, self.method.name())
            .map_err(|refused| FetchError::new(FailureKind::Unaudited, format!("the login is not used: {refused}")))?;
        let ends = left.and_then(|left| Instant::now().checked_add(Duration::from_secs(left)));
        let token = Arc::new(Token { secret: kept.token.clone(), login: OURS, ends, ttl: kept.ttl, renewable });
        state.kept = None;
        state.token = Some(token.clone());
        self.logged_in.notify_one();
        self.keep(&token).await;
        Ok(Some(token))
    }

    /// For the next process.
    async fn keep(&self, token: &Token) {
        let left = token.ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        let kept = KeptToken {
            binding: self.binding.clone(),
            token: token.secret.clone(),
            ttl: token.ttl,
            renewable: token.renewable,
            ends: left.map(|left| SystemTime::now() + left),
            login: token.login,
        };
        self.context.cache.put_token(&self.provider, kept);
        self.context.cache.save().await;
    }

    /// Completes when there is a newer login than this, with the time when its token ends, and what was leased under it.
    pub async fn superseded(&self, login: u64) -> Instant {
        let mut logins = self.logins.subscribe();
        // The sender is in `self`, so waiting cannot fail.
        let ends = match logins.wait_for(|logins| logins.newest > login).await {
            Ok(logins) => logins.ends.get(&login).copied().unwrap_or_else(|| Some(Instant::now())),
            Err(_) => None,
        };
        match ends {
            Some(ends) => ends,
            None => std::future::pending().await,
        }
    }

    /// Completes when there is a newer login than this.
    pub async fn newer(&self, login: u64) {
        // The sender is in `self`, so waiting cannot fail.
        let _ = self.logins.subscribe().wait_for(|logins| logins.newest > login).await;
    }

    fn on_record(&self, grant: Grant) -> Result<Grant, FetchError> {
        self.context
            .logged_in(&self.provider, self.method.name())
            .map_err(|refused| FetchError::new(FailureKind::Unaudited, format!("the login is not used: {refused}")))?;
        Ok(grant)
    }

    /// Never ends: renews the token when two thirds of its life are over, and logs in again when it cannot be renewed.
    pub async fn tend(&self) {
        loop {
            let due = self.state.lock().await.token.as_ref().and_then(|token| token.due());
            let logged_in = self.logged_in.notified();
            match due {
                None => logged_in.await,
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => self.prolong().await,
                        () = logged_in => {}
                    }
                }
            }
        }
    }

    /// Renews, or logs in if that is refused or pointless, and tries until one of them works.
    async fn prolong(&self) {
        let mut failures = 0;
        loop {
            let Some(token) = self.state.lock().await.token.clone() else { return };
            let error = match self.renewed(&token).await {
                Ok(Some(renewed)) => {
                    let mut state = self.state.lock().await;
                    if state.token.as_ref().is_some_and(|current| current.login == renewed.login) {
                        let renewed = Arc::new(renewed);
                        state.token = Some(renewed.clone());
                        self.keep(&renewed).await;
                    }
                    return;
                }
                Ok(None) => match self.login(&mut self.state.lock().await).await {
                    Ok(_) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            failures += 1;
            warn!(provider = self.provider, %error, "token not renewed");
            tokio::time::sleep(backoff_in(failures, BACKOFF_CAP, chance())).await;
        }
    }

    /// `None`: this token is not worth renewing, or cannot be; a new one is needed.
    async fn renewed(&self, token: &Token) -> Result<Option<Token>, FetchError> {
        if !token.renewable {
            return Ok(None);
        }
        let renew = async |client: &_| vaultrs::token::renew_self(client, None).await;
        let info = match self.transport.call(Request::RenewSelf, Some(&token.secret), renew).await {
            Ok(info) => info,
            Err(error) if error.kind == FailureKind::Login => return Ok(None),
            Err(error) => return Err(error),
        };
        let (grant, full) = (Grant::from(info), token.ttl.unwrap_or_default());
        // Near its maximum life a renewal gives less and less.
        if grant.ttl.is_some_and(|ttl| ttl < full / 3) {
            return Ok(None);
        }
        Ok(Some(Token { ttl: token.ttl, ..Token::new(grant, token.login) }))
    }
}

impl State {
    fn is_known_denied(&self, path: &str, login: u64) -> bool {
        self.denied.get(path).is_some_and(|(under, at)| *under == login && at.elapsed() < LOOK_AGAIN)
    }

    fn note_denied(&mut self, path: &str, login: u64) {
        if self.denied.len() >= MOST_DENIED {
            self.denied.clear();
        }
        self.denied.insert(path.to_owned(), (login, Instant::now()));
    }
}

impl Logins {
    fn end(&mut self, login: u64, ends: Option<Instant>) {
        self.ends.entry(login).or_insert(ends);
        while self.ends.len() > MOST_LOGINS {
            self.ends.pop_first();
        }
    }
}

/// For how long a refused path is not taken for the sign of a dead token: other paths and the renewal tell that sooner.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
const MOST_DENIED: usize = 256;
const MOST_LOGINS: usize = 16;

impl Token {
    fn new(grant: Grant, login: u64) -> Self {
        let ends = grant.ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        Self { secret: Arc::new(grant.token), login, ends, ttl: grant.ttl, renewable: grant.renewable }
    }

    /// When it is to be renewed.
    fn due(&self) -> Option<Instant> {
        let left = self.ends?.saturating_duration_since(Instant::now());
        Some(Instant::now() + renew_in(left, chance()))
    }
}
