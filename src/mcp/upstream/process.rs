//! A child process that speaks MCP over its standard input and output, in a process group of its own.
//!
//! Owns the start (with few variables and the configured ones, secrets put in at that moment), the pipes, the log of its standard
//! error, and the end: input closed, SIGTERM to the group, SIGKILL to the group, each after a bounded time.
//!
//! Invariants: the copies of secrets that a start needs are freed, and thereby wiped, when `spawn` returns; a group is only signalled
//! while its leader has not been reaped, so that the number cannot have passed to somebody else; dropping a `Leader` kills the group; a leader
//! does not outlive this process (`child`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use zeroize::{Zeroize, Zeroizing};

use crate::child;
use crate::guard::{Guard, Stream};
use crate::mcp::credentials::{CredentialError, Versions, resolve};
use crate::mcp::lines::Lines;
use crate::mcp::service::{ChildEntry, Service};
use crate::mcp::settings::StdioSettings;
use crate::ports::SecretReader;

pub struct Process {
    pub leader: Leader,
    pub lines: Lines<ChildStdout, ChildStdin>,
    pub versions: Arc<[String]>,
    pub started: Instant,
    _entry: ChildEntry,
    _stderr: JoinSet<()>,
}

/// The process that was started, which leads a group.
pub struct Leader {
    child: Child,
    group: Pid,
    /// Becomes readable when the leader ends, before it is reaped. `None` where the kernel has no such thing.
    pidfd: Option<AsyncFd<OwnedFd>>,
    reaped: Option<ExitStatus>,
}

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("the command is empty")]
    NoCommand,
    #[error("{program}: cannot be started: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program}: was started, but its pipes are missing")]
    Pipes { program: String },
}

impl Process {
    pub fn spawn(
        settings: &StdioSettings,
        service: &Arc<Service>,
        secrets: &dyn SecretReader,
        guard: &Arc<Guard>,
        max_line: usize,
    ) -> Result<Self, SpawnError> {
        let mut versions = Versions::default();
        let program = settings.argv.first().cloned().ok_or(SpawnError::NoCommand)?;
        // The command holds copies of the variables: it is freed before `spawn` returns.
        let spawned = child::spawn(command(&program, settings, secrets, &mut versions)?);
        let mut child = spawned.map_err(|source| SpawnError::Start { program: program.clone(), source })?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let ((Some(stdin), Some(stdout), Some(stderr)), Some(group)) = (pipes, group) else {
            return Err(SpawnError::Pipes { program });
        };
        let pid = group.as_raw_nonzero().get().cast_unsigned();
        let pidfd = watchable(group);
        let mut log = JoinSet::new();
        log.spawn(log_lines(stderr, guard.clone(), service.name.clone(), pid));
        tracing::info!(service = &*service.name, pid, program, "child started");
        Ok(Self {
            leader: Leader { child, group, pidfd, reaped: None },
            lines: Lines::new(stdout, stdin, max_line),
            versions: versions.list(),
            started: Instant::now(),
            _entry: ChildEntry::of(service, pid),
            _stderr: log,
        })
    }

    /// Ends the child in good order: closes its pipes, and when `patience` is over asks, then forces.
    pub async fn stop(self, patience: Duration) {
        let Self { mut leader, mut lines, .. } = self;
        lines.flush(patience).await;
        drop(lines);
        if tokio::time::timeout(patience, leader.ended()).await.is_err() {
            leader.signal(Signal::TERM);
            // When this runs out as well, `reap` forces.
            let _ = tokio::time::timeout(TERM_PATIENCE, leader.ended()).await;
        }
        let how = leader.reap().await;
        tracing::info!(pid = leader.group.as_raw_nonzero().get(), how, "child ended");
    }
}

impl Leader {
    /// Completes when the leader has ended. Cancel-safe.
    pub async fn ended(&mut self) {
        match &self.pidfd {
            // An error would mean that there is no reactor any more, and then nothing goes on anyway.
            Some(fd) => drop(fd.readable().await),
            None => self.reaped = self.child.wait().await.ok(),
        }
    }

    /// Kills what is left of the group and reaps the leader; says how it ended. Cancel-safe.
    pub async fn reap(&mut self) -> String {
        self.signal(Signal::KILL);
        if self.reaped.is_none() {
            self.reaped = self.child.wait().await.ok();
        }
        self.reaped.map_or_else(|| "its status is unknown".to_owned(), describe)
    }

    fn signal(&self, signal: Signal) {
        if self.reaped.is_none() {
            // An error means that nobody is left in the group.
            let _ = kill_process_group(self.group, signal);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A descriptor that becomes readable when the process ends.
#[expect(
    deprecated,
    reason = "sound for an `OwnedFd`; the replacement is unsafe, and unsafe code is for `memory` only"
)]
fn watchable(process: Pid) -> Option<AsyncFd<OwnedFd>> {
    AsyncFd::new(pidfd_open(process, PidfdFlags::NONBLOCK).ok()?).ok()
}

fn command(
    program: &str,
    settings: &StdioSettings,
    secrets: &dyn SecretReader,
    versions: &mut Versions,
) -> Result<Command, CredentialError> {
    let mut command = Command::new(program);
    command
        .args(settings.argv.iter().skip(1))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
    if let Some(folder) = &settings.working_directory {
        command.current_dir(folder);
    }
    for (name, text) in &settings.env {
        let value = resolve(text, || format!("variable {name}"), secrets, versions)?;
        command.env(name, OsStr::from_bytes(value.expose()));
    }
    Ok(command)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Logs what the child writes on its standard error, line by line; longer lines are cut into pieces. Secrets are taken out before that,
/// so that a cut cannot hide one, and what was read is wiped.
async fn log_lines(mut stderr: ChildStderr, guard: Arc<Guard>, service: Arc<str>, pid: u32) {
    let mut room = Zeroizing::new(vec![0; MAX_LOG_LINE]);
    let mut clean = Stream::new(guard);
    let mut line = Vec::new();
    let say = |line: &mut Vec<u8>| {
        for piece in line.chunks(MAX_LOG_LINE) {
            let text = String::from_utf8_lossy(piece);
            if !text.trim_end().is_empty() {
                tracing::info!(target: "mcpeg::upstream", service = &*service, pid, line = text.trim_end(), "stderr");
            }
        }
        line.clear();
    };
    loop {
        let read = stderr.read(&mut room).await.unwrap_or(0);
        for part in room[..read].split_inclusive(|byte| *byte == b'\n') {
            clean.push(part, &mut line);
            if part.ends_with(b"\n") {
                clean.finish(&mut line);
                say(&mut line);
            } else if line.len() >= MAX_LOG_LINE {
                say(&mut line);
            }
        }
        room[..read].zeroize();
        if read == 0 {
            clean.finish(&mut line);
            return say(&mut line);
        }
    }
}

/// What a child gets of our own variables.
const INHERITED: [&str; 9] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL"];
const TERM_PATIENCE: Duration = Duration::from_secs(2);
const MAX_LOG_LINE: usize = 4 * 1024;
