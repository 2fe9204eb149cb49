//! OTLP/HTTP: protobuf and JSON bodies, and answers in the form of the request (OTLP specification, "OTLP/HTTP").

use ::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prost::Message;
use tonic_types::Status;

use super::Shared;
use super::answer::{Body, Refusal, Signal};

pub async fn answer(shared: &Shared, signal: Signal, request: Request<Incoming>) -> Response<Body> {
    let value = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = value(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = match media.as_str() {
        "application/x-protobuf" => false,
        "application/json" => true,
        _ => return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE),
    };
    let encoding = value(header::CONTENT_ENCODING).to_ascii_lowercase();
    match take(shared, signal, request, is_json, &encoding).await {
        // Nothing of it was rejected, so there is no partial success to tell of.
        Ok(()) => reply(StatusCode::OK, is_json, if is_json { Bytes::from_static(b"{}") } else { Bytes::new() }),
        Err(refusal) => refuse(&refusal, is_json),
    }
}

async fn take(
    shared: &Shared,
    signal: Signal,
    request: Request<Incoming>,
    is_json: bool,
    encoding: &str,
) -> Result<(), Refusal> {
    let _turn = shared.requests.try_acquire().map_err(|_| Refusal::Busy)?;
    let body = shared.read(request.into_body()).await?;
    let body = match encoding {
        "" | "identity" => body,
        "gzip" => shared.unpack(&body)?,
        _ => return Err(Refusal::Encoding),
    };
    shared.take(signal, &body, is_json)
}

fn refuse(refusal: &Refusal, is_json: bool) -> Response<Body> {
    let (status, code) = match refusal {
        Refusal::Malformed(_) => (StatusCode::BAD_REQUEST, tonic::Code::InvalidArgument),
        Refusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, tonic::Code::InvalidArgument),
        Refusal::Encoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, tonic::Code::InvalidArgument),
        Refusal::Late => (StatusCode::REQUEST_TIMEOUT, tonic::Code::DeadlineExceeded),
        Refusal::Busy => (StatusCode::TOO_MANY_REQUESTS, tonic::Code::ResourceExhausted),
        Refusal::Full => (StatusCode::SERVICE_UNAVAILABLE, tonic::Code::Unavailable),
    };
    let (code, message) = (code as i32, refusal.to_string());
    let body = if is_json {
        serde_json::json!({ "code": code, "message": message }).to_string().into()
    } else {
        Status { code, message, details: Vec::new() }.encode_to_vec().into()
    };
    let mut response = reply(status, is_json, body);
    if matches!(refusal, Refusal::Busy | Refusal::Full) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

fn reply(status: StatusCode, is_json: bool, body: Bytes) -> Response<Body> {
    let media = if is_json { "application/json" } else { "application/x-protobuf" };
    let mut response = Response::new(Full::new(body).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

pub fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = status;
    response
}

/// Seconds.
const RETRY_AFTER: &str = "2";
