//! `mcpeg run`: parse, build, run, drain. Signals arrive here: what they mean is decided here, and what is meant for the supervised process is
//! passed on. Its end for good is an end of everything, with its exit code.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::{block_on, complain, failed, load_opened, say};
use crate::app::{self, App};
use crate::child;
use crate::config::{Config, Sources};
use crate::lifecycle::Stage;
use crate::memory;
use crate::ports::SupervisedProcess;
use crate::process::ProcessHandle;
use crate::reload::Reloader;
use crate::supervisor::Supervisor;

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Supervise this program, with the environment that `process` says; mcpeg ends when it does, with its exit code
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

pub fn run(mut sources: Sources, args: RunArgs) -> ExitCode {
    sources.program = Some(args.program);
    let config = match load_opened(&mut sources) {
        Ok(config) => config,
        Err(code) => return code,
    };
    memory::share_heaps();
    child::lift_open_files();
    block_on(WORKERS, serve(config, sources))
}

async fn serve(config: Config, sources: Sources) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(&format!("signals cannot be received: {error}")),
    };
    let is_short_form = config.process.as_ref().is_some_and(|process| process.interactive);
    let app = match app::build(config, sources) {
        Ok(app) => app,
        Err(error) => return failed(&format!("starting failed: {error}")),
    };
    let App { parts, reloader, telemetry: _telemetry, process, listening, mcp, stdio, readiness } = app;
    let mut supervisor = Supervisor::start(parts);
    // Set once, here.
    let _ = readiness.set(supervisor.readiness());

    let mut announced = false;
    let mut is_settled = false;
    let mut settled = pin!(tokio::time::sleep(SETTLING));
    let mut reloads = JoinSet::new();
    let ending = loop {
        let every_part = supervisor.readiness();
        tokio::select! {
            reasons = all_ready(every_part), if !announced => {
                announced = true;
                announce(&listening, &reasons, stdio, is_short_form);
                memory::let_go_of_start();
                settled.as_mut().reset(Instant::now() + SETTLING);
            }
            // Once more, for what followed: the first answers, files and exports.
            () = &mut settled, if announced && !is_settled => {
                is_settled = true;
                memory::let_go_of_start();
            }
            code = process.ended() => break Ending::Process(code),
            () = mcp.stdio_ended() => break Ending::Asked("end of input"),
            failure = supervisor.failure() => break Ending::Failed(failure.to_string()),
            asked = signals.next() => match asked {
                Asked::Stop(name) => break Ending::Asked(name),
                Asked::PassOn { name, number } => match process.signal(number) {
                    Ok(()) => debug!(signal = name, "passed on to the process"),
                    // Without a process it asks for an end, as it does of other programs.
                    Err(_) if number == libc::SIGQUIT => break Ending::Asked(name),
                    Err(reason) => debug!(signal = name, reason, "a signal was passed on to nobody"),
                },
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
    end(ending, supervisor, &reloader, &process, &mut signals).await
}

/// Stops everything, the supervised process first, and says how it went.
async fn end(
    ending: Ending,
    mut supervisor: Supervisor,
    reloader: &Reloader,
    process: &ProcessHandle,
    signals: &mut Signals,
) -> ExitCode {
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    match &ending {
        Ending::Asked(name) => info!(signal = name, "stopping"),
        Ending::Process(code) => info!(code, "the process has ended, stopping"),
        Ending::Failed(reason) => error!(reason, "stopping"),
    }
    let stop = async {
        // The process first, for as long as it may take: what it uses is there until it has ended.
        let mut dropped = supervisor.stop_stage(Stage::Process, process.stop_within()).await;
        dropped.extend(supervisor.stop(reloader.shutdown_timeout()).await);
        dropped
    };
    let dropped = tokio::select! {
        dropped = stop => dropped,
        // A second request to stop ends the draining.
        () = signals.stop() => vec!["everything that was left, at the second signal"],
    };
    match ending {
        Ending::Failed(reason) => failed(&reason),
        Ending::Asked(_) => {
            if !dropped.is_empty() {
                complain(&format!("mcpeg: not everything ended in time: {}", dropped.join(", ")));
            }
            process.exit_code().map_or(ExitCode::SUCCESS, ExitCode::from)
        }
        Ending::Process(code) => ExitCode::from(code),
    }
}

enum Ending {
    Asked(&'static str),
    /// The supervised process has ended for good, with this exit code.
    Process(u8),
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

/// `stdio`: standard output belongs to the client; `is_short_form`: it is the program's.
fn announce(listening: &[String], reasons: &[String], stdio: bool, is_short_form: bool) {
    let mut line = format!("ready: {}", listening.join(", "));
    if !reasons.is_empty() {
        line.push_str(&format!("; not whole: {}", reasons.join("; ")));
    }
    if stdio {
        complain(&line);
    } else if is_short_form {
        info!(ready = line, "every part has settled");
    } else {
        say(&line);
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
    /// For the supervised process.
    PassOn {
        name: &'static str,
        number: i32,
    },
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.quit.recv() => Asked::PassOn { name: "SIGQUIT", number: libc::SIGQUIT },
            _ = self.user1.recv() => Asked::PassOn { name: "SIGUSR1", number: libc::SIGUSR1 },
            _ = self.user2.recv() => Asked::PassOn { name: "SIGUSR2", number: libc::SIGUSR2 },
            _ = self.window.recv() => Asked::PassOn { name: "SIGWINCH", number: libc::SIGWINCH },
        }
    }

    async fn stop(&mut self) {
        while !matches!(self.next().await, Asked::Stop(_)) {}
    }
}

/// Threads that drive everything: a sidecar shares its machine with the agent.
const WORKERS: usize = 2;
/// One under way and one that sees what changed since; more signals than that say nothing new.
const MAX_RELOADS: usize = 2;
const SETTLING: Duration = Duration::from_secs(5);
