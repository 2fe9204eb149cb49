//! What is on record: traces, metrics and audit events in a real collector, the audit file, and what a collector's absence costs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::collector::Collector;
use crate::support::eventually;
use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::python_stdio;

fn folder(endpoint: &str, protocol: &str) -> Folder {
    let main = format!(
        r#"version: "1.0"
metadata: {{ name: tested, environment: test }}
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }} }}
  items: {{ otlp: {{ provider: dev, path: otlp, refresh: 500ms }} }}
services: {{ child: {{ config_file: child.yaml }} }}
telemetry:
  otlp: {{ endpoint: "{endpoint}", protocol: {protocol}, compression: gzip, headers: {{ X-Token: "${{secret.otlp.token}}" }} }}
  metrics: {{ interval: 1s }}
audit: {{ path: audit.log }}
"#
    );
    Folder::new(&[
        ("mcpeg.yaml", &main),
        ("keys.yaml", "otlp: { token: collector-token-1 }\n"),
        ("child.yaml", &format!("type: mcp\ncommand: {}\n", serde_json::to_string(&python_stdio()).unwrap())),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_metrics_and_audit_events_reach_a_collector_over_http() {
    let collector = Collector::start().await;
    reaches(&collector, &format!("http://127.0.0.1:{}", collector.http), "http/protobuf").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_metrics_and_audit_events_reach_a_collector_over_grpc() {
    let collector = Collector::start().await;
    reaches(&collector, &format!("http://127.0.0.1:{}", collector.grpc), "grpc").await;
}

async fn reaches(collector: &Collector, endpoint: &str, protocol: &str) {
    let sidecar = Sidecar::start(folder(endpoint, protocol));
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let meta = json!({ "traceparent": format!("00-{trace}-b7ad6b7169203331-01") });
    client
        .request("tools/call", json!({ "name": "echo", "arguments": { "text": "unseen-argument" }, "_meta": meta }))
        .await;
    collector
        .prints(&[
            "service.name: Str(mcpeg)",
            "service.instance.id: Str(tested)",
            "deployment.environment.name: Str(test)",
            "Name           : tools/call echo",
            trace,
            "mcp.method.name: Str(tools/call)",
            "gen_ai.tool.name: Str(echo)",
            "gen_ai.operation.name: Str(execute_tool)",
            "mcp.protocol.version: Str(2025-11-25)",
            "Name: mcp.server.operation.duration",
            "mcp.request",
            "secret.fetched",
            "config.loaded",
        ])
        .await;
    assert!(sidecar.stop().await.success());
    let printed = collector.printed();
    assert!(!printed.contains("unseen-argument") && !printed.contains("collector-token-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_stops_nothing_and_gets_what_it_missed() {
    let mut collector = Collector::start().await;
    let sidecar = Sidecar::start(folder(&format!("http://127.0.0.1:{}", collector.http), "http/protobuf"));
    collector.prints(&["config.loaded"]).await;
    collector.down();
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    for number in 0..20 {
        let id = format!("missed-{number:02}");
        client.send(&json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "echo", "arguments": { "text": "x" } } }).to_string()).await;
        assert!(client.line().await.unwrap().contains(&id));
    }
    sidecar.says("otlp", &["refused"]).await;
    assert_eq!(sidecar.status()["ready"], true, "a collector's absence is no reason to be unready");
    collector.up().await;
    collector.prints(&["missed-00", "missed-19"]).await;
    sidecar.says("otlp", &["ok"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_file_survives_sigkill_and_goes_on_counting() {
    let folder = folder("http://127.0.0.1:1", "http/protobuf");
    let mut sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    client.call("echo", json!({ "text": "x" })).await;
    // The answer has arrived, so its event is in the file, whatever happens to the process.
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    let events = sidecar.folder.audit("mcp.request");
    assert!(events.iter().any(|event| event["attributes"]["gen_ai.tool.name"] == "echo"), "{events:#?}");
    let last = last_sequence(&sidecar.folder);
    let folder = std::mem::replace(&mut sidecar.folder, Folder::new(&[]));
    let again = Sidecar::start(folder);
    eventually(Duration::from_secs(5), "the sequence goes on", || async {
        (last_sequence(&again.folder) > last).then_some(())
    })
    .await;
    let text = again.folder.read("audit.log");
    let sequence: Vec<u64> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap()).collect();
    assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequence:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_file_that_cannot_be_written_refuses_the_call() {
    // Every write to /dev/full fails as on a full disk.
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nservices: { cat: { config_file: cat.yaml } }\naudit: { path: full.log, required: true }\n",
        ),
        ("cat.yaml", "type: mcp\ncommand: [cat]\n"),
    ]);
    std::os::unix::fs::symlink("/dev/full", folder.path("full.log")).unwrap();
    let output = folder.mcpeg(&["run"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("full.log"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_log_is_json_when_asked_and_prometheus_text_is_well_formed() {
    let folder = folder("http://127.0.0.1:1", "http/protobuf");
    folder.write("mcpeg.yaml", &format!("{}global: {{ log_format: json }}\n", folder.read("mcpeg.yaml")));
    let sidecar = Sidecar::start(folder);
    let lines = sidecar.stderr();
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(sidecar.stop().await.success());
}

fn last_sequence(folder: &Folder) -> u64 {
    let text = folder.read("audit.log");
    let last = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    last.and_then(|line| line["seq"].as_u64()).unwrap_or(0)
}
