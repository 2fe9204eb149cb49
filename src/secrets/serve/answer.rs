//! Answers, and the body that holds a value no longer than it takes to send it.
//!
//! hyper writes a body's data by `writev` straight from where it is and drops it when the last byte has gone to the kernel, so the
//! one copy in this process is `Chunk`, which is wiped then. A client that does not read would keep it there: `Hold` tells since when,
//! and the server cuts the connection at `TAKE_WITHIN`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use futures_util::stream::Stream;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::secret::{Secret, SecretVersion};

pub(super) type Answer = Response<AnswerBody>;

pub(super) enum AnswerBody {
    Whole(Option<Chunk>),
    /// Versions, as they come; never a value.
    Events(Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>),
}

impl Body for AnswerBody {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Infallible>>> {
        match &mut *self {
            Self::Whole(chunk) => Poll::Ready(chunk.take().map(|chunk| Ok(Frame::data(chunk)))),
            Self::Events(events) => {
                events.as_mut().poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(Chunk::public(event)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(chunk) => SizeHint::with_exact(chunk.as_ref().map_or(0, |chunk| chunk.remaining() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Bytes on their way to the kernel, wiped when they are there.
pub(super) struct Chunk {
    bytes: Zeroizing<Vec<u8>>,
    sent: usize,
    _hold: Option<Hold>,
}

impl Chunk {
    fn public(bytes: Vec<u8>) -> Self {
        Self { bytes: Zeroizing::new(bytes), sent: 0, _hold: None }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn advance(&mut self, count: usize) {
        self.sent = self.bytes.len().min(self.sent + count);
    }
}

/// Since when a connection holds values that the other end has not taken.
#[derive(Clone)]
pub(super) struct Held(Arc<watch::Sender<(usize, Option<Instant>)>>);

impl Held {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new((0, None))))
    }

    pub fn hold(&self) -> Hold {
        self.0.send_modify(|(count, since)| {
            *count += 1;
            since.get_or_insert_with(Instant::now);
        });
        Hold(self.clone())
    }

    /// Completes when a value has been held for `TAKE_WITHIN`.
    pub async fn overdue(&self) {
        let mut held = self.0.subscribe();
        loop {
            let since = held.borrow_and_update().1;
            // The sender is in `self`, so `changed` cannot fail.
            match since {
                None => drop(held.changed().await),
                Some(since) => {
                    if tokio::time::timeout_at(since + TAKE_WITHIN, held.changed()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

pub(super) struct Hold(Held);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.send_modify(|(count, since)| {
            *count -= 1;
            if *count == 0 {
                *since = None;
            }
        });
    }
}

/// All fields as JSON. What is not UTF-8 is `{"base64": "..."}`.
pub(super) fn whole(item: &str, version: &SecretVersion, hold: Hold) -> Option<Answer> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(size_of(item, version)));
    serde_json::to_writer(&mut *bytes, &Whole { item, version }).ok()?;
    bytes.push(b'\n');
    Some(valuable(bytes, JSON, version.version, hold))
}

/// One field as it is.
pub(super) fn raw(field: &Secret, version: u64, hold: Hold) -> Answer {
    valuable(Zeroizing::new(field.expose().to_vec()), RAW, version, hold)
}

/// Enough for any escaping but the worst, so that the buffer seldom grows.
fn size_of(item: &str, version: &SecretVersion) -> usize {
    let fields = version.fields.iter().map(|(name, value)| name.len() + 2 * value.len() + 32);
    64 + item.len() + fields.sum::<usize>()
}

fn valuable(bytes: Zeroizing<Vec<u8>>, kind: &'static str, version: u64, hold: Hold) -> Answer {
    let mut answer =
        respond(StatusCode::OK, kind, AnswerBody::Whole(Some(Chunk { bytes, sent: 0, _hold: Some(hold) })));
    answer.headers_mut().insert(VERSION, HeaderValue::from(version));
    answer
}

pub(super) fn error(status: StatusCode, message: &str) -> Answer {
    json_value(status, &json!({ "error": message }))
}

/// JSON that holds no value.
pub(super) fn json_value(status: StatusCode, value: &serde_json::Value) -> Answer {
    respond(status, JSON, AnswerBody::Whole(Some(Chunk::public(format!("{value}\n").into_bytes()))))
}

pub(super) fn nothing_new() -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(None));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

pub(super) fn events(events: impl Stream<Item = Vec<u8>> + Send + 'static) -> Answer {
    respond(StatusCode::OK, EVENTS, AnswerBody::Events(Box::pin(events)))
}

fn respond(status: StatusCode, kind: &'static str, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

struct Whole<'a> {
    item: &'a str,
    version: &'a SecretVersion,
}

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("item", self.item)?;
        map.serialize_entry("version", &self.version.version)?;
        map.serialize_entry("fields", &Fields(self.version))?;
        map.end()
    }
}

struct Fields<'a>(&'a SecretVersion);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.fields.iter().map(|(name, value)| (name, Field(value))))
    }
}

struct Field<'a>(&'a Secret);

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.expose_str() {
            Some(text) => serializer.serialize_str(text),
            None => {
                use base64::Engine;
                let encoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(self.0.expose()));
                serializer.collect_map([("base64", encoded.as_str())])
            }
        }
    }
}

/// The number of the version that an answer holds.
const VERSION: &str = "mcpeg-secret-version";
const JSON: &str = "application/json";
const RAW: &str = "application/octet-stream";
const EVENTS: &str = "text/event-stream";
/// Half of the second after which a replaced value must be gone.
const TAKE_WITHIN: Duration = Duration::from_millis(500);
