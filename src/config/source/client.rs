//! HTTP to the servers of a source: one after the other until one answers, bounded in time and in bytes, with TLS as the options say.
//!
//! A client lives for one fetch or one wait, so that no connection keeps a credential in its buffers, and certificates are read anew.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::{RequestBuilder, Response};
use url::Url;

use super::{Options, SourceError, credential};
use crate::tls::Destination;

/// The servers of one source. The one that answered last is asked first.
pub struct Servers {
    endpoints: Vec<Url>,
    first: AtomicUsize,
}

/// What comes of asking one server.
pub type Asked<'a, T> = BoxFuture<'a, Result<T, SourceError>>;

/// One server, for one fetch or one wait.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    host: Option<HeaderValue>,
    pub headers: HeaderMap,
    timeout: Duration,
}

impl Servers {
    pub fn new(endpoints: Vec<Url>) -> Self {
        Self { endpoints, first: AtomicUsize::new(0) }
    }

    /// Asks one server after the other; what the last one failed with, when all have.
    pub async fn try_each<'a, T>(
        &'a self,
        options: &'a Options,
        ask: impl Fn(Client) -> Asked<'a, T> + Send + Sync,
    ) -> Result<T, SourceError> {
        let count = self.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failure = None;
        for number in (0..count).map(|step| (first + step) % count) {
            let asked = match Client::new(&self.endpoints[number], options) {
                Ok(client) => ask(client).await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(found) => {
                    self.first.store(number, Ordering::Relaxed);
                    return Ok(found);
                }
                // What one of them has to say of the request, all have.
                Err(error @ (SourceError::Empty { .. } | SourceError::Bounds { .. })) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        // There is at least one server.
        Err(failure.unwrap_or_else(|| SourceError::Empty { place: String::new() }))
    }
}

impl Client {
    fn new(endpoint: &Url, options: &Options) -> Result<Self, SourceError> {
        let away = |reason: String| SourceError::Away { place: place_of(endpoint), reason };
        let destination = Destination::new(endpoint, options.server_name.as_deref()).map_err(away)?;
        let config = options.tls.client_config(endpoint.scheme()).map_err(|error| away(error.to_string()))?;
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(options.timeout)
            .tcp_keepalive(Duration::from_secs(15));
        let http = destination.apply(builder).build().map_err(|error| away(words(&error)))?;
        Ok(Self {
            http,
            host: destination.host(),
            base: destination.base,
            headers: HeaderMap::new(),
            timeout: options.timeout,
        })
    }

    pub fn place(&self) -> String {
        place_of(&self.base)
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.finish(self.http.get(self.at(path)))
    }

    pub fn put(&self, path: &str, body: Vec<u8>) -> RequestBuilder {
        self.finish(self.http.put(self.at(path)).body(body))
    }

    pub fn post(&self, path: &str, body: Vec<u8>) -> RequestBuilder {
        self.finish(self.http.post(self.at(path)).header(http::header::CONTENT_TYPE, "application/json").body(body))
    }

    /// A header from the first line of a file.
    pub fn credential(&mut self, name: &'static str, path: &std::path::Path, prefix: &str) -> Result<(), SourceError> {
        let secret = credential(path)?;
        let mut value = zeroize::Zeroizing::new(prefix.as_bytes().to_vec());
        value.extend_from_slice(secret.expose());
        self.headers
            .insert(name, secret_header(&value).map_err(|reason| SourceError::File { path: path.to_owned(), reason })?);
        Ok(())
    }

    /// The answer's head, within `wait` or else the time of one request.
    pub async fn answer(&self, request: RequestBuilder, wait: Option<Duration>) -> Result<Response, SourceError> {
        let away = |reason: String| SourceError::Away { place: self.place(), reason };
        let wait = wait.unwrap_or(self.timeout);
        match tokio::time::timeout(wait, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(away(words(&error))),
            Err(_) => Err(away(format!("no answer within {} s", wait.as_secs_f32()))),
        }
    }

    /// A body of at most `most` bytes; of an answer that is no success, its words.
    pub async fn body(&self, response: Response, most: usize) -> Result<Vec<u8>, SourceError> {
        let status = response.status();
        let read = tokio::time::timeout(
            self.timeout,
            self.read(response, if status.is_success() { most } else { MOST_WORDS }),
        );
        let body = match read.await {
            Ok(read) => read,
            Err(_) => {
                Err(SourceError::Away { place: self.place(), reason: "the answer did not end in time".to_owned() })
            }
        };
        if status.is_success() {
            return body;
        }
        Err(SourceError::Refused {
            place: self.place(),
            status: status.as_u16(),
            words: said(&body.unwrap_or_default()),
        })
    }

    async fn read(&self, response: Response, most: usize) -> Result<Vec<u8>, SourceError> {
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| SourceError::Away { place: self.place(), reason: words(&error) })?;
            if body.len() + piece.len() > most {
                return Err(SourceError::Bounds {
                    place: self.place(),
                    what: format!("more than {most} bytes in an answer"),
                });
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    pub fn unreadable(&self, error: &dyn std::fmt::Display) -> SourceError {
        SourceError::Answer { place: self.place(), reason: error.to_string() }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base.as_str().trim_end_matches('/'))
    }

    fn finish(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.headers(self.headers.clone());
        match &self.host {
            Some(host) => request.header(http::header::HOST, host),
            None => request,
        }
    }
}

/// A header's value that no debug output shows.
pub fn secret_header(value: &[u8]) -> Result<HeaderValue, String> {
    let mut value =
        HeaderValue::from_bytes(value).map_err(|_| "it has characters that a header cannot have".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The causes of an error, without the address, which is said beside it.
pub fn words(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        last = error.to_string();
        cause = error.source();
    }
    last.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// What a server says of a refusal: one line, nothing that it was sent.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let message = json.as_ref().and_then(|json| ["message", "error"].iter().find_map(|key| json[key].as_str()));
    let line: String = message
        .unwrap_or(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    if line.is_empty() { String::new() } else { format!(": {line}") }
}

fn place_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub fn is_missing(response: &Response) -> bool {
    response.status() == StatusCode::NOT_FOUND
}

const MOST_WORDS: usize = 4096;
