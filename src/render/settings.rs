//! What the render domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use url::Url;

use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq)]
pub struct TemplateSettings {
    pub source: PathBuf,
    pub file: FileSettings,
    pub on_change: Option<OnChange>,
    /// Asked before new bytes take effect.
    pub validate: Option<Validation>,
    /// The files that this one changes together with; then `on_change` is the group's.
    pub group: Option<Arc<GroupSettings>>,
}

/// What a rendered file is to be, apart from its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSettings {
    pub destination: PathBuf,
    /// Permission bits of the written file.
    pub mode: u32,
}

/// Files that change together: their folder is a link, which is switched from one generation of them to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSettings {
    pub name: String,
    /// The link; its members' destinations stand in it.
    pub folder: PathBuf,
    /// Permission bits of a generation's folder.
    pub mode: u32,
    pub validate: Option<Validation>,
    pub on_change: Option<OnChange>,
    /// Go back to the generation before when the hook fails.
    pub rollback: bool,
    /// How long a change waits for others to come with it.
    pub settle: Duration,
    /// How many old generations are kept.
    pub keep: usize,
}

/// A command that says whether new bytes are good, before they take effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// Program and arguments, in which `{file}` and `{folder}` stand for the new ones; no shell.
    pub argv: Vec<String>,
    pub timeout: Duration,
}

/// What follows a change. Several may be set; they run in this order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OnChange {
    pub signal: Option<SignalHook>,
    pub command: Option<CommandHook>,
    pub http: Option<HttpHook>,
    pub systemd: Option<SystemdHook>,
    /// How long the first change waits for others. Zero: not at all.
    pub settle: Duration,
    /// How often one that failed is tried again.
    pub retries: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SignalHook {
    /// A signal's number on this system.
    pub signal: i32,
    /// For people: `SIGHUP`.
    pub name: String,
    pub whom: Whom,
}

/// Who is signalled.
#[derive(Debug, Clone, PartialEq)]
pub enum Whom {
    PidFile(PathBuf),
    /// Every process of this name in our pid namespace.
    Named(String),
    /// The one that mcpeg runs.
    Supervised,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CommandHook {
    /// Program and arguments; no shell.
    pub argv: Vec<String>,
    /// Added to the few variables that a command gets.
    pub env: BTreeMap<String, SecretText>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpHook {
    pub method: Method,
    pub url: Url,
    /// Connect there, and not where the URL says.
    pub socket: Option<PathBuf>,
    pub headers: Vec<(HeaderName, SecretText)>,
    pub body: Option<String>,
    /// The one that means success; `None`: every 2xx.
    pub status: Option<u16>,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<PathBuf>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SystemdHook {
    pub unit: String,
    /// The word that `systemctl` knows: `reload`, `restart`, `reload-or-restart`.
    pub action: &'static str,
    pub timeout: Duration,
}
