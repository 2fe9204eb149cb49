//! Requests to an authorization server: for a token (RFC 6749, 3.2, 4.4, 6; RFC 8707), for metadata, and whether it is there.
//!
//! Each has a connection of its own, which is closed after it, so that no buffer keeps an answer. Of a refusal only its name is told, and only
//! where the RFCs have it: a description may quote what was sent.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;
use crate::secret::Secret;

use super::super::causes::{in_chain, innermost, shortened};
use super::super::json::{Fields, into_secrets};
use super::super::schedule::asked_wait;
use super::super::settings::{ClientAuth, OAuthSettings};
use super::super::source::{FailureKind, FetchError, Fetched, Lease};
use super::discovery::Endpoint;

/// How requests are made.
pub(super) struct Web {
    pub tls: rustls::ClientConfig,
    pub timeout: Duration,
}

/// What is wanted of the token.
pub(super) struct Wish {
    /// Separated by spaces; empty: as the server has it.
    pub scopes: String,
    /// Further parameters of the request.
    pub parameters: BTreeMap<String, String>,
}

pub(super) struct Answer {
    pub fetched: Fetched,
    pub refresh_token: Option<Secret>,
}

/// Asks for a token. `grant` are the parameters of the grant.
pub(super) async fn ask(
    web: &Web,
    endpoint: &Endpoint,
    settings: &OAuthSettings,
    secret: Option<&Secret>,
    grant: &[(&str, &[u8])],
    wish: &Wish,
) -> Result<Answer, FetchError> {
    let in_body = match settings.client_auth {
        Some(ClientAuth::Post) => true,
        Some(ClientAuth::Basic) => false,
        None => endpoint.posts_only,
    };
    let mut form = Form::default();
    grant.iter().for_each(|(name, value)| form.add(name, value));
    for (name, value) in [("scope", Some(&wish.scopes)), ("resource", settings.resource.as_ref())] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            form.add(name, value.as_bytes());
        }
    }
    wish.parameters.iter().for_each(|(name, value)| form.add(name, value.as_bytes()));
    let mut request = client(web)?.post(endpoint.url.clone()).header(ACCEPT, "application/json");
    match secret {
        Some(secret) if !in_body => request = request.header(AUTHORIZATION, basic(&settings.client_id, secret)?),
        secret => {
            form.add("client_id", settings.client_id.as_bytes());
            if let Some(secret) = secret {
                form.add("client_secret", secret.expose());
            }
        }
    }
    let place = &endpoint.url;
    let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.into_body());
    let (status, headers, body) = send(request, place).await?;
    if status != 200 {
        return Err(refused(status, &headers, &body, place));
    }
    with_wiped_stack(|| parse(&body)).ok_or_else(|| {
        FetchError::new(FailureKind::Malformed, format!("{} answered with something that is no token", shown(place)))
    })
}

/// A JSON document that anybody may read.
pub(super) async fn document<T: DeserializeOwned>(web: &Web, place: &Url) -> Result<T, FetchError> {
    let request = client(web)?.get(place.clone()).header(ACCEPT, "application/json");
    let (status, headers, body) = send(request, place).await?;
    match status {
        200 => serde_json::from_slice(&body)
            .map_err(|_| FetchError::new(FailureKind::Malformed, format!("{} is not the expected JSON", shown(place)))),
        400..=428 => Err(FetchError::new(FailureKind::NotFound, shown(place))),
        status => Err(refused(status, &headers, &[], place)),
    }
}

/// Whether somebody answers there, whatever it is.
pub(super) async fn answers(web: &Web, place: &Url) -> Result<(), FetchError> {
    let (status, headers, _) = send(client(web)?.get(place.clone()), place).await?;
    if status < 500 { Ok(()) } else { Err(refused(status.max(502), &headers, &[], place)) }
}

/// The members of RFC 6749, 5.1; others are left out.
fn parse(body: &[u8]) -> Option<Answer> {
    let members: Fields<'_> = serde_json::from_slice(body).ok()?;
    let life = members.get("expires_in").and_then(|raw| raw.get().trim_matches('"').parse::<f64>().ok());
    let life = life.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let mut all = into_secrets(members).ok()?;
    let mut fields = BTreeMap::new();
    for name in ["access_token", "token_type", "scope"] {
        if let Some(value) = all.remove(name) {
            fields.insert(name.to_owned(), value);
        }
    }
    if fields.get("access_token").is_none_or(|token| token.expose().is_empty()) || !fields.contains_key("token_type") {
        return None;
    }
    if let Some(life) = life {
        let ends = SystemTime::now().checked_add(life)?.duration_since(UNIX_EPOCH).ok()?.as_secs();
        fields.insert("expires_at".to_owned(), Secret::from(ends.to_string()));
    }
    let fetched = Fetched { fields, provider_version: None, lease: life.map(Lease::Ends) };
    Some(Answer { fetched, refresh_token: all.remove("refresh_token").filter(|token| !token.expose().is_empty()) })
}

/// A refusal by its name (RFC 6749, 5.2; RFC 8707, 2), and otherwise by its status.
fn refused(status: u16, headers: &HeaderMap, body: &[u8], place: &Url) -> FetchError {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let named = serde_json::from_slice::<Refusal>(body).ok().map(|refusal| refusal.error);
    let known = NAMES.iter().find(|(name, _)| named.as_deref() == Some(*name));
    let asked = headers.get(RETRY_AFTER).and_then(|value| asked_wait(value.to_str().ok()?, SystemTime::now()));
    let server = shown(place);
    match (status, known) {
        (429, _) => FetchError::new(FailureKind::Throttled, format!("{server} has had too many requests")).after(asked),
        (502..=504, _) => {
            FetchError::new(FailureKind::Unreachable, format!("{server} is not there (status {status})")).after(asked)
        }
        (_, Some((name, kind))) => FetchError::new(*kind, format!("{server} refused: {name}")),
        (401 | 403, None) => FetchError::new(FailureKind::Login, format!("{server} refused with status {status}")),
        (500.., None) => {
            FetchError::new(FailureKind::ServerError, format!("{server} failed with status {status}")).after(asked)
        }
        (_, None) => FetchError::new(FailureKind::Malformed, format!("{server} answered with status {status}")),
    }
}

async fn send(
    request: reqwest::RequestBuilder,
    place: &Url,
) -> Result<(u16, HeaderMap, Zeroizing<Vec<u8>>), FetchError> {
    let failed = |error: reqwest::Error| unanswered(&error, place);
    let mut response = request.send().await.map_err(failed)?;
    let (status, headers) = (response.status().as_u16(), std::mem::take(response.headers_mut()));
    let mut body = Zeroizing::new(Vec::with_capacity(SMALL));
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > LARGEST {
            let message = format!("{} answered with more than {LARGEST} bytes", shown(place));
            return Err(FetchError::new(FailureKind::Malformed, message));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, headers, body))
}

fn unanswered(error: &reqwest::Error, place: &Url) -> FetchError {
    let server = shown(place);
    if let Some(tls) = in_chain::<rustls::Error>(error) {
        let message = format!("the TLS connection to {server} failed: {}", shortened(&tls.to_string()));
        return FetchError::new(FailureKind::Tls, message);
    }
    let message = match in_chain::<std::io::Error>(error).map(std::io::Error::kind) {
        Some(std::io::ErrorKind::ConnectionRefused) => format!("{server} refused the connection"),
        _ if error.is_timeout() => format!("{server} did not answer in time"),
        _ => format!("no answer from {server}: {}", shortened(&innermost(error))),
    };
    FetchError::new(FailureKind::Unreachable, message)
}

fn client(web: &Web) -> Result<reqwest::Client, FetchError> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(web.tls.clone())
        .http1_only()
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .connect_timeout(web.timeout.min(CONNECT_TIMEOUT))
        .timeout(web.timeout)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("mcpeg/", env!("CARGO_PKG_VERSION")));
    let failed = |error| FetchError::new(FailureKind::Malformed, format!("setting up the HTTP client: {error}"));
    builder.build().map_err(failed)
}

/// RFC 6749, 2.3.1: both are encoded as in a form before they are joined.
fn basic(id: &str, secret: &Secret) -> Result<HeaderValue, FetchError> {
    let mut joined = Zeroizing::new(String::with_capacity(3 * (id.len() + secret.expose().len()) + 1));
    joined.extend(form_urlencoded::byte_serialize(id.as_bytes()));
    joined.push(':');
    joined.extend(form_urlencoded::byte_serialize(secret.expose()));
    let header = Zeroizing::new(format!("Basic {}", Zeroizing::new(STANDARD.encode(joined.as_bytes())).as_str()));
    let mut header = HeaderValue::from_str(&header)
        .map_err(|_| FetchError::new(FailureKind::Login, "the client's secret is too long for a header"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// A form that grows in a buffer that is wiped.
#[derive(Default)]
struct Form(Zeroizing<String>);

impl Form {
    fn add(&mut self, name: &str, value: &[u8]) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.extend(form_urlencoded::byte_serialize(name.as_bytes()));
        self.0.push('=');
        self.0.extend(form_urlencoded::byte_serialize(value));
    }

    /// The allocator wipes it when the request is done.
    fn into_body(mut self) -> String {
        std::mem::take(&mut *self.0)
    }
}

/// Without a query, which may be a secret.
fn shown(place: &Url) -> String {
    let mut place = place.clone();
    place.set_query(None);
    place.to_string()
}

/// What `refused` gives the name to where a refresh token is used, expired or revoked.
pub(super) const DEAD_GRANT: &str = "invalid_grant";
const NAMES: [(&str, FailureKind); 9] = [
    ("invalid_request", FailureKind::Malformed),
    ("invalid_client", FailureKind::Login),
    (DEAD_GRANT, FailureKind::Login),
    ("unauthorized_client", FailureKind::Login),
    ("unsupported_grant_type", FailureKind::Malformed),
    ("invalid_scope", FailureKind::Denied),
    ("invalid_target", FailureKind::Denied),
    ("server_error", FailureKind::ServerError),
    ("temporarily_unavailable", FailureKind::Unreachable),
];
const SMALL: usize = 4096;
const LARGEST: usize = 256 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Url {
        "https://as.example/token?key=hunter2".parse().unwrap()
    }

    #[test]
    fn an_answer_gives_its_fields_its_life_and_the_next_refresh_token() {
        let answer = parse(
            br#"{"access_token":"a\"b","token_type":"Bearer","expires_in":3600,"refresh_token":"r","id_token":"x","scope":"read"}"#,
        );
        let answer = answer.unwrap();
        let names: Vec<&str> = answer.fetched.fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["access_token", "expires_at", "scope", "token_type"]);
        assert_eq!(answer.fetched.fields["access_token"].expose(), b"a\"b");
        assert_eq!(answer.fetched.lease, Some(Lease::Ends(Duration::from_secs(3600))));
        assert_eq!(answer.refresh_token.unwrap().expose(), b"r");
        let without_life = parse(br#"{"access_token":"a","token_type":"bearer"}"#).unwrap();
        assert_eq!(without_life.fetched.lease, None);
        let as_text = parse(br#"{"access_token":"a","token_type":"bearer","expires_in":"60"}"#).unwrap();
        assert_eq!(as_text.fetched.lease, Some(Lease::Ends(Duration::from_secs(60))));
        for broken in [r#"{"access_token":"","token_type":"b"}"#, r#"{"access_token":"a"}"#, "[]", ""] {
            assert!(parse(broken.as_bytes()).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_its_name_and_never_in_the_servers_words() {
        let told = |status, body: &str| {
            let error = refused(status, &HeaderMap::new(), body.as_bytes(), &place());
            (error.kind, error.message)
        };
        let named = told(400, r#"{"error":"invalid_grant","error_description":"hunter2 is spent"}"#);
        assert_eq!(named, (FailureKind::Login, "https://as.example/token refused: invalid_grant".to_owned()));
        assert_eq!(told(400, r#"{"error":"invalid_target"}"#).0, FailureKind::Denied);
        assert_eq!(told(400, r#"{"error":"hunter2"}"#).1, "https://as.example/token answered with status 400");
        assert_eq!(told(503, "").0, FailureKind::Unreachable);
        assert_eq!(told(500, "hunter2").1, "https://as.example/token failed with status 500");
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let busy = refused(429, &headers, b"", &place());
        assert_eq!((busy.kind, busy.after), (FailureKind::Throttled, Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_secret_is_encoded_before_it_is_joined() {
        let header = basic("an app", &Secret::copy_from(b"a:b/+%")).unwrap();
        assert_eq!(header.to_str().unwrap(), format!("Basic {}", STANDARD.encode("an+app:a%3Ab%2F%2B%25")));
        assert!(header.is_sensitive());
    }
}
