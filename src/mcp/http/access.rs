//! Who may ask over TCP: whoever brings the token, under a name that is ours, and from no page of a stranger.
//!
//! The token is read anew for each request and compared in constant time; what the client brought is taken out of the request's headers,
//! so that nothing behind this sees it.

use std::net::IpAddr;

use http::{HeaderMap, header};
use url::Url;

use crate::mcp::settings::ListenSettings;
use crate::ports::{SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, Secret, SecretText};

/// Why a request is turned away. The text is for whoever asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the Host header must name this machine or one of transports.http.allowed_hosts")]
    ForeignHost,
    #[error("pages of this origin may not ask: it is not in transports.http.allowed_origins")]
    ForeignOrigin,
    #[error("`Authorization: Bearer` with the token of transports.http is missing")]
    NoToken,
    #[error("the token is wrong")]
    WrongToken,
    #[error("the token cannot be checked: {0}")]
    Unchecked(ResolveError<SecretUnavailable>),
    #[error("the token of transports.http is empty, so nothing is allowed")]
    EmptyToken,
}

impl Refusal {
    /// The value of `error.type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ForeignHost => "host_not_allowed",
            Self::ForeignOrigin => "origin_not_allowed",
            Self::NoToken => "token_missing",
            Self::WrongToken => "token_wrong",
            Self::Unchecked(_) | Self::EmptyToken => "token_unavailable",
        }
    }
}

pub fn check(headers: &mut HeaderMap, settings: &ListenSettings, secrets: &dyn SecretReader) -> Result<(), Refusal> {
    let host = text(headers, &header::HOST).ok_or(Refusal::ForeignHost)?;
    let listened = settings.address.ip();
    let named = |allowed: &String| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name_of(host));
    let own = is_local(host) || (!listened.is_unspecified() && address_of(host) == Some(listened));
    if !own && !settings.allowed_hosts.iter().any(named) {
        return Err(Refusal::ForeignHost);
    }
    if headers.contains_key(header::ORIGIN) {
        let origin = text(headers, &header::ORIGIN).ok_or(Refusal::ForeignOrigin)?;
        if !is_local_origin(origin) && !settings.allowed_origins.iter().any(|allowed| allowed == origin) {
            return Err(Refusal::ForeignOrigin);
        }
    }
    check_token(headers, &settings.token, secrets)
}

fn check_token(headers: &mut HeaderMap, token: &SecretText, secrets: &dyn SecretReader) -> Result<(), Refusal> {
    let brought = headers.remove(header::AUTHORIZATION);
    let given = brought.as_ref().and_then(|value| bearer(value.as_bytes())).map(Secret::copy_from);
    drop(brought);
    let given = given.ok_or(Refusal::NoToken)?;
    let wanted = token.resolve(|reference| secrets.current(&reference.item)).map_err(Refusal::Unchecked)?;
    if wanted.is_empty() {
        return Err(Refusal::EmptyToken);
    }
    // Compared in constant time.
    if given == wanted { Ok(()) } else { Err(Refusal::WrongToken) }
}

/// The one value of a header, as text. `None` where there are several.
pub fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())?.to_str().ok()
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Without the port.
fn name_of(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => host.get(..=end).unwrap_or(host),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

fn address_of(host: &str) -> Option<IpAddr> {
    name_of(host).trim_matches(['[', ']']).parse().ok()
}

fn is_local(host: &str) -> bool {
    name_of(host).eq_ignore_ascii_case("localhost") || address_of(host).is_some_and(|address| address.is_loopback())
}

fn is_local_origin(origin: &str) -> bool {
    let Ok(url) = Url::parse(origin) else { return false };
    matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(is_local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::testing::Secrets;
    use crate::secret::{Part, SecretRef};

    fn settings() -> ListenSettings {
        let reference = SecretRef::parse("local").unwrap();
        ListenSettings {
            address: "10.0.0.7:8080".parse().unwrap(),
            token: SecretText::new(vec![Part::Reference(reference)]),
            allowed_hosts: vec!["mcp.example".into(), "other.example:1234".into()],
            allowed_origins: vec!["https://tools.example".into()],
            tls: None,
        }
    }

    fn ask(secrets: &Secrets, host: &str, origin: Option<&str>, token: Option<&str>) -> &'static str {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        origin.map(|origin| headers.insert(header::ORIGIN, origin.parse().unwrap()));
        token.map(|token| headers.insert(header::AUTHORIZATION, token.parse().unwrap()));
        let checked = check(&mut headers, &settings(), secrets);
        assert!(checked.is_err() || !headers.contains_key(header::AUTHORIZATION), "nothing behind this sees it");
        checked.map_or_else(|refusal| refusal.kind(), |()| "ok")
    }

    #[test]
    fn host_origin_and_token_must_all_be_right() {
        let secrets = Secrets::new(&[("local", "right")]);
        let good = Some("Bearer right");
        for host in ["localhost", "127.0.0.1:80", "[::1]:80", "10.0.0.7", "MCP.example:8080", "other.example:1234"] {
            assert_eq!(ask(&secrets, host, None, good), "ok", "{host}");
        }
        for host in ["evil.example", "other.example", "10.0.0.8", "localhost.evil.example", "[::1", "0.0.0.0"] {
            assert_eq!(ask(&secrets, host, None, good), "host_not_allowed", "{host}");
        }
        for origin in ["https://tools.example", "http://localhost:3000", "http://127.0.0.1"] {
            assert_eq!(ask(&secrets, "localhost", Some(origin), good), "ok", "{origin}");
        }
        for origin in ["null", "https://evil.example", "http://localhost.evil.example", "https://tools.example:8"] {
            assert_eq!(ask(&secrets, "localhost", Some(origin), good), "origin_not_allowed", "{origin}");
        }
        for token in ["Bearer wrong", "Bearer righ", "bearer right2"] {
            assert_eq!(ask(&secrets, "localhost", None, Some(token)), "token_wrong", "{token}");
        }
        assert_eq!(ask(&secrets, "localhost", None, Some("Basic right")), "token_missing");
        assert_eq!(ask(&secrets, "localhost", None, None), "token_missing");
        secrets.set("local", "newer");
        assert_eq!(ask(&secrets, "localhost", None, good), "token_wrong");
        assert_eq!(ask(&secrets, "localhost", None, Some("BEARER newer")), "ok");
        secrets.set("local", "");
        assert_eq!(ask(&secrets, "localhost", None, Some("Bearer ")), "token_unavailable");
    }
}
