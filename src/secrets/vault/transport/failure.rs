//! From what reqwest, vaultrs and the server report to a `FetchError` in words.
//!
//! The server's own words are taken only from the `errors` list of its JSON, one line, shortened; a body that is not that is never quoted.

use std::io;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use serde::Deserialize;

use super::super::super::causes::{in_chain, innermost, shortened};
use super::super::super::schedule;
use super::super::super::source::{FailureKind, FetchError};
use super::Transport;

/// What was asked for, as far as it changes what an answer means.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Request<'a> {
    Read(&'a str),
    Probe,
    Login(&'static str),
    LookupSelf,
    RenewSelf,
}

impl Request<'_> {
    /// A noun phrase.
    pub fn what(&self) -> &str {
        match self {
            Self::Read(path) => path,
            Self::Probe => "the health check",
            Self::Login(method) => method,
            Self::LookupSelf => "the lookup of the token",
            Self::RenewSelf => "the renewal of the token",
        }
    }
}

/// The list that the server sends with every failure (developer.hashicorp.com/vault/api-docs#error-response).
pub(super) fn errors_in(body: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<String>,
        #[serde(default)]
        warnings: Option<Vec<String>>,
        #[serde(default)]
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Data {
        metadata: Option<Metadata>,
    }
    #[derive(Deserialize)]
    struct Metadata {
        version: u64,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return Vec::new() };
    if let Some(metadata) = answer.data.and_then(|data| data.metadata) {
        return vec![format!("version {} was deleted", metadata.version)];
    }
    let mut words = answer.errors;
    words.extend(answer.warnings.unwrap_or_default());
    words
}

/// The body of `sys/health` says so; a 503 of something that stands before the server does not.
pub(super) fn is_sealed(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Health {
        sealed: bool,
    }
    serde_json::from_slice::<Health>(body).is_ok_and(|health| health.sealed)
}

/// The body of `sys/leader` names the active node, or has no name where there is none.
pub(super) fn has_leader(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Leader {
        leader_address: String,
    }
    serde_json::from_slice::<Leader>(body).is_ok_and(|leader| !leader.leader_address.is_empty())
}

impl Transport {
    pub(super) fn vaultrs_failure(&self, request: Request<'_>, error: &vaultrs::error::ClientError) -> FetchError {
        use rustify::errors::ClientError as Rest;
        use vaultrs::error::ClientError as Vault;
        let source = match error {
            Vault::APIError { code, errors } => return self.status_failure(request, *code, errors, None),
            Vault::RestClientError { source } => source,
            _ => return self.malformed(request),
        };
        match source {
            Rest::RequestError { source, .. } | Rest::ResponseError { source } => match source.downcast_ref() {
                Some(error) => self.transport_failure(request, error),
                None => self.malformed(request),
            },
            Rest::ServerResponseError { code, .. } => self.status_failure(request, *code, &[], None),
            _ => self.malformed(request),
        }
    }

    /// An answer whose meaning is in its status.
    pub(super) fn status_failure(
        &self,
        request: Request<'_>,
        status: u16,
        errors: &[String],
        retry_after: Option<&HeaderValue>,
    ) -> FetchError {
        let (server, what, said) = (&self.address, request.what(), in_quotes(errors));
        let reading = matches!(request, Request::Read(_));
        let sealed = errors.iter().any(|error| error.contains("sealed"));
        let (kind, message) = match status {
            503 if sealed => (FailureKind::Sealed, format!("the server at {server} is sealed")),
            300..=399 | 472 | 473 => {
                let words =
                    "is a standby and points to another node, which is not followed; use the active node's address";
                (FailureKind::Standby, format!("the server at {server} {words}"))
            }
            429 => {
                let wait = asked_wait(retry_after);
                let wait = wait.map(|wait| format!(" (it asks to wait {} s)", wait.as_secs())).unwrap_or_default();
                (FailureKind::Throttled, format!("the server at {server} has had too many requests{wait}"))
            }
            500 if errors.iter().any(|error| error.contains("active")) => {
                (FailureKind::Standby, format!("the server at {server} is a standby and there is no active node{said}"))
            }
            403 if reading => (FailureKind::Denied, format!("the server at {server} denied {what}{said}")),
            404 if reading => (FailureKind::NotFound, format!("the server at {server} has nothing at {what}{said}")),
            400..=499 if reading => {
                (FailureKind::Malformed, format!("the server at {server} refused {what} with status {status}{said}"))
            }
            _ if matches!(request, Request::Probe) => (
                FailureKind::Unreachable,
                format!("the server at {server} failed at {what} with status {status}{said}"),
            ),
            // Past its maximum life a token is refused with 500.
            400..=500 if !reading => (FailureKind::Login, format!("the server at {server} refused {what}{said}")),
            502..=504 => {
                (FailureKind::Unreachable, format!("the server at {server} is not there (status {status}){said}"))
            }
            _ => (
                FailureKind::ServerError,
                format!("the server at {server} failed at {what} with status {status}{said}"),
            ),
        };
        let after = if status == 429 { asked_wait(retry_after) } else { None };
        FetchError::new(kind, message).after(after)
    }

    /// No answer at all.
    pub(super) fn transport_failure(&self, request: Request<'_>, error: &reqwest::Error) -> FetchError {
        let server = &self.address;
        if let Some(tls) = in_chain::<rustls::Error>(error) {
            return FetchError::new(
                FailureKind::Tls,
                format!("the TLS connection to {server} failed: {}", tls_words(tls)),
            );
        }
        let refused = in_chain::<io::Error>(error).is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
        let message = if refused {
            format!("the server at {server} refused the connection")
        } else if error.is_timeout() && error.is_connect() {
            format!("the server at {server} did not take the connection in time")
        } else if error.is_timeout() {
            format!("the server at {server} did not answer {} within {} s", request.what(), self.timeout.as_secs_f32())
        } else {
            format!("no answer from the server at {server}: {}", shortened(&innermost(error)))
        };
        FetchError::new(FailureKind::Unreachable, message)
    }

    fn malformed(&self, request: Request<'_>) -> FetchError {
        let message = format!("the server at {} answered {} with something unexpected", self.address, request.what());
        FetchError::new(FailureKind::Malformed, message)
    }
}

pub(super) fn asked_wait(retry_after: Option<&HeaderValue>) -> Option<Duration> {
    schedule::asked_wait(retry_after?.to_str().ok()?, SystemTime::now())
}

fn tls_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            "its certificate was issued by an authority that is not trusted (tls.ca_file names the one to trust)".into()
        }
        error => error.to_string(),
    }
}

fn in_quotes(errors: &[String]) -> String {
    errors.first().map(|error| format!(" ({})", shortened(error))).unwrap_or_default()
}
