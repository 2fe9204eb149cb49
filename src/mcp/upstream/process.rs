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
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::child::{self, Identity, Leader, Manner};
use crate::mcp::credentials::{CredentialError, Versions, resolve};
use crate::mcp::lines::Lines;
use crate::mcp::service::{ChildEntry, Service};
use crate::mcp::settings::StdioSettings;
use crate::output::{Origin, Printed, Rate, Shipping, Stream};
use crate::ports::{Hold, SecretReader};

pub struct Process {
    pub leader: Leader,
    pub lines: Lines<ChildStdout, ChildStdin>,
    pub versions: Arc<[String]>,
    pub started: Instant,
    _entry: ChildEntry,
    /// It uses what it was started with for as long as it lives.
    _holds: Vec<Hold>,
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
        shipping: &Shipping,
        max_line: usize,
    ) -> Result<Self, SpawnError> {
        let mut versions = Versions::default();
        let program = settings.argv.first().cloned().ok_or(SpawnError::NoCommand)?;
        if let Some(reason) = settings.identity.as_ref().and_then(Identity::refused) {
            return Err(SpawnError::Identity { reason });
        }
        // The command holds copies of the variables: it is freed before `spawn` returns.
        let (identity, limits) = (settings.identity.clone(), settings.limits.clone());
        let manner = Manner { identity, foreground: false, limits };
        let spawned = child::spawn(command(&program, settings, secrets, &mut versions)?, manner);
        let mut leader = spawned.map_err(|source| SpawnError::Start { program: program.clone(), source })?;
        let (Some(stdin), Some(stdout), Some(stderr)) = leader.pipes() else {
            return Err(SpawnError::Pipes { program });
        };
        let (pid, holds) = (leader.id(), versions.hold(secrets));
        let mut log = JoinSet::new();
        let printed = Printed {
            shipping: shipping.clone(),
            origin: Origin::Service(service.name.clone()),
            pid,
            max_line_bytes: MAX_LOG_LINE,
            rate: Arc::new(Rate::new(MAX_LOG_LINES, || {})),
            is_passed_through: false,
        };
        log.spawn(Arc::new(printed).ship(stderr, Stream::Stderr));
        tracing::info!(service = &*service.name, pid, program, "child started");
        Ok(Self {
            leader,
            lines: Lines::new(stdout, stdin, max_line),
            versions: versions.list(),
            started: Instant::now(),
            _entry: ChildEntry::of(service, pid),
            _holds: holds,
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

/// What a child gets of our own variables.
const INHERITED: [&str; 9] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL"];
const TERM_PATIENCE: Duration = Duration::from_secs(2);
const MAX_LOG_LINE: usize = 4 * 1024;
/// In a second, of one child.
const MAX_LOG_LINES: u32 = 1000;
