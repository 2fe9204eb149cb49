//! The headers and the URL of a request to an HTTP upstream: what is configured, with its secrets, and what the protocol wants.
//!
//! Invariant: every configured value is marked sensitive, whether or not a secret is in it, so that no Debug shows it and HTTP/2 never
//! puts it into its table.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::exchange::SESSION_ID;
use super::outgoing::Hints;
use crate::mcp::credentials::{CredentialError, Versions, resolve};
use crate::mcp::settings::HttpSettings;
use crate::ports::SecretReader;

/// What a request is sent with, with the secrets as they were when it was put together.
pub struct Authorized {
    pub headers: HeaderMap,
    /// With the configured parameters; it must not be shown.
    pub url: Url,
    pub versions: Arc<[String]>,
}

/// Reads the configured headers and parameters with the secrets as they are now. `url`: without the parameters.
pub fn credentials(
    settings: &HttpSettings,
    url: &Url,
    secrets: &dyn SecretReader,
) -> Result<Authorized, CredentialError> {
    let mut headers = HeaderMap::new();
    let mut versions = Versions::default();
    let mut url = url.clone();
    for (key, text) in &settings.query {
        let place = || format!("query parameter {key}");
        let secret = resolve(text, place, secrets, &mut versions)?;
        let text = secret.expose_str().ok_or_else(|| CredentialError::NotText { place: place() })?;
        url.query_pairs_mut().append_pair(key, text);
    }
    for (name, text) in &settings.headers {
        let secret = resolve(text, || format!("header {name}"), secrets, &mut versions)?;
        let mut value = HeaderValue::from_bytes(secret.expose())
            .map_err(|_| CredentialError::NotAHeaderValue { place: format!("header {name}") })?;
        value.set_sensitive(true);
        headers.append(name.clone(), value);
    }
    Ok(Authorized { headers, url, versions: versions.list() })
}

/// Adds what the protocol wants: session and version in the legacy era, version, method and name in the modern one.
pub fn add_protocol(
    headers: &mut HeaderMap,
    hints: Option<&Hints>,
    session: Option<&HeaderValue>,
    version: Option<&HeaderValue>,
) {
    if let Some(traceparent) = hints.and_then(|hints| hints.traceparent.as_deref()) {
        insert(headers, TRACEPARENT, traceparent);
    }
    if let Some((hints, modern)) = hints.and_then(|hints| Some((hints, hints.modern.as_deref()?))) {
        insert(headers, PROTOCOL_VERSION, modern);
        insert(headers, METHOD, &encoded(&hints.method));
        if let Some(name) = &hints.name {
            insert(headers, NAME, &encoded(name));
        }
        add_parameters(headers, &hints.parameters);
        return;
    }
    if let Some(session) = session {
        headers.insert(SESSION_ID, session.clone());
    }
    if let Some(version) = version {
        headers.insert(PROTOCOL_VERSION, version.clone());
    }
}

/// Arguments that the tool wants in headers as well.
pub fn add_parameters(headers: &mut HeaderMap, parameters: &[(HeaderName, String)]) {
    for (name, value) in parameters {
        insert(headers, name.clone(), &encoded(value));
    }
}

/// Another method of the modern era, which has no subject.
pub fn set_method(headers: &mut HeaderMap, method: &str) {
    headers.remove(NAME);
    insert(headers, METHOD, method);
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A value as it may stand in a header: what is not plain ASCII, or could be misread, in Base64 (2026-07-28, transports).
fn encoded(value: &str) -> String {
    let plain = value.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) && value.trim_ascii() == value;
    let looks_encoded = value.starts_with("=?") && value.ends_with("?=");
    if plain && !looks_encoded { value.to_owned() } else { format!("=?base64?{}?=", STANDARD.encode(value)) }
}

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_header_cannot_hold_are_encoded() {
        assert_eq!(encoded("get_weather"), "get_weather");
        assert_eq!(encoded("wetter für"), "=?base64?d2V0dGVyIGbDvHI=?=");
        assert_eq!(encoded(" x"), "=?base64?IHg=?=");
        assert_eq!(encoded("=?base64?x?="), "=?base64?PT9iYXNlNjQ/eD89?=");
    }

    #[test]
    fn each_era_gets_its_own_headers() {
        let hints = Hints { modern: Some("2026-07-28".into()), method: "tools/call".into(), ..Hints::default() };
        let (session, version) = (HeaderValue::from_static("s"), HeaderValue::from_static("2025-06-18"));
        let mut modern = HeaderMap::new();
        add_protocol(&mut modern, Some(&hints), Some(&session), Some(&version));
        assert_eq!((modern.get(SESSION_ID), modern[PROTOCOL_VERSION].to_str().unwrap()), (None, "2026-07-28"));
        let mut legacy = HeaderMap::new();
        add_protocol(&mut legacy, None, Some(&session), Some(&version));
        assert_eq!((&legacy[SESSION_ID], &legacy[PROTOCOL_VERSION], legacy.len()), (&session, &version, 2));
    }
}
