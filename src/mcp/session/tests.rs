//! Sessions with real children: small shell scripts that read and write JSON lines.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::*;
use crate::mcp::call::Recorder;
use crate::mcp::digest::Digests;
use crate::mcp::metrics::Metrics;
use crate::mcp::service::Service;
use crate::mcp::settings::policy::PolicySettings;
use crate::mcp::settings::{Limits, OnRotate, StdioSettings, UpstreamSettings};
use crate::mcp::testing::{Audit, Secrets, shipping};
use crate::secret::{Part, SecretRef, SecretText};

/// Answers `initialize` and `whoami` with its pid and its token, `die` by dying, `mute` not at all, and anything else with the line itself.
const SERVER: &str = r#"
while read -r line; do
  id=$(printf %s "$line" | sed 's/.*"id":\("[^"]*"\|[0-9]*\).*/\1/')
  case "$line" in
    *'"initialize"'*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{}}}";;
    *whoami*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"pid\":$$,\"token\":\"$TOKEN\",\"told\":\"$told\"}}";;
    *'"initialized"'*|*/initialized*) told=yes;;
    *die*) exit 7;;
    *mute*|*cancelled*) ;;
    *) printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$line";;
  esac
done"#;

struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    session: JoinSet<()>,
    secrets: Arc<Secrets>,
    audit: Arc<Audit>,
    service: Arc<Service>,
}

impl Client {
    fn connect(command: &str, timeout: Duration) -> Self {
        let reference = Part::Reference(SecretRef::parse("token").unwrap());
        let upstream = UpstreamSettings::Stdio(StdioSettings {
            argv: ["sh", "-c", command].map(str::to_owned).to_vec(),
            env: BTreeMap::from([("TOKEN".to_owned(), SecretText::new(vec![reference]))]),
            working_directory: None,
            identity: None,
            on_rotate: OnRotate::Restart,
            files: Vec::new(),
            limits: Default::default(),
        });
        let service = Arc::new(
            Service::new("s", ServiceSettings { upstream, timeout, policy: PolicySettings::default() }).unwrap(),
        );
        let (secrets, audit) = (Secrets::new(&[("token", "one")]), Audit::new());
        let metrics = Metrics::new(&opentelemetry::global::meter("test"));
        let limits = Limits { max_in_flight: 3, ..Limits::small() };
        let digests = Digests::new(secrets.clone(), None);
        let recorder = Arc::new(Recorder { audit: audit.clone(), metrics, shipping: shipping(), digests });
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
        let (near, far) = UnixStream::pair().unwrap();
        let (reader, writer) = far.into_split();
        let peer = Peer { uid: Some(1), pid: None, address: None };
        let mut session = JoinSet::new();
        session.spawn(Session::new(around, Lines::new(reader, writer, 1 << 20), peer).run());
        let (reader, writer) = near.into_split();
        Self { reader: BufReader::new(reader), writer, session, secrets, audit, service }
    }

    async fn send(&mut self, line: &str) {
        self.writer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn receive(&mut self) -> String {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("no answer came").unwrap();
        line.trim_end().to_owned()
    }

    async fn ask(&mut self, id: u32, method: &str) -> Value {
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method }).to_string()).await;
        serde_json::from_str(&self.receive().await).unwrap()
    }

    async fn greet(&mut self) {
        self.ask(0, "initialize").await;
        self.send(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
    }

    async fn end(mut self) {
        drop((self.reader, self.writer));
        while self.session.join_next().await.is_some() {}
        assert_eq!((self.service.sessions(), self.service.children().len()), (0, 0));
    }
}

fn patient(command: &str) -> Client {
    Client::connect(command, Duration::from_secs(15))
}

#[tokio::test]
async fn bytes_pass_unchanged_in_both_directions() {
    let mut client = patient(SERVER);
    let line = r#"{ "params" : {"big":123456789012345678901234567890, "x":1.0e2} ,"id":"a/b", "method":"vendor/any","jsonrpc":"2.0","extra":[] }"#;
    client.send(line).await;
    assert_eq!(client.receive().await, format!(r#"{{"jsonrpc":"2.0","id":"a/b","result":{line}}}"#));
    assert_eq!(client.audit.column("mcp.method.name"), ["vendor/any"]);
    assert_eq!(client.audit.column("mcpeg.secret.versions"), ["token@1"]);
    client.end().await;
}

#[tokio::test]
async fn a_batch_is_taken_apart_in_a_session_of_the_version_that_has_them() {
    let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"vendor/a"}, {"jsonrpc":"2.0","method":"vendor/told"},
        {"jsonrpc":"2.0", "id":2,"method":"vendor/b"}]"#
        .replace('\n', "");
    let mut client = patient(&SERVER.replace("2025-06-18", "2025-03-26"));
    client.greet().await;
    client.send(&batch).await;
    for (id, line) in [
        (1, r#"{"jsonrpc":"2.0","id":1,"method":"vendor/a"}"#),
        (2, r#"{"jsonrpc":"2.0", "id":2,"method":"vendor/b"}"#),
    ] {
        assert_eq!(client.receive().await, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{line}}}"#));
    }
    assert_eq!(client.audit.column("mcp.method.name"), ["initialize", "vendor/a", "vendor/b"]);
    client.end().await;
    let mut client = patient(SERVER);
    client.greet().await;
    client.send(&batch).await;
    assert!(client.receive().await.contains("-32600"));
    client.end().await;
}

#[tokio::test]
async fn a_crash_answers_what_is_in_flight_and_the_session_goes_on_with_a_new_child() {
    let mut client = patient(SERVER);
    client.greet().await;
    let before = client.ask(1, "whoami").await;
    let lost = client.ask(2, "die").await;
    assert_eq!(lost["error"]["message"], "service s: the server died: it ended with status 7");
    assert_eq!(lost["error"]["data"]["service"], "s");
    let after = client.ask(3, "whoami").await;
    assert_ne!(before["result"]["pid"], after["result"]["pid"]);
    assert_eq!(after["result"]["told"], "yes", "the new child was told the session");
    assert_eq!(client.audit.column("error.type"), ["-", "-", "upstream_died", "-"]);
    assert_eq!(client.service.restarts(), 1);
    client.end().await;
}

#[tokio::test]
async fn a_new_secret_reaches_a_new_child_and_no_request_fails() {
    let mut client = patient(SERVER);
    client.greet().await;
    assert_eq!(client.ask(1, "whoami").await["result"]["token"], "one");
    client.secrets.set("token", "two");
    client.service.rotated();
    for id in 2..10 {
        let answer = client.ask(id, "whoami").await;
        assert!(answer["error"].is_null(), "{answer}");
    }
    let answer = client.ask(10, "whoami").await;
    assert_eq!((&answer["result"]["token"], &answer["result"]["told"]), (&json!("two"), &json!("yes")));
    assert_eq!(client.audit.column("mcpeg.secret.versions").last().unwrap(), "token@2");
    client.end().await;
}

#[tokio::test]
async fn no_answer_in_time_is_an_error_and_a_cancelled_request_has_no_answer() {
    let mut client = Client::connect(SERVER, Duration::from_millis(300));
    client.greet().await;
    assert_eq!(client.ask(1, "mute").await["error"]["code"], -32011);
    client.send(r#"{"jsonrpc":"2.0","id":2,"method":"mute"}"#).await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#).await;
    assert_eq!(client.ask(3, "whoami").await["id"], 3);
    assert_eq!(client.audit.column("error.type"), ["-", "timeout", "cancelled", "-"]);
    client.end().await;
}

#[tokio::test]
async fn what_cannot_be_audited_is_not_answered() {
    let mut client = patient(SERVER);
    client.audit.refuses.store(true, Ordering::Relaxed);
    let withheld = client.ask(1, "whoami").await;
    assert_eq!((withheld["error"]["code"].as_i64(), withheld["result"].is_null()), (Some(-32013), true));
    client.end().await;
}

#[tokio::test]
async fn what_could_not_be_audited_does_not_reach_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let noting = format!(r#"tee -a {} | (:{SERVER})"#, seen.display());
    let mut client = patient(&noting);
    client.greet().await;
    client.audit.unready.store(true, Ordering::Relaxed);
    let denied = client.ask(1, "first").await;
    assert_eq!((&denied["error"]["code"], &denied["error"]["data"]["reason"]), (&json!(-32013), &json!("not_audited")));
    client.audit.unready.store(false, Ordering::Relaxed);
    assert!(client.ask(2, "second").await["result"].is_object());
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.contains("second") && !seen.contains("first"), "{seen}");
    assert_eq!(client.audit.column("error.type"), ["-", "not_audited", "-"]);
    client.end().await;
}

#[tokio::test]
async fn bounds_and_malformed_messages_are_refused_and_recorded() {
    let mut client = patient(SERVER);
    for id in 1..=3 {
        client.send(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"mute"}}"#)).await;
    }
    assert_eq!(client.ask(4, "whoami").await["error"]["code"], -32012);
    client.send(r#"{"jsonrpc":"2.0","id":5,"method":"a","method":"b"}"#).await;
    let refused: Value = serde_json::from_str(&client.receive().await).unwrap();
    assert_eq!((&refused["id"], &refused["error"]["code"]), (&json!(5), &json!(-32600)));
    assert_eq!(client.ask(1, "whoami").await["error"]["data"]["reason"], "duplicate_id");
    let audit = client.audit.clone();
    client.end().await;
    let mut kinds = audit.column("error.type");
    kinds.sort();
    assert_eq!(
        kinds,
        ["client_gone", "client_gone", "client_gone", "duplicate_id", "invalid_request", "too_many_in_flight"]
    );
}

#[tokio::test]
async fn a_child_that_cannot_live_is_no_riddle() {
    let mut client = patient("exec /nowhere/at-all");
    let died = client.ask(1, "initialize").await;
    assert!(died["error"]["message"].as_str().unwrap().contains("it ended with status 127"), "{died}");
    client.end().await;
}

#[tokio::test]
async fn after_the_clients_last_word_its_answers_still_come() {
    let mut client = patient(&format!("sleep 0.2;{SERVER}"));
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"whoami"}"#).await;
    client.writer.shutdown().await.unwrap();
    assert!(client.receive().await.contains("\"token\":\"one\""));
    assert_eq!(client.receive().await, "", "then the connection is closed");
    client.end().await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_settles_its_request_at_once_and_a_null_error_is_none() {
    let odd = r#"
while read -r line; do
  id=$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
  case "$line" in
    *text*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"error\":\"LEAK one\"}";;
    *both*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{},\"error\":{\"code\":1}}";;
    *null*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":{\"ok\":1},\"error\":null}";;
    *asks*) echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"method\":\"x\",\"params\":\"one\"}"; echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":2}";;
  esac
done"#;
    let mut client = patient(odd);
    for (id, method) in [(1, "text"), (2, "both")] {
        let answer = client.ask(id, method).await;
        assert_eq!((&answer["id"], &answer["error"]["data"]["reason"]), (&json!(id), &json!("bad_answer")), "{answer}");
        assert!(!answer.to_string().contains("LEAK"), "{answer}");
    }
    assert_eq!(client.ask(3, "null").await["result"]["ok"], 1);
    assert_eq!(client.ask(4, "asks").await["result"], 2, "a request of the server's has an id of its own");
    assert_eq!(client.audit.column("error.type"), ["bad_answer", "bad_answer", "-", "-"]);
    client.end().await;
}

#[tokio::test]
async fn a_child_that_is_slow_to_end_keeps_no_request_waiting() {
    let stubborn = format!("trap '' TERM; {SERVER}; sleep 30");
    let mut client = patient(&stubborn);
    client.greet().await;
    assert_eq!(client.ask(1, "whoami").await["result"]["token"], "one");
    for (id, value) in [(2, "two"), (3, "three")] {
        client.secrets.set("token", value);
        client.service.rotated();
        let asked = tokio::time::Instant::now();
        assert!(client.ask(id, "whoami").await["error"].is_null());
        assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
        assert!(client.service.children().len() <= 2);
    }
    let mut id = 4;
    while client.ask(id, "whoami").await["result"]["token"] != "three" {
        assert!(client.service.children().len() <= 2);
        tokio::time::sleep(Duration::from_millis(50)).await;
        id += 1;
    }
    client.end().await;
}

#[tokio::test]
async fn an_initialize_that_is_not_answered_in_time_is_not_cancelled() {
    let deaf = r#"read -r line; read -r line; id=$(printf %s "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$line"; sleep 9"#;
    let mut client = Client::connect(deaf, Duration::from_millis(500));
    assert_eq!(client.ask(1, "initialize").await["error"]["code"], -32011);
    assert_eq!(client.ask(2, "next").await["result"]["method"], "next", "nothing came between");
    client.end().await;
}

/// Asks the client before it answers.
const ASKING: &str = r#"
while read -r line; do
  case "$line" in
    *'"call"'*) echo '{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":{}}';;
    *'"result"'*) echo '{"jsonrpc":"2.0","id":1,"result":{"heard":true}}';;
  esac
done"#;

#[tokio::test]
async fn a_person_who_is_asked_has_more_time_than_a_server() {
    let timeout = Duration::from_secs(3);
    let mut client = Client::connect(ASKING, timeout);
    client.send(r#"{"jsonrpc":"2.0","id":1,"method":"call"}"#).await;
    assert!(client.receive().await.contains("elicitation/create"));
    tokio::time::sleep(timeout + Duration::from_millis(500)).await;
    client.send(r#"{"jsonrpc":"2.0","id":"q","result":{}}"#).await;
    assert_eq!(client.receive().await, r#"{"jsonrpc":"2.0","id":1,"result":{"heard":true}}"#);
    client.end().await;
}
