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
    /// One that is spoken to by its standard input and output.
    pub fn start(program: &str, args: &[&str], stderr: Option<&Path>) -> Self {
        let stderr = stderr.map_or_else(Stdio::inherit, |path| std::fs::File::create(path).expect("a log file").into());
        Self::spawn(program, args, Stdio::piped(), Stdio::piped(), stderr)
    }

    /// One that listens, and may write to its output as much as it likes.
    pub fn server(program: &str, args: &[&str], log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("a log file");
        let stderr = log.try_clone().expect("a second descriptor");
        Self::spawn(program, args, Stdio::null(), log.into(), stderr.into())
    }

    fn spawn(program: &str, args: &[&str], stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(stdin).stdout(stdout).stderr(stderr).env("RUST_BACKTRACE", "0");
        Self(command.spawn().expect("the process starts"))
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

    /// A configuration with one service that has so many tools and rules for each, a secret, a template, policy, audit, the admin socket, and
    /// the HTTP port if one is given.
    pub fn sidecar(&self, name: &str, tools: usize, port: Option<u16>) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let folder = self.path(name);
        std::fs::create_dir(&folder).expect("a folder");
        let command = serde_json::to_string(&upstream(tools)).expect("strings");
        let rules: String = (1..tools)
            .map(|number| format!("  - {{ name: tool_{number}, timeout: 20s, concurrency: 64 }}\n"))
            .collect();
        let echo = format!(
            "type: mcp\ncommand: {command}\nenv: {{ TOKEN: \"${{secret.app.token}}\" }}\nallow: {{ tools: [echo, \"tool_*\"] }}\n\
             deny: {{ tools: [\"delete_*\", \"*_admin\"] }}\ntools:\n  - {{ name: echo, timeout: 10s, concurrency: 64, rate: 1000000/s }}\n{rules}"
        );
        let http =
            port.map_or_else(String::new, |port| format!("http: {{ enabled: true, port: {port}, token: {TOKEN} }}, "));
        for (name, text) in [
            (
                "mcpeg.yaml",
                format!("{MAIN}transports: {{ {http}limits: {{ max_connections: 2048, max_sessions: 2048 }} }}\n"),
            ),
            ("keys.yaml", "app: { token: a-token-of-some-length }\n".to_owned()),
            ("app.j2", "{{ secret.app.token }}".to_owned()),
            ("echo.yaml", echo),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
        }
        folder
    }
}

/// The command of an upstream with so many tools.
pub fn upstream(tools: usize) -> [String; 3] {
    [myself(), "echo-upstream".to_owned(), tools.to_string()]
}

pub fn myself() -> String {
    std::env::current_exe().expect("this program has a path").display().to_string()
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

/// What a client of the HTTP port shows.
pub const TOKEN: &str = "a-token-for-the-port";

const MAIN: &str = r#"version: "1.0"
secrets:
  providers: { dev: { type: file, path: keys.yaml } }
  items: { app: { provider: dev, path: app } }
services: { echo: { config_file: echo.yaml } }
templates: [ { source: app.j2, destination: app.conf } ]
audit: { path: audit.log }
"#;
