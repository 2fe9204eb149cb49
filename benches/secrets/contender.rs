//! The two that are measured, mcpeg and OpenBao's own agent: the same login, the same secrets, the same files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{memory, peers};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    Mcpeg,
    Agent,
}

/// What one run is to do: `s0` to `sN` of the folder `team`, each into a file of its own.
pub struct Task<'a> {
    pub address: &'a str,
    pub role: &'a str,
    pub secret_id: &'a str,
    pub secrets: usize,
    /// How often a value is looked at.
    pub interval: &'a str,
}

pub struct Running {
    child: Child,
    folder: tempfile::TempDir,
    pub started: Instant,
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Mcpeg => "mcpeg",
            Self::Agent => "bao agent",
        }
    }

    pub fn start(self, task: &Task<'_>) -> Running {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "role", task.role);
        write(folder.path(), "id", task.secret_id);
        let mut command = match self {
            Self::Mcpeg => mcpeg(folder.path(), task),
            Self::Agent => agent(folder.path(), task),
        };
        let log = std::fs::File::create(folder.path().join("log")).expect("a file");
        command.envs(memory::LOOKED_INTO).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let started = Instant::now();
        Running { child: command.spawn().expect("the process starts"), folder, started }
    }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn file(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("s{number}.txt"))
    }

    pub fn read(&self, number: usize) -> Option<String> {
        std::fs::read_to_string(self.file(number)).ok()
    }

    /// The permission bits of a file.
    pub fn mode(&self, number: usize) -> u32 {
        std::fs::metadata(self.file(number)).map_or(0, |facts| facts.permissions().mode() & 0o777)
    }

    /// How long after `since` the file has `value`; `None` when that takes longer than `patience`.
    pub async fn follows(&self, number: usize, value: &str, since: Instant, patience: Duration) -> Option<Duration> {
        while self.read(number).as_deref() != Some(value) {
            if since.elapsed() > patience {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Some(since.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}

fn mcpeg(folder: &Path, task: &Task<'_>) -> Command {
    let Task { address, role, interval, secrets, .. } = task;
    let item = |number: usize| {
        format!(
            "    s{number}: {{ provider: corp, path: secret/data/team/s{number}, refresh: {interval}, require_at_start: false }}\n"
        )
    };
    let template = |number: usize| format!("  - {{ source: s{number}.j2, destination: s{number}.txt }}\n");
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{address}\", auth: {{ method: approle, role_id: {role}, secret_id_file: id }} }}\n  items:\n{}\
         templates:\n{}audit: {{ path: audit.log }}\n",
        (0..*secrets).map(item).collect::<String>(),
        (0..*secrets).map(template).collect::<String>(),
    );
    write(folder, "mcpeg.yaml", &main);
    for number in 0..*secrets {
        write(folder, &format!("s{number}.j2"), &format!("{{{{ secret.s{number}.value }}}}"));
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_mcpeg"));
    command.args(["run", "--config"]).arg(folder.join("mcpeg.yaml"));
    command
}

fn agent(folder: &Path, task: &Task<'_>) -> Command {
    let at = |name: &str| folder.join(name).display().to_string();
    let template = |number: usize| {
        format!(
            "template {{\n  contents = \"{{{{ with secret \\\"secret/data/team/s{number}\\\" }}}}{{{{ .Data.data.value }}}}{{{{ end }}}}\"\n  destination = \"{}\"\n}}\n",
            at(&format!("s{number}.txt"))
        )
    };
    let main = format!(
        "vault {{\n  address = \"{}\"\n}}\nauto_auth {{\n  method \"approle\" {{\n    config = {{\n      role_id_file_path = \"{}\"\n      \
         secret_id_file_path = \"{}\"\n      remove_secret_id_file_after_reading = false\n    }}\n  }}\n}}\n\
         template_config {{\n  static_secret_render_interval = \"{}\"\n  exit_on_retry_failure = false\n}}\n{}",
        task.address,
        at("role"),
        at("id"),
        task.interval,
        (0..task.secrets).map(template).collect::<String>(),
    );
    write(folder, "agent.hcl", &main);
    let mut command = Command::new(peers::path("bao"));
    command.args(["agent", "-config"]).arg(folder.join("agent.hcl"));
    command
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
}
