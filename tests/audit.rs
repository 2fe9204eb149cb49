//! The audit trail: whole after SIGKILL and a restart, and whoever touches it is named.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::eventually;
use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::unix_http::UnixHttp;
use crate::support::upstream::python_stdio;

const CONFIG: &str = r#"version: "1.0"
secrets:
  providers: { dev: { type: file, path: keys.yaml } }
  items: { app: { provider: dev, path: app, refresh: 500ms } }
services: { cat: { config_file: cat.yaml } }
audit: { path: audit.log, max_size_mb: 1, compress: true, retention: 30d }
storage: { logs: { type: file, path: logs } }
"#;

fn folder() -> Folder {
    Folder::new(&[
        ("mcpeg.yaml", CONFIG),
        ("keys.yaml", "app: { token: abc-0001 }\n"),
        ("cat.yaml", "type: mcp\ncommand: [cat]\n"),
    ])
}

/// Requests that are denied, each of which is one event.
async fn events(sidecar: &Sidecar, count: usize) {
    let mut client = Client::connect(&sidecar.service_socket("cat")).await;
    for number in 0..count {
        client.send(&format!(r#"{{"jsonrpc":"2.0","id":{number},"id":1,"method":"x"}}"#)).await;
        client.line().await.unwrap();
    }
}

/// Ends the sidecar by SIGKILL.
fn killed(mut sidecar: Sidecar) -> Folder {
    std::mem::replace(&mut sidecar.folder, Folder::new(&[]))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn verdict(folder: &Folder) -> (bool, Value) {
    let output = folder.mcpeg(&["audit", "verify", "--json"]);
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert_eq!(output.status.success(), verdict["ok"] == true, "{verdict}");
    (output.status.success(), verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trail_is_whole_after_sigkill_and_whoever_touches_it_is_named() {
    let mut folder = folder();
    for _ in 0..3 {
        let sidecar = Sidecar::start(folder);
        events(&sidecar, 50).await;
        eventually(Duration::from_secs(10), "the head has followed", || async {
            let trail = sidecar.folder.read("audit.log");
            let last: Value = serde_json::from_str(trail.lines().last()?).ok()?;
            let head: Value = serde_json::from_str(&sidecar.folder.read("audit.log.head")).ok()?;
            (head["seq"] == last["seq"]).then_some(())
        })
        .await;
        folder = killed(sidecar);
    }
    let (whole, found) = verdict(&folder);
    assert!(whole, "{found}");
    let records = found["records"].as_u64().unwrap();
    assert!(records > 150, "{found}");
    let good = folder.read("audit.log");

    folder.write("audit.log", &good.replacen("invalid_request", "invalid-request", 1));
    let said = text(&folder.mcpeg(&["audit", "verify"]));
    assert!(said.contains("was changed: its hash does not fit") && said.contains("1 fault"), "{said}");
    let lines: Vec<&str> = good.lines().collect();
    let without = |number: usize| {
        let kept: Vec<&str> =
            lines.iter().enumerate().filter(|(at, _)| at + 1 != number).map(|(_, line)| *line).collect();
        kept.join("\n") + "\n"
    };
    folder.write("audit.log", &without(20));
    let said = text(&folder.mcpeg(&["audit", "verify"]));
    assert!(said.contains("audit.log:20: record 20 is missing before it"), "{said}");
    folder.write("audit.log", &(lines[..lines.len() - 60].join("\n") + "\n"));
    let (_, found) = verdict(&folder);
    assert!(found["faults"][0]["what"].as_str().unwrap().starts_with("its end is missing"), "{found}");
    folder.write("audit.log", &good);
    let last = lines.last().unwrap();
    let anchor = format!("{}:{}", serde_json::from_str::<Value>(last).unwrap()["seq"], "0".repeat(64));
    let said = text(&folder.mcpeg(&["audit", "verify", "--anchor", &anchor]));
    assert!(said.contains("the anchor has another hash"), "{said}");
    assert!(folder.mcpeg(&["audit", "verify"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_trail_is_shown_by_command_and_by_socket() {
    let sidecar = Sidecar::start(folder());
    events(&sidecar, 3).await;
    let shown = text(&sidecar.folder.mcpeg(&["audit", "tail", "-n", "2"]));
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(shown.contains("denied") && shown.contains(r#"error.type="invalid_request""#), "{shown}");

    let mut follower = Command::new(PROGRAM)
        .args(["audit", "tail", "-n", "1", "--follow", "--json", "--file"])
        .arg(sidecar.folder.path("audit.log"))
        .stdout(Stdio::from(std::fs::File::create(sidecar.folder.path("followed")).unwrap()))
        .spawn()
        .unwrap();
    let shown = |count: usize| (sidecar.folder.read("followed").lines().count() >= count).then_some(());
    eventually(Duration::from_secs(10), "the last event is shown", || async { shown(1) }).await;
    events(&sidecar, 2).await;
    eventually(Duration::from_secs(10), "the new events are shown", || async { shown(3) }).await;
    follower.kill().unwrap();
    follower.wait().unwrap();

    let mut admin = UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await;
    let answer = admin.get("/v1/audit?limit=2").await.json();
    let records = answer["records"].as_array().unwrap();
    assert_eq!(records.len(), 2, "{answer}");
    assert_eq!(records[1]["seq"], answer["seq"]);
    assert_eq!(records[1]["hash"], answer["hash"]);
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_has_grown_is_set_aside_and_compressed_and_the_chain_goes_on() {
    let folder = folder();
    // The day's own log stands beside it, and is there from the first line on.
    let sidecar = Sidecar::start(folder);
    let log = sidecar.folder.read("logs/mcpeg.log");
    assert!(log.contains("INFO"), "{log}");
    events(&sidecar, 6000).await;
    let set_aside = || {
        let names = std::fs::read_dir(sidecar.folder.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).find(|name| name.starts_with("audit.log.2"))
    };
    eventually(Duration::from_secs(20), "it is set aside", || async { set_aside() }).await;
    events(&sidecar, 5).await;
    let (whole, found) = verdict(&sidecar.folder);
    assert!(whole && found["files"].as_array().unwrap().len() == 2, "{found}");
    let first = std::fs::read_to_string(sidecar.folder.path("audit.log")).unwrap();
    assert!(first.lines().next().unwrap().contains(r#""event":"audit.opened""#));
    // Compressed when the sidecar next looks, at its start at the latest.
    let folder = killed(sidecar);
    let sidecar = Sidecar::start(folder);
    eventually(Duration::from_secs(20), "it is compressed", || async {
        let names = std::fs::read_dir(sidecar.folder.path("")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.into_string().ok()).find(|name| name.ends_with("Z.gz"))
    })
    .await;
    assert!(verdict(&sidecar.folder).0);
}

/// What openssl says.
fn hmac(key: &str, value: &str) -> String {
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", key])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write;
            child.stdin.take().unwrap().write_all(value.as_bytes())?;
            child.wait_with_output()
        })
        .unwrap();
    text(&output).trim().rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_and_results_can_be_proved_by_whoever_has_the_key_and_the_key_may_rotate() {
    let keys = ["0123456789abcdef-the-first-key", "0123456789abcdef-the-second-one"];
    let main = r#"version: "1.0"
secrets:
  providers: { dev: { type: file, path: keys.yaml } }
  items: { proof: { provider: dev, path: proof, refresh: 200ms } }
services: { child: { config_file: child.yaml } }
audit: { path: audit.log, digest: { key: "${secret.proof.key}" } }
"#;
    let child = format!("type: mcp\ncommand: {}\n", serde_json::to_string(&python_stdio()).unwrap());
    let stored = |key: &str| format!("proof: {{ key: {key} }}\n");
    let folder = Folder::new(&[("mcpeg.yaml", main), ("child.yaml", &child), ("keys.yaml", &stored(keys[0]))]);
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    // Spaces and escapes as they are: what counts is the bytes.
    let arguments = r#"{ "text" : "caf\u00e9  x" }"#;
    for (index, key) in keys.into_iter().enumerate() {
        sidecar.folder.write("keys.yaml", &stored(key));
        let version = format!("proof@{}", index + 1);
        let event = eventually(Duration::from_secs(15), "an event by this key", async || {
            let id = client.received.len();
            client.send(&format!(
                r#"{{"jsonrpc":"2.0","id":"d{id}","method":"tools/call","params":{{"name":"echo","arguments":{arguments}}}}}"#
            ))
            .await;
            client.line().await.unwrap();
            let event = sidecar.folder.audit("mcp.request").pop()?;
            // A call may be asked under one key and answered under the next.
            let keys = ["mcpeg.arguments.hmac_key", "mcpeg.result.hmac_key"];
            keys.iter().all(|key| event["attributes"][*key] == version).then_some(event)
        })
        .await;
        let attributes = &event["attributes"];
        assert_eq!(attributes["mcpeg.arguments.hmac"], hmac(key, arguments), "{event}");
        let answer = client.received.last().unwrap();
        let at = answer.find(r#""result":"#).unwrap() + r#""result":"#.len();
        let mut values = serde_json::Deserializer::from_str(&answer[at..]).into_iter::<&serde_json::value::RawValue>();
        let result = values.next().unwrap().unwrap().get();
        assert_eq!(attributes["mcpeg.result.hmac"], hmac(key, result), "{event}");
    }
    // Neither what was said nor the key is anywhere in it, and it can be turned off while it runs.
    let trail = sidecar.folder.read("audit.log");
    assert!(
        !trail.contains(r"caf\u00e9") && !trail.contains("café") && !keys.iter().any(|key| trail.contains(key)),
        "{trail}"
    );
    sidecar.folder.write("mcpeg.yaml", &main.replace(r#", digest: { key: "${secret.proof.key}" }"#, ""));
    let output = sidecar.folder.mcpeg(&["reload"]);
    assert!(output.status.success(), "{}", text(&output));
    client.call("echo", serde_json::json!({ "text": "x" })).await;
    let event = sidecar.folder.audit("mcp.request").pop().unwrap();
    assert_eq!(event["attributes"]["mcpeg.arguments.hmac"], Value::Null, "{event}");
    assert!(sidecar.stop().await.success());
}

#[test]
fn a_key_for_digests_has_to_be_a_secret() {
    let folder = Folder::new(&[(
        "mcpeg.yaml",
        "version: \"1.0\"\naudit: { path: audit.log, digest: { key: in-plain-sight } }\n",
    )]);
    let output = folder.mcpeg(&["check"]);
    let said = text(&output);
    assert!(output.status.code() == Some(64) && said.contains("expected a secret by its name"), "{said}");
    assert!(said.contains("mcpeg.yaml:2:") && !said.contains("in-plain-sight"), "{said}");
}
