//! One audit event as one line of JSON, without the hash that ends it (`chain`), and the way back to its number.
//!
//! `{"time":"2026-11-01T12:00:00.123456Z","event":"mcp.request","outcome":"success","seq":7,"attributes":{...},"trace_id":"..","span_id":"..","hash":".."}`
//!
//! `seq` grows by one with each event of this file, also over restarts: a gap says that an event is missing. The trace's ids are there
//! only when the event has them. A text longer than `MAX_TEXT_BYTES` is cut and ends in `…`. A line never holds a line break.

use serde::Deserialize;

use crate::ports::{AuditEvent, AuditValue};
use crate::telemetry::civil::write_rfc3339;

/// Appends the event to `out`, up to where `chain::seal` goes on.
pub fn write_line(out: &mut Vec<u8>, event: &AuditEvent, seq: u64) {
    out.extend_from_slice(b"{\"time\":\"");
    write_rfc3339(out, event.time);
    out.extend_from_slice(b"\",\"event\":");
    write_text(out, event.name);
    out.extend_from_slice(b",\"outcome\":");
    write_text(out, event.outcome.as_str());
    out.extend_from_slice(b",\"seq\":");
    out.extend_from_slice(seq.to_string().as_bytes());
    out.extend_from_slice(b",\"attributes\":");
    write_attributes(out, event);
    if let Some(trace) = &event.trace {
        out.extend_from_slice(b",\"trace_id\":\"");
        write_hex(out, &trace.trace_id);
        out.extend_from_slice(b"\",\"span_id\":\"");
        write_hex(out, &trace.span_id);
        out.push(b'"');
    }
}

/// Appends the event's attributes as one JSON object.
pub fn write_attributes(out: &mut Vec<u8>, event: &AuditEvent) {
    out.push(b'{');
    for (index, (name, value)) in event.attributes.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(out, name);
        out.push(b':');
        write_value(out, value);
    }
    out.push(b'}');
}

/// The number of the event in a line; `None` when the line is not whole.
pub fn seq_of(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_slice::<Numbered>(line).ok().map(|line| line.seq)
}

/// `text`, or as much of its beginning as a record takes, and whether something was cut off.
pub fn bounded(text: &str) -> (&str, bool) {
    if text.len() <= MAX_TEXT_BYTES {
        return (text, false);
    }
    let mut end = MAX_TEXT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    (&text[..end], true)
}

fn write_value(out: &mut Vec<u8>, value: &AuditValue) {
    match value {
        AuditValue::Text(text) => write_text(out, text),
        AuditValue::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
        AuditValue::Float(number) if number.is_finite() => out.extend_from_slice(number.to_string().as_bytes()),
        // JSON has no word for what is not a number.
        AuditValue::Float(_) => out.extend_from_slice(b"null"),
        AuditValue::Bool(yes) => out.extend_from_slice(if *yes { b"true" } else { b"false" }),
        AuditValue::List(texts) => {
            out.push(b'[');
            for (index, text) in texts.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(out, text);
            }
            out.push(b']');
        }
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let (text, cut) = bounded(text);
    // Writing a string into a vector cannot fail.
    let _ = serde_json::to_writer(&mut *out, text);
    if cut {
        out.pop();
        out.extend_from_slice("…\"".as_bytes());
    }
}

pub fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";
/// Of one attribute's text.
const MAX_TEXT_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use crate::ports::{Outcome, TraceIds};
    use crate::telemetry::audit::chain::{Hash, seal};

    use super::*;

    fn line_of(event: &AuditEvent, seq: u64) -> String {
        let mut out = Vec::new();
        write_line(&mut out, event, seq);
        seal(&mut out, Hash::START);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_reads_as_documented() {
        let mut event = AuditEvent::new("mcp.request", Outcome::Denied)
            .with("mcp.method.name", "tools/call")
            .with("duration", 0.25)
            .with("bytes", 7_i64)
            .with("cached", false)
            .with("versions", vec!["a".to_owned(), "b\"\n".to_owned()])
            .with("odd", f64::NAN);
        event.time = UNIX_EPOCH + Duration::from_micros(1_793_534_400_123_456);
        event.trace = Some(TraceIds { trace_id: [0xab; 16], span_id: [1; 8] });
        let expected = concat!(
            r#"{"time":"2026-11-01T12:00:00.123456Z","event":"mcp.request","outcome":"denied","seq":7,"#,
            r#""attributes":{"mcp.method.name":"tools/call","duration":0.25,"bytes":7,"cached":false,"#,
            r#""versions":["a","b\"\n"],"odd":null},"#,
            r#""trace_id":"abababababababababababababababab","span_id":"0101010101010101","hash":""#,
        );
        let line = line_of(&event, 7);
        assert_eq!(line.strip_prefix(expected).map(str::len), Some("\"}\n".len() + 64), "{line}");
        assert_eq!(seq_of(line.as_bytes()), Some(7));
        assert_eq!(seq_of(&line.as_bytes()[..line.len() - 9]), None);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let event = AuditEvent::new("x.y", Outcome::Success).with("text", "ä".repeat(MAX_TEXT_BYTES));
        let line: serde_json::Value = serde_json::from_str(&line_of(&event, 1)).unwrap();
        let text = line["attributes"]["text"].as_str().unwrap();
        assert!(text.ends_with("ä…") && text.len() <= MAX_TEXT_BYTES + "…".len());
    }

    proptest! {
        #[test]
        fn any_text_makes_one_line_of_json(text in any::<String>(), seq in any::<u64>()) {
            let line = line_of(&AuditEvent::new("x.y", Outcome::Failure).with("text", text.clone()), seq);
            prop_assert_eq!(line.matches('\n').count(), 1);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(parsed["attributes"]["text"].as_str(), Some(text.as_str()));
            prop_assert_eq!(seq_of(line.as_bytes()), Some(seq));
        }
    }
}
