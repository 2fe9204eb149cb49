//! One process that runs: its start, its output, its end.
//!
//! Invariants: the copies of secrets that a start needs are freed, and thereby wiped, when `start` returns; when `end` returns, nothing of
//! the group is left.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{io, mem};

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::child::{self, Leader, Manner, ResourceLimits};
use crate::output::{Origin, Printed, Rate, Shipping, Stream};

use super::environment::Environment;
use super::metrics::Metrics;
use super::settings::{NamedSignal, Output, ProcessSettings};

pub(super) struct Running {
    pub leader: Leader,
    pub since: Instant,
}

/// What the process prints, read until its pipes are closed. Kept over the process's end, for what it has left in them.
#[derive(Default)]
pub(super) struct Outputs(JoinSet<()>);

impl Outputs {
    /// Waits for the rest, for a while: somebody who left the process's group may hold the pipes open for ever.
    pub async fn drain(&mut self) {
        let rest = mem::take(&mut self.0);
        // What is late is dropped.
        let _ = timeout(LINGER, rest.join_all()).await;
    }
}

impl Running {
    pub fn start(
        settings: &ProcessSettings,
        environment: Environment,
        outputs: &mut Outputs,
        shipping: &Shipping,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, NotStarted> {
        let program = settings.argv.first().cloned().unwrap_or_default();
        let pipe = || if settings.output == Output::Inherit { Stdio::inherit() } else { Stdio::piped() };
        let manner =
            Manner { identity: settings.identity.clone(), foreground: true, limits: ResourceLimits::default() };
        let spawned = crate::memory::with_wiped_stack(|| {
            let mut command = environment.command(settings, &program);
            command.stdin(Stdio::inherit()).stdout(pipe()).stderr(pipe());
            child::spawn(command, manner)
        });
        let mut leader = spawned.map_err(|source| NotStarted { program: program.clone(), source })?;
        let (_, stdout, stderr) = leader.pipes();
        // Those of processes before it that have ended.
        while outputs.0.len() >= MAX_OUTPUTS && outputs.0.try_join_next().is_some() {}
        if outputs.0.len() >= MAX_OUTPUTS {
            outputs.0.abort_all();
        }
        let name =
            Path::new(&program).file_name().map_or_else(|| program.as_str().into(), |name| name.to_string_lossy());
        let counted = metrics.clone();
        let printed = Arc::new(Printed {
            shipping: shipping.clone(),
            origin: Origin::Process(name.as_ref().into()),
            pid: leader.id(),
            max_line_bytes: settings.log.max_line_bytes,
            rate: Arc::new(Rate::new(settings.log.max_lines_per_second, move || counted.dropped_line())),
            is_passed_through: settings.output == Output::Both,
        });
        if let Some(stdout) = stdout {
            outputs.0.spawn(printed.clone().ship(stdout, Stream::Stdout));
        }
        if let Some(stderr) = stderr {
            outputs.0.spawn(printed.ship(stderr, Stream::Stderr));
        }
        Ok(Self { leader, since: Instant::now() })
    }

    /// Asks the group to end; when `patience` is over, forces it.
    pub async fn stop(mut self, signal: &NamedSignal, patience: Duration) -> End {
        if let Some(signal) = Signal::from_named_raw(signal.number) {
            self.leader.signal_group(signal);
            // One that was stopped (SIGSTOP) would not hear of it.
            self.leader.signal_group(Signal::CONT);
        }
        let in_time = timeout(patience, self.leader.ended()).await.is_ok();
        if !in_time {
            tracing::warn!(
                pid = self.leader.id(),
                after_s = patience.as_secs_f32(),
                "the process did not end in time and is killed"
            );
        }
        End { was_forced: !in_time, ..self.end().await }
    }

    /// Reaps a leader that has ended, and kills what is left of its group.
    pub async fn end(mut self) -> End {
        let status = self.leader.reap().await;
        End { pid: self.leader.id(), status, lived: self.since.elapsed(), at: Instant::now(), was_forced: false }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub pid: u32,
    pub status: Option<ExitStatus>,
    pub lived: Duration,
    pub at: Instant,
    pub was_forced: bool,
}

impl End {
    pub fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// As a shell passes it on: 128 and the signal's number for a process that a signal has ended.
    pub fn code(&self) -> u8 {
        let Some(status) = self.status else { return 1 };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        u8::try_from(code & 0xff).unwrap_or(1)
    }

    /// The same after a stop that was asked for: a process that the stop signal has ended did what it was told.
    pub fn code_of_stop(&self, signal: &NamedSignal) -> u8 {
        let by_signal = self.status.and_then(|status| status.signal()) == Some(signal.number);
        if by_signal && !self.was_forced { 0 } else { self.code() }
    }

    pub fn words(&self) -> String {
        child::describe(self.status)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{program}: cannot be started: {source}")]
pub(super) struct NotStarted {
    program: String,
    source: io::Error,
}

impl NotStarted {
    /// As a shell has it.
    pub fn code(&self) -> u8 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// Since when, for a person.
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}

const LINGER: Duration = Duration::from_millis(500);
/// Two streams of the present process and of the few before it.
const MAX_OUTPUTS: usize = 8;
