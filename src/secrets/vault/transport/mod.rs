//! Requests to one server, bounded in number, time and size; and every way that they fail, in words.
//!
//! Login, lookup and renewal go through vaultrs, over this module's own HTTP client; reads are made here, because vaultrs gives no
//! bound on a body and drops the lease. The HTTP client lives for half a second and then makes way for a new one: an HTTP/1.1
//! connection keeps its read buffer, with old answers in it, for as long as it is open.
//! Invariants: no redirect is followed and no proxy used; a token is in plain memory only while a request is under way.

mod failure;
mod pace;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::redirect::Policy;
use tokio::sync::Semaphore;
use url::Url;
use vaultrs::api::EndpointMiddleware;
use vaultrs::client::{VaultClient, VaultClientSettings};
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::tls::{Destination, Trust};

use super::super::schedule::chance;
use super::super::settings::VaultSettings;
use super::super::source::{FailureKind, FetchError};
use super::auth;
use pace::Pace;

pub(super) use failure::Request;

pub(super) struct Transport {
    destination: Destination,
    /// Scheme, host and port, for messages.
    address: String,
    namespace: Option<String>,
    timeout: Duration,
    /// Of the user, sent with every request.
    headers: Vec<(HeaderName, Secret)>,
    trust: Trust,
    client: Mutex<Option<(reqwest::Client, Instant)>>,
    /// Bounds the requests under way, and so the connections.
    permits: Semaphore,
    pace: Pace,
    throttled: Mutex<Option<Instant>>,
}

/// What is asked for: a method, an API path without `/v1/`, and perhaps a body of JSON, which holds no secret.
pub(super) struct Ask<'a> {
    method: Method,
    path: &'a str,
    body: Option<String>,
}

impl<'a> Ask<'a> {
    pub fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, body: None }
    }

    pub fn list(path: &'a str) -> Self {
        // Letters alone always make a method.
        Self { method: Method::from_bytes(b"LIST").unwrap_or(Method::GET), path, body: None }
    }

    pub fn put(path: &'a str, body: String) -> Self {
        Self { method: Method::PUT, path, body: Some(body) }
    }

    pub fn path(&self) -> &'a str {
        self.path
    }

    pub fn again(&self) -> Self {
        Self { method: self.method.clone(), path: self.path, body: self.body.clone() }
    }
}

impl Transport {
    pub fn build(settings: &VaultSettings) -> Result<Self, String> {
        let address = settings.address.origin().ascii_serialization();
        let trust = Trust::build(&address, settings.address.scheme(), settings.tls.clone())
            .map_err(|error| error.to_string())?;
        let headers = settings.headers.iter().map(|(name, text)| Ok((name.clone(), auth::literal(text)?)));
        let transport = Self {
            destination: Destination::new(&settings.address, settings.server_name.as_deref())?,
            address,
            namespace: settings.namespace.clone(),
            timeout: settings.timeout,
            headers: headers.collect::<Result<_, String>>()?,
            trust,
            client: Mutex::new(None),
            permits: Semaphore::new(REQUESTS_AT_ONCE),
            pace: Pace::new(settings.agents),
            throttled: Mutex::new(None),
        };
        transport.new_client().map_err(|reason| format!("setting up the HTTP client: {reason}"))?;
        Ok(transport)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Why files of `tls` that changed are not in use.
    pub fn trouble(&self) -> Option<String> {
        self.trust.trouble()
    }

    /// Never ends: follows the files of `tls`. What was made of the old ones is gone at once.
    pub async fn tend(&self) {
        if !self.trust.changes() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(CLIENT_LIFE).await;
            if self.trust.follow() {
                *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
    }

    /// One request with the token; the body, if the server answered with success.
    pub async fn ask(&self, ask: Ask<'_>, token: &Secret) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        self.send(Request::Read(ask.path), ask, token).await
    }

    /// Gives a wrapping token for what is wrapped in it, which works once (developer.hashicorp.com/vault/docs/concepts/response-wrapping).
    pub async fn unwrap(&self, what: &'static str, token: &Secret) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let ask = Ask { method: Method::POST, path: "sys/wrapping/unwrap", body: None };
        self.send(Request::Login(what), ask, token).await
    }

    /// Asks for a WebSocket at `path`, which is answered with 101.
    pub async fn subscribe(&self, path: &str, key: &str, token: &Secret) -> Result<reqwest::Response, FetchError> {
        self.not_throttled()?;
        let header = token_header(token)?;
        let _permit = self.permit(path).await;
        let mut url = self.url(path)?;
        url.set_query(Some("json=true"));
        let mut asked = self.client(path)?.get(url).header("X-Vault-Token", header);
        for (name, value) in UPGRADE {
            asked = asked.header(name, value);
        }
        if let Some(namespace) = &self.namespace {
            asked = asked.header("X-Vault-Namespace", namespace);
        }
        let asked = asked.header("Sec-WebSocket-Key", key);
        let request = Request::Read(path);
        let mut response = asked.send().await.map_err(|error| self.transport_failure(request, &error))?;
        let status = response.status().as_u16();
        if status == 101 {
            return Ok(response);
        }
        let retry_after = response.headers().get(http::header::RETRY_AFTER).cloned();
        let body = self.body(request, path, &mut response).await?;
        tokio::task::yield_now().await;
        if status == 429 {
            self.throttle(retry_after.as_ref());
        }
        Err(self.status_failure(request, status.max(400), &failure::errors_in(&body), retry_after.as_ref()))
    }

    async fn send(&self, request: Request<'_>, ask: Ask<'_>, token: &Secret) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let path = ask.path;
        self.not_throttled()?;
        let header = token_header(token)?;
        let _permit = self.permit(path).await;
        let mut url = self.url(path)?;
        // Without the slash at the end the server answers with a redirect.
        if ask.method.as_str() == "LIST"
            && let Ok(mut segments) = url.path_segments_mut()
        {
            segments.push("");
        }
        let mut asked = self.client(path)?.request(ask.method, url).header("X-Vault-Token", header);
        if let Some(body) = ask.body {
            asked = asked.header(http::header::CONTENT_TYPE, "application/json").body(body);
        }
        if let Some(namespace) = &self.namespace {
            asked = asked.header("X-Vault-Namespace", namespace);
        }
        let asked = asked.header("X-Vault-Request", "true");
        let mut response = asked.send().await.map_err(|error| self.transport_failure(request, &error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(http::header::RETRY_AFTER).cloned();
        let body = self.body(request, path, &mut response).await?;
        // The connection goes back to the pool before the next request may look for one there.
        tokio::task::yield_now().await;
        if status == 200 || status == 204 {
            return Ok(body);
        }
        if status == 429 {
            self.throttle(retry_after.as_ref());
        }
        Err(self.status_failure(request, status, &failure::errors_in(&body), retry_after.as_ref()))
    }

    /// After an answer that asked to wait nothing is sent until then.
    fn not_throttled(&self) -> Result<(), FetchError> {
        let until = *self.throttled.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
        if left.is_zero() {
            return Ok(());
        }
        let seconds = left.as_secs_f64().ceil();
        let message =
            format!("the server at {} has had too many requests and asked to wait {seconds} s more", self.address);
        Err(FetchError::new(FailureKind::Throttled, message).after(Some(left)))
    }

    fn throttle(&self, retry_after: Option<&HeaderValue>) {
        let until = failure::asked_wait(retry_after).map(|wait| Instant::now() + wait);
        *self.throttled.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Asks the endpoints that need no token whether the server would serve: it is there, unsealed, and active or a standby that knows who is
    /// (developer.hashicorp.com/vault/api-docs/system/health, .../leader). They cost the server no login, no storage and no audit record.
    pub async fn probe(&self) -> Result<(), FetchError> {
        let (status, body) = self.open(HEALTH).await?;
        match status {
            501 => Err(self.status_failure(Request::Probe, 503, &["sealed".to_owned()], None)),
            503 if failure::is_sealed(&body) => {
                Err(self.status_failure(Request::Probe, 503, &["sealed".to_owned()], None))
            }
            // A standby passes on what it is asked, if there is an active node.
            429 => match self.open(LEADER).await? {
                (200, body) if failure::has_leader(&body) => Ok(()),
                _ => {
                    Err(self.status_failure(Request::Probe, 500, &["no active node was elected yet".to_owned()], None))
                }
            },
            500.. => Err(self.status_failure(Request::Probe, status, &[], None)),
            _ => Ok(()),
        }
    }

    /// The server was found well after an outage.
    pub fn spare(&self) {
        self.pace.begin();
    }

    /// A question for which nobody logs in.
    async fn open(&self, path: &'static str) -> Result<(u16, Zeroizing<Vec<u8>>), FetchError> {
        let request = self.client(path)?.get(self.url(path)?).timeout(self.timeout.min(PROBE_TIMEOUT));
        let mut response = request.send().await.map_err(|error| self.transport_failure(Request::Probe, &error))?;
        let body = self.body(Request::Probe, path, &mut response).await?;
        Ok((response.status().as_u16(), body))
    }

    /// Runs one call of vaultrs with a client that carries `token` and is gone afterwards.
    pub async fn call<T, F>(&self, request: Request<'_>, token: Option<&Secret>, call: F) -> Result<T, FetchError>
    where
        F: AsyncFnOnce(&VaultClient) -> Result<T, vaultrs::error::ClientError>,
    {
        let token = match token.map(Secret::expose_str) {
            None => "",
            Some(Some(token)) if HeaderValue::from_str(token).is_ok() => token,
            Some(_) => {
                let message = "the token has characters that a header must not have";
                return Err(FetchError::new(FailureKind::Login, message));
            }
        };
        self.not_throttled()?;
        let client = self.vault_client(request.what(), token)?;
        let _permit = self.permit(request.what()).await;
        call(&client).await.map_err(|error| self.vaultrs_failure(request, &error))
    }

    /// Every field is set here: the builder would take `VAULT_SKIP_VERIFY`, `VAULT_TOKEN` and more from the environment.
    fn vault_client(&self, what: &str, token: &str) -> Result<VaultClient, FetchError> {
        Ok(VaultClient {
            http: rustify::clients::reqwest::Client::new(self.destination.base.as_str(), self.client(what)?),
            middle: EndpointMiddleware {
                token: token.to_owned(),
                version: "v1".to_owned(),
                wrap: None,
                namespace: self.namespace.clone(),
            },
            settings: VaultClientSettings {
                address: self.destination.base.clone(),
                ca_certs: Vec::new(),
                identity: None,
                timeout: Some(self.timeout),
                token: String::new(),
                verify: true,
                version: 1,
                wrapping: false,
                namespace: self.namespace.clone(),
                proxy: None,
            },
        })
    }

    async fn permit(&self, what: &str) -> Option<tokio::sync::SemaphorePermit<'_>> {
        self.pace.turn(what, chance()).await;
        // The semaphore is never closed, so there is always a permit in the end.
        self.permits.acquire().await.ok()
    }

    fn url(&self, path: &str) -> Result<Url, FetchError> {
        let mut url = self.destination.base.clone();
        url.path_segments_mut()
            .map_err(|()| FetchError::new(FailureKind::Malformed, format!("{} cannot have a path", self.address)))?
            .pop_if_empty()
            .push("v1")
            .extend(path.split('/').filter(|segment| !segment.is_empty()));
        Ok(url)
    }

    /// Reads a body of at most `LARGEST` bytes.
    async fn body(
        &self,
        request: Request<'_>,
        path: &str,
        response: &mut reqwest::Response,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let announced = response.content_length().unwrap_or(0).min(LARGEST as u64);
        let mut body = Zeroizing::new(Vec::with_capacity(announced as usize));
        loop {
            let chunk = response.chunk().await.map_err(|error| self.transport_failure(request, &error))?;
            let Some(chunk) = chunk else { return Ok(body) };
            if body.len() + chunk.len() > LARGEST {
                let message = format!("{} answered for {path} with more than {LARGEST} bytes", self.address);
                return Err(FetchError::new(FailureKind::Malformed, message));
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// The HTTP client of this half second.
    fn client(&self, what: &str) -> Result<reqwest::Client, FetchError> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((client, since)) = &*slot
            && since.elapsed() < CLIENT_LIFE
        {
            return Ok(client.clone());
        }
        let client = self.new_client().map_err(|reason| {
            FetchError::new(FailureKind::Unreachable, format!("{what}: setting up the HTTP client: {reason}"))
        })?;
        *slot = Some((client.clone(), Instant::now()));
        Ok(client)
    }

    fn new_client(&self) -> Result<reqwest::Client, String> {
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(self.trust.config())
            .default_headers(self.own_headers()?)
            .http1_only()
            .redirect(Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(self.timeout.min(CONNECT_TIMEOUT))
            .timeout(self.timeout)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(REQUESTS_AT_ONCE)
            .user_agent(concat!("mcpeg/", env!("CARGO_PKG_VERSION")));
        self.destination.apply(builder).build().map_err(|error| error.to_string())
    }

    fn own_headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let mut value = HeaderValue::from_bytes(value.expose())
                .map_err(|_| format!("the header {name} has characters that a header must not have"))?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        if let Some(host) = self.destination.host() {
            headers.insert(http::header::HOST, host);
        }
        Ok(headers)
    }
}

fn token_header(token: &Secret) -> Result<HeaderValue, FetchError> {
    let mut header = HeaderValue::from_bytes(token.expose()).map_err(|_| {
        FetchError::new(FailureKind::Login, "the token has characters that a header must not have".to_owned())
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Of a client's handshake (RFC 6455, 4.1).
const UPGRADE: [(&str, &str); 3] =
    [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
const HEALTH: &str = "sys/health";
const LEADER: &str = "sys/leader";
const REQUESTS_AT_ONCE: usize = 2;
const LARGEST: usize = 1024 * 1024;
const IDLE: Duration = Duration::from_millis(100);
const CLIENT_LIFE: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Less than the time between two probes.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);
