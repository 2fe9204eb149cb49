//! Log records of one resource as the bytes of an `ExportLogsServiceRequest`, written once into a buffer that is used again.
//!
//! In front of the records there is room for what says whose they are: it is written last, when the lengths are known, so that the records
//! never move. Field numbers are those of opentelemetry-proto, `logs/v1/logs.proto`.

use super::proto::{self, value};

/// Whose records: the encoded resource and scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// `ResourceLogs.resource`, with its tag and length.
    resource: Vec<u8>,
    /// `ScopeLogs.scope`, with its tag and length.
    scope: Vec<u8>,
}

impl Owner {
    pub fn new<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>, scope: &str) -> Self {
        let (mut resource, mut named) = (Vec::new(), Vec::new());
        proto::nested(&mut resource, 1, |out| {
            attributes.into_iter().for_each(|(key, text)| value::text_pair(out, 1, key, text));
        });
        proto::nested(&mut named, 1, |out| {
            proto::bytes(out, 1, scope.as_bytes());
            proto::bytes(out, 2, env!("CARGO_PKG_VERSION").as_bytes());
        });
        Self { resource, scope: named }
    }
}

/// One record. What is absent is zero or empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'a> {
    /// Nanoseconds since 1970.
    pub time: u64,
    pub observed: u64,
    /// 1 to 24, as OpenTelemetry counts; 0: not known.
    pub severity: u8,
    pub severity_text: &'a str,
    pub body: &'a str,
    /// Encoded attributes, each with its tag (`ATTRIBUTES`).
    pub attributes: &'a [u8],
    /// More of them: what all records of the source have.
    pub constant: &'a [u8],
    pub trace: Option<[u8; 16]>,
    pub span: Option<[u8; 8]>,
    pub uid: Uid,
}

/// Where a record stood, the same whenever it is read: `log.record.uid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uid {
    pub source: u64,
    pub position: u64,
}

impl std::fmt::Display for Uid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}{:016x}", self.source, self.position)
    }
}

/// The field of a record that attributes stand in.
pub const ATTRIBUTES: u8 = 6;

/// Records that travel together.
#[derive(Default)]
pub struct LogBatch {
    buffer: Vec<u8>,
    /// Where the records begin.
    room: usize,
    records: u32,
}

impl LogBatch {
    /// Empties it and makes room for the owner.
    pub fn begin(&mut self, owner: &Owner) {
        self.room = owner.resource.len() + owner.scope.len() + 2 * MOST_PREFIX;
        self.buffer.clear();
        self.buffer.resize(self.room, 0);
        self.records = 0;
    }

    pub fn push(&mut self, record: &Record<'_>) {
        let out = &mut self.buffer;
        let length = record.length();
        out.reserve(length + MOST_PREFIX);
        out.push(proto::tag(2, proto::DELIMITED));
        proto::varint(out, length as u64);
        record.write(out);
        self.records += 1;
    }

    pub fn records(&self) -> u32 {
        self.records
    }

    /// Of the records alone.
    pub fn bytes(&self) -> usize {
        self.buffer.len() - self.room
    }

    /// The request.
    pub fn finish(&mut self, owner: &Owner) -> &[u8] {
        let records = self.buffer.len() - self.room;
        let scope_logs = owner.scope.len() + records;
        let resource_logs = owner.resource.len() + 1 + proto::varint_length(scope_logs as u64) + scope_logs;
        let mut front = Vec::with_capacity(self.room);
        front.push(proto::tag(1, proto::DELIMITED));
        proto::varint(&mut front, resource_logs as u64);
        front.extend_from_slice(&owner.resource);
        front.push(proto::tag(2, proto::DELIMITED));
        proto::varint(&mut front, scope_logs as u64);
        front.extend_from_slice(&owner.scope);
        let start = self.room - front.len();
        self.buffer[start..self.room].copy_from_slice(&front);
        &self.buffer[start..]
    }
}

impl Record<'_> {
    /// Of the message, without its own tag and length.
    fn length(&self) -> usize {
        let text = |length: usize| 1 + proto::varint_length(length as u64) + length;
        let body = text(self.body.len());
        let mut length = 9 + text(body) + self.attributes.len() + self.constant.len() + UID_LENGTH;
        length += if self.time > 0 { 9 } else { 0 };
        length += if self.severity > 0 { 2 } else { 0 };
        length += if self.severity_text.is_empty() { 0 } else { text(self.severity_text.len()) };
        length += self.trace.map_or(0, |trace| text(trace.len()));
        length + self.span.map_or(0, |span| text(span.len()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.time > 0 {
            proto::fixed64(out, 1, self.time);
        }
        if self.severity > 0 {
            proto::number(out, 2, u64::from(self.severity));
        }
        if !self.severity_text.is_empty() {
            proto::bytes(out, 3, self.severity_text.as_bytes());
        }
        out.push(proto::tag(5, proto::DELIMITED));
        let body = self.body.len();
        proto::varint(out, (1 + proto::varint_length(body as u64) + body) as u64);
        value::text(out, self.body);
        out.extend_from_slice(self.attributes);
        out.extend_from_slice(self.constant);
        write_uid(out, self.uid);
        if let Some(trace) = self.trace {
            proto::bytes(out, 9, &trace);
        }
        if let Some(span) = self.span {
            proto::bytes(out, 10, &span);
        }
        proto::fixed64(out, 11, self.observed);
    }
}

/// The attribute `log.record.uid`, which always has the same length.
fn write_uid(out: &mut Vec<u8>, uid: Uid) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(UID_FRONT);
    let mut text = [0_u8; 32];
    let number = (u128::from(uid.source) << 64) | u128::from(uid.position);
    for (at, byte) in number.to_be_bytes().into_iter().enumerate() {
        text[2 * at] = DIGITS[usize::from(byte >> 4)];
        text[2 * at + 1] = DIGITS[usize::from(byte & 15)];
    }
    out.extend_from_slice(&text);
}

/// Tag and length of the attribute, its key, and tags and lengths of its value.
const UID_FRONT: &[u8] = b"\x32\x34\x0a\x0elog.record.uid\x12\x22\x0a\x20";
const UID_LENGTH: usize = UID_FRONT.len() + 32;
/// A tag and the longest length that is met.
const MOST_PREFIX: usize = 1 + 5;

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use prost::Message;

    use super::*;

    #[test]
    fn a_batch_reads_as_the_protocol_says_and_its_buffer_is_used_again() {
        let owner = Owner::new([("service.name", "agent")], "mcpeg.files");
        let mut attributes = Vec::new();
        value::text_pair(&mut attributes, ATTRIBUTES, "key", &"v".repeat(200));
        let record = Record {
            time: 5,
            observed: 6,
            severity: 17,
            severity_text: "ERROR",
            body: "it broke",
            attributes: &attributes,
            trace: Some([7; 16]),
            span: Some([8; 8]),
            uid: Uid { source: 0xabc, position: 0x10 },
            ..Record::default()
        };
        let mut batch = LogBatch::default();
        for count in [3, 1] {
            batch.begin(&owner);
            (0..count).for_each(|_| batch.push(&record));
            assert_eq!(batch.records(), count);
            let bytes = batch.finish(&owner).to_vec();
            let request = ExportLogsServiceRequest::decode(&bytes[..]).unwrap();
            // The shortest form, as every encoder writes it.
            assert_eq!(request.encoded_len(), bytes.len());
            let logs = &request.resource_logs[0];
            assert_eq!(logs.resource.as_ref().unwrap().attributes[0].key, "service.name");
            assert_eq!(logs.scope_logs[0].scope.as_ref().unwrap().name, "mcpeg.files");
            assert_eq!(logs.scope_logs[0].log_records.len(), count as usize);
            let read = &logs.scope_logs[0].log_records[0];
            assert_eq!((read.time_unix_nano, read.observed_time_unix_nano, read.severity_number), (5, 6, 17));
            assert_eq!(read.body.clone().unwrap().value, Some(Value::StringValue("it broke".into())));
            assert_eq!((read.trace_id.len(), read.span_id.len()), (16, 8));
            let uid = read.attributes.iter().find(|pair| pair.key == "log.record.uid").unwrap();
            let Some(Value::StringValue(uid)) = uid.value.clone().unwrap().value else { panic!() };
            assert_eq!((uid.as_str(), uid.len()), (record.uid.to_string().as_str(), 32));
        }
    }
}
