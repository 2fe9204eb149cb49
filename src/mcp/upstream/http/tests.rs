//! An HTTP upstream against a server that follows a script: each request is answered by a function of what was asked.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::mcp::call::Recorder;
use crate::mcp::message::{AnswerBody, Message, parse};
use crate::mcp::metrics::Metrics;
use crate::mcp::service::Service;
use crate::mcp::settings::Limits;
use crate::mcp::testing::{Audit, Secrets, shipping};
use crate::secret::{Part, SecretRef, SecretText};
use crate::tls::Files;
use reqwest::header::HeaderName;

#[derive(Clone)]
struct Asked {
    verb: String,
    headers: String,
    body: Value,
}

impl Asked {
    fn method(&self) -> &str {
        self.body["method"].as_str().unwrap_or(&self.verb)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| *key == name).map(|(_, value)| value))
    }

    fn session(&self) -> &str {
        self.header("mcp-session-id").unwrap_or_default()
    }

    /// A result for this request, as a document.
    fn result(&self, result: &Value, session: &str) -> Reply {
        let body = json!({ "jsonrpc": "2.0", "id": self.body["id"], "result": result });
        Reply::Text(format!("HTTP/1.1 200 OK\r\nmcp-session-id: {session}\r\n"), "application/json", body.to_string())
    }

    fn initialized(&self, session: &str) -> Reply {
        self.result(&json!({ "protocolVersion": "2025-06-18", "capabilities": {} }), session)
    }
}

enum Reply {
    /// Status line and headers, type, body.
    Text(String, &'static str, String),
    /// Events, then the connection is closed or, if the flag says so, stays open.
    Events(String, bool),
    Never,
    /// The other one, after a while.
    After(Duration, Box<Self>),
}

fn status(status: &str, body: &str) -> Reply {
    Reply::Text(format!("HTTP/1.1 {status}\r\n"), "application/json", body.to_owned())
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

async fn serve(listener: TcpListener, script: Arc<Script>, log: Arc<Mutex<Vec<Asked>>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (script, log) = (script.clone(), log.clone());
        connections.spawn(async move {
            let _ = converse(stream, &*script, &log).await;
        });
    }
}

async fn converse(stream: TcpStream, script: &Script, log: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut headers = String::new();
    while !headers.ends_with("\r\n\r\n") {
        if stream.read_line(&mut headers).await? == 0 {
            return Ok(());
        }
    }
    let verb = headers.split(' ').next().unwrap_or_default().to_owned();
    let mut asked = Asked { verb, headers: headers.to_ascii_lowercase(), body: Value::Null };
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    asked.body = serde_json::from_slice(&body).unwrap_or_default();
    log.lock().unwrap().push(asked.clone());
    let mut reply = script(&asked);
    if let Reply::After(pause, other) = reply {
        sleep(pause).await;
        reply = *other;
    }
    let (text, stays) = match reply {
        Reply::Text(head, kind, body) => {
            let length = body.len();
            (
                format!("{head}content-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"),
                false,
            )
        }
        Reply::Events(events, stays) => {
            (format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}"), stays)
        }
        Reply::Never | Reply::After(..) => (String::new(), true),
    };
    stream.write_all(text.as_bytes()).await?;
    if stays {
        stream.read_to_end(&mut Vec::new()).await?;
    }
    Ok(())
}

struct Rig {
    upstream: HttpUpstream,
    service: Arc<Service>,
    secrets: Arc<Secrets>,
    log: Arc<Mutex<Vec<Asked>>>,
    _server: JoinSet<()>,
}

impl Rig {
    async fn new(timeout: Duration, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(timeout, Vec::new(), Vec::new(), script).await
    }

    /// With a secret `token`, whose value is `one`, in what is configured.
    async fn with(
        timeout: Duration,
        headers: Vec<(HeaderName, SecretText)>,
        query: Vec<(String, SecretText)>,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
        let upstream = UpstreamSettings::Http(HttpSettings {
            url,
            socket: None,
            transport: crate::mcp::settings::HttpTransport::Found,
            http2_only: false,
            headers,
            query,
            tls: Files::default(),
            server_name: None,
        });
        let settings = ServiceSettings { upstream, timeout, policy: Default::default() };
        let service = Arc::new(Service::new("s", settings.clone()).unwrap());
        let metrics = Metrics::new(&opentelemetry::global::meter("test"));
        let limits = Limits { max_in_flight: 2, ..Limits::small() };
        let secrets = Secrets::new(&[("token", "one")]);
        let digests = crate::mcp::digest::Digests::new(secrets.clone(), None);
        let recorder = Arc::new(Recorder { audit: Audit::new(), metrics, shipping: shipping(), digests });
        let around = Surroundings {
            service: service.clone(),
            secrets: secrets.clone(),
            control: secrets.clone(),
            limits,
            recorder,
            leaks: crate::mcp::testing::leaks(),
            answers: crate::mcp::testing::answers(),
            state: crate::mcp::testing::no_state(),
            local: crate::mcp::testing::no_local(),
        };
        let log = Arc::default();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::new(script), Arc::clone(&log)));
        let mut upstream = HttpUpstream::new(around, Arc::new(settings));
        upstream.begin(Inheritance::default());
        Self { upstream, service, secrets, log, _server: server }
    }

    fn send(&mut self, message: &Value) {
        let line = Bytes::from(message.to_string());
        let outgoing = match parse(&line).unwrap() {
            Message::Request(request) => Outgoing::request(&request, line.clone(), true, None, None),
            Message::Notification(notification) => Outgoing::notification(&notification, line.clone(), true),
            Message::Answer(_) => Outgoing::answer(line.clone()),
        };
        self.upstream.send(outgoing);
    }

    fn request(&mut self, id: u32, method: &str) {
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method }));
    }

    fn notify(&mut self, method: &str) {
        self.send(&json!({ "jsonrpc": "2.0", "method": method }));
    }

    /// The next message of the server, or what was lost and why.
    async fn next(&mut self) -> Value {
        loop {
            let event = tokio::time::timeout(Duration::from_secs(20), self.upstream.event(true));
            match event.await.expect("nothing happened") {
                Event::Lines => {
                    let Some(line) = self.upstream.next_line() else { continue };
                    if let Ok(Message::Answer(answer)) = parse(&line) {
                        let result = match answer.body {
                            AnswerBody::Result { raw, .. } => Some(raw.raw()),
                            AnswerBody::Error { .. } => None,
                        };
                        self.upstream.answered(&answer.key.unwrap(), result);
                    }
                    return serde_json::from_slice(&line).unwrap();
                }
                Event::Older => return json!({ "older": true }),
                Event::Lost { keys, failure, .. } => {
                    return json!({ "lost": format!("{keys:?}"), "kind": failure.kind, "why": failure.message });
                }
            }
        }
    }

    /// Opens a session: `initialize` is answered.
    async fn greet(&mut self) {
        self.request(0, "initialize");
        assert_eq!(self.next().await["result"]["protocolVersion"], "2025-06-18");
    }

    fn asked(&self, method: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|asked| asked.method() == method).count()
    }
}

const PATIENT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_server_that_forgets_each_session_is_a_failure_and_is_not_asked_again_and_again() {
    let mut rig = Rig::new(PATIENT, |asked| match asked.method() {
        "initialize" => asked.initialized("s"),
        _ => status("404 Not Found", ""),
    })
    .await;
    rig.greet().await;
    rig.notify("notifications/initialized");
    assert_eq!(rig.next().await["why"], format!("service s: {}", reports::FORGOTTEN));
    assert_eq!(rig.asked("initialize"), 2);
    assert!(rig.service.failure().is_some_and(|(_, why)| why.contains("forgot")), "status says it");
    for (id, openings) in [(1, 3), (2, 4)] {
        assert!(rig.upstream.pause.is_some(), "the next opening waits");
        rig.request(id, "ping");
        assert_eq!(rig.next().await["lost"], format!("[Integer({id})]"));
        assert_eq!(rig.asked("initialize"), openings, "one for each message");
    }
}

#[tokio::test]
async fn a_notification_that_is_never_taken_holds_the_session_up_for_the_timeout_only() {
    let mut rig = Rig::new(Duration::from_millis(200), |asked| match asked.method() {
        "initialize" => asked.initialized("s"),
        "ping" => asked.result(&json!({}), "s"),
        _ => Reply::Never,
    })
    .await;
    rig.greet().await;
    rig.notify("notifications/roots/list_changed");
    rig.request(1, "ping");
    assert_eq!(rig.next().await["kind"], "timeout");
    assert_eq!(rig.next().await["id"], 1);
}

#[tokio::test]
async fn an_opening_that_is_never_answered_fails() {
    let forgotten = AtomicBool::new(false);
    let mut rig = Rig::new(Duration::from_millis(200), move |asked| match asked.method() {
        "initialize" if !forgotten.load(Ordering::Relaxed) => asked.initialized("s"),
        "ping" => {
            forgotten.store(true, Ordering::Relaxed);
            status("404 Not Found", "")
        }
        _ => Reply::Never,
    })
    .await;
    rig.greet().await;
    rig.request(1, "ping");
    let lost = rig.next().await;
    assert_eq!((&lost["lost"], &lost["kind"]), (&json!("[Integer(1)]"), &json!("timeout")));
}

#[tokio::test]
async fn an_error_of_the_request_itself_is_passed_on_whatever_it_says_of_sessions() {
    let error = json!({ "code": -32602, "message": "Session not found: argument session_name is required" });
    let other = json!({ "code": -32022, "message": "no", "data": { "supported": ["2025-11-25"] } });
    let (own, nameless) = (error.clone(), other.clone());
    let mut rig = Rig::new(PATIENT, move |asked| match asked.method() {
        "initialize" => asked.initialized("s"),
        "vendor/nameless" => {
            status("400 Bad Request", &json!({ "jsonrpc": "2.0", "id": null, "error": nameless }).to_string())
        }
        "vendor/unknown" => {
            let error = json!({ "code": -32601, "message": "no such method" });
            let body = json!({ "jsonrpc": "2.0", "id": asked.body["id"], "error": error });
            status("404 Not Found", &body.to_string())
        }
        _ => status("400 Bad Request", &json!({ "jsonrpc": "2.0", "id": asked.body["id"], "error": own }).to_string()),
    })
    .await;
    rig.greet().await;
    rig.request(1, "tools/call");
    assert_eq!(rig.next().await, json!({ "jsonrpc": "2.0", "id": 1, "error": error }));
    rig.request(2, "vendor/nameless");
    assert_eq!(rig.next().await, json!({ "jsonrpc": "2.0", "id": 2, "error": other }));
    rig.request(3, "vendor/unknown");
    assert_eq!(rig.next().await["error"]["code"], -32601);
    assert_eq!(rig.asked("initialize"), 1, "the session is still the first");
}

#[tokio::test]
async fn a_new_session_may_use_the_event_ids_of_the_old_one() {
    let sessions = Mutex::new(VecDeque::from(["one", "two", "three"]));
    let mut rig = Rig::new(PATIENT, move |asked| match (asked.method(), asked.session()) {
        ("initialize", _) => asked.initialized(sessions.lock().unwrap().pop_front().unwrap()),
        ("GET", session) => {
            let message = json!({ "jsonrpc": "2.0", "method": format!("notifications/{session}") });
            Reply::Events(format!("id: 1\ndata: {message}\n\n"), true)
        }
        ("ping", "one") => status(
            "400 Bad Request",
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Session not found"},"id":null}"#,
        ),
        ("ping", session) => asked.result(&json!({}), session),
        _ => status("202 Accepted", ""),
    })
    .await;
    rig.greet().await;
    rig.notify("notifications/initialized");
    assert_eq!(rig.next().await["method"], "notifications/one");
    rig.request(1, "ping");
    let mut both = [rig.next().await, rig.next().await];
    both.sort_by_key(|message| message["id"].is_null());
    assert_eq!((&both[0]["id"], &both[1]["method"]), (&json!(1), &json!("notifications/two")));
    rig.greet().await;
    rig.notify("notifications/initialized");
    assert_eq!(rig.next().await["method"], "notifications/three", "also when the client itself begins anew");
}

#[tokio::test]
async fn an_event_that_was_cut_off_is_sent_again() {
    let mut rig = Rig::new(PATIENT, |asked| {
        let answer = json!({ "jsonrpc": "2.0", "id": 1, "result": {} });
        match (asked.method(), asked.header("last-event-id")) {
            ("GET", Some("a")) => Reply::Events(format!("id: b\ndata: {answer}\n\n"), false),
            ("GET", _) => status("404 Not Found", ""),
            _ => Reply::Events(format!("retry: 1\nid: a\ndata\n\nid: b\ndata: {answer}\n"), false),
        }
    })
    .await;
    rig.request(1, "tools/call");
    assert_eq!(rig.next().await["id"], 1);
}

#[tokio::test]
async fn answers_of_the_client_that_nobody_takes_are_bounded_in_number_and_time() {
    let mut rig = Rig::new(Duration::from_millis(100), |_| Reply::Never).await;
    for id in 0..6 {
        rig.send(&json!({ "jsonrpc": "2.0", "id": id, "result": {} }));
    }
    assert_eq!((rig.upstream.running.len(), rig.upstream.asides.len()), (2, 4));
    assert!(!rig.upstream.has_room(), "the client is not read on");
    for _ in 0..6 {
        assert_eq!(rig.next().await["kind"], "timeout");
    }
    assert!(rig.upstream.has_room());
    assert_eq!((rig.upstream.running.len(), rig.upstream.queued_bytes), (0, 0));
}

fn token() -> SecretText {
    SecretText::new(vec![Part::Reference(SecretRef::parse("token").unwrap())])
}

fn header() -> Vec<(HeaderName, SecretText)> {
    vec![(HeaderName::from_static("x-key"), token())]
}

/// Takes the value `two` alone.
fn guarded(code: &'static str) -> impl Fn(&Asked) -> Reply + Send + Sync {
    move |asked| match asked.header("x-key") {
        Some("two") => asked.result(&json!({ "ok": true }), ""),
        _ => {
            let challenge = "www-authenticate: bearer resource_metadata=\"https://login.example\"\r\n";
            let body = json!({ "jsonrpc": "2.0", "id": asked.body["id"], "error": { "code": 1, "message": "log in at login.example" } });
            Reply::Text(format!("HTTP/1.1 {code}\r\n{challenge}"), "application/json", body.to_string())
        }
    }
}

#[tokio::test]
async fn a_refused_credential_is_fetched_once_for_all_and_the_requests_are_made_again() {
    let mut rig = Rig::with(PATIENT, header(), Vec::new(), guarded("401 Unauthorized")).await;
    rig.secrets.renew("token", "two");
    for id in 1..=5 {
        rig.request(id, "tools/call");
    }
    let mut answered: Vec<u64> = Vec::new();
    for _ in 1..=5 {
        let answer = rig.next().await;
        assert_eq!(answer["result"]["ok"], true, "{answer}");
        answered.push(answer["id"].as_u64().unwrap());
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3, 4, 5]);
    assert_eq!(rig.secrets.refreshed(), 1);
}

#[tokio::test]
async fn a_credential_that_stays_refused_is_an_error_in_our_words_and_is_not_asked_for_again_and_again() {
    let mut rig = Rig::with(PATIENT, header(), Vec::new(), guarded("401 Unauthorized")).await;
    for id in 1..=3 {
        rig.request(id, "tools/list");
        let lost = rig.next().await;
        assert_eq!((&lost["lost"], &lost["kind"]), (&json!(format!("[Integer({id})]")), &json!("http_401")));
        let why = lost["why"].as_str().unwrap();
        assert!(why.ends_with("and no others are to be had now") && !why.contains("login.example"), "{why}");
    }
    assert_eq!((rig.secrets.refreshed(), rig.asked("tools/list")), (1, 3));
}

#[tokio::test]
async fn after_a_403_only_what_is_safe_is_made_again() {
    let mut rig = Rig::with(PATIENT, header(), Vec::new(), guarded("403 Forbidden")).await;
    rig.secrets.renew("token", "two");
    rig.request(1, "tools/call");
    let lost = rig.next().await;
    assert!(lost["why"].as_str().unwrap().ends_with("not be safe to do it twice"), "{lost}");
    assert_eq!(rig.asked("tools/call"), 1);
    rig.request(2, "tools/call");
    assert_eq!(rig.next().await["result"]["ok"], true, "the new one is used");
    rig.secrets.set("token", "three");
    rig.request(3, "tools/list");
    rig.secrets.set("token", "two");
    assert_eq!(rig.next().await["result"]["ok"], true, "another version is there already");
    assert_eq!(rig.secrets.refreshed(), 1);
}

#[tokio::test]
async fn a_credential_in_the_query_is_put_on_each_url_and_in_no_message() {
    let query = vec![("key".to_owned(), token())];
    let mut rig = Rig::with(PATIENT, Vec::new(), query, |asked| match asked.headers.lines().next() {
        Some("post /mcp?key=one http/1.1") => asked.result(&json!({}), ""),
        _ => status("500 Internal Server Error", ""),
    })
    .await;
    rig.request(1, "ping");
    assert_eq!(rig.next().await["id"], 1);
    rig.secrets.set("token", "a b&c");
    rig.request(2, "ping");
    let lost = rig.next().await;
    assert_eq!(lost["kind"], "http_5xx");
    assert!(rig.log.lock().unwrap().last().unwrap().headers.starts_with("post /mcp?key=a+b%26c http/1.1"));
    assert!(!lost.to_string().contains("b&c") && !lost.to_string().contains("b%26c"));
}

#[tokio::test]
async fn a_connection_that_breaks_makes_one_more_try_for_what_is_safe_and_none_for_the_rest() {
    let mut rig = Rig::new(PATIENT, |_| Reply::Text(String::new(), "", String::new())).await;
    for (id, method, tries) in [(1, "tools/list", 2), (2, "tools/call", 1)] {
        rig.request(id, method);
        assert_eq!(rig.next().await["lost"], format!("[Integer({id})]"));
        assert_eq!(rig.asked(method), tries, "{method}");
    }
}

/// How long after the wish for the stream a request came that was sent right after it.
async fn waited(stream: impl Fn() -> Reply + Send + Sync + 'static) -> (Duration, Rig) {
    let wished = Mutex::new(None);
    let mut rig = Rig::new(PATIENT, move |asked| match asked.method() {
        "initialize" => asked.initialized("s"),
        "GET" => {
            *wished.lock().unwrap() = Some(Instant::now());
            stream()
        }
        "ping" => {
            let since = wished.lock().unwrap().expect("there was no wish").elapsed();
            asked.result(&json!({ "since": since.as_micros() as u64 }), "s")
        }
        _ => status("202 Accepted", ""),
    })
    .await;
    rig.greet().await;
    rig.notify("notifications/initialized");
    rig.request(1, "ping");
    let since = rig.next().await["result"]["since"].as_u64().unwrap();
    (Duration::from_micros(since), rig)
}

#[tokio::test]
async fn nothing_is_asked_before_the_servers_stream_stands_or_is_refused() {
    let pause = Duration::from_millis(150);
    let later = move |reply: fn() -> Reply| move || Reply::After(pause, Box::new(reply()));
    let (stands, rig) = waited(later(|| Reply::Events(": hello\n\n".into(), true))).await;
    assert!(stands >= pause && rig.upstream.stream.is_some(), "{stands:?}");
    let (refused, rig) = waited(later(|| status("405 Method Not Allowed", ""))).await;
    assert!(refused >= pause && rig.upstream.stream.is_none(), "{refused:?}");
    let busy = std::sync::atomic::AtomicU32::new(3);
    let (stands, rig) = waited(move || match busy.fetch_sub(1, Ordering::Relaxed) {
        0 => Reply::Events(": hello\n\n".into(), true),
        _ => status("409 Conflict", ""),
    })
    .await;
    // The time is that since the last wish.
    assert!(rig.asked("GET") == 4 && rig.upstream.stream.is_some(), "{stands:?}");
    let (failed, _) = waited(later(|| status("503 Service Unavailable", ""))).await;
    assert!(failed >= pause, "{failed:?}");
}

#[tokio::test]
async fn a_stream_that_is_not_answered_holds_one_session_up_for_a_while_and_no_further_ones() {
    let (late, mut rig) = waited(|| Reply::Never).await;
    assert!(late >= STREAM_PATIENCE, "{late:?}");
    assert!(rig.service.is_late_with_streams());
    rig.greet().await;
    rig.notify("notifications/initialized");
    while rig.asked("GET") < 2 {
        tokio::select! {
            _ = rig.upstream.event(true) => {}
            () = sleep(Duration::from_millis(1)) => {}
        }
    }
    assert!(rig.upstream.stream.is_some() && rig.upstream.stream_awaited.is_none());
}

#[tokio::test]
async fn a_tool_that_nobody_has_listed_gets_its_headers_once_the_server_misses_them() {
    let refused = |asked: &Asked, code: i32| {
        let error = json!({ "code": code, "message": "Mcp-Param-Region is missing" });
        let body = json!({ "jsonrpc": "2.0", "id": asked.body["id"], "error": error });
        status("400 Bad Request", &body.to_string())
    };
    let mut rig = Rig::new(PATIENT, move |asked| {
        let name = asked.body["params"]["name"].as_str().unwrap_or_default();
        match (asked.method(), asked.header("mcp-param-region")) {
            ("tools/list", _) if asked.body["params"]["cursor"].is_null() => {
                let page = json!({ "tools": [{ "name": "plain", "inputSchema": {} }], "nextCursor": "2" });
                let body = json!({ "jsonrpc": "2.0", "id": asked.body["id"], "result": page });
                Reply::Events(format!("data: {body}\n\n"), true)
            }
            ("tools/list", _) => {
                let region = json!({ "type": "string", "x-mcp-header": "Region" });
                let schema = json!({ "type": "object", "properties": { "region": region } });
                Reply::After(
                    Duration::from_millis(50),
                    Box::new(asked.result(&json!({ "tools": [{ "name": "store", "inputSchema": schema }] }), "")),
                )
            }
            ("tools/call", Some(region)) => asked.result(&json!({ "region": region }), ""),
            // What the server says of a tool that the list does not mend is passed on.
            ("tools/call", None) => refused(asked, if name == "odd" { -32602 } else { -32020 }),
            _ => status("202 Accepted", ""),
        }
    })
    .await;
    let call = |id: u32, tool: &str| {
        let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28", "progressToken": 7 });
        let params = json!({ "name": tool, "arguments": { "region": "north" }, "_meta": meta });
        json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params })
    };
    for (id, tool) in [(1, "store"), (2, "store"), (3, "plain"), (4, "odd")] {
        rig.send(&call(id, tool));
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(rig.next().await);
    }
    answers.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!((&answers[0]["result"]["region"], &answers[1]["result"]["region"]), (&json!("north"), &json!("north")));
    assert_eq!((&answers[2]["error"]["code"], &answers[3]["error"]["code"]), (&json!(-32020), &json!(-32602)));
    assert_eq!(rig.asked("tools/list"), 2, "two pages, once for all of them");
    let log = rig.log.lock().unwrap();
    let list = log.iter().find(|asked| asked.method() == "tools/list").unwrap();
    assert_eq!((list.header("mcp-method"), list.header("mcp-name")), (Some("tools/list"), None));
    assert!(list.body["params"]["_meta"]["progressToken"].is_null());
    assert_eq!(list.body["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
}
