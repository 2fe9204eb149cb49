//! The messages of OTLP as tables: which field has which number, name and kind. `walk` and `json` go by them.
//!
//! From opentelemetry-proto 1.x: `common`, `resource`, `logs`, `trace` and `metrics`, `v1`. A field that is not in the tables is one of a
//! later version: it is left out, as nobody here can tell what is in it.

use super::schema::Kind::{
    Bool, Bytes, Double, Enum, Fixed32, Fixed64, Id, Int64, Message, Record, Sfixed64, Sint32, Text, Uint32, Uint64,
};

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    Bytes,
    /// Bytes that JSON writes in hexadecimal digits: a trace's id, or a span's.
    Id,
    Bool,
    Enum,
    Uint32,
    Uint64,
    Int64,
    Sint32,
    Fixed32,
    Fixed64,
    Sfixed64,
    Double,
    Message(&'static Schema),
    /// A message that counts as one record: a log record, a span, a metric.
    Record(&'static Schema),
}

#[derive(Debug)]
pub struct Field {
    pub number: u32,
    /// As JSON has it.
    pub name: &'static str,
    pub kind: Kind,
    pub is_repeated: bool,
}

/// A message.
#[derive(Debug)]
pub struct Schema {
    pub fields: &'static [Field],
}

impl Schema {
    pub fn by_number(&self, number: u32) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    pub fn by_name(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name || is_snake_of(name, field.name))
    }
}

/// Protobuf's JSON takes the names of the definition too: `trace_id` for `traceId`.
fn is_snake_of(name: &str, camel: &str) -> bool {
    name.contains('_')
        && name
            .bytes()
            .filter(|byte| *byte != b'_')
            .map(|byte| byte.to_ascii_lowercase())
            .eq(camel.bytes().map(|byte| byte.to_ascii_lowercase()))
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, is_repeated: false }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, is_repeated: true }
}

macro_rules! message {
    ($name:ident: $($field:expr),+ $(,)?) => {
        pub static $name: Schema = Schema { fields: &[$($field),+] };
    };
}

message!(LOGS: many(1, "resourceLogs", Message(&RESOURCE_LOGS)));
message!(TRACES: many(1, "resourceSpans", Message(&RESOURCE_SPANS)));
message!(METRICS: many(1, "resourceMetrics", Message(&RESOURCE_METRICS)));

message!(ANY_VALUE:
    one(1, "stringValue", Text),
    one(2, "boolValue", Bool),
    one(3, "intValue", Int64),
    one(4, "doubleValue", Double),
    one(5, "arrayValue", Message(&ARRAY_VALUE)),
    one(6, "kvlistValue", Message(&KEY_VALUE_LIST)),
    one(7, "bytesValue", Bytes),
);
message!(ARRAY_VALUE: many(1, "values", Message(&ANY_VALUE)));
message!(KEY_VALUE_LIST: many(1, "values", Message(&KEY_VALUE)));
message!(KEY_VALUE: one(1, "key", Text), one(2, "value", Message(&ANY_VALUE)));
message!(SCOPE:
    one(1, "name", Text),
    one(2, "version", Text),
    many(3, "attributes", Message(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Uint32),
);
message!(ENTITY:
    one(1, "schemaUrl", Text),
    one(2, "type", Text),
    many(3, "idKeys", Text),
    many(4, "descriptionKeys", Text),
);
message!(RESOURCE:
    many(1, "attributes", Message(&KEY_VALUE)),
    one(2, "droppedAttributesCount", Uint32),
    many(3, "entityRefs", Message(&ENTITY)),
);

message!(RESOURCE_LOGS:
    one(1, "resource", Message(&RESOURCE)),
    many(2, "scopeLogs", Message(&SCOPE_LOGS)),
    one(3, "schemaUrl", Text),
);
message!(SCOPE_LOGS:
    one(1, "scope", Message(&SCOPE)),
    many(2, "logRecords", Record(&LOG_RECORD)),
    one(3, "schemaUrl", Text),
);
message!(LOG_RECORD:
    one(1, "timeUnixNano", Fixed64),
    one(2, "severityNumber", Enum),
    one(3, "severityText", Text),
    one(5, "body", Message(&ANY_VALUE)),
    many(6, "attributes", Message(&KEY_VALUE)),
    one(7, "droppedAttributesCount", Uint32),
    one(8, "flags", Fixed32),
    one(9, "traceId", Id),
    one(10, "spanId", Id),
    one(11, "observedTimeUnixNano", Fixed64),
    one(12, "eventName", Text),
);

message!(RESOURCE_SPANS:
    one(1, "resource", Message(&RESOURCE)),
    many(2, "scopeSpans", Message(&SCOPE_SPANS)),
    one(3, "schemaUrl", Text),
);
message!(SCOPE_SPANS:
    one(1, "scope", Message(&SCOPE)),
    many(2, "spans", Record(&SPAN)),
    one(3, "schemaUrl", Text),
);
message!(SPAN:
    one(1, "traceId", Id),
    one(2, "spanId", Id),
    one(3, "traceState", Text),
    one(4, "parentSpanId", Id),
    one(5, "name", Text),
    one(6, "kind", Enum),
    one(7, "startTimeUnixNano", Fixed64),
    one(8, "endTimeUnixNano", Fixed64),
    many(9, "attributes", Message(&KEY_VALUE)),
    one(10, "droppedAttributesCount", Uint32),
    many(11, "events", Message(&SPAN_EVENT)),
    one(12, "droppedEventsCount", Uint32),
    many(13, "links", Message(&SPAN_LINK)),
    one(14, "droppedLinksCount", Uint32),
    one(15, "status", Message(&STATUS)),
    one(16, "flags", Fixed32),
);
message!(SPAN_EVENT:
    one(1, "timeUnixNano", Fixed64),
    one(2, "name", Text),
    many(3, "attributes", Message(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Uint32),
);
message!(SPAN_LINK:
    one(1, "traceId", Id),
    one(2, "spanId", Id),
    one(3, "traceState", Text),
    many(4, "attributes", Message(&KEY_VALUE)),
    one(5, "droppedAttributesCount", Uint32),
    one(6, "flags", Fixed32),
);
message!(STATUS: one(2, "message", Text), one(3, "code", Enum));

message!(RESOURCE_METRICS:
    one(1, "resource", Message(&RESOURCE)),
    many(2, "scopeMetrics", Message(&SCOPE_METRICS)),
    one(3, "schemaUrl", Text),
);
message!(SCOPE_METRICS:
    one(1, "scope", Message(&SCOPE)),
    many(2, "metrics", Record(&METRIC)),
    one(3, "schemaUrl", Text),
);
message!(METRIC:
    one(1, "name", Text),
    one(2, "description", Text),
    one(3, "unit", Text),
    one(5, "gauge", Message(&GAUGE)),
    one(7, "sum", Message(&SUM)),
    one(9, "histogram", Message(&HISTOGRAM)),
    one(10, "exponentialHistogram", Message(&EXPONENTIAL)),
    one(11, "summary", Message(&SUMMARY)),
    many(12, "metadata", Message(&KEY_VALUE)),
);
message!(GAUGE: many(1, "dataPoints", Message(&NUMBER_POINT)));
message!(SUM:
    many(1, "dataPoints", Message(&NUMBER_POINT)),
    one(2, "aggregationTemporality", Enum),
    one(3, "isMonotonic", Bool),
);
message!(HISTOGRAM:
    many(1, "dataPoints", Message(&HISTOGRAM_POINT)),
    one(2, "aggregationTemporality", Enum),
);
message!(EXPONENTIAL:
    many(1, "dataPoints", Message(&EXPONENTIAL_POINT)),
    one(2, "aggregationTemporality", Enum),
);
message!(SUMMARY: many(1, "dataPoints", Message(&SUMMARY_POINT)));
message!(NUMBER_POINT:
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "asDouble", Double),
    many(5, "exemplars", Message(&EXEMPLAR)),
    one(6, "asInt", Sfixed64),
    many(7, "attributes", Message(&KEY_VALUE)),
    one(8, "flags", Uint32),
);
message!(HISTOGRAM_POINT:
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    many(6, "bucketCounts", Fixed64),
    many(7, "explicitBounds", Double),
    many(8, "exemplars", Message(&EXEMPLAR)),
    many(9, "attributes", Message(&KEY_VALUE)),
    one(10, "flags", Uint32),
    one(11, "min", Double),
    one(12, "max", Double),
);
message!(EXPONENTIAL_POINT:
    many(1, "attributes", Message(&KEY_VALUE)),
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    one(6, "scale", Sint32),
    one(7, "zeroCount", Fixed64),
    one(8, "positive", Message(&BUCKETS)),
    one(9, "negative", Message(&BUCKETS)),
    one(10, "flags", Uint32),
    many(11, "exemplars", Message(&EXEMPLAR)),
    one(12, "min", Double),
    one(13, "max", Double),
    one(14, "zeroThreshold", Double),
);
message!(BUCKETS: one(1, "offset", Sint32), many(2, "bucketCounts", Uint64));
message!(SUMMARY_POINT:
    one(2, "startTimeUnixNano", Fixed64),
    one(3, "timeUnixNano", Fixed64),
    one(4, "count", Fixed64),
    one(5, "sum", Double),
    many(6, "quantileValues", Message(&QUANTILE)),
    many(7, "attributes", Message(&KEY_VALUE)),
    one(8, "flags", Uint32),
);
message!(QUANTILE: one(1, "quantile", Double), one(2, "value", Double));
message!(EXEMPLAR:
    one(2, "timeUnixNano", Fixed64),
    one(3, "asDouble", Double),
    one(4, "spanId", Id),
    one(5, "traceId", Id),
    one(6, "asInt", Sfixed64),
    many(7, "filteredAttributes", Message(&KEY_VALUE)),
);
