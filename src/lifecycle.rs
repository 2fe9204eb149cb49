//! What a long-lived part of the process is, and how it is told to stop.
//!
//! A domain's `build` returns a handle and a `Part`; it spawns nothing. The supervisor spawns parts and stops them stage by stage.
//! Invariant: a part whose readiness was dropped counts as failed, never as ready.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::watch;

/// The order of stopping. Everything in one stage has ended, or run out of time, before the next is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The supervised process, which may use all that comes after.
    Process,
    /// Listeners: nothing new is accepted.
    Intake,
    /// Sessions and upstreams: what was accepted is answered.
    InFlight,
    /// Rotators and renderers.
    Workers,
    /// Exporters: what is queued is sent.
    Telemetry,
    /// Stores and their files.
    Storage,
}

impl Stage {
    pub const ALL: [Self; 6] =
        [Self::Process, Self::Intake, Self::InFlight, Self::Workers, Self::Telemetry, Self::Storage];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Intake => "intake",
            Self::InFlight => "in flight",
            Self::Workers => "workers",
            Self::Telemetry => "telemetry",
            Self::Storage => "storage",
        }
    }
}

/// One long-lived task of the process.
pub struct Part {
    pub name: &'static str,
    pub stage: Stage,
    pub ready: Readiness,
    pub task: PartTask,
}

/// What the supervisor runs: it ends with `Ok` after it was told to stop, or with the reason why it cannot go on.
pub type PartTask = Box<dyn FnOnce(Shutdown) -> Pin<Box<dyn Future<Output = Result<(), PartError>> + Send>> + Send>;

/// Why a part ended before it was told to.
pub type PartError = Box<dyn std::error::Error + Send + Sync>;

impl Part {
    pub fn new<F, R>(name: &'static str, stage: Stage, ready: Readiness, task: F) -> Self
    where
        F: FnOnce(Shutdown) -> R + Send + 'static,
        R: Future<Output = Result<(), PartError>> + Send + 'static,
    {
        Self { name, stage, ready, task: Box::new(move |shutdown| Box::pin(task(shutdown))) }
    }
}

/// Told once, to everybody who holds a clone, that the time to stop has come.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A pair: the trigger stays with the supervisor. A trigger that is dropped triggers.
    pub fn channel() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Completes when it is time to stop; at once if it already is.
    pub async fn requested(&mut self) {
        // An error means that the trigger is gone, which counts as a request.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

/// Whether a part serves yet.
#[derive(Debug, Clone)]
pub struct Readiness(watch::Receiver<ReadyState>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyState {
    Starting,
    Ready,
    /// It serves, but not whole; the reason in words.
    Failed(String),
}

impl Readiness {
    /// A pair: the part keeps the signal and says when it is ready.
    pub fn channel() -> (ReadySignal, Self) {
        let (sender, receiver) = watch::channel(ReadyState::Starting);
        (ReadySignal(sender), Self(receiver))
    }

    /// For a part that has nothing to wait for.
    pub fn immediate() -> Self {
        let (sender, receiver) = watch::channel(ReadyState::Ready);
        drop(sender);
        Self(receiver)
    }

    pub fn state(&self) -> ReadyState {
        let state = self.0.borrow().clone();
        match state {
            ReadyState::Starting if self.0.has_changed().is_err() => {
                ReadyState::Failed("ended before it was ready".into())
            }
            state => state,
        }
    }

    /// Waits until the part is ready or has failed.
    pub async fn settled(&mut self) -> ReadyState {
        // An error means that the signal was dropped, which `state` tells from readiness.
        let _ = self.0.wait_for(|state| *state != ReadyState::Starting).await;
        self.state()
    }
}

#[derive(Debug)]
pub struct ReadySignal(watch::Sender<ReadyState>);

impl ReadySignal {
    pub fn ready(&self) {
        self.0.send_replace(ReadyState::Ready);
    }

    pub fn failed(&self, reason: impl Into<String>) {
        self.0.send_replace(ReadyState::Failed(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_signal_is_a_failure_not_readiness() {
        let (signal, mut readiness) = Readiness::channel();
        drop(signal);
        assert!(matches!(readiness.settled().await, ReadyState::Failed(_)));
        assert!(matches!(readiness.state(), ReadyState::Failed(_)));
        assert_eq!(Readiness::immediate().state(), ReadyState::Ready);
    }

    #[tokio::test]
    async fn a_dropped_trigger_stops_everybody() {
        let (trigger, mut shutdown) = Shutdown::channel();
        assert!(!shutdown.is_requested());
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
    }
}
