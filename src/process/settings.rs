//! What the supervised process is told by the configuration, checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::child::Identity;
use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq)]
pub struct ProcessSettings {
    /// Program and arguments; no shell.
    pub argv: Vec<String>,
    pub env: BTreeMap<String, SecretText>,
    pub inherit: Inherit,
    /// Variables of our own that hold secrets, beside those that `is_credential` knows.
    pub withheld: BTreeSet<String>,
    pub on_change: OnChange,
    pub working_directory: Option<PathBuf>,
    /// `None`: as the user that mcpeg runs as.
    pub identity: Option<Identity>,
    pub restart: RestartSettings,
    pub stop_signal: NamedSignal,
    /// From the stop signal to SIGKILL.
    pub stop_timeout: Duration,
    pub output: Output,
    pub log: LogLimits,
    /// It was given on the command line: standard output is its own.
    pub interactive: bool,
}

impl ProcessSettings {
    /// Whether a process that was started with `other` is one that these settings would start.
    pub fn starts_the_same(&self, other: &Self) -> bool {
        let started = |of: &Self| Self { on_change: OnChange::Ignore, stop_timeout: Duration::ZERO, ..of.clone() };
        let (mut mine, theirs) = (started(self), started(other));
        mine.restart = theirs.restart.clone();
        mine.stop_signal = theirs.stop_signal.clone();
        mine == theirs
    }
}

/// Which of our own variables the process gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inherit {
    /// Those that hold no credential.
    All,
    None,
    Names(BTreeSet<String>),
}

/// What happens when a secret of the environment changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnChange {
    Restart,
    Signal(NamedSignal),
    Ignore,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSignal {
    pub name: String,
    pub number: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartSettings {
    pub policy: Policy,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// In a row. `None`: no limit.
    pub max_restarts: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The process has our own standard output and error.
    Inherit,
    /// Its lines go to the own log and, as records, to the collector.
    Log,
    /// Its lines go to our standard output and error and, as records, to the collector.
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    pub max_line_bytes: usize,
    pub max_lines_per_second: u32,
}

/// Whether a variable of this name holds a credential of ours, or an address that is meant for us alone: no program that we start gets it.
pub fn is_credential(name: &str) -> bool {
    let of_a_provider = ["VAULT_", "BAO_", "AWS_"].iter().any(|prefix| name.starts_with(prefix));
    let is_secret =
        ["TOKEN", "SECRET", "PASSWORD", "KEY", "ROLE_ID", "CREDENTIALS"].iter().any(|word| name.contains(word));
    let of_the_collector = name.starts_with("OTEL_EXPORTER_OTLP") && name.ends_with("HEADERS");
    let of_systemd = name == "NOTIFY_SOCKET" || name == "CREDENTIALS_DIRECTORY" || name.starts_with("WATCHDOG_");
    (of_a_provider && is_secret) || name.starts_with("MCPEG_") || of_the_collector || of_systemd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_known_by_their_names() {
        for name in [
            "VAULT_TOKEN",
            "BAO_TOKEN",
            "VAULT_SECRET_ID",
            "VAULT_ROLE_ID",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
            "MCPEG_ADMIN__HTTP__TOKEN",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
        ] {
            assert!(is_credential(name), "{name}");
        }
        for name in ["PATH", "HOME", "VAULT_ADDR", "AWS_REGION", "OPENAI_API_KEY", "TOKENIZERS_PARALLELISM"] {
            assert!(!is_credential(name), "{name}");
        }
    }
}
