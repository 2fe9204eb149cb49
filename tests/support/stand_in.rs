//! A stand-in for an HTTP service that cannot be had here: it answers JSON by path, and keeps what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub struct StandIn {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _server: JoinSet<()>,
}

#[derive(Clone)]
pub struct Asked {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
}

impl StandIn {
    /// `answers` is given the path and the body; `None` is a 404.
    pub async fn start(answers: impl Fn(&Asked) -> Option<Value> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::new(answers), asked.clone()));
        Self { address, asked, _server: server }
    }

    /// The requests for `path` so far.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path == path).cloned().collect()
    }
}

async fn serve<F>(listener: TcpListener, answers: Arc<F>, asked: Arc<Mutex<Vec<Asked>>>)
where
    F: Fn(&Asked) -> Option<Value> + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (answers, asked) = (answers.clone(), asked.clone());
        connections.spawn(async move {
            let answer = service_fn(|request| respond(request, answers.as_ref(), &asked));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    answers: &(impl Fn(&Asked) -> Option<Value> + Sync),
    all: &Mutex<Vec<Asked>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let asked = Asked { path: parts.uri.path().to_owned(), headers: parts.headers, body };
    let answer = answers(&asked);
    all.lock().unwrap().push(asked);
    let (status, body) = match answer {
        Some(answer) => (200, answer.to_string()),
        None => (404, r#"{"errors":[]}"#.to_owned()),
    };
    let response = Response::builder().status(status).header("content-type", "application/json");
    Ok(response.body(Full::new(Bytes::from(body))).unwrap())
}
