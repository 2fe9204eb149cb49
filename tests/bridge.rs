//! The bridge between the eras: every client era in front of every upstream era, over every transport, with everything that has to cross.
//!
//! The reference is what the SDKs' clients see of the SDKs' servers without mcpeg in between, which is the same in both eras.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::mcp::Client;
use crate::support::peers;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::{HttpServer, with};

const TOKEN: &str = "token-of-the-local-agent";
const TOOLS: [&str; 9] = ["ask", "both", "cancelled", "log", "progress", "roots", "sample", "touch", "wait"];

/// A server for each era and transport, and a sidecar in front of them.
struct Bed {
    sidecar: Sidecar,
    http: String,
    _servers: Vec<HttpServer>,
}

impl Bed {
    async fn new(transports: &str) -> Self {
        let server = |era: &str, more: &[&str]| with(with(peers::argv("mcp_features_server"), &[era]), more);
        let folder = Folder::new(&[("secrets.yaml", &format!("local: {{ token: {TOKEN} }}\n"))]);
        let mut main = "version: \"1.0\"\naudit: { path: audit.log }\n\
            secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { local: { provider: own, path: local, refresh: 1s } }\n\
            transports: { http: { enabled: true, port: 0, token: \"${secret.local.token}\" }MORE }\nservices:\n"
            .replace("MORE", transports);
        let mut servers = Vec::new();
        for era in ["legacy", "modern"] {
            let http = HttpServer::start(server(era, &["http", "--port", "0"])).await;
            let child = serde_json::to_string(&server(era, &["stdio"])).unwrap();
            for (name, text) in [
                (format!("{era}-stdio"), format!("type: mcp\ncommand: {child}\n")),
                (format!("{era}-http"), format!("type: mcp\nurl: {}\n", http.url)),
            ] {
                main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
                folder.write(&format!("{name}.yaml"), &text);
            }
            servers.push(http);
        }
        folder.write("mcpeg.yaml", &main);
        let sidecar = Sidecar::start(folder);
        let url = sidecar.ready.split("mcp http").nth(1).unwrap_or_else(|| panic!("{}", sidecar.ready));
        let http = format!("http{}", url.split([',', ';']).next().unwrap().trim());
        Self { sidecar, http, _servers: servers }
    }

    fn socket(&self, service: &str) -> [String; 2] {
        ["unix".to_owned(), self.sidecar.service_socket(service).display().to_string()]
    }

    fn url(&self, service: &str) -> [String; 2] {
        ["http".to_owned(), format!("{}/{service}", self.http)]
    }
}

/// Runs the client that uses every feature, with tools and prompts whose names begin with `prefix`; what it saw.
fn features(era: &str, to: &[String; 2], prefix: &str) -> Value {
    let argv = with(peers::argv("mcp_features_client"), &[era, &to[0], &to[1], prefix]);
    let output =
        Command::new(&argv[0]).args(&argv[1..]).env("MCPEG_TEST_TOKEN", TOKEN).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return json!({ "failed": said });
    }
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// What a client sees of the server without anything in between.
fn expected(client: &str, server: &str) -> Value {
    let mut seen = json!({
        "server": format!("features-{server}"),
        "instructions": "be kind",
        "capabilities": ["completions", "logging", "prompts", "resources", "tools"],
        "tools": TOOLS,
        "ask": "accept Ada",
        "sample": "sampled",
        "both": "accept Ada, sampled",
        "roots": "file:///root",
        "progress": "done 1,2,3",
        "log": "logged a line of the log",
        "prompt": "Hello, Ada",
        "complete": "berta",
        "read": "the one",
        "template": "item 7",
        "missing": "-32602",
        "subscribe": "touched list test://one",
        "cancel": 1,
        "unhandled": [],
    });
    match client {
        "modern" => seen["discover"] = json!("discovered"),
        _ => seen["ping"] = json!("{}"),
    }
    seen
}

/// The features that differ, as expected and as seen.
fn differences(expected: &Value, seen: &Value) -> Vec<String> {
    let keys = expected.as_object().unwrap().keys().chain(seen.as_object().unwrap().keys());
    let mut differences: Vec<String> = keys
        .filter(|key| expected[key.as_str()] != seen[key.as_str()])
        .map(|key| format!("{key}: {} instead of {}", seen[key], expected[key]))
        .collect();
    differences.dedup();
    differences
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feature_crosses_between_every_era_over_every_transport() {
    let bed = Bed::new("").await;
    let mut wrong = Vec::new();
    for server in ["legacy", "modern"] {
        for upstream in ["stdio", "http"] {
            let service = format!("{server}-{upstream}");
            for client in ["legacy", "modern"] {
                for to in [bed.socket(&service), bed.url(&service)] {
                    let seen = features(client, &to, "");
                    let differ = differences(&expected(client, server), &seen);
                    if !differ.is_empty() {
                        wrong.push(format!("{client} client, {service}, {}: {differ:#?}", to[0]));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feature_of_every_service_crosses_in_the_aggregate() {
    let bed = Bed::new("").await;
    let mut wrong = Vec::new();
    for service in ["legacy-http", "legacy-stdio", "modern-http", "modern-stdio"] {
        for client in ["legacy", "modern"] {
            let socket = ["unix".to_owned(), bed.sidecar.socket().display().to_string()];
            for to in [socket, ["http".to_owned(), bed.http.clone()]] {
                let mut wanted = expected(client, "");
                wanted["server"] = json!("mcpeg");
                let seen = features(client, &to, &format!("{service}__"));
                let all = ["legacy-http", "legacy-stdio", "modern-http", "modern-stdio"];
                let tools = all.iter().flat_map(|service| TOOLS.map(|tool| format!("{service}__{tool}")));
                wanted["tools"] = tools.collect();
                wanted["subscribe"] = json!(format!("touched list mcpeg://{service}/test://one"));
                wanted["instructions"] = json!(all.map(|service| format!("{service}: be kind")).join("\n\n"));
                let differ = differences(&wanted, &seen);
                if !differ.is_empty() {
                    wrong.push(format!("{client} client, {service}, {}: {differ:#?}", to[0]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_is_searched_and_what_was_found_is_called() {
    let bed = Bed::new(", aggregate: { mode: search }").await;
    let mut client = Client::initialized(&bed.sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    let names: Vec<&str> =
        list["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["find_tools", "call_tool"]);
    let found = client.call("find_tools", json!({ "query": "progress modern", "limit": 3 })).await;
    let tools = found["result"]["structuredContent"]["tools"].as_array().unwrap();
    let first = tools[0]["name"].as_str().unwrap().to_owned();
    assert!(tools.len() == 3 && first.starts_with("modern-") && first.ends_with("__progress"), "{found}");
    assert!(tools[0]["inputSchema"].is_object(), "{found}");
    let called = client.call("call_tool", json!({ "name": "legacy-stdio__cancelled" })).await;
    assert_eq!(called["result"]["content"][0]["text"], "0", "{called}");
    for (wrong, code) in [(json!({}), -32602), (json!({ "name": "nobody__x" }), -32602)] {
        assert_eq!(client.call("call_tool", wrong).await["error"]["code"], code);
    }
    let audited = bed.sidecar.folder.audit("mcp.request");
    let tool = audited.iter().find(|event| event["attributes"]["gen_ai.tool.name"] == "cancelled");
    assert_eq!(tool.unwrap()["attributes"]["mcpeg.service"], "legacy-stdio");
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_lists_have_pages_and_two_services_may_have_one_address() {
    let bed = Bed::new(", aggregate: { page_size: 7 }").await;
    let mut client = Client::initialized(&bed.sidecar.socket()).await;
    let (mut names, mut cursor, mut pages) = (Vec::new(), json!(null), 0);
    loop {
        let params = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
        let page = client.request("tools/list", params).await;
        let tools = page["result"]["tools"].as_array().unwrap_or_else(|| panic!("{page}")).clone();
        names.extend(tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()));
        pages += 1;
        cursor = page["result"]["nextCursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    names.dedup();
    assert_eq!((names.len(), pages), (36, 6), "{names:?}");
    assert_eq!(client.request("tools/list", json!({ "cursor": "x" })).await["error"]["code"], -32602);

    let list = client.request("resources/list", json!({})).await;
    let addresses: Vec<&str> =
        list["result"]["resources"].as_array().unwrap().iter().map(|one| one["uri"].as_str().unwrap()).collect();
    let services = ["legacy-http", "legacy-stdio", "modern-http", "modern-stdio"];
    assert_eq!(addresses, services.map(|service| format!("mcpeg://{service}/test://one")));
    for address in addresses {
        let read = client.request("resources/read", json!({ "uri": address })).await;
        assert_eq!(
            (&read["result"]["contents"][0]["uri"], &read["result"]["contents"][0]["text"]),
            (&json!(address), &json!("the one"))
        );
    }
    let read = client.request("resources/read", json!({ "uri": "test://one" })).await;
    assert_eq!(read["result"]["contents"][0]["uri"], "test://one", "its own address will do as well");
    let reference = json!({ "type": "ref/prompt", "name": "modern-http__greet" });
    let complete = client
        .request("completion/complete", json!({ "ref": reference, "argument": { "name": "name", "value": "a" } }))
        .await;
    assert_eq!(complete["result"]["completion"]["values"], json!(["anna"]), "{complete}");
}

/// A sidecar with scripted servers; `more` goes into the main file.
fn scripted(names: &[&str], more: &str) -> Sidecar {
    let folder = Folder::new(&[]);
    let script = format!("{}/tests/support/scripted.py", env!("CARGO_MANIFEST_DIR"));
    let mut main = format!("version: \"1.0\"\naudit: {{ path: audit.log }}\n{more}services:\n");
    for name in names {
        let log = folder.path(&format!("{name}.log")).display().to_string();
        let argv = [peers::path("python").display().to_string(), script.clone(), log];
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
        folder.write(&format!("{name}.yaml"), &format!("type: mcp\ncommand: {}\n", json!(argv)));
    }
    if more.contains("mute") {
        main.push_str("  mute: { config_file: mute.yaml }\n");
        folder.write("mute.yaml", "type: mcp\ncommand: [sleep, \"60\"]\n");
    }
    folder.write("mcpeg.yaml", &main);
    Sidecar::start(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_ask_under_the_same_id_and_each_gets_its_answer() {
    let sidecar = scripted(&["one", "two"], "");
    let mut client = Client::initialized(&sidecar.socket()).await;
    for name in ["one", "two"] {
        let params = json!({ "name": format!("{name}__ask"), "arguments": {} });
        client
            .send(&json!({ "jsonrpc": "2.0", "id": name, "method": "tools/call", "params": params }).to_string())
            .await;
    }
    let mut asked = Vec::new();
    while asked.len() < 2 {
        let message: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
        if message["method"] == "elicitation/create" {
            asked.push(message["id"].clone());
        }
    }
    assert_ne!(asked[0], asked[1]);
    for (count, id) in asked.iter().enumerate() {
        let result = json!({ "action": "accept", "content": { "count": count } });
        client.send(&json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string()).await;
    }
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let message: Value = serde_json::from_str(&client.line().await.unwrap()).unwrap();
        if message["id"] == "one" || message["id"] == "two" {
            answers.push(message["result"]["answer"]["content"]["count"].clone());
        }
    }
    answers.sort_by_key(Value::to_string);
    assert_eq!(answers, [json!(0), json!(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_holds_nobody_up_and_is_named() {
    let sidecar = scripted(&["one"], "transports: { aggregate: { list_timeout: 1500ms } } # mute\n");
    let begun = Instant::now();
    let mut client = Client::initialized(&sidecar.socket()).await;
    let list = client.request("tools/list", json!({})).await;
    // Its own time-out is 30 s.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(list["result"]["_meta"]["mcpeg/unavailable"][0]["service"], "mute", "{list}");
    let said = client.received.iter().find(|line| line.contains("notifications/message")).expect("nothing was said");
    let said: Value = serde_json::from_str(said).unwrap();
    assert_eq!((&said["params"]["level"], &said["params"]["logger"]), (&json!("warning"), &json!("mcpeg")));
    assert!(said.to_string().contains("mute"), "{said}");
}
