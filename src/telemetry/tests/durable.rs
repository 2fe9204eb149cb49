//! The spool on disk with exporters behind it: kills, outages of every kind, several destinations, and what is refused.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn spooled(endpoint: &str, protocol: OtlpProtocol, path: &Path) -> TelemetrySettings {
    let bounds = SpoolBounds { max_bytes: 64 << 20, when_full: WhenFull::Block };
    let spool = SpoolSettings { path: path.to_owned(), bounds, dead_letter_bytes: 1 << 20 };
    let mut settings = TelemetrySettings { spool: Some(spool), ..settings(endpoint, protocol) };
    (settings.traces, settings.metrics) = (None, None);
    settings
}

use settings::{SpoolBounds, SpoolSettings, WhenFull};

impl Running {
    /// As if the process was killed: tasks end where they are.
    async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The numbers that arrived, and how many came more than once.
fn numbers(sink: &Sink) -> (BTreeSet<i64>, usize) {
    let all = sink.delivered();
    let once: BTreeSet<i64> = all.iter().copied().collect();
    (once.clone(), all.len() - once.len())
}

#[tokio::test]
async fn what_was_not_delivered_before_a_kill_is_delivered_after_it() {
    for (protocol, grpc) in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = spooled(&format!("http://{address}"), protocol, folder.path());
        // Each run counts from 1 again, without an audit file; so only how many come is compared.
        for _ in 0..3 {
            let running = Running::start(settings.clone());
            running.record(10);
            until("the failure", || running.telemetry.conditions()[0].state == ConditionState::Degraded).await;
            running.kill().await;
        }
        let sink = Sink::start(grpc, Some(address), move |_| ok(grpc)).await;
        let running = Running::start(settings.clone());
        running.record(10);
        until("all of it", || sink.delivered().len() >= 40).await;
        let expected: Vec<i64> = (0..4).flat_map(|_| 1..=10).collect();
        assert_eq!(sink.delivered(), expected);
        until("the acknowledgement", || running.telemetry.0.exports.waiting()[0].depth.records == 0).await;
        running.kill().await;
        let running = Running::start(settings);
        running.record(1);
        until("the last", || sink.delivered().len() > 40).await;
        assert_eq!(sink.delivered().len(), 41, "what was acknowledged does not come again");
        running.stop().await;
    }
}

#[tokio::test]
async fn two_destinations_get_everything_each_at_its_own_pace() {
    let folder = tempfile::tempdir().unwrap();
    let up = Sink::start(false, None, |_| Reply::code(200)).await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = spooled(&up.endpoint(), OtlpProtocol::HttpProtobuf, folder.path());
    let mut away = otlp(&format!("http://{address}"), OtlpProtocol::Grpc);
    away.compression = Compression::Zstd;
    settings.destinations.insert("elastic".into(), DestinationSettings::same(away));
    settings.traces = Some(TraceSettings { sample_ratio: 1.0 });
    let running = Running::start(settings.clone());
    running.record(50);
    running.telemetry.0.tracers.tracer("mcpeg").start("traced").end();
    until("the one that is up", || up.delivered().len() == 50).await;
    let condition = |running: &Running, component: &str| {
        running.telemetry.conditions().into_iter().find(|condition| condition.component == component).unwrap()
    };
    until("the other's trouble", || condition(&running, "otlp.elastic").state == ConditionState::Degraded).await;
    assert_eq!(condition(&running, "otlp").state, ConditionState::Ok);
    let waiting = "mcpeg_telemetry_queue_size{destination=\"elastic\",signal=\"logs\"}";
    assert_eq!(running.metric(waiting).unwrap(), "50");
    let age = "mcpeg_telemetry_queue_age_seconds{destination=\"elastic\",signal=\"logs\"}";
    assert!(running.metric(age).unwrap().parse::<f64>().unwrap() > 0.0);
    running.kill().await;

    let running = Running::start(settings.clone());
    let back = Sink::start(true, Some(address), |_| Reply::code(0)).await;
    until("what waited", || back.delivered().len() == 50).await;
    running.telemetry.0.tracers.tracer("mcpeg").start("traced again").end();
    until("the span at both", || {
        !back.received("TraceService/Export").is_empty() && !up.received("/v1/traces").is_empty()
    })
    .await;
    // One that leaves takes its cursor along, and no longer keeps anything.
    settings.destinations.remove("elastic");
    running.telemetry.stage(settings).unwrap().commit();
    running.record(5);
    until("the rest", || up.delivered().len() == 55).await;
    assert!(!folder.path().join("audit/elastic.cursor").exists() && folder.path().join("audit/otlp.cursor").exists());
    assert_eq!(back.delivered().len(), 50);
    running.stop().await;
}

#[tokio::test]
async fn zstd_is_spoken_by_both_protocols() {
    for (protocol, grpc) in BOTH {
        let sink = Sink::start(grpc, None, move |_| ok(grpc)).await;
        let mut settings = settings(&sink.endpoint(), protocol);
        change_main(&mut settings, |otlp| otlp.compression = Compression::Zstd);
        let running = Running::start(settings);
        running.record(20);
        running.telemetry.0.tracers.tracer("mcpeg").start("traced").end();
        running.stop().await;
        assert_eq!(sink.delivered().len(), 20);
        let (path, header) =
            if grpc { ("LogsService/Export", "grpc-encoding") } else { ("/v1/logs", "content-encoding") };
        assert_eq!(sink.received(path)[0].headers[header], "zstd");
        let traces = if grpc { "TraceService/Export" } else { "/v1/traces" };
        assert_eq!(sink.received(traces).len(), 1);
    }
}

/// A collector that refuses every request with one of these records in it.
async fn refusing(guilty: &'static [i64]) -> Sink {
    let script = |request: &sink::Received| {
        let is_guilty = request.seqs().iter().any(|seq| guilty.contains(seq));
        Reply::code(if is_guilty { 400 } else { 200 })
    };
    Sink::start(false, None, script).await
}

#[tokio::test]
async fn what_will_never_be_taken_is_found_among_the_dead_letters_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let sink = refusing(&[3, 70]).await;
    let running = Running::start(spooled(&sink.endpoint(), OtlpProtocol::HttpProtobuf, folder.path()));
    running.record(100);
    let kept = || running.metric("mcpeg_telemetry_dead_letters_total{destination=\"otlp\"}").unwrap_or_default();
    until("the refusals", || kept() == "2").await;
    running.record(2);
    until("the rest", || sink.delivered().last() == Some(&102)).await;
    let delivered: Vec<i64> = (1..=102).filter(|seq| ![3, 70].contains(seq)).collect();
    assert_eq!(sink.delivered(), delivered);
    let letters = std::fs::read_dir(folder.path().join("dead-letters")).unwrap().map(|entry| entry.unwrap().path());
    let mut letters: Vec<_> = letters.collect();
    letters.sort();
    let alone = |seq: i64| sink.received("logs").into_iter().find(|request| request.seqs() == [seq]).unwrap().body;
    let bodies: Vec<_> = letters.iter().map(|letter| std::fs::read(letter).unwrap()).collect();
    assert_eq!(bodies, [alone(3), alone(70)], "they can be posted again as they are");
    running.stop().await;
}

/// What a collector can do to a request.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Refuse,
    Hang,
    Busy,
    Unavailable,
    TooLarge,
    /// It closes the connection in the middle of an answer.
    Reset,
    /// It took the request, and the answer never came.
    LostAnswer,
}

impl Fault {
    const ALL: [Self; 7] =
        [Self::Refuse, Self::Hang, Self::Busy, Self::Unavailable, Self::TooLarge, Self::Reset, Self::LostAnswer];
}

/// Some time of each fault, with records coming all the time: `MCPEG_FAULT_SECONDS=10` for the full length.
#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_a_collector_loses_a_record() {
    let seconds = std::env::var("MCPEG_FAULT_SECONDS").map_or(1.5, |seconds| seconds.parse().unwrap());
    for (protocol, grpc) in BOTH {
        for fault in Fault::ALL {
            survives(fault, protocol, grpc, Duration::from_secs_f64(seconds)).await;
        }
    }
}

#[allow(clippy::print_stderr, reason = "the figures of a long run")]
async fn survives(fault: Fault, protocol: OtlpProtocol, grpc: bool, time: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let faulty = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let on = faulty.clone();
    let script = move |request: &sink::Received| {
        if !on.load(std::sync::atomic::Ordering::SeqCst) {
            return ok(grpc);
        }
        match fault {
            Fault::Refuse | Fault::Unavailable => Reply::code(if grpc { 14 } else { 503 }),
            Fault::Busy => Reply { retry_after: Some("1"), ..Reply::code(if grpc { 8 } else { 429 }) },
            Fault::Hang => Reply::never(),
            Fault::LostAnswer => Reply::lost(),
            Fault::Reset => Reply::reset(),
            Fault::TooLarge if request.seqs().len() <= 4 => ok(grpc),
            Fault::TooLarge => {
                let message = "grpc: received message larger than max";
                Reply { message, ..Reply::code(if grpc { 8 } else { 413 }) }
            }
        }
    };
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = spooled(&format!("http://{address}"), protocol, folder.path());
    change_main(&mut settings, |otlp| otlp.timeout = Duration::from_millis(500));
    let refuses = matches!(fault, Fault::Refuse);
    let mut sink = None;
    if !refuses {
        sink = Some(Sink::start(grpc, Some(address), script).await);
    }
    let running = Running::start(settings);
    let until_now = Instant::now();
    let mut recorded = 0;
    while until_now.elapsed() < time {
        running.record(20);
        recorded += 20;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    faulty.store(false, std::sync::atomic::Ordering::SeqCst);
    let sink = match sink {
        Some(sink) => sink,
        None => Sink::start(grpc, Some(address), move |_| ok(grpc)).await,
    };
    until(&format!("all {recorded} after {fault:?}"), || numbers(&sink).0.len() == recorded).await;
    let (_, twice) = numbers(&sink);
    let repeated = running.metric("mcpeg_telemetry_repeated_total{destination=\"otlp\",signal=\"logs\"}").unwrap();
    eprintln!("{time:?} of {fault:?}, grpc {grpc}: {recorded} records, none lost, {twice} twice");
    if matches!(fault, Fault::LostAnswer) {
        assert!(twice > 0 && repeated.parse::<usize>().unwrap() >= twice, "{twice} {repeated}");
    } else {
        assert_eq!(twice, 0, "{fault:?}");
    }
    for line in running.telemetry.prometheus().lines().filter(|line| line.starts_with("mcpeg_telemetry_dropped")) {
        assert!(line.ends_with(" 0"), "{fault:?}: {line}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_required_audit_event_that_finds_no_room_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit.log");
    let mut settings = spooled("http://127.0.0.1:9", OtlpProtocol::HttpProtobuf, &folder.path().join("spool"));
    settings.spool.as_mut().unwrap().bounds.max_bytes = 1 << 20;
    settings.audit = AuditSettings { path: Some(audit), required: true, ..settings.audit };
    let running = Running::start(settings.clone());
    let event = || AuditEvent::new("mcp.request", Outcome::Success).with("text", "x".repeat(4000));
    let mut taken = 0;
    let refused = loop {
        match running.telemetry.record(event()) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 2000);
    };
    assert!(refused.reason.contains("no room for audit events"), "{}", refused.reason);
    assert!(taken > 100 && running.telemetry.ready().is_err());
    // With more room it goes on.
    settings.spool.as_mut().unwrap().bounds.max_bytes = 8 << 20;
    running.telemetry.stage(settings).unwrap().commit();
    assert!(running.telemetry.ready().is_ok() && running.telemetry.record(event()).is_ok());
    running.kill().await;
}
