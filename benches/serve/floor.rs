//! The floor: hyper on a Unix socket with an answer of the same size, and nothing else: no rules, no audit, no metrics.

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

pub fn serve(socket: &Path) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).expect("the socket's path is free");
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(ANSWER))))
            });
            // One client at a time is all that the bench has.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    });
}

const ANSWER: &[u8] =
    b"{\"item\":\"app\",\"version\":1,\"fields\":{\"token\":\"0123456789abcdef0123456789abcdef0123456789abcdef\"}}\n";
