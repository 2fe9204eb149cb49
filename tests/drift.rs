//! What runs against what is written: `mcpeg diff`, its gauge, and environments that are checked together.

use std::time::Duration;

use serde_json::Value;

use crate::support::etcd::Etcd;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::{eventually, free_port, unix_http};

fn main(port: u16, lock_memory: &str, token: &str, more: &str) -> String {
    format!(
        "version: \"1.0\"\nsecurity: {{ lock_memory: {lock_memory} }}\n\
         transports: {{ http: {{ enabled: true, port: {port}, token: {token} }} }}\nservices: {{ one: {{ config_file: one.yaml }} }}\n{more}"
    )
}

fn differences(sidecar: &Sidecar) -> (Option<i32>, Value) {
    let output = sidecar.folder.mcpeg(&["diff", "--json"]);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), answer)
}

async fn drift(sidecar: &Sidecar) -> String {
    let mut admin = unix_http::UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await;
    let text = admin.get("/metrics").await.text().to_owned();
    let line = text.lines().find(|line| line.starts_with("mcpeg_config_drift")).unwrap_or_else(|| panic!("{text}"));
    line.rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_and_does_not_run_is_shown_by_its_keys_and_without_secrets() {
    let port = free_port();
    let (token, other) = ("token-of-the-tests-1111", "token-of-the-tests-2222");
    let folder = Folder::new(&[("mcpeg.yaml", &main(port, "false", token, "")), ("one.yaml", "type: vault\n")]);
    let sidecar = Sidecar::start(folder);
    let (code, same) = differences(&sidecar);
    assert_eq!((code, &same["differs"], drift(&sidecar).await.as_str()), (Some(0), &Value::Bool(false), "0"));

    // One change of these needs a restart, so that none is applied.
    sidecar.folder.write("one.yaml", "type: vault\ntimeout: 7s\n");
    sidecar.folder.write("mcpeg.yaml", &main(port, "true", other, "global: { log_level: debug }\n"));
    sidecar.says("config", &["degraded", "needs a restart"]).await;
    let (code, found) = differences(&sidecar);
    assert_eq!((code, drift(&sidecar).await.as_str()), (Some(1), "1"));
    assert_eq!(sidecar.status()["config"]["drift"], true);
    let lines: Vec<String> = found["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| format!("{} {} {}", found["key"].as_str().unwrap(), found["running"], found["written"]))
        .collect();
    assert_eq!(
        lines,
        [
            "global.log_level null \"debug\"",
            "security.lock_memory \"false\" \"true\"",
            "services.one.timeout null \"7s\"",
            "transports.http.token \"***\" \"***\"",
        ]
    );
    let shown = sidecar.folder.mcpeg(&["diff"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert_eq!(shown.status.code(), Some(1));
    assert!(text.contains("+ global.log_level: debug\n~ security.lock_memory: false -> true\n"), "{text}");
    assert!(!text.contains("token-of-the-tests"), "{text}");

    sidecar.folder.write("one.yaml", "type: vault\ntimeoot: 7s\n");
    let (code, bad) = differences(&sidecar);
    assert_eq!(code, Some(1));
    assert!(bad["problems"][0].as_str().unwrap().contains("one.yaml:2:1: unknown key `timeoot`"), "{bad}");

    sidecar.folder.write("one.yaml", "type: vault\n");
    sidecar.folder.write("mcpeg.yaml", &main(port, "false", token, ""));
    eventually(Duration::from_secs(10), "nothing differs", async || (drift(&sidecar).await == "0").then_some(())).await;
    assert_eq!(differences(&sidecar).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_with_etcd_names_the_revisions_and_does_not_hide_a_push() {
    let etcd = Etcd::start().await;
    let main = "version: \"1.0\"\nservices: { one: { config_file: one.yaml } }\nsecurity: { lock_memory: false }\n";
    etcd.put_all(&[("m/mcpeg.yaml", main), ("m/one.yaml", "type: vault\n")]).await;
    let sidecar = Sidecar::start(Folder::new(&[]).configured_by(&etcd.address("m/")));
    assert_eq!(differences(&sidecar).0, Some(0));
    etcd.put("m/mcpeg.yaml", &main.replace("false", "true")).await;
    sidecar.says("config", &["degraded", "needs a restart"]).await;
    let (code, found) = differences(&sidecar);
    assert_eq!(code, Some(1));
    assert_ne!(found["running_revision"], found["written_revision"]);
    assert_eq!(found["keys"][0]["key"], "security.lock_memory");
    // Asked again and again while something is pushed, and the push is applied.
    etcd.put("m/mcpeg.yaml", &main.replace("one", "two").replace("two.yaml", "one.yaml")).await;
    let socket = sidecar.service_socket("two");
    eventually(Duration::from_secs(10), "the push is live", async || {
        differences(&sidecar);
        socket.exists().then_some(())
    })
    .await;
}

#[test]
fn every_environment_is_listed_and_checked() {
    let folder = Folder::new(&[
        ("mcpeg.yaml", "version: \"1.0\"\nglobal: { log_level: info }\n"),
        ("mcpeg-staging.yaml", "extends: shared.yaml\nglobal: { timeout: 5s }\n"),
        ("mcpeg-production.yaml", "global: { timeout: soon }\n"),
        ("shared.yaml", "metadata: { name: shared }\n"),
    ]);
    let output = folder.mcpeg(&["check", "--all-environments", "--json"]);
    assert_eq!(output.status.code(), Some(64));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<(Option<&str>, bool)> = answer["environments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| (found["environment"].as_str(), found["ok"].as_bool().unwrap()))
        .collect();
    assert_eq!(found, [(None, true), (Some("production"), false), (Some("staging"), true)]);
    assert_eq!(answer["environments"][2]["files"].as_array().unwrap().len(), 3);
    folder.write("mcpeg-production.yaml", "global: { timeout: 9s }\n");
    let good = folder.mcpeg(&["check", "--all-environments"]);
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(good.status.success() && text.contains("production: ") && text.contains("staging: "), "{text}");
}
