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
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
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

/// What came in.
#[derive(Default)]
pub struct Received {
    /// Body by uid, of all records but those of mcpeg's own audit trail.
    pub records: BTreeMap<String, String>,
    pub attributes: BTreeMap<String, BTreeMap<String, String>>,
    /// Records with those that came more than once.
    pub count: usize,
    /// Every byte of every request.
    pub wire: Vec<u8>,
    pub paths: Vec<String>,
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

    pub fn look<R>(&self, look: impl FnOnce(&Received) -> R) -> R {
        look(&self.kept.received.lock().unwrap())
    }

    /// The bodies, each record once.
    pub fn bodies(&self) -> Vec<String> {
        self.look(|received| received.records.values().cloned().collect())
    }
}

impl Kept {
    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let status = self.status.load(Ordering::SeqCst);
        let mut received = self.received.lock().unwrap();
        received.wire.extend_from_slice(&body);
        received.paths.push(path.clone());
        if status == 200 && path == "/v1/logs" {
            let request = ExportLogsServiceRequest::decode(body).unwrap();
            for logs in request.resource_logs {
                let resource = logs.resource.map(|resource| resource.attributes).unwrap_or_default();
                for record in logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                    received.keep(record, &resource);
                }
            }
        }
        Response::builder().status(status).body(Full::new(Bytes::new())).unwrap()
    }
}

impl Received {
    fn keep(&mut self, record: LogRecord, resource: &[KeyValue]) {
        let mut attributes: BTreeMap<String, String> = resource
            .iter()
            .chain(&record.attributes)
            .map(|pair| (pair.key.clone(), text(pair.value.as_ref())))
            .collect();
        attributes.insert("severity".to_owned(), record.severity_text.clone());
        if attributes.contains_key("mcpeg.audit.seq") {
            return;
        }
        self.count += 1;
        let uid = attributes.get("log.record.uid").cloned().unwrap_or_else(|| format!("none {}", self.count));
        self.records.insert(uid.clone(), text(record.body.as_ref()));
        self.attributes.insert(uid, attributes);
    }
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}
