//! The rules of the modern era for one request over HTTP (2026-07-28, transports): headers that repeat the message, and statuses.
//!
//! Pure. Invariant: what is let through names the same version, method and subject in its headers as in its body, so that whoever
//! routes or judges by headers sees what the server sees.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::access;
use crate::mcp::catalogue::Tool;
use crate::mcp::message::{Answer, AnswerBody, Field, Request};
use crate::mcp::parameters;
use crate::mcp::protocol::{
    LEGACY, META_CAPABILITIES, META_VERSION, MODERN, PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, code,
};

/// Why a request is not taken; all of them are 400.
#[derive(Debug, PartialEq)]
pub struct Rejection {
    pub code: i32,
    pub message: String,
    pub data: Option<Value>,
    /// The value of `error.type`.
    pub kind: &'static str,
}

/// Whether a request without a session is one of the modern era.
pub fn is_modern(headers: &HeaderMap, request: Option<&Request<'_>>) -> bool {
    let named = request.is_some_and(|request| request.modern_version().is_some());
    let version = headers.get(VERSION).map(|version| version.as_bytes());
    named || version.is_some_and(|version| LEGACY.iter().all(|known| known.as_bytes() != version))
}

pub fn check(headers: &HeaderMap, request: &Request<'_>) -> Result<(), Rejection> {
    let meta = request.params.meta.as_ref();
    let version = meta.and_then(|meta| meta.protocol_version);
    for (key, there) in [
        (META_VERSION, version.is_some()),
        (META_CAPABILITIES, meta.is_some_and(|meta| meta.client_capabilities.is_some())),
    ] {
        if !there {
            let message = format!("{key:?} is missing in \"params._meta\"");
            return Err(Rejection { code: code::INVALID_PARAMS, message, data: None, kind: "invalid_params" });
        }
    }
    let version = version.and_then(Field::text);
    let subject = match request.method.as_ref() {
        TOOLS_CALL | PROMPTS_GET => request.params.name,
        RESOURCES_READ => request.params.uri,
        _ => None,
    };
    let mut wanted = vec![(VERSION, version.clone()), (METHOD, Some(request.method.clone()))];
    wanted.extend(subject.map(|subject| (NAME, subject.text())));
    for (name, body) in wanted {
        if body.is_none() || access::text(headers, &name).and_then(decoded) != body.map(std::borrow::Cow::into_owned) {
            return Err(mismatch(&name));
        }
    }
    supported(version.as_deref().unwrap_or_default())
}

/// Arguments that the tool wants repeated have to be said by their headers, and by no header if they are not there.
pub fn check_parameters(headers: &HeaderMap, tool: &Tool, line: &[u8]) -> Result<(), Rejection> {
    if tool.headers.is_empty() {
        return Ok(());
    }
    let call: Option<Arguments<'_>> = serde_json::from_slice(line).ok();
    let arguments = call.and_then(|call| call.params.arguments).map(RawValue::get);
    let said = |name: &HeaderName| {
        headers.get(name).map(|_| access::text(headers, name).and_then(decoded).unwrap_or_default())
    };
    parameters::unsaid(&tool.headers, arguments, said).map_or(Ok(()), |name| Err(mismatch(name)))
}

#[derive(Deserialize)]
struct Arguments<'a> {
    #[serde(borrow)]
    params: Params<'a>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

fn mismatch(name: &HeaderName) -> Rejection {
    let message = format!("the header {name} does not say what the message says");
    Rejection { code: code::HEADER_MISMATCH, message, data: None, kind: "header_mismatch" }
}

pub fn supported(version: &str) -> Result<(), Rejection> {
    if version == MODERN {
        return Ok(());
    }
    Err(Rejection {
        code: code::UNSUPPORTED_VERSION,
        message: format!("the protocol version {version:?} is not supported"),
        data: Some(json!({ "supported": [MODERN], "requested": version })),
        kind: "unsupported_version",
    })
}

/// The status of an answer that is one document.
pub fn status_of(answer: &Answer<'_>) -> StatusCode {
    let AnswerBody::Error { code: Some(found), .. } = answer.body else { return StatusCode::OK };
    match i32::try_from(found) {
        Ok(code::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Ok(
            code::PARSE_ERROR
            | code::INVALID_REQUEST
            | code::INVALID_PARAMS
            | code::HEADER_MISMATCH
            | code::MISSING_CAPABILITY
            | code::UNSUPPORTED_VERSION,
        ) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

/// What a header says. `None`: it says that it is encoded, and is not.
fn decoded(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

pub const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::message::{Message, parse};

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    fn checked(headers: &[(&'static str, &str)], params: &str) -> Result<(), i32> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{params}}}}}"#);
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
        check(&map, &request).map_err(|rejection| rejection.code)
    }

    #[test]
    fn headers_must_say_what_the_message_says() {
        let good = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "grüße")];
        let encoded = ("mcp-name", "=?base64?Z3LDvMOfZQ==?=");
        let params = format!(r#""name":"gr\u00fc\u00dfe",{META}"#);
        assert_eq!(checked(&[good[0], good[1], encoded], &params), Ok(()));
        assert_eq!(checked(&[good[0], good[1]], &params), Err(-32020));
        assert_eq!(checked(&[good[1], encoded], &params), Err(-32020));
        assert_eq!(checked(&[good[0], encoded], &params), Err(-32020));
        assert_eq!(checked(&[good[0], good[1], encoded, ("mcp-name", "other")], &params), Err(-32020));
        for bad in ["=?base64?Z3LDvMOfZQ?=", "=?base64?!?=", "=?base64?/w==?=", "Grüße"] {
            assert_eq!(checked(&[good[0], good[1], ("mcp-name", bad)], &params), Err(-32020), "{bad}");
        }
        assert_eq!(checked(&good[..2], r#""name":"x""#), Err(-32602));
        let without = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
        assert_eq!(checked(&good[..2], without), Err(-32602));
        let other = params.replace("2026-07-28", "2031-01-01");
        assert_eq!(checked(&[("mcp-protocol-version", "2031-01-01"), good[1], encoded], &other), Err(-32022));
        assert_eq!(checked(&[good[0], good[1], encoded], &other), Err(-32020), "it contradicts itself first");
    }
}
