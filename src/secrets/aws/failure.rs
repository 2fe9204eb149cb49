//! From what the SDK reports to a `FetchError` in words.
//!
//! The service's own words are taken from its error's code and message, one line, shortened; a body is never quoted.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};

use super::super::causes::{in_chain, innermost, shortened};
use super::super::schedule;
use super::super::source::{FailureKind, FetchError};

/// What was asked for, as a noun phrase: `prod/openai`, `the batch of secrets`.
pub(super) fn failure<E>(server: &str, what: &str, error: &SdkError<E>) -> FetchError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let (kind, message) = match error {
        SdkError::ServiceError(answer) => {
            let code = answer.err().code().unwrap_or_default();
            let kind = kind_of(code, answer.raw().status().as_u16());
            let said = in_words(code, answer.err().message());
            let message = match kind {
                FailureKind::Denied => format!("{server} denied {what}{said}"),
                FailureKind::NotFound => format!("{server} has nothing at {what}{said}"),
                FailureKind::Throttled => format!("{server} has had too many requests{said}"),
                FailureKind::Login => format!("{server} refused the credentials{said}"),
                FailureKind::Unreachable => format!("{server} is not there{said}"),
                _ => format!("{server} failed at {what}{said}"),
            };
            (kind, message)
        }
        SdkError::ResponseError(_) => {
            (FailureKind::Malformed, format!("{server} answered {what} with something unexpected"))
        }
        SdkError::TimeoutError(_) => (FailureKind::Unreachable, format!("{server} did not answer {what} in time")),
        error => without_answer(server, error),
    };
    FetchError::new(kind, message).after(asked_wait(kind, error))
}

/// What the service asks for, where it has too much to do; somebody who answers in its place is not asked again at once.
fn asked_wait<E>(kind: FailureKind, error: &SdkError<E>) -> Option<Duration> {
    let asked = error.raw_response()?.headers().get("retry-after");
    let asked = asked.and_then(|asked| schedule::asked_wait(asked, SystemTime::now()));
    match kind {
        FailureKind::Throttled => asked,
        FailureKind::Unreachable => Some(asked.unwrap_or(ANSWERS)),
        _ => None,
    }
}

/// No answer at all: no credentials, or no connection.
fn without_answer<E: Error + 'static>(server: &str, error: &SdkError<E>) -> (FailureKind, String) {
    if let Some(tls) = in_chain::<rustls::Error>(error) {
        return (FailureKind::Tls, format!("the TLS connection to {server} failed: {}", shortened(&tls.to_string())));
    }
    let io_kind = in_chain::<io::Error>(error).map(io::Error::kind);
    if let Some(credentials) = in_chain::<CredentialsError>(error) {
        let cause = shortened(&innermost(credentials));
        return match io_kind {
            // The file of a token or of a profile.
            Some(io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) | None => {
                (FailureKind::Login, format!("no credentials for {server}: {cause}"))
            }
            Some(_) => (FailureKind::Unreachable, format!("no credentials for {server}: {cause}")),
        };
    }
    let message = match io_kind {
        Some(io::ErrorKind::ConnectionRefused) => format!("{server} refused the connection"),
        _ => format!("no answer from {server}: {}", shortened(&innermost(error))),
    };
    (FailureKind::Unreachable, message)
}

/// docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html and the errors of each action.
fn kind_of(code: &str, status: u16) -> FailureKind {
    match code {
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" | "DecryptionFailure" => FailureKind::Denied,
        "ExpiredTokenException"
        | "ExpiredToken"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "OptInRequired"
        | "RequestExpired"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException" => FailureKind::Login,
        "LimitExceededException"
        | "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequestsException" => FailureKind::Throttled,
        // InvalidRequestException: it is marked for deletion.
        "ResourceNotFoundException" | "InvalidRequestException" => FailureKind::NotFound,
        "InvalidParameterException" | "ValidationException" => FailureKind::Malformed,
        _ => match status {
            401 | 403 => FailureKind::Login,
            429 => FailureKind::Throttled,
            502..=504 => FailureKind::Unreachable,
            _ => FailureKind::ServerError,
        },
    }
}

/// The kind of an error that a batch reports of one of its secrets.
pub(super) fn of_entry(server: &str, what: &str, code: &str, message: Option<&str>) -> FetchError {
    let kind = match kind_of(code, 0) {
        kind @ (FailureKind::Denied | FailureKind::NotFound | FailureKind::Throttled) => kind,
        _ => FailureKind::ServerError,
    };
    FetchError::new(kind, format!("{server} did not give {what}{}", in_words(code, message)))
}

fn in_words(code: &str, message: Option<&str>) -> String {
    match (code, message.map(shortened)) {
        ("", None) => String::new(),
        (code, None) => format!(" ({code})"),
        ("", Some(message)) => format!(" ({message})"),
        (code, Some(message)) => format!(" ({code}: {message})"),
    }
}

const ANSWERS: Duration = Duration::from_secs(1);
