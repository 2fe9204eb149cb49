//! The seam to whatever holds secrets: `SecretSource`, what it gives and how it fails.
//!
//! A kind of provider is one implementation in a file or folder of its own. It knows how to fetch; when to fetch, what to publish and
//! what to say of it is decided by the rotator. Invariants: a value leaves a source only as a `Secret`; a `FetchError` never holds one.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use crate::secret::Secret;

use super::schedule::{chance, refresh_in};

pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub(super) trait SecretSource: Send + Sync {
    /// Reads what `path` holds now. Bounded in time and size by the source itself.
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>>;

    /// As `fetch`, where the provider makes the values to order: `parameters` say what is wanted.
    fn issue<'a>(
        &'a self,
        path: &'a str,
        parameters: &'a BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        let _ = parameters;
        self.fetch(path)
    }

    /// Waits for the next look at `path`, `known.every` from the last one, which may be one look for many paths, and tells whether
    /// its values are to be read. Without a way to look that is cheaper than reading, it only waits.
    fn watch<'a>(&'a self, path: &'a str, known: Known<'a>) -> BoxFuture<'a, Result<Sign, FetchError>> {
        let _ = path;
        Box::pin(async move {
            tokio::time::sleep(refresh_in(known.every, chance())).await;
            Ok(Sign::Read)
        })
    }

    /// Prolongs a lease; gives how long it lives from now.
    fn renew<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> BoxFuture<'a, Result<Duration, FetchError>> {
        let _ = (lease, ttl);
        Box::pin(std::future::ready(Err(FetchError::new(FailureKind::Malformed, "this provider has no leases"))))
    }

    /// How long a lease of an earlier process has left, and whether it can be renewed.
    fn look<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> BoxFuture<'a, Result<(Duration, bool), FetchError>> {
        Box::pin(async move { Ok((self.renew(lease, ttl).await?, true)) })
    }

    /// Gives a lease back.
    fn revoke<'a>(&'a self, lease: &'a LeaseId) -> BoxFuture<'a, Result<(), FetchError>> {
        let _ = lease;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Completes when the login under which a lease was made is followed by another, with the time when the lease ends with it.
    fn superseded(&self, login: u64) -> BoxFuture<'_, Instant> {
        let _ = login;
        Box::pin(std::future::pending())
    }

    /// Asks as cheaply as possible whether the source would serve again. Called while it is out, about once a second.
    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>>;

    /// Runs beside the rotators for as long as the provider is in use and never ends: renews a login, watches a file. Calls `changed`
    /// when the items are worth fetching now.
    fn tend<'a>(&'a self, changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()>;

    /// What is wrong with the source itself though it still serves: told of in the provider's condition.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// What a source held at one moment.
pub(super) struct Fetched {
    pub fields: BTreeMap<String, Secret>,
    /// The source's own name for this version.
    pub provider_version: Option<String>,
    /// What ends the values, where something does.
    pub lease: Option<Lease>,
}

/// What ends fetched values, and when, counted from the fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lease {
    /// In the provider's books: it can be prolonged, and is given back when nobody needs it any more.
    Held { id: LeaseId, ttl: Duration, renewable: bool, login: u64 },
    /// They end by themselves: a certificate.
    Ends(Duration),
    /// The provider replaces them by itself: the password of a static role.
    Rotates(Duration),
}

impl Lease {
    /// When it was new.
    pub fn life(&self) -> Duration {
        match self {
            Self::Held { ttl: life, .. } | Self::Ends(life) | Self::Rotates(life) => *life,
        }
    }
}

/// The provider's name for a lease. What is said of it outside is its hash.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct LeaseId(String);

impl LeaseId {
    pub fn new(id: String) -> Self {
        Self(id)
    }

    /// For the provider alone.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The first 12 hexadecimal digits of the SHA-256 of the id.
    pub fn hash(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, self.0.as_bytes());
        digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId({})", self.hash())
    }
}

/// What the one who waits for a change has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    /// The source's own name for the version.
    pub version: Option<&'a str>,
    /// What the last look gave beside it; a look that gives another means another version of the same name.
    pub mark: Option<&'a str>,
    /// When it was last seen to be so.
    pub since: Instant,
    pub every: Duration,
}

/// What a look at a path told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sign {
    /// Nothing has changed; with the mark to give to the next look.
    Same(Option<String>),
    /// It changed, or only reading can tell.
    Read,
}

/// Why a source gave nothing. The message is a clause that can follow `secret NAME:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct FetchError {
    pub kind: FailureKind,
    pub message: String,
    /// Not to be tried again before this has passed.
    pub after: Option<Duration>,
}

impl FetchError {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), after: None }
    }

    #[must_use]
    pub fn after(mut self, wait: Option<Duration>) -> Self {
        self.after = wait;
        self
    }
}

/// What sort of failure it was, as far as somebody acts upon it. `as_str` is `error.type` in metrics and audit events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// No connection, or no answer in time.
    Unreachable,
    /// The connection was made, but not trusted.
    Tls,
    Sealed,
    /// Not the active node, or none is active now.
    Standby,
    Throttled,
    /// The provider refused the login.
    Login,
    /// Logged in, but this path is not allowed.
    Denied,
    NotFound,
    /// The server is there, but failed at this.
    ServerError,
    /// An answer, a file or a value that is not what it should be.
    Malformed,
    /// A version that has no value, or half of one: a rotation that went wrong, or is under way.
    Incomplete,
    /// The audit log refused the event, so the fetch counts for nothing.
    Unaudited,
}

impl FailureKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Sealed => "sealed",
            Self::Standby => "standby",
            Self::Throttled => "throttled",
            Self::Login => "login",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::ServerError => "server_error",
            Self::Malformed => "malformed",
            Self::Incomplete => "incomplete",
            Self::Unaudited => "unaudited",
        }
    }

    /// The whole provider is out: its items wait for a probe to find it back, and do not ask one by one.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Unreachable | Self::Tls | Self::Sealed | Self::Standby)
    }

    /// One item is at fault: it is asked for rarely, since only somebody's hand can mend it.
    pub fn is_items(self) -> bool {
        matches!(
            self,
            Self::Denied | Self::NotFound | Self::ServerError | Self::Malformed | Self::Incomplete | Self::Unaudited
        )
    }

    /// The provider as such is at fault, not one item of it.
    pub fn is_providers(self) -> bool {
        self.is_outage() || matches!(self, Self::Throttled | Self::Login)
    }
}
