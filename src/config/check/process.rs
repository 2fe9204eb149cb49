//! `process`, and the users and groups that programs are run as.
//!
//! Names are looked up in /etc/passwd and /etc/group themselves, as a container without a name service has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::{Check, seconds};
use crate::child::Identity;
use crate::config::raw::operation::{
    RawInheritEnv, RawOutput, RawProcess, RawProcessOnChange, RawRestart, RawRestartPolicy,
};
use crate::config::raw::scalar::{RawAccount, RawSecretText, RawSignal};
use crate::config::units::parse_signal;
use crate::process::settings::{
    Inherit, LogLimits, NamedSignal, OnChange, Output, Policy, ProcessSettings, RestartSettings, is_credential,
};
use crate::secret::SecretText;
use crate::secrets::settings::{ProviderSettings, SecretsSettings};

/// `program` is what stands after `mcpeg run --`; `None`: nothing is going to be run.
pub fn settings(
    raw: Option<RawProcess>,
    program: Option<&[String]>,
    secrets: &SecretsSettings,
    check: &mut Check<'_>,
) -> Option<ProcessSettings> {
    let given = program.filter(|words| !words.is_empty());
    if raw.is_none() && given.is_none() {
        return None;
    }
    let raw = raw.unwrap_or_default();
    if raw.command.is_none() && given.is_none() && program.is_some() {
        let help = "or give it on the command line: mcpeg run -- PROGRAM ARGUMENTS";
        check.problem_with(&["process"], "`command` is missing", help);
        return None;
    }
    let argv = given.map(<[String]>::to_vec).or(raw.command).unwrap_or_default();
    if !argv.is_empty() && (argv.iter().any(|word| word.contains('\0')) || argv[0].is_empty()) {
        check.problem(&["process", "command"], "the program's name is empty, or a word holds a zero byte");
    }
    let working_directory = raw.working_directory.map(|path| path.0);
    if let Some(folder) = working_directory.as_ref().filter(|folder| !folder.is_dir()) {
        check.problem(&["process", "working_directory"], format!("{} is not a folder", folder.display()));
    }
    let withheld = variables_of(secrets);
    let settings = ProcessSettings {
        env: env(raw.env, check),
        inherit: inherit(raw.inherit_env, &withheld, check),
        withheld,
        on_change: on_change(raw.on_change, raw.signal, check),
        working_directory,
        identity: identity(raw.user, raw.group, &["process"], check),
        restart: restart(&raw.restart, given.is_some(), check),
        stop_signal: signal(raw.stop_signal, "SIGTERM"),
        stop_timeout: raw.stop_timeout.map_or(seconds(10), |timeout| timeout.0),
        output: match raw.output {
            Some(RawOutput::Inherit) => Output::Inherit,
            Some(RawOutput::Log) => Output::Log,
            Some(RawOutput::Both) => Output::Both,
            None if given.is_some() => Output::Inherit,
            None => Output::Log,
        },
        log: LogLimits {
            max_line_bytes: raw.log.max_line_bytes.unwrap_or(16 * 1024) as usize,
            max_lines_per_second: raw.log.max_lines_per_second.unwrap_or(1000),
        },
        interactive: given.is_some(),
        argv,
    };
    // Without a program the section is for `mcpeg run -- PROGRAM` alone.
    (!settings.argv.is_empty()).then_some(settings)
}

fn env(raw: BTreeMap<String, RawSecretText>, check: &mut Check<'_>) -> BTreeMap<String, SecretText> {
    for name in raw.keys().filter(|name| !is_variable(name)) {
        check.problem(&["process", "env", name], "not a variable's name");
    }
    raw.into_iter().map(|(name, value)| (name, value.0)).collect()
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn inherit(raw: Option<RawInheritEnv>, withheld: &BTreeSet<String>, check: &mut Check<'_>) -> Inherit {
    match raw {
        None | Some(RawInheritEnv::All(true)) => Inherit::All,
        Some(RawInheritEnv::All(false)) => Inherit::None,
        Some(RawInheritEnv::Names(names)) => {
            for name in &names {
                if !is_variable(name) {
                    check.problem(&["process", "inherit_env"], format!("`{name}` is not a variable's name"));
                } else if is_credential(name) || withheld.contains(name) {
                    let message = format!("{name} is a credential of mcpeg's own, which the process does not get");
                    let help = "make it an item of `secrets.items` and name it under `process.env`";
                    check.problem_with(&["process", "inherit_env"], message, help);
                }
            }
            Inherit::Names(names.into_iter().collect())
        }
    }
}

/// The variables that providers of the type `environment` read.
fn variables_of(secrets: &SecretsSettings) -> BTreeSet<String> {
    let is_variable =
        |provider: &String| matches!(secrets.providers.get(provider), Some(ProviderSettings::Environment));
    let items = secrets.items.values().filter(|item| is_variable(&item.provider));
    items.map(|item| item.path.clone()).collect()
}

fn on_change(raw: Option<RawProcessOnChange>, given: Option<RawSignal>, check: &mut Check<'_>) -> OnChange {
    if given.is_some() && !matches!(raw, Some(RawProcessOnChange::Signal)) {
        check.problem(&["process", "signal"], "`signal` belongs to `on_change: signal`");
    }
    match raw {
        Some(RawProcessOnChange::Signal) => OnChange::Signal(signal(given, "SIGHUP")),
        Some(RawProcessOnChange::Ignore) => OnChange::Ignore,
        Some(RawProcessOnChange::Restart) | None => OnChange::Restart,
    }
}

/// The shape check knows every name that is written; the default is one of them.
fn signal(raw: Option<RawSignal>, default: &str) -> NamedSignal {
    let name = raw.map_or_else(|| default.to_owned(), |raw| raw.0);
    let number = parse_signal(&name).unwrap_or(libc::SIGTERM);
    NamedSignal { name, number }
}

fn restart(raw: &RawRestart, is_short_form: bool, check: &mut Check<'_>) -> RestartSettings {
    let policy = match raw.policy {
        Some(RawRestartPolicy::Always) => Policy::Always,
        Some(RawRestartPolicy::OnFailure) => Policy::OnFailure,
        Some(RawRestartPolicy::Never) => Policy::Never,
        None if is_short_form => Policy::Never,
        None => Policy::OnFailure,
    };
    let initial_backoff = raw.initial_backoff.as_ref().map_or(seconds(1), |wait| wait.0);
    let max_backoff = raw.max_backoff.as_ref().map_or(seconds(60).max(initial_backoff), |wait| wait.0);
    if max_backoff < initial_backoff {
        check.problem(&["process", "restart", "max_backoff"], "it is shorter than `initial_backoff`");
    }
    RestartSettings { policy, initial_backoff, max_backoff, max_restarts: raw.max_restarts }
}

/// `path` leads to what has the keys `user` and `group`.
pub fn identity(
    user: Option<RawAccount>,
    group: Option<RawAccount>,
    path: &[&str],
    check: &mut Check<'_>,
) -> Option<Identity> {
    let group = match group {
        None => None,
        Some(RawAccount::Id(gid)) => Some(gid),
        Some(RawAccount::Name(name)) => match group_called(&name) {
            Some(gid) => Some(gid),
            None => {
                check.problem(&super::join(path, &["group"]), format!("there is no group `{name}` in {GROUPS}"));
                return None;
            }
        },
    };
    let Some(user) = user else {
        let own = rustix::process::geteuid().as_raw();
        return group.map(|gid| identity_of(own, gid, user_with(|user| user.uid == own)));
    };
    let known = match &user {
        RawAccount::Id(uid) => user_with(|user| user.uid == *uid),
        RawAccount::Name(name) => user_with(|user| user.name == *name),
    };
    let user_path = super::join(path, &["user"]);
    match (user, known) {
        (RawAccount::Name(name), None) => {
            check.problem(&user_path, format!("there is no user `{name}` in {USERS}"));
            None
        }
        (RawAccount::Id(uid), None) => match group {
            Some(gid) => Some(identity_of(uid, gid, None)),
            None => {
                check.problem(&user_path, format!("the user {uid} is not in {USERS}: say its `group` too"));
                None
            }
        },
        (_, Some(user)) => Some(identity_of(user.uid, group.unwrap_or(user.gid), Some(user))),
    }
}

fn identity_of(uid: u32, gid: u32, user: Option<User>) -> Identity {
    let (name, home) = user.map_or((None, None), |user| (Some(user.name), Some(user.home)));
    Identity { uid, gid, name, home }
}

struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

/// Of passwd(5): name, password, uid, gid, comment, home, shell.
fn user_with(is_it: impl Fn(&User) -> bool) -> Option<User> {
    let text = std::fs::read_to_string(USERS).ok()?;
    let users = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(User { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() })
    });
    users.into_iter().find(is_it)
}

/// Of group(5): name, password, gid, members.
fn group_called(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(GROUPS).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";
