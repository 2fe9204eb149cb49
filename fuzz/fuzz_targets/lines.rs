//! Lines of files and sockets in every format, whatever bytes stand in them: plain, JSON, logfmt, what container runtimes and Docker write, records
//! of several lines, times, syslog.
//!
//! The first two bytes choose the format and the size of the pieces in which the rest is read. It must not panic, must get to the end, and what
//! comes out must be the same however the text is cut, and be an OTLP request. What the redactor takes out must not come out.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;

/// As src/ports.rs has it, without what lines do not need.
mod ports {
    use std::borrow::Cow;

    pub trait Redactor: Send + Sync {
        fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]>;

        fn is_clean(&self, bytes: &[u8]) -> bool {
            matches!(self.redact(bytes), Cow::Borrowed(_))
        }

        fn redact_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
            match self.redact(text.as_bytes()) {
                Cow::Borrowed(_) => Cow::Borrowed(text),
                Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
            }
        }
    }
}

#[path = "../../src/telemetry/lines/mod.rs"]
mod lines;

use lines::batch::{LogBatch, Owner};
use lines::multiline::{Language, Multiline};
use lines::rules::{Content, Pattern, Rules, TimeRule, Wrapping};
use lines::time::TimeFormat;
use lines::{Cursor, End, LineReader, Placed, Work};
use ports::Redactor;

fuzz_target!(|input: &[u8]| {
    let &[format, size, ref text @ ..] = input else { return };
    if let Ok(text) = std::str::from_utf8(text) {
        let message = lines::syslog::parse(text, 1_795_735_053_000_000_000);
        message.data.iter().for_each(|(_, _, value)| drop(lines::syslog::unescaped(value)));
        assert!(message.text.len() <= text.len());
    }
    let rules = rules(format);
    let whole = read(text, &rules, usize::MAX);
    let pieces = read(text, &rules, usize::from(size) + 1);
    assert_eq!(whole, pieces, "it depends on how the text is cut");
    for record in &whole {
        let encoded = record.encode_to_vec();
        assert!(memchr::memmem::find(&encoded, SECRET).is_none(), "a secret comes out: {record:?}");
    }
});

/// Of the byte's digits: the wrapping, the content, whether lines are joined, how times are read.
fn rules(number: u8) -> Rules {
    let number = usize::from(number);
    let pattern = |text: &str| Some(Pattern::new(text).unwrap());
    let wrapping = [Wrapping::None, Wrapping::Cri, Wrapping::Docker][number % 3];
    let content = [Content::Plain, Content::Json, Content::Logfmt][number / 3 % 3];
    let multiline = match number / 9 % 3 {
        0 => None,
        1 => Some(Multiline::Start(Pattern::new(r"^\d").unwrap())),
        _ => Some(Multiline::Exceptions(Language::ALL.to_vec())),
    };
    let time = match number / 27 % 3 {
        0 => TimeRule::default(),
        1 => TimeRule { pattern: pattern(r"^(\S+)"), ..Rules::default().time },
        _ => TimeRule { format: TimeFormat::Pattern("%d/%b/%Y:%H:%M:%S %z".into()), ..Rules::default().time },
    };
    Rules { wrapping, content, multiline, time, max_line_bytes: 256, ..Rules::default() }
}

fn read(text: &[u8], rules: &Rules, size: usize) -> Vec<LogRecord> {
    let owner = Owner::new([("service.name", "x")], "fuzz");
    let (mut reader, mut cursor, mut records) = (LineReader::default(), Cursor::default(), Vec::new());
    let (mut at, mut window) = (0_usize, size);
    loop {
        let stop = text.len().min(at.saturating_add(window));
        let is_last = stop == text.len();
        let end = match is_last {
            true => End::Closed,
            false if window >= rules.longest_read() * 2 => End::Full,
            false => End::Open,
        };
        let mut batch = LogBatch::default();
        batch.begin(&owner);
        let mut work = Work {
            rules,
            redactor: &Masks,
            source: 1,
            constant: &[],
            now: 9,
            batch: &mut batch,
            most_bytes: usize::MAX,
        };
        let used = reader.read(Placed { bytes: &text[at..stop], position: at as u64, end }, &mut cursor, &mut work);
        let request = ExportLogsServiceRequest::decode(batch.finish(&owner)).expect("a request");
        let scopes = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
        records.extend(scopes.flat_map(|scope| scope.log_records));
        at += used;
        if is_last {
            assert_eq!(at, text.len(), "it does not get to the end");
            return records;
        }
        window = if used == 0 { window.saturating_add(size) } else { size };
    }
}

/// Takes one word out, as a guard does that knows one secret.
struct Masks;

impl Redactor for Masks {
    fn redact<'a>(&self, bytes: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if memchr::memmem::find(bytes, SECRET).is_none() {
            return bytes.into();
        }
        let (mut out, mut rest) = (Vec::new(), bytes);
        while let Some(at) = memchr::memmem::find(rest, SECRET) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(b"[REDACTED:x]");
            rest = &rest[at + SECRET.len()..];
        }
        out.extend_from_slice(rest);
        out.into()
    }
}

const SECRET: &[u8] = b"hunter2secret";
