//! What the render domain is told by the configuration, checked.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
pub struct TemplateSettings {
    pub source: PathBuf,
    pub file: FileSettings,
    pub on_change: Option<OnChange>,
}

/// What a rendered file is to be, apart from its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSettings {
    pub destination: PathBuf,
    /// Permission bits of the written file.
    pub mode: u32,
}

/// What follows a change of the file. Both may be set; the signal goes first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OnChange {
    pub signal: Option<SignalHook>,
    pub command: Option<CommandHook>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SignalHook {
    /// A signal's number on this system.
    pub signal: i32,
    /// For people: `SIGHUP`.
    pub name: String,
    pub pid_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CommandHook {
    /// Program and arguments; no shell.
    pub argv: Vec<String>,
    pub timeout: Duration,
}
