//! One HTTP connection, from its first byte to its end.
//!
//! It ends when it is idle for `IDLE`, when mcpeg stops, when its door is closed by a reload, and when the token changes: the buffers of a
//! connection hold the token that it has brought. What is being answered then is answered first; streams without an end are cut.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::bind::Door;
use super::endpoint::Context;
use crate::mcp::call::Peer;
use crate::mcp::registry::{Registry, Shared, Target};

/// What the first byte of a connection tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Speaks {
    Lines,
    Http,
    /// It was closed before it said anything, or mcpeg stops.
    Nothing,
}

/// Waits for the first byte, and leaves it where it is.
pub async fn first_byte(stream: &UnixStream, shared: &Shared) -> Speaks {
    let mut registry = shared.registry.subscribe();
    let mut byte = [0_u8];
    let peeked = stream.async_io(Interest::READABLE, || {
        rustix::net::recv(stream, &mut byte, RecvFlags::PEEK).map(|(read, _)| read).map_err(io::Error::from)
    });
    let peeked = tokio::select! {
        peeked = peeked => peeked,
        _ = registry.wait_for(|registry| registry.closing) => return Speaks::Nothing,
    };
    match peeked {
        Ok(0) | Err(_) => Speaks::Nothing,
        // The names of HTTP's methods are capital letters; no JSON begins with one.
        Ok(_) if byte[0].is_ascii_uppercase() => Speaks::Http,
        Ok(_) => Speaks::Lines,
    }
}

pub async fn serve_unix(shared: Arc<Shared>, stream: UnixStream, peer: Peer, target: Target) {
    serve(shared, TokioIo::new(stream), peer, target, None).await;
}

pub async fn serve_tcp(shared: Arc<Shared>, stream: TcpStream, peer: Peer, door: Arc<Door>) {
    let Some(config) = door.tls() else {
        return serve(shared, TokioIo::new(stream), peer, Target::Aggregate, Some(door)).await;
    };
    match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => serve(shared, TokioIo::new(stream), peer, Target::Aggregate, Some(door)).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn serve<I>(shared: Arc<Shared>, io: I, peer: Peer, target: Target, door: Option<Arc<Door>>)
where
    I: Read + Write + Unpin + Send,
{
    let (cut, seen) = watch::channel(false);
    let context = Context { shared: shared.clone(), peer, target, tcp: door.is_some(), cut: seen };
    let context = &context;
    let service =
        service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(context.respond(request).await) });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(IDLE).max_headers(MAX_HEADERS).max_buf_size(MAX_BUFFER);
    let mut connection = pin!(server.serve_connection(io, service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = has_to_end(&shared, door.as_deref()) => {
            cut.send_replace(true);
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// Completes when the connection is wanted no more.
async fn has_to_end(shared: &Shared, door: Option<&Door>) {
    let mut registry = shared.registry.subscribe();
    let references = door.into_iter().flat_map(|door| door.settings.token.references());
    let mut changes: Vec<_> = references.filter_map(|item| shared.secrets.subscribe(&item.item)).collect();
    changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
    let token = async {
        if changes.is_empty() {
            return std::future::pending().await;
        }
        // An error means that the item is configured no more.
        let _ = select_all(changes.iter_mut().map(|change| Box::pin(change.changed()))).await;
    };
    let stays = |registry: &Arc<Registry>| {
        let same = |now: &Arc<Door>| door.is_none_or(|door| door.settings == now.settings);
        !registry.closing && (door.is_none() || registry.http.as_ref().is_some_and(same))
    };
    tokio::select! {
        () = token => {}
        _ = registry.wait_for(|registry| !stays(registry)) => {}
    }
}

/// Also for the headers of a request, once it has begun.
const IDLE: Duration = Duration::from_secs(90);
const HANDSHAKE: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 64;
const MAX_BUFFER: usize = 64 * 1024;
