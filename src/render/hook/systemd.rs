//! A unit of systemd that reloads or restarts, by `systemctl`, which knows how to reach the service manager and how to wait for it.

use std::io::ErrorKind;

use super::super::settings::SystemdHook;
use super::HookError;
use super::command;
use super::output::Seen;

pub(super) async fn run(hook: &SystemdHook, seen: &Seen) -> Result<(), HookError> {
    let words = ["systemctl", "--no-ask-password", hook.action, "--", &hook.unit];
    let argv: Vec<String> = words.map(str::to_owned).into();
    match command::run(&argv, Vec::new(), hook.timeout, seen).await {
        Err(HookError::Start { error, .. }) if error.kind() == ErrorKind::NotFound => Err(HookError::NoSystemd),
        outcome => outcome,
    }
}
