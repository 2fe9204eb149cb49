//! `cargo bench --bench secrets -- render`: from the start to the files, and from the end of a supervised program to its next start.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contender::{Contender, Running};
use crate::support::unix_http::UnixHttp;
use crate::support::{http, memory};
use crate::{PATIENCE, Place, SECRETS, all_files, first_file, millis};

pub async fn measure() {
    let place = Place::new().await;
    println!("{:<58} | {:>10} | {:>10}", "median of 9 starts", "first file", "all files");
    for secrets in [1, SECRETS] {
        let server = median(async || server_alone(&place, secrets).await).await;
        println!("{:<58} | {:>10} | {:>10}", format!("the server's own time, {secrets} secrets"), "", millis(server));
        for contender in [Contender::Agent, Contender::Mcpeg] {
            let name = format!("{}, {secrets} templates", contender.name());
            let first = median(async || first_file(&contender.start(&place.task(secrets, "5m")), secrets).await).await;
            let all = median(async || every_file(&contender.start(&place.task(secrets, "5m")), secrets).await).await;
            println!("{name:<58} | {:>10} | {:>10}", millis(first), millis(all));
        }
        let all = median(async || Local::start(secrets, "").every_file(secrets).await).await;
        println!("{:<58} | {:>10} | {:>10}", format!("mcpeg, {secrets} templates, a file of secrets"), "", millis(all));
    }
    one_missing(&place).await;
    replacements().await;
}

/// One secret of all is gone: what that costs the files of the others.
async fn one_missing(place: &Place) {
    place.bao.call("DELETE", &format!("secret/metadata/team/s{}", SECRETS - 1), Value::Null).await;
    for contender in [Contender::Agent, Contender::Mcpeg] {
        let others = median(async || every_file(&contender.start(&place.task(SECRETS, "5m")), SECRETS - 1).await).await;
        let name = format!("{}, {SECRETS} templates, one secret missing: the others", contender.name());
        println!("{name:<58} | {:>10} | {:>10}", "", millis(others));
    }
}

async fn median(mut once: impl AsyncFnMut() -> Duration) -> Duration {
    let mut times = Vec::new();
    for _ in 0..9 {
        times.push(once().await);
    }
    times.sort();
    times[times.len() / 2]
}

async fn every_file(running: &Running, secrets: usize) -> Duration {
    all_files(running, secrets).await;
    running.started.elapsed()
}

/// What a login and the reads take by themselves, one after the other over one connection.
async fn server_alone(place: &Place, secrets: usize) -> Duration {
    let (client, address) = (http(), &place.proxy.address);
    let started = Instant::now();
    let login = json!({ "role_id": place.role, "secret_id": place.secret_id });
    let login = client.post(format!("{address}/v1/auth/approle/login")).json(&login).send().await.expect("an answer");
    let login: Value = login.json().await.expect("JSON");
    let token = login["auth"]["client_token"].as_str().expect("a token");
    for number in 0..secrets {
        let url = format!("{address}/v1/secret/data/team/s{number}");
        let answer = client.get(url).header("X-Vault-Token", token).send().await.expect("an answer");
        assert!(answer.status().is_success());
        answer.bytes().await.expect("a body");
    }
    started.elapsed()
}

/// mcpeg with a file of secrets and no server.
struct Local {
    child: Child,
    folder: tempfile::TempDir,
    started: Instant,
}

impl Local {
    fn start(secrets: usize, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let items: String =
            (0..secrets).map(|number| format!("    s{number}: {{ provider: f, path: s{number} }}\n")).collect();
        let templates: String = (0..secrets)
            .map(|number| format!("  - {{ source: s{number}.j2, destination: s{number}.txt }}\n"))
            .collect();
        let main = format!(
            "version: \"1.0\"\nsecrets:\n  providers: {{ f: {{ type: file, path: keys.yaml }} }}\n  items:\n{items}templates:\n{templates}{more}"
        );
        write(folder.path(), "mcpeg.yaml", &main);
        write_keys(folder.path(), secrets, "first");
        for number in 0..secrets {
            write(folder.path(), &format!("s{number}.j2"), &format!("{{{{ secret.s{number}.value }}}}"));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcpeg"));
        command.args(["run", "--config"]).arg(folder.path().join("mcpeg.yaml")).envs(memory::LOOKED_INTO);
        command.env("RUST_BACKTRACE", "0").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        Self { child: command.spawn().expect("the process starts"), folder, started }
    }

    async fn every_file(&self, secrets: usize) -> Duration {
        let is_there = |number: usize| {
            std::fs::read(self.folder.path().join(format!("s{number}.txt"))).is_ok_and(|bytes| bytes == b"first")
        };
        while !(0..secrets).all(is_there) {
            assert!(self.started.elapsed() < PATIENCE, "not every file is written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.started.elapsed()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Between the end of a program and the start of the next, by the metric that says it.
async fn replacements() {
    let more = "process: { command: [sleep, \"600\"], env: { VALUE: \"${secret.s0.value}\" } }\n";
    let local = Local::start(1, more);
    local.every_file(1).await;
    let socket = local.folder.path().join("run/admin.sock");
    for number in 1..=ROTATIONS {
        write_keys(local.folder.path(), 1, &format!("rotated-{number}"));
        let asked = Instant::now();
        while replaced(&socket).await.0 < f64::from(number) {
            assert!(asked.elapsed() < PATIENCE, "rotation {number} is not followed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (count, sum) = replaced(&socket).await;
    println!(
        "a supervised program's replacement on `restart`: {:.1} ms between its end and the next start, the mean of {count:.0}",
        sum / count * 1e3
    );
}

/// How many replacements there were, and how long all of them took, in seconds.
async fn replaced(socket: &Path) -> (f64, f64) {
    let answer = UnixHttp::connect(socket).await.get("/metrics").await;
    let value = |suffix: &str| {
        let name = format!("mcpeg_process_replacement_duration_seconds_{suffix}");
        let line = answer.text().lines().find(|line| line.starts_with(&name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    (value("count"), value("sum"))
}

fn write_keys(folder: &Path, secrets: usize, value: &str) {
    let keys: String = (0..secrets).map(|number| format!("s{number}: {{ value: {value} }}\n")).collect();
    write(folder, "keys.new", &keys);
    std::fs::rename(folder.join("keys.new"), folder.join("keys.yaml")).expect("a rename");
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
}

const ROTATIONS: u32 = 20;
