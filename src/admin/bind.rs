//! The admin sockets: bound before anything serves, kept open over reloads, removed at the end.
//!
//! How a Unix socket is made and left behind is `local_socket`'s.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use crate::local_socket::{BoundSocket, Prepared, prepare};
use crate::secret::SecretText;

use super::AdminError;
use super::settings::{AdminHttpSettings, AdminSettings};

/// What is listened on now.
#[derive(Clone, Default)]
pub struct Listeners {
    pub unix: Option<Arc<BoundSocket>>,
    pub tcp: Option<Arc<TcpSocket>>,
    /// What a request over TCP must bring.
    pub token: Option<SecretText>,
}

impl Listeners {
    /// Binds what `settings` ask for; a socket of `present` that is asked for again is kept.
    pub fn bind(settings: &AdminSettings, present: &Self) -> Result<Self, AdminError> {
        let unix = settings.unix.as_ref().map(|unix| match &present.unix {
            Some(socket) if socket.path() == unix.path && socket.is_in_place() => Ok(socket.clone()),
            _ => prepare(&unix.path, unix.mode).and_then(Prepared::publish).map(Arc::new),
        });
        let tcp = settings.http.as_ref().map(|http| match &present.tcp {
            Some(socket) if socket.asked == http.address => Ok(socket.clone()),
            _ => TcpSocket::bind(http).map(Arc::new),
        });
        let token = settings.http.as_ref().map(|http| http.token.clone());
        Ok(Self { unix: unix.transpose()?, tcp: tcp.transpose()?, token })
    }

    pub fn addresses(&self) -> Vec<String> {
        let unix = self.unix.iter().map(|socket| format!("unix:{}", socket.path().display()));
        unix.chain(self.tcp.iter().map(|socket| format!("http://{}", socket.address))).collect()
    }
}

pub struct TcpSocket {
    listener: TcpListener,
    /// As configured, maybe with port 0.
    asked: SocketAddr,
    address: SocketAddr,
}

impl TcpSocket {
    fn bind(settings: &AdminHttpSettings) -> Result<Self, AdminError> {
        let asked = settings.address;
        let failed = |cause| AdminError::Tcp { address: asked, cause };
        let listener = TcpListener::bind(asked).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, asked, address })
    }

    /// The same socket for the runtime to accept on.
    pub fn to_async(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener.try_clone()?)
    }
}
