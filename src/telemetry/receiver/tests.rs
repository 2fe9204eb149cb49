//! Requests in both encodings, whole and broken. The second opinion on JSON is opentelemetry-proto's own.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use proptest::prelude::*;
use prost::Message;

use super::schema::{LOGS, METRICS, TRACES};
use super::{json, walk};
use crate::telemetry::redact::Masking;

const LOG_JSON: &str = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}],"droppedAttributesCount":1},
"scopeLogs":[{"scope":{"name":"lib","version":"1","attributes":[{"key":"a","value":{"boolValue":true}}]},"logRecords":[
{"timeUnixNano":"1544712660300000000","observedTimeUnixNano":"1544712660300000001","severityNumber":10,"severityText":"Information","traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174",
"body":{"stringValue":"with hunter2! in it"},"flags":1,"eventName":"e","attributes":[
{"key":"i","value":{"intValue":"637704192"}},{"key":"j","value":{"intValue":-5}},{"key":"d","value":{"doubleValue":637.704}},
{"key":"l","value":{"arrayValue":{"values":[{"stringValue":"many"},{"stringValue":"values"}]}}},
{"key":"m","value":{"kvlistValue":{"values":[{"key":"k","value":{"stringValue":"hunter2!"}}]}}},{"key":"b","value":{"bytesValue":"aGk="}}]}]}],"schemaUrl":"u"}]}"#;
const TRACE_JSON: &str = r#"{"resourceSpans":[{"resource":{"attributes":[]},"scopeSpans":[{"scope":{"name":"lib"},"spans":[
{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","parentSpanId":"EEE19B7EC3C1B173","name":"I am hunter2!","startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000","kind":2,"traceState":"","flags":257,
"attributes":[],"events":[{"timeUnixNano":"5","name":"hunter2!","attributes":[],"droppedAttributesCount":0}],"links":[{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","attributes":[]}],"status":{"message":"it was hunter2!","code":2}}]}]}]}"#;
const METRIC_JSON: &str = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[
{"name":"c","unit":"1","description":"hunter2!","sum":{"aggregationTemporality":1,"isMonotonic":true,"dataPoints":[{"asDouble":5,"startTimeUnixNano":"1544712660300000000","timeUnixNano":"1544712660300000000","attributes":[{"key":"x","value":{"stringValue":"hunter2!"}}],"exemplars":[],"flags":0}]}},
{"name":"g","gauge":{"dataPoints":[{"asInt":"-10","timeUnixNano":"1544712660300000000","attributes":[]}]}},
{"name":"h","histogram":{"aggregationTemporality":1,"dataPoints":[{"startTimeUnixNano":"1","timeUnixNano":"2","count":"2","sum":2,"bucketCounts":["1","1"],"explicitBounds":[1],"min":0,"max":2,"attributes":[]}]}},
{"name":"e","exponentialHistogram":{"aggregationTemporality":1,"dataPoints":[{"startTimeUnixNano":"1","timeUnixNano":"2","count":"3","sum":10,"scale":-1,"zeroCount":"1","positive":{"offset":-1,"bucketCounts":["0","2"]},"attributes":[]}]}}]}]}]}"#;

#[test]
fn json_says_what_protobuf_says_and_every_text_is_cleaned() {
    let converted = json::to_protobuf(&LOGS, LOG_JSON.as_bytes()).unwrap();
    let expected: ExportLogsServiceRequest = serde_json::from_str(LOG_JSON).unwrap();
    assert_eq!(ExportLogsServiceRequest::decode(&converted[..]).unwrap(), expected);
    let walked = walk::request(&LOGS, &converted, &Masking).unwrap();
    let logs = ExportLogsServiceRequest::decode(&walked.body[..]).unwrap();
    assert_eq!((walked.records, format!("{logs:?}").contains("hunter2!")), (1, false));
    assert_eq!(format!("{logs:?}").matches("[REDACTED:test]").count(), 2);

    let converted = json::to_protobuf(&TRACES, TRACE_JSON.as_bytes()).unwrap();
    let expected: ExportTraceServiceRequest = serde_json::from_str(TRACE_JSON).unwrap();
    assert_eq!(ExportTraceServiceRequest::decode(&converted[..]).unwrap(), expected);
    let walked = walk::request(&TRACES, &converted, &Masking).unwrap();
    let traces = ExportTraceServiceRequest::decode(&walked.body[..]).unwrap();
    assert_eq!((walked.records, format!("{traces:?}").matches("[REDACTED:test]").count()), (1, 3));

    let converted = json::to_protobuf(&METRICS, METRIC_JSON.as_bytes()).unwrap();
    let metrics = ExportMetricsServiceRequest::decode(&converted[..]).unwrap();
    let shown = format!("{metrics:?}");
    for part in [
        "AsDouble(5.0)",
        "AsInt(-10)",
        "bucket_counts: [1, 1]",
        "bucket_counts: [0, 2]",
        "scale: -1",
        "offset: -1",
        "zero_count: 1",
        "is_monotonic: true",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let walked = walk::request(&METRICS, &converted, &Masking).unwrap();
    let cleaned = ExportMetricsServiceRequest::decode(&walked.body[..]).unwrap();
    assert_eq!((walked.records, format!("{cleaned:?}").matches("[REDACTED:test]").count()), (4, 2));
    let clean = metrics.encode_to_vec();
    assert_eq!(walk::request(&METRICS, &clean, &Masking).unwrap().records, 4);
}

#[test]
fn a_clean_request_passes_byte_by_byte_and_unknown_fields_are_left_out() {
    let clean = LOG_JSON.replace("hunter2!", "nothing");
    let request: ExportLogsServiceRequest = serde_json::from_str(&clean).unwrap();
    let bytes = request.encode_to_vec();
    assert_eq!(walk::request(&LOGS, &bytes, &Masking).unwrap().body, bytes);
    let mut more = bytes.clone();
    more.extend_from_slice(b"\xfa\x01\x08hunter2!");
    assert_eq!(walk::request(&LOGS, &more, &Masking).unwrap().body, bytes);
    let unknown = r#"{"resourceLogs":[],"later":{"a":[1,{"b":"hunter2!"}]},"resource_logs":null}"#;
    assert_eq!(json::to_protobuf(&LOGS, unknown.as_bytes()), Ok(Vec::new()));
}

#[test]
fn what_is_no_request_is_refused_without_quoting_it() {
    for text in [
        "",
        "[]",
        "{",
        r#"{"resourceLogs":{"a":1}"#,
        r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"traceId":"xyz-hunter2!"}]}]}]}"#,
        r#"{"resourceLogs":[[]]}"#,
    ] {
        let error = json::to_protobuf(&LOGS, text.as_bytes()).unwrap_err();
        assert!(!error.contains("hunter2!"), "{error}");
    }
    for bytes in [
        &b"\x0a"[..],
        b"\x0a\x05abc",
        b"\x08\x01",
        b"\x0a\x02\x18\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        assert!(walk::request(&LOGS, bytes, &Masking).is_err(), "{bytes:?}");
    }
    let mut deep = Vec::new();
    for _ in 0..500 {
        let inside = std::mem::take(&mut deep);
        super::walk::proto_key(&mut deep, 1);
        prost::encode_length_delimiter(inside.len() + 1, &mut deep).unwrap();
        deep.push(0x2a);
        deep.extend_from_slice(&inside);
    }
    assert!(walk::request(&LOGS, &deep, &Masking).is_err());
}

proptest! {
    #[test]
    fn no_bytes_break_it_and_what_passes_can_be_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let _ = walk::request(&LOGS, &bytes, &Masking);
        let mut damaged = serde_json::from_str::<ExportLogsServiceRequest>(LOG_JSON).unwrap().encode_to_vec();
        let place = at.index(damaged.len());
        damaged[place] = byte;
        if let Ok(walked) = walk::request(&LOGS, &damaged, &Masking) {
            prop_assert!(ExportLogsServiceRequest::decode(&walked.body[..]).is_ok());
        }
        let mut text = LOG_JSON.as_bytes().to_vec();
        let place = at.index(text.len());
        text[place] = byte;
        if let Ok(converted) = json::to_protobuf(&LOGS, &text) {
            prop_assert!(ExportLogsServiceRequest::decode(&converted[..]).is_ok());
        }
    }
}
