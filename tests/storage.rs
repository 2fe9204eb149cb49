//! Stores: the same suite against each of the four kinds, with a real Valkey and a real PostgreSQL; and what the sidecar makes of them when it
//! is killed, when they go away, and when several sidecars share them.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mcpeg::ports::{SecretReader, SecretUnavailable};
use mcpeg::secret::{SecretText, SecretVersion};
use mcpeg::storage::kinds::memory::MemoryRecords;
use mcpeg::storage::kinds::postgres::PostgresRecords;
use mcpeg::storage::kinds::redis::RedisRecords;
use mcpeg::storage::kinds::sqlite::{SqliteRecords, Sync};
use mcpeg::storage::login::Login;
use mcpeg::storage::records::{Record, Records, Space};
use mcpeg::storage::settings::ServerSettings;
use serde_json::{Value, json};

use crate::support::counting::{Counting, Mode};
use crate::support::eventually;
use crate::support::library::Library;
use crate::support::mcp::{Client, modern};
use crate::support::postgres::{self, Postgres};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::tls_front::{Begin, TlsFront};
use crate::support::upstream::HttpServer;
use crate::support::valkey::{self, Valkey};

/// There are no items: what is configured is literal.
struct NoItems;

impl SecretReader for NoItems {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        Err(SecretUnavailable::Unknown { item: item.to_owned() })
    }

    fn subscribe(&self, _: &str) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }
}

fn login(settings: &ServerSettings) -> Login {
    Login::new(settings.password.clone(), Arc::new(NoItems))
}

fn redis(valkey: &Valkey) -> Arc<dyn Records> {
    let settings = valkey.settings("suite");
    Arc::new(RedisRecords::new(settings.clone(), login(&settings)))
}

fn postgres_settings(postgres: &Postgres) -> ServerSettings {
    ServerSettings {
        kind: "PostgreSQL",
        port: postgres.port,
        host: "127.0.0.1".to_owned(),
        database: "postgres".to_owned(),
        username: Some("postgres".to_owned()),
        password: Some(SecretText::literal(postgres::PASSWORD)),
        encrypted: false,
        tls: mcpeg::tls::Files::default(),
        namespace: "suite".to_owned(),
    }
}

fn table(postgres: &Postgres) -> Arc<dyn Records> {
    let settings = postgres_settings(postgres);
    Arc::new(PostgresRecords::new(settings.clone(), login(&settings)))
}

/// What holds for every kind. `others` is the same store, as another process would have it.
async fn suite(records: Arc<dyn Records>, others: Arc<dyn Records>) {
    let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    records.probe().await.unwrap();
    let keys = ["breaker/a", "breaker/b", "breaker/é ü", "breaker/%_*?[x]\\", "breakers", "z"];
    assert_eq!(records.get(Space::State, "breaker/a").await.unwrap(), None);
    records.delete(Space::State, vec!["breaker/a".to_owned()]).await.unwrap();
    let all = keys.iter().map(|key| Record::new(*key, vec![0, 255, b'\n'])).collect();
    records.set(Space::State, all).await.unwrap();
    records.set(Space::State, Vec::new()).await.unwrap();
    for key in keys {
        assert_eq!(others.get(Space::State, key).await.unwrap().as_deref(), Some(&[0, 255, b'\n'][..]), "{key}");
        assert_eq!(others.get(Space::Metrics, key).await.unwrap(), None, "spaces do not meet");
    }
    let names = |found: Vec<Record>| found.into_iter().map(|record| record.key).collect::<Vec<_>>();
    let sorted = ["breaker/%_*?[x]\\", "breaker/a", "breaker/b", "breaker/é ü"];
    assert_eq!(names(others.list(Space::State, "breaker/", None, 99).await.unwrap()), sorted);
    assert_eq!(names(others.list(Space::State, "breaker/", Some("breaker/a"), 1).await.unwrap()), ["breaker/b"]);
    assert_eq!(others.list(Space::State, "", None, 99).await.unwrap().len(), 6);
    // Compare-and-set.
    assert!(!records.swap(Space::State, "z", None, value("x").unwrap()).await.unwrap());
    assert!(!records.swap(Space::State, "z", value("other"), value("x").unwrap()).await.unwrap());
    assert!(records.swap(Space::State, "new", None, value("1").unwrap()).await.unwrap());
    assert!(others.swap(Space::State, "new", value("1"), value("").unwrap()).await.unwrap());
    assert!(records.swap(Space::State, "new", value(""), value("3").unwrap()).await.unwrap(), "empty is not absent");
    counts(&records, &others).await;
    // Gone.
    records.delete(Space::State, vec!["z".to_owned(), "never".to_owned()]).await.unwrap();
    assert_eq!(others.get(Space::State, "z").await.unwrap(), None);
    records.clear(Space::State, "breaker/").await.unwrap();
    assert_eq!(names(others.list(Space::State, "break", None, 99).await.unwrap()), ["breakers"]);
    // A large one, and many.
    let large = vec![7; 1 << 20];
    records.set(Space::Metrics, vec![Record::new("large", large.clone())]).await.unwrap();
    assert_eq!(others.get(Space::Metrics, "large").await.unwrap().unwrap().len(), large.len());
    let many = (0..1500).map(|n| Record::new(format!("m/{n:05}"), "x")).collect();
    records.set(Space::Metrics, many).await.unwrap();
    let (mut after, mut seen) = (None::<String>, 0);
    loop {
        let page = others.list(Space::Metrics, "m/", after.as_deref(), 400).await.unwrap();
        let Some(last) = page.last() else { break };
        (after, seen) = (Some(last.key.clone()), seen + page.len());
    }
    assert_eq!(seen, 1500);
    records.clear(Space::Metrics, "").await.unwrap();
    assert!(others.list(Space::Metrics, "", None, 9).await.unwrap().is_empty());
    records.flush().await.unwrap();
}

/// Nothing of many who count at once is lost.
async fn counts(records: &Arc<dyn Records>, others: &Arc<dyn Records>) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let records = if n % 2 == 0 { records.clone() } else { others.clone() };
        tasks.spawn(async move {
            for _ in 0..10 {
                loop {
                    let before = records.get(Space::State, "count").await.unwrap();
                    let number: u64 =
                        before.as_deref().map_or(0, |text| std::str::from_utf8(text).unwrap().parse().unwrap());
                    let next = Bytes::from((number + 1).to_string());
                    if records.swap(Space::State, "count", before, next).await.unwrap() {
                        break;
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(records.get(Space::State, "count").await.unwrap().as_deref(), Some(&b"80"[..]));
    records.delete(Space::State, vec!["count".to_owned()]).await.unwrap();
}

/// What holds for the kinds that answers are cached in.
async fn cache_suite(records: &dyn Records) {
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let record = |key: &str, until: u64| Record { key: key.to_owned(), value: "x".into(), until: Some(until) };
    let answers =
        vec![record("s*/tools/1", now + 60_000), record("sx/tools/1", now + 60_000), record("s*/short", now + 300)];
    records.set(Space::Cache, answers).await.unwrap();
    assert!(records.get(Space::Cache, "s*/tools/1").await.unwrap().is_some());
    eventually(Duration::from_secs(5), "its time is over", async || {
        records.get(Space::Cache, "s*/short").await.unwrap().is_none().then_some(())
    })
    .await;
    records.clear(Space::Cache, "s*/").await.unwrap();
    assert_eq!(records.get(Space::Cache, "s*/tools/1").await.unwrap(), None);
    assert!(records.get(Space::Cache, "sx/tools/1").await.unwrap().is_some(), "a prefix is no pattern");
    records.delete(Space::Cache, vec!["sx/tools/1".to_owned()]).await.unwrap();
    assert_eq!(records.get(Space::Cache, "sx/tools/1").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_in_memory_and_after_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = MemoryRecords::open(&folder.path().join("snapshot")).unwrap();
    let records: Arc<dyn Records> = Arc::new(records);
    suite(records.clone(), records.clone()).await;
    cache_suite(&*records).await;
    let (again, trouble) = MemoryRecords::open(&folder.path().join("snapshot")).unwrap();
    assert_eq!((again.list(Space::State, "", None, 9).await.unwrap().len(), trouble), (2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_in_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let open = || SqliteRecords::open(&folder.path().join("a/state.db"), Sync::Full).unwrap().0;
    let (records, others) = (Arc::new(open()), Arc::new(open()));
    suite(records.clone(), others).await;
    cache_suite(&*records).await;
    drop(records);
    assert_eq!(open().list(Space::State, "", None, 9).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_in_valkey_and_a_wrong_password_is_said_without_it() {
    let valkey = Valkey::start().await;
    let records = redis(&valkey);
    suite(records.clone(), redis(&valkey)).await;
    cache_suite(&*records).await;
    let settings =
        ServerSettings { password: Some(SecretText::literal("not-the-password")), ..valkey.settings("suite") };
    let wrong = RedisRecords::new(settings.clone(), login(&settings));
    let said = wrong.probe().await.unwrap_err().0;
    assert!(said.contains("Redis at 127.0.0.1") && !said.contains("not-the-password"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_holds_in_postgres_and_a_wrong_password_is_said_without_it() {
    let postgres = Postgres::start().await;
    let records = table(&postgres);
    suite(records.clone(), table(&postgres)).await;
    assert_eq!(postgres.query("select max(version) from mcpeg_schema").unwrap().trim(), "1");
    let settings =
        ServerSettings { password: Some(SecretText::literal("not-the-password")), ..postgres_settings(&postgres) };
    let wrong = PostgresRecords::new(settings.clone(), login(&settings));
    let said = wrong.probe().await.unwrap_err().0;
    assert!(said.contains("password authentication failed") && !said.contains("not-the-password"), "{said}");
}

/// `storage` of a sidecar, by kind; the password comes from a secret.
fn runtime(kind: &str, port: u16) -> String {
    match kind {
        "memory" => "{ type: memory, persistence: true, snapshot_interval: 1s }".to_owned(),
        "sqlite" => "{ type: sqlite, path: data/state.db }".to_owned(),
        "redis" => {
            format!("{{ type: redis, url: \"redis://127.0.0.1:{port}\", password: \"${{secret.store.redis}}\" }}")
        }
        _ => format!(
            "{{ type: postgres, url: \"postgres://127.0.0.1:{port}/postgres\", username: postgres, password: \"${{secret.store.postgres}}\" }}"
        ),
    }
}

fn folder(storage: &str, services: &[(&str, String)]) -> Folder {
    let mut main = format!(
        "version: \"1.0\"\naudit: {{ path: audit.log }}\nstorage: {storage}\nsecrets:\n  providers: {{ own: {{ type: file, path: secrets.yaml }} }}\n  \
         items: {{ store: {{ provider: own, path: store, refresh: 1s }} }}\nservices:\n"
    );
    let folder = Folder::new(&[]);
    for (name, text) in services {
        main.push_str(&format!("  {name}: {{ config_file: {name}.yaml }}\n"));
        folder.write(&format!("{name}.yaml"), text);
    }
    let (redis, postgres) = (valkey::PASSWORD, postgres::PASSWORD);
    folder
        .write("secrets.yaml", &format!("store: {{ redis: \"{redis}\", postgres: \"{postgres}\", key: {SEALING} }}\n"));
    folder.write("mcpeg.yaml", &main);
    folder
}

const SEALING: &str = "sealing-key-of-the-tests";

async fn call(client: &mut Client, tool: &str, arguments: Value) -> Value {
    client.request("tools/call", modern(json!({ "name": tool, "arguments": arguments }))).await
}

/// A server that can be cut off, and a service file for it with a breaker.
async fn breakable() -> (HttpServer, Counting, String) {
    let upstream = HttpServer::python().await;
    let port: u16 = upstream.url.rsplit(':').next().unwrap().trim_end_matches("/mcp").parse().unwrap();
    let between = Counting::before(port).await;
    let text = format!(
        "type: mcp\nurl: {}/mcp\ncircuit_breaker: {{ failure_threshold: 2, reset_timeout: 1h }}\ntimeout: 2s\n",
        between.address
    );
    (upstream, between, text)
}

/// Lets calls fail until the breaker is open.
async fn trip(sidecar: &Sidecar) {
    let mut client = Client::connect(&sidecar.service_socket("remote")).await;
    eventually(Duration::from_secs(10), "the breaker opens", async || {
        let answer = call(&mut client, "echo", json!({ "text": "x" })).await;
        (answer["error"]["data"]["reason"] == "circuit_open").then_some(())
    })
    .await;
}

fn breaker(sidecar: &Sidecar) -> Value {
    sidecar.status()["mcp"]["services"]["remote"]["circuit_breaker"].clone()
}

async fn killed(mut sidecar: Sidecar) -> Folder {
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    std::mem::replace(&mut sidecar.folder, Folder::new(&[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_followed_by_one_whose_breakers_are_as_they_were() {
    let (valkey, postgres) = (Valkey::start().await, Postgres::start().await);
    for kind in ["memory", "sqlite", "redis", "postgres"] {
        let (_upstream, between, text) = breakable().await;
        let port = if kind == "redis" { valkey.port } else { postgres.port };
        let sidecar = Sidecar::start(folder(&format!("{{ runtime: {} }}", runtime(kind, port)), &[("remote", text)]));
        assert_eq!(sidecar.status()["storage"]["runtime"]["type"], kind);
        between.set(Mode::Cut);
        trip(&sidecar).await;
        // Written at once; of a store in memory when its snapshot is.
        match kind {
            "memory" => {
                let path = sidecar.folder.path("data/runtime/mcpeg.snapshot");
                eventually(Duration::from_secs(10), "there is a snapshot", async || {
                    let bytes = fs::read(&path).ok()?;
                    bytes.windows(11).any(|window| window == b"\"open\":true").then_some(())
                })
                .await;
            }
            "sqlite" => {
                let path = sidecar.folder.path("data/state.db");
                eventually(Duration::from_secs(10), "it is written", async || {
                    let (records, _) = SqliteRecords::open(&path, Sync::Full).ok()?;
                    records.get(Space::State, "breaker/remote").await.ok()?
                })
                .await;
            }
            "redis" => {
                let written = async || {
                    let said = valkey.ask(&["HGET", "mcpeg:state", "breaker/remote"]).await?;
                    said.contains("\"open\":true").then_some(())
                };
                eventually(Duration::from_secs(10), "it is written", written).await;
            }
            _ => {
                let query = "select convert_from(value, 'UTF8') from mcpeg_record where key = 'breaker/remote'";
                let written = async || postgres.query(query).filter(|said| said.contains("\"open\":true")).map(drop);
                eventually(Duration::from_secs(10), "it is written", written).await;
            }
        }
        let before = breaker(&sidecar);
        let sidecar = Sidecar::start(killed(sidecar).await);
        let after = breaker(&sidecar);
        assert_eq!((&after["state"], &after["failures"]), (&before["state"], &before["failures"]), "{kind}");
        assert!(after["retry_in_seconds"].as_f64().unwrap() > 3000.0, "{kind}: {after}");
        let connections = between.connections();
        let mut client = Client::connect(&sidecar.service_socket("remote")).await;
        let answer = call(&mut client, "echo", json!({ "text": "x" })).await;
        assert_eq!(answer["error"]["data"]["reason"], "circuit_open", "{kind}: {answer}");
        assert_eq!(between.connections(), connections, "nothing was tried");
        assert!(sidecar.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_of_one_valkey_share_breakers_rates_and_sealed_answers() {
    let valkey = Valkey::start().await;
    let (_upstream, between, text) = breakable().await;
    let library = Library::new(&["60000"]);
    let rules = "tools: [ { name: stamp, rate: 2/h }, { name: rows, cache_ttl: 1h, cache_scope: public } ]\n";
    let store = runtime("redis", valkey.port);
    let cache = format!(
        "{{ type: redis, url: \"redis://127.0.0.1:{}\", password: \"${{secret.store.redis}}\", key: \"${{secret.store.key}}\" }}",
        valkey.port
    );
    let storage = format!("{{ runtime: {store}, cache: {cache} }}");
    let services = [("remote", text), ("library", library.service(rules))];
    let (one, other) = (Sidecar::start(folder(&storage, &services)), Sidecar::start(folder(&storage, &services)));
    between.set(Mode::Cut);
    trip(&one).await;
    eventually(Duration::from_secs(10), "the other one knows", async || {
        (breaker(&other)["state"] == "open").then_some(())
    })
    .await;
    let mut first = Client::connect(&one.service_socket("library")).await;
    let mut second = Client::connect(&other.service_socket("library")).await;
    for client in [&mut first, &mut second] {
        assert!(call(client, "stamp", json!({})).await["result"].is_object());
    }
    for client in [&mut second, &mut first] {
        let answer = call(client, "stamp", json!({})).await;
        assert_eq!(answer["error"]["data"]["reason"], "rate_limited", "{answer}");
    }
    let answer = call(&mut first, "rows", json!({})).await;
    assert!(answer["result"].is_object(), "{answer}");
    eventually(Duration::from_secs(10), "it is kept", async || {
        valkey
            .ask(&["KEYS", "mcpeg:cache:*"])
            .await
            .filter(|said| said.contains("mcpeg:cache:library/tools/"))
            .map(drop)
    })
    .await;
    let again = call(&mut second, "rows", json!({})).await;
    assert_eq!(again["result"], answer["result"]);
    let stats = &other.status()["storage"]["cache"]["stats"];
    assert_eq!(stats["hits"], 1, "{stats}");
    // What lies there says nothing.
    let keys = valkey.ask(&["KEYS", "*"]).await.unwrap();
    let name = keys.lines().find(|line| line.starts_with("mcpeg:cache:")).unwrap();
    let sealed = valkey.ask(&["GET", name]).await.unwrap();
    assert!(!sealed.contains("content") && !sealed.contains("text"), "{sealed}");
    let all = [keys, sealed, valkey.ask(&["HGETALL", "mcpeg:state"]).await.unwrap()].concat();
    assert!(!all.contains(SEALING) && !all.contains(valkey::PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_takes_the_place_of_a_valkey_that_is_away_at_the_start_and_in_flight() {
    let mut valkey = Valkey::start().await;
    let (_upstream, between, text) = breakable().await;
    valkey.leave();
    let storage = format!("{{ runtime: {} }}", runtime("redis", valkey.port));
    let sidecar = Sidecar::start(folder(&storage, &[("remote", text)]));
    sidecar.says("storage/runtime", &["degraded", "Redis at 127.0.0.1", "memory has taken its place"]).await;
    let mut client = Client::connect(&sidecar.service_socket("remote")).await;
    assert!(call(&mut client, "echo", json!({ "text": "x" })).await["result"].is_object());
    valkey.come_back().await;
    sidecar.says("storage/runtime", &["ok"]).await;
    valkey.leave();
    between.set(Mode::Cut);
    trip(&sidecar).await;
    sidecar.says("storage/runtime", &["degraded"]).await;
    let metrics = crate::support::unix_http::UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await;
    let text = { metrics }.get("/metrics").await.text().to_owned();
    assert!(text.contains("mcpeg_storage_available{store=\"runtime\"} 0"), "{text}");
    valkey.come_back().await;
    eventually(Duration::from_secs(10), "it gets what was changed meanwhile", async || {
        let said = valkey.ask(&["HGET", "mcpeg:state", "breaker/remote"]).await?;
        said.contains("\"open\":true").then_some(())
    })
    .await;
    sidecar.says("storage/runtime", &["ok"]).await;
    assert!(!sidecar.stderr().contains(valkey::PASSWORD));
}

/// Calls that find nobody, so that the breaker changes and the snapshot with it.
async fn fail_for_ever(socket: std::path::PathBuf) {
    let mut client = Client::connect(&socket).await;
    loop {
        let id = client.received.len();
        let params = modern(json!({ "name": "echo", "arguments": { "text": "x" } }));
        client.send(&json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }).to_string()).await;
        if client.line().await.is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_a_snapshot_is_written_leaves_the_one_before_or_the_new_one() {
    let (_upstream, between, text) = breakable().await;
    between.set(Mode::Cut);
    let text = text.replace("reset_timeout: 1h", "reset_timeout: 100ms");
    let mut folder = folder(&format!("{{ runtime: {} }}", runtime("memory", 0)), &[("remote", text)]);
    let (kept, beside) = ("data/runtime/mcpeg.snapshot", "data/runtime/.mcpeg.snapshot.mcpeg-new");
    for round in 0..6 {
        let sidecar = Sidecar::start(folder);
        sidecar.says("storage/runtime", &["ok"]).await;
        let socket = sidecar.service_socket("remote");
        let mut calls = tokio::task::JoinSet::new();
        calls.spawn(fail_for_ever(socket));
        let (kept, beside) = (sidecar.folder.path(kept), sidecar.folder.path(beside));
        if round == 0 {
            eventually(Duration::from_secs(10), "there is a snapshot", async || kept.exists().then_some(())).await;
        }
        let pid = rustix::process::Pid::from_raw(sidecar.pid() as i32).unwrap();
        let seen = std::thread::spawn(move || {
            let latest = std::time::Instant::now() + Duration::from_secs(15);
            let mut is_seen = false;
            while !is_seen && std::time::Instant::now() < latest {
                is_seen = beside.exists();
            }
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            is_seen
        });
        while !seen.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        calls.shutdown().await;
        assert!(seen.join().unwrap(), "it was killed while it wrote");
        folder = killed(sidecar).await;
        let (records, trouble) = MemoryRecords::open(&folder.path("data/runtime/mcpeg.snapshot")).unwrap();
        assert!(trouble.is_none(), "{trouble:?}");
        assert!(records.get(Space::State, "breaker/remote").await.unwrap().is_some(), "what was kept is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_what_changed_meanwhile_is_written_when_there_is_room() {
    let (_upstream, between, text) = breakable().await;
    let storage = format!("{{ runtime: {} }}", runtime("sqlite", 0));
    let folder = folder(&storage, &[("remote", text)]);
    // The audit file would find no room either, and nothing be done then.
    folder.write("mcpeg.yaml", &folder.read("mcpeg.yaml").replace("audit: { path: audit.log }\n", ""));
    let sidecar = Sidecar::start(folder);
    sidecar.limit_files(Some(0));
    between.set(Mode::Cut);
    trip(&sidecar).await;
    sidecar.says("storage/runtime", &["degraded", "state.db"]).await;
    sidecar.limit_files(None);
    sidecar.says("storage/runtime", &["ok"]).await;
    let folder = killed(sidecar).await;
    let (records, _) = SqliteRecords::open(&folder.path("data/state.db"), Sync::Full).unwrap();
    let kept = records.get(Space::State, "breaker/remote").await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&kept).contains("\"open\":true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_file_is_set_aside_and_said() {
    for (kind, file) in [("sqlite", "data/state.db"), ("memory", "data/runtime/mcpeg.snapshot")] {
        let folder =
            folder(&format!("{{ runtime: {} }}", runtime(kind, 0)), &[("library", Library::new(&["1"]).service(""))]);
        folder.write(file, &"this is no store of any kind ".repeat(400));
        let sidecar = Sidecar::start(folder);
        sidecar.says("storage/runtime", &["degraded", "could not be used", ".broken-"]).await;
        assert!(sidecar.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_shrink_before_sessions_are_refused_and_those_that_there_are_go_on() {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    let library = Library::new(&["60000"]);
    let services = [("library", library.service("tools: [ { name: big, cache_ttl: 1h } ]\n"))];
    let folder = folder("{ cache: { type: memory, max_size_mb: 100 } }", &services);
    folder.write("mcpeg.yaml", &format!("{}global: {{ memory_limit_mb: 40 }}\n", folder.read("mcpeg.yaml")));
    let sidecar = Sidecar::start(folder);
    let memory = || sidecar.status()["memory"].clone();
    assert_eq!(memory()["limit_bytes"], 40 << 20);
    let idle = memory()["live_bytes"].as_u64().unwrap();
    assert!(idle > 0 && idle < 20 << 20, "{idle}");
    let mut client = Client::connect(&sidecar.service_socket("library")).await;
    for n in 0..60 {
        let answer = call(&mut client, "big", json!({ "n": 1_000_000 + n })).await;
        assert!(answer["result"].is_object(), "{n}");
    }
    let stats = sidecar.status()["storage"]["cache"]["stats"].clone();
    assert!(stats["evictions"].as_u64().unwrap() >= 20, "60 MB do not fit: {stats}");
    // Messages that are not whole yet are held: too much for one more session.
    let mut holders = Vec::new();
    for _ in 0..3 {
        let mut stream = UnixStream::connect(sidecar.service_socket("library")).await.unwrap();
        stream.write_all(&vec![b' '; 14 << 20]).await.unwrap();
        holders.push(stream);
    }
    let refused = eventually(Duration::from_secs(10), "a new one is refused", async || {
        let mut stream = UnixStream::connect(sidecar.service_socket("library")).await.ok()?;
        let mut said = String::new();
        let read = tokio::time::timeout(Duration::from_secs(1), stream.read_to_string(&mut said)).await;
        read.is_ok().then_some(said).filter(|said| said.contains("memory_limit_mb"))
    })
    .await;
    assert!(refused.contains("-32012"), "{refused}");
    assert!(call(&mut client, "stamp", json!({})).await["result"].is_object(), "the one that there is goes on");
    assert!(sidecar.condition("memory/limit").unwrap().starts_with("degraded"));
    assert!(sidecar.folder.read("audit.log").contains("memory_limit"));
    drop(holders);
    eventually(Duration::from_secs(10), "there is room again", async || {
        // One that is refused is closed, perhaps before it has said anything.
        let mut stream = UnixStream::connect(sidecar.service_socket("library")).await.ok()?;
        stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n").await.ok()?;
        let mut line = String::new();
        tokio::io::BufReader::new(stream).read_line(&mut line).await.ok()?;
        (!line.is_empty() && !line.contains("memory_limit_mb")).then_some(())
    })
    .await;
    assert!(sidecar.condition("memory/limit").unwrap().starts_with("ok"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_wants_tls_is_asked_when_it_proves_its_name() {
    let certificates = crate::support::nginx::Certificates::new("localhost", &[]);
    let postgres = Postgres::start().await;
    let front = TlsFront::before(postgres.port, Begin::SslRequest, &certificates).await;
    let tls = mcpeg::tls::Files { ca_file: Some(certificates.path("ca.pem")), client: None };
    let settings = ServerSettings {
        host: "localhost".to_owned(),
        port: front.port,
        encrypted: true,
        tls,
        ..postgres_settings(&postgres)
    };
    let records = || Arc::new(PostgresRecords::new(settings.clone(), login(&settings)));
    suite(records(), records()).await;
    let stranger = ServerSettings { host: "127.0.0.1".to_owned(), ..settings };
    let said = PostgresRecords::new(stranger.clone(), login(&stranger)).probe().await.unwrap_err().0;
    assert!(said.contains("certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valkey_behind_tls_is_asked_when_it_proves_its_name() {
    let valkey = Valkey::start().await;
    let certificates = crate::support::nginx::Certificates::new("localhost", &[]);
    let front = TlsFront::before(valkey.port, Begin::Tls, &certificates).await;
    let tls = mcpeg::tls::Files { ca_file: Some(certificates.path("ca.pem")), client: None };
    let settings = ServerSettings {
        host: "localhost".to_owned(),
        port: front.port,
        encrypted: true,
        tls,
        ..valkey.settings("encrypted")
    };
    let records = RedisRecords::new(settings.clone(), login(&settings));
    records.set(Space::State, vec![Record::new("a", "1")]).await.unwrap();
    assert!(valkey.ask(&["HGET", "encrypted:state", "a"]).await.unwrap().contains('1'));
    let stranger = ServerSettings { host: "127.0.0.1".to_owned(), ..settings };
    let said = RedisRecords::new(stranger.clone(), login(&stranger)).probe().await.unwrap_err().0;
    assert!(said.contains("certificate"), "{said}");
}
