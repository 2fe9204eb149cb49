//! Audit events and lines of programs as OTLP log records, and encoded records as one export request.
//!
//! A record waits encoded, as a request of its own. A request is put together from encoded records without decoding them: each stands as field 2 of one
//! `ScopeLogs`, which is field 2 of one `ResourceLogs`, which is field 1 of the request (opentelemetry-proto, `logs/v1/logs.proto` and
//! `collector/logs/v1/logs_service.proto`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use prost::Message;

use crate::ports::{AuditEvent, AuditValue, LogLine, LogOrigin, Outcome};
use crate::telemetry::audit::{ANCHOR, bounded};

use super::request::{FIELD_1, FIELD_2, field_length, open_field};

/// Encodes events. `log.record.uid` is made of the run and the number, so that a record that arrives twice can be known.
pub struct RecordEncoder {
    run: String,
    /// Lines that were encoded so far.
    lines: AtomicU64,
}

impl RecordEncoder {
    /// `run` tells this process's records from those of any other.
    pub fn new(run: String) -> Self {
        Self { run, lines: AtomicU64::new(0) }
    }

    pub fn encode(&self, event: &AuditEvent, seq: u64) -> Bytes {
        let (severity, severity_text) = match event.outcome {
            Outcome::Success => (SeverityNumber::Info, "INFO"),
            Outcome::Failure | Outcome::Denied => (SeverityNumber::Warn, "WARN"),
        };
        let mut attributes = Vec::with_capacity(event.attributes.len() + 3);
        attributes.extend(event.attributes.iter().map(|(name, value)| key_value(name, any_value(value))));
        attributes.push(key_value("mcpeg.audit.outcome", text_value(event.outcome.as_str())));
        attributes.push(key_value("mcpeg.audit.seq", Value::IntValue(i64::try_from(seq).unwrap_or(i64::MAX))));
        // An anchor has the number of the event that it vouches for.
        let kind = if event.name == ANCHOR { "-anchor" } else { "" };
        attributes.push(key_value("log.record.uid", Value::StringValue(format!("{}-{seq}{kind}", self.run))));
        let record = LogRecord {
            time_unix_nano: nanos(event.time),
            observed_time_unix_nano: nanos(SystemTime::now()),
            severity_number: severity as i32,
            severity_text: severity_text.to_owned(),
            body: Some(AnyValue {
                value: Some(Value::StringValue(format!("{} {}", event.name, event.outcome.as_str()))),
            }),
            attributes,
            trace_id: event.trace.map_or_else(Vec::new, |trace| trace.trace_id.to_vec()),
            span_id: event.trace.map_or_else(Vec::new, |trace| trace.span_id.to_vec()),
            event_name: event.name.to_owned(),
            ..LogRecord::default()
        };
        record.encode_to_vec().into()
    }

    /// A line that a program has printed.
    pub fn encode_line(&self, line: &LogLine<'_>) -> Bytes {
        let origin = match line.origin {
            LogOrigin::Process(program) => key_value("process.executable.name", Value::StringValue(program.to_owned())),
            LogOrigin::Service(service) => key_value("mcpeg.service", Value::StringValue(service.to_owned())),
        };
        let number = self.lines.fetch_add(1, Ordering::Relaxed);
        let attributes = vec![
            origin,
            key_value("log.iostream", Value::StringValue(line.stream.to_owned())),
            key_value("process.pid", Value::IntValue(i64::from(line.pid))),
            key_value("log.record.uid", Value::StringValue(format!("{}-line-{number}", self.run))),
        ];
        let record = LogRecord {
            time_unix_nano: nanos(line.time),
            observed_time_unix_nano: nanos(SystemTime::now()),
            body: Some(AnyValue { value: Some(Value::StringValue(line.text.to_owned())) }),
            attributes,
            ..LogRecord::default()
        };
        record.encode_to_vec().into()
    }
}

/// What every request of this process begins with.
pub struct RequestFrame {
    /// `ResourceLogs.resource`, tag and length included.
    resource: Vec<u8>,
    /// `ScopeLogs.scope`, tag and length included.
    scope: Vec<u8>,
}

impl RequestFrame {
    /// `scope` says what kind of records they are.
    pub fn new(resource: &opentelemetry_sdk::Resource, scope: &str) -> Self {
        let resource = ResourceAttributesWithSchema::from(resource);
        let resource = Resource { attributes: resource.attributes.0, ..Resource::default() };
        let scope = InstrumentationScope {
            name: scope.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        Self { resource: field(FIELD_1, &resource.encode_to_vec()), scope: field(FIELD_1, &scope.encode_to_vec()) }
    }

    /// An `ExportLogsServiceRequest` of these records.
    pub fn request(&self, records: &[Bytes]) -> Bytes {
        let records_length: usize = records.iter().map(|record| field_length(record.len())).sum();
        let scope_logs = self.scope.len() + records_length;
        let resource_logs = self.resource.len() + field_length(scope_logs);
        let mut out = Vec::with_capacity(field_length(resource_logs));
        open_field(&mut out, FIELD_1, resource_logs);
        out.extend_from_slice(&self.resource);
        open_field(&mut out, FIELD_2, scope_logs);
        out.extend_from_slice(&self.scope);
        for record in records {
            open_field(&mut out, FIELD_2, record.len());
            out.extend_from_slice(record);
        }
        out.into()
    }
}

fn key_value(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn any_value(value: &AuditValue) -> Value {
    match value {
        AuditValue::Text(text) => text_value(text),
        AuditValue::Integer(number) => Value::IntValue(*number),
        AuditValue::Float(number) => Value::DoubleValue(*number),
        AuditValue::Bool(yes) => Value::BoolValue(*yes),
        AuditValue::List(texts) => {
            let values = texts.iter().map(|text| AnyValue { value: Some(text_value(text)) }).collect();
            Value::ArrayValue(ArrayValue { values })
        }
    }
}

fn text_value(text: &str) -> Value {
    let (text, cut) = bounded(text);
    Value::StringValue(if cut { format!("{text}…") } else { text.to_owned() })
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field_length(content.len()));
    open_field(&mut out, tag, content.len());
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue as Attribute;
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;

    use crate::ports::TraceIds;

    use super::*;

    #[test]
    fn a_request_put_together_from_bytes_reads_as_the_protocol_says() {
        let encoder = RecordEncoder::new("run1".into());
        let mut event = AuditEvent::new("mcp.request", Outcome::Denied)
            .with("mcp.method.name", "tools/call")
            .with("size", 300_i64)
            .with("list", vec!["a".to_owned()]);
        event.trace = Some(TraceIds { trace_id: [7; 16], span_id: [8; 8] });
        let records: Vec<Bytes> = (1..=300).map(|seq| encoder.encode(&event, seq)).collect();
        let resource =
            opentelemetry_sdk::Resource::builder_empty().with_attributes([Attribute::new("service.name", "m")]).build();
        let body = RequestFrame::new(&resource, "mcpeg.audit").request(&records);

        let request = ExportLogsServiceRequest::decode(body.clone()).unwrap();
        assert_eq!(request.encode_to_vec(), body);
        let logs = &request.resource_logs[0];
        assert_eq!(logs.resource.as_ref().unwrap().attributes[0].key, "service.name");
        assert_eq!(logs.scope_logs[0].scope.as_ref().unwrap().name, "mcpeg.audit");
        assert_eq!(logs.scope_logs[0].log_records.len(), 300);
        let record = &logs.scope_logs[0].log_records[299];
        assert_eq!((record.event_name.as_str(), record.severity_text.as_str()), ("mcp.request", "WARN"));
        assert_eq!((record.trace_id.as_slice(), record.span_id.as_slice()), (&[7; 16][..], &[8; 8][..]));
        assert!(record.time_unix_nano > 0 && record.observed_time_unix_nano >= record.time_unix_nano);
        let value = |key: &str| {
            record.attributes.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone()?.value)
        };
        assert_eq!(value("size"), Some(Value::IntValue(300)));
        assert_eq!(value("mcpeg.audit.seq"), Some(Value::IntValue(300)));
        assert_eq!(value("log.record.uid"), Some(Value::StringValue("run1-300".into())));
        assert_eq!(value("mcpeg.audit.outcome"), Some(Value::StringValue("denied".into())));
    }
    #[test]
    fn a_line_of_a_program_says_whose_it_is() {
        let line = LogLine {
            time: SystemTime::now(),
            origin: LogOrigin::Process("agent"),
            stream: "stdout",
            pid: 7,
            text: "hello",
        };
        let record = LogRecord::decode(RecordEncoder::new("run1".into()).encode_line(&line)).unwrap();
        let keys: Vec<&str> = record.attributes.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(keys, ["process.executable.name", "log.iostream", "process.pid", "log.record.uid"]);
        assert_eq!(record.body.unwrap().value, Some(Value::StringValue("hello".into())));
    }
}
