//! The answers of the HTTP transport: one JSON document, nothing, or a stream of server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::stream::{EventId, Item, StreamReceiver};
use crate::mcp::answer;
use crate::mcp::message::Field;
use crate::mcp::protocol::code;

pub type Reply = Response<Body>;

pub enum Body {
    Whole(Bytes),
    Events(Box<Events>),
}

/// Messages of one stream, each as an event; a comment where nothing comes for long, so that a client that is gone is noticed.
pub struct Events {
    receiver: StreamReceiver,
    /// Before all others.
    first: Option<Bytes>,
    with_ids: bool,
    /// It has the answers of several requests, and ends with the last of them.
    is_shared: bool,
    ping: Pin<Box<Sleep>>,
    /// Ends the stream before its last message.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    done: bool,
}

impl Events {
    /// `with_ids`: a client may come back with the last one. `prime`: an empty event with this id comes first, so that it always can.
    pub fn new(receiver: StreamReceiver, first: Option<Item>, with_ids: bool, prime: Option<EventId>) -> Self {
        receiver.commit();
        let mut begin = BytesMut::new();
        if let Some(id) = prime {
            begin.extend_from_slice(format!("id: {id}\nretry: {RETRY_MILLIS}\ndata:\n\n").as_bytes());
        }
        if let Some(item) = first {
            begin.extend_from_slice(&event(&item, with_ids));
        }
        // Something is sent at once, so that the client has its headers.
        let first = if begin.is_empty() { Bytes::from_static(PING) } else { begin.freeze() };
        let ping = Box::pin(sleep(PING_EVERY));
        Self { receiver, first: Some(first), with_ids, is_shared: false, ping, cut: None, done: false }
    }

    /// Of a batch: an answer is not the end.
    pub fn of_batch(receiver: StreamReceiver) -> Self {
        Self { is_shared: true, ..Self::new(receiver, None, true, None) }
    }

    pub fn until(mut self, cut: impl Future<Output = ()> + Send + 'static) -> Self {
        self.cut = Some(Box::pin(cut));
        self
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.done {
            return Poll::Ready(None);
        }
        if let Poll::Ready(item) = self.receiver.poll_next(cx) {
            let Some(item) = item else { return Poll::Ready(None) };
            self.done = item.last && !self.is_shared;
            self.ping.as_mut().reset(Instant::now() + PING_EVERY);
            return Poll::Ready(Some(event(&item, self.with_ids)));
        }
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(None);
        }
        if self.ping.as_mut().poll(cx).is_ready() {
            self.ping.as_mut().reset(Instant::now() + PING_EVERY);
            // Polled once more, so that it wakes us.
            let _ = self.ping.as_mut().poll(cx);
            return Poll::Ready(Some(Bytes::from_static(PING)));
        }
        Poll::Pending
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Events(events) => events.poll_event(cx).map(|event| event.map(|event| Ok(Frame::data(event)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Body::Whole(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

/// A message as it is.
pub fn json(status: StatusCode, line: Bytes) -> Reply {
    let mut reply = Response::new(Body::Whole(line));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

pub fn events(events: Events) -> Reply {
    let mut reply = Response::new(Body::Events(Box::new(events)));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    // A reverse proxy must not hold events back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    reply
}

/// An error of the transport: the request was not taken.
pub fn refused(status: StatusCode, message: &str) -> Reply {
    error(status, None, code::INVALID_REQUEST, message, None)
}

pub fn error(
    status: StatusCode,
    id: Option<Field<'_>>,
    code: i32,
    message: &str,
    data: Option<&serde_json::Value>,
) -> Reply {
    json(status, answer::error(id, code, message, data).into())
}

pub fn not_allowed(methods: &'static str) -> Reply {
    let mut reply = refused(StatusCode::METHOD_NOT_ALLOWED, "this method is not served here");
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    reply
}

pub fn unauthorized(message: &str) -> Reply {
    let mut reply = error(StatusCode::UNAUTHORIZED, None, code::NOT_ALLOWED, message, None);
    reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    reply
}

/// One event. A bare carriage return would end its line; between the tokens of JSON a space says the same.
fn event(item: &Item, with_id: bool) -> Bytes {
    let mut event = BytesMut::with_capacity(item.line.len() + 48);
    if with_id {
        event.extend_from_slice(format!("id: {}\n", item.id).as_bytes());
    }
    event.extend_from_slice(b"event: message\ndata: ");
    let at = event.len();
    event.extend_from_slice(&item.line);
    event[at..].iter_mut().filter(|byte| **byte == b'\r').for_each(|byte| *byte = b' ');
    event.extend_from_slice(b"\n\n");
    event.freeze()
}

/// After how long a client whose stream broke should come back.
const RETRY_MILLIS: u32 = 500;
const PING: &[u8] = b": still here\n\n";
const PING_EVERY: Duration = Duration::from_secs(15);
