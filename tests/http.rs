//! Streamable HTTP for clients, of both eras: the official SDKs over TCP, and raw requests for what they never send; the same on the Unix
//! sockets; and mcpeg itself as a server that a client spawns.

use std::process::{Command, Stdio};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::unix_http::UnixHttp;
use crate::support::upstream::{HttpServer, modern_stdio, python_stdio, typescript_stdio, with};
use crate::support::{eventually, memory, peers};

const TOKEN: &str = "token-of-the-local-agent";

/// A sidecar that listens on a port of its own; `more` goes into `transports`.
pub fn sidecar(services: &[(&str, String)], more: &str) -> (Sidecar, Http) {
    let folder = Folder::new(&[]);
    let mut main = "version: \"1.0\"\naudit: { path: audit.log }\n\
        secrets:\n  providers: { own: { type: file, path: secrets.yaml } }\n  items: { local: { provider: own, path: local, refresh: 1s } }\n"
        .to_owned();
    folder.write("secrets.yaml", &format!("local: {{ token: {TOKEN} }}\n"));
    let http = "http: { enabled: true, port: 0, token: \"${secret.local.token}\", allowed_origins: [\"https://good.example\"] }";
    main.push_str(&format!("transports: {{ {http}{more} }}\nservices:\n"));
    for (name, text) in services {
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
        folder.write(&format!("{name}.yaml"), text);
    }
    folder.write("mcpeg.yaml", &main);
    let sidecar = Sidecar::start(folder);
    let http = Http::of(&sidecar);
    (sidecar, http)
}

fn stdio(argv: &[String]) -> String {
    format!("type: mcp\ncommand: {}\n", serde_json::to_string(argv).unwrap())
}

/// The server that asks and tells; what it reads is in the file.
pub fn scripted() -> (String, tempfile::NamedTempFile) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let script = format!("{}/tests/support/scripted.py", env!("CARGO_MANIFEST_DIR"));
    let argv = [peers::path("python").display().to_string(), script, log.path().display().to_string()];
    (stdio(&argv), log)
}

/// Raw requests to the sidecar's TCP port.
pub struct Http {
    client: reqwest::Client,
    url: String,
}

impl Http {
    fn of(sidecar: &Sidecar) -> Self {
        let url = sidecar.ready.split("mcp http").nth(1).unwrap_or_else(|| panic!("{}", sidecar.ready));
        let url = format!("http{}", url.split([',', ';']).next().unwrap().trim());
        Self { client: crate::support::http(), url }
    }

    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(TOKEN)
            .header("Accept", "application/json, text/event-stream")
    }

    pub fn post(&self, path: &str, body: &str) -> RequestBuilder {
        self.ask(Method::POST, path).header("Content-Type", "application/json").body(body.to_owned())
    }

    /// The id of a new session of the legacy era.
    async fn session(&self, path: &str) -> String {
        let hello = request(
            "initialize",
            json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } }),
        );
        let response = self.post(path, &hello).send().await.unwrap();
        assert_eq!(response.status(), 200, "{response:?}");
        let id = response.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        assert!(json(response).await["result"]["serverInfo"].is_object());
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(self.in_session(path, &id, initialized).send().await.unwrap().status(), 202);
        id
    }

    fn in_session(&self, path: &str, id: &str, body: &str) -> RequestBuilder {
        self.post(path, body).header("Mcp-Session-Id", id).header("MCP-Protocol-Version", "2025-11-25")
    }

    /// A request of the modern era with the headers that belong to it.
    fn modern(&self, path: &str, id: &Value, method: &str, params: Value) -> RequestBuilder {
        let mut params = params;
        params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let post = self.post(path, &body.to_string()).header("MCP-Protocol-Version", "2026-07-28");
        let post = post.header("Mcp-Method", method);
        match params.get("name") {
            Some(name) => post.header("Mcp-Name", name.as_str().unwrap()),
            None => post,
        }
    }
}

pub fn request(method: &str, params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

fn call(id: u64, tool: &str, more: Value) -> String {
    let mut params = json!({ "name": tool, "arguments": {} });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }).to_string()
}

async fn json(response: Response) -> Value {
    let text = response.text().await.unwrap();
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

/// The status and the code of the error.
pub async fn refusal(asked: RequestBuilder) -> (u16, i64) {
    let response = asked.send().await.unwrap();
    let status = response.status().as_u16();
    (status, json(response).await["error"]["code"].as_i64().unwrap())
}

/// Server-sent events, one after the other.
struct Events(Response, String);

impl Events {
    async fn of(asked: RequestBuilder) -> Self {
        let response = asked.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream", "{response:?}");
        Self(response, String::new())
    }

    /// Id and data of the next event that has data; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some(end) = self.1.find("\n\n") {
                let event: String = self.1.drain(..end + 2).collect();
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
                };
                if let Ok(data) = serde_json::from_str(&field("data:")) {
                    return Some((field("id:"), data));
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.0.chunk()).await.expect("nothing in 20 s");
            self.1.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }
}

/// Runs one of the real clients to its end; what it saw.
fn sdk(client: &str, args: &[&str]) -> Value {
    let argv = with(peers::argv(client), args);
    let output =
        Command::new(&argv[0]).args(&argv[1..]).env("AGENT_TOKEN", TOKEN).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdks_of_both_eras_work_over_http() {
    let remote = HttpServer::python().await;
    let (sidecar, http) = sidecar(
        &[
            ("python", stdio(&python_stdio())),
            ("typescript", stdio(&typescript_stdio())),
            ("modern", stdio(&modern_stdio())),
            ("remote", format!("type: mcp\nurl: {}\n", remote.url)),
        ],
        "",
    );
    let echo = ["--args", r#"{"text":"grüße"}"#, "--repeat", "8", "--parallel", "3", "--bearer-env", "AGENT_TOKEN"];
    for (client, era, path, tool) in [
        ("mcp_python_client", "legacy", "/python", "echo"),
        ("mcp_python_client", "modern", "/python", "echo"),
        ("mcp_python_client", "auto", "/typescript", "echo"),
        ("mcp_python_client", "modern", "/remote", "echo"),
        ("mcp_python_client", "legacy", "", "typescript__echo"),
        ("mcp_python_client", "modern", "", "typescript__echo"),
        ("mcp_typescript_client", "legacy", "/typescript", "echo"),
        ("mcp_typescript_client", "legacy", "", "typescript__echo"),
        ("mcp_modern_client", "modern", "/modern", "echo"),
        ("mcp_modern_client", "modern", "", "remote__echo"),
        ("mcp_modern_client", "auto", "/python", "echo"),
        ("mcp_modern_client", "legacy", "/remote", "echo"),
    ] {
        let url = format!("{}{path}", http.url);
        let seen = sdk(client, &[&echo[..], &["--call", tool, "--era", era, "http", &url]].concat());
        assert_eq!((&seen["calls"], &seen["failed"]), (&json!(8), &json!(0)), "{client} {era} {path}: {seen}");
        assert!(seen["result"].to_string().contains("grüße"), "{seen}");
        if era != "auto" {
            assert_eq!(seen["protocol"] == "2026-07-28", era == "modern", "{client} {era} {path}: {seen}");
        }
    }
    let events = sidecar.folder.audit("mcp.request");
    assert!(events.iter().any(|event| event["attributes"]["network.peer.address"] == "127.0.0.1"), "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_token_or_comes_from_elsewhere_is_turned_away() {
    let (sidecar, http) = sidecar(&[("cat", "type: mcp\ncommand: [cat]\n".to_owned())], "");
    let ping = request("ping", json!({}));
    let bare = |token: Option<&str>| {
        let post = http.client.post(&http.url).header("Accept", "*/*").header("Content-Type", "application/json");
        let post = post.body(ping.clone());
        match token {
            Some(token) => post.bearer_auth(token),
            None => post,
        }
    };
    for token in [None, Some("wrong"), Some("")] {
        let response = bare(token).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{token:?}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
    assert_eq!(refusal(bare(Some(TOKEN)).header("Host", "evil.example")).await, (403, -32014));
    assert_eq!(refusal(bare(Some(TOKEN)).header("Origin", "https://evil.example")).await, (403, -32014));
    for origin in ["https://good.example", "http://localhost:5173"] {
        // It may ask; that it has no session is another matter.
        assert_eq!(refusal(bare(Some(TOKEN)).header("Origin", origin)).await, (400, -32600), "{origin}");
    }
    let kinds: Vec<Value> =
        sidecar.folder.audit("mcp.connection").iter().map(|event| event["attributes"]["error.type"].clone()).collect();
    assert_eq!(kinds, ["token_missing", "token_wrong", "token_missing", "host_not_allowed", "origin_not_allowed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_session_is_begun_used_and_ended() {
    let (_sidecar, http) = sidecar(
        &[("child", stdio(&python_stdio())), ("other", "type: mcp\ncommand: [cat]\n".to_owned())],
        ", limits: { max_message_mb: 1 }",
    );
    let id = http.session("/child").await;
    let list = http.in_session("/child", &id, &request("tools/list", json!({}))).send().await.unwrap();
    assert_eq!((list.status(), list.headers()["content-type"].to_str().unwrap()), (StatusCode::OK, "application/json"));
    assert!(json(list).await["result"]["tools"].to_string().contains("echo"));
    // Line breaks between tokens are no matter.
    let pretty = serde_json::to_string_pretty(&json!({ "jsonrpc": "2.0", "id": 9, "method": "ping" })).unwrap();
    assert_eq!(json(http.in_session("/child", &id, &pretty).send().await.unwrap()).await["id"], 9);

    let ping = request("ping", json!({}));
    let in_session = |body: &str| http.in_session("/child", &id, body);
    assert_eq!(refusal(http.post("/child", &ping)).await, (400, -32600));
    assert_eq!(refusal(http.in_session("/child", "unknown", &ping)).await, (404, -32600));
    assert_eq!(refusal(http.in_session("/other", &id, &ping)).await, (404, -32600));
    assert_eq!(refusal(http.in_session("", &id, &ping)).await, (404, -32600));
    assert_eq!(refusal(http.in_session("/nothing", &id, &ping)).await, (404, -32600));
    assert_eq!(
        refusal(http.post("/child", &ping).header("Mcp-Session-Id", &id).header("MCP-Protocol-Version", "1999-01-01"))
            .await,
        (400, -32600)
    );
    assert_eq!(refusal(in_session("[{}]")).await, (400, -32600));
    assert_eq!(refusal(in_session("rubbish")).await, (400, -32700));
    assert_eq!(refusal(in_session(r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#)).await, (400, -32600));
    assert_eq!(refusal(in_session(&" ".repeat((1 << 20) + 1))).await, (413, -32600));
    let typed = http.ask(Method::POST, "/child").header("Mcp-Session-Id", &id).header("Content-Type", "text/plain");
    assert_eq!(refusal(typed.body(ping.clone())).await, (415, -32600));
    let plain = http.client.post(format!("{}/child", http.url)).bearer_auth(TOKEN).header("Accept", "application/json");
    let plain = plain.header("Mcp-Session-Id", &id).header("Content-Type", "application/json");
    assert_eq!(refusal(plain.body(ping.clone())).await, (406, -32600));
    assert_eq!(refusal(http.ask(Method::PUT, "/child")).await.0, 405);
    assert_eq!(refusal(http.ask(Method::GET, "/child")).await, (400, -32600));

    let end = http.ask(Method::DELETE, "/child").header("Mcp-Session-Id", &id);
    assert_eq!(end.send().await.unwrap().status(), 200);
    assert_eq!(refusal(in_session(&ping)).await, (404, -32600));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_and_asks_at_work_goes_to_its_request_and_the_rest_to_the_stream_of_the_session() {
    let (service, _log) = scripted();
    let (_sidecar, http) = sidecar(&[("s", service)], "");
    let id = http.session("/s").await;
    let listening = |after: Option<&str>| {
        let get = http.ask(Method::GET, "/s").header("Mcp-Session-Id", &id);
        after.into_iter().fold(get, |get, after| get.header("Last-Event-ID", after))
    };
    http.in_session("/s", &id, &call(6, "change", json!({}))).send().await.unwrap();
    let mut general = Events::of(listening(None)).await;
    let early = general.next().await.unwrap().1;
    assert_eq!(early["method"], "notifications/tools/list_changed", "it waits for a stream");

    let mut events =
        Events::of(http.in_session("/s", &id, &call(7, "progress", json!({ "_meta": { "progressToken": "p" } }))))
            .await;
    let (first, progress) = events.next().await.unwrap();
    assert_eq!(progress["params"]["progressToken"], "p");
    assert_eq!(events.next().await.unwrap().1["method"], "notifications/message");
    let (_, answer) = events.next().await.unwrap();
    assert_eq!((&answer["id"], answer["result"]["big"].to_string()), (&json!(7), "12345678901234567890".to_owned()));
    assert!(events.next().await.is_none(), "the answer is the last");

    // A client that comes back gets what came after the event that it had last.
    let mut again = Events::of(listening(Some(&first))).await;
    assert_eq!(again.next().await.unwrap().1["method"], "notifications/message");
    assert_eq!(again.next().await.unwrap().1["id"], 7);
    assert!(again.next().await.is_none());

    let mut asking = Events::of(http.in_session("/s", &id, &call(8, "ask", json!({})))).await;
    let (_, question) = asking.next().await.unwrap();
    assert_eq!((&question["method"], &question["id"]), (&json!("elicitation/create"), &json!("q1")));
    let answer = http.in_session("/s", &id, r#"{"jsonrpc":"2.0","id":"q1","result":{"action":"accept"}}"#);
    assert_eq!(answer.send().await.unwrap().status(), 202);
    assert_eq!(asking.next().await.unwrap().1["result"]["answer"]["action"], "accept");

    let changed = http.in_session("/s", &id, &call(9, "change", json!({}))).send().await.unwrap();
    assert_eq!(json(changed).await["id"], 9, "one document: nothing of its own came before the answer");
    let (event, change) = general.next().await.unwrap();
    assert_eq!(change["method"], "notifications/tools/list_changed");
    drop(general);
    http.in_session("/s", &id, &call(10, "change", json!({}))).send().await.unwrap();
    let mut general = Events::of(listening(Some(&event))).await;
    assert_eq!(general.next().await.unwrap().1["method"], "notifications/tools/list_changed", "it came meanwhile");
    assert_eq!(refusal(listening(Some("nonsense"))).await, (400, -32600));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_legacy_client_that_lost_its_stream_gets_the_answer_when_it_comes_back() {
    let (service, _log) = scripted();
    let (_sidecar, http) = sidecar(&[("s", service)], "");
    let id = http.session("/s").await;
    let mut events =
        Events::of(http.in_session("/s", &id, &call(3, "later", json!({ "arguments": { "seconds": 1.5 } })))).await;
    let (event, said) = events.next().await.unwrap();
    assert_eq!(said["params"]["data"], "later");
    drop(events);
    let back = http.ask(Method::GET, "/s").header("Mcp-Session-Id", &id).header("Last-Event-ID", &event);
    let mut events = Events::of(back).await;
    assert_eq!(events.next().await.unwrap().1["id"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn modern_requests_need_no_session_and_share_one_upstream() {
    let (sidecar, http) = sidecar(&[("child", stdio(&python_stdio())), ("modern", stdio(&modern_stdio()))], "");
    // All with the same id, as of clients that know nothing of each other.
    let many = (0..12).map(|_| async {
        let whoami = http.modern("/child", &json!(1), "tools/call", json!({ "name": "whoami", "arguments": {} }));
        let response = whoami.send().await.unwrap();
        assert!(!response.headers().contains_key("mcp-session-id"));
        let answer = json(response).await;
        assert_eq!(answer["id"], 1, "{answer}");
        answer["result"]["structuredContent"]["pid"].clone()
    });
    let pids = futures_util::future::join_all(many).await;
    assert!(pids.iter().all(|pid| pid.is_u64() && *pid == pids[0]), "one child for all: {pids:?}");
    let ids: Vec<Value> =
        sidecar.folder.audit("mcp.request").iter().map(|e| e["attributes"]["jsonrpc.request.id"].clone()).collect();
    assert!(ids.iter().all(|id| id.as_str().unwrap().starts_with("1.")), "{ids:?}");

    let ping = || http.modern("/child", &json!("x"), "tools/list", json!({}));
    let tampered = |name: &'static str, value: &str| {
        let mut request = ping().build().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
        let client = http.client.clone();
        async move {
            let response = client.execute(request).await.unwrap();
            (response.status().as_u16(), json(response).await)
        }
    };
    for (name, value) in
        [("mcp-method", "tools/call"), ("mcp-protocol-version", "2025-11-25"), ("mcp-protocol-version", "2031-01-01")]
    {
        let (status, answer) = tampered(name, value).await;
        assert_eq!(
            (status, &answer["error"]["code"], &answer["id"]),
            (400, &json!(-32020), &json!("x")),
            "{name}: {answer}"
        );
    }
    let call = http.modern("/child", &json!(1), "tools/call", json!({ "name": "echo" })).header("Mcp-Name", "whoami");
    assert_eq!(refusal(call).await, (400, -32020), "the name twice");
    let body = r#"{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{}}"#;
    let bare = || http.post("/child", body).header("Mcp-Method", "tools/list");
    assert_eq!(refusal(bare().header("MCP-Protocol-Version", "2026-07-28")).await, (400, -32602));
    let future = ping().build().unwrap();
    let text = String::from_utf8(future.body().unwrap().as_bytes().unwrap().to_vec())
        .unwrap()
        .replace("2026-07-28", "2031-01-01");
    let future =
        http.post("/child", &text).header("MCP-Protocol-Version", "2031-01-01").header("Mcp-Method", "tools/list");
    let answer = json(future.send().await.unwrap()).await;
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["data"]["supported"]),
        (&json!(-32022), &json!(["2026-07-28"]))
    );
    for path in ["/child", "/modern", ""] {
        assert_eq!(refusal(http.modern(path, &json!(3), "vendor/unknown", json!({}))).await, (404, -32601), "{path}");
    }
    let get = http.ask(Method::GET, "/child").header("MCP-Protocol-Version", "2026-07-28");
    assert_eq!(refusal(get).await.0, 405);
    let note = http.post("/child", r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#);
    assert_eq!(note.header("MCP-Protocol-Version", "2026-07-28").send().await.unwrap().status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_client_subscribes_is_told_how_it_goes_and_cancels_by_closing() {
    let (service, log) = scripted();
    let (sidecar, http) = sidecar(&[("s", service)], "");
    let mut one = Events::of(http.modern("/s", &json!(1), "subscriptions/listen", json!({}))).await;
    let mut two = Events::of(http.modern("/s", &json!("1"), "subscriptions/listen", json!({}))).await;
    for (events, id) in [(&mut one, json!(1)), (&mut two, json!("1"))] {
        for method in ["notifications/subscriptions/acknowledged", "notifications/tools/list_changed"] {
            let (event, told) = events.next().await.unwrap();
            assert_eq!((event.as_str(), &told["method"]), ("", &json!(method)), "{told}");
            assert_eq!(told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], id, "{told}");
        }
    }
    let params = json!({ "name": "progress", "_meta": { "progressToken": 5 } });
    let mut events = Events::of(http.modern("/s", &json!(1), "tools/call", params)).await;
    assert_eq!(events.next().await.unwrap().1["params"]["progressToken"], 5);
    assert_eq!(events.next().await.unwrap().1["method"], "notifications/message");
    assert_eq!(events.next().await.unwrap().1["id"], 1);

    // A request that has begun to answer, and one that has not.
    let cancelled = |expected: usize| {
        let log = log.path().to_owned();
        async move {
            eventually(Duration::from_secs(10), "the server is told", || async {
                let text = std::fs::read_to_string(&log).unwrap();
                (text.matches("notifications/cancelled").count() == expected).then_some(())
            })
            .await;
        }
    };
    drop(one);
    cancelled(1).await;
    let never =
        http.modern("/s", &json!(4), "tools/call", json!({ "name": "never" })).timeout(Duration::from_millis(300));
    assert!(never.send().await.is_err());
    cancelled(2).await;
    let ends: Vec<Value> =
        sidecar.folder.audit("mcp.request").iter().map(|e| e["attributes"]["error.type"].clone()).collect();
    assert_eq!(ends.iter().filter(|end| *end == "cancelled").count(), 2, "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_counts_at_once_and_the_old_one_is_forgotten() {
    let (service, _log) = scripted();
    let (sidecar, http) = sidecar(&[("s", service)], "");
    let id = http.session("/s").await;
    let mut general = Events::of(http.ask(Method::GET, "/s").header("Mcp-Session-Id", &id)).await;
    sidecar.folder.write("secrets.yaml", "local: { token: another-token-altogether }\n");
    let ping = || http.in_session("/s", &id, &call(2, "change", json!({})));
    eventually(Duration::from_secs(10), "the old token is refused", || async {
        // A connection that is being closed may lose a request.
        ping().send().await.is_ok_and(|response| response.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    // A stream without an end is cut.
    while general.next().await.is_some() {}
    drop(http);
    let http = Http::of(&sidecar);
    eventually(Duration::from_secs(5), "the old token is nowhere in memory", || async {
        memory::find(sidecar.pid(), TOKEN).is_empty().then_some(())
    })
    .await;
    let mut request = http.in_session("/s", &id, &call(3, "change", json!({}))).build().unwrap();
    request.headers_mut().insert("authorization", "Bearer another-token-altogether".parse().unwrap());
    assert_eq!(http.client.execute(request).await.unwrap().status(), 200, "the session has lived on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_speaks_http_to_who_begins_so_and_wants_no_token() {
    let (service, _log) = scripted();
    let (sidecar, _http) = sidecar(&[("s", service)], "");
    let hello = request(
        "initialize",
        json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } }),
    );
    for (socket, path, found) in [
        (sidecar.socket(), "/mcp", 200),
        (sidecar.socket(), "/mcp/s", 200),
        (sidecar.service_socket("s"), "/mcp", 200),
        (sidecar.service_socket("s"), "/mcp/s", 200),
        (sidecar.service_socket("s"), "/mcp/other", 404),
    ] {
        let mut http = UnixHttp::connect(&socket).await;
        let headers = format!("Content-Type: application/json\r\nAccept: */*\r\nContent-Length: {}\r\n", hello.len());
        http.send("POST", path, &headers).await;
        http.write(hello.as_bytes()).await;
        assert_eq!(http.answer().await.status, found, "{} {path}", socket.display());
    }
    let mut lines = Client::initialized(&sidecar.service_socket("s")).await;
    assert_eq!(lines.call("change", json!({})).await["result"]["content"][0]["text"], "change");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_ends_and_the_longest_idle_makes_room() {
    let (service, _log) = scripted();
    let (sidecar, http) = sidecar(&[("s", service)], ", limits: { max_sessions: 2, idle_timeout: 2s }");
    let ping = |id: &str| http.in_session("/s", id, &call(1, "change", json!({}))).send();
    let (first, second) = (http.session("/s").await, http.session("/s").await);
    assert_eq!(ping(&first).await.unwrap().status(), 200);
    let third = http.session("/s").await;
    assert_eq!(ping(&second).await.unwrap().status(), 404, "it was idle longest");
    assert_eq!(
        (ping(&first).await.unwrap().status(), ping(&third).await.unwrap().status()),
        (StatusCode::OK, StatusCode::OK)
    );
    let _listens = Events::of(http.ask(Method::GET, "/s").header("Mcp-Session-Id", &third)).await;
    eventually(Duration::from_secs(10), "one session is left, and one child", || async {
        let status = sidecar.status();
        let mcp = &status["mcp"];
        let children = mcp["services"]["s"]["children"].as_array().map_or(0, Vec::len);
        (mcp["http_sessions"] == 1 && children == 1).then_some(())
    })
    .await;
    assert_eq!(ping(&first).await.unwrap().status(), 404);
    assert_eq!(ping(&third).await.unwrap().status(), 200, "who listens is not idle");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_is_under_way() {
    let (service, _log) = scripted();
    let (sidecar, http) = sidecar(&[("s", service)], "");
    let id = http.session("/s").await;
    let _general = Events::of(http.ask(Method::GET, "/s").header("Mcp-Session-Id", &id)).await;
    let slow = http.in_session("/s", &id, &call(5, "later", json!({ "arguments": { "seconds": 1 } })));
    let mut slow = Events::of(slow).await;
    assert!(slow.next().await.unwrap().1["params"].is_object());
    let (status, last) = tokio::join!(sidecar.stop(), async { slow.next().await.unwrap().1 });
    assert!(status.success());
    assert_eq!(last["result"]["content"][0]["text"], "later", "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_served_with_the_certificate_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let make = "import sys, datetime, ipaddress\nfrom cryptography import x509\nfrom cryptography.hazmat.primitives import hashes, serialization as s\nfrom cryptography.hazmat.primitives.asymmetric import ec\nk = ec.generate_private_key(ec.SECP256R1())\nn = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'test')])\nt = datetime.datetime.now(datetime.timezone.utc)\nc = x509.CertificateBuilder().subject_name(n).issuer_name(n).public_key(k.public_key()).serial_number(1).not_valid_before(t - datetime.timedelta(1)).not_valid_after(t + datetime.timedelta(1)).add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]), False).sign(k, hashes.SHA256())\nopen(sys.argv[1] + '/cert.pem', 'wb').write(c.public_bytes(s.Encoding.PEM))\nopen(sys.argv[1] + '/key.pem', 'wb', opener=lambda p, f: __import__('os').open(p, f, 0o600)).write(k.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))";
    let made = Command::new(peers::path("python")).args(["-c", make]).arg(folder.path()).status().unwrap();
    assert!(made.success());
    let path = |name: &str| folder.path().join(name);
    let main = format!(
        "version: \"1.0\"\ntransports: {{ http: {{ enabled: true, port: 0, token: {TOKEN}, tls: {{ cert_file: {}, key_file: {} }} }} }}\nservices: {{}}\n",
        path("cert.pem").display(),
        path("key.pem").display()
    );
    let sidecar = Sidecar::start(Folder::new(&[("mcpeg.yaml", &main)]));
    let Http { url, .. } = Http::of(&sidecar);
    let root = reqwest::Certificate::from_pem(&std::fs::read(path("cert.pem")).unwrap()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    let http = Http { client, url };
    let answer = http.modern("", &json!(1), "server/discover", json!({})).send().await.unwrap();
    assert_eq!(json(answer).await["result"]["supportedVersions"], json!(["2026-07-28"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_spawns_mcpeg_itself_and_it_ends_with_its_input() {
    let folder = Folder::new(&[(
        "mcpeg.yaml",
        "version: \"1.0\"\ntransports: { stdio: { enabled: true }, unix: { enabled: false } }\nadmin: { unix: { enabled: false } }\nservices: { child: { config_file: child.yaml } }\n",
    )]);
    folder.write("child.yaml", &stdio(&python_stdio()));
    let config = folder.path("mcpeg.yaml").display().to_string();
    let spawn = [PROGRAM, "run", "--config", &config];
    for (client, era) in
        [("mcp_python_client", "legacy"), ("mcp_python_client", "modern"), ("mcp_typescript_client", "legacy")]
    {
        let args =
            ["--call", "child__echo", "--args", r#"{"text":"hi"}"#, "--repeat", "3", "--era", era, "stdio", "--"];
        let seen = sdk(client, &[&args[..], &spawn[..]].concat());
        assert_eq!((&seen["calls"], &seen["failed"]), (&json!(3), &json!(0)), "{client} {era}: {seen}");
    }
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let mut child = Command::new(PROGRAM)
        .args(&spawn[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("{ping}\n").as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("end of input"), "{output:?}");
}
