//! An upstream that is one stream of messages in either direction: a child for one session, started at the first message and again whenever it
//! dies; or, in the same way, a connection of the older HTTP transport (`older`).
//!
//! States: `Waiting` for its turn -> `Idle` until a message comes -> (`Replaying`, if a legacy session has to be told again) -> `Ready`
//! -> `Ending` when the child dies -> `Backoff` -> started again. Messages that come while it is not `Ready` are held, and make the pause
//! short. What a dead child had been given is lost, unless it may be said twice: then the next one is given it, once.
//!
//! One that is to take over from another (`warm`) is `Ready` and does not serve before it has answered its rehearsal; it is not started
//! again when it dies, nor is one that has been taken over from.
//!
//! Invariants: `passed` has exactly the ids that the living child has been given and has not answered; what is held is bounded in
//! number and bytes by `has_room`; nothing is sent to a child before the replay has been answered.

mod life;
mod warm;

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use self::life::{ending, pass};
use super::backoff::Backoff;
use super::link::Link;
use super::outgoing::Outgoing;
use super::rehearsal::Rehearsal;
use super::replay::Replay;
use super::{Event, Inheritance, Surroundings};
use crate::mcp::answer;
use crate::mcp::lines::Progress;
use crate::mcp::message::IdKey;
use crate::mcp::settings::{HttpTransport, OnRotate, ServiceSettings, UpstreamSettings};

pub struct StdioUpstream {
    around: Surroundings,
    settings: Arc<ServiceSettings>,
    state: State,
    backoff: Backoff,
    replay: Replay,
    held: VecDeque<Outgoing>,
    held_bytes: usize,
    /// Given to the child and not answered.
    passed: HashMap<IdKey, Fate>,
    /// Answers to what we said again, which the client has had already.
    swallow: HashSet<IdKey>,
    /// What `send` has found out, for `event` to say.
    lost: Option<Event>,
    /// What is still to be answered before it takes over.
    rehearsal: Option<Rehearsal>,
    /// Another one has taken over.
    is_retired: bool,
    /// Of the secrets that the latest child was given.
    versions: Arc<[String]>,
}

enum State {
    Waiting,
    Idle,
    Replaying {
        link: Link,
        deadline: Pin<Box<Sleep>>,
    },
    Ready {
        link: Link,
    },
    Ending {
        link: Link,
        deadline: Pin<Box<Sleep>>,
        cause: Cause,
    },
    /// `soonest`: when there is something to say.
    Backoff {
        until: Pin<Box<Sleep>>,
        soonest: Instant,
    },
}

/// What becomes of a request when its child dies.
enum Fate {
    Lost,
    /// It may be said twice, and is given to the next child, once.
    Repeated(Outgoing),
    /// It has no end of its own, and each child gets it.
    Endless(Outgoing),
}

/// Why a child is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// It closed its output or ended by itself.
    Died,
    TooLong,
    /// The replayed `initialize` was refused or not answered, in time or at all.
    Replay,
    /// It was to take over, and did not answer all that it was asked before.
    Rehearsal,
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
            rehearsal: None,
            is_retired: false,
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
        if let State::Ready { link } = &mut self.state {
            pass(link, &mut self.replay, &mut self.passed, message);
            return;
        }
        self.held_bytes += message.bytes.len();
        self.held.push_back(message);
        match &mut self.state {
            State::Idle => self.start(),
            State::Backoff { until, soonest } if until.deadline() > *soonest => until.as_mut().reset(*soonest),
            _ => {}
        }
    }

    pub async fn event(&mut self, read: bool) -> Event {
        loop {
            if let Some(event) = self.lost.take() {
                return event;
            }
            let step = match &mut self.state {
                State::Waiting | State::Idle => std::future::pending().await,
                State::Backoff { until, .. } => {
                    until.await;
                    Step::Overdue
                }
                State::Ready { link } => tokio::select! {
                    event = link.event(read) => event.map_or(Step::Ended, Step::Progress),
                    () = warm::overdue(&mut self.rehearsal) => Step::Overdue,
                },
                State::Replaying { link, deadline } => tokio::select! {
                    event = link.event(true) => event.map_or(Step::Ended, Step::Progress),
                    () = deadline => Step::Overdue,
                },
                State::Ending { link, deadline, .. } => ending(link, deadline).await,
            };
            if let Some(event) = self.apply(step) {
                return event;
            }
        }
    }

    pub fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let line = match &mut self.state {
                State::Ready { link } | State::Replaying { link, .. } | State::Ending { link, .. } => {
                    link.next_line()?
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
        if result.is_some() && !self.is_retired {
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
        if let State::Ready { link } = &mut self.state
            && known
        {
            link.push(&notice.unwrap_or_else(|| answer::cancelled(key, "no answer in time").into()));
        }
    }

    pub fn on_rotate(&self) -> OnRotate {
        match &self.settings.upstream {
            UpstreamSettings::Stdio(stdio) => stdio.on_rotate,
            // Another connection costs nothing.
            UpstreamSettings::Http(_) | UpstreamSettings::Local(_) => OnRotate::Swap,
        }
    }

    /// There is a child that has been given secrets.
    pub fn runs(&self) -> bool {
        matches!(self.state, State::Ready { .. } | State::Replaying { .. } | State::Ending { .. })
    }

    pub fn is_drained(&self) -> bool {
        !matches!(self.state, State::Replaying { .. })
            && self.passed.values().all(|fate| matches!(fate, Fate::Endless(_)))
    }

    pub fn has_room(&self) -> bool {
        let congested = matches!(&self.state, State::Ready { link } if link.congested());
        !congested && self.held.len() < self.around.limits.max_in_flight.max(1) * 2 && self.held_bytes < HELD_BYTES
    }

    pub fn versions_for(&self, key: &IdKey) -> Arc<[String]> {
        if self.passed.contains_key(key) { self.versions.clone() } else { Arc::default() }
    }

    pub fn bequeath(&mut self) -> Inheritance {
        let again = self.endless();
        Inheritance { again, replay: std::mem::take(&mut self.replay) }
    }

    pub async fn close(self) {
        match self.state {
            State::Ready { link } | State::Replaying { link, .. } => link.stop(STOP_PATIENCE).await,
            State::Ending { mut link, .. } => drop(link.reap().await),
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
                    State::Ready { .. } => self.end(Cause::Rehearsal),
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

    fn is_child(&self) -> bool {
        matches!(self.settings.upstream, UpstreamSettings::Stdio(_))
    }

    /// It speaks the older transport because the newer one was refused, and that was wrong.
    pub fn is_wrong_guess(&self) -> bool {
        matches!(&self.settings.upstream, UpstreamSettings::Http(http) if http.transport == HttpTransport::Found)
            && !self.around.service.is_older()
    }
}

/// How long a child is given after its input has been closed.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
const HELD_BYTES: usize = 1024 * 1024;
