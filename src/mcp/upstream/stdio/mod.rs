//! A stdio upstream: one child for one session, started at the first message and again whenever it dies.
//!
//! States: `Waiting` for its turn -> `Idle` until a message comes -> (`Replaying`, if a legacy session has to be told again) -> `Ready`
//! -> `Ending` when the child dies -> `Backoff` -> started again. Messages that come while it is not `Ready` are held.
//!
//! Invariants: `passed` has exactly the ids that the living child has been given and has not answered; what is held is bounded in
//! number and bytes by `has_room`; nothing is sent to a child before the replay has been answered.

mod life;

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;

use self::life::{ending, pass};
use super::backoff::Backoff;
use super::outgoing::Outgoing;
use super::process::Process;
use super::replay::Replay;
use super::{Event, Inheritance, Surroundings};
use crate::mcp::answer;
use crate::mcp::lines::Progress;
use crate::mcp::message::IdKey;
use crate::mcp::settings::{OnRotate, ServiceSettings, StdioSettings, UpstreamSettings};

pub struct StdioUpstream {
    around: Surroundings,
    settings: Arc<ServiceSettings>,
    state: State,
    backoff: Backoff,
    replay: Replay,
    held: VecDeque<Outgoing>,
    held_bytes: usize,
    /// Given to the child and not answered. The message is kept of those that are to be made again with the next child.
    passed: HashMap<IdKey, Option<Outgoing>>,
    /// Answers to what we said again, which the client has had already.
    swallow: HashSet<IdKey>,
    /// What `send` has found out, for `event` to say.
    lost: Option<Event>,
    /// Of the secrets that the latest child was given.
    versions: Arc<[String]>,
}

enum State {
    Waiting,
    Idle,
    Replaying { process: Box<Process>, deadline: Pin<Box<Sleep>> },
    Ready { process: Box<Process> },
    Ending { process: Box<Process>, deadline: Pin<Box<Sleep>>, cause: Cause },
    Backoff { until: Pin<Box<Sleep>> },
}

/// Why a child is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It closed its output or ended by itself.
    Died,
    TooLong,
    /// The replayed `initialize` was refused or not answered, in time or at all.
    Replay,
}

enum Step {
    Progress(std::io::Result<Progress>),
    Ended,
    Overdue,
    Reaped(String),
}

impl StdioUpstream {
    pub fn new(around: Surroundings, settings: Arc<ServiceSettings>) -> Self {
        Self {
            around,
            settings,
            state: State::Waiting,
            backoff: Backoff::default(),
            replay: Replay::default(),
            held: VecDeque::new(),
            held_bytes: 0,
            passed: HashMap::new(),
            swallow: HashSet::new(),
            lost: None,
            versions: Arc::default(),
        }
    }

    pub fn begin(&mut self, inheritance: Inheritance) {
        self.replay = inheritance.replay;
        for message in inheritance.again.into_iter().rev() {
            self.held_bytes += message.bytes.len();
            self.held.push_front(message);
        }
        self.state = State::Idle;
        if self.has_work() {
            self.start();
        }
    }

    pub fn send(&mut self, message: Outgoing) {
        if let State::Ready { process } = &mut self.state {
            pass(process, &mut self.replay, &mut self.passed, message);
            return;
        }
        self.held_bytes += message.bytes.len();
        self.held.push_back(message);
        if matches!(self.state, State::Idle) {
            self.start();
        }
    }

    pub async fn event(&mut self, read: bool) -> Event {
        loop {
            if let Some(event) = self.lost.take() {
                return event;
            }
            let step = match &mut self.state {
                State::Waiting | State::Idle => std::future::pending().await,
                State::Backoff { until } => {
                    until.await;
                    Step::Overdue
                }
                State::Ready { process } => tokio::select! {
                    progress = process.lines.progress(read) => Step::Progress(progress),
                    () = process.leader.ended() => Step::Ended,
                },
                State::Replaying { process, deadline } => tokio::select! {
                    progress = process.lines.progress(true) => Step::Progress(progress),
                    () = process.leader.ended() => Step::Ended,
                    () = deadline => Step::Overdue,
                },
                State::Ending { process, deadline, .. } => ending(process, deadline).await,
            };
            if let Some(event) = self.apply(step) {
                return event;
            }
        }
    }

    pub fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let line = match &mut self.state {
                State::Ready { process } | State::Replaying { process, .. } | State::Ending { process, .. } => {
                    process.lines.next_line()?
                }
                State::Waiting | State::Idle | State::Backoff { .. } => return None,
            };
            let Ok(line) = line else {
                self.end(Cause::TooLong);
                return None;
            };
            if !line.trim_ascii().is_empty() && !self.swallowed(&line) {
                return Some(line);
            }
        }
    }

    pub fn answered(&mut self, key: &IdKey, result: Option<&str>) {
        self.passed.remove(key);
        self.replay.answered(key, result);
        if result.is_some() {
            self.around.service.works();
        }
    }

    pub fn cancel(&mut self, key: &IdKey, notice: Option<Bytes>) {
        if let Some(at) = self.held.iter().position(|message| message.key.as_ref() == Some(key)) {
            let message = self.held.remove(at);
            self.held_bytes -= message.map_or(0, |message| message.bytes.len());
        }
        // The protocol does not let `initialize` be cancelled.
        let known = self.passed.remove(key).is_some() && !self.replay.awaits(key);
        if let State::Ready { process } = &mut self.state
            && known
        {
            process.lines.push(&notice.unwrap_or_else(|| answer::cancelled(key, "no answer in time").into()));
        }
    }

    pub fn on_rotate(&self) -> OnRotate {
        self.stdio().on_rotate
    }

    /// There is a child that has been given secrets.
    pub fn runs(&self) -> bool {
        matches!(self.state, State::Ready { .. } | State::Replaying { .. } | State::Ending { .. })
    }

    pub fn is_drained(&self) -> bool {
        !matches!(self.state, State::Replaying { .. }) && self.passed.values().all(Option::is_some)
    }

    pub fn has_room(&self) -> bool {
        let congested = matches!(&self.state, State::Ready { process } if process.lines.congested());
        !congested && self.held.len() < self.around.limits.max_in_flight.max(1) * 2 && self.held_bytes < HELD_BYTES
    }

    pub fn versions_for(&self, key: &IdKey) -> Arc<[String]> {
        if self.passed.contains_key(key) { self.versions.clone() } else { Arc::default() }
    }

    pub fn bequeath(&mut self) -> Inheritance {
        let again = self.passed.drain().filter_map(|(_, message)| message).chain(self.held.drain(..));
        Inheritance { again: again.collect(), replay: std::mem::take(&mut self.replay) }
    }

    pub async fn close(self) {
        match self.state {
            State::Ready { process } | State::Replaying { process, .. } => process.stop(STOP_PATIENCE).await,
            State::Ending { mut process, .. } => drop(process.leader.reap().await),
            State::Waiting | State::Idle | State::Backoff { .. } => {}
        }
    }

    fn apply(&mut self, step: Step) -> Option<Event> {
        match step {
            Step::Progress(Ok(Progress::Read)) => Some(Event::Lines),
            Step::Progress(Ok(Progress::Room)) => Some(Event::Lines),
            Step::Progress(Ok(Progress::Ended | Progress::Broken) | Err(_)) | Step::Ended => {
                self.end(Cause::Died);
                Some(Event::Lines)
            }
            Step::Overdue => {
                match &self.state {
                    State::Replaying { .. } => self.end(Cause::Replay),
                    _ if self.has_work() => self.start(),
                    _ => self.state = State::Idle,
                }
                None
            }
            Step::Reaped(how) => Some(self.bury(&how)),
        }
    }

    /// There is something to tell a child.
    fn has_work(&self) -> bool {
        !self.held.is_empty() || self.replay.initialize().is_some()
    }

    fn stdio(&self) -> &StdioSettings {
        match &self.settings.upstream {
            UpstreamSettings::Stdio(stdio) => stdio,
            // `Upstream::new` makes this kind for stdio settings only.
            UpstreamSettings::Http(_) => unreachable!("a stdio upstream with HTTP settings"),
        }
    }
}

/// How long a child is given after its input has been closed.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
const HELD_BYTES: usize = 1024 * 1024;
