//! A collector on a loopback port that decodes what it gets and answers what the test says, by HTTP or by gRPC.

use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// One request.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: Instant,
    pub accepted: bool,
}

impl Received {
    /// The `mcpeg.audit.seq` of each log record.
    pub fn seqs(&self) -> Vec<i64> {
        use opentelemetry_proto::tonic::common::v1::any_value::Value;
        let request = ExportLogsServiceRequest::decode(self.body.clone()).unwrap();
        let records = request.resource_logs.into_iter().flat_map(|r| r.scope_logs).flat_map(|s| s.log_records);
        let seq = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| match pair.value.as_ref()?.value.as_ref()? {
            Value::IntValue(seq) if pair.key == "mcpeg.audit.seq" => Some(*seq),
            _ => None,
        };
        records.map(|record| record.attributes.iter().find_map(seq).unwrap()).collect()
    }
}

impl Received {
    /// An attribute of each log record that has it and is a text.
    pub fn texts(&self, key: &str) -> Vec<String> {
        use opentelemetry_proto::tonic::common::v1::any_value::Value;
        let request = ExportLogsServiceRequest::decode(self.body.clone()).unwrap();
        let records = request.resource_logs.into_iter().flat_map(|r| r.scope_logs).flat_map(|s| s.log_records);
        let attributes = records.flat_map(|record| record.attributes).filter(|pair| pair.key == key);
        attributes
            .filter_map(|pair| match pair.value?.value? {
                Value::StringValue(text) => Some(text),
                _ => None,
            })
            .collect()
    }
}

/// How to answer: an HTTP status with headers, or a gRPC code with a message.
#[derive(Debug, Clone)]
pub struct Reply {
    pub code: u16,
    pub retry_after: Option<&'static str>,
    pub message: &'static str,
    pub body: Bytes,
}

impl Reply {
    pub fn code(code: u16) -> Self {
        Self { code, retry_after: None, message: "", body: Bytes::new() }
    }

    /// The client waits in vain.
    pub fn never() -> Self {
        Self::code(NEVER)
    }

    /// The request is taken, and the client waits in vain.
    pub fn lost() -> Self {
        Self::code(LOST)
    }

    /// The connection is reset in place of an answer.
    pub fn reset() -> Self {
        Self::code(RESET)
    }
}

const NEVER: u16 = 999;
const LOST: u16 = 998;
const RESET: u16 = 997;

pub type Script = Box<dyn FnMut(&Received) -> Reply + Send>;

#[derive(Clone)]
pub struct Sink {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    grpc: bool,
    received: Mutex<Vec<Received>>,
    script: Mutex<Script>,
    open: std::sync::atomic::AtomicUsize,
    /// The serving task: ends with the last clone of the sink.
    tasks: Mutex<JoinSet<()>>,
}

impl Sink {
    pub async fn start(
        grpc: bool,
        address: Option<SocketAddr>,
        script: impl FnMut(&Received) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            grpc,
            received: Mutex::default(),
            script: Mutex::new(Box::new(script)),
            open: 0.into(),
            tasks: Mutex::default(),
        });
        let served = Arc::downgrade(&state);
        state.tasks.lock().unwrap().spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Some(state) = served.upgrade() else { return };
                connections.spawn(serve(stream, state));
            }
        });
        Self { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn received(&self, path_end: &str) -> Vec<Received> {
        self.state.received.lock().unwrap().iter().filter(|request| request.path.ends_with(path_end)).cloned().collect()
    }

    /// The numbers of the log records that were accepted, in order of arrival.
    pub fn delivered(&self) -> Vec<i64> {
        let path = if self.state.grpc { "LogsService/Export" } else { "/v1/logs" };
        self.received(path).iter().filter(|request| request.accepted).flat_map(Received::seqs).collect()
    }

    pub fn open_connections(&self) -> usize {
        self.state.open.load(std::sync::atomic::Ordering::SeqCst)
    }
}

async fn serve(stream: tokio::net::TcpStream, state: Arc<State>) {
    use std::sync::atomic::Ordering;
    state.open.fetch_add(1, Ordering::SeqCst);
    let weak = Arc::downgrade(&state);
    let grpc = state.grpc;
    drop(state);
    let handler_state = weak.clone();
    let broken = Arc::new(tokio::sync::Notify::new());
    let breaks = broken.clone();
    let service = service_fn(move |request| {
        let (state, breaks) = (handler_state.clone(), breaks.clone());
        async move {
            let state = state.upgrade().unwrap();
            Ok::<_, Infallible>(answer(&state, request, &breaks).await)
        }
    });
    let socket = rustix::io::dup(&stream).unwrap();
    let served = async {
        // How a connection ends is not what is tested here.
        if grpc {
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        } else {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    };
    tokio::select! {
        () = served => {}
        // With this, closing it resets the connection.
        () = broken.notified() => rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap(),
    }
    drop(socket);
    if let Some(state) = weak.upgrade() {
        state.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(
    state: &State,
    request: Request<Incoming>,
    breaks: &tokio::sync::Notify,
) -> Response<BoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    let mut body = body.collect().await.unwrap().to_bytes();
    let zipped = !state.grpc || body.split_to(5)[0] == 1;
    let encoding = parts.headers.get(if state.grpc { "grpc-encoding" } else { "content-encoding" });
    match encoding.map(HeaderValue::as_bytes).filter(|_| zipped) {
        None => {}
        Some(b"gzip") => {
            let mut plain = Vec::new();
            GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
            body = plain.into();
        }
        Some(b"zstd") => body = zstd::decode_all(&body[..]).unwrap().into(),
        other => panic!("{other:?}"),
    }
    let mut received = Received {
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
        at: Instant::now(),
        accepted: false,
    };
    let reply = state.script.lock().unwrap()(&received);
    received.accepted = reply.code == LOST || reply.code == if state.grpc { 0 } else { 200 };
    state.received.lock().unwrap().push(received);
    if reply.code == RESET {
        breaks.notify_one();
    }
    if [NEVER, LOST, RESET].contains(&reply.code) {
        std::future::pending::<()>().await;
    }
    if state.grpc { grpc_response(&reply) } else { http_response(reply) }
}

fn http_response(reply: Reply) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::builder().status(reply.code);
    if let Some(value) = reply.retry_after {
        response = response.header("retry-after", value);
    }
    response.body(Full::new(reply.body).boxed()).unwrap()
}

fn grpc_response(reply: &Reply) -> Response<BoxBody<Bytes, Infallible>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", reply.code.into());
    trailers.insert("grpc-message", http::HeaderValue::from_static(reply.message));
    let mut frame = BytesMut::new();
    if reply.code == 0 {
        frame.put_u8(0);
        frame.put_u32(u32::try_from(reply.body.len()).unwrap());
        frame.put_slice(&reply.body);
    }
    let body = Full::new(frame.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
}

/// Waits for what must come to pass within a few seconds.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(8), "it never came to pass: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
