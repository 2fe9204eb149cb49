//! What it costs to keep secrets fresh, and what happens when something fails, beside OpenBao's own agent in one run: `cargo bench --bench secrets`.
//!
//! Both are given the same server through a counting proxy, the same login, the same secrets and templates. `cargo bench --bench secrets -- soak`
//! rotates a secret every second for five minutes (or as many seconds as are given) and looks at what that leaves; `-- short`
//! waits a tenth as long everywhere, to see that the benchmark itself works; `-- idle` is the part about memory alone; `-- render` measures files and a
//! supervised program. Linux only: it reads /proc, and looks into memory, for which a release build wants root.

// A benchmark that meets anything unexpected should stop there, and it prints because that is what it is for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_types
)]
#![allow(dead_code)] // What it shares with the tests and with another benchmark is more than it uses.

#[path = "../sidecar/client.rs"]
mod client;
mod contender;
#[path = "../sidecar/process.rs"]
mod process;
mod render;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use contender::{Contender, Running, Task};
use serde_json::{Value, json};
use support::bao::Bao;
use support::counting::{Counting, Mode};
use support::memory;

fn main() {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    match args.first().map(String::as_str) {
        Some("soak") => {
            let seconds = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(300);
            runtime.block_on(soak(Duration::from_secs(seconds)));
        }
        Some("render") => runtime.block_on(render::measure()),
        _ => runtime.block_on(measure()),
    }
}

async fn soak(length: Duration) {
    let soaked = support::soak::soak(length).await;
    let (early, late) = soaked.resident;
    println!("{} versions in {} s, {} missed", soaked.versions, length.as_secs(), soaked.missed.len());
    println!("readable copies of any value one second after the last change: {}", soaked.left_over);
    println!("RSS after a tenth of the time and at the end: {early} and {late} KiB");
    assert!(soaked.missed.is_empty() && soaked.left_over == 0, "missed: {:?}", soaked.missed);
    assert!(late <= early + 1024, "memory grows");
}

/// A server with its proxy, and who logs in there.
struct Place {
    bao: Bao,
    proxy: Counting,
    role: String,
    secret_id: String,
}

impl Place {
    async fn new() -> Self {
        let bao = Bao::start().await;
        let (role, secret_id) = bao.approle().await;
        // `list` is for the folder's versions; the agent has no use for it.
        let policy = "path \"secret/*\" { capabilities = [\"read\", \"list\"] }";
        bao.call("POST", "sys/policies/acl/app", json!({ "policy": policy })).await;
        let proxy = Counting::before(bao.port).await;
        let place = Self { bao, proxy, role, secret_id };
        for number in 0..SECRETS {
            place.put(number, "first").await;
        }
        place
    }

    fn task(&self, secrets: usize, interval: &'static str) -> Task<'_> {
        Task { address: &self.proxy.address, role: &self.role, secret_id: &self.secret_id, secrets, interval }
    }

    async fn put(&self, number: usize, value: &str) {
        self.bao.put(&format!("team/s{number}"), json!({ "value": value })).await;
    }
}

/// Waits as long as the row says, or a tenth of it.
async fn wait(seconds: u64) {
    let is_short = std::env::args().any(|arg| arg == "short");
    tokio::time::sleep(Duration::from_millis(seconds * if is_short { 100 } else { 1000 })).await;
}

/// Name of the row, and one text for each contender.
type Row = (&'static str, String);

async fn measure() {
    let only_idle = std::env::args().any(|arg| arg == "idle");
    let mut columns = Vec::new();
    for contender in [Contender::Agent, Contender::Mcpeg] {
        eprintln!("measuring {}", contender.name());
        let mut rows = Vec::new();
        for part in if only_idle { 1..2 } else { 0..5 } {
            let measured = match part {
                0 => starts(contender).await,
                1 => idle(contender).await,
                2 => fresh(contender).await,
                3 => faults(contender).await,
                _ => broken(contender).await,
            };
            measured.iter().for_each(|(name, figure)| eprintln!("  {name}: {figure}"));
            rows.extend(measured);
        }
        columns.push((contender.name(), rows));
    }
    println!("{:<64} | {:<34} | {:<34}", "", columns[0].0, columns[1].0);
    for (agent, mcpeg) in columns[0].1.iter().zip(&columns[1].1) {
        println!("{:<64} | {:<34} | {:<34}", agent.0, agent.1, mcpeg.1);
    }
}

async fn starts(contender: Contender) -> Vec<Row> {
    let place = Place::new().await;
    let mut rows = Vec::new();
    for (name, secrets) in
        [("start to first file, 1 template, median of 5", 1), ("start to first file, 50 templates", SECRETS)]
    {
        let mut times = Vec::new();
        for _ in 0..5 {
            let running = contender.start(&place.task(secrets, "5m"));
            times.push(first_file(&running, secrets).await);
        }
        times.sort();
        rows.push((name, millis(times[2])));
    }
    rows
}

async fn first_file(running: &Running, secrets: usize) -> Duration {
    loop {
        if (0..secrets).any(|number| running.read(number).as_deref() == Some("first")) {
            return running.started.elapsed();
        }
        assert!(running.started.elapsed() < PATIENCE, "no file");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn all_files(running: &Running, secrets: usize) {
    for number in 0..secrets {
        running.follows(number, "first", running.started, PATIENCE).await.expect("every file is written");
    }
}

async fn idle(contender: Contender) -> Vec<Row> {
    let place = Place::new().await;
    let running = contender.start(&place.task(SECRETS, "5m"));
    all_files(&running, SECRETS).await;
    let burst = format!("{} requests, {} connections", place.proxy.requests(), place.proxy.connections());
    wait(10).await;
    let idle = memory_in_words(running.pid());
    drop(running);
    let running = contender.start(&place.task(SECRETS, "1s"));
    all_files(&running, SECRETS).await;
    wait(30).await;
    vec![
        ("start burst, 50 secrets", burst),
        ("idle memory, 50 templates: RSS / private dirty", idle),
        ("the same while it looks every second, after 30 s", memory_in_words(running.pid())),
    ]
}

fn memory_in_words(pid: u32) -> String {
    let memory = process::memory_of(pid);
    format!("{:.1} / {:.1} MiB", memory.rss, memory.private_dirty)
}

async fn fresh(contender: Contender) -> Vec<Row> {
    let place = Place::new().await;
    let running = contender.start(&place.task(SECRETS, "1s"));
    all_files(&running, SECRETS).await;
    wait(2).await;
    let (requests, cpu, began) = (place.proxy.requests(), process::cpu_of(running.pid()), Instant::now());
    wait(30).await;
    let share = (process::cpu_of(running.pid()) - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let requests = (place.proxy.requests() - requests) as f64 / began.elapsed().as_secs_f64() * 60.0;
    let mut delays = Vec::new();
    for number in 0..10 {
        let value = format!("rotated-{number:04}-{}", "0123456789-abcdefghijklmnopqrstuvwxyz");
        place.put(7, &value).await;
        delays.extend(running.follows(7, &value, Instant::now(), PATIENCE).await);
    }
    delays.sort();
    let old = "rotated-0008-0123456789-abcdefghijklmnopqrstuvwxyz";
    let current = "rotated-0009-0123456789-abcdefghijklmnopqrstuvwxyz";
    wait(30).await;
    let (old, current) = (memory::find(running.pid(), old).len(), memory::find(running.pid(), current).len());
    vec![
        ("write to file at 1 s interval, 50 secrets, slowest of 10", millis(delays[delays.len() - 1])),
        ("requests a minute, CPU of a core, at 1 s interval", format!("{requests:.0}, {:.2}%", share * 100.0)),
        ("readable copies of the old / current value after 30 s", format!("{old} / {current}")),
    ]
}

async fn faults(contender: Contender) -> Vec<Row> {
    let place = Place::new().await;
    let running = contender.start(&place.task(SECRETS, "1s"));
    all_files(&running, SECRETS).await;
    let mut rows = Vec::new();
    for (name, length) in [("server gone for 25 s: fresh after", 25), ("server gone for 110 s: fresh after", 110)] {
        place.proxy.set(Mode::Cut);
        wait(length).await;
        place.put(7, name).await;
        place.proxy.set(Mode::Pass);
        rows.push((name, within(running.follows(7, name, Instant::now(), PATIENCE).await)));
    }
    place.bao.call("POST", "sys/leases/revoke-prefix/auth/approle/login", json!({ "sync": true })).await;
    place.put(7, "after the token").await;
    let took = running.follows(7, "after the token", Instant::now(), PATIENCE).await;
    rows.push(("token revoked: fresh after", within(took)));
    drop(running);

    // What becomes of a file whose key is gone.
    place.put(7, "first").await;
    let running = contender.start(&place.task(SECRETS, "1s"));
    all_files(&running, SECRETS).await;
    place.bao.put("team/s7", json!({ "another": "x" })).await;
    wait(5).await;
    let (text, mode) = (running.read(7).unwrap_or_default(), running.mode(7));
    rows.push(("a key is taken away: the file then", format!("{text:?}, {mode:04o}")));
    rows
}

async fn broken(contender: Contender) -> Vec<Row> {
    let place = Place::new().await;
    place.bao.call("DELETE", "secret/metadata/team/s49", Value::Null).await;
    let running = contender.start(&place.task(SECRETS, "5m"));
    wait(25).await;
    let served = (0..SECRETS - 1).filter(|number| running.read(*number).as_deref() == Some("first")).count();
    let (all, of_it) = (place.proxy.requests(), place.proxy.asked("/team/s49").len());
    vec![("one broken of 50, 25 s: its requests, all, files of the others", format!("{of_it}, {all}, {served} of 49"))]
}

fn millis(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1e3)
}

fn within(took: Option<Duration>) -> String {
    took.map_or_else(|| format!("stale after {} s", PATIENCE.as_secs()), |took| format!("{:.2} s", took.as_secs_f64()))
}

const SECRETS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(120);
