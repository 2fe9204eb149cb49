//! Upstreams that die, go away, come back, and refuse what they are shown: the client's session goes on, and everything that was asked is
//! answered.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::mcp::Client;
use crate::support::nginx::Nginx;
use crate::support::sidecar::{Folder, Sidecar, signal_process};
use crate::support::stand_in::{Asked, Reply, StandIn};
use crate::support::upstream::{HttpServer, python_stdio, with};
use crate::support::{eventually, free_port, peers};

/// A sidecar with one service; `more` goes into the main file.
fn sidecar(service: &str, more: &str) -> Sidecar {
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            &format!(
                "version: \"1.0\"\naudit: {{ path: audit.log }}\n{more}\
                 secrets:\n  providers: {{ own: {{ type: file, path: secrets.yaml }} }}\n  items: {{ it: {{ provider: own, path: it, refresh: 1h }} }}\n\
                 services:\n  it: {{ config_file: it.yaml }}\n"
            ),
        ),
        ("secrets.yaml", "it: { key: key-number-one }\n"),
        ("it.yaml", &format!("type: mcp\n{service}")),
    ]);
    Sidecar::start(folder)
}

fn command(argv: &[String]) -> String {
    format!("command: {}\n", serde_json::to_string(argv).unwrap())
}

async fn pid(client: &mut Client) -> u32 {
    let answer = client.call("whoami", json!({})).await;
    let pid = answer["result"]["structuredContent"]["pid"].as_u64().unwrap_or_else(|| panic!("{answer}"));
    u32::try_from(pid).unwrap()
}

async fn start_slow(client: &mut Client, seconds: f64) {
    let call = json!({ "jsonrpc": "2.0", "id": "slow", "method": "tools/call", "params": { "name": "slow", "arguments": { "seconds": seconds } } });
    client.send(&call.to_string()).await;
}

async fn answer(client: &mut Client, id: &str) -> Value {
    loop {
        let line: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
        if line["id"] == id {
            return line;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_child_was_at_is_done_by_the_next_one_if_its_tool_says_that_it_may_be() {
    let sidecar = sidecar(&command(&python_stdio()), "");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    let first = pid(&mut client).await;
    start_slow(&mut client, 2.0).await;
    signal_process(first, libc::SIGKILL);
    let lost = answer(&mut client, "slow").await;
    assert_eq!(
        lost["error"]["data"]["reason"], "upstream_died",
        "nobody knows yet what the tool says of itself: {lost}"
    );
    client.request("tools/list", json!({})).await;
    let second = pid(&mut client).await;
    start_slow(&mut client, 1.0).await;
    signal_process(second, libc::SIGKILL);
    let done = answer(&mut client, "slow").await;
    assert_eq!(done["result"]["content"][0]["text"], "slept 1 s", "{done}");
    assert_ne!(pid(&mut client).await, second);
    // What ends its child each time is not asked a third time.
    let crashed = client.call("crash", json!({})).await;
    assert_eq!(crashed["error"]["data"]["reason"], "upstream_died", "{crashed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_killed_again_and_again_costs_no_session() {
    let sidecar = sidecar(&command(&python_stdio()), "");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    client.request("tools/list", json!({})).await;
    for round in 0..8 {
        let child = pid(&mut client).await;
        signal_process(child, libc::SIGKILL);
        let answer = client.call("echo", json!({ "text": round.to_string() })).await;
        assert_eq!(answer["result"]["content"][0]["text"], round.to_string(), "{answer}");
    }
}

/// A program that works once a file is there, and waits for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_works_again_is_used_for_the_next_call() {
    let flag = tempfile::tempdir().unwrap();
    let flag = flag.path().join("go");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rotating.py");
    let folder = flag.parent().unwrap().display();
    let shell =
        format!("[ -e {} ] || exit 1; exec {} {script} {folder}", flag.display(), peers::path("python").display());
    let sidecar = sidecar(&command(&["sh".to_owned(), "-c".to_owned(), shell]), "");
    let mut client = Client::connect(&sidecar.service_socket("it")).await;
    let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } });
    for _ in 0..12 {
        assert!(client.request("initialize", hello.clone()).await["error"].is_object());
    }
    std::fs::write(&flag, "").unwrap();
    let asked = Instant::now();
    let answer = client.request("initialize", hello).await;
    assert!(answer["result"].is_object(), "{answer}");
    eprintln!("the first good answer after 12 failures, a start of Python included: {:?}", asked.elapsed());
    // After so many failures a pause that nobody cuts short would be several seconds long.
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_server_that_was_killed_is_used_again_as_soon_as_it_listens() {
    let port = free_port().to_string();
    let argv = with(peers::argv("mcp_typescript_server"), &["http", "--port", &port]);
    let mut upstream = HttpServer::start(argv.clone()).await;
    let sidecar = sidecar(&format!("url: {}\n", upstream.url), "");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    client.request("tools/list", json!({})).await;
    for _ in 0..3 {
        start_slow(&mut client, 20.0).await;
        assert!(client.call("echo", json!({ "text": "a" })).await["result"].is_object());
        upstream.kill();
        let lost = answer(&mut client, "slow").await;
        assert!(lost["error"]["message"].as_str().unwrap().contains("service it"), "{lost}");
        for _ in 0..10 {
            assert!(client.call("echo", json!({ "text": "b" })).await["error"].is_object());
        }
        upstream = HttpServer::start(argv.clone()).await;
        let asked = Instant::now();
        // The server has forgotten the session; the tool may be called again.
        let answer = client.call("echo", json!({ "text": "c" })).await;
        let took = asked.elapsed();
        assert_eq!(answer["result"]["content"][0]["text"], "c", "{answer}");
        let without = without_mcpeg(with(peers::argv("mcp_typescript_server"), &["http", "--port", "0"])).await;
        eprintln!("the first good answer after the server listened: {took:?}; without mcpeg {without:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

/// How long the same three messages take from a client straight to a server that has just begun to listen.
async fn without_mcpeg(argv: Vec<String>) -> Duration {
    let server = HttpServer::start(argv).await;
    let client = crate::support::http();
    let asked = Instant::now();
    let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } });
    let mut session = None;
    for message in [
        json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello }),
        json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": { "name": "echo", "arguments": { "text": "c" } } }),
    ] {
        let request = client.post(&server.url).header("accept", "application/json, text/event-stream").json(&message);
        let request = session.iter().fold(request, |request, id| request.header("mcp-session-id", id));
        let answer = request.send().await.unwrap();
        session = session.or_else(|| answer.headers().get("mcp-session-id").cloned());
        assert!(answer.status().is_success());
        answer.bytes().await.unwrap();
    }
    asked.elapsed()
}

/// A server that knows the sessions that it has begun itself, and no others.
async fn forgetful(port: u16, life: u32) -> StandIn {
    StandIn::replying_at(port, move |asked: &Asked| {
        let session = format!("life-{life}");
        let Some(id) = asked.body.get("id") else { return Reply::new(202, "") };
        let result = match asked.body["method"].as_str() {
            Some("initialize") => json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} }, "serverInfo": { "name": "f", "version": "1" } }),
            _ if asked.headers.get("mcp-session-id").is_none_or(|id| *id != *session) => return Reply::new(404, ""),
            Some("tools/list") => json!({ "tools": [{ "name": "life", "inputSchema": {}, "annotations": { "readOnlyHint": true } }] }),
            _ => json!({ "content": [], "life": life }),
        };
        let mut reply = Reply::new(200, json!({ "jsonrpc": "2.0", "id": id, "result": result }));
        reply.headers.push(("mcp-session-id", session));
        reply
    })
    .await
}

/// The server costs no time here, as it does when it is a process that has just started: what is seen is mcpeg's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_comes_while_nobody_listens_or_right_after_finds_the_server_that_listens_again() {
    const LIVES: u32 = 24;
    let port = free_port();
    let mut server = Some(forgetful(port, 0).await);
    let sidecar = sidecar(&format!("url: http://127.0.0.1:{port}/mcp\n"), "");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    client.request("tools/list", json!({})).await;
    let mut took = Vec::new();
    for life in 1..=LIVES {
        drop(server.take());
        for _ in 0..life % 6 {
            // A connection may be served to its end.
            while client.call("life", json!({})).await["result"].is_object() {}
        }
        // Half of the time somebody is asking all the while.
        let listens = async {
            tokio::time::sleep(Duration::from_millis(if life % 2 == 0 { 40 } else { 0 })).await;
            server = Some(forgetful(port, life).await);
            Instant::now()
        };
        let asks = async {
            loop {
                let answer = client.call("life", json!({})).await;
                // One that was under way may still be answered by the server before.
                if answer["result"]["life"] == life {
                    return Instant::now();
                }
            }
        };
        let (since, at) = match life % 2 {
            0 => tokio::join!(listens, asks),
            _ => (listens.await, asks.await),
        };
        took.push(at.duration_since(since));
    }
    took.sort();
    eprintln!(
        "first good call after a server listens again: median {:?}, longest {:?} of {LIVES}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

const CHALLENGE: &str = "add_header WWW-Authenticate 'Bearer resource_metadata=\"https://login.example/\"' always;";

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_fetched_anew_and_the_agent_sees_neither_the_refusal_nor_a_challenge() {
    let (server, port) = (HttpServer::python().await, free_port());
    let guard =
        format!("listen 127.0.0.1:{port}; {CHALLENGE} if ($http_x_api_key != key-number-two) {{ return 401; }}");
    let _nginx = Nginx::before(&server.url, &guard, &[]).await;
    let service = format!("url: http://127.0.0.1:{port}/mcp\nheaders: {{ X-Api-Key: \"${{secret.it.key}}\" }}\n");
    let sidecar = sidecar(&service, "");
    // The key has changed, and mcpeg does not know it yet.
    sidecar.folder.write("secrets.yaml", "it: { key: key-number-two }\n");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    let answer = client.call("whoami", json!({})).await;
    assert_eq!(answer["result"]["structuredContent"]["x_api_key_length"], 14, "{answer}");
    assert_eq!(sidecar.folder.audit("secret.rotated").len(), 1);

    sidecar.folder.write("secrets.yaml", "it: { key: key-number-three }\n");
    eventually(Duration::from_secs(5), "the secret is fetched", async || {
        sidecar.folder.mcpeg(&["secrets", "refresh", "it"]).status.success().then_some(())
    })
    .await;
    let refused = client.call("whoami", json!({})).await;
    let message = refused["error"]["message"].as_str().unwrap_or_else(|| panic!("{refused}"));
    assert!(message.contains("401") && message.contains("no others are to be had"), "{refused}");
    assert_eq!(refused["error"]["data"]["reason"], "http_401");
    sidecar.says("service/it", &["degraded", "401"]).await;
    for line in &client.received {
        assert!(!line.contains("login.example") && !line.contains("key-number"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_the_query_reaches_the_server_and_no_log() {
    let (server, port) = (HttpServer::python().await, free_port());
    let guard = format!("listen 127.0.0.1:{port}; if ($arg_key != key-number-one) {{ return 403; }}");
    let nginx = Nginx::before(&server.url, &guard, &[]).await;
    let service = format!("url: http://127.0.0.1:{port}/mcp?v=1\nquery: {{ key: \"${{secret.it.key}}\" }}\n");
    let sidecar = sidecar(&service, "global: { log_level: trace }\n");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    assert!(client.call("echo", json!({ "text": "x" })).await["result"].is_object());
    let seen = nginx.seen();
    assert!(seen.iter().all(|line| line.ends_with("/mcp?v=1&key=key-number-one")), "{seen:#?}");
    sidecar.folder.write("secrets.yaml", "it: { key: key-number-two }\n");
    eventually(Duration::from_secs(5), "the secret is fetched", async || {
        sidecar.folder.mcpeg(&["secrets", "refresh", "it"]).status.success().then_some(())
    })
    .await;
    let refused = client.call("echo", json!({ "text": "x" })).await;
    assert_eq!(refused["error"]["data"]["reason"], "http_403", "{refused}");
    drop(server);
    let _ = client.call("echo", json!({ "text": "x" })).await;
    for text in
        [sidecar.stderr(), sidecar.folder.read("audit.log"), sidecar.status().to_string(), client.received.join("\n")]
    {
        assert!(!text.is_empty() && !text.contains("key-number"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_http_client_shows_of_itself_stays_here() {
    let server = HttpServer::python().await;
    let service = format!("url: {}\nheaders: {{ X-Api-Key: \"${{secret.it.key}}\" }}\n", server.url);
    let front = "transports: { http: { enabled: true, port: 0, token: agents-own-token } }\n";
    let sidecar = sidecar(&service, front);
    let url = sidecar.ready.split("mcp http").nth(1).unwrap().split([',', ';']).next().unwrap().trim().to_owned();
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {} });
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "whoami", "arguments": {}, "_meta": meta } });
    let answer = crate::support::http()
        .post(format!("http{url}/it"))
        .header("authorization", "Bearer agents-own-token")
        .header("x-api-key", "agents-own-key")
        .header("cookie", "session=agents")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "whoami")
        .json(&call)
        .send()
        .await
        .unwrap();
    let answer: Value = answer.json().await.unwrap();
    let who = &answer["result"]["structuredContent"];
    assert!(who.is_object() && who["authorization_sha256"].is_null(), "{answer}");
    assert_eq!(who["x_api_key_length"], "key-number-one".len(), "ours, and not the agent's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rendered_file_that_changes_brings_a_new_child() {
    let log = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rotating.py");
    let shell =
        format!("TOKEN=$(cat run/token) exec {} {script} {}", peers::path("python").display(), log.path().display());
    let service =
        format!("{}working_directory: .\nfiles: [run/token]\n", command(&["sh".to_owned(), "-c".to_owned(), shell]));
    let folder = Folder::new(&[
        (
            "mcpeg.yaml",
            "version: \"1.0\"\nsecrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { it: { provider: own, path: it, refresh: 1s } }\n\
            templates: [ { source: token.j2, destination: run/token } ]\nservices:\n  it: { config_file: it.yaml }\n",
        ),
        ("secrets.yaml", "it: { key: one }\n"),
        ("token.j2", "{{ secret.it.key }}"),
        ("it.yaml", &format!("type: mcp\n{service}")),
    ]);
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    let mut token = async || {
        let answer = client.call("who", json!({})).await;
        answer["result"]["content"][0]["text"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(token().await, "one");
    sidecar.folder.write("secrets.yaml", "it: { key: two }\n");
    eventually(Duration::from_secs(15), "the new child has the new file", async || {
        (token().await == "two").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_bounded_and_ends_with_all_that_it_started() {
    let log = tempfile::tempdir().unwrap();
    let pids = log.path().join("pids");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rotating.py");
    let shell = format!(
        "sleep 600 & echo $! >{pids}; ulimit -a >{folder}/limits; exec {} {script} {folder}",
        peers::path("python").display(),
        pids = pids.display(),
        folder = log.path().display(),
    );
    let argv = ["bash".to_owned(), "-c".to_owned(), shell];
    let limits = "limits: { memory_mb: 300, cpu_seconds: 60, open_files: 64 }\n";
    let sidecar = sidecar(&format!("{}{limits}", command(&argv)), "");
    let mut client = Client::initialized(&sidecar.service_socket("it")).await;
    let said = std::fs::read_to_string(log.path().join("limits")).unwrap();
    for (name, value) in [("data seg size", "307200"), ("cpu time", "60"), ("open files", "64")] {
        let line = said.lines().find(|line| line.contains(name)).unwrap();
        assert!(line.ends_with(&format!(" {value}")), "{line}");
    }
    let started: u32 = std::fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
    let is_there =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(is_there(started));
    let answer = client.call("die", json!({})).await;
    assert_eq!(answer["error"]["data"]["reason"], "upstream_died", "{answer}");
    eventually(Duration::from_secs(5), "what the child had started ends with it", async || {
        (!is_there(started)).then_some(())
    })
    .await;
}
