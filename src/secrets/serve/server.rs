//! Accepts on the socket for local programs, bounds what is open, and serves each connection to its end.
//!
//! Connections are kept alive: an idle one holds no value (`answer`). One user may have half of the connections, so that nobody shuts the
//! others out; whoever comes when there is no room is turned away. A panic in one request is a 500 and a line in the log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};

use crate::lifecycle::Shutdown;
use crate::local_socket::BoundSocket;
use crate::ports::{AuditLog, SecretReader};
use crate::secrets::settings::ServeSettings;

use super::access::Peer;
use super::answer::{self, Answer, Held};
use super::metrics::Metrics;
use super::routes;

/// What every connection needs.
pub(super) struct Shared {
    pub secrets: Arc<dyn SecretReader>,
    pub audit: Arc<dyn AuditLog>,
    pub metrics: Metrics,
    pub open: watch::Sender<Option<Arc<Open>>>,
    pub connections: AtomicUsize,
    by_uid: Mutex<HashMap<u32, usize>>,
}

/// The socket of the moment and its rules.
pub(super) struct Open {
    pub socket: Arc<BoundSocket>,
    pub settings: ServeSettings,
}

impl Shared {
    pub fn new(secrets: Arc<dyn SecretReader>, audit: Arc<dyn AuditLog>, metrics: Metrics) -> Self {
        let open = watch::Sender::new(None);
        Self { secrets, audit, metrics, open, connections: AtomicUsize::new(0), by_uid: Mutex::default() }
    }

    /// By the rules of the moment.
    pub fn may_read(&self, peer: Peer, item: &str) -> bool {
        self.open.borrow().as_ref().is_some_and(|open| peer.may_read(item, &open.settings.allow))
    }

    /// A place for one more connection of this user.
    fn place(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let limit = self.open.borrow().as_ref().map_or(0, |open| open.settings.max_connections);
        let mut by_uid = self.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = by_uid.values().sum();
        let own = by_uid.entry(uid).or_default();
        if all >= limit || *own >= limit.div_ceil(2) {
            return None;
        }
        *own += 1;
        self.connections.store(all + 1, Ordering::Relaxed);
        Some(Place { shared: self.clone(), uid })
    }
}

/// Given back when it is dropped.
struct Place {
    shared: Arc<Shared>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_uid = self.shared.by_uid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_uid.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                by_uid.remove(&self.uid);
            }
        }
        self.shared.connections.store(by_uid.values().sum(), Ordering::Relaxed);
    }
}

pub(super) async fn run(shared: Arc<Shared>, mut shutdown: Shutdown) {
    let mut changes = shared.open.subscribe();
    let mut listener = None;
    let mut tasks = JoinSet::new();
    changes.mark_changed();
    loop {
        tokio::select! {
            accepted = accept(listener.as_ref()) => match accepted {
                Ok(stream) => admit(stream, &shared, &shutdown, &mut tasks),
                Err(error) => {
                    warn!(%error, "accepting a local program failed");
                    sleep(AFTER_FAILED_ACCEPT).await;
                }
            },
            // The sender lives in `shared`.
            _ = changes.changed() => {
                let open = changes.borrow_and_update().clone();
                match open.map(|open| open.socket.listener()).transpose() {
                    Ok(new) => listener = new,
                    Err(error) => error!(%error, "the new socket for local programs cannot be used, the old one stays"),
                }
            }
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(error) = ended {
                    error!(%error, "a connection of a local program failed");
                }
            }
            () = shutdown.requested() => break,
        }
    }
    drop(listener);
    shared.open.send_replace(None);
    // Connections see the same request to stop; what is not over in time is dropped.
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = timeout(DRAIN_WITHIN, ended).await;
}

async fn accept(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

fn admit(stream: UnixStream, shared: &Arc<Shared>, shutdown: &Shutdown, tasks: &mut JoinSet<()>) {
    let Ok(peer) = Peer::of(&stream) else { return };
    match shared.place(peer.uid) {
        Some(place) => drop(tasks.spawn(serve(stream, peer, place, shutdown.clone()))),
        None => warn!(uid = peer.uid, "a local program was turned away: too many connections"),
    }
}

async fn serve(stream: UnixStream, peer: Peer, place: Place, mut shutdown: Shutdown) {
    let held = Held::new();
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, held) = (place.shared.clone(), held.clone());
        async move { Ok::<_, Infallible>(respond(&shared, peer, &held, request).await) }
    });
    let mut server = http1::Builder::new();
    // Also the longest time that a connection may be idle.
    server.timer(TokioTimer::new()).header_read_timeout(IDLE).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = held.overdue() => {
            warn!(uid = peer.uid, pid = peer.pid, "a local program does not take its answer: cut off");
            return;
        }
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of a local program ended early");
    }
}

async fn respond(shared: &Arc<Shared>, peer: Peer, held: &Held, request: Request<Incoming>) -> Answer {
    let (parts, _) = request.into_parts();
    let answer = AssertUnwindSafe(routes::answer(shared, peer, held, &parts)).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        error!("answering a local program panicked");
        answer::error(StatusCode::INTERNAL_SERVER_ERROR, "a bug in mcpeg: the request failed, see the log")
    })
}

const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const IDLE: Duration = Duration::from_secs(600);
const DRAIN_WITHIN: Duration = Duration::from_secs(1);
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);
