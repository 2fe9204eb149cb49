//! Logs of others: files under rotation and kills, pipes, sockets, and the receiver for the agent's own telemetry; nothing lost, nothing secret.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use prost::Message;
use serde_json::json;

use crate::support::collector::Collector;
use crate::support::otlp_sink::OtlpSink;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::unix_http::UnixHttp;
use crate::support::{eventually, free_port};

fn folder(sink: &OtlpSink, logs: &str) -> Folder {
    folder_for(sink.port, logs)
}

fn folder_for(port: u16, logs: &str) -> Folder {
    let main = format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }} }}
  items: {{ db: {{ provider: dev, path: db }} }}
telemetry:
  otlp: {{ endpoint: "http://127.0.0.1:{port}" }}
  traces: {{ enabled: false }}
  metrics: {{ enabled: false }}
  spool: {{ path: spool, max_size_mb: 8 }}
{logs}
"#
    );
    Folder::new(&[("mcpeg.yaml", &main), ("keys.yaml", "db: { password: live-password-of-the-db }\n")])
}

async fn arrive(sink: &OtlpSink, what: &str, is_there: impl Fn(&[String]) -> bool) {
    eventually(Duration::from_secs(60), what, || async { is_there(&sink.bodies()).then_some(()) }).await;
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_under_rotation_kills_and_outages_lose_no_line() {
    let sink = OtlpSink::start().await;
    let folder = folder(&sink, r#"  logs: { files: [ { include: ["logs/*.log"], format: json } ] }"#);
    let log = folder.path("logs/agent.log");
    fs::create_dir(folder.path("logs")).unwrap();
    let mut sidecar = Sidecar::start(folder);
    let mut written = 0;
    for round in 0..12 {
        for batch in 0..50 {
            let lines: String =
                (0..40).map(|at| format!("{{\"level\":\"info\",\"msg\":\"line {}\"}}\n", written + at)).collect();
            append(&log, &lines);
            written += 40;
            // A file has to be there for longer than a blink, or nobody can have seen it.
            if batch == 0 && round % 4 != 3 {
                let seen = format!("line {}", written - 1);
                arrive(&sink, "the beginning", |bodies| bodies.contains(&seen)).await;
            }
        }
        let rotated = log.with_file_name(format!("agent.log.{round}"));
        match round % 4 {
            0 => fs::rename(&log, rotated).unwrap(),
            1 => {
                fs::copy(&log, rotated).unwrap();
                File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
            }
            2 => sink.answers(if round % 8 == 2 { 503 } else { 429 }),
            _ => {
                sidecar.signal(libc::SIGKILL);
                sidecar.ended().await;
                sink.answers(200);
                let folder = std::mem::replace(&mut sidecar.folder, Folder::new(&[]));
                sidecar = Sidecar::start(folder);
            }
        }
        let seen = format!("line {}", written - 1);
        if round % 4 != 2 {
            arrive(&sink, "what was written so far", |bodies| bodies.contains(&seen)).await;
        }
    }
    sink.answers(200);
    arrive(&sink, "every line", |bodies| bodies.len() >= written).await;
    let bodies: Vec<String> = sink.bodies().into_iter().filter(|body| body.starts_with("line ")).collect();
    let distinct: BTreeSet<&String> = bodies.iter().collect();
    assert_eq!(distinct.len(), written, "every line is there");
    assert_eq!(bodies.len(), written, "what came twice has the same uid");
    let said = sidecar.condition("logs").unwrap();
    assert!(said.contains("ok"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_files_reach_a_real_collector_by_both_protocols() {
    let collector = Collector::start().await;
    for (protocol, port) in [("http/protobuf", collector.http), ("grpc", collector.grpc)] {
        let logs = "  logs: { files: [ { include: [\"logs/*.log\"], format: json } ] }";
        let folder = folder_for(port, logs);
        let main = folder.read("mcpeg.yaml").replace("otlp: { ", &format!("otlp: {{ protocol: {protocol}, "));
        folder.write("mcpeg.yaml", &main);
        fs::create_dir(folder.path("logs")).unwrap();
        let sidecar = Sidecar::start(folder);
        let word = protocol.replace('/', "-");
        let lines: String = (0..2000).map(|at| format!("{{\"msg\":\"{word} {at:04} of 2000\"}}\n")).collect();
        append(&sidecar.folder.path("logs/agent.log"), &lines);
        let of = |at: usize| format!("{word} {at:04} of 2000");
        collector.prints(&[&of(0), &of(999), &of(1999)]).await;
        let printed = collector.printed();
        assert!((0..2000).all(|at| printed.contains(&of(at))), "a line is missing");
        assert!(sidecar.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_messages_and_the_agents_own_telemetry_reach_the_collector() {
    let sink = OtlpSink::start().await;
    let (http, grpc) = (free_port(), free_port());
    let folder = folder(
        &sink,
        &format!(
            r#"  logs: {{ syslog: {{ path: run/log.sock, mode: "0622" }} }}
  receiver: {{ http: {{ port: {http} }}, grpc: {{ port: {grpc} }}, unix: {{ path: run/otlp.sock }}, set_env: true }}
process: {{ command: [sh, -c, "echo endpoint=$OTEL_EXPORTER_OTLP_ENDPOINT; sleep 1000"] }}"#
        ),
    );
    let sidecar = Sidecar::start(folder);
    let socket = UnixDatagram::unbound().unwrap();
    socket
        .send_to(
            b"<11>1 - host app 7 ID [a@1 k=\"v\"] it broke: live-password-of-the-db",
            sidecar.folder.path("run/log.sock"),
        )
        .unwrap();
    arrive(&sink, "a message", |bodies| bodies.contains(&"it broke: [REDACTED:db]".to_owned())).await;
    arrive(&sink, "the variable", |bodies| bodies.contains(&format!("endpoint=http://127.0.0.1:{http}"))).await;

    let request = |text: &str| json!({"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"agent"}}]},"scopeLogs":[{"logRecords":[{"body":{"stringValue":text}}]}]}]});
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{http}/v1/logs");
    let post = |media: &'static str, body: Vec<u8>| client.post(&url).header("content-type", media).body(body).send();
    let answer =
        post("application/json", request("by json with live-password-of-the-db").to_string().into()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "{}"));
    let parsed: ExportLogsServiceRequest = serde_json::from_value(request("by protobuf")).unwrap();
    assert_eq!(post("application/x-protobuf", parsed.encode_to_vec()).await.unwrap().status(), 200);
    let mut rpc = LogsServiceClient::connect(format!("http://127.0.0.1:{grpc}")).await.unwrap();
    let by_grpc: ExportLogsServiceRequest = serde_json::from_value(request("by grpc")).unwrap();
    rpc.export(by_grpc).await.unwrap();
    let by_socket = request("by socket with live-password-of-the-db").to_string();
    post_locally(&sidecar.folder.path("run/otlp.sock"), &by_socket).await;
    for body in ["by json with [REDACTED:db]", "by protobuf", "by grpc", "by socket with [REDACTED:db]"] {
        arrive(&sink, body, |bodies| bodies.contains(&body.to_owned())).await;
    }

    assert_eq!(post("application/json", b"{\"resourceLogs\":[[]]}".to_vec()).await.unwrap().status(), 400);
    assert_eq!(post("text/plain", b"x".to_vec()).await.unwrap().status(), 415);
    assert_eq!(post("application/json", vec![b' '; 4 << 20]).await.unwrap().status(), 413);
    let from_page = client.post(&url).header("origin", "http://evil").header("content-type", "application/json");
    assert_eq!(from_page.body("{}").send().await.unwrap().status(), 403);
    assert_eq!(rpc.export(ExportLogsServiceRequest::default()).await.unwrap().into_inner().partial_success, None);

    // A collector that is away for long: the agent is asked to come again, and its exporter keeps what it has.
    sink.answers(503);
    let large = request(&"x".repeat(1 << 20)).to_string();
    let full = eventually(Duration::from_secs(30), "the spool is full", || async {
        let answer = post("application/json", large.clone().into()).await.unwrap();
        (answer.status() == 503).then_some(answer)
    })
    .await;
    assert!(full.headers().contains_key("retry-after"));
    let told = rpc.export(serde_json::from_str::<ExportLogsServiceRequest>(&large).unwrap()).await.unwrap_err();
    assert_eq!(told.code(), tonic::Code::Unavailable);
    sink.answers(200);
    eventually(Duration::from_secs(30), "it has room again", || async {
        (post("application/json", large.clone().into()).await.unwrap().status() == 200).then_some(())
    })
    .await;
    assert!(sidecar.stop().await.success());
}

/// A request over the receiver's Unix socket, which is taken.
async fn post_locally(socket: &Path, request: &str) {
    let mut local = UnixHttp::connect(socket).await;
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", request.len());
    local.send("POST", "/v1/logs", &headers).await;
    local.write(request.as_bytes()).await;
    let answer = local.answer().await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_standard_input_are_shipped_and_its_end_is_none_of_the_process() {
    let sink = OtlpSink::start().await;
    let folder = folder(&sink, "  logs: { stdin: json }");
    let mut child = std::process::Command::new(crate::support::sidecar::PROGRAM)
        .args(["run", "--config"])
        .arg(folder.path("mcpeg.yaml"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"{\"level\":\"error\",\"msg\":\"from a pipe\"}\nand the last").unwrap();
    drop(input);
    arrive(&sink, "both lines", |bodies| {
        ["from a pipe", "and the last"].iter().all(|line| bodies.iter().any(|body| body == line))
    })
    .await;
    assert!(child.try_wait().unwrap().is_none(), "it runs on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_cannot_be_served_is_refused_by_its_place() {
    let text = r#"version: "1.0"
telemetry:
  otlp: { endpoint: "http://127.0.0.1:1" }
  receiver: { http: { address: 0.0.0.0 } }
  logs:
    journald: {}
    files:
      - { include: ["a.log"], content: json, multiline: { start_pattern: "(" }, time: { format: "%Q" } }
"#;
    let folder = Folder::new(&[("mcpeg.yaml", text)]);
    let output = std::process::Command::new(crate::support::sidecar::PROGRAM)
        .args(["check", "--config"])
        .arg(folder.path("mcpeg.yaml"))
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for part in ["loopback", "journalctl", "`cri` and `docker`", "not a usable regular expression", "after `%`"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_files_are_followed_after_a_reload_and_no_line_comes_twice() {
    let sink = OtlpSink::start().await;
    let rules = |logs: &str| format!("  logs: {{ files: [ {logs} ] }}");
    let (plain, json) = (r#"{ include: ["a/*.log"] }"#, r#"{ include: ["b/*.log"], format: json, start_at: end }"#);
    let folder = folder(&sink, "  logs: {}");
    for name in ["a", "b"] {
        fs::create_dir(folder.path(name)).unwrap();
    }
    let (first, second) = (folder.path("a/one.log"), folder.path("b/two.log"));
    append(&first, "before 1\n");
    append(&second, "{\"message\":\"never 1\"}\n");
    let sidecar = Sidecar::start(folder);
    let main = sidecar.folder.read("mcpeg.yaml");
    let reload = |logs: &str| {
        sidecar.folder.write("mcpeg.yaml", &main.replace("  logs: {}", &rules(logs)));
        let output = sidecar.folder.mcpeg(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    };
    let has = |line: &'static str| move |bodies: &[String]| bodies.iter().any(|body| body == line);
    assert_eq!(sidecar.status()["telemetry"]["sources"]["files"], serde_json::Value::Null);
    reload(plain);
    arrive(&sink, "the first file", has("before 1")).await;
    reload(&format!("{plain}, {json}"));
    eventually(Duration::from_secs(10), "both are followed", async || {
        (sidecar.status()["telemetry"]["sources"]["files"]["followed"] == 2).then_some(())
    })
    .await;
    append(&first, "with both 1\n");
    append(&second, "{\"message\":\"with both 2\"}\n");
    arrive(&sink, "a line of each", |bodies| has("with both 1")(bodies) && has("with both 2")(bodies)).await;
    // The first by other rules, the second not any more; then both again, from where they were left.
    reload(r#"{ include: ["a/*.log"], format: json }"#);
    append(&second, "{\"message\":\"while nobody looked 2\"}\n");
    append(&first, "{\"message\":\"by other rules 1\"}\n");
    arrive(&sink, "by other rules", has("by other rules 1")).await;
    assert!(!has("while nobody looked 2")(&sink.bodies()));
    reload(&format!("{plain}, {json}"));
    arrive(&sink, "what was left", has("while nobody looked 2")).await;
    append(&first, "last 1\n");
    arrive(&sink, "the last", has("last 1")).await;
    let mut bodies: Vec<String> = sink.bodies().into_iter().filter(|body| body.ends_with(['1', '2'])).collect();
    bodies.sort();
    let expected = ["before 1", "by other rules 1", "last 1", "while nobody looked 2", "with both 1", "with both 2"];
    assert_eq!(bodies, expected);
    assert!(sidecar.stop().await.success());
}
