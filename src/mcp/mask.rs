//! Replaces parts of a JSON text so that it stays JSON.
//!
//! Inside of a string a mark takes the place of whole characters, as they are written: an escape is not cut in two. A number or another
//! bare value becomes a string. Where a part goes over several values, each of them is replaced and what stands between them stays.

use std::ops::Range;

/// A part of the text and what takes its place: letters, digits, and what needs no escape in JSON.
pub struct Part {
    pub range: Range<usize>,
    pub mark: String,
}

/// `parts` are in order and apart from each other. `spared` is a value that stays as it is. `None`: nothing was to be replaced.
pub fn masked(text: &[u8], parts: &[Part], spared: Option<Range<usize>>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let (mut copied, mut at) = (0, 0);
    let mut parts = parts.iter().peekable();
    while let Some(part) = parts.peek() {
        let Some(value) = next_value(text, at) else { break };
        if part.range.end <= value.start {
            parts.next();
            continue;
        }
        at = value.end;
        if part.range.start >= value.end || spared.as_ref() == Some(&value) {
            continue;
        }
        if text[value.start] != b'"' {
            out.extend_from_slice(&text[copied..value.start]);
            out.extend_from_slice(format!("\"{}\"", part.mark).as_bytes());
            copied = value.end;
            continue;
        }
        // Several parts may be in one string, and the last of them may go on after it.
        while let Some(part) = parts.peek().filter(|part| part.range.start < value.end) {
            let range = whole_characters(text, value.start + 1..value.end - 1, &part.range);
            if range.start >= copied && !range.is_empty() {
                out.extend_from_slice(&text[copied..range.start]);
                out.extend_from_slice(part.mark.as_bytes());
                copied = range.end;
            }
            if part.range.end > value.end {
                break;
            }
            parts.next();
        }
    }
    out.extend_from_slice(&text[copied..]);
    (copied > 0).then_some(out)
}

/// The next string, with its quotes, or bare value from `at` on.
fn next_value(text: &[u8], at: usize) -> Option<Range<usize>> {
    let start = at + text[at..].iter().position(|byte| !is_between(*byte))?;
    if text[start] != b'"' {
        let length = text[start..].iter().take_while(|byte| !is_between(**byte) && **byte != b'"').count();
        return Some(start..start + length);
    }
    let mut end = start + 1;
    loop {
        end += memchr::memchr2(b'"', b'\\', text.get(end..)?)?;
        if text[end] == b'"' {
            return Some(start..end + 1);
        }
        end += 2;
    }
}

fn is_between(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' | b'{' | b'}' | b'[' | b']')
}

/// The characters of `string` that `wanted` touches, as they are written.
fn whole_characters(text: &[u8], string: Range<usize>, wanted: &Range<usize>) -> Range<usize> {
    let (mut start, mut end, mut at) = (None, string.start, string.start);
    while at < string.end && at < wanted.end {
        let next = (at + length_at(&text[at..string.end])).min(string.end);
        if next > wanted.start {
            start = start.or(Some(at));
            end = next;
        }
        at = next;
    }
    start.unwrap_or(end)..end
}

/// How many bytes the first character is written with; a surrogate pair is one.
fn length_at(text: &[u8]) -> usize {
    let high = |text: &[u8]| matches!(text, [b'\\', b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..]);
    match text {
        [b'\\', b'u', ..] if high(text) && text.get(6..8) == Some(b"\\u") => 12,
        [b'\\', b'u', ..] => 6,
        [b'\\', ..] => 2,
        [0xf0..=0xff, ..] => 4,
        [0xe0..=0xef, ..] => 3,
        [0xc0..=0xdf, ..] => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(text: &str, ranges: &[Range<usize>]) -> Option<String> {
        let parts: Vec<Part> =
            ranges.iter().map(|range| Part { range: range.clone(), mark: "[X]".to_owned() }).collect();
        masked(text.as_bytes(), &parts, None).map(|out| String::from_utf8(out).unwrap())
    }

    fn at(text: &str, part: &str) -> Range<usize> {
        let start = text.find(part).unwrap();
        start..start + part.len()
    }

    #[test]
    fn strings_numbers_and_what_goes_over_several_stay_json() {
        for (text, part, expected) in [
            (r#"{"a":"x secret y"}"#, "secret", r#"{"a":"x [X] y"}"#),
            (r#"{"a":"x\nsecret"}"#, "nsecret", r#"{"a":"x[X]"}"#),
            (r#"{"a":"\u0041bcdefgh"}"#, "41bcdefg", r#"{"a":"[X]h"}"#),
            (r#"{"a":"\ud83d\ude00!"}"#, "ude00", r#"{"a":"[X]!"}"#),
            (r#"{"a":"ä€🔑"}"#, "€", r#"{"a":"ä[X]🔑"}"#),
            (r#"{"n": 1234567890 }"#, "1234567", r#"{"n": "[X]" }"#),
            (r#"{"a":{"k":"v","n":12},"b":1}"#, r#"{"k":"v","n":12}"#, r#"{"a":{"[X]":"[X]","[X]":"[X]"},"b":1}"#),
            (r#"{"a":"x","b":"y"}"#, r#"x","b"#, r#"{"a":"[X]","[X]":"y"}"#),
        ] {
            assert_eq!(mask(text, &[at(text, part)]).as_deref(), Some(expected));
        }
        let text = r#"["one two one","one"]"#;
        assert_eq!(mask(text, &[2..5, 10..13, 16..19]).unwrap(), r#"["[X] two [X]","[X]"]"#);
        assert_eq!(mask(r#"{"a":1}"#, &[at(r#"{"a":1}"#, "{")]), None);
    }

    #[test]
    fn the_spared_value_stays() {
        let text = br#"{"id":"secret","x":"secret"}"#;
        let parts: Vec<Part> =
            [7..13, 20..26].into_iter().map(|range| Part { range, mark: "[X]".to_owned() }).collect();
        assert_eq!(masked(text, &parts, Some(6..14)).unwrap(), br#"{"id":"secret","x":"[X]"}"#);
    }

    proptest! {
        #[test]
        fn any_part_of_any_json_leaves_json(
            texts in prop::collection::vec("\\PC{0,8}", 1..5),
            number in any::<i64>(),
            cuts in prop::collection::vec(0.0..1.0_f64, 2..6),
            ascii in any::<bool>(),
        ) {
            let value = serde_json::json!({ "a\"b": texts, "n": number, "o": { "k": [true, null, number] } });
            let mut text = value.to_string();
            if ascii {
                text = text.chars().map(|c| if c.is_ascii() { c.to_string() } else {
                    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
                }).collect();
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * text.len() as f64) as usize).collect();
            cuts.sort_unstable();
            let ranges: Vec<Range<usize>> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).filter(|range| !range.is_empty()).collect();
            let parts: Vec<Part> = ranges.iter().map(|range| Part { range: range.clone(), mark: "[X]".to_owned() }).collect();
            if let Some(out) = masked(text.as_bytes(), &parts, None) {
                let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&out);
                prop_assert!(parsed.is_ok(), "{:?} of {} gives {}", ranges, text, String::from_utf8_lossy(&out));
            }
        }
    }
}
