//! The text as a scraper reads it, from real instruments.

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;

use crate::telemetry::reader::SharedReader;

use super::*;

fn rendered(use_meter: impl FnOnce(&Meter)) -> String {
    let reader = SharedReader::new();
    let resource = Resource::builder_empty()
        .with_attributes([KeyValue::new("service.name", "mc\"peg\\\n"), KeyValue::new("host.id", "h1")])
        .build();
    let provider = SdkMeterProvider::builder().with_resource(resource).with_reader(reader.clone()).build();
    use_meter(&provider.meter("mcpeg"));
    render(&reader.now().unwrap())
}

#[test]
fn counters_gauges_and_histograms_read_as_a_scraper_expects_them() {
    let text = rendered(|meter| {
        let requests = meter.u64_counter("mcp.requests").with_description("Requests\\ seen\nso far").build();
        requests.add(3, &[KeyValue::new("mcp.method.name", "tools/call"), KeyValue::new("error.type", "a\"b\\c\nd")]);
        let sessions = meter.i64_up_down_counter("mcp.sessions").with_unit("{session}").build();
        sessions.add(-2, &[]);
        let duration = meter
            .f64_histogram("mcp.server.operation.duration")
            .with_unit("s")
            .with_boundaries(vec![0.01, 0.5, 2.0])
            .build();
        for seconds in [0.001, 0.25, 0.25, 7.0] {
            duration.record(seconds, &[KeyValue::new("ok", true)]);
        }
    });
    let expected = r#"# HELP target_info Target metadata
# TYPE target_info gauge
target_info{host_id="h1",service_name="mc\"peg\\\n"} 1
# HELP mcp_requests_total Requests\\ seen\nso far
# TYPE mcp_requests_total counter
mcp_requests_total{error_type="a\"b\\c\nd",mcp_method_name="tools/call"} 3
# TYPE mcp_server_operation_duration_seconds histogram
mcp_server_operation_duration_seconds_bucket{ok="true",le="0.01"} 1
mcp_server_operation_duration_seconds_bucket{ok="true",le="0.5"} 3
mcp_server_operation_duration_seconds_bucket{ok="true",le="2"} 3
mcp_server_operation_duration_seconds_bucket{ok="true",le="+Inf"} 4
mcp_server_operation_duration_seconds_sum{ok="true"} 7.501
mcp_server_operation_duration_seconds_count{ok="true"} 4
# TYPE mcp_sessions gauge
mcp_sessions -2
"#;
    assert_eq!(text, expected);
}

#[test]
fn units_and_odd_names_become_suffixes_and_underscores() {
    let named = |name, unit, kind| family_name(name, unit, kind);
    assert_eq!(named("process.cpu.time", "s", Kind::Counter), "process_cpu_time_seconds_total");
    assert_eq!(named("process.memory.usage", "By", Kind::Gauge), "process_memory_usage_bytes");
    assert_eq!(named("cache.hit", "1", Kind::Gauge), "cache_hit_ratio");
    assert_eq!(named("cache.hits", "1", Kind::Counter), "cache_hits_total");
    assert_eq!(named("flow", "By/s", Kind::Gauge), "flow_bytes_per_second");
    assert_eq!(named("flow", "{packet}/s", Kind::Gauge), "flow_per_second");
    assert_eq!(named("wait_seconds", "s", Kind::Histogram), "wait_seconds");
    assert_eq!(named("seen.total", "", Kind::Counter), "seen_total");
    assert_eq!(named("a..b--c", "", Kind::Gauge), "a_b_c");
    assert_eq!(named("9lives", "", Kind::Gauge), "_9lives");
}

#[test]
fn keys_that_become_one_label_share_it() {
    let pairs = [("a.b".to_owned(), "1".to_owned()), ("a_b".to_owned(), "2".to_owned())];
    assert_eq!(labels(pairs.into_iter()), "a_b=\"1;2\"");
}

#[test]
fn values_beyond_numbers_have_prometheus_spelling() {
    assert_eq!([f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(number), ["NaN", "+Inf", "-Inf"]);
}
