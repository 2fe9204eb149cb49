//! A chunk of lines to records. Nothing is kept between two chunks but the cursor: what is not complete is read again.
//!
//! Order: split → unwrap → redact → join → redact what was joined → fields → encode. A chunk is first looked at as a whole, as most have
//! no secret in them; only the lines of one that has are redacted one by one.
//!
//! Invariants: nothing is encoded that the redactor has not seen in the form in which it is encoded; a private key that stands over
//! several lines is taken out whole; a line beyond the bound is redacted with what follows the bound, and then cut; every record's uid is
//! made of the place where it begins, and so the same when it is read again.

use std::borrow::Cow;

use zeroize::Zeroize;

use crate::ports::Redactor;

use super::batch::{ATTRIBUTES, LogBatch, Record, Uid};
use super::container::{self, Stream};
use super::fields::Fields;
use super::multiline::Seen;
use super::proto::value;
use super::rules::{Rules, Wrapping};

/// What goes on from one chunk to the next. A checkpoint has the flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The rest of a line that was cut is left out.
    pub is_skipping: bool,
    /// Within a private key, of which the first line was redacted.
    pub in_key: bool,
    /// Up to where each stream's records were given, while another stream's wait to be complete.
    given: [u64; STREAMS],
}

/// What follows the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Perhaps more: what is not complete waits.
    Open,
    /// No larger chunk can be had: what waits is complete.
    Full,
    /// Nothing for a while: lines that wait for others are complete, a line that does not end is not.
    Quiet,
    /// Nothing for now: what is there is complete.
    Closed,
}

/// A chunk and where it stands.
#[derive(Clone, Copy)]
pub struct Placed<'a> {
    pub bytes: &'a [u8],
    /// Of the first byte in its source.
    pub position: u64,
    pub end: End,
}

/// What the chunk is read for.
pub struct Work<'a> {
    pub rules: &'a Rules,
    pub redactor: &'a dyn Redactor,
    /// In `Uid`.
    pub source: u64,
    /// Encoded attributes of every record.
    pub constant: &'a [u8],
    /// Nanoseconds since 1970.
    pub now: u64,
    pub batch: &'a mut LogBatch,
    /// Stop when the batch has so many bytes.
    pub most_bytes: usize,
}

/// Buffers that are used again.
#[derive(Default)]
pub struct LineReader {
    fields: Fields,
    attributes: Vec<u8>,
    body: String,
    groups: [Group; STREAMS],
    /// A chunk had a secret in it since the last `wipe`.
    saw_secret: bool,
}

/// Lines of one stream that may go on.
#[derive(Default)]
struct Group {
    is_open: bool,
    text: Vec<u8>,
    start: u64,
    /// After the last line of it.
    end: u64,
    time: u64,
    pieces: u32,
    is_cut: bool,
    /// The last piece was a part of a line.
    is_part: bool,
    seen: Seen,
}

/// A line without what stood around it.
struct Line<'a> {
    content: Cow<'a, [u8]>,
    start: u64,
    end: u64,
    time: u64,
    stream: Option<Stream>,
    is_part: bool,
    is_cut: bool,
}

impl LineReader {
    /// Encodes what is complete. How many bytes of the chunk are done with.
    pub fn read(&mut self, chunk: Placed<'_>, cursor: &mut Cursor, work: &mut Work<'_>) -> usize {
        let Placed { bytes, position, end } = chunk;
        let is_clean = !cursor.in_key && work.redactor.is_clean(bytes);
        self.saw_secret |= !is_clean;
        let (mut at, mut is_all) = (0, true);
        while at < bytes.len() && work.batch.bytes() < work.most_bytes {
            let rest = &bytes[at..];
            let newline = memchr::memchr(b'\n', rest);
            if cursor.is_skipping {
                cursor.is_skipping = newline.is_none();
                at += newline.map_or(rest.len(), |length| length + 1);
                continue;
            }
            let is_whole = match newline {
                Some(_) => true,
                None if end == End::Closed => true,
                None => rest.len() >= work.rules.longest_read(),
            };
            if !is_whole {
                is_all = end == End::Quiet;
                break;
            }
            let length = newline.unwrap_or(rest.len());
            let next = at + newline.map_or(rest.len(), |length| length + 1);
            cursor.is_skipping = newline.is_none() && end != End::Closed;
            let (start, stop) = (position + at as u64, position + next as u64);
            self.line(&rest[..length], (start, stop), is_clean, cursor, work);
            at = next;
        }
        is_all &= work.batch.bytes() < work.most_bytes || at == bytes.len();
        self.finish(at, is_all, &chunk, cursor, work)
    }

    /// What waits is given, or waits on: then the chunk is done with up to its beginning.
    fn finish(
        &mut self,
        at: usize,
        is_all: bool,
        chunk: &Placed<'_>,
        cursor: &mut Cursor,
        work: &mut Work<'_>,
    ) -> usize {
        let waits =
            |groups: &[Group; STREAMS]| groups.iter().filter(|group| group.is_open).map(|group| group.start).min();
        let Some(first) = waits(&self.groups) else { return at };
        if (matches!(chunk.end, End::Closed | End::Quiet) && is_all)
            || (first == chunk.position && chunk.end == End::Full)
        {
            (0..STREAMS).for_each(|stream| self.flush(stream, cursor, work));
            return at;
        }
        for group in &mut self.groups {
            group.is_open = false;
        }
        // What was given of the other stream since then is known by `given`.
        usize::try_from(first - chunk.position).unwrap_or(at)
    }

    fn line(&mut self, raw: &[u8], (start, end): (u64, u64), is_clean: bool, cursor: &mut Cursor, work: &mut Work<'_>) {
        let raw = raw.strip_suffix(b"\r").unwrap_or(raw);
        let Some(mut line) = unwrapped(raw, (start, end), work.rules) else { return };
        let stream = line.stream.map_or(0, |stream| stream as usize);
        if start < cursor.given[stream] {
            return;
        }
        if !is_clean || matches!(line.content, Cow::Owned(_)) {
            redact_line(&mut line.content, cursor, work.redactor);
        }
        let most = work.rules.max_line_bytes;
        if line.content.len() > most {
            line.is_cut = true;
            cut(&mut line.content, most);
        }
        let joins = work.rules.multiline.is_some() || line.is_part || self.groups[stream].is_open;
        if joins {
            self.join(line, stream, cursor, work);
        } else {
            self.emit(&line.content, &Origin::of(&line), 1, work);
            cursor.given[stream] = end;
        }
    }

    fn join(&mut self, line: Line<'_>, stream: usize, cursor: &mut Cursor, work: &mut Work<'_>) {
        let group = &mut self.groups[stream];
        let fits = group.text.len() + line.content.len() < work.rules.max_line_bytes && group.pieces < MOST_PIECES;
        let continues = match &work.rules.multiline {
            _ if !group.is_open => false,
            _ if group.is_part => true,
            Some(rule) => rule.continues(&mut group.seen, &line.content),
            None => false,
        };
        if continues && fits {
            if !group.is_part {
                group.text.push(b'\n');
            }
            group.text.extend_from_slice(&line.content);
            (group.end, group.is_part, group.pieces) = (line.end, line.is_part, group.pieces + 1);
            group.is_cut |= line.is_cut;
        } else {
            self.flush(stream, cursor, work);
            let group = &mut self.groups[stream];
            group.is_open = true;
            group.text.extend_from_slice(&line.content);
            (group.start, group.end, group.time) = (line.start, line.end, line.time);
            (group.pieces, group.is_cut, group.is_part) = (1, line.is_cut, line.is_part);
            group.seen = work.rules.multiline.as_ref().map(|rule| rule.begin(&line.content)).unwrap_or_default();
        }
        if work.rules.multiline.is_none() && !self.groups[stream].is_part {
            self.flush(stream, cursor, work);
        }
    }

    /// Encodes what a stream has waiting.
    fn flush(&mut self, stream: usize, cursor: &mut Cursor, work: &mut Work<'_>) {
        let group = &mut self.groups[stream];
        if group.is_open {
            group.is_open = false;
            let text = std::mem::take(&mut group.text);
            let (stream_of, pieces) = (work.rules.stream(stream), group.pieces);
            let origin = Origin { start: group.start, time: group.time, stream: stream_of, is_cut: group.is_cut };
            cursor.given[stream] = group.end;
            self.emit(text.trim_ascii_end(), &origin, pieces, work);
            self.groups[stream].text = text;
        }
        self.groups[stream].text.clear();
    }

    fn emit(&mut self, content: &[u8], origin: &Origin, pieces: u32, work: &mut Work<'_>) {
        // Two clean pieces may be a secret together.
        let content = if pieces > 1 { work.redactor.redact(content) } else { Cow::Borrowed(content) };
        let text = String::from_utf8_lossy(&content);
        if text.trim_ascii().is_empty() {
            return;
        }
        self.fields.read(&text, work.rules, work.redactor);
        self.attributes.clear();
        if let Some(stream) = origin.stream {
            value::text_pair(&mut self.attributes, ATTRIBUTES, "log.iostream", stream.as_str());
        }
        self.attributes.extend_from_slice(&self.fields.attributes);
        let mut body = self.fields.body.as_deref().unwrap_or(&text);
        if origin.is_cut {
            let pair = value::begin_pair(&mut self.attributes, ATTRIBUTES, "mcpeg.log.cut");
            value::boolean(&mut self.attributes, true);
            value::end_pair(&mut self.attributes, pair);
            self.body.clear();
            self.body.push_str(body);
            self.body.push_str(CUT);
            body = &self.body;
        }
        work.batch.push(&Record {
            time: if self.fields.time > 0 { self.fields.time } else { origin.time },
            observed: work.now,
            severity: self.fields.severity,
            severity_text: &self.fields.severity_text,
            body,
            attributes: &self.attributes,
            constant: work.constant,
            trace: self.fields.trace,
            span: self.fields.span,
            uid: Uid { source: work.source, position: origin.start },
        });
    }

    /// Wipes what a chunk with a secret in it may have left here. Whether there was one.
    pub fn wipe(&mut self) -> bool {
        if !std::mem::take(&mut self.saw_secret) {
            return false;
        }
        self.fields.wipe();
        self.attributes.zeroize();
        self.body.zeroize();
        for group in &mut self.groups {
            group.text.zeroize();
        }
        true
    }
}

/// Where a record comes from.
struct Origin {
    start: u64,
    time: u64,
    stream: Option<Stream>,
    is_cut: bool,
}

impl Origin {
    fn of(line: &Line<'_>) -> Self {
        Self { start: line.start, time: line.time, stream: line.stream, is_cut: line.is_cut }
    }
}

impl Rules {
    /// A line of which so much was read is cut.
    pub fn longest_read(&self) -> usize {
        self.max_line_bytes + BEYOND
    }

    fn stream(&self, number: usize) -> Option<Stream> {
        match (self.wrapping, number) {
            (Wrapping::None, _) => None,
            (_, 0) => Some(Stream::Stdout),
            _ => Some(Stream::Stderr),
        }
    }
}

/// `None` for an empty line, and for a hole that a truncated file has at its front.
fn unwrapped<'a>(raw: &'a [u8], (start, end): (u64, u64), rules: &Rules) -> Option<Line<'a>> {
    let raw = match raw.first() {
        Some(0) => &raw[raw.iter().position(|byte| *byte != 0)?..],
        Some(_) => raw,
        None if rules.multiline.is_some() => raw,
        None => return None,
    };
    let printed = match rules.wrapping {
        Wrapping::None => None,
        Wrapping::Cri => container::cri(raw),
        Wrapping::Docker => container::docker(raw),
    };
    let plain = Line { content: Cow::Borrowed(raw), start, end, time: 0, stream: None, is_part: false, is_cut: false };
    Some(match printed {
        Some(printed) => Line {
            content: printed.content,
            time: printed.time,
            stream: Some(printed.stream),
            is_part: printed.is_part,
            ..plain
        },
        None => plain,
    })
}

/// Redacts a line, and the lines of a private key after its first one.
fn redact_line(content: &mut Cow<'_, [u8]>, cursor: &mut Cursor, redactor: &dyn Redactor) {
    if cursor.in_key {
        let of_key = content.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-:,. \\\"".contains(byte));
        let ends = has(content, b"-----END ");
        cursor.in_key = of_key && !ends;
        if of_key || ends {
            *content = Cow::Owned(KEY_MARK.to_vec());
            return;
        }
    }
    let begins = memchr::memmem::rfind(content, b"-----BEGIN ")
        .is_some_and(|at| has(&content[at..], b"PRIVATE KEY") && !has(&content[at..], b"-----END "));
    if let Cow::Owned(clean) = redactor.redact(content) {
        cursor.in_key = begins;
        *content = Cow::Owned(clean);
    }
}

fn cut(content: &mut Cow<'_, [u8]>, most: usize) {
    // Not within a character.
    let most = (most.saturating_sub(3)..=most).rev().find(|at| content[*at] & 0xc0 != 0x80).unwrap_or(most);
    match content {
        Cow::Borrowed(bytes) => *bytes = &bytes[..most],
        Cow::Owned(bytes) => bytes.truncate(most),
    }
}

fn has(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

const STREAMS: usize = 2;
/// Lines of one record.
const MOST_PIECES: u32 = 4096;
/// Read beyond the bound, so that a secret that begins before it is seen whole.
const BEYOND: usize = 4 * 1024;
const CUT: &str = " [cut]";
const KEY_MARK: &[u8] = b"[REDACTED:private-key]";
