//! The leak guard and the redaction of telemetry, with real MCP servers that give secrets away: in answers, in every encoding, and on their
//! standard error.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::{HttpServer, python_stdio};
use crate::support::{eventually, memory, peers};

const TOKEN: &str = "tok\"en/00000001+äöü-0123456789-abcdefghijklmnopqrstuvwxyz";
const AWS: &str = "AKIAIOSFODNN7EXAMPLE";

/// A sidecar with the item `app`, whose value `services` get.
fn folder(security: &str, services: &[(&str, String)]) -> Folder {
    let mut main = format!(
        "version: \"1.0\"\naudit: {{ path: audit.log }}\nsecurity: {{ {security} }}\nsecrets:\n  providers: {{ dev: {{ type: file, path: keys.yaml }} }}\n  \
         items: {{ app: {{ provider: dev, path: app, refresh: 1s }} }}\nservices:\n"
    );
    for (name, _) in services {
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
    }
    let folder = Folder::new(&[("mcpeg.yaml", &main), ("keys.yaml", &keys(TOKEN))]);
    for (name, text) in services {
        folder.write(&format!("{name}.yaml"), text);
    }
    folder
}

fn keys(token: &str) -> String {
    format!("app: {{ token: {} }}\n", json!(token))
}

fn stdio(argv: &[String]) -> String {
    format!("type: mcp\ncommand: {}\nenv: {{ TOKEN: \"${{secret.app.token}}\" }}\n", json!(argv))
}

fn shell(script: &str) -> String {
    stdio(&["sh", "-c", script].map(str::to_owned))
}

/// As a server may write the value into a text.
fn forms(value: &str) -> Vec<String> {
    let quoted = json!(value).to_string();
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![
        format!("it is {value}!"),
        format!("{{\"inner\": {quoted}}}"),
        STANDARD.encode(value),
        STANDARD.encode(format!("user:{value}")),
        URL_SAFE_NO_PAD.encode(format!("ab{value}z")),
        hex.to_uppercase(),
        hex,
        url::form_urlencoded::byte_serialize(value.as_bytes()).collect(),
        value.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect(),
    ]
}

/// Whether a text holds the value in one of the forms that the search of memory knows, or in hex.
fn holds(text: &str, value: &str) -> bool {
    forms(value).iter().chain([&value.to_owned()]).any(|form| text.contains(form.trim_matches(['!', '='])))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_does_not_reach_the_agent_in_any_encoding() {
    let upstream = HttpServer::python().await;
    let remote = format!("type: mcp\nurl: {}\nheaders: {{ X-Api-Key: \"${{secret.app.token}}\" }}\n", upstream.url);
    let sidecar = Sidecar::start(folder("", &[("child", stdio(&python_stdio())), ("remote", remote)]));
    let sockets = [sidecar.service_socket("child"), sidecar.service_socket("remote"), sidecar.socket()];
    for (socket, tool) in sockets.iter().zip(["echo", "echo", "child__echo"]) {
        let mut client = Client::initialized(socket).await;
        for form in forms(TOKEN) {
            let answer = client.call(tool, json!({ "text": format!("before {form} after") })).await;
            let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
            assert!(text.contains("[REDACTED:app]"), "{form}: {text}");
            assert!(text.contains("before ") && text.ends_with(" after"), "{text}");
            assert!(!holds(&answer.to_string(), TOKEN), "{answer}");
        }
        let plain = client.call(tool, json!({ "text": "no secret in it" })).await;
        assert!(plain.to_string().contains("no secret in it"), "{plain}");
        assert!(client.received.iter().all(|line| !line.contains("abcdefghijklmnopqrstuvwxyz")));
    }
    let leaks = sidecar.folder.audit("mcp.leak");
    assert_eq!(leaks.len(), 3 * forms(TOKEN).len());
    let attributes = &leaks[0]["attributes"];
    assert_eq!(leaks[0]["outcome"], "denied");
    for (name, expected) in [
        ("mcpeg.secret.item", json!("app")),
        ("mcpeg.service", json!("child")),
        ("gen_ai.tool.name", json!("echo")),
        ("mcp.method.name", json!("tools/call")),
        ("mcpeg.leak.within", json!("answer")),
        ("mcpeg.leak.action", json!("redact")),
        ("mcpeg.leak.encoding", json!("json")),
        ("mcpeg.leak.count", json!(1)),
    ] {
        assert_eq!(attributes[name], expected, "{name} in {attributes}");
    }
    let encodings: Vec<&str> =
        leaks.iter().map(|leak| leak["attributes"]["mcpeg.leak.encoding"].as_str().unwrap()).collect();
    assert!(["json", "base64", "hex", "url"].iter().all(|encoding| encodings.contains(encoding)), "{encodings:?}");
    for written in [sidecar.folder.read("audit.log"), sidecar.stderr()] {
        assert!(!holds(&written, TOKEN), "{written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_prints_its_environment_gives_nothing_away() {
    let everything = stdio(&peers::argv("mcp_server_everything"));
    let sidecar = Sidecar::start(folder("", &[("everything", everything)]));
    let mut client = Client::initialized(&sidecar.service_socket("everything")).await;
    let tools = client.request("tools/list", json!({})).await;
    let tools = tools["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap());
    let print =
        tools.into_iter().find(|name| name.to_lowercase().contains("env")).expect("a tool that prints the environment");
    let answer = client.call(print, json!({})).await;
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    let environment: Value = serde_json::from_str(text).unwrap();
    assert_eq!(environment["TOKEN"], "[REDACTED:app]", "{text}");
    assert!(environment["PATH"].is_string() && !holds(text, TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_about_a_leak_follows_the_configuration() {
    let sidecar = Sidecar::start(folder("leak_guard: block", &[("child", stdio(&python_stdio()))]));
    let mut client = Client::initialized(&sidecar.service_socket("child")).await;
    let answer = client.call("echo", json!({ "text": TOKEN })).await;
    assert_eq!(answer["error"]["code"], -32015, "{answer}");
    assert_eq!(answer["error"]["data"], json!({ "service": "child", "reason": "secret_leak", "items": ["app"] }));
    assert!(answer["error"]["message"].as_str().unwrap().ends_with("holds the value of the secret app"), "{answer}");
    let request = sidecar.folder.audit("mcp.request").pop().unwrap();
    assert_eq!((&request["outcome"], &request["attributes"]["error.type"]), (&json!("denied"), &json!("secret_leak")));

    for (action, passes, recorded) in [("report", true, 1), ("\"off\"", true, 0), ("redact", false, 1)] {
        let before = sidecar.folder.audit("mcp.leak").len();
        let main = sidecar.folder.read("mcpeg.yaml");
        let line = main.lines().find(|line| line.starts_with("security:")).unwrap();
        let main = main.replace(line, &format!("security: {{ leak_guard: {action} }}"));
        sidecar.folder.write("mcpeg.yaml", &main);
        let reloaded = sidecar.folder.mcpeg(&["reload"]);
        assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
        let answer = client.call("echo", json!({ "text": TOKEN })).await;
        assert_eq!(answer["result"]["content"][0]["text"] == TOKEN, passes, "{action}: {answer}");
        let leaks = sidecar.folder.audit("mcp.leak");
        assert_eq!(leaks.len() - before, recorded, "{action}");
        if action == "report" {
            let last = leaks.last().unwrap();
            assert_eq!(
                (&last["attributes"]["mcpeg.leak.action"], &last["outcome"]),
                (&json!("report"), &json!("failure"))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_requests_and_numbers_are_cleaned_and_stay_json() {
    let server = r#"
while read -r line; do
  case "$line" in
    *initialize\"*) echo '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"x","version":"1"}}}';;
    *tools/call*)
      echo '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"pin 8374650192 !"}}'
      echo '{"jsonrpc":"2.0","id":"s-1","method":"sampling/createMessage","params":{"systemPrompt":"8374650192","maxTokens":1}}'
      echo '{"jsonrpc":"2.0","id":2,"result":{"structuredContent":{"pin": 8374650192,"8374650192":1},"content":[]}}';;
  esac
done"#;
    let folder = folder("", &[("shell", shell(server))]);
    folder.write("keys.yaml", &keys("8374650192"));
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("shell")).await;
    let answer = client.call("any", json!({})).await;
    assert_eq!(answer["result"]["structuredContent"], json!({ "pin": "[REDACTED:app]", "[REDACTED:app]": 1 }));
    let line = |method: &str| client.received.iter().find(|line| line.contains(method)).unwrap().clone();
    assert!(line("notifications/message").contains(r#""data":"pin [REDACTED:app] !""#));
    assert!(line("sampling/createMessage").contains(r#""systemPrompt":"[REDACTED:app]""#));
    let within: Vec<Value> =
        sidecar.folder.audit("mcp.leak").iter().map(|leak| leak["attributes"]["mcpeg.leak.within"].clone()).collect();
    assert_eq!(within, ["notification", "request", "answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_childs_standard_error_is_cleaned_before_it_is_logged() {
    let script = format!(
        "printf 'one %s two\\n' \"$TOKEN\" >&2; head -c 4090 /dev/zero | tr '\\0' x >&2; printf '%s\\n' \"$TOKEN\" >&2; \
         echo 'key {AWS} ticket TICKET-123456 end' >&2; exec cat >/dev/null"
    );
    let security = "redaction: { patterns: [ { name: ticket, regex: 'TICKET-\\d{6}' } ] }";
    let sidecar = Sidecar::start(folder(security, &[("shell", shell(&script))]));
    let mut client = Client::connect(&sidecar.service_socket("shell")).await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    let log = eventually(Duration::from_secs(10), "the line is logged", async || {
        Some(sidecar.stderr()).filter(|log| log.contains("TICKET") || log.contains("REDACTED:ticket"))
    })
    .await;
    assert!(log.contains("one [REDACTED:app] two"), "{log}");
    assert!(log.contains("key [REDACTED:aws-access-key] ticket [REDACTED:ticket] end"), "{log}");
    assert!(!holds(&log, TOKEN) && !log.contains(AWS) && !log.contains("abcdefghijklm"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_value_is_still_found_and_nowhere_in_memory() {
    let upstream = HttpServer::python().await;
    let remote = format!("type: mcp\nurl: {}\n", upstream.url);
    let sidecar = Sidecar::start(folder("", &[("remote", remote)]));
    let found = memory::find(sidecar.pid(), TOKEN);
    assert!(found.is_empty(), "the guard keeps copies: {found:#?}");
    let next = TOKEN.replace("00000001", "00000002");
    sidecar.folder.write("keys.yaml", &keys(&next));
    eventually(Duration::from_secs(10), "the rotation", async || {
        (!sidecar.folder.audit("secret.rotated").is_empty()).then_some(())
    })
    .await;
    let mut client = Client::initialized(&sidecar.service_socket("remote")).await;
    let answer = client.call("echo", json!({ "text": format!("{TOKEN} {next}") })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "[REDACTED:app] [REDACTED:app]", "{answer}");
    drop(client);
    eventually(Duration::from_secs(5), "what passed is wiped", async || {
        memory::find(sidecar.pid(), TOKEN).is_empty().then_some(())
    })
    .await;
    let found = memory::find(sidecar.pid(), &next);
    assert!(found.is_empty(), "{found:#?}");
}
