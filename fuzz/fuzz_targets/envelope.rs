//! The envelope of a message against whatever bytes a client or a server may send.
//!
//! It must never panic, and never read another message than serde_json does: mcpeg decides by what the envelope says, and forwards the bytes
//! to somebody who reads them with a reader of his own. What is replaced in a message must be all that changes.
//!
//! The files under test are taken as they are, so that the target is built without the rest of mcpeg.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../../src/mcp"]
mod mcp {
    pub mod envelope;
    pub mod members;
    pub mod message;
    pub mod protocol;
    pub mod splice;
}

use mcp::members::Members;
use mcp::message::{AnswerBody, Field, Message, Refusal, Request, answered_by_refused, id_of_refused, parse};
use mcp::splice;

fuzz_target!(|line: &[u8]| {
    let value = serde_json::from_slice::<Value>(line);
    match parse(line) {
        Ok(message) => {
            // Numbers that no f64 holds pass, which a `Value` cannot take.
            if let Ok(value) = value {
                agrees(&message, &value);
            }
            let text = std::str::from_utf8(line).expect("a message is UTF-8");
            rewritten(text, &message);
        }
        Err(refusal) => {
            let _ = refusal.to_string();
            let (id, answered) = (id_of_refused(line), answered_by_refused(line));
            assert!(answered.is_none() || id.is_some());
            if matches!(refusal, Refusal::Syntax(_)) {
                assert!(value.is_err(), "said to be no JSON, and is");
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(line)
        && let Some(members) = Members::read(text)
    {
        let written = members.write();
        assert!(serde_json::from_str::<Value>(text).is_err() || serde_json::from_str::<Value>(&written).is_ok());
    }
});

/// Another reader has to see the same method, id, name and address.
fn agrees(message: &Message<'_>, value: &Value) {
    assert_eq!(value["jsonrpc"], "2.0");
    match message {
        Message::Request(request) => {
            assert_eq!(value["method"], *request.method);
            same(Some(request.id), &value["id"]);
            same(request.params.name, &value["params"]["name"]);
            same(request.params.uri, &value["params"]["uri"]);
            let meta = request.params.meta.as_ref();
            let version = &value["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"];
            same(meta.and_then(|meta| meta.protocol_version), version);
            assert!(value.get("result").is_none() && value.get("error").is_none());
        }
        Message::Notification(notification) => {
            assert_eq!(value["method"], *notification.method);
            assert!(value.get("id").is_none());
        }
        Message::Answer(answer) => {
            assert!(value.get("method").is_none());
            same(Some(answer.id), &value["id"]);
            match answer.body {
                AnswerBody::Result { raw, .. } => same(Some(raw), &value["result"]),
                AnswerBody::Error { .. } => assert!(value.get("error").is_some()),
            }
        }
    }
}

fn same(field: Option<Field<'_>>, value: &Value) {
    match field.map(|field| serde_json::from_str::<Value>(field.raw())) {
        Some(Ok(read)) => assert_eq!(read, *value),
        Some(Err(_)) => {}
        None => assert!(value.is_null(), "another reader sees {value}"),
    }
}

/// With another id it is the same message, and with the old one again the same bytes.
fn rewritten(text: &str, message: &Message<'_>) {
    let Message::Request(Request { id, .. }) = message else { return };
    let other = splice::replace(text, *id, "\"fuzz-1\"").expect("the id is of this text");
    let Ok(Message::Request(found)) = parse(other.as_bytes()) else { panic!("no message any more: {other}") };
    assert_eq!(found.id.raw(), "\"fuzz-1\"");
    let back = splice::replace(&other, found.id, id.raw()).expect("the id is of this text");
    assert_eq!(back, text);
}
