//! Every way in which a hook or a validation fails, in words.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub(in super::super) enum HookError {
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
    #[error("{signal} not sent: no process here is called {name}")]
    NobodyNamed { signal: String, name: String },
    #[error("{signal} not sent: not permitted to signal any of the {count} processes called {name}")]
    NobodyPermitted { signal: String, name: String, count: usize },
    #[error("{signal} not sent: cannot list the processes: {error}")]
    List { signal: String, error: std::io::Error },
    #[error("{signal} not sent to the supervised process: {reason}")]
    Supervised { signal: String, reason: String },
    #[error("starting {program}: {error}")]
    Start { program: String, error: std::io::Error },
    #[error("systemctl is not on the PATH: this machine or container has no systemd")]
    NoSystemd,
    #[error("waiting for {program}: {error}")]
    Wait { program: String, error: std::io::Error },
    #[error("{program} ended with {status}")]
    Failed { program: String, status: ExitStatus, output: String },
    #[error("{program} did not end within {} s and was killed", .timeout.as_secs_f32())]
    TimedOut { program: String, timeout: Duration, output: String },
    #[error("{place}: {reason}")]
    Secret { place: String, reason: String },
    #[error("header {name}: the secret holds bytes that may not stand in a header")]
    NotAHeader { name: String },
    #[error("{url}: {reason}")]
    Request { url: String, reason: String },
    #[error("{url} answered {status}, expected {expected}")]
    Status { url: String, status: u16, expected: String, output: String },
    #[error("{url} did not answer within {} s", .timeout.as_secs_f32())]
    NoAnswer { url: String, timeout: Duration },
}

impl HookError {
    /// What the program printed or the server said, fit to be logged.
    pub fn output(&self) -> Option<&str> {
        match self {
            Self::Failed { output, .. } | Self::TimedOut { output, .. } | Self::Status { output, .. } => {
                Some(output).filter(|text| !text.is_empty()).map(String::as_str)
            }
            _ => None,
        }
    }
}
