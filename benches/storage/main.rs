//! What cached answers and state cost in each kind of store, beside the floor of each: `cargo bench --bench storage`.
//!
//! One task, one operation at a time: a cache get that hits and a cache set of 2 KB, sealed where they leave the process, and a state set of
//! 100 bytes that is made to last as the kind does it. Floors: a map behind a lock, a bare write of a synced 4 KB page, a bare round trip to the server.
//! Valkey comes from `$MCPEG_PEERS`; PostgreSQL is measured where `$MCPEG_BENCH_POSTGRES` names a port, user `postgres`, password
//! `$PGPASSWORD`. Linux only.

// A benchmark that meets anything unexpected should stop there, and it prints because that is what it is for.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mcpeg::ports::{Cache, SecretReader, SecretUnavailable};
use mcpeg::secret::{SecretText, SecretVersion};
use mcpeg::storage::cache::external::ExternalCache;
use mcpeg::storage::cache::memory::MemoryCache;
use mcpeg::storage::cache::seal::Seal;
use mcpeg::storage::kinds::memory::MemoryRecords;
use mcpeg::storage::kinds::postgres::PostgresRecords;
use mcpeg::storage::kinds::redis::RedisRecords;
use mcpeg::storage::kinds::sqlite::{SqliteRecords, Sync};
use mcpeg::storage::login::Login;
use mcpeg::storage::records::{Record, Records, Space};
use mcpeg::storage::settings::ServerSettings;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(measure());
}

async fn measure() {
    let folder = tempfile::tempdir().expect("a folder");
    println!("{:<34} {:>10} {:>10} {:>12}", "", "p50 µs", "p99 µs", "operations");
    floors(folder.path());
    cache("memory", Arc::new(MemoryCache::new(64 << 20, LONG)), MANY).await;
    let (records, _) = SqliteRecords::open(&folder.path().join("cache.db"), Sync::Normal).expect("a database");
    cache("sqlite", external(Arc::new(records)), FEW).await;
    state("memory", Arc::new(MemoryRecords::default()), MANY).await;
    let (records, _) = SqliteRecords::open(&folder.path().join("state.db"), Sync::Full).expect("a database");
    state("sqlite, synced", Arc::new(records), FEW).await;
    match Valkey::start(folder.path()) {
        Some(valkey) => {
            round_trips(valkey.port);
            let records: Arc<dyn Records> =
                Arc::new(RedisRecords::new(server("Redis", valkey.port, None), login(None)));
            cache("redis", external(records.clone()), FEW).await;
            state("redis", records, FEW).await;
        }
        None => println!("redis: MCPEG_PEERS names no Valkey"),
    }
    match std::env::var("MCPEG_BENCH_POSTGRES").ok().and_then(|port| port.parse().ok()) {
        Some(port) => {
            let password = std::env::var("PGPASSWORD").ok().map(|password| SecretText::literal(&password));
            let settings = server("PostgreSQL", port, password.clone());
            state("postgres", Arc::new(PostgresRecords::new(settings, login(password))), FEW).await;
        }
        None => println!("postgres: MCPEG_BENCH_POSTGRES names no port"),
    }
}

fn external(records: Arc<dyn Records>) -> Arc<dyn Cache> {
    let seal = Seal::new(SecretText::literal("0123456789abcdef0123456789abcdef"), Arc::new(Nothing));
    Arc::new(ExternalCache::new(records, seal, 64 << 20, LONG))
}

fn floors(folder: &Path) {
    let map: Mutex<HashMap<String, Bytes>> = Mutex::default();
    let keys = keys();
    let value = Bytes::from(vec![b'x'; 2048]);
    let mut at = 0;
    times("map behind a lock (floor), set", MANY, || {
        at += 1;
        map.lock().expect("nobody panics").insert(keys[at % keys.len()].clone(), value.clone());
    });
    times("map behind a lock (floor), get", MANY, || {
        at += 1;
        let _ = std::hint::black_box(map.lock().expect("nobody panics").get(&keys[at % keys.len()]).cloned());
    });
    let mut file = std::fs::File::create(folder.join("floor")).expect("a file");
    let page = [7; 4096];
    times("4 KB written and synced (floor)", FEW, || {
        file.write_all(&page).and_then(|()| file.sync_data()).expect("room on the disk");
    });
}

fn round_trips(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("Valkey");
    stream.set_nodelay(true).expect("a socket");
    let mut answer = [0; 7];
    times("bare PING to Valkey (floor)", FEW, || {
        stream.write_all(b"PING\r\n").and_then(|()| stream.read_exact(&mut answer)).expect("an answer");
    });
}

async fn cache(name: &str, cache: Arc<dyn Cache>, count: usize) {
    let keys = keys();
    let mut samples = Vec::with_capacity(count);
    for n in 0..count {
        let value = Bytes::from(format!("{n:02048}"));
        let started = Instant::now();
        cache.set(&keys[n % keys.len()], value, LONG).await;
        samples.push(started.elapsed());
    }
    print(&format!("cache set, {name}"), samples);
    let mut samples = Vec::with_capacity(count);
    for n in 0..count {
        let started = Instant::now();
        let found = cache.get(&keys[n % keys.len()]).await;
        samples.push(started.elapsed());
        assert!(found.is_some(), "{name} has kept {n}");
    }
    print(&format!("cache get, {name}"), samples);
}

async fn state(name: &str, records: Arc<dyn Records>, count: usize) {
    records.probe().await.expect("the store is there");
    let mut samples = Vec::with_capacity(count);
    for n in 0..count {
        // Another value each time: SQLite writes nothing for the one that is there.
        let value = Bytes::from(format!("{n:0100}"));
        let record = vec![Record::new(format!("breaker/{}", n % 100), value)];
        let started = Instant::now();
        records.set(Space::State, record).await.expect("the store is there");
        samples.push(started.elapsed());
    }
    print(&format!("state set, {name}"), samples);
}

fn times(name: &str, count: usize, mut work: impl FnMut()) {
    let samples = (0..count).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed()
    });
    print(name, samples.collect());
}

fn print(name: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{name:<34} {:>10.2} {:>10.2} {:>12}", at(0.5), at(0.99), samples.len());
}

fn keys() -> Vec<String> {
    (0..500).map(|n| format!("library/tools/{n:064x}")).collect()
}

fn server(kind: &'static str, port: u16, password: Option<SecretText>) -> ServerSettings {
    ServerSettings {
        kind,
        host: "127.0.0.1".to_owned(),
        port,
        database: if kind == "Redis" { "0" } else { "postgres" }.to_owned(),
        username: None,
        password,
        encrypted: false,
        tls: mcpeg::tls::Files::default(),
        namespace: "bench".to_owned(),
    }
}

fn login(password: Option<SecretText>) -> Login {
    Login::new(password, Arc::new(Nothing))
}

/// There are no secrets; literals need none.
struct Nothing;

impl SecretReader for Nothing {
    fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
        Err(SecretUnavailable::Unknown { item: item.to_owned() })
    }

    fn subscribe(&self, _: &str) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }
}

struct Valkey {
    child: Child,
    port: u16,
}

impl Valkey {
    /// Nothing of it reaches the disk.
    fn start(folder: &Path) -> Option<Self> {
        let peers = std::fs::read_to_string(std::env::var_os("MCPEG_PEERS")?).ok()?;
        let peers: serde_json::Value = serde_json::from_str(&peers).ok()?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let child = Command::new(peers["valkey"].as_str()?)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Valkey starts");
        let valkey = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "Valkey is up within 10 s");
            std::thread::yield_now();
        }
        Some(valkey)
    }
}

impl Drop for Valkey {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MANY: usize = 200_000;
const FEW: usize = 5_000;
const LONG: Duration = Duration::from_secs(3600);
