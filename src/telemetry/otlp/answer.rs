//! What an answer of the collector means for the records of the request (OTLP specification 1.x, "Failures" and "Throttling").
//!
//! Stricter than the specification on losing data: what a change on the other side may cure (a credential, a route, a full collector)
//! is kept and tried again, within the queue's bound; only what will never be taken is given up. No body of an answer is shown.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::backoff::Pause;

/// What to do with the records of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Delivered,
    /// The request was too large: send less at a time.
    TooLarge,
    /// The collector will never take this request; why, in words.
    Refused(String),
    /// Keep them and try again.
    Failed(Trouble),
}

/// Why a request has to be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Follows "the collector at URL": `refused the connection`.
    pub phrase: String,
    pub pause: Pause,
    /// The request itself may be the reason: give it up after some attempts.
    pub doubtful: bool,
    /// Less at a time may help.
    pub overload: bool,
    /// It may have arrived all the same.
    pub uncertain: bool,
}

impl Trouble {
    pub fn new(phrase: impl Into<String>, pause: Pause) -> Self {
        Self { phrase: phrase.into(), pause, doubtful: false, overload: false, uncertain: false }
    }
}

pub fn of_http(status: StatusCode, headers: &HeaderMap) -> Answer {
    if status.is_success() {
        return Answer::Delivered;
    }
    let asked = retry_after(headers, SystemTime::now());
    let phrase = format!("answered {status}");
    let failed = |pause| Trouble::new(phrase.clone(), asked.map_or(pause, Pause::Asked));
    match status.as_u16() {
        413 => Answer::TooLarge,
        400 | 406 | 411 | 414 | 415 | 422 | 431 | 501 => Answer::Refused(phrase),
        429 => Answer::Failed(Trouble { overload: true, ..failed(Pause::Busy) }),
        502..=504 => Answer::Failed(failed(Pause::Absent)),
        500 => Answer::Failed(Trouble { doubtful: true, ..failed(Pause::Busy) }),
        _ => Answer::Failed(failed(Pause::Busy)),
    }
}

pub fn of_grpc(status: &Status, timeout: Duration) -> Answer {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).filter(|delay| !delay.is_zero());
    let phrase = match (status.code(), status.source()) {
        (Code::Unavailable | Code::Unknown, Some(source)) => unreachable_because(source, timeout),
        // What tonic makes of its own time limit.
        (Code::Cancelled | Code::DeadlineExceeded, _) => no_answer(timeout),
        (code, _) => format!("answered {}", name_of(code)),
    };
    let failed = |pause| Trouble::new(phrase.clone(), asked.map_or(pause, Pause::Asked));
    match status.code() {
        Code::Ok => Answer::Delivered,
        Code::ResourceExhausted if asked.is_none() && speaks_of_size(status.message()) => Answer::TooLarge,
        Code::ResourceExhausted => Answer::Failed(Trouble { overload: true, ..failed(Pause::Busy) }),
        Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists => Answer::Refused(phrase),
        Code::Internal | Code::Unknown if status.source().is_none() => {
            Answer::Failed(Trouble { doubtful: true, ..failed(Pause::Busy) })
        }
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => {
            Answer::Failed(failed(Pause::Busy))
        }
        _ => Answer::Failed(Trouble { uncertain: may_have_arrived(status), ..failed(Pause::Absent) }),
    }
}

/// Not when it answered, and not when nobody was there to be asked.
fn may_have_arrived(status: &Status) -> bool {
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => true,
        _ => status.source().is_some_and(|source| !was_refused(source)),
    }
}

/// The collector could not be spoken to.
pub fn of_http_failure(error: &reqwest::Error, timeout: Duration) -> Trouble {
    let phrase = if error.is_timeout() && !error.is_connect() {
        no_answer(timeout)
    } else {
        unreachable_because(error, timeout)
    };
    Trouble { uncertain: !error.is_connect(), ..Trouble::new(phrase, Pause::Absent) }
}

fn was_refused(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused))
}

fn unreachable_because(error: &(dyn Error + 'static), timeout: Duration) -> String {
    let mut deepest = error;
    loop {
        if let Some(io) = deepest.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return "refused the connection".into(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => return "broke the connection".into(),
                io::ErrorKind::TimedOut => return no_answer(timeout),
                _ => {}
            }
        }
        match deepest.source() {
            Some(source) => deepest = source,
            None => return format!("cannot be reached: {deepest}"),
        }
    }
}

fn no_answer(timeout: Duration) -> String {
    format!("did not answer within {} s", timeout.as_secs_f64())
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
}

/// gRPC has no code of its own for a message that is too large; servers say it in words.
fn speaks_of_size(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("larger than") || message.contains("too large") || message.contains("message length")
}

fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::HeaderValue;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn http(status: u16, retry_after: Option<&'static str>) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
        }
        of_http(StatusCode::from_u16(status).unwrap(), &headers)
    }

    fn pause(answer: Answer) -> Option<Pause> {
        match answer {
            Answer::Failed(trouble) => Some(trouble.pause),
            _ => None,
        }
    }

    #[test]
    fn http_answers_are_kept_or_given_up_as_they_deserve() {
        assert_eq!(http(202, None), Answer::Delivered);
        assert_eq!(http(413, None), Answer::TooLarge);
        assert_eq!(http(400, None), Answer::Refused("answered 400 Bad Request".into()));
        for kept in [401, 403, 404, 408, 429, 500, 502, 503, 504, 302] {
            assert!(pause(http(kept, None)).is_some(), "{kept}");
        }
        assert_eq!(pause(http(503, None)), Some(Pause::Absent));
        assert_eq!(pause(http(429, None)), Some(Pause::Busy));
        assert_eq!(pause(http(429, Some("7"))), Some(Pause::Asked(Duration::from_secs(7))));
        assert_eq!(pause(http(503, Some("soon"))), Some(Pause::Absent));
    }

    #[test]
    fn a_date_to_come_back_at_is_understood() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:09 GMT"));
        assert_eq!(retry_after(&headers, UNIX_EPOCH + Duration::from_secs(4)), Some(Duration::from_secs(5)));
        assert_eq!(retry_after(&headers, UNIX_EPOCH + Duration::from_secs(40)), Some(Duration::ZERO));
    }

    #[test]
    fn grpc_answers_are_kept_or_given_up_as_they_deserve() {
        let answer = |code, message: &str| of_grpc(&Status::new(code, message), TIMEOUT);
        assert_eq!(answer(Code::ResourceExhausted, "message larger than max (5 vs 4)"), Answer::TooLarge);
        assert_eq!(pause(answer(Code::ResourceExhausted, "quota")), Some(Pause::Busy));
        assert_eq!(pause(answer(Code::Unavailable, "")), Some(Pause::Absent));
        assert_eq!(pause(answer(Code::Unauthenticated, "")), Some(Pause::Busy));
        assert_eq!(answer(Code::InvalidArgument, "x"), Answer::Refused("answered INVALID_ARGUMENT".into()));
        let Answer::Failed(late) = answer(Code::Cancelled, "Timeout expired") else { panic!() };
        assert_eq!(late.phrase, "did not answer within 10 s");
        let details = tonic_types::ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
        let told = Status::with_error_details(Code::ResourceExhausted, "message too large", details);
        assert_eq!(pause(of_grpc(&told, TIMEOUT)), Some(Pause::Asked(Duration::from_secs(3))));
    }
}
