//! What follows a change of a file: a signal to the process named in a pid file, then a command.
//!
//! Invariants: both are bounded in time; a command gets no shell, a bare environment, and its own process group, which is killed when
//! time is up or the part stops; what it prints is shown only when it fails, with every secret of the rendering taken out.

mod command;
mod output;
mod signal;

use std::path::PathBuf;
use std::time::Duration;

use super::context::Context;
use super::settings::TemplateSettings;
use super::template::Reads;

/// Runs what is configured, the signal first, and puts it on record. Gives what went wrong, in words.
pub(super) async fn run(context: &Context, settings: &TemplateSettings, reads: &Reads) -> Result<(), String> {
    let Some(on_change) = &settings.on_change else { return Ok(()) };
    let mut problems = Vec::new();
    if let Some(hook) = &on_change.signal {
        let result = signal::send(hook).await;
        context.hook_ran(settings, HookKind::Signal, &result);
        problems.extend(result.err().map(|error| error.to_string()));
    }
    if let Some(hook) = &on_change.command {
        let result = command::run(hook, reads).await;
        context.hook_ran(settings, HookKind::Command, &result);
        problems.extend(result.err().map(|error| error.to_string()));
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum HookKind {
    Signal,
    Command,
}

impl HookKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Command => "command",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    #[error("{signal} not sent: cannot read the pid file {}: {error}", .pid_file.display())]
    PidFile { signal: String, pid_file: PathBuf, error: std::io::Error },
    #[error("{signal} not sent: {} does not hold the id of a process (a number above 1)", .pid_file.display())]
    NotAPid { signal: String, pid_file: PathBuf },
    #[error("{signal} not sent: there is no process {pid}, which {} names", .pid_file.display())]
    NoSuchProcess { signal: String, pid: i32, pid_file: PathBuf },
    #[error("{signal} not sent: not permitted to signal process {pid}, which {} names", .pid_file.display())]
    NotPermitted { signal: String, pid: i32, pid_file: PathBuf },
    #[error("{signal} not sent to process {pid}: {error}")]
    Kill { signal: String, pid: i32, error: std::io::Error },
    #[error("starting {program}: {error}")]
    Start { program: String, error: std::io::Error },
    #[error("waiting for {program}: {error}")]
    Wait { program: String, error: std::io::Error },
    #[error("{program} ended with {status}")]
    Failed { program: String, status: std::process::ExitStatus, output: String },
    #[error("{program} did not end within {} s and was killed", .timeout.as_secs_f32())]
    TimedOut { program: String, timeout: Duration, output: String },
}

impl HookError {
    /// What the command printed, fit to be logged.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Failed { output, .. } | Self::TimedOut { output, .. } => {
                Some(output).filter(|text| !text.is_empty()).map(String::as_str)
            }
            _ => None,
        }
    }
}
