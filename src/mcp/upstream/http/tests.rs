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
use crate::tls::Files;

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
    let (text, stays) = match script(&asked) {
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
        Reply::Never => (String::new(), true),
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
    log: Arc<Mutex<Vec<Asked>>>,
    _server: JoinSet<()>,
}

impl Rig {
    async fn new(timeout: Duration, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
        let upstream = UpstreamSettings::Http(HttpSettings {
            url,
            socket: None,
            http2_only: false,
            headers: Vec::new(),
            tls: Files::default(),
            server_name: None,
        });
        let settings = ServiceSettings { upstream, timeout, policy: Default::default() };
        let service = Arc::new(Service::new("s", settings.clone()).unwrap());
        let metrics = Metrics::new(&opentelemetry::global::meter("test"));
        let limits = Limits { max_in_flight: 2, ..Limits::small() };
        let recorder = Arc::new(Recorder { audit: Audit::new(), metrics, shipping: shipping() });
        let around = Surroundings {
            service: service.clone(),
            secrets: Secrets::new(&[]),
            limits,
            recorder,
            leaks: crate::mcp::testing::leaks(),
            answers: crate::mcp::testing::answers(),
        };
        let log = Arc::default();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::new(script), Arc::clone(&log)));
        let mut upstream = HttpUpstream::new(around, Arc::new(settings));
        upstream.begin(Inheritance::default());
        Self { upstream, service, log, _server: server }
    }

    fn send(&mut self, message: &Value) {
        let line = Bytes::from(message.to_string());
        let outgoing = match parse(&line).unwrap() {
            Message::Request(request) => Outgoing::request(&request, line.clone(), true, None),
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
