//! MCP through the sidecar as agents meet it: the official SDKs' clients over the socket and through `mcpeg connect`, real servers behind.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::upstream::{HttpServer, modern_stdio, python_stdio, typescript_stdio, with};
use crate::support::{eventually, peers};

/// A sidecar with one service for each of `services`, given as the text of its service file.
fn sidecar(services: &[(&str, String)]) -> Sidecar {
    let mut main = "version: \"1.0\"\naudit: { path: audit.log }\nservices:\n".to_owned();
    for (name, _) in services {
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
    }
    let folder = Folder::new(&[("mcpeg.yaml", &main)]);
    for (name, text) in services {
        folder.write(&format!("{name}.yaml"), text);
    }
    Sidecar::start(folder)
}

fn stdio(argv: &[String]) -> String {
    format!("type: mcp\ncommand: {}\n", serde_json::to_string(argv).unwrap())
}

fn http(url: &str) -> String {
    format!("type: mcp\nurl: {url}\n")
}

/// Runs one of the real clients to its end; what it saw.
fn sdk(client: &str, args: &[&str]) -> Value {
    let argv = with(peers::argv(client), args);
    let output = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

const ECHO: [&str; 6] = ["--call", "echo", "--args", r#"{"text":"grüße"}"#, "--repeat", "5"];

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_works_over_the_socket_and_through_connect() {
    let upstream = HttpServer::python().await;
    let sidecar = sidecar(&[("child", stdio(&python_stdio())), ("remote", http(&upstream.url))]);
    for service in ["child", "remote"] {
        for era in ["legacy", "modern"] {
            let socket = sidecar.service_socket(service).display().to_string();
            let seen = sdk("mcp_python_client", &[&ECHO[..], &["--era", era, "unix", &socket]].concat());
            assert_eq!((&seen["calls"], &seen["failed"]), (&json!(5), &json!(0)), "{service} {era}: {seen}");
            assert!(seen["result"].to_string().contains("grüße"), "{seen}");
            assert_eq!(seen["protocol"] == "2026-07-28", era == "modern", "{service}: {seen}");
        }
        let seen = sdk("mcp_python_client", &[&ECHO[..], &connect(&sidecar, service)].concat());
        assert_eq!((&seen["calls"], &seen["failed"]), (&json!(5), &json!(0)), "{service}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_typescript_sdks_work_over_the_socket_and_through_connect() {
    let upstream = HttpServer::modern().await;
    let sidecar = sidecar(&[
        ("legacy", stdio(&typescript_stdio())),
        ("modern", stdio(&modern_stdio())),
        ("remote", http(&upstream.url)),
    ]);
    let legacy = sidecar.service_socket("legacy").display().to_string();
    let seen = sdk("mcp_typescript_client", &[&ECHO[..], &["--era", "legacy", "unix", &legacy]].concat());
    assert_eq!((&seen["calls"], &seen["failed"]), (&json!(5), &json!(0)), "{seen}");
    let seen = sdk("mcp_typescript_client", &[&ECHO[..], &connect(&sidecar, "legacy")].concat());
    assert_eq!(seen["failed"], 0, "{seen}");
    for service in ["modern", "remote"] {
        let socket = sidecar.service_socket(service).display().to_string();
        let seen = sdk("mcp_modern_client", &[&ECHO[..], &["--era", "modern", "unix", &socket]].concat());
        assert_eq!((&seen["protocol"], &seen["failed"]), (&json!("2026-07-28"), &json!(0)), "{service}: {seen}");
        let seen =
            sdk("mcp_modern_client", &[&ECHO[..], &["--era", "modern"], &connect(&sidecar, service)[..]].concat());
        assert_eq!(seen["failed"], 0, "{service}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_server_of_npm_works_and_the_aggregate_names_its_tools() {
    let sidecar =
        sidecar(&[("everything", stdio(&peers::argv("mcp_server_everything"))), ("child", stdio(&python_stdio()))]);
    let all = sidecar.socket().display().to_string();
    let seen = sdk(
        "mcp_python_client",
        &["--era", "legacy", "--call", "child__echo", "--args", r#"{"text":"x"}"#, "unix", &all],
    );
    let names: Vec<&str> = seen["tools"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(names.contains(&"child__echo") && names.contains(&"everything__echo"), "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("child__") || name.starts_with("everything__")), "{names:?}");
    let mut sorted = names.clone();
    sorted.sort_by_key(|name| name.split("__").next().unwrap().to_owned());
    assert_eq!(names, sorted, "services come in a stable order");

    let mut client = Client::initialized(&sidecar.socket()).await;
    let answer = client.call("everything__echo", json!({ "message": "hello" })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "Echo: hello");
    let answer = client.call("everythin__echo", json!({})).await;
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_upstream_leaves_the_others_listed() {
    let sidecar = sidecar(&[
        ("child", stdio(&python_stdio())),
        ("dead", "type: mcp\ncommand: [/does/not/exist]\ntimeout: 2s\n".to_owned()),
        ("gone", "type: mcp\nurl: http://127.0.0.1:1/mcp\ntimeout: 2s\n".to_owned()),
    ]);
    let mut client = Client::initialized(&sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    let names = list["result"]["tools"].to_string();
    assert!(names.contains("child__echo") && !names.contains("dead__"), "{list}");
    sidecar.says("service/dead", &["/does/not/exist"]).await;
    let answer = client.call("gone__x", json!({})).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("gone"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_left_out_of_a_list_is_announced_when_it_answers() {
    let slow = r#"while [ ! -e "$0" ]; do sleep 0.05; done; while read -r line; do
id=$(printf %s "$line" | sed 's/.*"id":\("[^"]*"\).*/\1/')
case "$line" in
*initialize\"*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{\"tools\":{}},\"serverInfo\":{}}}";;
*list*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"tools\":[{\"name\":\"t\",\"inputSchema\":{}}]}}";;
esac; done"#;
    let flag = tempfile::tempdir().unwrap();
    let flag = flag.path().join("go");
    let argv = ["sh", "-c", slow, flag.to_str().unwrap()].map(str::to_owned);
    let sidecar = sidecar(&[("slow", format!("{}timeout: 1s\n", stdio(&argv)))]);
    let mut client = Client::initialized(&sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    assert_eq!(list["result"]["tools"], json!([]), "{list}");
    assert!(list["result"]["_meta"].to_string().contains("slow"), "{list}");
    std::fs::create_dir(&flag).unwrap();
    assert!(client.line().await.unwrap().contains("notifications/tools/list_changed"));
    let list = client.request("tools/list", json!({})).await;
    assert_eq!(list["result"]["tools"][0]["name"], "slow__t", "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_byte_for_byte() {
    let cat = "type: mcp\ncommand: [cat]\n".to_owned();
    let sidecar = sidecar(&[("cat", cat)]);
    let mut client = Client::connect(&sidecar.service_socket("cat")).await;
    // A request that comes back as it went is, to the client, a request of the server's.
    for line in [
        r#"{ "params" : {"n":123456789012345678901234567890, "f":1.0, "e":1e400},"method":"x/unknown", "id":7,"jsonrpc":"2.0","extra":[ ] }"#,
        r#"{"jsonrpc":"2.0","method":"notifications/odd","params":{"text":"\u00e9\/ ü \ud83d\ude00"}}"#,
    ] {
        client.send(line).await;
        assert_eq!(client.line().await.unwrap(), line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_message_is_refused_in_words() {
    let sidecar = sidecar(&[("cat", "type: mcp\ncommand: [cat]\n".to_owned())]);
    let mut client = Client::connect(&sidecar.service_socket("cat")).await;
    for (line, code) in [
        ("rubbish", -32700),
        ("[]", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#, -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"a"}"#, -32600),
    ] {
        client.send(line).await;
        let answer: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
    }
    // The connection is still good.
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#).await;
    assert!(client.line().await.unwrap().contains("notifications/x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_child_answers_what_was_in_flight_and_the_session_lives_on() {
    let sidecar = sidecar(&[("child", stdio(&python_stdio()))]);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    let before = client.call("whoami", json!({})).await["result"]["structuredContent"]["pid"].clone();
    let crashed = client.call("crash", json!({})).await;
    let message = crashed["error"]["message"].as_str().unwrap_or_else(|| panic!("{crashed}"));
    assert!(
        message.contains("child") && !(-32099..=-32020).contains(&crashed["error"]["code"].as_i64().unwrap()),
        "{crashed}"
    );
    let after = client.call("whoami", json!({})).await["result"]["structuredContent"]["pid"].clone();
    assert!(after.is_u64() && after != before, "{before} -> {after}");
    let pid = u32::try_from(after.as_u64().unwrap()).unwrap();
    crate::support::sidecar::signal_process(pid, libc::SIGKILL);
    let again = client.call("echo", json!({ "text": "still here" })).await;
    // Killed with nothing in flight: the next call meets the dead child, or already its successor.
    let again =
        if again["error"].is_object() { client.call("echo", json!({ "text": "still here" })).await } else { again };
    assert!(again.to_string().contains("still here"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_http_upstream_is_said_and_comes_back() {
    let mut upstream = HttpServer::python().await;
    let sidecar = sidecar(&[("remote", http(&upstream.url)), ("cat", "type: mcp\ncommand: [cat]\n".to_owned())]);
    let mut client = Client::initialized(&sidecar.service_socket("remote")).await;
    assert!(client.call("echo", json!({ "text": "a" })).await["result"].is_object());
    upstream.kill();
    let answer = client.call("echo", json!({ "text": "b" })).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("remote"), "{answer}");
    sidecar.says("service/remote", &["refused"]).await;
    let port = upstream.url.split(':').nth(2).unwrap().split('/').next().unwrap().to_owned();
    let _again = HttpServer::start(with(peers::argv("mcp_python_server"), &["http", "--port", &port])).await;
    eventually(Duration::from_secs(10), "calls succeed again", async || {
        client.call("echo", json!({ "text": "c" })).await["result"].is_object().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_answered_with_an_error() {
    let sidecar = sidecar(&[("child", format!("{}timeout: 4s\n", stdio(&python_stdio())))]);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    client.call("echo", json!({ "text": "warm" })).await;
    let started = Instant::now();
    let answer = client.call("slow", json!({ "seconds": 30 })).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("within 4s"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(8));
    assert!(client.call("echo", json!({ "text": "on" })).await["result"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_on_record_with_its_outcome_and_without_its_arguments() {
    let sidecar = sidecar(&[("child", stdio(&python_stdio()))]);
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    client.call("echo", json!({ "text": "private-argument" })).await;
    client.call("crash", json!({})).await;
    client.send("rubbish").await;
    client.line().await;
    let events = sidecar.folder.audit("mcp.request");
    let calls: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event["attributes"]["mcp.method.name"] == "tools/call")
        .map(|event| (event["attributes"]["gen_ai.tool.name"].as_str().unwrap(), event["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(calls, [("echo", "success"), ("crash", "failure")]);
    assert!(events.iter().any(|event| event["outcome"] == "denied"), "rubbish is on record: {events:#?}");
    let own_uid = rustix::process::getuid().as_raw();
    assert!(events.iter().all(|event| event["attributes"]["mcpeg.peer.uid"] == own_uid), "{events:#?}");
    assert!(!sidecar.folder.read("audit.log").contains("private-argument"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_child_outlives_its_client_or_the_sidecar() {
    let sidecar = sidecar(&[("child", stdio(&python_stdio()))]);
    let pid_of = |answer: Value| u32::try_from(answer["result"]["structuredContent"]["pid"].as_u64().unwrap()).unwrap();
    let mut first = Client::initialized(&sidecar.service_socket("child")).await;
    let mut second = Client::initialized(&sidecar.service_socket("child")).await;
    let (one, two) = (pid_of(first.call("whoami", json!({})).await), pid_of(second.call("whoami", json!({})).await));
    assert_ne!(one, two, "each client has a child of its own");
    drop(first);
    eventually(Duration::from_secs(10), "the first child ends", || async { (!alive(one)).then_some(()) }).await;
    assert!(alive(two));
    assert!(sidecar.stop().await.success());
    eventually(Duration::from_secs(5), "the second child ends", || async { (!alive(two)).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_child_outlives_a_sidecar_that_was_killed() {
    let sidecar = sidecar(&[("deaf", "type: mcp\ncommand: [sleep, \"600\"]\n".to_owned())]);
    let mut client = Client::connect(&sidecar.service_socket("deaf")).await;
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#).await;
    let pid = eventually(Duration::from_secs(10), "the child is started", || async {
        sidecar.status()["mcp"]["services"]["deaf"]["children"][0]["pid"].as_u64()
    })
    .await;
    let pid = u32::try_from(pid).unwrap();
    assert!(alive(pid));
    sidecar.signal(libc::SIGKILL);
    eventually(Duration::from_secs(5), "the child ends", || async { (!alive(pid)).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_an_upstream_says_amiss_reaches_the_log() {
    let script = r#"read -r line
echo 'LEAK-me'
for key in jsonrpc id method params result error; do echo "{\"jsonrpc\":\"2.0\",\"id\":1,\"$key\":\"LEAK-me\"}"; done
echo '{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":"LEAK-me"}}'
echo '{"jsonrpc":"2.0","method":"notifications/last"}'
cat >/dev/null"#;
    let argv = ["sh", "-c", script].map(str::to_owned);
    let sidecar = sidecar(&[("leaky", stdio(&argv))]);
    let mut client = Client::connect(&sidecar.service_socket("leaky")).await;
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#).await;
    while !client.line().await.unwrap().contains("notifications/last") {}
    let answer = client.received.iter().find(|line| line.contains("\"error\"")).expect("the request is answered");
    assert!(answer.contains("bad_answer") && !answer.contains("LEAK"), "{answer}");
    assert!(sidecar.stderr().contains("is no message"));
    assert!(!sidecar.stderr().contains("LEAK"), "{}", sidecar.stderr());
    assert!(!sidecar.status().to_string().contains("LEAK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_were_removed_come_back_and_their_clients_stay() {
    let sidecar = sidecar(&[("cat", "type: mcp\ncommand: [cat]\n".to_owned())]);
    let mut before = Client::connect(&sidecar.service_socket("cat")).await;
    std::fs::remove_dir_all(sidecar.folder.path("run")).unwrap();
    for socket in [sidecar.socket(), sidecar.service_socket("cat")] {
        eventually(Duration::from_secs(10), "the socket is back", async || {
            tokio::net::UnixStream::connect(&socket).await.ok()
        })
        .await;
    }
    eventually(Duration::from_secs(10), "the admin socket is back", async || {
        sidecar.folder.mcpeg(&["status"]).status.success().then_some(())
    })
    .await;
    for client in [&mut before, &mut Client::connect(&sidecar.service_socket("cat")).await] {
        client.send(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#).await;
        assert!(client.line().await.unwrap().contains("notifications/x"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_says_what_is_wrong() {
    let sidecar = sidecar(&[("child", stdio(&python_stdio()))]);
    let output = sidecar.folder.mcpeg(&["connect", "nobody"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("there is no service `nobody`; there are: child"), "{said}");
    let output =
        Command::new(PROGRAM).args(["connect", "--socket", "/none/mcpeg.sock"]).stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/none/mcpeg.sock"), "{output:?}");
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The arguments that make a client spawn `mcpeg connect SERVICE`.
fn connect(sidecar: &Sidecar, service: &str) -> Vec<&'static str> {
    let config = sidecar.folder.path("mcpeg.yaml").display().to_string();
    // A handful of short strings for the life of the test's process.
    let words = ["stdio", "--", PROGRAM, "connect", service, "--config", &config].map(str::to_owned);
    words.into_iter().map(|word| &*Box::leak(word.into_boxed_str())).collect()
}
