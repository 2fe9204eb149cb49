//! A child process that speaks MCP over its standard input and output, in a process group of its own.
//!
//! Owns the start (with few variables and the configured ones, secrets put in at that moment), the pipes, the log of its standard
//! error, and the end: input closed, SIGTERM to the group, SIGKILL to the group, each after a bounded time.
//!
//! Invariants: the copies of secrets that a start needs are freed, and thereby wiped, when `spawn` returns; a child
//! does not outlive this process and is killed with its group when it is dropped (`child`).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::child::{self, Identity, Leader, Manner};
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

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("the command is empty")]
    NoCommand,
    #[error("{program}: cannot be started: {source}")]
    Start { program: String, source: io::Error },
    #[error("{reason}")]
    Identity { reason: String },
    #[error("{program}: was started, but its pipes are missing")]
    Pipes { program: String },
}

impl Process {
    pub fn spawn(
        settings: &StdioSettings,
        service: &Arc<Service>,
        secrets: &dyn SecretReader,
        max_line: usize,
    ) -> Result<Self, SpawnError> {
        let mut versions = Versions::default();
        let program = settings.argv.first().cloned().ok_or(SpawnError::NoCommand)?;
        if let Some(reason) = settings.identity.as_ref().and_then(Identity::refused) {
            return Err(SpawnError::Identity { reason });
        }
        // The command holds copies of the variables: it is freed before `spawn` returns.
        let manner = Manner { identity: settings.identity.clone(), foreground: false };
        let spawned = child::spawn(command(&program, settings, secrets, &mut versions)?, manner);
        let mut leader = spawned.map_err(|source| SpawnError::Start { program: program.clone(), source })?;
        let (Some(stdin), Some(stdout), Some(stderr)) = leader.pipes() else {
            return Err(SpawnError::Pipes { program });
        };
        let pid = leader.id();
        let mut log = JoinSet::new();
        log.spawn(log_lines(stderr, service.name.clone(), pid));
        tracing::info!(service = &*service.name, pid, program, "child started");
        Ok(Self {
            leader,
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
            leader.signal_group(Signal::TERM);
            // When this runs out as well, `reap` forces.
            let _ = tokio::time::timeout(TERM_PATIENCE, leader.ended()).await;
        }
        let how = child::describe(leader.reap().await);
        tracing::info!(pid = leader.id(), how, "child ended");
    }
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
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));
    if let Some(identity) = settings.identity.as_ref().filter(|identity| !identity.is_own()) {
        identity.describe_in(&mut command);
    }
    if let Some(folder) = &settings.working_directory {
        command.current_dir(folder);
    }
    for (name, text) in &settings.env {
        let value = resolve(text, || format!("variable {name}"), secrets, versions)?;
        command.env(name, OsStr::from_bytes(value.expose()));
    }
    Ok(command)
}

/// Logs what the child writes on its standard error, line by line; longer lines are cut into pieces.
async fn log_lines(stderr: ChildStderr, service: Arc<str>, pid: u32) {
    let mut reader = BufReader::with_capacity(MAX_LOG_LINE, stderr);
    let mut line = Vec::new();
    loop {
        let Ok(chunk) = reader.fill_buf().await else { return };
        let at_end = chunk.is_empty();
        let piece = memchr::memchr(b'\n', chunk).map_or(chunk.len(), |end| end + 1).min(MAX_LOG_LINE - line.len());
        line.extend_from_slice(&chunk[..piece]);
        reader.consume(piece);
        if at_end || line.ends_with(b"\n") || line.len() >= MAX_LOG_LINE {
            let text = String::from_utf8_lossy(&line);
            if !text.trim_end().is_empty() {
                tracing::info!(target: "mcpeg::upstream", service = &*service, pid, line = text.trim_end(), "stderr");
            }
            line.clear();
        }
        if at_end {
            return;
        }
    }
}

/// What a child gets of our own variables.
const INHERITED: [&str; 9] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL"];
const TERM_PATIENCE: Duration = Duration::from_secs(2);
const MAX_LOG_LINE: usize = 4 * 1024;
