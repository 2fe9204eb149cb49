//! The Vault source against a small server that answers as Vault does, and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry::metrics::MeterProvider as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::context::Context;
use super::super::metrics::Metrics;
use super::super::settings::{Credential, VaultAuth, VaultSettings};
use super::super::tests::Records;
use super::*;
use crate::secret::SecretText;

#[derive(Default)]
struct Vault {
    valid: Mutex<BTreeSet<String>>,
    answers: Mutex<BTreeMap<String, (u16, String)>>,
    logins: AtomicUsize,
    lookups: AtomicUsize,
    requests: AtomicUsize,
    connections: AtomicUsize,
    open: AtomicUsize,
    refuse_lookups: Mutex<bool>,
}

struct Bench {
    vault: Arc<Vault>,
    source: VaultSource,
    audit: Arc<Records>,
    address: String,
    _server: JoinSet<()>,
}

impl Vault {
    fn answer(&self, request: &Request<Incoming>) -> (u16, String) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let token = request.headers().get("x-vault-token").map(|token| token.to_str().unwrap().to_owned());
        let is_valid = token.is_some_and(|token| self.valid.lock().unwrap().contains(&token));
        let denied = (403, r#"{"errors":["permission denied"]}"#.to_owned());
        match request.uri().path() {
            path @ ("/v1/sys/health" | "/v1/sys/leader") => {
                self.answers.lock().unwrap().get(path).cloned().unwrap_or((200, "{}".to_owned()))
            }
            "/v1/auth/approle/login" => {
                let token = format!("token-{}", self.logins.fetch_add(1, Ordering::SeqCst) + 1);
                self.valid.lock().unwrap().insert(token.clone());
                (200, envelope(&format!(r#""data":null,"auth":{}"#, auth(&token))))
            }
            "/v1/auth/token/lookup-self" => {
                self.lookups.fetch_add(1, Ordering::SeqCst);
                if is_valid && !*self.refuse_lookups.lock().unwrap() {
                    (200, envelope(&format!(r#""data":{LOOKUP}"#)))
                } else {
                    denied
                }
            }
            _ if !is_valid => denied,
            path => self.answers.lock().unwrap().get(path).cloned().unwrap_or((404, r#"{"errors":[]}"#.to_owned())),
        }
    }

    fn set(&self, path: &str, status: u16, body: impl Into<String>) {
        self.answers.lock().unwrap().insert(format!("/v1/{path}"), (status, body.into()));
    }
}

fn envelope(rest: &str) -> String {
    format!(
        r#"{{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,"wrap_info":null,"warnings":null,{rest}}}"#
    )
}

fn auth(token: &str) -> String {
    format!(
        r#"{{"client_token":"{token}","accessor":"a","policies":[],"token_policies":[],"metadata":null,
        "lease_duration":3600,"renewable":true,"entity_id":"","token_type":"service","orphan":true}}"#
    )
}

const LOOKUP: &str = r#"{"accessor":"a","creation_time":1,"creation_ttl":3600,"display_name":"d","entity_id":"",
    "expire_time":null,"explicit_max_ttl":0,"id":"i","meta":null,"num_uses":0,"orphan":true,"path":"p","policies":[],
    "renewable":true,"ttl":3000}"#;

fn kv(value: &str) -> String {
    envelope(&format!(r#""data":{{"data":{{"key":"{value}"}},"metadata":{{"version":4,"destroyed":false}}}}"#))
}

impl Bench {
    async fn start() -> Self {
        let vault = Arc::new(Vault::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        let serving = vault.clone();
        server.spawn(async move { serve(listener, serving).await });
        let audit = Arc::new(Records::default());
        let source = VaultSource::build("corp", &settings(&address), context(&audit)).unwrap();
        Self { vault, source, audit, address, _server: server }
    }

    async fn error(&self, path: &str) -> FetchError {
        self.source.fetch(path).await.map(drop).unwrap_err()
    }
}

async fn serve(listener: TcpListener, vault: Arc<Vault>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        vault.connections.fetch_add(1, Ordering::SeqCst);
        let vault = vault.clone();
        connections.spawn(async move {
            vault.open.fetch_add(1, Ordering::SeqCst);
            let answer = service_fn(|request| {
                let (status, body) = vault.answer(&request);
                let mut response = Response::builder().status(status);
                if status == 429 {
                    response = response.header("retry-after", "7");
                }
                if status == 307 {
                    response = response.header("location", "http://127.0.0.1:9/elsewhere");
                }
                std::future::ready(Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap()))
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            vault.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn settings(address: &str) -> VaultSettings {
    VaultSettings {
        address: address.parse().unwrap(),
        namespace: None,
        auth: VaultAuth::AppRole {
            mount: "approle".to_owned(),
            role_id: "role".to_owned(),
            secret_id: Credential::Inline(SecretText::literal("secret-id")),
            wrapped: false,
        },
        tls: crate::tls::Files::default(),
        server_name: None,
        headers: Vec::new(),
        timeout: Duration::from_secs(5),
        agents: 1,
    }
}

fn context(audit: &Arc<Records>) -> Arc<Context> {
    let meter = opentelemetry_sdk::metrics::SdkMeterProvider::builder().build().meter("test");
    Arc::new(Context::new(audit.clone(), Metrics::new(&meter)))
}

#[tokio::test]
async fn a_secret_is_read_with_one_login_over_two_connections_that_are_closed_soon() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/a", 200, kv("one"));
    let reads = (0..20).map(|_| bench.source.fetch("secret/data/a"));
    for fetched in futures_util::future::join_all(reads).await {
        let fetched = fetched.unwrap();
        assert_eq!(fetched.fields["key"].expose(), b"one");
        assert_eq!(fetched.provider_version.as_deref(), Some("4"));
    }
    assert_eq!(bench.vault.logins.load(Ordering::SeqCst), 1);
    assert!(bench.vault.connections.load(Ordering::SeqCst) <= 3, "{}", bench.vault.connections.load(Ordering::SeqCst));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    while bench.vault.open.load(Ordering::SeqCst) > 0 {
        assert!(tokio::time::Instant::now() < deadline, "a connection is kept open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_busy_connection_is_closed_too() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/a", 200, kv("one"));
    let started = tokio::time::Instant::now();
    while started.elapsed() < Duration::from_millis(1600) {
        bench.source.fetch("secret/data/a").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bench.vault.connections.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn a_dead_token_is_replaced_at_once_by_one_login() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/a", 200, kv("one"));
    bench.source.fetch("secret/data/a").await.unwrap();
    bench.vault.valid.lock().unwrap().clear();
    let reads = (0..5).map(|_| bench.source.fetch("secret/data/a"));
    for fetched in futures_util::future::join_all(reads).await {
        fetched.unwrap();
    }
    assert_eq!(bench.vault.logins.load(Ordering::SeqCst), 2);
    assert_eq!(bench.audit.names(), ["provider.login", "provider.login"]);
}

#[tokio::test]
async fn a_denied_path_is_not_taken_for_a_dead_token() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/a", 200, kv("one"));
    bench.vault.set("secret/data/b", 403, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#);
    for _ in 0..3 {
        let error = bench.error("secret/data/b").await;
        assert_eq!(error.kind, FailureKind::Denied);
        let words = "denied secret/data/b (1 error occurred: * permission denied)";
        assert_eq!(error.message, format!("the server at {} {words}", bench.address));
    }
    bench.source.fetch("secret/data/a").await.unwrap();
    assert_eq!(bench.vault.logins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_no_token_may_look_itself_up_a_denied_path_costs_one_login_and_no_more() {
    let bench = Bench::start().await;
    *bench.vault.refuse_lookups.lock().unwrap() = true;
    bench.vault.set("secret/data/b", 403, r#"{"errors":["permission denied"]}"#);
    for _ in 0..5 {
        assert_eq!(bench.error("secret/data/b").await.kind, FailureKind::Denied);
    }
    assert_eq!(bench.vault.logins.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn failures_are_put_into_words() {
    let bench = Bench::start().await;
    let server = format!("the server at {}", bench.address);
    let cases = [
        (404, r#"{"errors":[]}"#, FailureKind::NotFound, "has nothing at p"),
        (
            404,
            r#"{"data":{"data":null,"metadata":{"version":2}}}"#,
            FailureKind::NotFound,
            "has nothing at p (version 2 was deleted)",
        ),
        (503, r#"{"errors":["Vault is sealed"]}"#, FailureKind::Sealed, "is sealed"),
        (503, "<html>bad gateway hunter2</html>", FailureKind::Unreachable, "is not there (status 503)"),
        (
            500,
            r#"{"errors":["local node not active but active cluster node not found"]}"#,
            FailureKind::Standby,
            "is a standby and there is no active node (local node not active but active cluster node not found)",
        ),
        (
            500,
            r#"{"errors":["the database is down"]}"#,
            FailureKind::ServerError,
            "failed at p with status 500 (the database is down)",
        ),
        (
            307,
            "",
            FailureKind::Standby,
            "is a standby and points to another node, which is not followed; use the active node's address",
        ),
    ];
    for (status, body, kind, words) in cases {
        bench.vault.set("p", status, body);
        let error = bench.error("p").await;
        assert_eq!((error.kind, error.message), (kind, format!("{server} {words}")), "{status} {body}");
    }
    bench.vault.set("p", 200, "hunter2");
    assert!(bench.error("p").await.message.contains("something that is not the expected JSON"));
    bench.vault.set("p", 200, "x".repeat(1024 * 1024 + 1));
    assert!(bench.error("p").await.message.ends_with("answered for p with more than 1048576 bytes"));
    bench.source.probe().await.unwrap();
}

#[tokio::test]
async fn a_probe_tells_a_server_that_would_serve() {
    let bench = Bench::start().await;
    let leader = |address: &str| format!(r#"{{"ha_enabled":true,"is_self":false,"leader_address":"{address}"}}"#);
    let cases = [
        (501, "{}", String::new(), Some(FailureKind::Sealed)),
        (503, r#"{"initialized":true,"sealed":true,"standby":true}"#, String::new(), Some(FailureKind::Sealed)),
        (503, "<html>no backend</html>", String::new(), Some(FailureKind::Unreachable)),
        (500, "{}", String::new(), Some(FailureKind::Unreachable)),
        (502, "", String::new(), Some(FailureKind::Unreachable)),
        (429, r#"{"sealed":false,"standby":true}"#, leader(""), Some(FailureKind::Standby)),
        (429, r#"{"sealed":false,"standby":true}"#, leader("https://other:8200"), None),
        (473, "{}", String::new(), None),
        (404, "a gateway without it", String::new(), None),
        (200, r#"{"sealed":false,"standby":false}"#, String::new(), None),
    ];
    for (status, health, leader, expected) in cases {
        bench.vault.set("sys/health", status, health);
        bench.vault.set("sys/leader", 200, leader);
        let found = bench.source.probe().await.err().map(|error| error.kind);
        assert_eq!(found, expected, "{status} {health}");
        assert!(found.is_none_or(FailureKind::is_outage));
    }
}

#[tokio::test]
async fn a_failure_is_the_servers_where_its_health_says_so_and_that_is_asked_once_for_a_path() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/a", 200, kv("one"));
    bench.vault.set("broken", 500, r#"{"errors":["the database is down"]}"#);
    bench.vault.set("sys/health", 500, "{}");
    assert_eq!(bench.error("broken").await.kind, FailureKind::Unreachable);
    bench.vault.set("sys/health", 200, "{}");
    bench.source.fetch("secret/data/a").await.unwrap();
    let before = bench.vault.requests.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(bench.error("broken").await.kind, FailureKind::ServerError);
    }
    assert_eq!(bench.vault.requests.load(Ordering::SeqCst) - before, 6, "five tries and one question");
}

#[tokio::test]
async fn one_of_several_processes_takes_turns_after_an_outage() {
    let bench = Bench::start().await;
    let source =
        VaultSource::build("corp", &VaultSettings { agents: 2, ..settings(&bench.address) }, context(&Arc::default()));
    let source = source.unwrap();
    for path in ["secret/data/a", "secret/data/b"] {
        bench.vault.set(path, 200, kv("one"));
    }
    let started = Instant::now();
    source.fetch("secret/data/a").await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(500), "there was no outage");
    source.probe().await.unwrap();
    let healed = Instant::now();
    for path in ["secret/data/a", "secret/data/b", "secret/data/a"] {
        source.fetch(path).await.unwrap();
    }
    assert!(healed.elapsed() >= Duration::from_millis(500), "the second turn: {:?}", healed.elapsed());
}

#[tokio::test]
async fn a_server_that_is_not_there_and_one_that_is_not_trusted_are_told_apart() {
    let audit = Arc::new(Records::default());
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let source = VaultSource::build("corp", &settings(&address), context(&audit)).unwrap();
    let error = source.fetch("p").await.map(drop).unwrap_err();
    let words = format!("the server at {address} refused the connection");
    assert_eq!((error.kind, error.message), (FailureKind::Unreachable, words));
    assert_eq!(source.probe().await.unwrap_err().kind, FailureKind::Unreachable);
    let tls = crate::tls::Files { ca_file: Some("/no/such/ca.pem".into()), client: None };
    let missing = VaultSettings { tls, ..settings("https://127.0.0.1:1") };
    let refused = VaultSource::build("corp", &missing, context(&audit)).map(drop).unwrap_err();
    assert!(refused.starts_with("certificates in /no/such/ca.pem: "), "{refused}");
}

#[test]
fn a_secret_that_refers_to_a_secret_cannot_be_used_to_log_in() {
    let reference = crate::secret::Part::Reference(crate::secret::SecretRef::parse("other.token").unwrap());
    let auth = VaultAuth::Token(SecretText::new(vec![reference]));
    let refused =
        VaultSource::build("corp", &VaultSettings { auth, ..settings("http://127.0.0.1:1") }, context(&Arc::default()));
    assert!(refused.map(drop).unwrap_err().starts_with("${secret.other.token} cannot be used"));
}

fn same(mark: &str) -> Sign {
    Sign::Same(Some(mark.to_owned()))
}

fn known(version: &str) -> Known<'_> {
    Known { version: Some(version), mark: None, since: Instant::now(), every: Duration::from_millis(200) }
}

#[tokio::test]
async fn a_server_that_asks_to_wait_is_left_alone() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/a", 200, kv("one"));
    bench.vault.set("busy", 429, "");
    bench.source.fetch("secret/data/a").await.unwrap();
    let error = bench.error("busy").await;
    assert_eq!((error.kind, error.after), (FailureKind::Throttled, Some(Duration::from_secs(7))));
    let before = bench.vault.requests.load(Ordering::SeqCst);
    let held_back = bench.error("secret/data/a").await;
    assert_eq!(held_back.kind, FailureKind::Throttled);
    assert!(held_back.after.is_some_and(|after| after > Duration::from_secs(5)), "{held_back:?}");
    assert_eq!(bench.vault.requests.load(Ordering::SeqCst), before, "nothing was sent");
}

#[tokio::test]
async fn a_path_that_stays_denied_costs_one_lookup() {
    let bench = Bench::start().await;
    bench.vault.set("secret/data/b", 403, r#"{"errors":["permission denied"]}"#);
    for _ in 0..5 {
        assert_eq!(bench.error("secret/data/b").await.kind, FailureKind::Denied);
    }
    assert_eq!(bench.vault.lookups.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_list_tells_the_versions_of_a_folder_and_a_doubtful_one_is_read() {
    let bench = Bench::start().await;
    let list = r#"{"data":{"keys":["a","b","d/"],"key_info":{
        "a":{"current_version":4,"versions":{"4":{"created_time":"then","deletion_time":"","destroyed":false}}},
        "b":{"current_version":4,"versions":{"4":{"deletion_time":"2026-01-01T00:00:00Z","destroyed":false}}},"d/":{}}}}"#;
    bench.vault.set("secret/detailed-metadata/team/", 200, list);
    let paths =
        ["secret/data/team/a", "secret/data/team/a", "secret/data/team/a", "secret/data/team/b", "secret/data/team/c"];
    let signs = futures_util::future::join_all(paths.map(|path| bench.source.watch(path, known("4")))).await;
    let signs: Vec<Sign> = signs.into_iter().map(Result::unwrap).collect();
    assert_eq!(signs, [same("then"), same("then"), same("then"), Sign::Read, Sign::Read]);
    assert_eq!(bench.vault.requests.load(Ordering::SeqCst), 2, "the login and one list for all");
    let anew = Known { mark: Some("before"), ..known("4") };
    assert_eq!(
        bench.source.watch("secret/data/team/a", anew).await.unwrap(),
        Sign::Read,
        "a store that was set up anew"
    );
    assert_eq!(bench.source.watch("secret/data/team/a", known("3")).await.unwrap(), Sign::Read);
}

#[tokio::test]
async fn a_way_that_is_not_open_is_left_for_the_next() {
    let bench = Bench::start().await;
    let path = "secret/data/a";
    bench.vault.set("secret/detailed-metadata/", 405, r#"{"errors":["unsupported operation"]}"#);
    let metadata = r#"{"data":{"current_version":4,"versions":{"4":{"deletion_time":"","destroyed":false}}}}"#;
    bench.vault.set("secret/metadata/a", 200, metadata);
    assert_eq!(bench.source.watch(path, known("4")).await.unwrap(), same(""));
    bench.vault.set("secret/metadata/a", 403, r#"{"errors":["permission denied"]}"#);
    assert_eq!(bench.source.watch(path, known("4")).await.unwrap(), Sign::Read);
    bench.vault.set("secret/subkeys/a", 200, r#"{"data":{"subkeys":{"k":null},"metadata":{"version":4}}}"#);
    assert_eq!(bench.source.watch(path, known("4")).await.unwrap(), same(""));
    bench.vault.set("secret/subkeys/a", 405, "");
    assert_eq!(bench.source.watch(path, known("4")).await.unwrap(), Sign::Read);
    let before = bench.vault.requests.load(Ordering::SeqCst);
    assert_eq!(bench.source.watch(path, known("4")).await.unwrap(), Sign::Read);
    assert_eq!(bench.vault.requests.load(Ordering::SeqCst), before, "only reading is left, which the rotator does");
}

#[tokio::test]
async fn a_lease_is_bound_to_its_login_and_a_new_login_says_so() {
    let bench = Bench::start().await;
    let creds = r#"{"lease_id":"database/creds/app/1","lease_duration":60,"renewable":true,"data":{"username":"u"}}"#;
    bench.vault.set("database/creds/app", 200, creds);
    let Some(Lease::Held { login, id, .. }) = bench.source.fetch("database/creds/app").await.unwrap().lease else {
        panic!("no lease")
    };
    bench.vault.set("sys/leases/renew", 200, r#"{"lease_id":"database/creds/app/1","lease_duration":42}"#);
    bench.vault.set("sys/leases/revoke", 204, "");
    assert_eq!(bench.source.renew(&id, Duration::from_secs(60)).await.unwrap(), Duration::from_secs(42));
    bench.source.revoke(&id).await.unwrap();
    let ended = bench.source.superseded(login);
    bench.vault.valid.lock().unwrap().clear();
    bench.source.fetch("database/creds/app").await.unwrap();
    let ends = tokio::time::timeout(Duration::from_secs(5), ended).await.unwrap();
    assert!(ends <= Instant::now(), "the token is dead, and the lease with it");
    assert!(!format!("{id:?}").contains("app"));
}
