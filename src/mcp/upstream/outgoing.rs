//! A client's message on its way to an upstream, with what the upstream must know to deliver it.

use std::borrow::Cow;

use bytes::Bytes;

use crate::mcp::message::{Field, IdKey, Notification, Params, Request};
use crate::mcp::protocol::{
    INITIALIZE, INITIALIZED, LISTEN, PROGRESS, SET_LEVEL, SUBSCRIBE, UNSUBSCRIBE, is_safe_to_repeat,
};

#[derive(Debug, Clone)]
pub struct Outgoing {
    pub bytes: Bytes,
    /// Of a request.
    pub key: Option<IdKey>,
    pub role: Role,
    /// It may be sent again when it is not known what became of it.
    pub safe: bool,
    /// It has been sent again once.
    pub repeated: bool,
    /// Set for HTTP upstreams only.
    pub hints: Option<Box<Hints>>,
}

/// What the message does to the state of a legacy session, or how long it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Plain,
    Initialize,
    Initialized,
    Level,
    Subscribe(Box<str>),
    Unsubscribe(Box<str>),
    /// Its answer comes only at the end of a subscription.
    Listen,
    /// Order does not matter: an answer of the client, or progress.
    Aside,
}

/// What an HTTP request says in its headers.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// The version of the modern era; `None` in the legacy one.
    pub modern: Option<String>,
    pub method: String,
    pub name: Option<String>,
    pub traceparent: Option<String>,
}

impl Outgoing {
    pub fn request(request: &Request<'_>, bytes: Bytes, hints: bool, traceparent: Option<&str>) -> Self {
        let subject = || request.params.uri.and_then(Field::text).unwrap_or_default().into();
        let role = match request.method.as_ref() {
            INITIALIZE => Role::Initialize,
            SET_LEVEL => Role::Level,
            SUBSCRIBE => Role::Subscribe(subject()),
            UNSUBSCRIBE => Role::Unsubscribe(subject()),
            LISTEN => Role::Listen,
            _ => Role::Plain,
        };
        let safe = is_safe_to_repeat(&request.method);
        let hints = hints.then(|| Box::new(Hints::of(&request.method, &request.params, traceparent)));
        Self { bytes, key: Some(request.key.clone()), role, safe, repeated: false, hints }
    }

    pub fn notification(notification: &Notification<'_>, bytes: Bytes, hints: bool) -> Self {
        let role = match notification.method.as_ref() {
            INITIALIZED => Role::Initialized,
            PROGRESS => Role::Aside,
            _ => Role::Plain,
        };
        let hints = hints.then(|| Box::new(Hints::of(&notification.method, &notification.params, None)));
        Self { bytes, key: None, role, safe: false, repeated: false, hints }
    }

    pub fn answer(bytes: Bytes) -> Self {
        Self { bytes, key: None, role: Role::Aside, safe: false, repeated: false, hints: None }
    }
}

impl Hints {
    fn of(method: &str, params: &Params<'_>, traceparent: Option<&str>) -> Self {
        let text = |field: Option<Field<'_>>| field.and_then(Field::text).map(Cow::into_owned);
        let modern = params.meta.as_ref().and_then(|meta| text(meta.protocol_version));
        Self {
            modern,
            method: method.to_owned(),
            name: text(params.name).or_else(|| text(params.uri)),
            traceparent: traceparent.map(str::to_owned),
        }
    }
}
