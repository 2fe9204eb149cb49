//! What follows a change: a signal, a command, an HTTP request, a unit of systemd that reloads; in this order where several are configured.
//!
//! `run` runs those that are due, once; when to run and when to try again is the worker's affair. Invariants: each is bounded in time;
//! of one target (a pid file, a name, a command, a URL, a unit) never two run at once, whoever asks; a command gets no shell, a bare
//! environment, and its own process group, which is killed when time is up or the part stops; what a program prints or a server
//! answers is shown only when it fails, with every secret of the rendering and of the hook taken out.

mod command;
mod error;
mod http;
mod output;
mod process;
mod signal;
mod systemd;
mod targets;

use std::sync::Arc;

use crate::ports::{SecretReader, SecretUnavailable};
use crate::secret::{ResolveError, Secret, SecretText};

use super::context::Context;
use super::settings::{OnChange, Validation, Whom};
use super::template::Reads;
use super::unit::Unit;

pub(super) use error::HookError;
use output::Seen;
pub(super) use targets::Targets;

/// What is left to do after a run.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub kinds: Vec<HookKind>,
    /// What went wrong, in words; empty when nothing is left.
    pub problem: String,
}

/// Runs these kinds, one after the other, and puts each on record. `reads`: where it is known what the files were rendered from.
/// `attempt` counts from 1.
pub(super) async fn run(
    context: &Context,
    unit: &Unit,
    on_change: &OnChange,
    kinds: &[HookKind],
    reads: Option<&Reads>,
    attempt: u32,
) -> Left {
    let (mut failed, mut problems) = (Vec::new(), Vec::new());
    for kind in kinds {
        let Some(target) = kind.target(on_change) else { continue };
        let _turn = context.targets.turn(target).await;
        let result = kind.run(on_change, context, reads).await;
        context.hook_ran(unit, *kind, attempt, &result);
        if let Err(error) = result {
            failed.push(*kind);
            problems.push(error.to_string());
        }
    }
    Left { kinds: failed, problem: problems.join("; ") }
}

/// Runs a command that judges new bytes.
pub(super) async fn validate(validation: &Validation, argv: Vec<String>, reads: &Reads) -> Result<(), HookError> {
    command::run(&argv, Vec::new(), validation.timeout, &Seen::of(reads)).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HookKind {
    Signal,
    Command,
    Http,
    Systemd,
}

impl HookKind {
    /// Those that are configured, in their order.
    pub fn of(on_change: &OnChange) -> Vec<Self> {
        let all = [Self::Signal, Self::Command, Self::Http, Self::Systemd];
        all.into_iter().filter(|kind| kind.target(on_change).is_some()).collect()
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Command => "command",
            Self::Http => "http",
            Self::Systemd => "systemd",
        }
    }

    /// What must not be told twice at once.
    fn target(self, on_change: &OnChange) -> Option<String> {
        match self {
            Self::Signal => on_change.signal.as_ref().map(|hook| match &hook.whom {
                Whom::PidFile(path) => format!("pid file {}", path.display()),
                Whom::Named(name) => format!("process {name}"),
                Whom::Supervised => "supervised".to_owned(),
            }),
            Self::Command => on_change.command.as_ref().map(|hook| format!("command {}", hook.argv.join("\0"))),
            Self::Http => on_change.http.as_ref().map(|hook| format!("url {} {:?}", hook.url, hook.socket)),
            Self::Systemd => on_change.systemd.as_ref().map(|hook| format!("unit {}", hook.unit)),
        }
    }

    async fn run(self, on_change: &OnChange, context: &Context, reads: Option<&Reads>) -> Result<(), HookError> {
        let mut seen = reads.map_or_else(Seen::unknown, Seen::of);
        if let (Self::Signal, Some(hook)) = (self, &on_change.signal) {
            return signal::send(hook, context.supervised()).await;
        }
        if let (Self::Command, Some(hook)) = (self, &on_change.command) {
            let mut env = Vec::with_capacity(hook.env.len());
            for (name, text) in &hook.env {
                let value = resolve(text, || format!("variable {name}"), &*context.secrets, &mut seen)?;
                env.push((name.as_str(), value));
            }
            return command::run(&hook.argv, env, hook.timeout, &seen).await;
        }
        if let (Self::Http, Some(hook)) = (self, &on_change.http) {
            return http::send(hook, &*context.secrets, seen).await;
        }
        match &on_change.systemd {
            Some(hook) => systemd::run(hook, &seen).await,
            None => Ok(()),
        }
    }
}

/// The current text; the versions that were read for it are added to `seen`.
fn resolve(
    text: &SecretText,
    place: impl FnOnce() -> String,
    secrets: &dyn SecretReader,
    seen: &mut Seen,
) -> Result<Secret, HookError> {
    let found: Result<Secret, ResolveError<SecretUnavailable>> = text.resolve(|reference| {
        let version = secrets.current(&reference.item)?;
        seen.add(Arc::downgrade(&version));
        Ok(version)
    });
    found.map_err(|error| HookError::Secret { place: place(), reason: error.to_string() })
}
