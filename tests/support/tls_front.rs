//! TLS in front of a server that has none: what comes is decrypted and passed on.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::nginx::Certificates;

pub struct TlsFront {
    pub port: u16,
    _tasks: JoinSet<()>,
}

/// How a connection begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the handshake.
    Tls,
    /// With PostgreSQL's `SSLRequest`, which is answered with `S`; a client that begins otherwise is let go.
    SslRequest,
}

impl TlsFront {
    pub async fn before(server: u16, begin: Begin, certificates: &Certificates) -> Self {
        let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
        let acceptor =
            tokio_rustls::TlsAcceptor::from(Arc::new(mcpeg::tls::server_config(&certificate, &key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(pass_on(stream, server, begin, acceptor.clone()));
            }
        });
        Self { port, _tasks: tasks }
    }
}

async fn pass_on(mut client: TcpStream, server: u16, begin: Begin, acceptor: tokio_rustls::TlsAcceptor) {
    if begin == Begin::SslRequest {
        let mut asked = [0; 8];
        let is_asked = client.read_exact(&mut asked).await.is_ok() && asked == SSL_REQUEST;
        if !is_asked || client.write_all(b"S").await.is_err() {
            return;
        }
    }
    let Ok(mut client) = acceptor.accept(client).await else { return };
    let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

/// Its length, and 1234 and 5679 in 16 bits each (PostgreSQL's documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
