//! A credential of a stdio server changes while its clients work (`on_rotate: swap`): a new child takes over between two messages, no call
//! waits or fails, and the client learns what is different.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::mcp::{Client, modern};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::python_stdio;
use crate::support::{eventually, peers};

/// A sidecar whose service `local` runs `argv` with the secret in the variable `name`.
fn sidecar(argv: &[String], name: &str, more: &str) -> Sidecar {
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\naudit: { path: audit.log }\n\
             secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { it: { provider: own, path: it, refresh: 1h } }\n\
             services:\n  local: { config_file: local.yaml }\n",
        ),
        ("secrets.yaml", "it: { token: first }\n"),
        (
            "local.yaml",
            &format!(
                "type: mcp\ncommand: {}\nenv: {{ {name}: \"${{secret.it.token}}\" }}\n{more}",
                serde_json::to_string(argv).unwrap()
            ),
        ),
    ]);
    Sidecar::start(folder)
}

fn rotating(log: &Path, more: &[&str]) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rotating.py");
    let words = [&[script, log.to_str().unwrap()], more].concat();
    let python = peers::path("python").display().to_string();
    std::iter::once(python).chain(words.into_iter().map(str::to_owned)).collect()
}

async fn rotate(sidecar: &Sidecar, token: &str) {
    sidecar.folder.write("secrets.yaml", &format!("it: {{ token: \"{token}\" }}\n"));
    eventually(Duration::from_secs(10), "the secret is fetched", async || {
        let done = sidecar.folder.mcpeg(&["secrets", "refresh", "it"]);
        done.status.success().then_some(())
    })
    .await;
}

/// The secret and the pid of the child that answers.
async fn who(client: &mut Client) -> (String, u32) {
    let answer = client.call("who", json!({})).await;
    spoken(&answer)
}

fn spoken(answer: &Value) -> (String, u32) {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    let (token, pid) = text.split_once(' ').unwrap();
    (token.to_owned(), pid.parse().unwrap())
}

async fn follows(client: &mut Client, token: &str) -> u32 {
    eventually(Duration::from_secs(20), "the new child serves", async || {
        let (seen, pid) = who(client).await;
        (seen == token).then_some(pid)
    })
    .await
}

/// Reads on until a line holds all of `words`.
async fn until(client: &mut Client, words: &[&str]) -> String {
    loop {
        let line = client.line().await.unwrap();
        if words.iter().all(|word| line.contains(word)) {
            return line;
        }
    }
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_child_serves_while_the_old_one_is_still_at_work_and_the_old_one_while_the_new_one_starts() {
    let log = tempfile::tempdir().unwrap();
    let sidecar = sidecar(&rotating(log.path(), &["--slow-start", "1.5"]), "TOKEN", "");
    let mut client = Client::initialized(&sidecar.service_socket("local")).await;
    let (_, old) = who(&mut client).await;
    client.send(r#"{"jsonrpc":"2.0","id":"long","method":"tools/call","params":{"name":"sleep","arguments":{"seconds":6}}}"#).await;
    rotate(&sidecar, "second").await;
    let (mut by_old, new) = (
        0,
        loop {
            let (token, pid) = who(&mut client).await;
            if token == "second" {
                break pid;
            }
            assert_eq!((token.as_str(), pid), ("first", old));
        },
    );
    by_old += client.received.iter().filter(|line| line.contains("first")).count();
    assert!(by_old > 3, "the old child served while the new one started: {by_old} answers");
    assert!(
        !client.received.iter().any(|line| line.contains("\"long\"")),
        "the new child waited for the old one's work"
    );
    let long: Value = serde_json::from_str(&until(&mut client, &["\"long\""]).await).unwrap();
    assert_eq!(spoken(&long), ("first".to_owned(), old), "who was asked answers");
    eventually(Duration::from_secs(10), "the old child ends", async || (!alive(old)).then_some(())).await;
    assert_eq!(who(&mut client).await, ("second".to_owned(), new));
    let calls = sidecar.folder.audit("mcp.request");
    let versions = |call: &Value| call["attributes"]["mcpeg.secret.versions"].to_string();
    assert_eq!(versions(calls.last().unwrap()), r#"["it@2"]"#);
    assert!(
        calls.iter().any(|call| call["attributes"]["jsonrpc.request.id"] == "long" && versions(call) == r#"["it@1"]"#)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_swaps_under_its_sdk() {
    let sidecar = sidecar(&python_stdio(), "MCPEG_TEST_TOKEN", "on_rotate: swap\n");
    let mut client = Client::initialized(&sidecar.service_socket("local")).await;
    let who = async |client: &mut Client| client.call("whoami", json!({})).await["result"]["structuredContent"].clone();
    let before = who(&mut client).await;
    rotate(&sidecar, "second").await;
    let after = eventually(Duration::from_secs(30), "the new child serves", async || {
        Some(who(&mut client).await).filter(|after| after["pid"] != before["pid"])
    })
    .await;
    assert_ne!(after["env_sha256"], before["env_sha256"]);
    assert_eq!(after["env_length"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_child_that_dies_at_once_leaves_the_old_one_serving_and_is_said() {
    let log = tempfile::tempdir().unwrap();
    let sidecar = sidecar(&rotating(log.path(), &[]), "TOKEN", "");
    let mut client = Client::initialized(&sidecar.service_socket("local")).await;
    let before = who(&mut client).await;
    rotate(&sidecar, "bad").await;
    sidecar.says("service/local", &["degraded", "stay with a server", "ended with status 9"]).await;
    for _ in 0..20 {
        assert_eq!(who(&mut client).await, before);
    }
    sidecar.says("service/local", &["degraded"]).await;
    rotate(&sidecar, "good").await;
    follows(&mut client, "good").await;
    sidecar.says("service/local", &["ok"]).await;
    rotate(&sidecar, "bad-again").await;
    sidecar.says("service/local", &["degraded"]).await;
    drop(client);
    sidecar.says("service/local", &["ok"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_child_is_told_the_session_and_the_client_what_is_different() {
    let log = tempfile::tempdir().unwrap();
    let sidecar = sidecar(&rotating(log.path(), &[]), "TOKEN", "");
    let mut client = Client::connect(&sidecar.service_socket("local")).await;
    let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": { "roots": {} }, "clientInfo": { "name": "test", "version": "1" } });
    client.request("initialize", hello).await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    until(&mut client, &["roots/list", "\"id\": 1,"]).await;
    // The first child's question is not answered yet when the second one asks under the same id.
    client.request("logging/setLevel", json!({ "level": "debug" })).await;
    client.request("resources/subscribe", json!({ "uri": "file:///one" })).await;
    client.request("resources/subscribe", json!({ "uri": "file:///two" })).await;
    client.request("resources/unsubscribe", json!({ "uri": "file:///one" })).await;
    client.request("tools/list", json!({})).await;
    rotate(&sidecar, "s:extra").await;
    let asks = until(&mut client, &["roots/list"]).await;
    let asks: Value = serde_json::from_str(&asks).unwrap();
    assert_ne!(asks["id"], 1, "the id is the first child's for now");
    client
        .send(
            &json!({ "jsonrpc": "2.0", "id": asks["id"], "result": { "roots": [{ "uri": "file:///new" }] } })
                .to_string(),
        )
        .await;
    until(&mut client, &["notifications/tools/list_changed"]).await;
    let tools = client.request("tools/list", json!({})).await;
    assert!(tools.to_string().contains("extra"), "{tools}");
    let pid = follows(&mut client, "s:extra").await;
    let told = std::fs::read_to_string(log.path().join(pid.to_string())).unwrap();
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let methods: Vec<&str> = told.iter().filter_map(|line| line["method"].as_str()).take(5).collect();
    assert_eq!(
        methods,
        ["initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe", "tools/list"]
    );
    assert_eq!((&told[2]["params"]["level"], &told[3]["params"]["uri"]), (&json!("debug"), &json!("file:///two")));
    let roots = told.iter().find(|line| line["result"]["roots"].is_array()).unwrap();
    assert_eq!((&roots["id"], &roots["result"]["roots"][0]["uri"]), (&json!(1), &json!("file:///new")));

    // The same tools under another secret are no news.
    let seen = client.received.len();
    rotate(&sidecar, "t:extra").await;
    follows(&mut client, "t:extra").await;
    assert!(
        !client.received[seen..].iter().any(|line| line.contains("list_changed")),
        "{:#?}",
        &client.received[seen..]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_session_swaps_and_its_subscription_goes_on() {
    let log = tempfile::tempdir().unwrap();
    let sidecar = sidecar(&rotating(log.path(), &[]), "TOKEN", "");
    let mut client = Client::connect(&sidecar.service_socket("local")).await;
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} });
    let call = json!({ "name": "who", "arguments": {}, "_meta": meta });
    client.request("tools/list", json!({ "_meta": meta })).await;
    let listen = json!({ "jsonrpc": "2.0", "id": "sub", "method": "subscriptions/listen",
        "params": { "notifications": { "toolsListChanged": true }, "_meta": meta } });
    client.send(&listen.to_string()).await;
    until(&mut client, &["acknowledged"]).await;
    let before = spoken(&client.request("tools/call", call.clone()).await);
    rotate(&sidecar, "s:extra").await;
    let line = until(&mut client, &["notifications/tools/list_changed"]).await;
    assert!(line.contains(r#""io.modelcontextprotocol/subscriptionId":"sub""#), "{line}");
    let after = spoken(&client.request("tools/call", call).await);
    assert!(after.0 == "s:extra" && after.1 != before.1, "{after:?}");
    let told = std::fs::read_to_string(log.path().join(after.1.to_string())).unwrap();
    assert!(told.contains("subscriptions/listen") && !told.contains("\"initialize\""), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_list_came_from_the_cache_learns_that_it_is_another_as_well() {
    let log = tempfile::tempdir().unwrap();
    let sidecar = sidecar(&rotating(log.path(), &[]), "TOKEN", "");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(&sidecar.service_socket("local")).await;
        let listen = modern(json!({ "notifications": { "toolsListChanged": true } }));
        let listen = json!({ "jsonrpc": "2.0", "id": "sub", "method": "subscriptions/listen", "params": listen });
        client.send(&listen.to_string()).await;
        until(&mut client, &["acknowledged"]).await;
        let list = client.request("tools/list", modern(json!({}))).await;
        assert_eq!(list["result"]["tools"].as_array().map(Vec::len), Some(4), "{list}");
        clients.push(client);
    }
    let listed = sidecar.folder.audit("mcp.request");
    let listed = listed.iter().filter(|event| event["attributes"]["mcp.method.name"] == "tools/list");
    let found: Vec<&str> = listed.map(|event| event["attributes"]["mcpeg.cache"].as_str().unwrap()).collect();
    assert_eq!(found, ["miss", "hit"]);
    rotate(&sidecar, "second:extra").await;
    for client in &mut clients {
        until(client, &["notifications/tools/list_changed"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_rotations_under_clients_at_work_fail_no_call() {
    const ROTATIONS: usize = 50;
    let log = tempfile::tempdir().unwrap();
    let argv = serde_json::to_string(&rotating(log.path(), &[])).unwrap();
    let items: Vec<String> = (0..5).map(|n| format!("i{n}")).collect();
    let declared: Vec<String> =
        items.iter().map(|i| format!("{i}: {{ provider: own, path: {i}, refresh: 1h }}")).collect();
    let token: String = items.iter().map(|i| format!("${{secret.{i}.token}}")).collect::<Vec<_>>().join("-");
    let written = |round: usize| -> String {
        // Item `n` has the number of the last round in which it was changed.
        let of = |n: usize| if round < n { 0 } else { round - (round - n) % 5 };
        (0..5).map(|n| format!("i{n}: {{ token: sentinel{} }}\n", of(n))).collect()
    };
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            &format!(
                "version: \"1.0\"\naudit: {{ path: audit.log }}\nsecrets:\n  providers: {{ own: {{ type: file, path: secrets.yaml }} }}\n  items: {{ {} }}\n\
             services:\n  local: {{ config_file: local.yaml }}\n",
                declared.join(", ")
            ),
        ),
        ("secrets.yaml", &written(0)),
        ("local.yaml", &format!("type: mcp\ncommand: {argv}\nenv: {{ TOKEN: \"{token}\" }}\n")),
    ]);
    let sidecar = Sidecar::start(folder);
    let stop = CancellationToken::new();
    let mut callers = JoinSet::new();
    for number in 0..4 {
        let (socket, stop) = (sidecar.service_socket("local"), stop.clone());
        callers.spawn(call_until(stop, socket, if number == 0 { 0.05 } else { 0.0 }));
    }
    for round in 1..=ROTATIONS {
        sidecar.folder.write("secrets.yaml", &written(round));
        let item = format!("i{}", round % 5);
        eventually(Duration::from_secs(10), "the secret is fetched", async || {
            sidecar.folder.mcpeg(&["secrets", "refresh", &item]).status.success().then_some(())
        })
        .await;
    }
    assert!(sidecar.folder.audit("secret.rotated").len() >= ROTATIONS - 4, "the secrets have rotated");
    let settled = async || {
        let children = sidecar.status()["mcp"]["services"]["local"]["children"].as_array().unwrap().len();
        (children == 4).then_some(())
    };
    eventually(Duration::from_secs(30), "each client has one child again", settled).await;
    stop.cancel();
    for (calls, children, failed, leaked) in callers.join_all().await {
        assert!(failed.is_empty(), "{} of {calls} calls failed: {failed:#?}", failed.len());
        assert!(children > 5 && calls > children, "{calls} calls met {children} children");
        assert!(!leaked, "the agent saw a credential");
    }
}

/// Calls one after the other. How many calls, how many children answered, what failed, and whether a credential was seen.
async fn call_until(
    stop: CancellationToken,
    socket: std::path::PathBuf,
    seconds: f64,
) -> (usize, usize, Vec<String>, bool) {
    let mut client = Client::initialized(&socket).await;
    let (mut calls, mut pids, mut failed) = (0_usize, BTreeSet::new(), Vec::new());
    while !stop.is_cancelled() {
        let answer = client.call("sleep", json!({ "seconds": seconds })).await;
        calls += 1;
        match answer["result"]["content"][0]["text"].as_str() {
            Some(text) => drop(pids.insert(text.rsplit(' ').next().unwrap().to_owned())),
            None => failed.push(answer.to_string()),
        }
    }
    (calls, pids.len(), failed, client.received.iter().any(|line| line.contains("sentinel")))
}
