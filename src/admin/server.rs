//! The server behind the admin sockets: accepts, bounds, hands each request to `routes`, and runs reloads.
//!
//! Each socket has its own limit of connections, so that one cannot starve the other, and idle ones give way to new ones. A connection
//! over TCP ends after one request, because its buffers have held the token. A panic in one request is a 500 and a line in the log; the
//! server goes on.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, warn};

use crate::lifecycle::{PartError, Shutdown};
use crate::ports::ReloadOutcome;

use super::bind::Listeners;
use super::connections::{Connections, Place};
use super::metrics::AdminMetrics;
use super::routes::{self, Answer, Route};
use super::{Surface, access};

/// Which socket a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Unix,
    Tcp,
}

/// What every connection needs.
pub struct Shared {
    pub surface: Surface,
    pub listeners: watch::Sender<Listeners>,
    pub metrics: AdminMetrics,
    /// Reloads that were asked for.
    pub reloads: mpsc::Sender<ReloadRequest>,
    /// One for each reload that runs or waits for its turn.
    pub reload_turns: Arc<Semaphore>,
}

/// Where the outcome goes, and the turn, which is kept until there is one.
pub type ReloadRequest = (oneshot::Sender<ReloadOutcome>, OwnedSemaphorePermit);

pub struct Server {
    shared: Arc<Shared>,
    reloads: mpsc::Receiver<ReloadRequest>,
    unix: Arc<Connections>,
    tcp: Arc<Connections>,
    tasks: JoinSet<()>,
}

/// The sockets of the moment, as the runtime sees them.
struct Accepting {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Server {
    pub fn new(shared: Arc<Shared>, reloads: mpsc::Receiver<ReloadRequest>) -> Self {
        let connections = || Connections::new(MAX_CONNECTIONS_EACH);
        Self { shared, reloads, unix: connections(), tcp: connections(), tasks: JoinSet::new() }
    }

    pub async fn run(mut self, mut shutdown: Shutdown) -> Result<(), PartError> {
        let mut changes = self.shared.listeners.subscribe();
        let mut accepting = Accepting::of(&changes.borrow_and_update())?;
        let mut check = interval(CHECK_NAME);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut nameless = false;
        loop {
            tokio::select! {
                accepted = accepting.next() => self.take(accepted, &shutdown).await,
                // The sender lives in `shared`.
                _ = changes.changed() => match Accepting::of(&changes.borrow_and_update()) {
                    Ok(new) => accepting = new,
                    Err(error) => error!(%error, "the new admin sockets cannot be used, the old ones stay"),
                },
                _ = check.tick() => nameless = self.restore_name(nameless),
                Some(request) = self.reloads.recv() => self.reload(request),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => report(ended),
                () = shutdown.requested() => break,
            }
        }
        drop(accepting);
        // Connections see the same request to stop; what is not over in time is dropped.
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(DRAIN_WITHIN, ended).await;
        self.shared.listeners.send_replace(Listeners::default());
        Ok(())
    }

    async fn take(&mut self, accepted: io::Result<Accepted>, shutdown: &Shutdown) {
        match accepted {
            Ok(Accepted::Unix(stream)) => {
                if access::peer_may_ask(&stream) {
                    self.admit(TokioIo::new(stream), Door::Unix, shutdown);
                } else {
                    warn!("a process of another user was turned away from the admin socket");
                }
            }
            Ok(Accepted::Tcp(stream)) => self.admit(TokioIo::new(stream), Door::Tcp, shutdown),
            Err(error) => {
                warn!(%error, "accepting an admin connection failed");
                sleep(AFTER_FAILED_ACCEPT).await;
            }
        }
    }

    fn admit<I>(&mut self, io: I, door: Door, shutdown: &Shutdown)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let connections = match door {
            Door::Unix => &self.unix,
            Door::Tcp => &self.tcp,
        };
        match connections.admit() {
            Some(place) => {
                self.tasks.spawn(serve(io, door, place, self.shared.clone(), shutdown.clone()));
            }
            None => warn!(?door, "an admin connection was turned away: all the others are being answered"),
        }
    }

    /// Publishes the Unix socket again if its name was removed. Whether it has none; `known`: and that it is in the log already.
    fn restore_name(&self, known: bool) -> bool {
        let socket = self.shared.listeners.borrow().unix.clone();
        match socket.map(|socket| socket.renewed()) {
            None | Some(Ok(None)) => return false,
            Some(Ok(Some(bound))) => {
                warn!(path = %bound.path().display(), "the admin socket's name was gone: published again");
                self.shared.listeners.send_modify(|listeners| listeners.unix = Some(Arc::new(bound)));
                return false;
            }
            Some(Err(error)) if !known => error!(%error, "the admin socket's name is gone and cannot be given again"),
            Some(Err(_)) => {}
        }
        true
    }

    fn reload(&mut self, (reply, turn): ReloadRequest) {
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let _turn = turn;
            let outcome = shared.surface.reload.reload().await;
            // The client may have gone; the outcome is in the log as well.
            let _ = reply.send(outcome);
        });
    }
}

impl Accepting {
    fn of(listeners: &Listeners) -> io::Result<Self> {
        Ok(Self {
            unix: listeners.unix.as_ref().map(|socket| socket.listener()).transpose()?,
            tcp: listeners.tcp.as_ref().map(|socket| socket.to_async()).transpose()?,
        })
    }

    async fn next(&self) -> io::Result<Accepted> {
        let unix = async {
            let Some(listener) = &self.unix else { return std::future::pending().await };
            Ok(Accepted::Unix(listener.accept().await?.0))
        };
        let tcp = async {
            let Some(listener) = &self.tcp else { return std::future::pending().await };
            Ok(Accepted::Tcp(listener.accept().await?.0))
        };
        tokio::select! {
            accepted = unix => accepted,
            accepted = tcp => accepted,
        }
    }
}

/// Serves one connection to its end, or until its place is wanted and it does nothing with it.
async fn serve<I>(io: I, door: Door, place: Place, shared: Arc<Shared>, shutdown: Shutdown)
where
    I: Read + Write + Unpin + Send,
{
    tokio::select! {
        () = converse(io, door, &place, &shared, shutdown) => {}
        () = place.cut() => debug!(?door, "an idle admin connection made room for a new one"),
    }
}

async fn converse<I>(io: I, door: Door, place: &Place, shared: &Arc<Shared>, mut shutdown: Shutdown)
where
    I: Read + Write + Unpin + Send,
{
    let service = service_fn(|request: Request<Incoming>| {
        let working = place.work();
        async move {
            let answer = respond(shared, door, request).await;
            drop(working);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(door == Door::Unix);
    let mut connection = pin!(server.serve_connection(io, service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, ?door, "an admin connection ended early");
    }
}

async fn respond(shared: &Shared, door: Door, request: Request<Incoming>) -> Answer {
    let (parts, _) = request.into_parts();
    let route = Route::of(parts.uri.path());
    let answer = AssertUnwindSafe(routes::answer(shared, door, &parts)).catch_unwind().await;
    let answer = answer.unwrap_or_else(|_| {
        error!(route = route.as_str(), "answering an admin request panicked");
        routes::error(StatusCode::INTERNAL_SERVER_ERROR, "a bug in mcpeg: the request failed, see the log")
    });
    shared.metrics.answered(route.as_str(), answer.status().as_u16());
    answer
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a task of the admin server failed");
    }
}

/// How long a request waits for its reload.
pub const WAIT_FOR_RELOAD: Duration = Duration::from_secs(60);
/// Reloads that may run or wait for their turn.
pub const MAX_RELOADS: usize = 4;
/// Enough that a burst of honest callers does not cut its own first ones.
const MAX_CONNECTIONS_EACH: usize = 128;
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const HEADERS_WITHIN: Duration = Duration::from_secs(2);
const DRAIN_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether the Unix socket is where it should be.
const CHECK_NAME: Duration = Duration::from_secs(2);
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);
