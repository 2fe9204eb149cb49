//! A client's message on its way to an upstream, with what the upstream must know to deliver it.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderName;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::mcp::catalogue::Tool;
use crate::mcp::message::{Field, IdKey, Notification, Params, Request};
use crate::mcp::parameters;
use crate::mcp::protocol::{
    INITIALIZE, INITIALIZED, LISTEN, PROGRESS, PROMPTS_GET, RESOURCES_READ, SET_LEVEL, SUBSCRIBE, TOOLS_CALL,
    UNSUBSCRIBE, is_safe_to_repeat,
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
    /// Of the tool or the prompt that is called, or the address of the resource that is read; no other method has one.
    pub name: Option<String>,
    pub traceparent: Option<String>,
    /// Arguments that the tool wants in headers as well.
    pub parameters: Vec<(HeaderName, String)>,
}

/// The values of a call's arguments for the headers that the tool asks for.
pub fn parameters(headers: &[(HeaderName, Vec<Box<str>>)], call: &[u8]) -> Vec<(HeaderName, String)> {
    if headers.is_empty() {
        return Vec::new();
    }
    let Ok(call) = serde_json::from_slice::<Call<'_>>(call) else { return Vec::new() };
    let arguments = call.params.arguments.map_or("{}", RawValue::get);
    parameters::values(headers, arguments).map(|(name, value)| (name.clone(), value)).collect()
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    params: CallParams<'a>,
}

#[derive(Deserialize)]
struct CallParams<'a> {
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

impl Outgoing {
    /// `tool`: what is known of the one that it calls.
    pub fn request(
        request: &Request<'_>,
        bytes: Bytes,
        hints: bool,
        traceparent: Option<&str>,
        tool: Option<&Tool>,
    ) -> Self {
        let subject = || request.params.uri.and_then(Field::text).unwrap_or_default().into();
        let role = match request.method.as_ref() {
            INITIALIZE => Role::Initialize,
            SET_LEVEL => Role::Level,
            SUBSCRIBE => Role::Subscribe(subject()),
            UNSUBSCRIBE => Role::Unsubscribe(subject()),
            LISTEN => Role::Listen,
            _ => Role::Plain,
        };
        let safe = is_safe_to_repeat(&request.method) || tool.is_some_and(|tool| tool.repeatable);
        let mut hints = hints.then(|| Box::new(Hints::of(&request.method, &request.params, traceparent)));
        if let Some(hints) = hints.as_mut().filter(|hints| hints.modern.is_some()) {
            hints.parameters = tool.map(|tool| parameters(&tool.headers, &bytes)).unwrap_or_default();
        }
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
        let name = match method {
            TOOLS_CALL | PROMPTS_GET => text(params.name),
            RESOURCES_READ => text(params.uri),
            _ => None,
        };
        Self {
            modern,
            method: method.to_owned(),
            name,
            traceparent: traceparent.map(str::to_owned),
            parameters: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::message::{Message, parse};

    #[test]
    fn only_three_methods_have_a_name_in_the_headers_each_from_its_own_field() {
        let name = |method: &str| {
            let line = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"name":"n","uri":"u","_meta":{{}}}}}}"#
            );
            let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
            Outgoing::request(&request, Bytes::new(), true, None, None).hints.unwrap().name
        };
        assert_eq!(["tools/call", "prompts/get"].map(name), [Some("n".to_owned()), Some("n".to_owned())]);
        assert_eq!(name("resources/read").as_deref(), Some("u"));
        assert_eq!(["resources/subscribe", "completion/complete", "vendor/any"].map(name), [None, None, None]);
    }
}
