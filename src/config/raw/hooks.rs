//! The written shape of what follows a change (`on_change`) and of groups of files (`render.groups`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{RawDuration, RawMode, RawPath, RawSecretText, RawSignal, RawUrl};

/// Files whose folder is a link, which is switched from one generation of them to the next.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawGroup {
    /// A command that has to succeed before new files take effect. `{folder}` stands for the folder of the new ones; with `{file}` it runs
    /// once for each file.
    #[schemars(length(min = 1))]
    pub validate: Option<Vec<String>>,
    /// For `validate`. Default: `10s`.
    pub timeout: Option<RawDuration>,
    /// What follows a switch.
    pub on_change: Option<RawOnChange>,
    /// Go back to the generation before when `on_change` fails.
    #[serde(default)]
    pub rollback: bool,
    /// How long a change waits for others to come with it: `250ms` to `5s`. Default: not at all.
    pub settle: Option<RawDuration>,
    /// How many old generations are kept. Default: 1.
    #[schemars(range(min = 1, max = 100))]
    pub keep: Option<u64>,
    /// Of the folder. Default: `"0700"`.
    pub mode: Option<RawMode>,
}

/// Several may be given; they run in this order: signal, command, http, systemd.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawOnChange {
    /// Needs `pid_file`, `process_name` or `supervised`.
    pub signal: Option<RawSignal>,
    pub pid_file: Option<RawPath>,
    /// Every process of this name in mcpeg's own pid namespace that it may signal.
    pub process_name: Option<String>,
    /// The program that `process` runs. While it does not run there is nobody to tell: its next start reads what is there.
    #[serde(default)]
    pub supervised: bool,
    /// Program and arguments; no shell.
    #[schemars(length(min = 1))]
    pub command: Option<Vec<String>>,
    /// Variables for the command, beside `PATH`, `HOME` and a few others. No secret is in its environment that is not named here.
    #[serde(default)]
    pub env: BTreeMap<String, RawSecretText>,
    pub http: Option<RawHookHttp>,
    pub systemd: Option<RawHookSystemd>,
    /// For each of them but the signal. Default: `10s`.
    pub timeout: Option<RawDuration>,
    /// How long the first change waits for others: `250ms` to `5s`. Default: not at all.
    pub settle: Option<RawDuration>,
    /// How often what failed is tried again, after 500 ms, then 1 s, 2 s and so on. Default: 3.
    #[schemars(range(max = 10))]
    pub retries: Option<u32>,
}

/// A request that tells a server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawHookHttp {
    /// Default: `POST`.
    pub method: Option<RawHookMethod>,
    pub url: RawUrl,
    /// A Unix socket to connect to, in place of the URL's host.
    pub socket: Option<RawPath>,
    #[serde(default)]
    pub headers: BTreeMap<String, RawSecretText>,
    pub body: Option<String>,
    /// The one answer that means success. Default: any from 200 to 299.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<RawPath>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RawHookMethod {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// Needs `systemctl`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawHookSystemd {
    /// `nginx.service`
    pub unit: String,
    /// Default: `reload`.
    pub action: Option<RawHookAction>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawHookAction {
    Reload,
    Restart,
    ReloadOrRestart,
}
