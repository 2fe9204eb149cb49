//! Asks a running mcpeg on its admin socket: one request, one answer, bounded in size and time.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{} does not exist: no mcpeg is running here, or its admin socket is elsewhere", path.display())]
    NoSocket { path: PathBuf },
    #[error("no mcpeg is listening at {} (connection refused)", path.display())]
    Refused { path: PathBuf },
    #[error("{}: permission denied: ask as the user that mcpeg runs as", path.display())]
    Denied { path: PathBuf },
    #[error("{}: connecting failed: {cause}", path.display())]
    Connect { path: PathBuf, cause: io::Error },
    #[error("{}: mcpeg did not answer within {seconds} s", path.display())]
    Late { path: PathBuf, seconds: u64 },
    #[error("{}: the answer is larger than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: usize },
    #[error("{}: the conversation broke off: {cause}", path.display())]
    Broken { path: PathBuf, cause: hyper::Error },
    #[error("{request} is not a path that can be asked for")]
    BadPath { request: String },
}

/// `path` begins with a slash and may have a query.
pub async fn get(socket: &Path, path: &str) -> Result<Response, ClientError> {
    within(socket, ANSWER_WITHIN, ask(socket, Method::GET, path)).await
}

/// A POST without a body. What it starts may take its time.
pub async fn post(socket: &Path, path: &str) -> Result<Response, ClientError> {
    within(socket, WORK_WITHIN, ask(socket, Method::POST, path)).await
}

async fn within<T>(
    socket: &Path,
    limit: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let late = |_| ClientError::Late { path: socket.to_owned(), seconds: limit.as_secs() };
    timeout(limit, work).await.map_err(late)?
}

async fn ask(socket: &Path, method: Method, path: &str) -> Result<Response, ClientError> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json, text/plain")
        .body(Empty::<Bytes>::new())
        .map_err(|_| ClientError::BadPath { request: path.to_owned() })?;
    let broken = |cause| ClientError::Broken { path: socket.to_owned(), cause };
    let stream = UnixStream::connect(socket).await.map_err(|cause| unconnected(socket, cause))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| unread(socket, error))?.to_bytes().into();
        Ok(Response { status, body })
    };
    // The connection only moves while it is polled; when it ends first, the exchange knows why.
    match select(Box::pin(exchange), Box::pin(connection)).await {
        Either::Left((result, _)) => result,
        Either::Right((_, exchange)) => exchange.await,
    }
}

fn unconnected(socket: &Path, cause: io::Error) -> ClientError {
    let path = socket.to_owned();
    match cause.kind() {
        io::ErrorKind::NotFound => ClientError::NoSocket { path },
        io::ErrorKind::ConnectionRefused => ClientError::Refused { path },
        io::ErrorKind::PermissionDenied => ClientError::Denied { path },
        _ => ClientError::Connect { path, cause },
    }
}

fn unread(socket: &Path, error: Box<dyn std::error::Error + Send + Sync>) -> ClientError {
    let path = socket.to_owned();
    match error.downcast::<hyper::Error>() {
        Ok(cause) => ClientError::Broken { path, cause: *cause },
        Err(error) if error.is::<LengthLimitError>() => ClientError::TooLarge { path, limit: MAX_ANSWER_BYTES },
        Err(error) => ClientError::Connect { path, cause: io::Error::other(error) },
    }
}

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Somewhat longer than the server lets a request wait for a reload.
const WORK_WITHIN: Duration = Duration::from_secs(65);
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
