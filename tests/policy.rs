//! What a service file allows, renames and bounds, as clients of both eras meet it on the service's own socket and on that of all services;
//! and the circuit breaker.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::counting::{Counting, Mode};
use crate::support::library::Library;
use crate::support::mcp::{Client, modern};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::unix_http::UnixHttp;
use crate::support::upstream::{HttpServer, python_stdio, with};
use crate::support::{eventually, peers};

/// A sidecar with these services, each given as the text of its service file.
fn sidecar(services: &[(&str, String)]) -> Sidecar {
    let mut main = "version: \"1.0\"\naudit: { path: audit.log }\nservices:\n".to_owned();
    let folder = Folder::new(&[]);
    for (name, text) in services {
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
        folder.write(&format!("{name}.yaml"), text);
    }
    folder.write("mcpeg.yaml", &main);
    Sidecar::start(folder)
}

/// A client in one of the two eras, on one of the two sockets.
struct Agent {
    client: Client,
    is_modern: bool,
    prefix: String,
}

impl Agent {
    async fn of(sidecar: &Sidecar, service: &str, is_modern: bool, aggregate: bool) -> Self {
        let socket = if aggregate { sidecar.socket() } else { sidecar.service_socket(service) };
        let client = if is_modern { Client::connect(&socket).await } else { Client::initialized(&socket).await };
        Self { client, is_modern, prefix: if aggregate { format!("{service}__") } else { String::new() } }
    }

    /// One for each era and socket.
    async fn each(sidecar: &Sidecar, service: &str) -> Vec<Self> {
        let mut agents = Vec::new();
        for (is_modern, aggregate) in [(false, false), (true, false), (false, true), (true, true)] {
            agents.push(Self::of(sidecar, service, is_modern, aggregate).await);
        }
        agents
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let params = if self.is_modern { modern(params) } else { params };
        self.client.request(method, params).await
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let name = format!("{}{tool}", self.prefix);
        self.ask("tools/call", json!({ "name": name, "arguments": arguments })).await
    }

    /// The names in a list, without what the aggregate puts before them.
    async fn names(&mut self, method: &str, list: &str, key: &str) -> Vec<String> {
        let answer = self.ask(method, json!({})).await;
        let items = answer["result"][list].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
        let own = |name: &str| name.trim_start_matches(&self.prefix).trim_start_matches("mcpeg://library/").to_owned();
        items.iter().map(|item| own(item[key].as_str().unwrap())).collect()
    }
}

fn refused(answer: &Value, code: i64, rule: &str) {
    assert_eq!((&answer["error"]["code"], &answer["error"]["data"]["rule"]), (&json!(code), &json!(rule)), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("service library"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_is_hidden_and_refused_alike() {
    let library = Library::new(&[]);
    let rules = "allow: { tools: [stamp, \"delete_*\"], resources: [\"doc://public/{name}\"] }\n\
        deny: { tools: [\"delete_*\"], prompts: [\"secret_*\"] }\n";
    let sidecar = sidecar(&[("library", library.service(rules))]);
    for mut agent in Agent::each(&sidecar, "library").await {
        assert_eq!(agent.names("tools/list", "tools", "name").await, ["stamp"]);
        assert_eq!(agent.names("prompts/list", "prompts", "name").await, ["greet"]);
        assert_eq!(agent.names("resources/list", "resources", "uri").await, ["doc://public/a"]);
        let templates = agent.names("resources/templates/list", "resourceTemplates", "uriTemplate").await;
        assert_eq!(templates, ["doc://{folder}/{name}"]);
        assert!(agent.call("stamp", json!({})).await["result"].is_object());
        refused(&agent.call("delete_all", json!({})).await, -32014, "deny.tools: delete_*");
        refused(&agent.call("rows", json!({})).await, -32014, "allow.tools");
        let prompt = format!("{}secret_greet", agent.prefix);
        refused(&agent.ask("prompts/get", json!({ "name": prompt })).await, -32014, "deny.prompts: secret_*");
        assert!(agent.ask("resources/read", json!({ "uri": "doc://public/a" })).await["result"].is_object());
        for uri in ["doc://private/b", "doc://public/../private/b", "doc://public/%2e%2e/private/b"] {
            let answer = agent.ask("resources/read", json!({ "uri": uri })).await;
            assert_eq!(answer["error"]["code"], -32014, "{answer}");
        }
    }
    for words in ["delete_all", "\"rows\"", "secret_greet", "private"] {
        assert_eq!(library.has_read(words), 0, "{words} has reached the server");
    }
    let denied: Vec<Value> = sidecar.folder.audit("mcp.request");
    let denied: Vec<_> = denied.iter().filter(|event| event["outcome"] == "denied").collect();
    assert!(denied.len() >= 4 * 6, "{denied:#?}");
    let event = denied.iter().find(|event| event["attributes"]["gen_ai.tool.name"] == "delete_all").unwrap();
    assert_eq!(event["attributes"]["mcpeg.rule"], "deny.tools: delete_*");
    assert_eq!(event["attributes"]["mcpeg.decision"], "deny");
    assert_eq!(event["attributes"]["error.type"], "not_allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_lets_pass_and_puts_on_record() {
    let library = Library::new(&[]);
    let rules =
        "dry_run: true\nallow: { tools: [stamp] }\ntools: [ { name: rows, max_rows: 1 }, { name: big, rate: 1/h } ]\n";
    let sidecar = sidecar(&[("library", library.service(rules))]);
    let mut agent = Agent::of(&sidecar, "library", false, false).await;
    assert_eq!(agent.names("tools/list", "tools", "name").await.len(), 8);
    assert!(agent.call("delete_all", json!({})).await["result"].is_object());
    let rows = agent.call("rows", json!({ "n": 3 })).await;
    assert_eq!(rows["result"]["structuredContent"]["rows"].as_array().unwrap().len(), 3);
    for _ in 0..2 {
        assert!(agent.call("big", json!({ "n": 3 })).await["result"].is_object());
    }
    assert!(agent.call("stamp", json!({})).await["result"].is_object());
    let events = sidecar.folder.audit("mcp.request");
    let said = |tool: &str| -> Vec<(Value, Value, Value)> {
        let of_tool = events.iter().filter(|event| event["attributes"]["gen_ai.tool.name"] == tool);
        let facts = |event: &Value| {
            let attributes = &event["attributes"];
            (event["outcome"].clone(), attributes["mcpeg.decision"].clone(), attributes["mcpeg.rule"].clone())
        };
        of_tool.map(facts).collect()
    };
    assert_eq!(said("delete_all"), [(json!("success"), json!("would_deny"), json!("allow.tools"))]);
    assert_eq!(said("stamp"), [(json!("success"), json!("allow"), Value::Null)]);
    assert_eq!(said("big").len(), 2);
    assert!(said("big").iter().all(|(_, decision, _)| decision == "would_deny"), "{:?}", said("big"));
}

/// Runs one of the real clients to its end; what it saw.
fn sdk(client: &str, args: &[&str]) -> Value {
    let argv = with(peers::argv(client), args);
    let output = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdks_know_tools_by_the_names_that_they_are_given() {
    let upstream = HttpServer::modern().await;
    let tools = "tools: [ { name: echo, rename: say, description: Repeats. }, { name: crash, hide: true } ]\n";
    let sidecar = sidecar(&[
        ("remote", format!("type: mcp\nurl: {}\n{tools}", upstream.url)),
        ("child", format!("type: mcp\ncommand: {}\n{tools}", serde_json::to_string(&python_stdio()).unwrap())),
    ]);
    let arguments = r#"{"text":"grüße"}"#;
    for (client, service, era) in [
        ("mcp_modern_client", "remote", "modern"),
        ("mcp_python_client", "remote", "modern"),
        ("mcp_python_client", "child", "modern"),
        ("mcp_python_client", "child", "legacy"),
    ] {
        for aggregate in [false, true] {
            let socket = if aggregate { sidecar.socket() } else { sidecar.service_socket(service) };
            let prefix = if aggregate { format!("{service}__") } else { String::new() };
            let (tool, socket) = (format!("{prefix}say"), socket.display().to_string());
            let args = ["--era", era, "--call", &tool, "--args", arguments, "unix", &socket];
            let seen = sdk(client, &args);
            assert_eq!(seen["failed"], 0, "{client} {service} {era} {aggregate}: {seen}");
            assert!(seen["result"].to_string().contains("grüße"), "{seen}");
            let names = seen["tools"].to_string();
            assert!(!names.contains("echo") && !names.contains("crash") && names.contains("whoami"), "{names}");
        }
    }
    let mut agent = Agent::of(&sidecar, "child", false, false).await;
    let list = agent.ask("tools/list", json!({})).await;
    let said = list["result"]["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "say").unwrap();
    assert_eq!(said["description"], "Repeats.");
    let answer = agent.call("echo", json!({ "text": "x" })).await;
    assert_eq!(answer["error"]["data"]["reason"], "unknown_tool", "{answer}");
    let events = sidecar.folder.audit("mcp.request");
    let called = events.iter().find(|event| event["attributes"]["mcpeg.tool.alias"] == "say").unwrap();
    assert_eq!(called["attributes"]["gen_ai.tool.name"], "echo");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_of_a_list_keep_their_bytes() {
    let library = Library::new(&[]);
    let sidecar =
        sidecar(&[("library", library.service("deny: { tools: [big] }\ntools: [ { name: rows, rename: table } ]\n"))]);
    let mut agent = Agent::of(&sidecar, "library", false, false).await;
    agent.ask("tools/list", json!({})).await;
    let line = agent.client.received.last().unwrap();
    assert!(line.contains(r#"{"name": "table", "description": "The tool rows.""#), "{line}");
    assert_eq!(line.matches(r#""x-vendor": 12345678901234567890, "y": 1.0"#).count(), 7, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_results_have_bounds_of_their_own() {
    let library = Library::new(&[]);
    let rules = "validate_arguments: true\ntools:\n\
        - { name: slow, timeout: 300ms }\n\
        - { name: stamp, rate: 2/h }\n\
        - { name: rows, max_rows: 2, max_bytes: 1KiB }\n\
        - { name: big, max_bytes: 1KiB }\n";
    let sidecar = sidecar(&[("library", library.service(rules))]);
    for mut agent in Agent::each(&sidecar, "library").await {
        let rows = agent.call("rows", json!({ "n": 3 })).await;
        let result = &rows["result"];
        assert_eq!(
            result["structuredContent"]["rows"],
            json!([{ "id": 0, "big": 12345678901234567890_u64 }, { "id": 1, "big": 12345678901234567890_u64 }])
        );
        assert_eq!(result["_meta"]["mcpeg/truncated"], json!({ "max_rows": 2, "rows": 3 }));
        assert_eq!(result["content"][1]["text"], "Only 2 of 3 rows are shown (max_rows).");
        let big = agent.call("big", json!({ "n": 5000 })).await;
        assert_eq!(big["result"]["isError"], true, "{big}");
        assert!(big["result"]["content"][0]["text"].as_str().unwrap().contains("max_bytes"), "{big}");
        assert!(agent.call("big", json!({ "n": 500 })).await["result"]["isError"].is_null());
        let asked = Instant::now();
        let slow = agent.call("slow", json!({ "n": 20000 })).await;
        assert_eq!(slow["error"]["code"], -32011, "{slow}");
        assert!(asked.elapsed() < Duration::from_secs(10), "the service's own time is 30 s");
        // Schemas are learned from lists that pass.
        agent.ask("tools/list", json!({})).await;
        let wrong = agent.call("big", json!({ "n": "many" })).await;
        assert_eq!(wrong["result"]["isError"], true, "{wrong}");
        assert!(wrong["result"]["content"][0]["text"].as_str().unwrap().contains("/n: "), "{wrong}");
    }
    assert_eq!(library.has_read("many"), 0);
    let mut agent = Agent::of(&sidecar, "library", false, false).await;
    let mut other = Agent::of(&sidecar, "library", true, true).await;
    assert!(agent.call("stamp", json!({})).await["result"].is_object());
    assert!(other.call("stamp", json!({})).await["result"].is_object());
    let refused = agent.call("stamp", json!({})).await;
    assert_eq!(
        (&refused["error"]["code"], &refused["error"]["data"]["rule"]),
        (&json!(-32012), &json!("tools.stamp.rate"))
    );
    assert!(refused["error"]["data"]["retry_after_ms"].as_u64().unwrap() > 60_000, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_concurrency_wait_for_room() {
    let library = Library::new(&[]);
    let sidecar = sidecar(&[("library", library.service("tools: [ { name: slow, concurrency: 1 } ]\n"))]);
    let mut first = Agent::of(&sidecar, "library", false, false).await;
    let mut second = Agent::of(&sidecar, "library", false, false).await;
    let call = |id: u32, n: u32| {
        json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "slow", "arguments": { "n": n } } })
            .to_string()
    };
    first.client.send(&call(100, 700)).await;
    eventually(Duration::from_secs(20), "the first call is with the server", async || {
        (library.has_read("tools/call") == 1).then_some(())
    })
    .await;
    // One that waits, one that is taken back while it does, and another tool that need not wait.
    second.client.send(&call(100, 1)).await;
    second.client.send(&call(101, 2)).await;
    second.client.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":101}}"#).await;
    assert!(second.call("stamp", json!({})).await["result"].is_object());
    assert_eq!(library.has_read("\"slow\""), 1, "no other call has come through");
    let done = first.client.line().await.unwrap();
    assert!(done.contains("\"id\": 100"), "{done}");
    let done = second.client.line().await.unwrap();
    assert!(done.contains("\"id\": 100"), "{done}");
    assert_eq!(library.has_read("\"id\":101"), 0, "what was taken back never came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_for_others_is_not_there() {
    let library = Library::new(&[]);
    let uid = rustix::process::getuid().as_raw();
    let sidecar = sidecar(&[
        ("library", library.service(&format!("deny: {{ peers: [{uid}] }}\n"))),
        ("other", library.service(&format!("peers:\n- {{ peers: [tcp], allow: {{ tools: [rows] }} }}\n- {{ peers: [{uid}], deny: {{ tools: [\"*\"] }} }}\n"))),
    ]);
    let mut client = Client::connect(&sidecar.service_socket("library")).await;
    let answer = client.request("tools/list", modern(json!({}))).await;
    refused(&answer, -32014, "deny.peers");
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/vendor"}"#).await;
    let mut all = Client::initialized(&sidecar.socket()).await;
    let list = all.request("tools/list", json!({})).await;
    assert_eq!(list["result"]["tools"], json!([]), "{list}");
    assert!(!list.to_string().contains("library"), "{list}");
    refused(&all.call("library__stamp", json!({})).await, -32014, "deny.peers");
    let hint = all.call("librar__stamp", json!({})).await;
    assert!(hint["error"].is_object() && !hint.to_string().contains("library"), "{hint}");
    let answer = all.call("other__stamp", json!({})).await;
    assert_eq!(answer["error"]["data"]["rule"], "peers.1.deny.tools: *", "{answer}");
    assert_eq!((library.has_read("vendor"), library.has_read("tools/call")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_leaves_a_service_alone_and_finds_out_when_it_works() {
    let upstream = HttpServer::python().await;
    let port: u16 = upstream.url.rsplit(':').next().unwrap().trim_end_matches("/mcp").parse().unwrap();
    let between = Counting::before(port).await;
    let breaker = "circuit_breaker: { failure_threshold: 3, reset_timeout: 1s }\ntimeout: 2s\n";
    let sidecar = sidecar(&[("remote", format!("type: mcp\nurl: {}/mcp\n{breaker}", between.address))]);
    let mut client = Client::connect(&sidecar.service_socket("remote")).await;
    let mut other = Client::connect(&sidecar.service_socket("remote")).await;
    let call = || modern(json!({ "name": "echo", "arguments": { "text": "x" } }));
    assert!(client.request("tools/call", call()).await["result"].is_object());
    // What a tool says is no failure of its service.
    for _ in 0..5 {
        let answer = client.request("tools/call", modern(json!({ "name": "no such tool" }))).await;
        assert!(answer["result"]["isError"] == true || answer["error"].is_object(), "{answer}");
    }
    between.set(Mode::Cut);
    let mut kinds = Vec::new();
    for _ in 0..4 {
        kinds.push(client.request("tools/call", call()).await["error"]["data"]["reason"].clone());
    }
    assert_eq!(kinds[3], "circuit_open", "{kinds:?}");
    assert!(kinds[..3].iter().all(|kind| kind != "circuit_open"), "{kinds:?}");
    let connections = between.connections();
    let answer = other.request("tools/call", call()).await;
    assert_eq!(answer["error"]["data"]["rule"], "circuit_breaker", "it holds for every session: {answer}");
    assert_eq!(between.connections(), connections, "nothing was tried");
    assert!(sidecar.condition("service/remote").unwrap().contains("circuit breaker"));
    assert_eq!(sidecar.status()["mcp"]["services"]["remote"]["circuit_breaker"]["state"], "open");

    between.set(Mode::Pass);
    eventually(Duration::from_secs(15), "it works again", async || {
        other.request("tools/call", call()).await["result"].is_object().then_some(())
    })
    .await;
    assert!(client.request("tools/call", call()).await["result"].is_object());
    assert_eq!(sidecar.status()["mcp"]["services"]["remote"]["circuit_breaker"]["state"], "closed");
    let events = sidecar.folder.audit("mcp.breaker");
    let states: Vec<&str> =
        events.iter().map(|event| event["attributes"]["mcpeg.breaker.state"].as_str().unwrap()).collect();
    assert_eq!(states, ["open", "half_open", "closed"]);
    let metrics = UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await.get("/metrics").await;
    assert!(metrics.text().contains("mcpeg_mcp_breaker_changes_total{"), "{}", metrics.text());
    assert!(metrics.text().contains("mcpeg_mcp_rules_total{"), "{}", metrics.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_takes_longer_than_its_own_time_is_no_failure_of_its_service() {
    let rules =
        "circuit_breaker: { failure_threshold: 2, reset_timeout: 60s }\ntools: [{ name: slow, timeout: 100ms }]\n";
    let argv = serde_json::to_string(&python_stdio()).unwrap();
    let sidecar = sidecar(&[("local", format!("type: mcp\ncommand: {argv}\n{rules}"))]);
    let mut client = Client::initialized(&sidecar.service_socket("local")).await;
    for _ in 0..3 {
        let answer = client.call("slow", json!({ "seconds": 5 })).await;
        assert_eq!(answer["error"]["data"]["reason"], "timeout", "{answer}");
    }
    let breaker = &sidecar.status()["mcp"]["services"]["local"]["circuit_breaker"];
    assert_eq!((&breaker["state"], &breaker["failures"]), (&json!("closed"), &json!(0)), "{breaker}");
    assert!(client.call("echo", json!({ "text": "x" })).await["result"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_over_http() {
    let library = Library::new(&["60000"]);
    let rules = "deny: { tools: [\"delete_*\"] }\ntools: [ { name: rows, rename: table, max_rows: 1 } ]\n";
    let main = "version: \"1.0\"\naudit: { path: audit.log }\n\
        secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { local: { provider: own, path: local } }\n\
        transports: { http: { enabled: true, port: 0, token: \"${secret.local.token}\" } }\n\
        services: { library: { config_file: library.yaml } }\n";
    let folder = Folder::new(&[("mcpeg.yaml", main), ("secrets.yaml", "local: { token: token-of-the-agent }\n")]);
    folder.write("library.yaml", &library.service(rules));
    let sidecar = Sidecar::start(folder);
    let at = sidecar.ready.split("mcp http").nth(1).unwrap_or_else(|| panic!("{}", sidecar.ready));
    let url = format!("http{}", at.split([',', ';']).next().unwrap().trim());
    let client = crate::support::http();
    let ask = async |path: &str, method: &str, params: Value| -> Value {
        let mut request = client
            .post(format!("{url}{path}"))
            .bearer_auth("token-of-the-agent")
            .header("Accept", "application/json, text/event-stream")
            .header("MCP-Protocol-Version", "2026-07-28")
            .header("Mcp-Method", method);
        if let Some(name) = params["name"].as_str() {
            request = request.header("Mcp-Name", name);
        }
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": modern(params) });
        let text = request.json(&body).send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    for (path, prefix) in [("/library", ""), ("", "library__")] {
        let list = ask(path, "tools/list", json!({})).await.to_string();
        assert!(list.contains(&format!("\"{prefix}table\"")) && !list.contains("delete_all"), "{list}");
        let called = |tool: &str| json!({ "name": format!("{prefix}{tool}"), "arguments": { "n": 2 } });
        refused(&ask(path, "tools/call", called("delete_all")).await, -32014, "deny.tools: delete_*");
        let rows = ask(path, "tools/call", called("table")).await;
        assert_eq!(rows["result"]["structuredContent"]["rows"].as_array().map(Vec::len), Some(1), "{rows}");
    }
    assert_eq!((library.has_read("delete_all"), library.has_read("\"table\"")), (0, 0));
    let first = ask("/library", "prompts/list", json!({})).await;
    let again = ask("/library", "prompts/list", json!({})).await;
    assert_eq!(first["result"]["stamp"], again["result"]["stamp"]);
}
