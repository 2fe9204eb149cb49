//! Takes the agent's own telemetry over OTLP, on loopback or a Unix socket, so that the agent needs neither a collector's address nor its
//! credentials: logs, metrics and traces, as OTLP/HTTP (protobuf and JSON) and OTLP/gRPC.
//!
//! `answer` is a request and its answer, `grpc` and `http` how the two protocols frame them, `schema`, `walk` and `json` what is in them. Each
//! address takes both protocols. A request is answered with success when it is in the spool; when the spool has no room the agent is asked
//! to come again, and its exporter keeps what it has.
//!
//! Bounds: connections, requests at a time, bytes of a request as it comes and unpacked, the time that it takes to come.

mod answer;
mod grpc;
mod http;
mod json;
mod schema;
#[cfg(test)]
mod tests;
mod walk;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::error::TelemetryError;
use super::intake::Intake;
use crate::lifecycle::{Part, PartError, Readiness, Shutdown, Stage};
use crate::local_socket::{self, BoundSocket};
use crate::ports::Redactor;

#[derive(Debug, Clone, PartialEq)]
pub struct ReceiverSettings {
    /// Loopback addresses.
    pub addresses: Vec<SocketAddr>,
    /// The first of them is meant for gRPC.
    pub is_grpc_first: bool,
    /// Path and mode of a socket.
    pub unix: Option<(PathBuf, u32)>,
    /// Of a request, as it comes and unpacked.
    pub max_request_bytes: usize,
    pub max_connections: usize,
    /// Answered at a time.
    pub max_requests: usize,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Received {
    pub logs: AtomicU64,
    pub spans: AtomicU64,
    pub metrics: AtomicU64,
    /// Requests that were told to come again.
    pub deferred: AtomicU64,
    /// Requests that were not what they should be.
    pub refused: AtomicU64,
}

/// What every request needs.
struct Shared {
    intake: Arc<dyn Intake>,
    redactor: Arc<dyn Redactor>,
    received: Arc<Received>,
    max_request_bytes: usize,
    requests: Semaphore,
}

/// Binds the addresses. Nothing is accepted before the part runs.
pub fn build(
    settings: &ReceiverSettings,
    intake: Arc<dyn Intake>,
    redactor: Arc<dyn Redactor>,
    received: Arc<Received>,
) -> Result<Part, TelemetryError> {
    let failed = |address: &SocketAddr| {
        let address = address.to_string();
        move |cause: io::Error| TelemetryError::Receiver { address, cause }
    };
    let mut listeners = Vec::new();
    for address in &settings.addresses {
        let listener = TcpListener::bind(address).map_err(failed(address))?;
        listener.set_nonblocking(true).map_err(failed(address))?;
        listeners.push(listener);
    }
    let unix = match &settings.unix {
        Some((path, mode)) => Some(local_socket::prepare(path, *mode).and_then(local_socket::Prepared::publish)?),
        None => None,
    };
    let shared = Arc::new(Shared {
        intake,
        redactor,
        received,
        max_request_bytes: settings.max_request_bytes,
        requests: Semaphore::new(settings.max_requests),
    });
    let connections = Arc::new(Semaphore::new(settings.max_connections));
    Ok(Part::new("otlp receiver", Stage::Intake, Readiness::immediate(), move |shutdown| {
        run(listeners, unix, shared, connections, shutdown)
    }))
}

async fn run(
    listeners: Vec<TcpListener>,
    unix: Option<BoundSocket>,
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
    mut shutdown: Shutdown,
) -> Result<(), PartError> {
    let mut acceptors = JoinSet::new();
    let mut sockets = Vec::new();
    for listener in listeners {
        sockets.push(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?));
    }
    if let Some(socket) = &unix {
        sockets.push(Listener::Unix(socket.listener()?));
    }
    for listener in sockets {
        acceptors.spawn(accept_from(listener, shared.clone(), connections.clone(), shutdown.clone()));
    }
    shutdown.requested().await;
    while let Some(ended) = acceptors.join_next().await {
        ended?;
    }
    Ok(())
}

enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

enum Accepted {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

async fn accept_from(listener: Listener, shared: Arc<Shared>, connections: Arc<Semaphore>, mut shutdown: Shutdown) {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            () = shutdown.requested() => break,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection of the OTLP receiver failed");
                tokio::time::sleep(AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        // One that finds no place is closed: its exporter comes again.
        let Ok(place) = connections.clone().try_acquire_owned() else { continue };
        let (shared, shutdown) = (shared.clone(), shutdown.clone());
        tasks.spawn(async move {
            let _place = place;
            match stream {
                Accepted::Tcp(stream) => serve(stream, shared, shutdown).await,
                Accepted::Unix(stream) => serve(stream, shared, shutdown).await,
            }
        });
    }
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_WITHIN, ended).await;
}

async fn serve<S>(stream: S, shared: Arc<Shared>, mut shutdown: Shutdown)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, std::convert::Infallible>(answer::answer(&shared, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(16)
        .keep_alive_interval(Some(HEADER_WITHIN))
        .keep_alive_timeout(HEADER_WITHIN);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is its client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.requested() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(200);
const DRAIN_WITHIN: Duration = Duration::from_secs(2);
const HEADER_WITHIN: Duration = Duration::from_secs(30);
