//! One HTTP request: which endpoint it is for, whether it may, which era it is of, and what its session makes of it.
//!
//! POST brings a message, GET opens the stream of a legacy session, DELETE ends one. A body goes on as it came, but for line breaks between
//! tokens, and the ids of modern requests (`ids`). What is refused here never reaches a session, and is on record.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::timeout;

use super::access::{self, Refusal as NoAccess};
use super::modern::{self, Rejection};
use super::reply::{self, Events, Reply};
use super::session::{Ended, HttpSession};
use super::stream::{EventId, Item, StreamReceiver};
use super::{NoSession, Owner, bind};
use crate::mcp::batch;
use crate::mcp::call::Peer;
use crate::mcp::message::{AnswerBody, Field, Message, Notification, Request as Asked, id_of_refused, parse};
use crate::mcp::protocol::{INITIALIZE, LEGACY, LISTEN, TOOLS_CALL, code};
use crate::mcp::registry::{Registry, Shared, Target};
use crate::mcp::router::names::split;
use crate::mcp::upstream::exchange::one_line;

/// The answer to a request that is not taken.
type Refused = Box<Reply>;

/// What holds for all requests of one connection.
pub struct Context {
    pub shared: Arc<Shared>,
    pub peer: Peer,
    /// All services, or the one whose socket it is.
    pub target: Target,
    pub tcp: bool,
    /// Becomes true when the connection has to end: streams without an end do.
    pub cut: watch::Receiver<bool>,
}

impl Context {
    pub async fn respond(&self, request: Request<Incoming>) -> Reply {
        let (mut parts, body) = request.into_parts();
        let registry = self.shared.registry.borrow().clone();
        let (target, line) = match self.admit(&mut parts, &registry) {
            Ok(target) if parts.method == Method::POST => match self.message(body, &registry).await {
                Ok(line) => (target, line),
                Err(refused) => return *refused,
            },
            Ok(target) => (target, Bytes::new()),
            Err(refused) => {
                read_away(body).await;
                return *refused;
            }
        };
        match parts.method {
            Method::POST => self.post(&parts.headers, line, &target).await,
            Method::GET => self.get(&parts.headers, &target).await,
            Method::DELETE => self.delete(&parts.headers, &target),
            _ => reply::not_allowed("GET, POST, DELETE"),
        }
    }

    /// What can be judged before the body is read.
    fn admit(&self, parts: &mut Parts, registry: &Registry) -> Result<Target, Refused> {
        if self.tcp
            && let Some(refused) = self.check_access(parts, registry)
        {
            return Err(refused.into());
        }
        let unknown = || {
            let message = "there is no such endpoint: /mcp has all services, /mcp/NAME has one";
            Box::new(reply::refused(StatusCode::NOT_FOUND, message))
        };
        let target = self.endpoint(parts.uri.path(), registry).ok_or_else(unknown)?;
        if parts.method == Method::POST {
            self.check_headers(&parts.headers, registry)?;
        }
        Ok(target)
    }

    fn check_access(&self, parts: &mut Parts, registry: &Registry) -> Option<Reply> {
        let Some(door) = &registry.http else {
            return Some(reply::refused(StatusCode::SERVICE_UNAVAILABLE, "mcpeg stops, or serves no HTTP any more"));
        };
        let refusal = access::check(&mut parts.headers, &door.settings, &*self.shared.secrets).err()?;
        self.shared.recorder.connection_denied(bind::NAME, self.peer, refusal.kind());
        let text = refusal.to_string();
        Some(match refusal {
            NoAccess::NoToken | NoAccess::WrongToken => reply::unauthorized(&text),
            NoAccess::Unchecked(_) | NoAccess::EmptyToken => {
                tracing::error!(reason = text, "the token of transports.http cannot be checked");
                reply::refused(StatusCode::SERVICE_UNAVAILABLE, &text)
            }
            NoAccess::ForeignHost | NoAccess::ForeignOrigin => {
                reply::error(StatusCode::FORBIDDEN, None, code::NOT_ALLOWED, &text, None)
            }
        })
    }

    fn endpoint(&self, path: &str, registry: &Registry) -> Option<Target> {
        let name = match path.trim_end_matches('/').strip_prefix("/mcp")? {
            "" => return Some(self.target.clone()),
            rest => rest.strip_prefix('/')?,
        };
        match &self.target {
            Target::Aggregate => registry.services.get(name).cloned().map(Target::Service),
            Target::Service(service) => (*service.name == *name).then(|| self.target.clone()),
        }
    }

    fn check_headers(&self, headers: &HeaderMap, registry: &Registry) -> Result<(), Refused> {
        if !names(headers, &CONTENT_TYPE, "application/json") {
            let message = "Content-Type must be application/json";
            return Err(reply::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into());
        }
        if !names(headers, &ACCEPT, "application/json") || !names(headers, &ACCEPT, "text/event-stream") {
            let message = "Accept must name application/json and text/event-stream";
            return Err(reply::refused(StatusCode::NOT_ACCEPTABLE, message).into());
        }
        let announced = access::text(headers, &CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
        let limit = registry.limits.max_message_bytes;
        if announced.is_some_and(|length| length > limit) { Err(self.too_large(limit).into()) } else { Ok(()) }
    }

    fn too_large(&self, limit: usize) -> Reply {
        self.refused(None, "message_too_large");
        reply::refused(StatusCode::PAYLOAD_TOO_LARGE, &format!("the message is larger than {limit} bytes"))
    }

    /// The body as one line.
    async fn message(&self, body: Incoming, registry: &Registry) -> Result<Bytes, Refused> {
        let limit = registry.limits.max_message_bytes;
        match timeout(BODY_WITHIN, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => Ok(one_line(body.to_bytes())),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(self.too_large(limit).into()),
            Ok(Err(_)) => Err(reply::refused(StatusCode::BAD_REQUEST, "the body broke off").into()),
            Err(_) => Err(reply::refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into()),
        }
    }

    async fn post(&self, headers: &HeaderMap, line: Bytes, target: &Target) -> Reply {
        // A client that names no version is of one that had no header for it.
        let version = access::text(headers, &modern::VERSION).unwrap_or(batch::BATCHING);
        if headers.contains_key(SESSION_ID)
            && let Some(messages) = batch::messages(&line, Some(version))
        {
            return self.in_batch(headers, messages, target).await;
        }
        let message = match parse(&line) {
            Ok(message) => message,
            Err(refusal) => {
                let id = id_of_refused(&line);
                self.refused(id.map(Field::raw), "invalid_request");
                return reply::error(StatusCode::BAD_REQUEST, id, refusal.code(), &refusal.to_string(), None);
            }
        };
        let request = match &message {
            Message::Request(request) => Some(request),
            Message::Notification(_) | Message::Answer(_) => None,
        };
        let begins = request.is_some_and(|request| request.method == INITIALIZE && request.modern_version().is_none());
        if headers.contains_key(SESSION_ID) {
            return self.in_session(headers, &line, request, target).await;
        }
        match &message {
            Message::Request(request) if begins => self.initialize(&line, request, target).await,
            _ if !modern::is_modern(headers, request) => {
                let message = "the Mcp-Session-Id header is missing: send \"initialize\" first";
                reply::refused(StatusCode::BAD_REQUEST, message)
            }
            Message::Request(request) => self.modern(headers, &line, request, target).await,
            Message::Notification(notification) => acknowledge(headers, notification),
            Message::Answer(_) => reply::refused(
                StatusCode::BAD_REQUEST,
                "a client of this era is asked nothing, so it has nothing to answer",
            ),
        }
    }

    /// A legacy client's first request: a session, if the server agrees.
    async fn initialize(&self, line: &Bytes, request: &Asked<'_>, target: &Target) -> Reply {
        let session = match self.shared.front.start_legacy(&self.shared, self.peer, target).await {
            Ok(session) => session,
            Err(error) => return unavailable(request, &error),
        };
        let version = request.params.protocol_version.and_then(Field::text);
        let Ok(stream) = session.request(line.clone()).await else { return gone(request) };
        let (mut reply, failed) = legacy_reply(stream, version.as_deref()).await;
        if failed {
            session.end();
        } else if let Ok(id) = HeaderValue::from_str(session.id()) {
            reply.headers_mut().insert(SESSION_ID, id);
        }
        reply
    }

    async fn in_session(
        &self,
        headers: &HeaderMap,
        line: &Bytes,
        request: Option<&Asked<'_>>,
        target: &Target,
    ) -> Reply {
        let session = match self.session(headers, target) {
            Ok(session) => session,
            Err(refused) => return *refused,
        };
        if request.is_none() {
            return match session.message(line.clone()).await {
                Ok(()) => reply::empty(StatusCode::ACCEPTED),
                Err(Ended) => unknown_session(),
            };
        }
        match session.request(line.clone()).await {
            Ok(stream) => {
                let version = access::text(headers, &modern::VERSION);
                legacy_reply(stream, version).await.0
            }
            Err(Ended) => unknown_session(),
        }
    }

    /// All of a batch is taken or nothing of it.
    async fn in_batch(&self, headers: &HeaderMap, messages: Vec<Bytes>, target: &Target) -> Reply {
        let session = match self.session(headers, target) {
            Ok(session) => session,
            Err(refused) => return *refused,
        };
        let mut asks = false;
        for line in &messages {
            let why = match parse(line) {
                Ok(Message::Request(request)) if request.method == INITIALIZE => "\"initialize\" in a batch".to_owned(),
                Ok(message) => {
                    asks |= matches!(message, Message::Request(_));
                    continue;
                }
                Err(refusal) => refusal.to_string(),
            };
            let id = id_of_refused(line);
            self.refused(id.map(Field::raw), "invalid_request");
            return reply::error(StatusCode::BAD_REQUEST, id, code::INVALID_REQUEST, &why, None);
        }
        match session.batch(messages).await {
            Ok(_) if !asks => reply::empty(StatusCode::ACCEPTED),
            Ok(stream) => reply::events(Events::of_batch(stream)),
            Err(Ended) => unknown_session(),
        }
    }

    async fn modern(&self, headers: &HeaderMap, line: &Bytes, request: &Asked<'_>, target: &Target) -> Reply {
        if let Err(rejection) = self.check_modern(headers, line, request, target) {
            self.refused(Some(request.id.raw()), rejection.kind);
            return rejected(Some(request.id), &rejection);
        }
        if request.method == INITIALIZE {
            // This era does not have it; a program that speaks both would begin a session that nobody keeps.
            self.refused(Some(request.id.raw()), "method_not_found");
            let message = "this version of the protocol has no \"initialize\"";
            return reply::error(StatusCode::NOT_FOUND, Some(request.id), code::METHOD_NOT_FOUND, message, None);
        }
        // A session may end between the two steps, of idleness for instance; the next one is new.
        for _ in 0..2 {
            let session = match self.shared.front.shared_modern(&self.shared, self.peer, target).await {
                Ok(session) => session,
                Err(error) => return unavailable(request, &error),
            };
            if let Ok(stream) = session.request(line.clone()).await {
                return self.modern_reply(stream, request.method == LISTEN).await;
            }
        }
        gone(request)
    }

    fn check_modern(
        &self,
        headers: &HeaderMap,
        line: &[u8],
        request: &Asked<'_>,
        target: &Target,
    ) -> Result<(), Rejection> {
        modern::check(headers, request)?;
        let Some(name) = request.params.name.and_then(Field::text).filter(|_| request.method == TOOLS_CALL) else {
            return Ok(());
        };
        let registry = self.shared.registry.borrow();
        let found = match target {
            Target::Service(service) => Some((service, &*name)),
            Target::Aggregate => split(&name, &registry.services).map(|(_, service, tool)| (service, tool)),
        };
        match found.and_then(|(service, tool)| service.catalogue.tool(tool)) {
            Some(tool) => modern::check_parameters(headers, &tool, line),
            None => Ok(()),
        }
    }

    /// One document if the first that comes is the answer, else events.
    async fn modern_reply(&self, mut stream: StreamReceiver, endless: bool) -> Reply {
        let patience = if endless { COMMIT_LISTEN } else { COMMIT };
        let first = match timeout(patience, stream.next()).await {
            Ok(Some(item)) if item.last => {
                let status = match parse(&item.line) {
                    Ok(Message::Answer(answer)) => modern::status_of(&answer),
                    _ => StatusCode::OK,
                };
                return reply::json(status, item.line);
            }
            Ok(Some(item)) => Some(item),
            Ok(None) => return reply::refused(StatusCode::SERVICE_UNAVAILABLE, "the session has ended"),
            Err(_) => None,
        };
        let events = Events::new(stream, first, false, None);
        reply::events(if endless { events.until(self.cut()) } else { events })
    }

    async fn get(&self, headers: &HeaderMap, target: &Target) -> Reply {
        if !headers.contains_key(SESSION_ID)
            && modern::is_modern(headers, None)
            && headers.contains_key(modern::VERSION)
        {
            return reply::not_allowed("POST");
        }
        if !names(headers, &ACCEPT, "text/event-stream") {
            return reply::refused(StatusCode::NOT_ACCEPTABLE, "Accept must name text/event-stream");
        }
        let session = match self.session(headers, target) {
            Ok(session) => session,
            Err(refused) => return *refused,
        };
        let after = match headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default().parse::<EventId>()) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(())) => return reply::refused(StatusCode::BAD_REQUEST, "this Last-Event-ID is none of ours"),
        };
        let version = access::text(headers, &modern::VERSION);
        let prime = after.is_none().then_some(EventId { stream: 0, number: 0 }).filter(|_| takes_empty_events(version));
        match session.listen(after).await {
            Ok(stream) => reply::events(Events::new(stream, None, true, prime).until(self.cut())),
            Err(Ended) => unknown_session(),
        }
    }

    fn delete(&self, headers: &HeaderMap, target: &Target) -> Reply {
        match self.session(headers, target) {
            Ok(session) => {
                self.shared.front.forget(&session);
                session.end();
                reply::empty(StatusCode::OK)
            }
            Err(refused) => *refused,
        }
    }

    /// The session that a request of the legacy era names.
    fn session(&self, headers: &HeaderMap, target: &Target) -> Result<Arc<HttpSession>, Refused> {
        if !headers.contains_key(SESSION_ID) {
            return Err(reply::refused(StatusCode::BAD_REQUEST, "the Mcp-Session-Id header is missing").into());
        }
        let id = access::text(headers, &SESSION_ID).unwrap_or_default();
        let found = self.shared.front.find(id, Owner::of(self.peer), target).filter(|session| session.is_open());
        let session = found.ok_or_else(|| Box::new(unknown_session()))?;
        match headers.get(modern::VERSION).map(HeaderValue::as_bytes) {
            Some(version) if !LEGACY.iter().any(|known| known.as_bytes() == version) => {
                let known = LEGACY.join(", ");
                let message = format!("MCP-Protocol-Version is none that a session can have: {known}");
                Err(reply::refused(StatusCode::BAD_REQUEST, &message).into())
            }
            _ => Ok(session),
        }
    }

    fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut cut = self.cut.clone();
        async move {
            // The sender lives as long as the connection.
            let _ = cut.wait_for(|cut| *cut).await;
        }
    }

    fn refused(&self, id: Option<&str>, kind: &str) {
        if let Err(error) = self.shared.recorder.refused(id, &self.target.name().into(), self.peer, kind) {
            tracing::error!(%error, "a refused message could not be audited");
        }
    }
}

/// The answer of a legacy session, and whether it is an error. Events have ids, so that the client can come back to them.
async fn legacy_reply(mut stream: StreamReceiver, version: Option<&str>) -> (Reply, bool) {
    let first: Option<Item> = match timeout(COMMIT, stream.next()).await {
        Ok(Some(item)) if item.last => {
            let failed = matches!(parse(&item.line), Ok(Message::Answer(answer)) if is_error(&answer.body));
            return (reply::json(StatusCode::OK, item.line), failed);
        }
        Ok(Some(item)) => Some(item),
        // A stream of events is the one kind of answer that may have no message in it.
        Ok(None) if stream.is_cancelled() => return (reply::events(Events::new(stream, None, true, None)), false),
        Ok(None) => return (unknown_session(), true),
        Err(_) => None,
    };
    let number = stream.number();
    let prime = takes_empty_events(version).then_some(EventId { stream: number, number: 0 });
    (reply::events(Events::new(stream, first, true, prime)), false)
}

fn is_error(body: &AnswerBody<'_>) -> bool {
    matches!(body, AnswerBody::Error { .. })
}

/// Clients of older versions take an event without data for a message that is none.
fn takes_empty_events(version: Option<&str>) -> bool {
    version.is_some_and(|version| version >= LEGACY[0])
}

/// In the modern era a client has nothing to notify of: what it cancels, it closes.
fn acknowledge(headers: &HeaderMap, notification: &Notification<'_>) -> Reply {
    match modern::supported(access::text(headers, &modern::VERSION).unwrap_or_default()) {
        Ok(()) => {
            tracing::debug!(
                method = &*notification.method,
                "a notification that means nothing in this era was dropped"
            );
            reply::empty(StatusCode::ACCEPTED)
        }
        Err(rejection) => rejected(None, &rejection),
    }
}

fn rejected(id: Option<Field<'_>>, rejection: &Rejection) -> Reply {
    reply::error(StatusCode::BAD_REQUEST, id, rejection.code, &rejection.message, rejection.data.as_ref())
}

fn unknown_session() -> Reply {
    reply::refused(StatusCode::NOT_FOUND, "there is no such session: send \"initialize\" again, without Mcp-Session-Id")
}

fn unavailable(request: &Asked<'_>, error: &NoSession) -> Reply {
    tracing::warn!(%error, "an HTTP session was refused");
    reply::error(StatusCode::SERVICE_UNAVAILABLE, Some(request.id), code::TOO_MANY, &error.to_string(), None)
}

fn gone(request: &Asked<'_>) -> Reply {
    let message = "the session has ended before the request was taken";
    reply::error(StatusCode::SERVICE_UNAVAILABLE, Some(request.id), code::UPSTREAM_FAILED, message, None)
}

/// Who still sends its body when it is answered may never see the answer.
async fn read_away(body: Incoming) {
    let _ = timeout(READ_AWAY_WITHIN, Limited::new(body, READ_AWAY).collect()).await;
}

/// Whether a header lists a media type, or any.
fn names(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let kind = wanted.split_once('/').map_or(wanted, |(kind, _)| kind);
    let listed = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut types =
        listed.flat_map(|value| value.split(',')).map(|media| media.split(';').next().unwrap_or_default().trim());
    types.any(|media| media.eq_ignore_ascii_case(wanted) || media == "*/*" || media.strip_suffix("/*") == Some(kind))
}

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const READ_AWAY: usize = 64 * 1024;
const READ_AWAY_WITHIN: Duration = Duration::from_secs(1);
const BODY_WITHIN: Duration = Duration::from_secs(60);
/// An answer that takes longer becomes a stream, so that the connection is seen to be alive.
const COMMIT: Duration = Duration::from_secs(5);
const COMMIT_LISTEN: Duration = Duration::from_secs(1);
