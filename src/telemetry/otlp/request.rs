//! Encoded export requests, taken apart and put together without decoding a record.
//!
//! Logs, traces and metrics have one shape (opentelemetry-proto, `collector/*/v1`): field 1 of the request is the records of one resource,
//! whose field 2 is the records of one scope, whose field 2 is one record (a log record, a span, a metric). Whatever else stands in a
//! message belongs to all that is below it. So requests in a row are one request, and any run of their records is one too, which is what
//! a collector gets that wants less at a time.

use bytes::Bytes;

use crate::telemetry::spool::{Batch, BatchLimit, Chunk};

/// What is sent.
#[derive(Debug)]
pub struct Request {
    pub body: Bytes,
    pub records: u64,
    /// The number after its last record.
    pub upto: u64,
}

/// The first records of `batch` as one request: at most as many as `limit` says, but at least one.
pub fn first_of(batch: &Batch, limit: BatchLimit) -> Request {
    let mut joined = Joined { out: Vec::new(), open: None, records: 0, bytes: 0, upto: batch.end };
    for chunk in &batch.chunks {
        let left = (chunk.records - chunk.skip) as usize;
        let fits = joined.records + left <= limit.records && joined.bytes + chunk.body.len() <= limit.bytes;
        if fits && chunk.skip == 0 {
            if batch.chunks.len() == 1 {
                return Request { body: chunk.body.clone(), records: left as u64, upto: batch.end };
            }
            if left >= WORTH_COPYING_WHOLE {
                joined.whole(chunk);
                continue;
            }
        }
        match joined.some_of(chunk, limit) {
            Ok(true) => {}
            Ok(false) => break,
            // It cannot be taken apart, so it goes alone and whole, and the collector will say what it thinks of it.
            Err(Malformed) if joined.records == 0 => {
                let body = chunk.body.clone();
                return Request { body, records: left as u64, upto: chunk.first + u64::from(chunk.records) };
            }
            Err(Malformed) => break,
        }
    }
    joined.finish()
}

/// How many records are in a request. `None`: it is no request.
pub fn count(body: &[u8]) -> Option<u32> {
    let mut count = 0;
    for resource in fields(body) {
        for scope in fields(resource.ok().filter(|field| field.number == 1)?.content) {
            let scope = scope.ok()?;
            if scope.number == 2 {
                for record in fields(scope.content) {
                    count += u32::from(record.ok()?.number == 2);
                }
            }
        }
    }
    Some(count)
}

/// A request that grows.
struct Joined {
    /// The messages of resources that are complete.
    out: Vec<u8>,
    open: Option<Group>,
    records: usize,
    bytes: usize,
    upto: u64,
}

/// Records of one scope of one resource.
struct Group {
    /// All fields of the resource's message but field 2.
    resource: Vec<u8>,
    /// All fields of the scope's message but field 2.
    scope: Vec<u8>,
    /// Whole fields.
    records: Vec<u8>,
}

impl Joined {
    fn whole(&mut self, chunk: &Chunk) {
        self.close();
        self.out.extend_from_slice(&chunk.body);
        self.records += chunk.records as usize;
        self.bytes += chunk.body.len();
        self.upto = chunk.first + u64::from(chunk.records);
    }

    /// Adds what `limit` leaves room for. Whether it was all of it.
    fn some_of(&mut self, chunk: &Chunk, limit: BatchLimit) -> Result<bool, Malformed> {
        // Before anything is changed: a request that breaks off in the middle must not leave half of itself.
        if count(&chunk.body) != Some(chunk.records) {
            return Err(Malformed);
        }
        let mut number = 0;
        for resource in fields(&chunk.body) {
            let resource = resource?;
            let around_resource = others(resource.content)?;
            for scope in fields(resource.content) {
                let scope = scope?;
                if scope.number != 2 {
                    continue;
                }
                let around_scope = others(scope.content)?;
                for record in fields(scope.content) {
                    let record = record?;
                    if record.number != 2 {
                        continue;
                    }
                    number += 1;
                    if number <= chunk.skip {
                        continue;
                    }
                    let over = self.records >= limit.records || self.bytes + record.whole.len() > limit.bytes;
                    if over && self.records > 0 {
                        return Ok(false);
                    }
                    self.add(&around_resource, &around_scope, record.whole);
                    self.upto = chunk.first + u64::from(number);
                }
            }
        }
        Ok(true)
    }

    fn add(&mut self, resource: &[u8], scope: &[u8], record: &[u8]) {
        if self.open.as_ref().is_none_or(|group| group.resource != resource || group.scope != scope) {
            self.close();
            self.bytes += resource.len() + scope.len();
            self.open = Some(Group { resource: resource.to_vec(), scope: scope.to_vec(), records: Vec::new() });
        }
        if let Some(group) = &mut self.open {
            group.records.extend_from_slice(record);
        }
        self.records += 1;
        self.bytes += record.len();
    }

    fn close(&mut self) {
        let Some(Group { resource, scope, records }) = self.open.take() else { return };
        let scope_length = scope.len() + records.len();
        let resource_length = resource.len() + field_length(scope_length);
        self.out.reserve(field_length(resource_length));
        open_field(&mut self.out, FIELD_1, resource_length);
        self.out.extend_from_slice(&resource);
        open_field(&mut self.out, FIELD_2, scope_length);
        self.out.extend_from_slice(&scope);
        self.out.extend_from_slice(&records);
    }

    fn finish(mut self) -> Request {
        self.close();
        Request { body: self.out.into(), records: self.records as u64, upto: self.upto }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// One field of a message.
struct Field<'a> {
    number: u64,
    /// With its tag.
    whole: &'a [u8],
    /// Empty for a number.
    content: &'a [u8],
}

fn fields(mut message: &[u8]) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = first_field(message);
        message = field.as_ref().map_or(&[], |field| &message[field.whole.len()..]);
        Some(field)
    })
}

fn first_field(message: &[u8]) -> Result<Field<'_>, Malformed> {
    let (tag, start) = varint(message, 0)?;
    let (content, end) = match tag & 7 {
        0 => (start..start, varint(message, start)?.1),
        1 => (start..start, start + 8),
        2 => {
            let (length, start) = varint(message, start)?;
            let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length)).ok_or(Malformed)?;
            (start..end, end)
        }
        5 => (start..start, start + 4),
        _ => return Err(Malformed),
    };
    let whole = message.get(..end).ok_or(Malformed)?;
    Ok(Field { number: tag >> 3, whole, content: whole.get(content).ok_or(Malformed)? })
}

/// The number at `at`, and what comes after it.
fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), Malformed> {
    let mut value = 0;
    for (index, byte) in bytes.get(at..).unwrap_or_default().iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(index).unwrap_or(64)).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok((value, at + index + 1));
        }
    }
    Err(Malformed)
}

/// Every field of a message but field 2.
fn others(message: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    for field in fields(message) {
        let field = field?;
        if field.number != 2 {
            out.extend_from_slice(field.whole);
        }
    }
    Ok(out)
}

/// Writes the tag and the length that come before a message or a text.
pub fn open_field(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    // A vector grows, so there is always room.
    let _ = prost::encode_length_delimiter(length, out);
}

pub fn field_length(content: usize) -> usize {
    1 + prost::length_delimiter_len(content) + content
}

/// Field numbers 1 and 2 with the wire type of length-delimited content.
pub const FIELD_1: u8 = (1 << 3) | 2;
pub const FIELD_2: u8 = (2 << 3) | 2;
/// A request of so many records is not taken apart to be joined with others of the same resource.
const WORTH_COPYING_WHOLE: usize = 64;

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope};
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn log(text: String) -> LogRecord {
        LogRecord { body: Some(AnyValue { value: Some(Value::StringValue(text)) }), ..LogRecord::default() }
    }

    /// A request of one resource and scope, both of the name `of`.
    fn request(of: &str, texts: std::ops::Range<u64>) -> Bytes {
        let scope = InstrumentationScope { name: of.to_owned(), ..InstrumentationScope::default() };
        let log_records = texts.map(|number| log(number.to_string())).collect();
        let scope_logs = ScopeLogs { scope: Some(scope), log_records, schema_url: "s".into() };
        let resource = ResourceLogs { resource: None, scope_logs: vec![scope_logs], schema_url: of.to_owned() };
        ExportLogsServiceRequest { resource_logs: vec![resource] }.encode_to_vec().into()
    }

    fn batch(requests: &[(&str, u32)]) -> Batch {
        let mut first = 100;
        let chunks = requests.iter().map(|(of, records)| {
            let body = request(of, first..first + u64::from(*records));
            let chunk = Chunk { first, records: *records, skip: 0, body };
            first += u64::from(*records);
            chunk
        });
        let chunks: Vec<_> = chunks.collect();
        Batch { end: first, chunks, appended: None }
    }

    /// The texts in a request with the scope of each.
    fn texts(body: &Bytes) -> Vec<(String, u64)> {
        let request = ExportLogsServiceRequest::decode(body.clone()).unwrap();
        let mut found = Vec::new();
        for resource in request.resource_logs {
            for scope in resource.scope_logs {
                assert_eq!(
                    (&scope.scope.as_ref().unwrap().name, scope.schema_url.as_str()),
                    (&resource.schema_url, "s")
                );
                for record in scope.log_records {
                    let Some(Value::StringValue(text)) = record.body.unwrap().value else { panic!() };
                    found.push((resource.schema_url.clone(), text.parse().unwrap()));
                }
            }
        }
        found
    }

    proptest! {
        /// However a batch is cut, its records come once, in order, and under their own resource.
        #[test]
        fn cut_anywhere_every_record_comes_once(
            sizes in proptest::collection::vec((0_usize..2, 1_u32..90), 1..6),
            limits in proptest::collection::vec((1_usize..120, 1_usize..3000), 1..200),
        ) {
            let names: Vec<(&str, u32)> = sizes.iter().map(|(name, size)| (["a", "b"][*name], *size)).collect();
            let mut left = batch(&names);
            let expected: Vec<(String, u64)> = left.chunks.iter().flat_map(|chunk| texts(&chunk.body)).collect();
            let mut got = Vec::new();
            let mut limits = limits.into_iter().cycle();
            while !left.is_empty() {
                let (records, bytes) = limits.next().unwrap();
                let part = first_of(&left, BatchLimit { records, bytes });
                let found = texts(&part.body);
                prop_assert!(!found.is_empty() && found.len() <= records);
                prop_assert_eq!(found.len() as u64, part.records);
                prop_assert_eq!(count(&part.body), Some(u32::try_from(found.len()).unwrap()));
                got.extend(found);
                left.skip_to(part.upto);
            }
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn no_bytes_make_it_stumble(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let chunk = Chunk { first: 0, records: 3, skip: 1, body: body.into() };
            let batch = Batch { end: 3, chunks: vec![chunk], appended: None };
            let part = first_of(&batch, BatchLimit { records: 1, bytes: 10 });
            prop_assert!(part.upto > 0 && part.upto <= 3);
        }
    }

    #[test]
    fn small_requests_of_one_resource_become_one() {
        let joined = first_of(&batch(&[("a", 1), ("a", 1), ("b", 2)]), BatchLimit { records: 10, bytes: 10_000 });
        let request = ExportLogsServiceRequest::decode(joined.body).unwrap();
        let sizes: Vec<_> = request.resource_logs.iter().map(|r| r.scope_logs[0].log_records.len()).collect();
        assert_eq!((sizes, joined.records, joined.upto), (vec![2, 2], 4, 104));
    }
}
