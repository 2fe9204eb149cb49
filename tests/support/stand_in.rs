//! A stand-in for an HTTP service that cannot be had here: it answers JSON by path, and keeps what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Instant;

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
    /// What is not JSON is a string.
    pub body: Value,
    pub at: Instant,
}

/// An answer that is not just JSON.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Reply {
    pub fn new(status: u16, body: impl ToString) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string() }
    }
}

impl StandIn {
    /// `answers` is given the path and the body; `None` is a 404.
    pub async fn start(answers: impl Fn(&Asked) -> Option<Value> + Send + Sync + 'static) -> Self {
        Self::replying(move |asked| match answers(asked) {
            Some(answer) => Reply::new(200, answer),
            None => Reply::new(404, r#"{"errors":[]}"#),
        })
        .await
    }

    pub async fn replying(answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::replying_at(0, answers).await
    }

    /// On a port of its own choice, or on one that it had before.
    pub async fn replying_at(port: u16, answers: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
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
    F: Fn(&Asked) -> Reply + Send + Sync + 'static,
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
    answers: &(impl Fn(&Asked) -> Reply + Sync),
    all: &Mutex<Vec<Asked>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
    let asked = Asked { path: parts.uri.path().to_owned(), headers: parts.headers, body, at: Instant::now() };
    let reply = answers(&asked);
    all.lock().unwrap().push(asked);
    let mut response = Response::builder().status(reply.status).header("content-type", "application/json");
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(Bytes::from(reply.body))).unwrap())
}
