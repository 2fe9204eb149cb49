//! A collector that keeps the log records that it gets, by their uid, and answers what the test says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub struct OtlpSink {
    pub port: u16,
    kept: Arc<Kept>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Kept {
    status: AtomicU16,
    received: Mutex<Received>,
}

/// Body by uid, of all records but those of mcpeg's own audit trail, and how many came, with those that came more than once.
#[derive(Default)]
struct Received {
    records: BTreeMap<String, String>,
    count: usize,
}

impl OtlpSink {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let kept: Arc<Kept> = Arc::default();
        kept.status.store(200, Ordering::SeqCst);
        let mut tasks = JoinSet::new();
        let shared = kept.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let kept = kept.clone();
                        async move { Ok::<_, Infallible>(kept.take(request).await) }
                    });
                    // How a connection ends is not what is tested.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { port, kept, _tasks: tasks }
    }

    /// What requests are answered from now on.
    pub fn answers(&self, status: u16) {
        self.kept.status.store(status, Ordering::SeqCst);
    }

    /// The bodies, each record once.
    pub fn bodies(&self) -> Vec<String> {
        self.kept.received.lock().unwrap().records.values().cloned().collect()
    }
}

impl Kept {
    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let status = self.status.load(Ordering::SeqCst);
        if status == 200 && path == "/v1/logs" {
            let mut received = self.received.lock().unwrap();
            let request = ExportLogsServiceRequest::decode(body).unwrap();
            let scopes = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
            scopes.flat_map(|scope| scope.log_records).for_each(|record| received.keep(&record));
        }
        Response::builder().status(status).body(Full::new(Bytes::new())).unwrap()
    }
}

impl Received {
    fn keep(&mut self, record: &LogRecord) {
        let attribute = |key: &str| record.attributes.iter().find(|pair| pair.key == key);
        if attribute("mcpeg.audit.seq").is_some() {
            return;
        }
        self.count += 1;
        let uid = attribute("log.record.uid").map(|pair| text(pair.value.as_ref()));
        self.records.insert(uid.unwrap_or_else(|| format!("none {}", self.count)), text(record.body.as_ref()));
    }
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}
