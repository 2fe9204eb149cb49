//! One exchange with an HTTP upstream: a request and what comes back for it, or the long GET stream of a legacy session.
//!
//! Streamable HTTP: a message is POSTed; the answer is one JSON document or a stream of events, each a message. A stream that breaks
//! before the answer has come is taken up again by GET with `Last-Event-ID`, if the server gave its events ids.
//!
//! An exchange tells what it receives over a bounded channel and stops reading while nobody takes it. It must not look at sessions of
//! other exchanges, and nothing of an upstream's error but the status is told on.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::sse::Parser;
use super::unlisted::ToolCall;
use crate::mcp::message::{Answer, AnswerBody, IdKey, Message, parse};
use crate::mcp::protocol::code;
use crate::mcp::splice;

/// What an exchange tells.
#[derive(Debug)]
pub struct Report {
    /// Which exchange it is about.
    pub serial: u64,
    pub news: News,
}

#[derive(Debug)]
pub enum News {
    /// The server gave the session this id.
    Session(HeaderValue),
    /// A message of the server, as one line, and the id of the event that it came in.
    Line(Bytes, Option<String>),
    /// So far the stream has come; where a later one has to begin.
    EventId(String),
    /// The server has answered to the wish for the long stream, so that it has one to speak on, or will not have it now.
    StreamAnswered,
    /// The end, once.
    Done(Result<(), Trouble>),
    /// The credentials that the server had refused were asked for anew, whatever came of it.
    Refreshed,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The value of `error.type`.
    pub kind: &'static str,
    pub message: String,
    /// The server does not know the session any more.
    pub session_lost: bool,
    /// A server of the older transport says so to a POST.
    pub may_be_older: bool,
}

impl Trouble {
    pub fn new(kind: &'static str, message: impl std::fmt::Display) -> Self {
        Self { kind, message: message.to_string(), session_lost: false, may_be_older: false }
    }

    /// The server did not accept the credentials, or not for this.
    pub fn is_refused(&self) -> bool {
        matches!(self.kind, UNAUTHORIZED | FORBIDDEN)
    }

    /// Nothing that was asked has been done.
    pub fn is_unauthorized(&self) -> bool {
        self.kind == UNAUTHORIZED
    }

    /// The connection broke before the answer.
    pub fn is_broken(&self) -> bool {
        matches!(self.kind, BROKEN | STREAM_ENDED)
    }
}

pub struct Exchange {
    pub serial: u64,
    pub client: Client,
    pub url: Url,
    /// Credentials, session and version.
    pub headers: HeaderMap,
    /// Of the request that is to be answered; `None` for a notification or an answer.
    pub key: Option<IdKey>,
    /// It calls a tool of a modern server, which may want arguments in headers.
    pub call: Option<ToolCall>,
    /// How long it may take, where nobody else watches the time.
    pub patience: Option<Duration>,
    pub limit: usize,
    pub reports: mpsc::Sender<Report>,
}

pub const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

impl Exchange {
    /// POSTs `body` and reads what comes back.
    pub async fn post(self, body: Bytes) {
        let done = match self.patience {
            Some(patience) => timeout(patience, self.try_post(body)).await.unwrap_or_else(|_| Err(overdue(patience))),
            None => self.try_post(body).await,
        };
        self.tell(News::Done(done)).await;
    }

    /// Reads the server's own messages, and connects again when the stream ends, for as long as the server offers one.
    pub async fn listen(self, mut last_id: Option<String>) {
        let (mut failures, mut conflicts) = (0_u32, 0_u32);
        let done = loop {
            let mut wait = RECONNECT;
            match self.get(last_id.as_deref()).await {
                Ok(response) if response.status().is_success() && is_stream(&response) => {
                    (failures, conflicts) = (0, 0);
                    self.tell(News::StreamAnswered).await;
                    let opened = Instant::now();
                    let end = self.stream(response, &mut last_id).await;
                    let retry = end.as_ref().ok().and_then(|end| end.retry);
                    if let Err(trouble) = end {
                        tracing::debug!(reason = trouble.message, "the upstream's stream broke");
                    }
                    if retry.is_none() && opened.elapsed() > RECONNECT {
                        // What the server says meanwhile would be lost.
                        continue;
                    }
                    wait = retry.unwrap_or(RECONNECT);
                }
                // There may be one stream only, and the server has not noticed yet that the one before is gone.
                Ok(response) if response.status() == StatusCode::CONFLICT && conflicts < CONFLICTS => {
                    conflicts += 1;
                    tokio::time::sleep(CONFLICT_RETRY).await;
                    continue;
                }
                // 405: the server has no such stream. Nothing else that it says is reason to insist.
                Ok(response) if response.status().is_client_error() || response.status().is_success() => {
                    break Some(refusal(response.status())).filter(Trouble::is_refused).map_or(Ok(()), Err);
                }
                Ok(_) | Err(_) => {
                    failures += 1;
                    self.tell(News::StreamAnswered).await;
                }
            }
            let longest = RECONNECT.saturating_mul(1 << failures.min(5));
            tokio::time::sleep(wait.max(longest).min(LONGEST_RETRY)).await;
        };
        self.tell(News::Done(done)).await;
    }

    async fn try_post(&self, body: Bytes) -> Result<(), Trouble> {
        let response = self.send(self.posting(self.headers.clone(), body.clone())).await?;
        let response = self.with_listed_headers(response, &body).await?;
        if let Some(session) = response.headers().get(SESSION_ID)
            && response.status().is_success()
        {
            self.tell(News::Session(session.clone())).await;
        }
        self.receive(response, &body).await
    }

    pub(super) fn posting(&self, headers: HeaderMap, body: Bytes) -> RequestBuilder {
        self.client
            .post(self.url.clone())
            .headers(headers)
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(body)
    }

    async fn receive(&self, response: Response, request: &[u8]) -> Result<(), Trouble> {
        let status = response.status();
        if !status.is_success() {
            return self.refused(status, response, request).await;
        }
        if self.key.is_none() && !is_stream(&response) {
            return Ok(());
        }
        if is_stream(&response) {
            return self.stream_until_answered(response).await;
        }
        let body = self.body(response).await?;
        if !answers(&body, self.key.as_ref()) {
            return Err(trouble("bad_answer", "the upstream's answer is not a JSON-RPC answer to the request"));
        }
        self.tell(News::Line(body, None)).await;
        Ok(())
    }

    /// An error status: an error answer of the protocol goes on, anything else is said in our words.
    async fn refused(&self, status: StatusCode, response: Response, request: &[u8]) -> Result<(), Trouble> {
        let in_session = self.headers.contains_key(SESSION_ID);
        let refusal = refusal(status);
        if refusal.is_refused() {
            // What it says of that, and where a token is to be had, is for us and not for the agent.
            return Err(refusal);
        }
        let body = match is_json(&response) || (in_session && status == StatusCode::BAD_REQUEST) {
            true => self.body(response).await.unwrap_or_default(),
            false => Bytes::new(),
        };
        let own = answers(&body, self.key.as_ref());
        let session_lost = in_session
            && match status {
                StatusCode::NOT_FOUND => !own || !is_method_not_found(&body),
                StatusCode::BAD_REQUEST => !own && blames_session(&body),
                _ => false,
            };
        if session_lost {
            return Err(Trouble { session_lost, ..refusal });
        }
        let about_request = matches!(refusal.kind, "http_404" | "http_4xx") && self.key.is_some();
        let line = if own { Some(body) } else { about_request.then(|| under_id_of(request, &body)).flatten() };
        let may_be_older = matches!(status.as_u16(), 400 | 404 | 405);
        let Some(line) = line else { return Err(Trouble { may_be_older, ..refusal }) };
        self.tell(News::Line(line, None)).await;
        Ok(())
    }

    /// Reads a stream until the answer has come, with reconnections if the server allows them.
    async fn stream_until_answered(&self, response: Response) -> Result<(), Trouble> {
        let mut last_id = None;
        let mut end = self.stream(response, &mut last_id).await;
        for _ in 0..RESUMPTIONS {
            let retry = match &end {
                Ok(end) if end.answered || self.key.is_none() => return Ok(()),
                Ok(end) => end.retry,
                Err(_) => None,
            };
            if last_id.is_none() {
                break;
            }
            tokio::time::sleep(retry.unwrap_or(RECONNECT).min(LONGEST_RETRY)).await;
            let response = self.get(last_id.as_deref()).await?;
            if !response.status().is_success() {
                return Err(refusal(response.status()));
            }
            end = self.stream(response, &mut last_id).await;
        }
        match end?.answered {
            true => Ok(()),
            false => Err(trouble(STREAM_ENDED, "the upstream ended its stream before the answer")),
        }
    }

    /// Passes the stream's messages on until it ends, or shortly after the answer has come.
    async fn stream(&self, response: Response, last_id: &mut Option<String>) -> Result<StreamEnd, Trouble> {
        let mut parser = Parser::new(self.limit);
        let mut chunks = response.bytes_stream();
        let mut end = StreamEnd::default();
        loop {
            // A stream that has ended properly leaves its connection fit for the next request.
            let next =
                if end.answered { timeout(LINGER, chunks.next()).await.ok().flatten() } else { chunks.next().await };
            let Some(chunk) = next else { break };
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(_) if end.answered => break,
                Err(error) => return Err(transport(&self.url, &error)),
            };
            parser.push(&chunk).map_err(|error| trouble("message_too_large", error))?;
            while let Some(event) = parser.next() {
                let line = one_line(event.data);
                end.answered |= self.key.is_some() && answers(&line, self.key.as_ref());
                self.tell(News::Line(line, event.id)).await;
            }
            if let Some(id) = parser.last_id()
                && last_id.as_deref() != Some(id)
            {
                *last_id = Some(id.to_owned());
                if self.key.is_none() {
                    self.tell(News::EventId(id.to_owned())).await;
                }
            }
            end.retry = parser.retry();
        }
        Ok(end)
    }

    async fn get(&self, last_id: Option<&str>) -> Result<Response, Trouble> {
        let mut request =
            self.client.get(self.url.clone()).headers(self.headers.clone()).header(ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header(LAST_EVENT_ID, id);
        }
        self.send(request).await
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Trouble> {
        request.send().await.map_err(|error| transport(&self.url, &error))
    }

    pub(super) async fn body(&self, mut response: Response) -> Result<Bytes, Trouble> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| transport(&self.url, &error))? {
            if body.len() + chunk.len() > self.limit {
                let what = format!("the upstream's answer is larger than {} bytes", self.limit);
                return Err(trouble("message_too_large", what));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(one_line(body.into()))
    }

    async fn tell(&self, news: News) {
        // Nobody listens any more when the session has ended, and then nothing matters.
        let _ = self.reports.send(Report { serial: self.serial, news }).await;
    }
}

/// Says in words what went wrong below HTTP. The innermost source has the fact; the URL's query is left out.
pub fn transport(url: &Url, error: &reqwest::Error) -> Trouble {
    let mut fact: &dyn std::error::Error = error;
    while let Some(source) = fact.source() {
        fact = source;
    }
    let host = url.host_str().unwrap_or("?");
    let at = url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    if error.is_connect() {
        trouble("upstream_unreachable", format_args!("no connection to {at}: {fact}"))
    } else if error.is_timeout() {
        trouble("upstream_unreachable", format_args!("{at} does not answer"))
    } else {
        trouble(BROKEN, format_args!("the connection to {at} broke: {fact}"))
    }
}

#[derive(Debug, Default)]
struct StreamEnd {
    answered: bool,
    retry: Option<Duration>,
}

pub fn refusal(status: StatusCode) -> Trouble {
    let (kind, why) = match status.as_u16() {
        401 => (UNAUTHORIZED, "it did not accept the credentials that mcpeg is configured to send"),
        403 => (FORBIDDEN, "the credentials that mcpeg is configured to send do not allow this"),
        404 => ("http_404", "there is nothing at the configured URL, or it has forgotten the session"),
        407 => ("http_407", "a proxy stands in between"),
        413 => ("http_413", "the message is too large for it"),
        429 => ("http_429", "too many requests"),
        300..=399 => ("http_3xx", "a redirect, which mcpeg does not follow: configure the URL that it leads to"),
        400..=499 => ("http_4xx", "it refused the request"),
        502..=504 => ("http_5xx", "it is not available"),
        _ => ("http_5xx", "it failed"),
    };
    trouble(kind, format_args!("the upstream answered {status}: {why}"))
}

fn overdue(patience: Duration) -> Trouble {
    trouble("timeout", format_args!("the upstream did not take a message within {patience:?}"))
}

fn trouble(kind: &'static str, message: impl std::fmt::Display) -> Trouble {
    Trouble::new(kind, message)
}

fn answers(line: &[u8], key: Option<&IdKey>) -> bool {
    matches!(parse(line), Ok(Message::Answer(answer)) if answer.key.is_some() && answer.key.as_ref() == key)
}

/// A legacy server's way to say that it has no such method, which is no word about the session.
fn is_method_not_found(body: &[u8]) -> bool {
    let expected = Some(i64::from(code::METHOD_NOT_FOUND));
    matches!(parse(body), Ok(Message::Answer(Answer { body: AnswerBody::Error { code, .. }, .. })) if code == expected)
}

/// Some servers answer 400 where the specification wants 404, and say in words that it is the session: in a JSON-RPC error whose id is
/// not the request's, in JSON of their own, or in plain text. Only known phrases count, for a tool may have a session among its arguments.
fn blames_session(body: &[u8]) -> bool {
    let found = serde_json::from_slice(body).map(|body: ErrorBody| match body.error {
        ErrorWords::Object { message } | ErrorWords::Text(message) => message,
    });
    let is_json = body.trim_ascii_start().first().is_some_and(|first| matches!(first, b'{' | b'['));
    let words = match found {
        Ok(message) => message,
        Err(_) if is_json || body.len() > LONGEST_WORDS => return false,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let words = words.to_ascii_lowercase();
    SESSION_PHRASES.iter().any(|phrase| words.contains(phrase))
}

/// An error answer that does not name the request, as a server writes it that could not read so far, with the request's id put in.
fn under_id_of(request: &[u8], body: &[u8]) -> Option<Bytes> {
    let Ok(Message::Request(request)) = parse(request) else { return None };
    let text = std::str::from_utf8(body).ok()?;
    let spliced = match parse(body) {
        Ok(Message::Answer(answer)) => splice::replace(text, answer.id, request.id.raw())?,
        Ok(_) => return None,
        Err(_) => splice::add_members(text, &[("id", request.id.raw())], |_| false)?,
    };
    let is_error =
        matches!(parse(spliced.as_bytes()), Ok(Message::Answer(Answer { body: AnswerBody::Error { .. }, .. })));
    is_error.then(|| spliced.into())
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorWords,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorWords {
    Object { message: String },
    Text(String),
}

/// In valid JSON a raw line break stands only between tokens: a space says the same.
pub fn one_line(text: Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', &text).is_none() {
        return text;
    }
    text.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect()
}

pub fn is_stream(response: &Response) -> bool {
    has_type(response, "text/event-stream")
}

fn is_json(response: &Response) -> bool {
    has_type(response, "application/json")
}

fn has_type(response: &Response, wanted: &str) -> bool {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
}

const UNAUTHORIZED: &str = "http_401";
const FORBIDDEN: &str = "http_403";
const BROKEN: &str = "connection_broken";
const STREAM_ENDED: &str = "stream_ended";
/// How often, and after how long, a stream is wished for again that the server does not want beside another one.
const CONFLICTS: u32 = 40;
const CONFLICT_RETRY: Duration = Duration::from_millis(50);
const RECONNECT: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long the end of a stream is awaited after the answer.
const LINGER: Duration = Duration::from_secs(1);
const RESUMPTIONS: usize = 5;
/// How servers of the SDKs and frameworks in use say it, in lower case.
const SESSION_PHRASES: [&str; 12] = [
    "valid session id",
    "invalid session",
    "missing session id",
    "mcp-session-id",
    "session not found",
    "session does not exist",
    "session expired",
    "session has expired",
    "session terminated",
    "session has been terminated",
    "unknown session",
    "server not initialized",
];
/// A plain text that says more is no such word.
const LONGEST_WORDS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_many_lines_becomes_one() {
        let line = one_line(Bytes::from_static(b"{\r\n  \"a\": \"x\\n\"\n}"));
        assert_eq!(&line[..], b"{    \"a\": \"x\\n\" }");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&line).unwrap()["a"], "x\n");
    }

    #[test]
    fn a_400_about_the_session_is_told_from_another() {
        for lost in [
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Session not found"},"id":null}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}"#,
            r#"{"error":"Session expired"}"#,
            "Invalid session ID\n",
        ] {
            assert!(blames_session(lost.as_bytes()), "{lost}");
        }
        for other in [
            r#"{"jsonrpc":"2.0","error":{"code":-32602,"message":"argument session_name is required"},"id":null}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"no version"},"id":null}"#,
            r#"{"session not found":"x"}"#,
            "the session_name is missing",
        ] {
            assert!(!blames_session(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn an_error_that_names_no_request_gets_the_id_of_the_one_it_answers() {
        let request = br#"{"jsonrpc":"2.0","id":"a\u0062","method":"tools/call","params":{}}"#;
        let under =
            |body: &str| under_id_of(request, body.as_bytes()).map(|line| String::from_utf8(line.into()).unwrap());
        let data = r#""error":{"code":-32022,"message":"no","data":{"supported":["2025-11-25"]}}"#;
        assert_eq!(
            under(&format!(r#"{{"jsonrpc":"2.0","id":null,{data}}}"#)).unwrap(),
            format!(r#"{{"jsonrpc":"2.0","id":"a\u0062",{data}}}"#)
        );
        assert_eq!(
            under(&format!(r#"{{"jsonrpc":"2.0",{data}}}"#)).unwrap(),
            format!(r#"{{"jsonrpc":"2.0",{data},"id":"a\u0062"}}"#)
        );
        assert_eq!(under(r#"{"jsonrpc":"2.0","id":null,"result":{}}"#), None);
        assert_eq!(under(r#"{"error":"no"}"#), None);
        assert_eq!(under("no"), None);
    }

    #[test]
    fn an_error_status_is_said_in_words() {
        assert!(refusal(StatusCode::UNAUTHORIZED).message.contains("401 Unauthorized: it did not accept"));
        assert_eq!(refusal(StatusCode::TEMPORARY_REDIRECT).kind, "http_3xx");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY).kind, "http_5xx");
    }
}
