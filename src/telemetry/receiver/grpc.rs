//! OTLP/gRPC: one message in, one out, with the status in the trailers (gRPC over HTTP/2). Three methods need no framework.

use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::Shared;
use super::answer::{Body, Refusal, Signal};

pub fn is_grpc<B>(request: &Request<B>) -> bool {
    let media = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media == "application/grpc" || media.starts_with("application/grpc+proto") || media.starts_with("application/grpc;")
}

pub async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let signal = match request.uri().path() {
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => Signal::LOGS,
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => Signal::TRACES,
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => Signal::METRICS,
        _ => return failed(&Status::unimplemented("no such method")),
    };
    match take(shared, signal, request).await {
        Ok(()) => done(),
        Err(refusal) => failed(&status_of(&refusal)),
    }
}

async fn take(shared: &Shared, signal: Signal, request: Request<Incoming>) -> Result<(), Refusal> {
    let encoding = request.headers().get("grpc-encoding").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_gzip = match encoding {
        "" | "identity" => false,
        "gzip" => true,
        _ => return Err(Refusal::Encoding),
    };
    let _turn = shared.requests.try_acquire().map_err(|_| Refusal::Busy)?;
    let body = shared.read(request.into_body()).await?;
    let malformed = || Refusal::Malformed("not one message of gRPC".to_owned());
    let (front, message) = body.split_at_checked(FRONT).ok_or_else(malformed)?;
    let length = u32::from_be_bytes([front[1], front[2], front[3], front[4]]) as usize;
    if length != message.len() {
        return Err(malformed());
    }
    match (front[0], is_gzip) {
        (0, _) => shared.take(signal, message, false),
        (1, true) => shared.take(signal, &shared.unpack(message)?, false),
        _ => Err(malformed()),
    }
}

fn status_of(refusal: &Refusal) -> Status {
    let message = refusal.to_string();
    let later = || ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    match refusal {
        Refusal::Malformed(_) | Refusal::TooLarge => Status::invalid_argument(message),
        Refusal::Encoding => Status::unimplemented(message),
        Refusal::Late => Status::deadline_exceeded(message),
        Refusal::Busy => Status::with_error_details(Code::ResourceExhausted, message, later()),
        Refusal::Full => Status::with_error_details(Code::Unavailable, message, later()),
    }
}

/// An empty message: nothing was rejected.
fn done() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(&[0; FRONT])).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

fn failed(status: &Status) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    // It fails only for a message that no header can hold; ours are plain.
    let _ = status.add_header(response.headers_mut());
    response
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// A flag and the message's length.
const FRONT: usize = 5;
const RETRY_AFTER: Duration = Duration::from_secs(2);
