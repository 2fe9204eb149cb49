//! The envelope of a JSON-RPC message: what a proxy must know of it, and nothing else.
//!
//! A message is one line of UTF-8 JSON. It is read once, front to back, over borrowed text; arguments and results are skipped, and the
//! bytes are later forwarded as they came. Unknown methods, fields and number formats pass.
//!
//! Refused, because the policy and the upstream could otherwise read two different things: a key of the envelope (or `name`, `uri`,
//! `_meta` and the like in `params`) that occurs twice, also when one of the two is written with escapes or in another case; nesting
//! deeper than `MAX_DEPTH`; an array, which is a batch (`batch`) or nothing.

use std::borrow::Cow;

use super::envelope::{self, Envelope};
use super::protocol::{META_VERSION, code, names_a_subject};

/// One message, borrowed from its line.
#[derive(Debug)]
pub enum Message<'a> {
    Request(Request<'a>),
    Notification(Notification<'a>),
    Answer(Answer<'a>),
}

#[derive(Debug)]
pub struct Request<'a> {
    pub id: Field<'a>,
    pub key: IdKey,
    pub method: Cow<'a, str>,
    pub params: Params<'a>,
}

#[derive(Debug)]
pub struct Notification<'a> {
    pub method: Cow<'a, str>,
    pub params: Params<'a>,
}

#[derive(Debug)]
pub struct Answer<'a> {
    pub id: Field<'a>,
    /// `None` when the id is null: the peer could not read the request.
    pub key: Option<IdKey>,
    pub body: AnswerBody<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum AnswerBody<'a> {
    /// `tool_error`: the result says `"isError": true`.
    Result { raw: Field<'a>, tool_error: bool },
    /// `code`: where it is an integer.
    Error { code: Option<i64>, message: Option<Field<'a>> },
}

/// What is read of `params`.
#[derive(Debug, Default)]
pub struct Params<'a> {
    pub name: Option<Field<'a>>,
    pub arguments: Option<Field<'a>>,
    pub uri: Option<Field<'a>>,
    pub cursor: Option<Field<'a>>,
    pub protocol_version: Option<Field<'a>>,
    /// Of `notifications/cancelled`.
    pub request_id: Option<Field<'a>>,
    /// Of `notifications/progress`.
    pub progress_token: Option<Field<'a>>,
    pub meta: Option<Meta<'a>>,
    /// `Name` or `URI`, say, stands there: a reader that ignores case would take it for ours.
    pub(super) other_case: bool,
}

/// What is read of `params._meta`.
#[derive(Debug, Default)]
pub struct Meta<'a> {
    pub traceparent: Option<Field<'a>>,
    /// Present in every request of the modern era.
    pub protocol_version: Option<Field<'a>>,
    /// Beside it, and as necessary.
    pub client_capabilities: Option<Field<'a>>,
    /// Of a request that wants to be told how it goes.
    pub progress_token: Option<Field<'a>>,
    /// Of a notification that belongs to a subscription: the id of the request that made it.
    pub subscription: Option<Field<'a>>,
}

/// A value as it stands in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a>(pub &'a str);

impl<'a> Field<'a> {
    /// The bytes of the value, quotes and escapes included.
    pub fn raw(self) -> &'a str {
        self.0
    }

    /// The text, if the value is a string.
    pub fn text(self) -> Option<Cow<'a, str>> {
        let inner = self.0.strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('\\') {
            serde_json::from_str(self.0).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(inner))
        }
    }
}

/// An id, so that two spellings of the same id are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IdKey {
    Integer(i64),
    Text(Box<str>),
    /// A number that no `i64` holds, as it was written.
    Number(Box<str>),
}

impl IdKey {
    /// `None` for anything that the protocol does not allow as an id, such as null.
    pub fn of(field: Field<'_>) -> Option<Self> {
        let raw = field.raw();
        match raw.as_bytes().first()? {
            b'"' => field.text().map(|text| Self::Text(text.into())),
            b'-' | b'0'..=b'9' => Some(raw.parse().map_or_else(|_| Self::of_number(raw), Self::Integer)),
            _ => None,
        }
    }

    /// `1.0` and `1e0` are 1 to most readers.
    fn of_number(raw: &str) -> Self {
        match raw.parse::<f64>() {
            Ok(number) if number.fract() == 0.0 && number.abs() < EXACT => Self::Integer(number as i64),
            _ => Self::Number(raw.into()),
        }
    }
}

/// Why a message is not taken. The text is for whoever wrote the message, and for the log: it quotes no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not JSON: {0}")]
    Syntax(String),
    #[error("not a JSON-RPC 2.0 message: {0}")]
    Invalid(String),
    #[error("this batch is not taken: sessions of version 2025-03-26 alone have batches, of 1 to 100 messages")]
    Batch,
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
}

impl Refusal {
    pub fn code(&self) -> i32 {
        match self {
            Self::Syntax(_) => code::PARSE_ERROR,
            Self::Invalid(_) | Self::Batch | Self::TooDeep => code::INVALID_REQUEST,
        }
    }
}

/// Reads the envelope of one line.
pub fn parse(line: &[u8]) -> Result<Message<'_>, Refusal> {
    let text = std::str::from_utf8(line).map_err(|_| Refusal::Syntax("the line is not UTF-8".into()))?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => return Err(Refusal::Batch),
        _ => return Err(envelope::not_an_object(text)),
    }
    if is_deeper_than(text.as_bytes(), MAX_DEPTH) {
        return Err(Refusal::TooDeep);
    }
    classify(envelope::read(text)?)
}

/// The id of a message that was refused, if it has exactly one.
pub fn id_of_refused(line: &[u8]) -> Option<Field<'_>> {
    let text = std::str::from_utf8(line).ok()?;
    envelope::only_id(text).map(|(id, _)| id).filter(|id| IdKey::of(*id).is_some())
}

/// The request that a refused message was meant to answer. A request of the peer has ids of its own, so that a message with a method
/// answers nothing.
pub fn answered_by_refused(line: &[u8]) -> Option<IdKey> {
    let text = std::str::from_utf8(line).ok()?;
    envelope::only_id(text).filter(|(_, has_method)| !has_method).and_then(|(id, _)| IdKey::of(id))
}

fn classify(envelope: Envelope<'_>) -> Result<Message<'_>, Refusal> {
    let invalid = |what: &str| Err(Refusal::Invalid(what.into()));
    if envelope.jsonrpc.and_then(Field::text).as_deref() != Some("2.0") {
        return invalid("\"jsonrpc\" must be \"2.0\"");
    }
    let Some(method) = envelope.method else { return classify_answer(envelope) };
    let Some(method) = method.text() else { return invalid("\"method\" must be a string") };
    if envelope.result.is_some() || envelope.error.is_some() {
        return invalid("a request has neither \"result\" nor \"error\"");
    }
    let params = envelope.params.unwrap_or_default();
    if params.other_case && names_a_subject(&method) {
        return invalid("\"name\" and \"uri\" in \"params\" must be written in lower case");
    }
    let Some(id) = envelope.id else { return Ok(Message::Notification(Notification { method, params })) };
    match IdKey::of(id) {
        Some(key) => Ok(Message::Request(Request { id, key, method, params })),
        None => invalid("\"id\" must be a string or a number"),
    }
}

fn classify_answer(envelope: Envelope<'_>) -> Result<Message<'_>, Refusal> {
    let invalid = |what: &str| Err(Refusal::Invalid(what.into()));
    let Some(id) = envelope.id else { return invalid("it has neither \"method\" nor \"id\"") };
    let key = IdKey::of(id);
    if key.is_none() && id.raw() != "null" {
        return invalid("\"id\" must be a string or a number");
    }
    let error = envelope.error.filter(|error| !error.is_null);
    // Servers that write both members mean the one that is not null.
    let result = envelope.result.filter(|result| error.is_none() || result.raw.raw() != "null");
    let body = match (result, error) {
        (Some(result), None) => AnswerBody::Result { raw: result.raw, tool_error: result.tool_error },
        (None, Some(error)) => AnswerBody::Error { code: error.code, message: error.message },
        _ => return invalid("an answer has either \"result\" or \"error\""),
    };
    Ok(Message::Answer(Answer { id, key, body }))
}

impl<'a> Request<'a> {
    /// The version of the modern era that the request names.
    pub fn modern_version(&self) -> Option<Cow<'a, str>> {
        self.params.meta.as_ref()?.protocol_version.and_then(Field::text)
    }

    /// The trace that the caller is in, as the W3C header would say it.
    pub fn traceparent(&self) -> Option<Cow<'a, str>> {
        self.params.meta.as_ref()?.traceparent.and_then(Field::text)
    }

    /// The tool or the prompt that is called.
    pub fn called_name(&self) -> Option<Cow<'a, str>> {
        self.params.name.and_then(Field::text)
    }
}

impl Notification<'_> {
    /// The request that `notifications/cancelled` is about.
    pub fn cancelled(&self) -> Option<IdKey> {
        self.params.request_id.and_then(IdKey::of)
    }
}

/// Counts brackets first, which is fast and enough for nearly every message; only then looks which of them stand in strings.
pub fn is_deeper_than(text: &[u8], limit: usize) -> bool {
    let brackets = text.iter().filter(|byte| **byte == b'{' || **byte == b'[').count();
    brackets > limit && exact_depth_exceeds(text, limit)
}

fn exact_depth_exceeds(text: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// The key of `_meta` that tells the eras apart, for the reader of the envelope.
pub(super) const MODERN_KEY: &str = META_VERSION;
/// Objects and arrays within each other; the deepest that common JSON readers take by default.
pub const MAX_DEPTH: usize = 128;
/// Up to here every integer is a distinct `f64`.
const EXACT: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
