//! MCP: carries a client's messages over local sockets to the upstreams, and puts the credentials in on the way.
//!
//! The way of a message: `listener` (who may connect) -> `lines` (framing) -> `session` (one client, one service, byte for byte) or
//! `router` (one client, all services) -> `message` (the envelope only) -> `policy` -> `cache` -> `breaker` -> `upstream` (a child or an HTTP session of its
//! own) -> `leaks` (no live secret) -> back. `call` records every request on every way out. `registry` is what is configured; `handle` changes it.
//!
//! This domain must not know where secrets, audit events and metrics come from or go to: `ports` and a meter are handed in.

mod answer;
mod batch;
mod breaker;
mod bridge;
mod cache;
mod call;
mod catalogue;
pub mod connect;
mod credentials;
mod digest;
mod envelope;
mod handle;
mod http;
mod leaks;
mod lines;
mod listener;
mod mask;
mod members;
mod message;
mod metrics;
mod parameters;
mod policy;
mod protocol;
mod registry;
mod remembered;
mod router;
mod service;
mod session;
mod sessions;
pub mod settings;
mod shown;
mod splice;
mod stdio;
#[cfg(test)]
mod testing;
mod trace;
mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use opentelemetry::metrics::Meter;
use tokio::sync::{Notify, mpsc, watch};

use self::cache::Answers;
use self::call::Recorder;
use self::digest::Digests;
pub use self::handle::{McpHandle, Staged};
use self::http::Front;
use self::http::bind::BindError;
use self::leaks::Leaks;
use self::metrics::Metrics;
use self::registry::{Registry, Shared};
use self::settings::McpSettings;
use self::upstream::backoff::random;
pub use self::upstream::client::ClientError;
use crate::guard::Guard;
use crate::lifecycle::{Part, Readiness, Stage};
use crate::local_socket::SocketError;
use crate::output::Shipping;
use crate::ports::{AuditLog, Cache, LocalServer, SecretControl, SecretReader, StateStore};

/// How the aggregate presents itself, to clients and to upstreams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub version: String,
}

#[derive(Debug, thiserror::Error)]
pub enum McpError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Http(#[from] BindError),
    #[error("service {service}: {source}")]
    Client { service: String, source: ClientError },
}

/// What this domain needs of the others.
pub struct Outside {
    pub secrets: Arc<dyn SecretReader>,
    /// Asked for a fresh value when an upstream refuses the one that there is.
    pub control: Arc<dyn SecretControl>,
    pub guard: Arc<Guard>,
    pub audit: Arc<dyn AuditLog>,
    pub meter: Meter,
    pub shipping: Shipping,
    pub cache: Arc<dyn Cache>,
    pub state: Arc<dyn StateStore>,
    /// The services that this process serves itself.
    pub local: Arc<dyn LocalServer>,
    pub identity: Identity,
}

/// Binds the sockets and gives the parts that serve them: a listener, which stops first, and the sessions.
pub fn build(settings: McpSettings, outside: Outside) -> Result<(McpHandle, Vec<Part>), McpError> {
    let Outside { secrets, control, guard, audit, meter, shipping, cache, state, local, identity } = outside;
    let registry = Registry {
        services: BTreeMap::new(),
        sockets: Vec::new(),
        limits: settings.limits.clone(),
        aggregate: settings.aggregate.clone(),
        allow_uids: Vec::new(),
        allow_gids: Vec::new(),
        http: None,
        closing: false,
    };
    let stdio = settings.stdio;
    let (front, starts) = Front::new();
    let digests = Digests::new(secrets.clone(), settings.digest.clone());
    let shared = Arc::new(Shared {
        registry: watch::Sender::new(Arc::new(registry)),
        secrets,
        control,
        leaks: Arc::new(Leaks::new(guard, settings.leak_guard)),
        recorder: Arc::new(Recorder { audit, metrics: Metrics::new(&meter), shipping, digests }),
        answers: Arc::new(Answers::new(cache, random())),
        state: state.clone(),
        local,
        identity,
        connections: Arc::new(AtomicUsize::new(0)),
        front,
    });
    let ended = Arc::new(Notify::new());
    let handle = McpHandle::new(shared.clone(), ended.clone());
    handle.stage(settings)?.publish()?;
    let (accepted, connections) = mpsc::channel(ACCEPTED);
    let (ready, readiness) = Readiness::channel();
    let (known, readiness_of_state) = Readiness::channel();
    let of_state = shared.clone();
    let remembered = Part::new("mcp state", Stage::Workers, readiness_of_state, move |shutdown| {
        remembered::run(of_state, state, known, shutdown)
    });
    let for_listener = shared.clone();
    let listener = Part::new("mcp listener", Stage::Intake, readiness, move |shutdown| {
        listener::run(for_listener, accepted, stdio.then_some(ended), ready, shutdown)
    });
    let sessions = Part::new("mcp sessions", Stage::InFlight, Readiness::immediate(), move |shutdown| {
        sessions::run(shared, connections, starts, shutdown)
    });
    Ok((handle, vec![listener, sessions, remembered]))
}

/// Connections that are accepted and not yet served.
const ACCEPTED: usize = 16;
