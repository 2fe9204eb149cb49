//! The real binary in a folder of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::eventually;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_mcpeg");

/// A folder with a configuration and what belongs to it. Files are written 0600.
pub struct Folder(TempDir, Option<String>);

impl Folder {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::Builder::new().prefix("mcpeg").tempdir().unwrap(), None);
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    /// With this address in the place of `mcpeg.yaml`; the binary runs in the folder.
    pub fn configured_by(mut self, address: &str) -> Self {
        self.1 = Some(address.to_owned());
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What `--config` says.
    fn config(&self) -> std::ffi::OsString {
        self.1.clone().map_or_else(|| self.path("mcpeg.yaml").into(), Into::into)
    }

    /// Writes a file whole: beside it, then renamed over it.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(beside, path).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The binary with this folder's configuration, to its end.
    pub fn mcpeg(&self, args: &[&str]) -> Output {
        std::process::Command::new(PROGRAM)
            .args(args)
            .arg("--config")
            .arg(self.config())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The audit events of this name.
    pub fn audit(&self, event: &str) -> Vec<Value> {
        let text = self.read("audit.log");
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["event"] == event)
            .collect()
    }
}

/// `mcpeg run`, which has said that it is ready.
pub struct Sidecar {
    child: Child,
    pub folder: Folder,
    pub ready: String,
}

impl Sidecar {
    /// Starts it and waits for the `ready` line.
    pub fn start(folder: Folder) -> Self {
        Self::start_with(folder, &[])
    }

    pub fn start_with(folder: Folder, env: &[(&str, &str)]) -> Self {
        let (mut sidecar, lines) = Self::spawn(folder, env);
        match lines.recv_timeout(Duration::from_secs(20)) {
            Ok(line) if line.starts_with("ready") => sidecar.ready = line,
            other => panic!("no ready line but {other:?}; it said:\n{}", sidecar.stderr()),
        }
        sidecar
    }

    /// Starts it without waiting; gives the lines of its standard output.
    pub fn spawn(folder: Folder, env: &[(&str, &str)]) -> (Self, mpsc::Receiver<String>) {
        Self::spawn_with(folder, env, &[])
    }

    /// With more arguments.
    pub fn spawn_with(folder: Folder, env: &[(&str, &str)], args: &[&str]) -> (Self, mpsc::Receiver<String>) {
        let stderr = fs::File::create(folder.path("stderr.log")).unwrap();
        // A write beyond a limit of the size of files (`limit_files`) fails then, and does not kill.
        let mut child = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", PROGRAM, "run", "--config"])
            .arg(folder.config())
            .args(args)
            .current_dir(folder.path(""))
            .envs(super::memory::LOOKED_INTO)
            .envs(env.iter().copied())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        (Self { child, folder, ready: String::new() }, lines)
    }

    /// Its folder, when it has ended.
    pub fn into_folder(mut self) -> Folder {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::replace(&mut self.folder, Folder::new(&[]))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stderr(&self) -> String {
        self.folder.read("stderr.log")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path("run/mcpeg.sock")
    }

    pub fn service_socket(&self, name: &str) -> PathBuf {
        self.folder.path("run/services").join(format!("{name}.sock"))
    }

    pub fn signal(&self, signal: i32) {
        signal_process(self.pid(), signal);
    }

    /// No file of the process grows beyond `size` bytes, as if the disk were full; `None`: as far as they like.
    pub fn limit_files(&self, size: Option<u64>) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        let limit = rustix::process::Rlimit { current: size, maximum: None };
        rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).unwrap();
    }

    /// What `mcpeg status --json` says.
    pub fn status(&self) -> Value {
        let output = self.folder.mcpeg(&["status", "--json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no status: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The message of a condition, with its state before it.
    pub fn condition(&self, component: &str) -> Option<String> {
        let status = self.status();
        let found =
            status["conditions"].as_array()?.iter().find(|condition| condition["component"] == component)?.clone();
        Some(format!("{}: {}", found["state"].as_str()?, found["message"].as_str()?))
    }

    /// Waits until the condition's text holds all of `words`.
    pub async fn says(&self, component: &str, words: &[&str]) -> String {
        let what = format!("{component} says {words:?}");
        eventually(Duration::from_secs(15), &what, || async {
            self.condition(component).filter(|text| words.iter().all(|word| text.contains(word)))
        })
        .await
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        let status = eventually(Duration::from_secs(15), "the sidecar ends", || {
            let ended = self.child.try_wait().unwrap();
            async move { ended }
        })
        .await;
        assert!(!Path::new(&format!("/proc/{}", self.pid())).join("mem").exists() || status.success());
        status
    }

    /// Waits for an end that nobody asked for.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually(Duration::from_secs(15), "the sidecar ends", || {
            let ended = self.child.try_wait().unwrap();
            async move { ended }
        })
        .await
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the sidecar said:\n{}", self.stderr());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal_process(pid: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
