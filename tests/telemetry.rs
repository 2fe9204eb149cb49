//! What is on record: traces, metrics and audit events in a real collector, the audit file, and what a collector's absence costs.

use std::collections::HashSet;
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

/// Answers everything, and notes each call in a file.
const NOTING_SERVER: &str = r#"while read -r line; do
  id=$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
  case "$line" in
    *tools/call*) printf x >> calls; echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"content\":[]}}";;
    *initialize\"*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{},\"serverInfo\":{\"name\":\"n\",\"version\":\"1\"}}}";;
  esac
done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_no_call_reaches_the_service_unrecorded_until_there_is_room_again() {
    let old = "{\"seq\":7,\"event\":\"old\"}\n".repeat(10_000);
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nservices: { noting: { config_file: noting.yaml } }\naudit: { path: audit.log, required: true }\n",
        ),
        ("server.sh", NOTING_SERVER),
        // The one file that is large enough for the limit to be felt.
        ("audit.log", &old),
    ]);
    let place = folder.path("");
    let service = format!("type: mcp\ncommand: [sh, server.sh]\nworking_directory: {}\n", place.display());
    folder.write("noting.yaml", &service);
    let sidecar = Sidecar::start(folder);
    let calls = || sidecar.folder.read("calls").len();
    let mut client = Client::initialized(&sidecar.service_socket("noting")).await;
    assert!(client.call("note", json!({})).await["result"].is_object());
    assert_eq!(calls(), 1);

    sidecar.limit_files(Some(sidecar.folder.read("audit.log").len() as u64));
    // Nobody knows yet, so that this one is done; its answer must not pass for a recorded one.
    let first = client.call("note", json!({})).await;
    assert_eq!(
        (&first["error"]["code"], &first["error"]["data"]["reason"]),
        (&json!(-32013), &json!("answer_withheld"))
    );
    for _ in 0..300 {
        let denied = client.call("note", json!({})).await;
        assert_eq!(
            (&denied["error"]["code"], &denied["error"]["data"]["reason"]),
            (&json!(-32013), &json!("not_audited"))
        );
    }
    assert_eq!(calls(), 2, "calls that are not on record were executed");
    let said = sidecar.says("audit", &["failed", "File too large"]).await;
    assert!(said.contains("audit.required"), "{said}");

    sidecar.limit_files(None);
    eventually(Duration::from_secs(5), "calls are answered again", async || {
        client.call("note", json!({})).await["result"].is_object().then_some(())
    })
    .await;
    assert_eq!(calls(), 3);
    sidecar.says("audit", &["ok"]).await;
    let events: Vec<Value> =
        sidecar.folder.read("audit.log")[old.len()..].lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let resumed = events.iter().position(|event| event["event"] == "audit.resumed").unwrap();
    let seq = |at: usize| events[at]["seq"].as_u64().unwrap();
    let missing = events[resumed]["attributes"]["mcpeg.audit.missing"].as_u64().unwrap();
    assert!(missing >= 301, "{missing}");
    assert_eq!(seq(resumed) - seq(resumed - 1), missing + 1, "the numbers tell the same");
    assert!(events.len() > resumed + 1, "the gap is on record before what ends it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_file_that_is_a_link_stops_the_start() {
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
async fn the_own_log_is_json_when_asked() {
    let folder = folder("http://127.0.0.1:1", "http/protobuf");
    folder.write("mcpeg.yaml", &format!("{}global: {{ log_format: json }}\n", folder.read("mcpeg.yaml")));
    let sidecar = Sidecar::start(folder);
    let lines = sidecar.stderr();
    assert!(lines.lines().count() > 0);
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_the_admin_socket_are_prometheus_text() {
    let sidecar = Sidecar::start(folder("http://127.0.0.1:1", "http/protobuf"));
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    client.call("echo", json!({ "text": "x" })).await;
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    let answer = mcpeg::admin::client::get(&sidecar.folder.path("run/admin.sock"), "/metrics").await.unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.ends_with('\n') && text.contains("mcpeg_config_reloads_total{outcome=\"unchanged\"} 1\n"), "{text}");
    let (mut family, mut families, mut series) = (None, HashSet::new(), HashSet::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(help.contains(' '), "{line}");
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned()), "declared twice: {line}");
            family = Some((name.to_owned(), kind == "histogram"));
        } else {
            let (name, labels) = sample(line);
            let (family, histogram) = family.as_ref().unwrap_or_else(|| panic!("no TYPE before {line}"));
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("not of {family}: {line}"));
            let suffixes: &[&str] = if *histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            assert_eq!(suffix == "_bucket", labels.iter().any(|(label, _)| label == "le"), "{line}");
            assert!(series.insert((name, labels)), "twice: {line}");
        }
    }
    for expected in ["mcp_server_operation_duration_seconds", "mcpeg_audit_records_total", "process_uptime_seconds"] {
        assert!(families.contains(expected), "{expected} is not among {families:?}");
    }
}

/// The name and the sorted labels of a line `name{label="value",...} number`; panics where it is not one.
fn sample(line: &str) -> (String, Vec<(String, String)>) {
    let is_name = |name: &str| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            let mut escaped = false;
            let quote = after.find(|c: char| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let (value, after) = after.split_at(quote.unwrap_or_else(|| panic!("{line}")));
            assert!(is_name(label) && !labels.iter().any(|(known, _)| known == label), "{line}");
            labels.push((label.to_owned(), value.to_owned()));
            match after[1..].strip_prefix(',') {
                Some(more) => rest = more,
                None => break rest = after[1..].strip_prefix('}').unwrap_or_else(|| panic!("{line}")),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    assert!(is_name(name) && value.parse::<f64>().is_ok(), "{line}");
    labels.sort();
    (name.to_owned(), labels)
}

fn last_sequence(folder: &Folder) -> u64 {
    let text = folder.read("audit.log");
    let last = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    last.and_then(|line| line["seq"].as_u64()).unwrap_or(0)
}
