//! A request and its answer, whatever protocol frames them.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::http::{Method, Request, Response, StatusCode, header};
use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;

use super::schema::{LOGS, METRICS, Schema, TRACES};
use super::{Shared, grpc, http, json, walk};
use crate::telemetry::intake::{Entry, Kind, NotTaken};

pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// What is wrong with a request, or with the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Malformed(String),
    #[error("it has more bytes than a request may have")]
    TooLarge,
    #[error("its encoding is not known")]
    Encoding,
    #[error("it did not come in time")]
    Late,
    #[error("too many requests at a time")]
    Busy,
    #[error("the spool is full")]
    Full,
}

/// What a request is of.
#[derive(Debug, Clone, Copy)]
pub struct Signal {
    pub kind: Kind,
    schema: &'static Schema,
}

impl Signal {
    pub const LOGS: Self = Self { kind: Kind::Logs, schema: &LOGS };
    pub const TRACES: Self = Self { kind: Kind::Traces, schema: &TRACES };
    pub const METRICS: Self = Self { kind: Kind::Metrics, schema: &METRICS };
}

pub async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    // A page in a browser has no business here.
    if request.headers().contains_key(header::ORIGIN) {
        return http::plain(StatusCode::FORBIDDEN);
    }
    if grpc::is_grpc(&request) {
        return grpc::answer(shared, request).await;
    }
    let signal = match request.uri().path() {
        "/v1/logs" => Signal::LOGS,
        "/v1/traces" => Signal::TRACES,
        "/v1/metrics" => Signal::METRICS,
        _ => return http::plain(StatusCode::NOT_FOUND),
    };
    if request.method() != Method::POST {
        return http::plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    http::answer(shared, signal, request).await
}

impl Shared {
    /// The body of a request, whole.
    pub async fn read(&self, body: Incoming) -> Result<Bytes, Refusal> {
        let mut body = body;
        let (mut read, mut passed) = (BytesMut::new(), 0);
        let reading = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Refusal::Malformed("it broke off".to_owned()))?;
                if let Ok(data) = frame.into_data() {
                    passed += data.len();
                    if passed <= self.max_request_bytes {
                        read.extend_from_slice(&data);
                    } else if passed > MOST_PASSED {
                        // Whoever sends that much does not wait for an answer.
                        return Err(Refusal::TooLarge);
                    }
                }
            }
            // What is too large is let pass, so that the sender is there to hear it.
            if passed > self.max_request_bytes { Err(Refusal::TooLarge) } else { Ok(()) }
        };
        tokio::time::timeout(BODY_WITHIN, reading).await.map_err(|_| Refusal::Late)??;
        Ok(read.freeze())
    }

    pub fn unpack(&self, body: &[u8]) -> Result<Bytes, Refusal> {
        let mut out = Vec::new();
        let most = self.max_request_bytes as u64 + 1;
        MultiGzDecoder::new(body)
            .take(most)
            .read_to_end(&mut out)
            .map_err(|_| Refusal::Malformed("not what gzip makes".to_owned()))?;
        if out.len() > self.max_request_bytes { Err(Refusal::TooLarge) } else { Ok(out.into()) }
    }

    /// Redacts a request and puts it into the spool.
    pub fn take(&self, signal: Signal, body: &[u8], is_json: bool) -> Result<(), Refusal> {
        let taken = self.try_take(signal, body, is_json);
        match &taken {
            Ok(()) => {}
            Err(Refusal::Full | Refusal::Busy) => _ = self.received.deferred.fetch_add(1, Ordering::Relaxed),
            Err(_) => _ = self.received.refused.fetch_add(1, Ordering::Relaxed),
        }
        taken
    }

    fn try_take(&self, signal: Signal, body: &[u8], is_json: bool) -> Result<(), Refusal> {
        let converted;
        let body = if is_json {
            converted = json::to_protobuf(signal.schema, body).map_err(Refusal::Malformed)?;
            &converted
        } else {
            body
        };
        let walked = walk::request(signal.schema, body, &*self.redactor)
            .map_err(|error| Refusal::Malformed(error.to_string()))?;
        if walked.records == 0 {
            return Ok(());
        }
        let entry = Entry { kind: signal.kind, records: walked.records, body: &walked.body, checkpoint: None };
        self.intake.append(entry).map_err(|error| match error {
            NotTaken::Full => Refusal::Full,
            NotTaken::TooLarge => Refusal::TooLarge,
        })?;
        let counter = match signal.kind {
            Kind::Logs => &self.received.logs,
            Kind::Traces => &self.received.spans,
            Kind::Metrics => &self.received.metrics,
        };
        counter.fetch_add(u64::from(walked.records), Ordering::Relaxed);
        Ok(())
    }
}

const MOST_PASSED: usize = 32 * 1024 * 1024;
const BODY_WITHIN: Duration = Duration::from_secs(30);
