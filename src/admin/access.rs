//! Who may ask. Over the Unix socket: this process's user and root, as the kernel says. Over TCP: who brings the token, and only under
//! a name of this machine, so that a web page cannot ask through a name that it made point here.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, header};
use tokio::net::UnixStream;

use crate::ports::{SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, Secret, SecretText};

/// Why a request is turned away.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the Host header must name this machine: localhost or a loopback address")]
    ForeignHost,
    #[error("this path wants `Authorization: Bearer` with the admin token")]
    NoToken,
    #[error("the admin token is wrong")]
    WrongToken,
    #[error("the admin token cannot be checked: {0}")]
    Unchecked(ResolveError<SecretUnavailable>),
    #[error("the admin token is not configured or empty, so nothing is allowed")]
    EmptyToken,
}

/// Whether the other end of a Unix connection may ask.
pub fn peer_may_ask(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

pub fn check_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).ok_or(Refusal::ForeignHost)?;
    if is_local(host) { Ok(()) } else { Err(Refusal::ForeignHost) }
}

pub fn check_token(
    headers: &HeaderMap,
    token: Option<&SecretText>,
    secrets: &Arc<dyn SecretReader>,
) -> Result<(), Refusal> {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(bearer);
    let given = Secret::copy_from(given.ok_or(Refusal::NoToken)?);
    let token = token.ok_or(Refusal::EmptyToken)?;
    let wanted = token.resolve(|reference| secrets.current(&reference.item)).map_err(Refusal::Unchecked)?;
    if wanted.is_empty() {
        return Err(Refusal::EmptyToken);
    }
    // Compared in constant time.
    if given == wanted { Ok(()) } else { Err(Refusal::WrongToken) }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// `localhost`, or a loopback address, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, _)) => address,
            None => return false,
        },
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "LOCALHOST:9464", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:9464"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1", "10.0.0.1", "::"]
        {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_the_scheme() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bear"), None);
    }
}
