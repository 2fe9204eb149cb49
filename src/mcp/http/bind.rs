//! The TCP socket of the HTTP transport: bound before anything serves, kept open over reloads, and its accept loop.
//!
//! A `Door` is the socket with what holds for whoever comes through it. A certificate whose files were replaced is read again at the next
//! connection; one that cannot be read leaves the old one in place.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::mcp::call::Peer;
use crate::mcp::listener::{ACCEPT_RETRY, Accepted, Refused, Stream};
use crate::mcp::registry::{ConnectionPermit, Shared, Target};
use crate::mcp::settings::{ListenSettings, ListenTls};
use crate::tls::{self, Stamp, TlsError};

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("transports.http: cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("transports.http: {0}")]
    Tls(#[from] TlsError),
}

pub struct Door {
    socket: Arc<TcpSocket>,
    pub settings: ListenSettings,
    tls: Option<Certificate>,
}

struct TcpSocket {
    listener: TcpListener,
    /// As configured, maybe with port 0.
    asked: SocketAddr,
    address: SocketAddr,
}

struct Certificate {
    files: ListenTls,
    read: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Door {
    /// Binds, or keeps the socket of `present` if it is the same one.
    pub fn open(settings: &ListenSettings, present: Option<&Arc<Self>>) -> Result<Arc<Self>, BindError> {
        if let Some(door) = present.filter(|door| door.settings == *settings) {
            return Ok(door.clone());
        }
        let tls = settings.tls.clone().map(Certificate::read).transpose()?;
        let kept = present.filter(|door| door.socket.asked == settings.address).map(|door| door.socket.clone());
        let socket = kept.map_or_else(|| TcpSocket::bind(settings.address).map(Arc::new), Ok)?;
        Ok(Arc::new(Self { socket, settings: settings.clone(), tls }))
    }

    /// The endpoint of all services.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/mcp", self.socket.address)
    }

    /// `None`: no TLS.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(Certificate::current)
    }
}

impl TcpSocket {
    fn bind(asked: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError::Listen { address: asked, source };
        let listener = TcpListener::bind(asked).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, asked, address })
    }
}

impl Certificate {
    fn read(files: ListenTls) -> Result<Self, TlsError> {
        let stamp = Self::stamp(&files);
        let config = tls::server_config(&files.cert_file, &files.key_file)?;
        Ok(Self { files, read: Mutex::new((stamp, Arc::new(config))) })
    }

    fn stamp(files: &ListenTls) -> Stamp {
        tls::stamp(&[&files.cert_file, &files.key_file])
    }

    fn current(&self) -> Arc<ServerConfig> {
        let stamp = Self::stamp(&self.files);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0 != stamp {
            read.0 = stamp;
            match tls::server_config(&self.files.cert_file, &self.files.key_file) {
                Ok(config) => {
                    tracing::info!("the certificate of transports.http was replaced");
                    read.1 = Arc::new(config);
                }
                Err(error) => tracing::error!(%error, "the new certificate cannot be used, the old one stays"),
            }
        }
        read.1.clone()
    }
}

/// The loop that accepts on the TCP socket of the moment.
#[derive(Default)]
pub struct TcpLoop(Option<(Arc<TcpSocket>, AbortHandle)>);

impl TcpLoop {
    /// Sees to it that there is a loop for the socket of `door`, and for no other.
    pub fn reconcile(
        &mut self,
        shared: &Arc<Shared>,
        accepted: &mpsc::Sender<Accepted>,
        door: Option<&Arc<Door>>,
        loops: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let same = |socket: &Arc<TcpSocket>| door.is_some_and(|door| Arc::ptr_eq(socket, &door.socket));
        if self.0.as_ref().is_some_and(|(socket, _)| same(socket)) {
            return Ok(());
        }
        if let Some((_, running)) = self.0.take() {
            running.abort();
        }
        let Some(door) = door else { return Ok(()) };
        let listener = tokio::net::TcpListener::from_std(door.socket.listener.try_clone()?)?;
        tracing::info!(url = door.url(), "listening");
        let task = loops.spawn(accept(shared.clone(), listener, accepted.clone()));
        self.0 = Some((door.socket.clone(), task));
        Ok(())
    }
}

async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener, accepted: mpsc::Sender<Accepted>) {
    let mut refused = Refused::default();
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(connected) => connected,
            Err(error) => {
                // Out of descriptors, most likely: the backlog keeps who waits.
                tracing::error!(%error, socket = NAME, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let registry = shared.registry.borrow().clone();
        let peer = Peer { uid: None, pid: None, address: Some(address.ip()) };
        let Some(door) = registry.http.clone() else { return };
        let limit = registry.limits.max_connections;
        let Some(permit) = ConnectionPermit::take(&shared.connections, limit) else {
            if let Some(unsaid) = refused.count() {
                tracing::warn!(limit, socket = NAME, unsaid, "a connection was refused: too many");
            }
            shared.recorder.connection_denied(NAME, peer, "too_many_connections");
            refuse(&stream, door.tls.is_some());
            continue;
        };
        // Small answers must not wait for one another.
        let _ = stream.set_nodelay(true);
        let connection = Accepted { stream: Stream::Tcp(stream, door), peer, target: Target::Aggregate, permit };
        match tokio::time::timeout(HAND_OVER, accepted.send(connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => tracing::error!(socket = NAME, "a connection was dropped: nobody took it"),
        }
    }
}

/// A last word, for which a fresh socket has room.
fn refuse(stream: &tokio::net::TcpStream, tls: bool) {
    if !tls {
        let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
}

/// How the TCP socket is called in records.
pub const NAME: &str = "http";
const HAND_OVER: Duration = Duration::from_secs(5);
