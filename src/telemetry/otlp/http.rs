//! OTLP over HTTP with protobuf bodies: one client for the own log sender and for the SDK's exporters.
//!
//! Headers are read from the secrets for each request and gone after it. Neither proxies nor redirects are followed: a credential goes
//! to the configured endpoint and nowhere else. An answer's body is read up to `MAX_ANSWER_BYTES`.

use std::fmt;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use opentelemetry_http::{HttpClient, HttpError};
use url::Url;

use crate::telemetry::error::TelemetryError;
use crate::telemetry::settings::Compression;

use super::answer::{self, Answer, Trouble};
use super::backoff::Pause;
use super::plan::Plan;

pub struct HttpWire {
    plan: Arc<Plan>,
    client: reqwest::Client,
    /// What the last request of an SDK exporter came to, since the SDK passes on only a text.
    last: Mutex<Answer>,
}

impl HttpWire {
    pub fn new(plan: Arc<Plan>) -> Result<Self, TelemetryError> {
        let timeout = plan.settings.timeout;
        let client = plan
            .address
            .apply(reqwest::Client::builder())
            .tls_backend_preconfigured(plan.tls())
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .user_agent(USER_AGENT)
            .timeout(timeout)
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(IDLE)
            .build()
            .map_err(|error| TelemetryError::Endpoint { endpoint: plan.shown(), reason: error.to_string() })?;
        Ok(Self { plan, client, last: Mutex::new(Answer::Delivered) })
    }

    /// Sends one request body. The answer's status decides; the body of a success is handed out.
    pub async fn post(&self, url: Url, body: Bytes) -> (Answer, Bytes) {
        match self.exchange(url, body, HeaderMap::new()).await {
            Ok(response) => (answer::of_http(response.status(), response.headers()), response.into_body()),
            Err(trouble) => (Answer::Failed(trouble), Bytes::new()),
        }
    }

    /// What the last request of an SDK exporter came to.
    pub fn last_answer(&self) -> Answer {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn exchange(&self, url: Url, body: Bytes, mut headers: HeaderMap) -> Result<Response<Bytes>, Trouble> {
        let resolved =
            self.plan.headers().map_err(|problem| Trouble::new(format!("is not asked: {problem}"), Pause::Absent))?;
        headers.extend(resolved.headers.into_iter().map(|(name, value)| (Some(name), value)));
        if let Some(host) = self.plan.host() {
            headers.insert(header::HOST, host);
        }
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/x-protobuf"));
        let body = match self.plan.settings.compression {
            Compression::Gzip if !headers.contains_key(header::CONTENT_ENCODING) => {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                gzip(&body)
            }
            Compression::Zstd if !headers.contains_key(header::CONTENT_ENCODING) => match zstd(&body) {
                Ok(compressed) => {
                    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
                    compressed
                }
                Err(_) => body,
            },
            _ => body,
        };
        let timeout = self.plan.settings.timeout;
        let failed = |error: reqwest::Error| answer::of_http_failure(&error.without_url(), timeout);
        let mut response = self.client.post(url).headers(headers).body(body).send().await.map_err(failed)?;
        let mut content = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if content.len() + chunk.len() > MAX_ANSWER_BYTES {
                break;
            }
            content.extend_from_slice(&chunk);
        }
        let mut whole = Response::new(content.freeze());
        *whole.status_mut() = response.status();
        *whole.headers_mut() = std::mem::take(response.headers_mut());
        Ok(whole)
    }

    async fn exchange_for_sdk(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string())?;
        let result = self.exchange(url, body, parts.headers).await;
        let answer = match &result {
            Ok(response) => answer::of_http(response.status(), response.headers()),
            Err(trouble) => Answer::Failed(trouble.clone()),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = answer;
        result.map_err(|trouble| format!("the collector at {} {}", self.plan.shown(), trouble.phrase).into())
    }
}

/// The trait's one method is written as its `async_trait` attribute would write it.
impl HttpClient for HttpWire {
    fn send_bytes<'me, 'out>(
        &'me self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'out>>
    where
        'me: 'out,
        Self: 'out,
    {
        Box::pin(self.exchange_for_sdk(request))
    }
}

impl fmt::Debug for HttpWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpWire({})", self.plan.shown())
    }
}

fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), flate2::Compression::fast());
    // Writing into a vector cannot fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default().into()
}

fn zstd(body: &[u8]) -> std::io::Result<Bytes> {
    // Level 0 is the library's own default.
    zstd::encode_all(body, 0).map(Bytes::from)
}

const USER_AGENT: &str = concat!("mcpeg/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: usize = 256 * 1024;
