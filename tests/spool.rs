//! What waits for a collector, on disk: kills at any moment, TLS on both sides, a body that is too large, a full disk, and a real hop.
//!
//! `MCPEG_KILLS=100` lengthens the test of kills.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::support::collector::Collector;
use crate::support::mcp::Client;
use crate::support::nginx::{Certificates, Nginx};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::sink::{Reply, Sink};
use crate::support::upstream::python_stdio;
use crate::support::{eventually, free_port};

/// One service that echoes, audited, with `otlp` and a spool.
fn folder(otlp: &str, spool: &str) -> Folder {
    let main = format!(
        "version: \"1.0\"\nservices: {{ child: {{ config_file: child.yaml }} }}\n\
         telemetry:\n  otlp: {{ {otlp} }}\n  traces: {{ enabled: false }}\n  metrics: {{ enabled: false }}\n  \
         spool: {{ path: spool, {spool} }}\n\
         audit: {{ path: audit.log, required: true }}\n"
    );
    let child = format!("type: mcp\ncommand: {}\n", serde_json::to_string(&python_stdio()).unwrap());
    Folder::new(&[("mcpeg.yaml", &main), ("child.yaml", &child)])
}

fn killed(mut sidecar: Sidecar) -> Folder {
    sidecar.signal(libc::SIGKILL);
    std::mem::replace(&mut sidecar.folder, Folder::new(&[]))
}

async fn call(client: &mut Client, id: &str) -> Option<String> {
    let params = json!({ "name": "echo", "arguments": { "text": "x" } });
    client.send(&json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }).to_string()).await;
    client.line().await
}

/// What a collector of the test's own has taken.
#[derive(Default)]
struct Taken {
    /// `jsonrpc.request.id` of each call.
    calls: HashSet<String>,
    uids: HashSet<String>,
    records: usize,
    /// Requests with something in them that came before.
    repeats: usize,
    largest: usize,
}

impl Taken {
    fn add(&mut self, calls: Vec<String>, uids: Vec<String>) {
        let count = uids.len();
        let known = self.uids.len();
        self.calls.extend(calls);
        self.uids.extend(uids);
        self.records += count;
        self.largest = self.largest.max(count);
        self.repeats += usize::from(self.uids.len() - known < count);
    }
}

/// A collector that answers with `code` (0: never), and takes what it answers 200.
async fn collector(code: Arc<AtomicU16>) -> (Sink, Arc<Mutex<Taken>>) {
    let taken = Arc::new(Mutex::new(Taken::default()));
    let adds = taken.clone();
    let sink = Sink::start(false, None, move |request| match code.load(Ordering::SeqCst) {
        0 => Reply::never(),
        200 => {
            adds.lock().unwrap().add(request.texts("jsonrpc.request.id"), request.texts("log.record.uid"));
            Reply::code(200)
        }
        code => Reply::code(code),
    })
    .await;
    (sink, taken)
}

/// Numbers that look random and come again with the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_moment_lose_no_answered_call_and_repeat_one_batch_at_most() {
    let kills = std::env::var("MCPEG_KILLS").map_or(5, |kills| kills.parse().unwrap());
    let code = Arc::new(AtomicU16::new(503));
    let (sink, taken) = collector(code.clone()).await;
    let otlp = format!("endpoint: \"{}\", timeout: 1s", sink.endpoint());
    let mut folder = folder(&otlp, "max_size_mb: 64, when_full: block");
    let mut dice = Dice(u64::from(std::process::id()));
    eprintln!("seed {}", dice.0);
    let mut answered = HashSet::new();
    for kill in 0..kills {
        // Each second time the collector takes something before the kill, so that there is an acknowledgement to be cut off.
        code.store([503, 200, 0, 200][kill % 4], Ordering::SeqCst);
        let sidecar = Sidecar::start(folder);
        let mut client = Client::initialized(&sidecar.service_socket("child")).await;
        let calls = async {
            for number in 0_u64.. {
                let id = format!("k{kill}-{number}");
                match call(&mut client, &id).await {
                    Some(line) if line.contains(&id) => answered.insert(id),
                    _ => break,
                };
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(100 + dice.below(900)), calls).await;
        folder = killed(sidecar);
    }
    code.store(200, Ordering::SeqCst);
    let sidecar = Sidecar::start(folder);
    let missing = || {
        let taken = taken.lock().unwrap();
        answered.iter().filter(|id| !taken.calls.contains(*id)).count()
    };
    eventually(Duration::from_secs(30), "every answered call is with the collector", async || {
        (missing() == 0).then_some(())
    })
    .await;
    assert!(answered.len() > kills * 5, "{}", answered.len());
    assert!(sidecar.stop().await.success());
    let taken = taken.lock().unwrap();
    let twice = taken.records - taken.uids.len();
    eprintln!("{kills} kills, {} calls answered, {} records, {twice} of them twice", answered.len(), taken.records);
    assert!(taken.repeats <= kills && twice <= kills * taken.largest, "{} requests, {twice} records", taken.repeats);
}

/// A proxy that wants a certificate, before `sink`; `listen`: more of nginx's words.
async fn guarded(sink: &Sink, grpc: bool, made: &Certificates, listen: &str) -> (Nginx, u16) {
    let port = free_port();
    let listen = format!(
        "listen 127.0.0.1:{port} ssl http2; ssl_certificate {{folder}}/server.pem; ssl_certificate_key {{folder}}/server.key;\n\
         ssl_client_certificate {{folder}}/ca.pem; ssl_verify_client on; {listen}"
    );
    let files = ["server.pem", "server.key", "ca.pem"].map(|name| (name, made.read(name)));
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let scheme = if grpc { "grpc_pass grpc" } else { "proxy_pass http" };
    (Nginx::that(&format!("{scheme}://{};", sink.address), &listen, &files).await, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_both_sides_prove_who_they_are_by_both_protocols_and_the_files_are_followed() {
    for (protocol, grpc) in [("http/protobuf", false), ("grpc", true)] {
        let made = Certificates::new("collector.example", &["one", "two"]);
        let sink = Sink::start(grpc, None, move |_| Reply::code(if grpc { 0 } else { 200 })).await;
        let (nginx, port) = guarded(&sink, grpc, &made, "").await;
        let tls = "{ ca_file: ca.pem, cert_file: cert.pem, key_file: key.pem, server_name: collector.example }";
        let otlp =
            format!("endpoint: \"https://127.0.0.1:{port}\", protocol: {protocol}, compression: zstd, tls: {tls}");
        let folder = folder(&otlp, "max_size_mb: 8");
        for (name, of) in [("ca.pem", "ca.pem"), ("cert.pem", "one.pem"), ("key.pem", "one.key")] {
            folder.write(name, &made.text(of));
        }
        let sidecar = Sidecar::start(folder);
        eventually(Duration::from_secs(15), "the first certificate", async || {
            nginx.seen().iter().any(|line| line.contains("CN=one")).then_some(())
        })
        .await;
        // A certificate without its key changes nothing but what is said.
        let mut client = Client::initialized(&sidecar.service_socket("child")).await;
        sidecar.folder.write("cert.pem", &made.text("two.pem"));
        eventually(Duration::from_secs(15), "the files are found wrong, and the old ones used", async || {
            call(&mut client, "a").await.unwrap();
            let said = sidecar.condition("otlp").unwrap();
            said.contains("the files of tls changed and cannot be used").then_some(())
        })
        .await;
        sidecar.folder.write("key.pem", &made.text("two.key"));
        eventually(Duration::from_secs(15), "the new certificate", async || {
            call(&mut client, "b").await.unwrap();
            nginx.seen().last().is_some_and(|line| line.contains("CN=two")).then_some(())
        })
        .await;
        sidecar.says("otlp", &["ok"]).await;
        assert!(sidecar.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_takes_small_bodies_only_gets_small_ones() {
    let made = Certificates::new("collector.example", &["one"]);
    let sink = Sink::start(false, None, |_| Reply::code(200)).await;
    let (nginx, port) = guarded(&sink, false, &made, "client_max_body_size 6k; client_body_buffer_size 1m;").await;
    let tls = "{ ca_file: ca.pem, cert_file: one.pem, key_file: one.key, server_name: collector.example }";
    let otlp = format!("endpoint: \"https://127.0.0.1:{port}\", tls: {tls}");
    let folder = folder(&otlp, "max_size_mb: 8");
    for name in ["ca.pem", "one.pem", "one.key"] {
        folder.write(name, &made.text(name));
    }
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    for number in 0..60 {
        call(&mut client, &format!("small-{number}")).await.unwrap();
    }
    eventually(Duration::from_secs(20), "all calls arrive", async || {
        let seen: HashSet<String> =
            sink.received("/v1/logs").iter().flat_map(|request| request.texts("jsonrpc.request.id")).collect();
        (0..60).all(|number| seen.contains(&format!("small-{number}"))).then_some(())
    })
    .await;
    let errors = std::fs::read_to_string(nginx.path("error.log")).unwrap_or_default();
    assert!(errors.contains("client intended to send too large body"), "nothing was too large: {errors}");
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_on_a_full_disk_is_said_and_used_again_when_there_is_room() {
    let code = Arc::new(AtomicU16::new(503));
    let (sink, taken) = collector(code.clone()).await;
    let folder = folder(&format!("endpoint: \"{}\"", sink.endpoint()), "max_size_mb: 64");
    // Not required: what the disk does not take is counted, and the calls go on.
    let main = folder.read("mcpeg.yaml").replace("audit: { path: audit.log, required: true }", "audit: {}");
    folder.write("mcpeg.yaml", &main);
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    call(&mut client, "before").await.unwrap();
    let segment = |sidecar: &Sidecar| {
        let found = std::fs::read_dir(sidecar.folder.path("spool/audit")).unwrap().map(|entry| entry.unwrap());
        found
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".seg"))
            .map(|e| e.metadata().unwrap().len())
            .max()
    };
    sidecar.limit_files(segment(&sidecar));
    call(&mut client, "lost").await.unwrap();
    sidecar.says("spool", &["degraded", "cannot be written", "File too large"]).await;
    sidecar.limit_files(None);
    call(&mut client, "after").await.unwrap();
    sidecar.says("spool", &["ok"]).await;
    code.store(200, Ordering::SeqCst);
    eventually(Duration::from_secs(40), "what was taken arrives", async || {
        let taken = taken.lock().unwrap();
        (taken.calls.contains("before") && taken.calls.contains("after")).then_some(())
    })
    .await;
    assert!(!taken.lock().unwrap().calls.contains("lost"));
    let dropped =
        sidecar.status()["detail"]["telemetry"]["destinations"]["otlp"]["signals"]["logs"]["dropped"].as_u64();
    assert!(dropped.is_none_or(|dropped| dropped > 0), "{dropped:?}");
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_gets_after_a_kill_what_it_missed() {
    for grpc in [false, true] {
        let mut collector = Collector::start().await;
        let (protocol, port) = if grpc { ("grpc", collector.grpc) } else { ("http/protobuf", collector.http) };
        let otlp = format!("endpoint: \"http://127.0.0.1:{port}\", protocol: {protocol}, compression: gzip");
        let sidecar = Sidecar::start(folder(&otlp, "max_size_mb: 8"));
        collector.prints(&["config.loaded"]).await;
        collector.down();
        let mut client = Client::initialized(&sidecar.service_socket("child")).await;
        for number in 0..20 {
            call(&mut client, &format!("missed-{number:02}")).await.unwrap();
        }
        let folder = killed(sidecar);
        let sidecar = Sidecar::start(folder);
        collector.up().await;
        collector.prints(&["missed-00", "missed-19"]).await;
        sidecar.says("otlp", &["ok"]).await;
        assert!(sidecar.stop().await.success());
        collector.down();
    }
}
