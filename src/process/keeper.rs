//! Keeps the process as it is configured: waits for what it needs, starts it, follows its secrets, starts it again, ends it.
//!
//! Several secrets that change at one time are one change: it is acted on when none has changed for a moment. Everything that may happen
//! to a running process is one `Event`, so that there is one place to look for what follows from what.
//!
//! Invariant: no lease of what the process was started with is given back (`SecretReader::hold`) before it has been told of newer
//! values or has ended.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::lifecycle::{ReadySignal, ReadyState, Shutdown};
use crate::ports::{AuditEvent, AuditRefused, Hold, Outcome};

use super::Surroundings;
use super::backoff::Backoff;
use super::environment::{Digest, Digester, Environment, items};
use super::handle::{Shared, State};
use super::metrics::Metrics;
use super::run::{End, NotStarted, Outputs, Running, now};
use super::settings::{NamedSignal, OnChange, Policy, ProcessSettings};

pub(super) struct Keeper {
    shared: Arc<Shared>,
    around: Surroundings,
    metrics: Arc<Metrics>,
    digester: Digester,
    settings: watch::Receiver<Option<Arc<ProcessSettings>>>,
    signals: mpsc::Receiver<i32>,
    ready: ReadySignal,
    shutdown: Shutdown,
    outputs: Outputs,
    backoff: Backoff,
}

/// What became of one way of running the process.
enum Next {
    /// Other settings are in force.
    Reloaded,
    Stop,
    /// With the exit code to pass on.
    Over(u8),
}

/// What happens to a process that runs.
enum Event {
    Ended,
    Stop,
    Reloaded,
    Signal(i32),
    SecretChanged,
    /// Nothing has changed for a moment since a secret did.
    Settled,
}

/// Why a process is started; the words are labels of metrics and attributes of audit events.
#[derive(Clone, Copy)]
enum Reason {
    First,
    Rotated { ended: Instant },
    EndedBefore,
    Reloaded,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Rotated { .. } => "rotated",
            Self::EndedBefore => "ended",
            Self::Reloaded => "reloaded",
        }
    }
}

/// Why a process that was started does not run any more.
enum Left {
    Ended(End),
    NotStarted(NotStarted),
    Unrecorded(AuditRefused),
    Rotated(End),
    Next(Next),
}

impl Keeper {
    pub fn new(
        shared: Arc<Shared>,
        around: Surroundings,
        metrics: Arc<Metrics>,
        digester: Digester,
        signals: mpsc::Receiver<i32>,
        ready: ReadySignal,
        shutdown: Shutdown,
    ) -> Self {
        let settings = shared.settings();
        let (outputs, backoff) = (Outputs::default(), Backoff::default());
        Self { shared, around, metrics, digester, settings, signals, ready, shutdown, outputs, backoff }
    }

    /// Until it is told to stop, also after the process has ended for good: what that means is for others to decide.
    pub async fn run(mut self) {
        let mut reason = Reason::First;
        loop {
            let settings = self.settings.borrow_and_update().clone();
            let next = match settings {
                Some(settings) => self.keep(settings, reason).await,
                None => {
                    self.shared.set(State::Absent);
                    self.ready.ready();
                    self.interrupted().await
                }
            };
            match next {
                Next::Reloaded => reason = Reason::Reloaded,
                Next::Stop => break,
                Next::Over(code) => {
                    self.outputs.drain().await;
                    self.ready.ready();
                    self.shared.end(code);
                    self.shutdown.requested().await;
                    break;
                }
            }
        }
        self.outputs.drain().await;
    }

    /// Runs the process by these settings, again and again where they say so.
    async fn keep(&mut self, mut settings: Arc<ProcessSettings>, mut reason: Reason) -> Next {
        self.backoff = Backoff::default();
        if let Some(next) = self.wait_for_parts(&settings).await {
            return next;
        }
        loop {
            let left = match self.wait_for_secrets(&settings).await {
                Ok(environment) => self.start(&mut settings, environment, reason).await,
                Err(next) => return next,
            };
            reason = Reason::EndedBefore;
            let next = match left {
                Left::Next(next) => Some(next),
                Left::Rotated(end) => {
                    reason = Reason::Rotated { ended: end.at };
                    None
                }
                Left::Ended(end) => {
                    let again = match settings.restart.policy {
                        Policy::Always => true,
                        Policy::OnFailure => !end.is_success(),
                        Policy::Never => false,
                    };
                    self.after_end(&settings, again, end.lived, end.words(), end.code()).await
                }
                Left::NotStarted(failed) => {
                    error!(error = %failed, "the process cannot be started");
                    let again = settings.restart.policy != Policy::Never;
                    self.after_end(&settings, again, Duration::ZERO, failed.to_string(), failed.code()).await
                }
                // Passes by itself, and says nothing of the process.
                Left::Unrecorded(refused) => self.pause(Instant::now() + UNRECORDED, refused.to_string()).await,
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    /// Waits before the next start, or says that there is none.
    async fn after_end(
        &mut self,
        settings: &ProcessSettings,
        again: bool,
        lived: Duration,
        how: String,
        code: u8,
    ) -> Option<Next> {
        let wait = if again { self.backoff.after_end(lived, &settings.restart) } else { None };
        let Some(wait) = wait else {
            info!(how, code, "the process has ended for good");
            self.shared.set(State::Ended { how });
            return Some(Next::Over(code));
        };
        warn!(
            how,
            again_in_s = wait.as_secs_f32(),
            in_a_row = self.backoff.in_a_row,
            "the process has ended and is started again"
        );
        self.pause(Instant::now() + wait, how).await
    }

    async fn pause(&mut self, until: Instant, how: String) -> Option<Next> {
        self.shared.set(State::Backoff { until, how, in_a_row: self.backoff.in_a_row });
        tokio::select! {
            next = self.interrupted() => Some(next),
            () = sleep_until(until) => None,
        }
    }

    /// Waits until everything that the process may use has settled, once.
    async fn wait_for_parts(&mut self, settings: &ProcessSettings) -> Option<Next> {
        for (name, mut readiness) in self.around.before.clone() {
            let state = loop {
                self.shared.set(State::Waiting { reason: self.missing(settings, name) });
                tokio::select! {
                    next = self.interrupted() => return Some(next),
                    state = readiness.settled() => break state,
                    () = tokio::time::sleep(LOOK) => {}
                }
            };
            if let ReadyState::Failed(reason) = state {
                warn!(part = name, reason, "the process is started although not everything is whole");
            }
        }
        self.around.before.clear();
        None
    }

    /// What it waits for: a secret of its own, before any part.
    fn missing(&self, settings: &ProcessSettings, part: &str) -> String {
        let environment = Environment::now(settings, &*self.around.secrets, &self.digester);
        environment.err().map_or_else(|| format!("{part} is not ready yet"), |unresolved| unresolved.to_string())
    }

    async fn wait_for_secrets(&mut self, settings: &ProcessSettings) -> Result<Environment, Next> {
        let mut said = String::new();
        loop {
            // Before the look, so that no change is missed after it.
            let mut changes = self.subscribe(settings);
            let unresolved = match Environment::now(settings, &*self.around.secrets, &self.digester) {
                Ok(environment) => return Ok(environment),
                Err(unresolved) => unresolved,
            };
            let reason = unresolved.to_string();
            self.shared.set(State::Waiting { reason: reason.clone() });
            if !unresolved.is_early() && said != reason {
                warn!(reason, "the process waits for a secret");
                self.ready.failed(reason.clone());
                said = reason;
            }
            tokio::select! {
                next = self.interrupted() => return Err(next),
                () = any_of(&mut changes) => {}
                // What a reason says may change without a new version.
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn subscribe(&self, settings: &ProcessSettings) -> Vec<watch::Receiver<u64>> {
        items(settings).iter().filter_map(|item| self.around.secrets.subscribe(item)).collect()
    }

    /// Starts the process and stays with it until it does not run any more.
    async fn start(&mut self, settings: &mut Arc<ProcessSettings>, environment: Environment, reason: Reason) -> Left {
        let (digest, versions) = (environment.digest.clone(), environment.versions.clone());
        let held = environment.hold(&*self.around.secrets);
        let program = settings.argv.first().cloned().unwrap_or_default();
        let event = AuditEvent::new("process.start", Outcome::Success)
            .with("process.executable.path", program.clone())
            .with("mcpeg.reason", reason.as_str())
            .with("mcpeg.secret.versions", versions.clone());
        // Before the process has the secrets.
        if let Err(refused) = self.around.audit.record(event) {
            error!(error = %refused, "the process is not started");
            return Left::Unrecorded(refused);
        }
        let started = Running::start(settings, environment, &mut self.outputs, &self.around.shipping, &self.metrics);
        let running = match started {
            Ok(running) => running,
            Err(failed) => {
                let event = AuditEvent::new("process.end", Outcome::Failure).with("error.message", failed.to_string());
                self.record(event);
                self.metrics.ended("not_started");
                return Left::NotStarted(failed);
            }
        };
        if let Reason::Rotated { ended } = reason {
            self.metrics.replaced(ended.elapsed());
        }
        self.metrics.started(reason.as_str());
        let pid = running.leader.id();
        info!(pid, program, reason = reason.as_str(), versions = versions.join(" "), "process started");
        self.shared.set(State::Running { pid, since: now(), versions });
        self.ready.ready();
        self.follow(settings, running, digest, held).await
    }

    async fn follow(
        &mut self,
        settings: &mut Arc<ProcessSettings>,
        mut running: Running,
        mut digest: Digest,
        mut held: Vec<Hold>,
    ) -> Left {
        let mut changes = self.subscribe(settings);
        // A change between the start and the subscription is found when this runs out.
        let mut settling = Some(Settling::begin());
        loop {
            match self.event(&mut running, &mut changes, settling.as_ref()).await {
                Event::Ended => {
                    let end = running.end().await;
                    self.note_end(&end, if end.is_success() { "success" } else { "failure" });
                    return Left::Ended(end);
                }
                Event::Stop => {
                    let end = self.stop(running, settings).await;
                    self.shared.end(end.code_of_stop(&settings.stop_signal));
                    self.shared.set(State::Ended { how: end.words() });
                    return Left::Next(Next::Stop);
                }
                Event::Reloaded => {
                    let new = self.settings.borrow_and_update().clone();
                    match new.filter(|new| new.starts_the_same(settings)) {
                        Some(new) => *settings = new,
                        None => {
                            self.stop(running, settings).await;
                            return Left::Next(Next::Reloaded);
                        }
                    }
                }
                Event::Signal(number) => signal(&running, number),
                Event::SecretChanged => {
                    changes = self.subscribe(settings);
                    settling = Some(settling.map_or_else(Settling::begin, Settling::on));
                }
                Event::Settled => {
                    settling = None;
                    // A secret that is not there at the moment is no reason to take the old one away.
                    let Ok(new) = Environment::now(settings, &*self.around.secrets, &self.digester) else { continue };
                    if new.digest == digest {
                        held = new.hold(&*self.around.secrets);
                        continue;
                    }
                    match &settings.on_change {
                        OnChange::Restart => {
                            drop(new);
                            let end = self.stop(running, settings).await;
                            drop(held);
                            return Left::Rotated(end);
                        }
                        OnChange::Signal(with) => {
                            let newer = new.hold(&*self.around.secrets);
                            self.tell(&running, with, new.versions);
                            held = newer;
                        }
                        OnChange::Ignore => info!("a secret of the process has changed; its next start has it"),
                    }
                    digest = new.digest;
                }
            }
        }
    }

    async fn event(
        &mut self,
        running: &mut Running,
        changes: &mut [watch::Receiver<u64>],
        settling: Option<&Settling>,
    ) -> Event {
        tokio::select! {
            biased;
            () = running.leader.ended() => Event::Ended,
            () = self.shutdown.requested() => Event::Stop,
            // The sender is in `shared`, which is held here.
            _ = self.settings.changed() => Event::Reloaded,
            Some(number) = self.signals.recv() => Event::Signal(number),
            () = any_of(changes) => Event::SecretChanged,
            () = settled(settling) => Event::Settled,
        }
    }

    async fn stop(&mut self, running: Running, settings: &ProcessSettings) -> End {
        let pid = running.leader.id();
        info!(pid, signal = settings.stop_signal.name, "stopping the process");
        self.shared.set(State::Stopping { pid });
        let end = running.stop(&settings.stop_signal, settings.stop_timeout).await;
        self.note_end(&end, "stopped");
        end
    }

    fn note_end(&self, end: &End, outcome: &'static str) {
        info!(pid = end.pid, how = end.words(), lived_s = end.lived.as_secs_f32(), "process ended");
        self.metrics.ended(outcome);
        let audited = if outcome == "failure" || end.was_forced { Outcome::Failure } else { Outcome::Success };
        let event = AuditEvent::new("process.end", audited)
            .with("process.pid", end.pid)
            .with("process.exit.code", i64::from(end.code()))
            .with("mcpeg.reason", if end.was_forced { "killed" } else { outcome })
            .with("mcpeg.duration", end.lived.as_secs_f64());
        self.record(event);
    }

    fn tell(&self, running: &Running, with: &NamedSignal, versions: Vec<String>) {
        let pid = running.leader.id();
        signal(running, with.number);
        info!(pid, signal = with.name, "a secret of the process has changed; it was told");
        let event = AuditEvent::new("process.signalled", Outcome::Success)
            .with("process.pid", pid)
            .with("mcpeg.process.signal", with.name.clone())
            .with("mcpeg.secret.versions", versions);
        self.record(event);
    }

    /// Of what has happened already.
    fn record(&self, event: AuditEvent) {
        let name = event.name;
        if let Err(error) = self.around.audit.record(event) {
            warn!(%error, event = name, "what became of the process is not on record");
        }
    }

    /// Completes when a process that does not run is to be dealt with in another way. Signals have nobody to go to.
    async fn interrupted(&mut self) -> Next {
        loop {
            tokio::select! {
                () = self.shutdown.requested() => return Next::Stop,
                _ = self.settings.changed() => return Next::Reloaded,
                Some(_) = self.signals.recv() => {}
            }
        }
    }
}

/// Since when secrets are changing.
struct Settling {
    until: Instant,
    latest: Instant,
}

impl Settling {
    fn begin() -> Self {
        let now = Instant::now();
        Self { until: now + SETTLE, latest: now + LONGEST_SETTLE }
    }

    /// One more change.
    fn on(self) -> Self {
        Self { until: (Instant::now() + SETTLE).min(self.latest), latest: self.latest }
    }
}

async fn settled(settling: Option<&Settling>) {
    match settling {
        Some(settling) => sleep_until(settling.until).await,
        None => std::future::pending().await,
    }
}

fn signal(running: &Running, number: i32) {
    let Some(signal) = Signal::from_named_raw(number) else { return };
    if let Err(error) = running.leader.signal(signal) {
        warn!(%error, pid = running.leader.id(), signal = number, "the process could not be signalled");
    }
}

/// Completes when one of them changes, or its item goes away.
async fn any_of(changes: &mut [watch::Receiver<u64>]) {
    if changes.is_empty() {
        return std::future::pending().await;
    }
    // An error means that the item was removed or replaced by a reload: who subscribes again has the new ones.
    let _ = select_all(changes.iter_mut().map(|change| Box::pin(change.changed()))).await;
}

/// Secrets that change within this time change together.
const SETTLE: Duration = Duration::from_millis(250);
const LONGEST_SETTLE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(1);
const UNRECORDED: Duration = Duration::from_secs(1);
