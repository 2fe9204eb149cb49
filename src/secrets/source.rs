//! The seam to whatever holds secrets: `SecretSource`, what it gives and how it fails.
//!
//! A kind of provider is one implementation in a file or folder of its own. It knows how to fetch; when to fetch, what to publish and
//! what to say of it is decided by the rotator. Invariants: a value leaves a source only as a `Secret`; a `FetchError` never holds one.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::secret::Secret;

pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub(super) trait SecretSource: Send + Sync {
    /// Reads what `path` holds now. Bounded in time and size by the source itself.
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>>;

    /// Asks as cheaply as possible whether the source answers again. Called while it is out, about once a second.
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
    /// How long the values are valid, where they end by themselves: the next ones are fetched before that.
    pub lease: Option<Duration>,
}

/// Why a source gave nothing. The message is a clause that can follow `secret NAME:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct FetchError {
    pub kind: FailureKind,
    pub message: String,
}

impl FetchError {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
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
            Self::Unaudited => "unaudited",
        }
    }

    /// The whole provider is out: its items wait for a probe to find it back, and do not ask one by one.
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Unreachable | Self::Tls | Self::Sealed)
    }

    /// The provider as such is at fault, not one item of it.
    pub fn is_providers(self) -> bool {
        self.is_outage() || matches!(self, Self::Standby | Self::Throttled | Self::Login)
    }
}
