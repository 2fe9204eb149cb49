//! One audit event as one line of JSON, and the way back to its number.
//!
//! `{"time":"2026-11-01T12:00:00.123456Z","event":"mcp.request","outcome":"success","seq":7,"attributes":{...},"trace_id":"..","span_id":".."}`
//!
//! `seq` grows by one with each event of this file, also over restarts: a gap says that an event is missing. The trace's ids are there
//! only when the event has them. A text longer than `MAX_TEXT_BYTES` is cut and ends in `…`. A line never holds a line break.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::ports::{AuditEvent, AuditValue};

/// Appends the event and a line feed to `out`.
pub fn write_line(out: &mut Vec<u8>, event: &AuditEvent, seq: u64) {
    out.extend_from_slice(b"{\"time\":\"");
    write_time(out, event.time);
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
    out.extend_from_slice(b"}\n");
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

fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// RFC 3339 in UTC with microseconds. A time before 1970 is written as 1970.
fn write_time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date_of(days);
    write_number(out, year, 4);
    for (separator, number) in
        [(b'-', month), (b'-', day), (b'T', second / 3600), (b':', second / 60 % 60), (b':', second % 60)]
    {
        out.push(separator);
        write_number(out, number, 2);
    }
    out.push(b'.');
    write_number(out, u64::from(since.subsec_micros()), 6);
    out.push(b'Z');
}

fn write_number(out: &mut Vec<u8>, number: u64, digits: u32) {
    for place in (0..digits).rev() {
        // A single decimal digit fits.
        out.push(b'0' + (number / 10_u64.pow(place) % 10) as u8);
    }
}

/// Year, month and day of the Gregorian calendar, for days since 1970-01-01. Years are counted from March, so that the leap day comes last.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

const HEX: &[u8; 16] = b"0123456789abcdef";
/// Of one attribute's text.
const MAX_TEXT_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::ports::{Outcome, TraceIds};

    use super::*;

    fn line_of(event: &AuditEvent, seq: u64) -> String {
        let mut out = Vec::new();
        write_line(&mut out, event, seq);
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
            r#""trace_id":"abababababababababababababababab","span_id":"0101010101010101"}"#,
            "\n"
        );
        assert_eq!(line_of(&event, 7), expected);
        assert_eq!(seq_of(expected.as_bytes()), Some(7));
        assert_eq!(seq_of(&expected.as_bytes()[..expected.len() - 9]), None);
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        let date = |days| date_of(days);
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(19_782), (2024, 2, 29));
        assert_eq!(date(20_088), (2024, 12, 31));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
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
