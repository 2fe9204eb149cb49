//! `mcpeg run`: parse, build, run, drain.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing::{error, info};

use super::{bad_configuration, block_on, complain, failed, say};
use crate::app::{self, App};
use crate::config::{self, Config, Sources};
use crate::supervisor::Supervisor;

pub fn run(sources: Sources) -> ExitCode {
    let config = match config::load(&sources) {
        Ok(config) => config,
        Err(problems) => return bad_configuration(&problems),
    };
    block_on(WORKERS, serve(config, sources))
}

async fn serve(config: Config, sources: Sources) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(&format!("signals cannot be received: {error}")),
    };
    let app = match app::build(config, sources) {
        Ok(app) => app,
        Err(error) => return failed(&format!("starting failed: {error}")),
    };
    let App { parts, reloader, telemetry: _telemetry, listening, mcp, stdio, readiness } = app;
    let mut supervisor = Supervisor::start(parts);
    // Set once, here.
    let _ = readiness.set(supervisor.readiness());

    let mut announced = false;
    let mut reloads = JoinSet::new();
    let ending = loop {
        let every_part = supervisor.readiness();
        tokio::select! {
            reasons = all_ready(every_part), if !announced => {
                announced = true;
                announce(&listening, &reasons, stdio);
            }
            () = mcp.stdio_ended() => break Ending::Asked("end of input"),
            failure = supervisor.failure() => break Ending::Failed(failure.to_string()),
            asked = signals.next() => match asked {
                Asked::Stop(name) => break Ending::Asked(name),
                Asked::Reload => {
                    tell_systemd(&[sd_notify::NotifyState::Reloading]);
                    let reloader = reloader.clone();
                    // Beside the loop, so that a request to stop is heard meanwhile; they take turns by themselves.
                    if reloads.len() < MAX_RELOADS {
                        reloads.spawn(async move { reloader.reload_now("signal").await });
                    }
                }
            },
            Some(_) = reloads.join_next(), if !reloads.is_empty() => {
                if reloads.is_empty() {
                    tell_systemd(&[sd_notify::NotifyState::Ready]);
                }
            }
        }
    };
    reloads.abort_all();
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    match &ending {
        Ending::Asked(name) => info!(signal = name, "stopping"),
        Ending::Failed(reason) => error!(reason, "stopping"),
    }
    let dropped = tokio::select! {
        dropped = supervisor.stop(reloader.shutdown_timeout()) => dropped,
        // A second request to stop ends the draining.
        () = signals.stop() => vec!["everything that was left, at the second signal"],
    };
    match ending {
        Ending::Failed(reason) => failed(&reason),
        Ending::Asked(_) => {
            if !dropped.is_empty() {
                complain(&format!("mcpeg: not everything ended in time: {}", dropped.join(", ")));
            }
            ExitCode::SUCCESS
        }
    }
}

enum Ending {
    Asked(&'static str),
    Failed(String),
}

/// Waits for every part; the reasons of those that serve, but not whole.
async fn all_ready(parts: Vec<(&'static str, crate::lifecycle::Readiness)>) -> Vec<String> {
    let mut reasons = Vec::new();
    for (name, mut readiness) in parts {
        if let crate::lifecycle::ReadyState::Failed(reason) = readiness.settled().await {
            reasons.push(format!("{name}: {reason}"));
        }
    }
    reasons
}

/// `stdio`: standard output belongs to the client.
fn announce(listening: &[String], reasons: &[String], stdio: bool) {
    let mut line = format!("ready: {}", listening.join(", "));
    if !reasons.is_empty() {
        line.push_str(&format!("; not whole: {}", reasons.join("; ")));
    }
    if stdio {
        complain(&line)
    } else {
        say(&line)
    }
    tell_systemd(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&line)]);
}

/// Where there is no systemd, nobody is told.
fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

enum Asked {
    Stop(&'static str),
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    async fn stop(&mut self) {
        while let Asked::Reload = self.next().await {}
    }
}

/// Threads that drive everything: a sidecar shares its machine with the agent.
const WORKERS: usize = 2;
/// One under way and one that sees what changed since; more signals than that say nothing new.
const MAX_RELOADS: usize = 2;
