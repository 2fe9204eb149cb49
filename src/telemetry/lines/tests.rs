//! Whole chunks to records, as a collector reads them.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use proptest::prelude::*;
use prost::Message;

use super::batch::{LogBatch, Owner};
use super::multiline::{Language, Multiline};
use super::rules::{Content, Pattern, Rules, Wrapping};
use super::{Cursor, End, LineReader, Placed, Work};
use crate::guard::{Guard, SecretRedactor, Settings};
use crate::ports::{Redactor, SecretObserver};
use crate::secret::Secret;

fn redactor() -> SecretRedactor {
    let guard = std::sync::Arc::new(Guard::new().unwrap());
    let fields = [("password".to_owned(), Secret::copy_from(b"hunter2-and-more"))].into();
    guard.published("db", &fields);
    SecretRedactor::new(guard, &Settings { builtin: true, custom: Vec::new() }).unwrap()
}

/// Reads a text in chunks of at most `size` bytes, each from where the one before was done with.
fn read_in(text: &[u8], rules: &Rules, size: usize, redactor: &dyn Redactor) -> Vec<LogRecord> {
    let owner = Owner::new([("service.name", "x")], "test");
    let (mut reader, mut cursor, mut records) = (LineReader::default(), Cursor::default(), Vec::new());
    let (mut at, mut window) = (0, size);
    loop {
        let stop = text.len().min(at + window);
        let is_last = stop == text.len();
        let end = if is_last {
            End::Closed
        } else if window >= rules.longest_read() * 2 {
            End::Full
        } else {
            End::Open
        };
        let mut batch = LogBatch::default();
        batch.begin(&owner);
        let mut work =
            Work { rules, redactor, source: 1, constant: &[], now: 9, batch: &mut batch, most_bytes: usize::MAX };
        let used = reader.read(Placed { bytes: &text[at..stop], position: at as u64, end }, &mut cursor, &mut work);
        let request = ExportLogsServiceRequest::decode(batch.finish(&owner)).unwrap();
        records.extend(request.resource_logs.into_iter().flat_map(|r| r.scope_logs).flat_map(|s| s.log_records));
        at += used;
        if is_last && at == text.len() {
            return records;
        }
        // As a file's reader would: more, until something is complete.
        window = if used == 0 { window + size } else { size };
    }
}

fn read(text: &str, rules: &Rules) -> Vec<LogRecord> {
    read_in(text.as_bytes(), rules, 1 << 20, &redactor())
}

fn bodies(records: &[LogRecord]) -> Vec<String> {
    records.iter().map(|record| text_of(record.body.as_ref())).collect()
}

fn text_of(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}

fn attribute<'r>(record: &'r LogRecord, key: &str) -> Option<&'r Value> {
    let pair: &KeyValue = record.attributes.iter().find(|pair| pair.key == key)?;
    pair.value.as_ref()?.value.as_ref()
}

fn rules(content: Content) -> Rules {
    Rules { content, ..Rules::default() }
}

#[test]
fn plain_lines_are_records_with_times_and_severities_where_a_pattern_finds_them() {
    let mut rules = rules(Content::Plain);
    rules.time.pattern = Some(Pattern::new(r"^(\S+ \S+)").unwrap());
    rules.severity.pattern = Some(Pattern::new(r"\b(INFO|ERROR)\b").unwrap());
    let found = read("2026-11-26 23:17:33,5 INFO up\r\n\n\0\0\0no time\nlast", &rules);
    assert_eq!(bodies(&found), ["2026-11-26 23:17:33,5 INFO up", "no time", "last"]);
    assert_eq!((found[0].severity_number, found[0].severity_text.as_str()), (9, "INFO"));
    assert_eq!(found[0].time_unix_nano, 1_795_735_053_500_000_000);
    assert_eq!((found[1].severity_number, found[1].time_unix_nano, found[1].observed_time_unix_nano), (0, 0, 9));
    let uid = |at: usize| attribute(&found[at], "log.record.uid").cloned();
    assert_eq!(uid(0), Some(Value::StringValue(format!("{:016x}{:016x}", 1, 0))));
    assert_eq!(uid(1), Some(Value::StringValue(format!("{:016x}{:016x}", 1, 32))));
}

#[test]
fn json_lines_become_fields_and_attributes_and_what_is_no_json_stays_a_line() {
    let line = r#"{"time":"2026-11-26T23:17:33Z","level":"warn","msg":"a \"b\"","n":3,"f":1.5,"yes":true,"none":null,"big":18446744073709551615,"in":{"list":[1,null,"x"],"o":{}},"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331"}"#;
    let found = read(&format!("{line}\n{{broken\n[1]\n{{\"level\":30,\"ts\":1795735053.5}}\n"), &rules(Content::Json));
    assert_eq!(bodies(&found)[..3], ["a \"b\"", "{broken", "[1]"]);
    let first = &found[0];
    assert_eq!((first.severity_number, first.severity_text.as_str()), (13, "warn"));
    assert_eq!(first.time_unix_nano, 1_795_735_053_000_000_000);
    assert_eq!((first.trace_id.len(), first.span_id.len()), (16, 8));
    assert_eq!(attribute(first, "n"), Some(&Value::IntValue(3)));
    assert_eq!(attribute(first, "f"), Some(&Value::DoubleValue(1.5)));
    assert_eq!(attribute(first, "yes"), Some(&Value::BoolValue(true)));
    assert_eq!(attribute(first, "big"), Some(&Value::StringValue("18446744073709551615".into())));
    assert_eq!(attribute(first, "none"), None);
    let Some(Value::KvlistValue(inside)) = attribute(first, "in") else { panic!() };
    let Some(Value::ArrayValue(list)) = inside.values[0].value.as_ref().unwrap().value.as_ref() else { panic!() };
    assert_eq!(
        (list.values.len(), list.values[1].value.as_ref(), text_of(list.values.get(2)).as_str()),
        (3, None, "x")
    );
    assert_eq!((found[3].severity_number, found[3].time_unix_nano), (9, 1_795_735_053_500_000_000));
    assert_eq!(attribute(&found[3], "level"), None);
}

#[test]
fn logfmt_becomes_fields_and_attributes() {
    let found =
        read("level=error msg=\"it \\\"broke\\\"\" n=3 flag ts=1795735053\njust words\n", &rules(Content::Logfmt));
    assert_eq!(bodies(&found), ["it \"broke\"", "just words"]);
    assert_eq!(found[0].severity_number, 17);
    assert_eq!(attribute(&found[0], "n"), Some(&Value::StringValue("3".into())));
    assert_eq!(attribute(&found[0], "flag"), Some(&Value::BoolValue(true)));
    assert!(found[1].attributes.len() == 1, "only its uid");
}

#[test]
fn parts_of_container_lines_are_joined_by_stream_and_each_record_comes_once() {
    let text = "1970-01-01T00:00:01Z stdout P one \n1970-01-01T00:00:02Z stderr F {\"msg\":\"apart\"}\n1970-01-01T00:00:03Z stdout F two\n1970-01-01T00:00:04Z stderr P left ";
    let rules = Rules { wrapping: Wrapping::Cri, ..rules(Content::Json) };
    for size in [1, 30, 75, 1000] {
        let found = read_in(text.as_bytes(), &rules, size, &redactor());
        let mut said = bodies(&found);
        said.sort();
        assert_eq!(said, ["apart", "left", "one two"], "{size}");
        let joined = found.iter().find(|record| text_of(record.body.as_ref()) == "one two").unwrap();
        assert_eq!(joined.time_unix_nano, 1_000_000_000);
        assert_eq!(attribute(joined, "log.iostream"), Some(&Value::StringValue("stdout".into())));
    }
    let docker = "{\"log\":\"one \",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:01Z\"}\n{\"log\":\"two\\n\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:02Z\"}\n";
    let found = read(docker, &Rules { wrapping: Wrapping::Docker, ..Rules::default() });
    assert_eq!(bodies(&found), ["one two"]);
}

#[test]
fn exceptions_are_one_record_however_the_chunks_fall() {
    let text =
        "INFO up\nTraceback (most recent call last):\n  File \"a.py\", line 1, in f\nValueError: no\nINFO next\n";
    let rules = Rules { multiline: Some(Multiline::Exceptions(Language::ALL.to_vec())), ..Rules::default() };
    for size in [7, 60, 1000] {
        let found = bodies(&read_in(text.as_bytes(), &rules, size, &redactor()));
        assert_eq!(
            found,
            [
                "INFO up",
                "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\nValueError: no",
                "INFO next"
            ]
        );
    }
}

#[test]
fn a_line_beyond_the_bound_is_cut_and_marked_and_the_next_one_is_whole() {
    let text = format!("{}hunter2-and-more{}\nnext\n", "ä".repeat(30), "x".repeat(20_000));
    let rules = Rules { max_line_bytes: 65, ..Rules::default() };
    for size in [10, 4161, 100_000] {
        let found = read_in(text.as_bytes(), &rules, size, &redactor());
        assert_eq!(bodies(&found), [format!("{}[REDA [cut]", "ä".repeat(30)), "next".into()], "{size}");
        assert_eq!(attribute(&found[0], "mcpeg.log.cut"), Some(&Value::BoolValue(true)));
    }
}

#[test]
fn no_secret_passes_in_any_format_nor_over_the_border_of_two_lines() {
    let token = "ghp_0123456789abcdefghijklmnopqrstuvwxyzAB";
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ\nq83vEjRWeJCrze8SNFZ4kKvN7xI=\n-----END PRIVATE KEY-----\nafter\n";
    let cri: String = key.lines().map(|line| format!("1970-01-01T00:00:01Z stdout F {line}\n")).collect();
    let escaped =
        "{\"msg\":\"\\u0067hp_0123456789abcdefghijklmnopqrstuvwxyzAB\",\"k\":{\"x\":[\"hunter\\u0032-and-more\"]}}\n";
    let parts =
        "1970-01-01T00:00:01Z stdout P ghp_0123456789abcdef\n1970-01-01T00:00:01Z stdout F ghijklmnopqrstuvwxyzAB\n";
    let cases = [
        (rules(Content::Plain), format!("a {token} b\nhunter2-and-more\n")),
        (rules(Content::Plain), key.to_owned()),
        (Rules { wrapping: Wrapping::Cri, ..Rules::default() }, cri),
        (rules(Content::Json), escaped.to_owned()),
        (rules(Content::Logfmt), format!("msg=\"{token}\" pw=hunter2\\-and\n k=\"hunter2\\-and-more\"\n")),
        (Rules { wrapping: Wrapping::Cri, ..Rules::default() }, parts.to_owned()),
    ];
    for (rules, text) in cases {
        for size in [13, 50, 1 << 20] {
            let found = read_in(text.as_bytes(), &rules, size, &redactor());
            let shown = format!("{found:?}");
            for secret in ["ghp_0123", "hunter2-and-more", "MIIEv", "q83vEj"] {
                assert!(!shown.contains(secret), "{secret} in {shown}");
            }
            assert!(shown.contains("[REDACTED:"), "{shown}");
        }
    }
    let found = bodies(&read(key, &rules(Content::Plain)));
    assert_eq!(found.last().unwrap(), "after");
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let wrapping = prop_oneof![Just(Wrapping::None), Just(Wrapping::Cri), Just(Wrapping::Docker)];
    let content = prop_oneof![Just(Content::Plain), Just(Content::Json), Just(Content::Logfmt)];
    let multiline = prop_oneof![
        Just(None),
        Just(Some(Multiline::Start(Pattern::new("^[a-f]").unwrap()))),
        Just(Some(Multiline::Exceptions(Language::ALL.to_vec())))
    ];
    (wrapping, content, multiline, 8_usize..200).prop_map(|(wrapping, content, multiline, max_line_bytes)| Rules {
        wrapping,
        content,
        multiline,
        max_line_bytes,
        ..Rules::default()
    })
}

fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-k ={}\":,\\\\]{0,60}",
        "1970-01-01T00:00:0[1-9]Z (stdout|stderr) [FP] [a-f]{0,20}",
        "\\{\"log\":\"[a-f]{0,10}(\\\\n)?\",\"stream\":\"(stdout|stderr)\"\\}",
        "\\{\"(level|msg|time|a)\":(1|\"x\"|null|\\[1,\\{\\}\\])\\}",
        "(a|ts|level)=(\"[a-z ]{0,5}\"|[a-z0-9]{0,5})",
        ".{0,40}",
    ]
}

proptest! {
    /// Whatever stands in a file: all that comes out is valid, and every plain line is there once.
    #[test]
    fn nothing_breaks_it_and_nothing_is_lost(rules in any_rules(), lines in proptest::collection::vec(any_line(), 0..20), size in 1_usize..300) {
        let text = lines.join("\n");
        let found = read_in(text.as_bytes(), &rules, size, &redactor());
        let mut uids: Vec<_> = found.iter().map(|record| format!("{:?}", attribute(record, "log.record.uid"))).collect();
        let count = uids.len();
        uids.sort();
        uids.dedup();
        prop_assert_eq!(uids.len(), count, "a record came twice");
        if rules.wrapping == Wrapping::None && rules.multiline.is_none() {
            let expected = text.split('\n').filter(|line| !line.trim_start_matches('\0').trim_ascii().is_empty()).count();
            prop_assert_eq!(count, expected);
        }
    }

    #[test]
    fn bytes_that_are_no_text_break_nothing(rules in any_rules(), bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1_usize..100) {
        read_in(&bytes, &rules, size, &redactor());
    }
}
