//! The guard against encoders that are not its own, in random texts and random chunks.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::*;
use crate::ports::Redactor;
use crate::secret::Secret;

fn version(fields: &[(&str, &[u8])]) -> BTreeMap<String, Secret> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), Secret::copy_from(value))).collect()
}

fn guard(items: &[(&str, &[u8])]) -> Arc<Guard> {
    let guard = Guard::new().unwrap();
    items.iter().for_each(|(item, value)| guard.published(item, &version(&[("value", value)])));
    Arc::new(guard)
}

fn redacted(guard: &Guard, text: &[u8]) -> String {
    String::from_utf8_lossy(&guard.redact(text)).into_owned()
}

/// As others write it. `around`: what stands beside it where the form depends on it.
fn encodings(value: &str, before: &str, after: &str) -> Vec<Vec<u8>> {
    const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let whole = format!("{before}{value}{after}");
    let json = serde_json::to_string(value).unwrap();
    let json = &json[1..json.len() - 1];
    let twice = serde_json::to_string(json).unwrap();
    let lower =
        |text: String| {
            let parts = text.split('%').enumerate();
            parts
                .map(|(n, part)| {
                    if n == 0 { part.to_owned() } else { format!("%{}{}", part[..2].to_ascii_lowercase(), &part[2..]) }
                })
                .collect::<String>()
        };
    let percent = utf8_percent_encode(value, UNRESERVED).to_string();
    let form: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
    let spelled = |upper: bool| {
        let unit = |unit: u16| if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
        value.encode_utf16().map(unit).collect::<String>()
    };
    let ascii: String = json
        .chars()
        .map(|c| {
            if c.is_ascii() {
                c.to_string()
            } else {
                c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect()
            }
        })
        .collect();
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![
        value.to_owned(),
        STANDARD.encode(&whole),
        STANDARD_NO_PAD.encode(&whole),
        URL_SAFE.encode(&whole),
        URL_SAFE_NO_PAD.encode(&whole),
        hex.to_uppercase(),
        hex,
        lower(percent.clone()),
        percent,
        form,
        json.to_owned(),
        json.replace('/', "\\/"),
        twice[1..twice.len() - 1].to_owned(),
        ascii,
        spelled(false),
        spelled(true),
        value.bytes().map(|byte| format!("%{byte:02X}")).collect(),
        STANDARD.encode(&whole).replace('/', "\\/"),
        utf8_percent_encode(&STANDARD.encode(&whole), UNRESERVED).to_string(),
    ];
    all.dedup();
    all.into_iter().map(String::into_bytes).collect()
}

const VALUES: [&str; 6] = [
    "ghp_0123456789abcdefABCDEF0123456789abcd",
    "hunter22",
    "p\"a\\ss/wörd+{1}&<x>'~*",
    "line one of it\nline two\tof it",
    "ключ-🔑-пароль",
    "a+b/c=d?e f",
];

#[test]
fn a_value_is_found_in_every_encoding_at_every_place() {
    for value in VALUES {
        let guard = guard(&[("item", value.as_bytes())]);
        for (before, after) in [("", ""), ("u", "!"), ("us", "?!"), ("user:", "\n")] {
            for (number, form) in encodings(value, before, after).into_iter().enumerate() {
                for lead in 0..17 {
                    let text = [&b". . . . . . . . . "[..lead], &form, b" end"].concat();
                    let found = redacted(&guard, &text);
                    assert!(
                        found.contains("[REDACTED:item]"),
                        "{value:?} {number}: {:?}",
                        String::from_utf8_lossy(&text)
                    );
                    let left = found.len() - "[REDACTED:item]".len() - lead - " end".len();
                    assert!(
                        left <= (before.len() + after.len()) * 2 + 6,
                        "{value:?} {number}: {found:?} leaves {left}"
                    );
                }
            }
        }
    }
}

#[test]
fn texts_without_a_value_come_back_as_they_are() {
    let guard = guard(&[("item", b"correct horse battery staple"), ("short", b"hunter22")]);
    for text in
        [&b""[..], b"x", b"1234567", b"hunter2 2", b"correct horse battery stapl", b"orrect horse battery staple"]
    {
        assert!(matches!(guard.redact(text), Cow::Borrowed(same) if same == text));
    }
}

#[test]
fn what_is_too_short_or_too_common_is_not_looked_for() {
    let fields: [(&str, &[u8]); 4] =
        [("pin", b"1234567"), ("blank", b"        "), ("stars", b"********"), ("host", b"LOCALHOST")];
    let guard = Guard::new().unwrap();
    guard.published("item", &version(&fields));
    assert!(guard.is_idle());
}

#[test]
fn the_texts_of_a_document_and_the_lines_of_a_key_are_found_alone() {
    let document = br#" {"type": "service_account", "key": {"id": ["in \"side\" it"]}} "#;
    let pem = b"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\r\nAQEFAASCBKcwggSjAgEAAoIB\n-----END PRIVATE KEY-----\n";
    let guard = guard(&[("document", document), ("pem", pem)]);
    assert_eq!(redacted(&guard, br#"x in "side" it y"#), "x [REDACTED:document] y");
    assert_eq!(redacted(&guard, b"| AQEFAASCBKcwggSjAgEAAoIB |"), "| [REDACTED:pem] |");
    assert_eq!(redacted(&guard, &[b">", &pem[..], b"<"].concat()), ">[REDACTED:pem]\n<");
    assert_eq!(redacted(&guard, b"service_account"), "service_account");
}

#[test]
fn a_replaced_value_is_found_a_while_longer_and_then_the_oldest_goes() {
    let guard = guard(&[("item", b"value-number-0")]);
    for number in 1..=MOST_PAST + 1 {
        guard.published("item", &version(&[("value", format!("value-number-{number}").as_bytes())]));
    }
    for number in 0..=MOST_PAST + 1 {
        let text = format!("<value-number-{number}>");
        assert_eq!(redacted(&guard, text.as_bytes()).contains("REDACTED"), number > 0, "{number}");
    }
    guard.retired("item");
    assert_eq!(redacted(&guard, b"value-number-9"), "[REDACTED:item]", "it may still be on its way");
}

#[test]
fn values_that_overlap_are_one_mark_named_after_the_longest() {
    let guard = guard(&[("part", b"0123456789"), ("all", b"user:0123456789@host"), ("next", b"@hostname.example")]);
    assert_eq!(redacted(&guard, b"x user:0123456789@host y 0123456789 z"), "x [REDACTED:all] y [REDACTED:part] z");
    assert_eq!(redacted(&guard, b"x user:0123456789@hostname.example y"), "x [REDACTED:all] y");
}

#[test]
fn a_value_larger_than_a_piece_goes_as_a_whole() {
    let value: Vec<u8> = (0..10_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let guard = guard(&[("blob", &value)]);
    let found = redacted(&guard, &[b"<", &value[..], b">"].concat());
    assert!(found.starts_with("<[REDACTED:blob]") && found.len() < 400, "{} left", found.len());
    let found = redacted(&guard, STANDARD.encode(&value).as_bytes());
    assert!(found.len() < 400, "{} left", found.len());
}

#[test]
fn the_index_holds_no_value_and_no_form_of_it() {
    let guard = guard(&[("item", b"ghp_0123456789abcdefABCDEF0123456789abcd")]);
    // Of a print, eight windows of 32 bits, two more, and a digest are all there is; none of it is a part of a form.
    let prints = guard.prints(&version(&[("value", b"ghp_0123456789abcdefABCDEF0123456789abcd")]));
    let other = Guard::new().unwrap().prints(&version(&[("value", b"ghp_0123456789abcdefABCDEF0123456789abcd")]));
    assert!(prints.len() > 8 && prints.len() == other.len());
    assert!(prints.iter().zip(&*other).all(|(one, two)| one.digest != two.digest), "the key is the process's own");
}

#[test]
fn the_redactor_takes_live_values_before_patterns_and_counts_both() {
    let token = "ghp_0123456789abcdefABCDEF0123456789abcd";
    let settings = Settings {
        builtin: true,
        custom: vec![patterns::Custom { name: "ticket".to_owned(), regex: r"TICKET-\d{6}".to_owned() }],
    };
    let redactor = SecretRedactor::new(guard(&[("github", token.as_bytes())]), &settings).unwrap();
    let other = token.replace("0123", "9999");
    let text = format!("{token} {other} TICKET-123456 plain");
    assert_eq!(redactor.redact_text(&text), "[REDACTED:github] [REDACTED:github-token] [REDACTED:ticket] plain");
    let counts: BTreeMap<_, _> = redactor
        .counts()
        .into_iter()
        .map(|count| (count.name.to_string(), (count.kind.as_str(), count.count)))
        .collect();
    assert_eq!(counts["github"], ("secret", 1));
    assert_eq!(counts["github-token"], ("pattern", 1));
    assert_eq!(counts["ticket"], ("pattern", 1));
    assert!(matches!(redactor.redact(b"nothing in it"), Cow::Borrowed(_)));
}

fn value() -> impl Strategy<Value = String> {
    "[ -~äö\n]{8,60}".prop_filter("not common", |value| {
        let distinct: std::collections::BTreeSet<char> = value.chars().collect();
        value.trim() == value && value.len() >= 8 && distinct.len() >= 6
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_planted_value_is_found_in_any_form(value in value(), noise in "[ -~]{0,40}", which in 0_usize..64, extra in "[a-z:]{0,4}") {
        let guard = guard(&[("item", value.as_bytes())]);
        let forms = encodings(&value, &extra, "");
        let form = &forms[which % forms.len()];
        let text = [noise.as_bytes(), b"\x01", form, b"\x01", noise.as_bytes()].concat();
        prop_assert!(!guard.find(&text).is_empty(), "{:?}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn chunks_make_no_difference(
        value in value(),
        other in value(),
        parts in prop::collection::vec((0_usize..40, "[ -~]{0,30}"), 0..8),
        cuts in prop::collection::vec(0_usize..400, 0..12),
    ) {
        let guard = guard(&[("one", value.as_bytes()), ("two", other.as_bytes())]);
        let mut text = Vec::new();
        for (which, noise) in parts {
            let forms = encodings(if which % 2 == 0 { &value } else { &other }, "", "");
            text.extend_from_slice(&forms[which % forms.len()]);
            text.extend_from_slice(noise.as_bytes());
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let (mut stream, mut out) = (Stream::new(guard.clone()), Vec::new());
        for pair in cuts.windows(2) {
            stream.push(&text[pair[0]..pair[1]], &mut out);
        }
        stream.finish(&mut out);
        let whole = guard.redact(&text);
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole));
    }
}
