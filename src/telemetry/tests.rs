//! The domain as a whole, against a collector of the test's own.

mod durable;
#[allow(dead_code, reason = "the tests of the process use the rest of it")]
mod sink;

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use opentelemetry::trace::{Span as _, Tracer as _};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::lifecycle::{Shutdown, ShutdownTrigger, Stage};
use crate::ports::{ConditionState, Outcome, SecretUnavailable};
use crate::secret::{Part as TextPart, Secret, SecretRef, SecretText, SecretVersion};

use settings::{
    AuditSettings, AuditSync, Compression, DestinationSettings, LogFormat, LogLevel, LogSettings, MetricSettings,
    OtlpProtocol, OtlpSettings, TraceSettings,
};
use sink::{Reply, Sink, until};

use super::rolling::Rolling;
use super::*;

fn settings(endpoint: &str, protocol: OtlpProtocol) -> TelemetrySettings {
    TelemetrySettings {
        resource: BTreeMap::from([("service.name".to_owned(), "mcpeg-test".to_owned())]),
        destinations: BTreeMap::from([("otlp".to_owned(), DestinationSettings::same(otlp(endpoint, protocol)))]),
        spool: None,
        traces: Some(TraceSettings { sample_ratio: 1.0 }),
        metrics: Some(MetricSettings { interval: Duration::from_secs(3600) }),
        log: LogSettings { level: LogLevel::Info, format: LogFormat::Text, file: None },
        audit: AuditSettings {
            path: None,
            required: false,
            sync: AuditSync::Interval,
            rolling: Rolling::NEVER,
            anchor_every: 1000,
        },
        sources: settings::SourceSettings::default(),
    }
}

fn otlp(endpoint: &str, protocol: OtlpProtocol) -> OtlpSettings {
    OtlpSettings {
        endpoint: endpoint.parse().unwrap(),
        protocol,
        headers: Vec::new(),
        compression: Compression::Gzip,
        timeout: Duration::from_secs(2),
        tls: crate::tls::Files::default(),
        server_name: None,
        endpoint_is_whole: false,
        queue_records: 1000,
    }
}

/// Changes the one destination of `settings`.
fn change_main(settings: &mut TelemetrySettings, change: impl Fn(&mut OtlpSettings)) {
    let DestinationSettings { logs, traces, metrics } = settings.destinations.get_mut("otlp").unwrap();
    [logs, traces, metrics].into_iter().for_each(change);
}

/// A built domain with its parts running.
struct Running {
    telemetry: TelemetryHandle,
    tasks: JoinSet<()>,
    trigger: ShutdownTrigger,
}

impl Running {
    fn start(settings: TelemetrySettings) -> Self {
        let (telemetry, parts) = build(settings, Arc::new(super::redact::Masking), 0).unwrap();
        let (trigger, shutdown) = Shutdown::channel();
        let mut tasks = JoinSet::new();
        for part in parts.into_iter().filter(|part| part.stage == Stage::Telemetry) {
            let shutdown = shutdown.clone();
            tasks.spawn(async move { (part.task)(shutdown).await.unwrap() });
        }
        Self { telemetry, tasks, trigger }
    }

    fn record(&self, count: usize) {
        for _ in 0..count {
            self.telemetry.record(AuditEvent::new("mcp.request", Outcome::Success).with("n", 1_i64)).unwrap();
        }
    }

    async fn stop(mut self) -> TelemetryHandle {
        self.trigger.fire();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.telemetry
    }

    fn metric(&self, line_start: &str) -> Option<String> {
        let text = self.telemetry.prometheus();
        text.lines().find_map(|line| line.strip_prefix(line_start)).map(|value| value.trim().to_owned())
    }
}

/// One secret called `collector`, which the test can replace.
struct Secrets {
    current: StdMutex<Arc<SecretVersion>>,
    changed: watch::Sender<u64>,
}

impl Secrets {
    fn new(value: &str) -> Arc<Self> {
        Arc::new(Self { current: StdMutex::new(Self::version(1, value)), changed: watch::Sender::new(1) })
    }

    fn version(version: u64, value: &str) -> Arc<SecretVersion> {
        let fields = BTreeMap::from([("token".to_owned(), Secret::from(value.to_owned()))]);
        Arc::new(SecretVersion { version, provider_version: None, fields, fetched_at: UNIX_EPOCH })
    }

    fn replace(&self, version: u64, value: &str) {
        *self.current.lock().unwrap() = Self::version(version, value);
        self.changed.send_replace(version);
    }
}

impl SecretReader for Secrets {
    fn current(&self, _: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        Ok(self.current.lock().unwrap().clone())
    }

    fn subscribe(&self, _: &str) -> Option<watch::Receiver<u64>> {
        Some(self.changed.subscribe())
    }
}

fn with_token(mut settings: TelemetrySettings) -> TelemetrySettings {
    let text = SecretText::new(vec![
        TextPart::Literal(Arc::new(Secret::copy_from(b"Bearer "))),
        TextPart::Reference(SecretRef::parse("collector.token").unwrap()),
    ]);
    change_main(&mut settings, |otlp| otlp.headers = vec![(http::header::AUTHORIZATION, text.clone())]);
    settings
}

const BOTH: [(OtlpProtocol, bool); 2] = [(OtlpProtocol::HttpProtobuf, false), (OtlpProtocol::Grpc, true)];

fn ok(grpc: bool) -> Reply {
    Reply::code(if grpc { 0 } else { 200 })
}

#[tokio::test]
async fn logs_spans_and_metrics_reach_the_collector_by_both_protocols_and_at_the_end() {
    for (protocol, grpc) in BOTH {
        let sink = Sink::start(grpc, None, move |_| ok(grpc)).await;
        let running = Running::start(settings(&sink.endpoint(), protocol));
        running.record(3);
        until("the log records", || sink.delivered() == [1, 2, 3]).await;
        running.telemetry.0.tracers.tracer("mcpeg").start("tools/call x").end();
        running.record(2);
        running.telemetry.meter().u64_counter("mcp.requests").build().add(5, &[]);
        running.stop().await;
        assert_eq!(sink.delivered(), [1, 2, 3, 4, 5]);
        let (traces, metrics) =
            if grpc { ("TraceService/Export", "MetricsService/Export") } else { ("/v1/traces", "/v1/metrics") };
        let spans = ExportTraceServiceRequest::decode(sink.received(traces)[0].body.clone()).unwrap();
        assert_eq!(spans.resource_spans[0].scope_spans[0].spans[0].name, "tools/call x");
        let resource = spans.resource_spans[0].resource.as_ref().unwrap();
        assert!(resource.attributes.iter().any(|pair| pair.key == "service.name"));
        let pushed = ExportMetricsServiceRequest::decode(sink.received(metrics)[0].body.clone()).unwrap();
        let names = pushed.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics);
        assert!(names.into_iter().any(|metric| metric.name == "mcp.requests"));
    }
}

#[tokio::test]
async fn a_busy_collector_is_left_alone_as_long_as_it_asks() {
    let mut asked = false;
    let script = move |_: &sink::Received| {
        let first = !std::mem::replace(&mut asked, true);
        if first { Reply { retry_after: Some("1"), ..Reply::code(429) } } else { Reply::code(200) }
    };
    let sink = Sink::start(false, None, script).await;
    let mut settings = settings(&sink.endpoint(), OtlpProtocol::HttpProtobuf);
    (settings.traces, settings.metrics) = (None, None);
    let running = Running::start(settings);
    running.record(4);
    until("the first attempt", || !sink.received("logs").is_empty()).await;
    until("the condition", || running.telemetry.conditions()[0].state == ConditionState::Degraded).await;
    let message = running.telemetry.conditions()[0].message.clone();
    assert!(message.contains("answered 429 Too Many Requests; 4 records wait; trying again in"), "{message}");
    until("the delivery", || sink.delivered() == [1, 2, 3, 4]).await;
    let requests = sink.received("logs");
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1));
    until("the recovery", || running.telemetry.conditions()[0].state == ConditionState::Ok).await;
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved_until_it_fits() {
    for (protocol, grpc) in BOTH {
        let script = move |request: &sink::Received| {
            if request.seqs().len() <= 10 {
                return ok(grpc);
            }
            let refusal = Reply::code(if grpc { 8 } else { 413 });
            Reply { message: "grpc: received message larger than max", ..refusal }
        };
        let sink = Sink::start(grpc, None, script).await;
        let mut settings = settings(&sink.endpoint(), protocol);
        (settings.traces, settings.metrics) = (None, None);
        let running = Running::start(settings);
        running.record(100);
        until("everything", || sink.delivered().len() >= 100).await;
        assert_eq!(sink.delivered(), (1..=100).collect::<Vec<i64>>());
    }
}

#[tokio::test]
async fn what_the_collector_will_never_take_is_dropped_and_counted() {
    let script = move |request: &sink::Received| {
        if request.seqs().iter().any(|seq| [1, 2].contains(seq)) {
            return Reply::code(400);
        }
        let partial = ExportLogsPartialSuccess { rejected_log_records: 1, error_message: String::new() };
        let body = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec().into();
        Reply { body, ..Reply::code(200) }
    };
    let sink = Sink::start(false, None, script).await;
    let running = Running::start(settings(&sink.endpoint(), OtlpProtocol::HttpProtobuf));
    running.record(2);
    let dropped = |reason: &str| {
        running
            .metric(&format!(
                "mcpeg_telemetry_dropped_total{{destination=\"otlp\",reason=\"{reason}\",signal=\"logs\"}}"
            ))
            .unwrap()
    };
    until("the refusal", || dropped("refused") == "2").await;
    running.record(3);
    until("the rest", || sink.delivered() == [3, 4, 5]).await;
    until("the count of the rejected", || dropped("rejected") == "1").await;
    assert_eq!(running.metric("mcpeg_telemetry_exported_total{destination=\"otlp\",signal=\"logs\"}").unwrap(), "2");
    let condition = running.telemetry.conditions().remove(0);
    assert!(condition.message.contains("3 records were dropped in the last minutes"), "{}", condition.message);
}

#[tokio::test]
async fn after_an_outage_everything_arrives_within_two_seconds() {
    for (protocol, grpc) in BOTH {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut settings = settings(&format!("http://{address}"), protocol);
        change_main(&mut settings, |otlp| otlp.queue_records = 30);
        (settings.traces, settings.metrics) = (None, None);
        let running = Running::start(settings);
        running.record(10);
        until("the failure", || running.telemetry.conditions()[0].state == ConditionState::Degraded).await;
        let message = running.telemetry.conditions()[0].message.clone();
        assert!(
            message.starts_with(&format!("the collector at http://{address} refused the connection; 10 ")),
            "{message}"
        );
        running.record(40);
        let sink = Sink::start(grpc, Some(address), move |_| ok(grpc)).await;
        let back = std::time::Instant::now();
        until("the backlog", || sink.delivered().len() >= 40).await;
        assert!(back.elapsed() < Duration::from_millis(2500), "{:?}", back.elapsed());
        // Ten were on their way, thirty wait at most, and the oldest of those that wait had to go.
        assert_eq!(sink.delivered(), (1..=10).chain(21..=50).collect::<Vec<i64>>());
        let dropped =
            running.metric("mcpeg_telemetry_dropped_total{destination=\"otlp\",reason=\"queue_full\",signal=\"logs\"}");
        assert_eq!(dropped.unwrap(), "10");
    }
}

#[tokio::test]
async fn headers_follow_the_secret_and_no_used_connection_is_kept() {
    for (protocol, grpc) in BOTH {
        let sink = Sink::start(grpc, None, move |_| ok(grpc)).await;
        let running = Running::start(with_token(settings(&sink.endpoint(), protocol)));
        running.record(1);
        let waits = |r: &Running| {
            r.telemetry.conditions()[0].message.contains("header authorization: the secrets are not loaded yet")
        };
        until("the wait for secrets", || waits(&running)).await;
        let secrets = Secrets::new("first");
        running.telemetry.attach_secrets(secrets.clone());
        until("the delivery", || sink.delivered() == [1]).await;
        until("the end of the connection", || sink.open_connections() == 0).await;
        secrets.replace(2, "second");
        running.record(1);
        until("the second delivery", || sink.delivered() == [1, 2]).await;
        let path = if grpc { "LogsService/Export" } else { "/v1/logs" };
        let tokens: Vec<_> = sink.received(path).iter().map(|r| r.headers["authorization"].clone()).collect();
        assert_eq!(tokens, ["Bearer first", "Bearer second"]);
        running.telemetry.0.tracers.tracer("mcpeg").start("traced").end();
        running.stop().await;
        let path = if grpc { "TraceService/Export" } else { "/v1/traces" };
        assert_eq!(sink.received(path)[0].headers["authorization"], "Bearer second");
    }
}

#[tokio::test]
async fn a_request_that_hangs_is_left_when_its_credential_changes() {
    for (protocol, grpc) in BOTH {
        let mut first = true;
        let script = move |_: &sink::Received| if std::mem::take(&mut first) { Reply::never() } else { ok(grpc) };
        let sink = Sink::start(grpc, None, script).await;
        let mut settings = with_token(settings(&sink.endpoint(), protocol));
        change_main(&mut settings, |otlp| otlp.timeout = Duration::from_secs(60));
        let running = Running::start(settings);
        let secrets = Secrets::new("first");
        running.telemetry.attach_secrets(secrets.clone());
        running.record(1);
        let path = if grpc { "LogsService/Export" } else { "/v1/logs" };
        until("the request that hangs", || sink.received(path).len() == 1).await;
        secrets.replace(2, "second");
        let replaced = Instant::now();
        until("the end of its connection", || sink.open_connections() == 0).await;
        assert!(replaced.elapsed() < Duration::from_secs(1), "{:?}", replaced.elapsed());
        until("the delivery", || sink.delivered() == [1]).await;
        assert_eq!(sink.received(path)[1].headers["authorization"], "Bearer second");
    }
}

#[tokio::test]
async fn another_collector_another_protocol_and_another_file_take_over_at_the_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let (old, new) =
        (Sink::start(false, None, |_| Reply::code(503)).await, Sink::start(true, None, |_| Reply::code(0)).await);
    let running = Running::start(settings(&old.endpoint(), OtlpProtocol::HttpProtobuf));
    running.record(3);
    until("the first attempt", || !old.received("logs").is_empty()).await;

    let mut other = settings(&new.endpoint(), OtlpProtocol::Grpc);
    other.resource.insert("host.name".into(), "x".into());
    let refused = running.telemetry.stage(other.clone()).err().unwrap().to_string();
    assert_eq!(refused, "telemetry.resource cannot change while mcpeg runs: restart it");
    other.resource.remove("host.name");
    other.audit.path = Some(path.clone());
    running.telemetry.stage(other).unwrap().commit();
    running.record(1);
    until("the move", || new.delivered() == [1, 2, 3, 5]).await;
    assert!(std::fs::read_to_string(&path).unwrap().contains("\"seq\":5"));

    let mut none = settings(&new.endpoint(), OtlpProtocol::Grpc);
    none.destinations.clear();
    running.telemetry.stage(none).unwrap().commit();
    running.record(1);
    assert_eq!(running.telemetry.conditions().len(), 1);
    assert!(running.telemetry.0.exports.waiting().is_empty());
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_collector_that_is_gone() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = Running::start(settings(&format!("http://{address}"), OtlpProtocol::HttpProtobuf));
    running.record(5);
    let started = std::time::Instant::now();
    let telemetry = running.stop().await;
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    assert_eq!(telemetry.0.exports.waiting()[0].depth.records, 5);
}

#[tokio::test]
async fn the_process_and_its_queues_are_measured() {
    let running = Running::start(settings("http://127.0.0.1:9", OtlpProtocol::HttpProtobuf));
    let text = running.telemetry.prometheus();
    for name in [
        "process_memory_usage_bytes ",
        "process_cpu_time_seconds_total{cpu_mode=\"user\"} ",
        "process_uptime_seconds ",
        "mcpeg_telemetry_queue_size{destination=\"otlp\",signal=\"traces\"} 0",
        "mcpeg_audit_records_total{fate=\"recorded\"} 0",
        "target_info{service_name=\"mcpeg-test\",telemetry_sdk_language=\"rust\"",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name}\n{text}");
    }
}
