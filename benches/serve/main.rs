//! What the read of a secret costs a local program, beside its floor, in one run: `cargo bench --bench serve`.
//!
//! One blocking client with one keep-alive connection, twice: against a bare hyper server on a Unix socket, and against mcpeg with rules,
//! audit file and metrics on. Linux only.

// A benchmark that meets anything unexpected should stop there, and it prints because that is what it is for.
#![allow(clippy::expect_used, clippy::print_stdout)]

mod floor;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("floor-server") => floor::serve(Path::new(&args[1])),
        _ => measure(),
    }
}

fn measure() {
    let folder = tempfile::tempdir().expect("a folder");
    let myself = std::env::current_exe().expect("this program has a path");
    println!("{READS} reads one at a time over one connection, after {WARM_UP} to warm up\n");
    println!("{:<36} {:>8} {:>8} {:>10}", "", "p50 µs", "p99 µs", "reads/s");
    let floor = {
        let socket = folder.path().join("floor.sock");
        let args = ["floor-server", socket.to_str().expect("a UTF-8 path")];
        let _server = Started::new(Command::new(myself).args(args).stdin(Stdio::null()));
        run("bare hyper on a Unix socket (floor)", &socket)
    };
    write_configuration(folder.path());
    let config = folder.path().join("mcpeg.yaml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mcpeg"));
    command.args(["run", "--config"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _sidecar = Started::new(&mut command);
    let ours = run("mcpeg, rules, audit and metrics", &folder.path().join("run/secrets.sock"));
    println!("\nmcpeg to floor: p50 {:.2}x, p99 {:.2}x", ours.0 / floor.0, ours.1 / floor.1);
}

fn write_configuration(folder: &Path) {
    let uid = rustix::process::getuid().as_raw();
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers: {{ dev: {{ type: file, path: keys.yaml }} }}\n  items: {{ app: {{ provider: dev, path: app }} }}\n  \
         serve: {{ allow: [ {{ uid: {uid}, items: [app] }} ] }}\naudit: {{ path: audit.log }}\n"
    );
    let keys = "app: { token: 0123456789abcdef0123456789abcdef0123456789abcdef }\n";
    for (name, text) in [("mcpeg.yaml", main.as_str()), ("keys.yaml", keys)] {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    }
}

/// p50 and p99 in microseconds.
fn run(name: &str, socket: &Path) -> (f64, f64) {
    let mut client = Client::connect(socket);
    for _ in 0..WARM_UP {
        client.read();
    }
    let started = Instant::now();
    let mut times: Vec<Duration> = (0..READS)
        .map(|_| {
            let asked = Instant::now();
            client.read();
            asked.elapsed()
        })
        .collect();
    let took = started.elapsed();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{name:<36} {:>8.1} {:>8.1} {:>10.0}", at(0.5), at(0.99), READS as f64 / took.as_secs_f64());
    (at(0.5), at(0.99))
}

struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects as soon as somebody listens and the secret is there.
    fn connect(socket: &Path) -> Self {
        let started = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
                let mut client = Self(BufReader::new(stream));
                if client.ask().is_some_and(|status| status == 200) {
                    return client;
                }
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{} does not answer", socket.display());
            std::thread::yield_now();
        }
    }

    fn read(&mut self) {
        assert_eq!(self.ask(), Some(200));
    }

    /// The status; `None` when the connection is of no use.
    fn ask(&mut self) -> Option<u16> {
        self.0.get_mut().write_all(b"GET /v1/secrets/app HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        let (mut status, mut length) = (None, 0);
        let mut line = String::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).ok().filter(|read| *read > 0)?;
            let text = line.trim_end();
            if text.is_empty() {
                break;
            } else if status.is_none() {
                status = text.split(' ').nth(1)?.parse().ok();
            } else if let Some(value) = text.strip_prefix("content-length: ") {
                length = value.parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        status
    }
}

/// A process that is ended when this is dropped.
struct Started(Child);

impl Started {
    fn new(command: &mut Command) -> Self {
        Self(command.env("RUST_BACKTRACE", "0").spawn().expect("the process starts"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const WARM_UP: usize = 2_000;
const READS: usize = 20_000;
