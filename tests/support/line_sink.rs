//! A collector for more lines than anybody wants to keep: it notes the number that a line ends its words with, and looks for what must not come.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use memchr::memmem;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub struct LineSink {
    pub port: u16,
    kept: Arc<Kept>,
    _tasks: JoinSet<()>,
}

struct Kept {
    status: AtomicU16,
    needles: Vec<&'static str>,
    seen: Mutex<Seen>,
}

/// What came in.
#[derive(Debug, Default)]
pub struct Seen {
    /// Whether `number N` came, by N.
    numbers: Vec<bool>,
    pub distinct: usize,
    /// With those that came more than once.
    pub records: usize,
    /// What must not come and did, in a request that was taken or one that was not.
    pub found: BTreeSet<&'static str>,
    /// Places where something was taken out.
    pub redacted: usize,
    pub refused_requests: usize,
}

impl LineSink {
    pub async fn start(needles: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let kept = Arc::new(Kept { status: 200.into(), needles: needles.to_vec(), seen: Mutex::default() });
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

    pub fn look<R>(&self, look: impl FnOnce(&Seen) -> R) -> R {
        look(&self.kept.seen.lock().unwrap())
    }
}

impl Kept {
    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let is_logs = request.uri().path() == "/v1/logs";
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let status = self.status.load(Ordering::SeqCst);
        let mut seen = self.seen.lock().unwrap();
        seen.found.extend(self.needles.iter().filter(|needle| memmem::find(&body, needle.as_bytes()).is_some()));
        if status != 200 {
            seen.refused_requests += 1;
        } else if is_logs {
            seen.redacted += memmem::find_iter(&body, b"[REDACTED:").count();
            seen.note(ExportLogsServiceRequest::decode(body).unwrap());
        }
        Response::builder().status(status).body(Full::new(Bytes::new())).unwrap()
    }
}

impl Seen {
    fn note(&mut self, request: ExportLogsServiceRequest) {
        let scopes = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
        for record in scopes.flat_map(|scope| scope.log_records) {
            let Some(Value::StringValue(text)) = record.body.and_then(|body| body.value) else { continue };
            let Some((_, rest)) = text.rsplit_once("number ") else { continue };
            let digits = rest.split(|byte: char| !byte.is_ascii_digit()).next().unwrap_or_default();
            let Ok(number) = digits.parse::<usize>() else { continue };
            self.records += 1;
            if self.numbers.len() <= number {
                self.numbers.resize(number + 1, false);
            }
            self.distinct += usize::from(!std::mem::replace(&mut self.numbers[number], true));
        }
    }

    pub fn has(&self, number: usize) -> bool {
        self.numbers.get(number).copied().unwrap_or(false)
    }

    /// The first of the numbers below `end` that never came.
    pub fn first_missing(&self, end: usize) -> Option<usize> {
        (0..end).find(|number| !self.has(*number))
    }
}
