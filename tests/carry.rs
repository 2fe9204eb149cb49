//! What is kept, carried: backups while the sidecar runs, what is restored, migrations between all kinds; one process for one folder; and the points
//! of metrics of the last hours.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use mcpeg::storage::kinds::memory::MemoryRecords;
use mcpeg::storage::kinds::sqlite::{SqliteRecords, Sync};
use mcpeg::storage::records::{Record, Records, Space};
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::library::Library;
use crate::support::mcp::{Client, modern};
use crate::support::postgres::{self, Postgres};
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::valkey::{self, Valkey};

fn folder(storage: &str) -> Folder {
    let main = format!(
        "version: \"1.0\"\nmetadata: {{ name: carried }}\nglobal: {{ pid_file: run/mcpeg.pid }}\nstorage: {storage}\n\
         services: {{ library: {{ config_file: library.yaml }} }}\n"
    );
    Folder::new(&[("mcpeg.yaml", &main), ("library.yaml", &Library::new(&["60000"]).service(""))])
}

/// What a command says, on both ways out, and whether it worked.
fn said(folder: &Folder, args: &[&str]) -> (bool, String) {
    let output = folder.mcpeg(args);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

async fn put(folder: &Folder, count: usize) {
    let (records, _) = SqliteRecords::open(&folder.path("data/state.db"), Sync::Full).unwrap();
    let many = (0..count).map(|n| Record::new(format!("{n:016}/x"), format!("value {n}"))).collect();
    records.set(Space::Metrics, many).await.unwrap();
    records.set(Space::State, vec![Record::new("breaker/a", "{}"), Record::new("rate/x", vec![0, 255])]).await.unwrap();
}

const SQLITE: &str = "{ runtime: { type: sqlite, path: data/state.db }, metrics: { enabled: false } }";

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_by_name_and_pid_and_the_first_goes_on() {
    let mut sidecar = Sidecar::start(folder(SQLITE));
    let pid = sidecar.pid();
    assert_eq!(sidecar.folder.read("run/mcpeg.pid"), format!("{pid}\n"));
    let (worked, text) = said(&sidecar.folder, &["run"]);
    assert!(!worked && text.contains(&format!("is in use by mcpeg \"carried\", pid {pid}")), "{text}");
    assert!(sidecar.condition("storage/runtime").unwrap().starts_with("ok"));
    assert_eq!(sidecar.folder.read("run/mcpeg.pid"), format!("{pid}\n"));
    let (worked, text) = said(&sidecar.folder, &["migrate", "--to", "memory"]);
    assert!(!worked && text.contains("is in use by"), "{text}");
    // A killed one leaves nothing that stops the next.
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    let sidecar = Sidecar::start(std::mem::replace(&mut sidecar.folder, Folder::new(&[])));
    let path = sidecar.folder.path("run/mcpeg.pid");
    assert!(sidecar.stop().await.success());
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_sidecar_is_restored_whole_or_refused_whole() {
    let folder = folder(SQLITE);
    put(&folder, 300).await;
    let (generated, key) = said(&folder, &["seal", "--generate-key", folder.path("key").to_str().unwrap()]);
    assert!(generated, "{key}");
    let recipient = key.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    let mut sidecar = Sidecar::start(folder);
    let at = |name: &str| sidecar.folder.path(name).display().to_string();
    let (plain, sealed, key) = (at("plain.backup"), at("sealed.backup"), at("key"));
    let (worked, text) = said(&sidecar.folder, &["backup", &plain]);
    assert!(worked && text.contains("not sealed"), "{text}");
    let (worked, text) = said(&sidecar.folder, &["backup", &sealed, "--recipient", &recipient]);
    assert!(worked && text.contains(", sealed"), "{text}");
    assert!(!fs::read(&sealed).unwrap().windows(6).any(|window| window == b"value "));
    let (worked, text) = said(&sidecar.folder, &["restore", &plain]);
    assert!(!worked && text.contains("is in use by mcpeg"), "{text}");
    sidecar.signal(libc::SIGTERM);
    sidecar.ended().await;
    let folder = std::mem::replace(&mut sidecar.folder, Folder::new(&[]));
    // What came later goes, what is gone comes back.
    {
        let (records, _) = SqliteRecords::open(&folder.path("data/state.db"), Sync::Full).unwrap();
        records.clear(Space::Metrics, "").await.unwrap();
        records.set(Space::State, vec![Record::new("later", "1")]).await.unwrap();
    }
    let mut broken = fs::read(&plain).unwrap();
    broken[200] ^= 1;
    fs::write(folder.path("broken"), broken).unwrap();
    let (worked, text) = said(&folder, &["restore", folder.path("broken").to_str().unwrap()]);
    assert!(!worked && text.contains("checksum") && text.contains("nothing was changed"), "{text}");
    let (worked, text) = said(&folder, &["restore", &sealed]);
    assert!(!worked && text.contains("it is sealed"), "{text}");
    let (worked, text) = said(&folder, &["restore", "--check", &sealed, "--key", &key]);
    assert!(worked && text.contains("300 moments of metrics"), "{text}");
    let (worked, text) = said(&folder, &["restore", &sealed, "--key", &key]);
    assert!(worked && text.contains("into sqlite"), "{text}");
    let (records, _) = SqliteRecords::open(&folder.path("data/state.db"), Sync::Full).unwrap();
    assert_eq!(records.list(Space::Metrics, "", None, 999).await.unwrap().len(), 300);
    assert_eq!(records.get(Space::State, "later").await.unwrap(), None);
    assert_eq!(records.get(Space::State, "rate/x").await.unwrap().as_deref(), Some(&[0, 255][..]));
    drop(records);
    // Without a sidecar the store itself is read.
    let (worked, text) = said(&folder, &["backup", &plain]);
    assert!(worked && text.contains("records"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_written_by_the_clock_and_the_newest_stay() {
    let text = "{ runtime: { type: memory }, backup: { every: 1s, keep: 2, path: data/backups } }";
    let sidecar = Sidecar::start(folder(text));
    let names = || {
        let files = fs::read_dir(sidecar.folder.path("data/backups")).into_iter().flatten();
        let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let first = eventually(Duration::from_secs(10), "there is one", async || names().into_iter().next()).await;
    eventually(Duration::from_secs(15), "older ones go", async || {
        let names = names();
        (names.len() <= 2 && !names.contains(&first)).then_some(())
    })
    .await;
    assert!(sidecar.condition("storage/backup").unwrap().starts_with("ok"));
    let newest = sidecar.folder.path("data/backups").join(names().pop().unwrap());
    let (worked, text) = said(&sidecar.folder, &["restore", "--check", newest.to_str().unwrap()]);
    assert!(worked && text.starts_with("whole"), "{text}");
}

/// The file that a password is read from, and the options that describe a server.
fn server(folder: &Folder, kind: &str, port: u16) -> Vec<String> {
    let (url, password) = match kind {
        "redis" => (format!("redis://127.0.0.1:{port}"), valkey::PASSWORD),
        _ => (format!("postgres://127.0.0.1:{port}/postgres"), postgres::PASSWORD),
    };
    folder.write(kind, &format!("{password}\n"));
    let file = folder.path(kind).display().to_string();
    let mut options = vec!["--url".to_owned(), url, "--password-file".to_owned(), file];
    if kind == "postgres" {
        options.extend(["--username".to_owned(), "postgres".to_owned()]);
    }
    options
}

fn migrate(folder: &Folder, from: &str, to: &str, options: &[String]) -> Value {
    let mut args = vec!["migrate", "--json", "--from", from, "--to", to];
    args.extend(options.iter().map(String::as_str));
    let (worked, text) = said(folder, &args);
    assert!(worked, "{from} to {to}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_migrated_between_all_kinds_with_its_count_and_the_source_stays() {
    let (valkey, postgres) = (Valkey::start().await, Postgres::start().await);
    let folder = folder(SQLITE);
    put(&folder, 700).await;
    for (kind, port) in [("redis", valkey.port), ("postgres", postgres.port), ("memory", 0)] {
        let options = match kind {
            "memory" => vec!["--path".to_owned(), folder.path("moved.snapshot").display().to_string()],
            _ => server(&folder, kind, port),
        };
        let done = migrate(&folder, "sqlite", kind, &options);
        assert_eq!((&done["records"], &done["carried"]), (&json!(702), &json!(702)), "{kind}");
        {
            let (records, _) = SqliteRecords::open(&folder.path("data/state.db"), Sync::Full).unwrap();
            assert_eq!(records.list(Space::Metrics, "", None, 999).await.unwrap().len(), 700, "the source stays");
            records.clear(Space::Metrics, "").await.unwrap();
            records.clear(Space::State, "").await.unwrap();
        }
        let back = migrate(&folder, kind, "sqlite", &options);
        assert_eq!(back["records"], 702, "{kind}");
        let (records, _) = SqliteRecords::open(&folder.path("data/state.db"), Sync::Full).unwrap();
        assert_eq!(records.get(Space::State, "rate/x").await.unwrap().as_deref(), Some(&[0, 255][..]), "{kind}");
        assert_eq!(records.list(Space::State, "", None, 9).await.unwrap().len(), 2, "no mark is left: {kind}");
    }
    let (moved, trouble) = MemoryRecords::open(&folder.path("moved.snapshot")).unwrap();
    assert_eq!((moved.list(Space::Metrics, "", None, 999).await.unwrap().len(), trouble), (700, None));
    let (worked, text) = said(&folder, &["migrate", "--from", "redis", "--to", "postgres"]);
    assert!(!worked && text.contains("neither is the configured store"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_migration_goes_on_and_a_killed_backup_leaves_a_whole_file() {
    let folder = folder(SQLITE);
    put(&folder, 20_000).await;
    let backup = folder.path("a.backup");
    let command = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(args).arg("--config").arg(folder.path("mcpeg.yaml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // The other way round: the configured store is the target.
    folder.write(
        "mcpeg.yaml",
        &folder
            .read("mcpeg.yaml")
            .replace("type: sqlite, path: data/state.db", "type: memory, persistence: true, path: moved"),
    );
    let source = folder.path("data/state.db").display().to_string();
    let args = ["migrate", "--from", "sqlite", "--to", "memory", "--path", &source];
    for _ in 0..3 {
        let mut child = command(&args).spawn().unwrap();
        let grows = || fs::metadata(folder.path("moved")).map_or(0, |facts| facts.len());
        let before = grows();
        eventually(Duration::from_secs(20), "something has come", async || (grows() > before).then_some(())).await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let done = migrate(&folder, "sqlite", "memory", &["--path".to_owned(), source.clone()]);
    assert_eq!(done["records"], 20_002);
    assert!(done["carried"].as_u64().unwrap() < 20_002, "it went on: {done}");
    let backup_path = backup.display().to_string();
    assert!(command(&["backup", &backup_path]).status().unwrap().success());
    for _ in 0..10 {
        let mut child = command(&["backup", &backup_path]).spawn().unwrap();
        let beside = folder.path(".a.backup.mcpeg-new");
        while child.try_wait().unwrap().is_none() && !beside.exists() {
            tokio::task::yield_now().await;
        }
        let _ = child.kill();
        child.wait().unwrap();
        let (worked, text) = said(&folder, &["restore", "--check", &backup_path]);
        assert!(worked && text.contains("20000 moments"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_of_the_last_hours_are_shown_as_lines_and_figures_and_outlive_a_restart() {
    let text = "{ runtime: { type: sqlite, path: data/state.db }, metrics: { interval: 1s, retention: 1h } }";
    let mut sidecar = Sidecar::start(folder(text));
    let mut client = Client::connect(&sidecar.service_socket("library")).await;
    let name = "mcp.server.operation.duration";
    let query = |sidecar: &Sidecar, more: &[&str]| {
        let args: Vec<&str> =
            ["metrics", "query", name, "--json", "--since", "1h"].iter().chain(more).copied().collect();
        let (worked, text) = said(&sidecar.folder, &args);
        if worked { serde_json::from_str::<Value>(&text).unwrap() } else { json!({ "series": [] }) }
    };
    let tag = ["--tag", "gen_ai.tool.name=stamp"];
    let rate = eventually(Duration::from_secs(20), "there are points", async || {
        let call = modern(json!({ "name": "stamp", "arguments": {} }));
        assert!(client.request("tools/call", call).await["result"].is_object());
        let answer = query(&sidecar, &[tag[0], tag[1], "--aggregate", "rate"]);
        let series = &answer["series"][0];
        (series["points"].as_array().is_some_and(|points| points.len() >= 2))
            .then(|| series["value"].as_f64())
            .flatten()
    })
    .await;
    assert!(rate > 0.0, "{rate}");
    let p95 = query(&sidecar, &[tag[0], tag[1], "--aggregate", "p95"])["series"][0]["value"].as_f64().unwrap();
    assert!(p95 > 0.0 && p95 < 10.0, "{p95}");
    assert_eq!(query(&sidecar, &["--tag", "gen_ai.tool.name=none"])["series"], json!([]));
    let (worked, text) = said(&sidecar.folder, &["metrics", "query", "process.uptime", "--aggregate", "max"]);
    assert!(worked && text.starts_with("process.uptime  ") && text.contains("  max ") && text.contains('█'), "{text}");
    let (worked, text) = said(&sidecar.folder, &["metrics", "query"]);
    assert!(worked && text.lines().any(|line| line == "process.uptime"), "{text}");
    let (worked, text) = said(&sidecar.folder, &["metrics", "query", "no.such"]);
    assert!(!worked && text.contains("no such points"), "{text}");
    let before = query(&sidecar, &tag)["series"][0]["points"].as_array().unwrap().len();
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    let sidecar = Sidecar::start(std::mem::replace(&mut sidecar.folder, Folder::new(&[])));
    let after = query(&sidecar, &tag)["series"][0]["points"].as_array().unwrap().len();
    assert!(after >= before, "{before} points, then {after}");
}
