//! What must hold however often it happens: rotations under load, an upstream that is killed again and again, clients that come by the thousand
//! and leave without a word.
//!
//! Bounded for every day; `MCPEG_STRESS=1 cargo test --locked --test it stress::` takes the full numbers (some ten minutes).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar, signal_process};
use crate::support::stand_in::{Asked, Reply, StandIn};
use crate::support::upstream::typescript_stdio;
use crate::support::{eventually, peers};

/// What every value begins with.
const SENTINEL: &str = "sentinel-9c31/0123456789-abcdefghijklmnop-";
const CLIENTS: usize = 16;

/// As many as every day, or as the promise says.
fn times(every_day: u64, promised: u64) -> u64 {
    if std::env::var_os("MCPEG_STRESS").is_some() { promised } else { every_day }
}

fn keys(number: u64) -> String {
    format!("app: {{ token: \"{SENTINEL}{number:08}\" }}\n")
}

fn sidecar(service: &str) -> Sidecar {
    let main = "version: \"1.0\"\naudit: { path: audit.log }\nsecrets:\n  providers: { dev: { type: file, path: keys.yaml } }\n  \
        items: { app: { provider: dev, path: app, refresh: 1s } }\nservices: { it: { config_file: it.yaml } }\n";
    Sidecar::start(Folder::new(&[("mcpeg.yaml", main), ("keys.yaml", &keys(0)), ("it.yaml", service)]))
}

fn revealing_child(on_rotate: &str) -> String {
    let script = format!("{}/tests/support/reveal.py", env!("CARGO_MANIFEST_DIR"));
    let argv = [peers::path("python").display().to_string(), "-S".to_owned(), "-E".to_owned(), script];
    let argv = json!(argv);
    format!("type: mcp\ncommand: {argv}\nenv: {{ TOKEN: \"${{secret.app.token}}\" }}\non_rotate: {on_rotate}\n")
}

/// An HTTP server that says which credential it was sent, as `reveal.py` does.
async fn revealing_server() -> StandIn {
    StandIn::replying(|asked: &Asked| {
        let Some(id) = asked.body.get("id") else { return Reply::new(202, "") };
        let token = asked.headers.get("x-api-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
        let result = if asked.body["method"] == "initialize" {
            json!({ "protocolVersion": "2025-11-25", "capabilities": { "tools": {} }, "serverInfo": { "name": "r", "version": "1" } })
        } else {
            json!({ "content": [{ "type": "text", "text": token }], "number": &token[token.len().saturating_sub(8)..] })
        };
        let mut reply = Reply::new(200, json!({ "jsonrpc": "2.0", "id": id, "result": result }));
        reply.headers.push(("content-type", "application/json".to_owned()));
        reply
    })
    .await
}

/// A client that calls until it is told to stop. What it saw last is in `seen`.
async fn calls(mut client: Client, seen: Arc<AtomicU64>, stop: watch::Receiver<bool>) -> Result<u64, String> {
    let mut count = 0;
    while !*stop.borrow() {
        let answer = client.call("whoami", json!({})).await;
        if let Some(line) = client.received.drain(..).find(|line| line.contains(SENTINEL)) {
            return Err(format!("the agent was sent {line}"));
        }
        let number = answer["result"]["number"].as_str().and_then(|number| number.parse().ok());
        seen.store(number.ok_or_else(|| format!("call {count} failed: {answer}"))?, Ordering::Relaxed);
        count += 1;
    }
    Ok(count)
}

/// Rotates the credential while clients call; each rotation has reached every client before the next.
async fn rotates_under_load(what: &str, sidecar: &Sidecar, rotations: u64) {
    let begun = Instant::now();
    let (stop, stopped) = watch::channel(false);
    let mut callers = JoinSet::new();
    let mut all_seen = Vec::new();
    for _ in 0..CLIENTS {
        let client = Client::initialized(&sidecar.service_socket("it")).await;
        let seen = Arc::new(AtomicU64::new(0));
        all_seen.push(seen.clone());
        callers.spawn(calls(client, seen, stopped.clone()));
    }
    for number in 1..=rotations {
        sidecar.folder.write("keys.yaml", &keys(number));
        eventually(Duration::from_secs(30), &format!("rotation {number} reaches every client"), async || {
            if let Some(ended) = callers.try_join_next() {
                panic!("rotation {number}: {:?}", ended.unwrap());
            }
            all_seen.iter().all(|seen| seen.load(Ordering::Relaxed) == number).then_some(())
        })
        .await;
        if number % 100 == 0 {
            eprintln!("{what}: {number} rotations in {:?}", begun.elapsed());
        }
    }
    stop.send_replace(true);
    let ends: Vec<Result<u64, String>> = callers.join_all().await;
    let total: u64 = ends.iter().map(|end| end.as_ref().copied().unwrap()).sum();
    eprintln!("{what}: {rotations} rotations, {CLIENTS} clients, {total} calls, none failed");
    let rotated = sidecar.folder.audit("secret.rotated").len() as u64;
    assert_eq!(rotated, rotations, "each rotation is on record");
    for written in [sidecar.folder.read("audit.log"), sidecar.stderr()] {
        assert!(!written.contains(SENTINEL));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_fail_no_call_of_an_http_upstream_and_show_no_value() {
    let server = revealing_server().await;
    let service =
        format!("type: mcp\nurl: {}/mcp\nheaders: {{ X-Api-Key: \"${{secret.app.token}}\" }}\n", server.address);
    rotates_under_load("HTTP", &sidecar(&service), times(30, 1000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_fail_no_call_of_a_program_that_is_swapped_and_show_no_value() {
    rotates_under_load("swap", &sidecar(&revealing_child("swap")), times(5, 1000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_fail_no_call_of_a_program_that_is_restarted_and_show_no_value() {
    rotates_under_load("restart", &sidecar(&revealing_child("restart")), times(5, 1000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_killed_again_and_again_costs_no_session() {
    let service = format!("type: mcp\ncommand: {}\n", json!(typescript_stdio()));
    let sidecar = sidecar(&service);
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::initialized(&sidecar.service_socket("it")).await);
    }
    let mut killed = BTreeSet::new();
    let mut took = Vec::new();
    for _ in 0..times(4, 30) {
        for client in &mut clients {
            // A request under way may be answered with an error; the session has to serve the next.
            let pid = eventually(Duration::from_secs(30), "a call succeeds again", async || {
                client.call("whoami", json!({})).await["result"]["structuredContent"]["pid"].as_u64()
            })
            .await;
            assert!(killed.insert(pid), "{pid} was killed before");
            signal_process(u32::try_from(pid).unwrap(), libc::SIGKILL);
            let dead = Instant::now();
            eventually(Duration::from_secs(30), "a call succeeds again", async || {
                client.call("echo", json!({ "text": "x" })).await["result"].is_object().then_some(())
            })
            .await;
            took.push(dead.elapsed());
        }
        if std::env::var_os("MCPEG_STRESS").is_some() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    took.sort();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    eprintln!(
        "{} kills: the next good call, a start of Node included, after {median:?} in the median, {longest:?} at most",
        took.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_and_rude_disconnects_leave_nothing_behind() {
    let sidecar = sidecar("type: mcp\ncommand: [cat]\n");
    let socket = sidecar.service_socket("it");
    rude(&socket, 100).await;
    ask(&socket, 1_000).await;
    let pid = sidecar.pid();
    let before = at_rest(pid, None).await;
    ask(&socket, 10_000).await;
    rude(&socket, 1_000).await;
    let after = at_rest(pid, Some(before.descriptors)).await;
    eprintln!(
        "resident before {} KiB, after {} KiB; descriptors {} and {}",
        before.resident, after.resident, before.descriptors, after.descriptors
    );
    assert!(after.resident <= before.resident + 5 * 1024, "{} KiB became {} KiB", before.resident, after.resident);
}

/// Requests one after the other on one connection. What `cat` sends back is a request, which the client answers, and that answer comes back as
/// the answer to the first.
async fn ask(socket: &std::path::Path, count: u64) {
    let mut client = Client::connect(socket).await;
    for id in 0..count {
        client.send(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"x"}}}}"#)).await;
        client.line().await.unwrap();
        client.send(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#)).await;
        assert!(client.line().await.unwrap().contains("\"result\""));
        client.received.clear();
    }
}

/// Clients that leave with a request under way, in the middle of a line, or at once.
async fn rude(socket: &std::path::Path, count: usize) {
    for number in 0..count {
        let mut client = Client::connect(socket).await;
        match number % 3 {
            0 => client.send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#).await,
            1 => client.send(r#"{"jsonrpc":"2.0","method":"notifications/x","params":{"text":"#).await,
            _ => {}
        }
    }
}

struct Rest {
    resident: u64,
    descriptors: usize,
}

/// Waits until no child is left, and no more descriptors are open than there were.
async fn at_rest(pid: u32, descriptors: Option<usize>) -> Rest {
    let found = eventually(Duration::from_secs(30), "no child and no descriptor is left", async || {
        let children = children_of(pid);
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (children.is_empty() && descriptors.is_none_or(|before| open <= before)).then_some(open)
    })
    .await;
    Rest { resident: resident(pid), descriptors: found }
}

fn children_of(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // The name may hold spaces and parentheses; the state and the parent come after it.
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&pid.to_string())
    })
    .collect()
}

/// In KiB, without the pages of the program's own file, which come and go as its code is used.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
