//! The joint promise, with a real OpenBao and a real MCP server: a credential rotates under load; the agent never sees it, no call fails,
//! nothing is left in memory, everything is on record.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::bao::{Bao, ROOT_TOKEN, TlsBao};
use crate::support::eventually;
use crate::support::mcp::Client;
use crate::support::memory;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::HttpServer;

const REFRESH: Duration = Duration::from_secs(1);

/// A value that looks different in each of its escaped forms.
fn value(number: u32) -> String {
    format!("tok\"en/{number:08}+äöü-0123456789-abcdefghijklmnopqrstuvwxyz")
}

fn folder(bao: &Bao, upstream: &str) -> Folder {
    let main = format!(
        r#"version: "1.0"
metadata: {{ name: rotated }}
secrets:
  providers:
    corp: {{ type: vault, address: "{}", auth: {{ method: token, token_file: token }} }}
  items:
    weather: {{ provider: corp, path: secret/data/weather, refresh: 1s }}
services:
  weather: {{ config_file: weather.yaml }}
  local: {{ config_file: local.yaml }}
templates:
  - {{ source: app.j2, destination: run/app.conf }}
audit: {{ path: audit.log }}
"#,
        bao.address()
    );
    let server = serde_json::to_string(&crate::support::upstream::python_stdio()).unwrap();
    Folder::new(&[
        ("mcpeg.yaml", &main),
        ("token", ROOT_TOKEN),
        (
            "weather.yaml",
            &format!("type: mcp\nurl: {upstream}\nheaders: {{ X-Api-Key: \"${{secret.weather.key}}\" }}\n"),
        ),
        (
            "local.yaml",
            &format!("type: mcp\ncommand: {server}\nenv: {{ MCPEG_TEST_TOKEN: \"${{secret.weather.token}}\" }}\n"),
        ),
        (
            "app.j2",
            "token={{ secret.weather.token | json }}\nurl={{ secret.weather.token | urlencode }}\nb64={{ secret.weather.token | base64 }}\n",
        ),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_file_header_and_child_and_leaves_nothing_behind() {
    let bao = Bao::start().await;
    let upstream = HttpServer::python().await;
    bao.put("weather", json!({ "token": value(1), "key": "key-00000001-abcdefghijklmnop" })).await;
    let sidecar = Sidecar::start(folder(&bao, &upstream.url));
    assert!(sidecar.folder.read("run/app.conf").contains("token=\"tok\\\"en/00000001"));
    let mut http = Client::initialized(&sidecar.service_socket("weather")).await;
    let mut child = Client::initialized(&sidecar.service_socket("local")).await;
    assert_eq!(who(&mut http).await["x_api_key_sha256"], digest("key-00000001-abcdefghijklmnop"));
    assert_eq!(who(&mut child).await["env_sha256"], digest(&value(1)));

    bao.put("weather", json!({ "token": value(2), "key": "key-00000002-abcdefghijklmnop" })).await;
    let written = Instant::now();
    eventually(Duration::from_secs(5), "the file follows", || async {
        sidecar.folder.read("run/app.conf").contains("00000002").then_some(())
    })
    .await;
    let took = written.elapsed();
    // The interval and 100 ms, and some more for a machine that runs other tests beside this one.
    assert!(took < REFRESH + Duration::from_millis(500), "the file followed after {took:?}");
    assert_eq!(who(&mut http).await["x_api_key_sha256"], digest("key-00000002-abcdefghijklmnop"));
    eventually(Duration::from_secs(10), "the child follows", async || {
        (who(&mut child).await["env_sha256"] == digest(&value(2))).then_some(())
    })
    .await;

    tokio::time::sleep_until((Instant::now() + Duration::from_secs(1)).into()).await;
    for old in [value(1), "key-00000001-abcdefghijklmnop".to_owned()] {
        let found = memory::find(sidecar.pid(), &old);
        assert!(found.is_empty(), "{} copies of the old value: {found:#?}", found.len());
    }
    for line in http.received.iter().chain(&child.received) {
        assert!(!shows_a_value(line), "the agent was sent {line}");
    }
    let rotated = sidecar.folder.audit("secret.rotated");
    assert_eq!(rotated.len(), 1, "{rotated:?}");
    assert_eq!(rotated[0]["attributes"]["mcpeg.secret.item"], "weather");
    for written in [sidecar.folder.read("audit.log"), sidecar.stderr()] {
        assert!(!written.is_empty() && !shows_a_value(&written), "{written}");
    }
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_while_the_credential_rotates() {
    let bao = Bao::start().await;
    let upstream = HttpServer::python().await;
    bao.put("weather", json!({ "token": value(0), "key": "key-0" })).await;
    let sidecar = Sidecar::start(folder(&bao, &upstream.url));
    let stop = tokio_util::sync::CancellationToken::new();
    let mut callers = tokio::task::JoinSet::new();
    let mut seen_by = Vec::new();
    for service in ["weather", "local", "weather"] {
        let (socket, stop) = (sidecar.service_socket(service), stop.clone());
        let (seen_now, seen_here) = tokio::sync::watch::channel(0);
        seen_by.push(seen_here);
        callers.spawn(async move {
            let mut client = Client::initialized(&socket).await;
            let (mut calls, mut failed, mut seen) = (0, Vec::new(), std::collections::BTreeSet::new());
            while !stop.is_cancelled() {
                let answer = client.call("whoami", json!({})).await;
                calls += 1;
                if answer["error"].is_object() || answer["result"]["isError"] == true {
                    failed.push(answer.to_string());
                }
                let who = &answer["result"]["structuredContent"];
                seen.insert(format!("{}{}", who["x_api_key_sha256"], who["env_sha256"]));
                seen_now.send_replace(seen.len());
            }
            (calls, failed)
        });
    }
    // Each rotation waits until every caller has called by the credential before it.
    for number in 1..=5_u32 {
        let everybody = async {
            for seen in &mut seen_by {
                seen.wait_for(|seen| *seen >= number as usize).await.expect("a caller ended");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), everybody).await.expect("a caller did not follow in 30 s");
        if number < 5 {
            bao.put("weather", json!({ "token": value(number), "key": format!("key-{number}") })).await;
        }
    }
    stop.cancel();
    for (calls, failed) in callers.join_all().await {
        assert!(failed.is_empty(), "{} of {calls} calls failed: {failed:#?}", failed.len());
    }
    assert_eq!(sidecar.folder.audit("secret.rotated").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_may_go_and_come_back() {
    let mut bao = Bao::start().await;
    let upstream = HttpServer::python().await;
    bao.put("weather", json!({ "token": value(1), "key": "k" })).await;
    let sidecar = Sidecar::start(folder(&bao, &upstream.url));
    bao.down();
    let said = sidecar.says("secret/weather", &["degraded", "version 1"]).await;
    assert!(!said.contains("00000001"), "{said}");
    sidecar.says("provider/corp", &[&bao.address()]).await;
    let mut http = Client::initialized(&sidecar.service_socket("weather")).await;
    assert_eq!(who(&mut http).await["x_api_key_sha256"], digest("k"), "last known good is served");

    bao.up().await;
    bao.put("weather", json!({ "token": value(2), "key": "k2" })).await;
    eventually(Duration::from_secs(8), "the healed server is found", || async {
        sidecar.folder.read("run/app.conf").contains("00000002").then_some(())
    })
    .await;
    sidecar.says("provider/corp", &["ok"]).await;
    assert_eq!(sidecar.folder.audit("secret.failed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn approle_logs_in_and_a_denied_path_leaves_the_others_alone() {
    let bao = Bao::start().await;
    let (role, secret) = bao.approle().await;
    bao.put("good", json!({ "token": "good-token" })).await;
    bao.put("denied", json!({ "token": "never-read" })).await;
    let main = format!(
        r#"version: "1.0"
secrets:
  providers:
    corp: {{ type: vault, address: "{}", auth: {{ method: approle, role_id: {role}, secret_id_file: id }} }}
  items:
    good: {{ provider: corp, path: secret/data/good, refresh: 500ms }}
    denied: {{ provider: corp, path: secret/data/denied, refresh: 500ms, require_at_start: false }}
templates:
  - {{ source: good.j2, destination: good.conf }}
  - {{ source: denied.j2, destination: denied.conf }}
audit: {{ path: audit.log }}
"#,
        bao.address()
    );
    let folder = Folder::new(&[
        ("mcpeg.yaml", &main),
        ("id", &secret),
        ("good.j2", "{{ secret.good.token }}"),
        ("denied.j2", "{{ secret.denied.token }}"),
    ]);
    let sidecar = Sidecar::start(folder);
    sidecar.says("secret/denied", &["denied"]).await;
    sidecar.says("secret/good", &["ok"]).await;
    assert_eq!(sidecar.folder.read("good.conf"), "good-token");
    assert!(!sidecar.folder.path("denied.conf").exists());

    // A dead token: every token of the role is revoked.
    bao.call("POST", "sys/leases/revoke-prefix/auth/approle/login", json!({ "sync": true })).await;
    bao.put("good", json!({ "token": "better-token" })).await;
    eventually(Duration::from_secs(4), "it logs in again", || async {
        (sidecar.folder.read("good.conf") == "better-token").then_some(())
    })
    .await;
    assert!(sidecar.folder.audit("provider.login").len() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_it_trusts_the_ca_file_and_nobody_else_and_leaves_nothing_behind() {
    let bao = TlsBao::start().await;
    bao.put("app", "token", &value(1));
    let main = |tls: &str| {
        format!(
            "version: \"1.0\"\nmetadata: {{ name: rotated }}\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }}, tls: {tls} }}\n  \
             items:\n    app: {{ provider: corp, path: secret/data/app, refresh: 500ms }}\ntemplates:\n  - {{ source: app.j2, destination: app.conf }}\n",
            bao.address()
        )
    };
    let trusting = main(&format!("{{ ca_file: {} }}", bao.ca_file()));
    let folder = Folder::new(&[("mcpeg.yaml", &trusting), ("token", ROOT_TOKEN), ("app.j2", "{{ secret.app.token }}")]);
    let sidecar = Sidecar::start(folder);
    assert_eq!(sidecar.folder.read("app.conf"), value(1));
    bao.put("app", "token", &value(2));
    eventually(Duration::from_secs(5), "the file follows", async || {
        (sidecar.folder.read("app.conf") == value(2)).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), &value(1));
    assert!(found.is_empty(), "{} copies of the old value: {found:#?}", found.len());

    let folder =
        Folder::new(&[("mcpeg.yaml", &main("{}")), ("token", ROOT_TOKEN), ("app.j2", "{{ secret.app.token }}")]);
    let (stranger, _lines) = Sidecar::spawn(folder, &[]);
    eventually(Duration::from_secs(10), "the admin socket is there", async || {
        stranger.folder.path("run/admin.sock").exists().then_some(())
    })
    .await;
    stranger.says("provider/corp", &["certificate"]).await;
    assert!(!stranger.folder.path("app.conf").exists());
}

/// Any part of a secret that is not a number alone: durations and trace ids hold any of those.
fn shows_a_value(text: &str) -> bool {
    ["en/0000", "key-0000", "0123456789-abc", "abcdefghijklmnop"].iter().any(|part| text.contains(part))
}

async fn who(client: &mut Client) -> Value {
    let answer = client.call("whoami", json!({})).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).unwrap()
}

fn digest(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
