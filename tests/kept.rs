//! Answers that are kept: by `cache_ttl`, by what a server of the modern era says, for how long and for whom; and when they are dropped.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::library::Library;
use crate::support::mcp::{Client, modern};
use crate::support::sidecar::{Folder, Sidecar};

/// A sidecar with one service, which is given a secret.
fn sidecar(service: &str) -> Sidecar {
    let main = "version: \"1.0\"\naudit: { path: audit.log }\n\
        secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { token: { provider: own, path: token, refresh: 1s } }\n\
        services: { library: { config_file: library.yaml } }\n";
    let folder = Folder::new(&[("mcpeg.yaml", main), ("secrets.yaml", "token: { value: first-value }\n")]);
    folder.write("library.yaml", &format!("{service}env: {{ TOKEN: \"${{secret.token}}\" }}\n"));
    Sidecar::start(folder)
}

/// What tells one answer of the server from another.
fn stamp(answer: &Value) -> String {
    let result = &answer["result"];
    let found = [&result["stamp"], &result["content"][0]["text"]].into_iter().find_map(Value::as_str);
    found.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn results_of_tools_are_kept_where_the_service_file_says_so() {
    let library = Library::new(&[]);
    let rules = "tools: [ { name: \"*\", cache_ttl: 1h } ]\n";
    let sidecar = sidecar(&library.service(rules));
    for is_modern in [false, true] {
        let asks = |tool: &str, n: u32, prefix: &str| {
            let params = json!({ "name": format!("{prefix}{tool}"), "arguments": { "n": n } });
            if is_modern { modern(params) } else { params }
        };
        let connect = async |socket| {
            if is_modern { Client::connect(socket).await } else { Client::initialized(socket).await }
        };
        let own = sidecar.service_socket("library");
        let (mut first, mut second) = (connect(&own).await, connect(&own).await);
        let kept = stamp(&first.request("tools/call", asks("stamp", 1, "")).await);
        assert_eq!(stamp(&first.request("tools/call", asks("stamp", 1, "")).await), kept);
        assert_eq!(stamp(&second.request("tools/call", asks("stamp", 1, "")).await), kept, "of the same user");
        assert_ne!(stamp(&first.request("tools/call", asks("stamp", 2, "")).await), kept);
        let mut all = connect(&sidecar.socket()).await;
        let there = stamp(&all.request("tools/call", asks("stamp", 3, "library__")).await);
        assert_eq!(stamp(&all.request("tools/call", asks("stamp", 3, "library__")).await), there);
        let never = if is_modern { &["fail", "leak", "again"][..] } else { &["fail", "leak"] };
        for tool in never {
            let asked = library.has_read(tool);
            for _ in 0..2 {
                let answer = first.request("tools/call", asks(tool, 1, "")).await;
                assert!(answer["result"].is_object() && !answer.to_string().contains("first-value"), "{answer}");
            }
            assert_eq!(library.has_read(tool), asked + 2, "{tool} is not kept");
        }
    }
    let events = sidecar.folder.audit("mcp.request");
    let found = |word: &str| events.iter().filter(|event| event["attributes"]["mcpeg.cache"] == word).count();
    assert!(found("hit") >= 6 && found("miss") >= 6, "{events:#?}");
    let stats = &sidecar.status()["storage"]["cache"]["stats"];
    assert!(stats["hits"].as_u64() >= Some(6) && stats["bytes"].as_u64() > Some(0), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_with_old_settings_or_secrets_is_dropped() {
    let library = Library::new(&[]);
    let rules =
        "tools: [ { name: stamp, cache_ttl: 1h } ]\nresources: [ { pattern: \"doc://{+path}\", cache_ttl: 1h } ]\n";
    let sidecar = sidecar(&library.service(rules));
    let mut client = Client::initialized(&sidecar.service_socket("library")).await;
    let mut kept = stamp(&client.call("stamp", json!({})).await);
    assert_eq!(stamp(&client.call("stamp", json!({})).await), kept);

    let read = async |client: &mut Client| {
        let answer = client.request("resources/read", json!({ "uri": "doc://public/a" })).await;
        answer["result"]["contents"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let content = read(&mut client).await;
    assert_eq!(read(&mut client).await, content);
    // The server says that its tools and a resource have changed.
    client.call("change", json!({})).await;
    let changed = stamp(&client.call("stamp", json!({})).await);
    assert_ne!(changed, kept);
    assert_ne!(read(&mut client).await, content);
    kept = changed;

    for change in ["a secret", "a setting"] {
        if change == "a secret" {
            sidecar.folder.write("secrets.yaml", "token: { value: second-value }\n");
        } else {
            let text = sidecar.folder.read("library.yaml");
            sidecar.folder.write("library.yaml", &format!("{text}timeout: 29s\n"));
        }
        kept = eventually(Duration::from_secs(20), change, async || {
            let now = stamp(&client.call("stamp", json!({})).await);
            (now != kept).then_some(now)
        })
        .await;
        assert_eq!(stamp(&client.call("stamp", json!({})).await), kept, "{change}: the new one is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_modern_era_says_what_may_be_kept() {
    let library = Library::new(&["60000", "public"]);
    let sidecar = sidecar(&library.service("deny: { tools: [big] }\n"));
    let mut client = Client::connect(&sidecar.service_socket("library")).await;
    let mut stamps = Vec::new();
    for method in ["server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list"] {
        let first = client.request(method, modern(json!({}))).await;
        let again = client.request(method, modern(json!({}))).await;
        assert_eq!(stamp(&first), stamp(&again), "{method}");
        assert!(again["result"]["ttlMs"].as_u64() <= Some(60_000), "{again}");
        stamps.push(stamp(&first));
    }
    let list = client.request("tools/list", modern(json!({}))).await;
    assert!(!list.to_string().contains("\"big\""), "rules hold for what is kept: {list}");
    let mut other = Client::connect(&sidecar.service_socket("library")).await;
    assert_eq!(stamp(&other.request("tools/list", modern(json!({}))).await), stamps[1]);
    let read = modern(json!({ "uri": "doc://public/a" }));
    let content = stamp(&client.request("resources/read", read.clone()).await);
    assert_eq!(stamp(&client.request("resources/read", read).await), content);
    // A client of the legacy era is told nothing of such times, and what it asks is asked.
    let mut legacy = Client::initialized(&sidecar.service_socket("library")).await;
    let first = stamp(&legacy.request("tools/list", json!({})).await);
    assert_ne!(stamp(&legacy.request("tools/list", json!({})).await), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_or_is_not_to_be_heard_is_asked_each_time() {
    for (hints, more) in [(&["0"][..], ""), (&["60000"], "server_ttl: false\n")] {
        let library = Library::new(hints);
        let sidecar = sidecar(&library.service(more));
        let mut client = Client::connect(&sidecar.service_socket("library")).await;
        let first = stamp(&client.request("tools/list", modern(json!({}))).await);
        assert_ne!(stamp(&client.request("tools/list", modern(json!({}))).await), first, "{more}");
    }
}
