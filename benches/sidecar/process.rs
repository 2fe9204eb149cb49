//! Processes under measurement: started, weighed through /proc, ended.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Pipe;

pub struct Proc(Child);

pub struct Memory {
    /// MiB.
    pub rss: f64,
    /// MiB.
    pub private_dirty: f64,
}

impl Proc {
    pub fn start(program: &str, args: &[&str], stderr: Option<&Path>) -> Self {
        let stderr = stderr.map_or_else(Stdio::inherit, |path| std::fs::File::create(path).expect("a log file").into());
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .env("RUST_BACKTRACE", "0")
            .spawn()
            .expect("the process starts");
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn pipe(&mut self) -> Pipe {
        Pipe::new(Box::new(self.0.stdout.take().expect("piped")), Box::new(self.0.stdin.take().expect("piped")))
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that is removed at the end.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A configuration with one service, a secret, a template, audit and the admin socket.
    pub fn sidecar(&self, upstream: &[String]) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let folder = self.path("sidecar");
        std::fs::create_dir(&folder).expect("a folder");
        let command = serde_json::to_string(upstream).expect("strings");
        for (name, text) in [
            ("mcpeg.yaml", MAIN.to_owned()),
            ("keys.yaml", "app: { token: abc }\n".to_owned()),
            ("app.j2", "{{ secret.app.token }}".to_owned()),
            ("echo.yaml", format!("type: mcp\ncommand: {command}\nenv: {{ TOKEN: \"${{secret.app.token}}\" }}\n")),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        }
        folder
    }
}

pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_mcpeg"))
}

/// The sidecar, which has said that it is ready.
pub fn start_sidecar(folder: &Path) -> Proc {
    let program = program();
    let config = folder.join("mcpeg.yaml");
    let args = ["run", "--config", config.to_str().expect("a UTF-8 path")];
    let mut sidecar = Proc::start(program.to_str().expect("a UTF-8 path"), &args, Some(&folder.join("stderr.log")));
    let mut line = String::new();
    BufReader::new(sidecar.0.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert!(line.starts_with("ready"), "it said {line:?}");
    sidecar
}

pub fn await_socket(socket: &Path) {
    let started = Instant::now();
    while !socket.exists() {
        assert!(started.elapsed() < Duration::from_secs(10), "{} did not appear", socket.display());
        std::thread::yield_now();
    }
}

/// User and system time of all threads; children are not counted.
pub fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = [11, 12].iter().filter_map(|index| fields.get(*index)?.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux that this runs on.
    Duration::from_millis(ticks * 10)
}

pub fn memory_of(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(f64::NAN)
    };
    Memory { rss: kib("Rss:") / 1024.0, private_dirty: kib("Private_Dirty:") / 1024.0 }
}

const MAIN: &str = r#"version: "1.0"
secrets:
  providers: { dev: { type: file, path: keys.yaml } }
  items: { app: { provider: dev, path: app } }
services: { echo: { config_file: echo.yaml } }
templates: [ { source: app.j2, destination: app.conf } ]
audit: { path: audit.log }
"#;
