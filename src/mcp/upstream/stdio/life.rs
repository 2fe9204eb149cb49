//! The life of a child: its start, the replay of a legacy session, its death, and what is lost with it.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{Cause, Fate, State, StdioUpstream, Step};
use crate::mcp::lines::Progress;
use crate::mcp::message::{AnswerBody, IdKey, Message, answered_by_refused, parse};
use crate::mcp::settings::UpstreamSettings;
use crate::mcp::upstream::link::Link;
use crate::mcp::upstream::older::Connection;
use crate::mcp::upstream::outgoing::{Outgoing, Role};
use crate::mcp::upstream::process::Process;
use crate::mcp::upstream::replay::{Agreed, Replay};
use crate::mcp::upstream::{Event, Failure, Gone, Surroundings};

impl StdioUpstream {
    /// Starts a child: tells it the session again if there is one, else gives it what is held.
    pub(super) fn start(&mut self) {
        let Surroundings { service, secrets, limits, recorder, .. } = &self.around;
        let opened = match &self.settings.upstream {
            UpstreamSettings::Stdio(stdio) => {
                Process::spawn(stdio, service, &**secrets, &recorder.shipping, limits.max_message_bytes)
                    .map(|process| (process.versions.clone(), Link::Child(Box::new(process))))
                    .map_err(|error| Failure::new(&service.name, "upstream_not_started", error))
            }
            UpstreamSettings::Http(http) => Connection::open(&self.around, self.settings.clone(), http)
                .map(|connection| (connection.versions.clone(), Link::Older(Box::new(connection))))
                .map_err(|error| Failure::new(&service.name, "credential_unavailable", error)),
            // `Upstream::new` makes this kind for what has bytes on the other side only.
            UpstreamSettings::Local(_) => unreachable!("a stdio upstream with the settings of a local one"),
        };
        match opened {
            Ok((versions, link)) => {
                self.versions = versions;
                self.started(link);
            }
            Err(failure) => self.lost = Some(self.not_started(failure)),
        }
    }

    fn started(&mut self, mut link: Link) {
        if let Some(initialize) = self.replay.initialize() {
            link.push(&initialize.bytes);
            let deadline = Box::pin(sleep(self.settings.timeout));
            self.state = State::Replaying { link, deadline };
        } else {
            self.ready(link);
        }
    }

    fn ready(&mut self, mut link: Link) {
        self.held_bytes = 0;
        for message in self.held.drain(..) {
            pass(&mut link, &mut self.replay, &mut self.passed, message);
        }
        self.state = State::Ready { link };
        self.ask();
    }

    fn not_started(&mut self, failure: Failure) -> Event {
        if !self.is_lasting() {
            return self.buried_for_good(failure);
        }
        self.around.service.failed(&failure);
        let lost = self.give_up(failure);
        self.wait(Duration::ZERO);
        lost
    }

    /// Looks whether the line answers something that we said again.
    pub(super) fn swallowed(&mut self, line: &[u8]) -> bool {
        let replaying = matches!(self.state, State::Replaying { .. });
        if !replaying && self.swallow.is_empty() && self.rehearsal.is_none() {
            return false;
        }
        let is_initialize =
            |replay: &Replay, key: &IdKey| replay.initialize().is_some_and(|message| message.key.as_ref() == Some(key));
        let answer = match parse(line) {
            Ok(Message::Answer(answer)) => answer,
            Ok(Message::Request(_) | Message::Notification(_)) => return false,
            Err(_) => {
                // An answer to what we said again, which nobody can read.
                let Some(key) = answered_by_refused(line) else { return false };
                if replaying && is_initialize(&self.replay, &key) {
                    self.end(Cause::Replay);
                    return true;
                }
                return self.swallow.remove(&key) || self.rehearsed(&key, None);
            }
        };
        let Some(key) = answer.key else { return false };
        let is_initialize = is_initialize(&self.replay, &key);
        if replaying && is_initialize {
            self.replayed(&answer.body);
            return true;
        }
        let result = match &answer.body {
            AnswerBody::Result { raw, .. } => Some(raw.raw()),
            AnswerBody::Error { .. } => None,
        };
        self.swallow.remove(&key) || self.rehearsed(&key, result)
    }

    /// The new child has answered `initialize`: it is told the rest, and what is held.
    fn replayed(&mut self, body: &AnswerBody<'_>) {
        let agreed = match body {
            AnswerBody::Result { raw, .. } => Agreed::of(raw.raw()),
            AnswerBody::Error { .. } => None,
        };
        let Some(agreed) = agreed else { return self.end(Cause::Replay) };
        if self.replay.agreed().is_some_and(|before| *before != agreed) {
            let service = &*self.around.service.name;
            tracing::warn!(
                service,
                "the new child agreed to another version or other capabilities than the one before"
            );
        }
        let State::Replaying { mut link, .. } = std::mem::replace(&mut self.state, State::Idle) else { return };
        for message in self.replay.rest() {
            self.swallow.extend(message.key.clone());
            link.push(&message.bytes);
        }
        if self.is_lasting() {
            self.around.service.works();
        }
        self.ready(link);
    }

    pub(super) fn end(&mut self, cause: Cause) {
        let deadline = Box::pin(sleep(LAST_WORDS));
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Ready { link } => State::Ending { link, deadline, cause },
            State::Replaying { link, .. } => State::Ending { link, deadline, cause: Cause::Replay },
            other => other,
        };
    }

    /// The child is gone: says what was lost with it, and when the next one is started.
    pub(super) fn bury(&mut self, how: &str) -> Event {
        let (cause, lived) = match &self.state {
            State::Ending { link, cause, .. } => (*cause, link.started().elapsed()),
            _ => (Cause::Died, Duration::ZERO),
        };
        let Surroundings { service, recorder, limits, .. } = &self.around;
        let failure = match cause {
            Cause::Died if self.is_child() => {
                Failure::new(&service.name, "upstream_died", format_args!("the server died: {how}"))
            }
            Cause::Died => {
                Failure::new(&service.name, "connection_broken", format_args!("its connection ended: {how}"))
            }
            Cause::TooLong => {
                let limit = limits.max_message_bytes;
                let what = format_args!("the server sent a message of more than {limit} bytes, and was ended");
                Failure::new(&service.name, "message_too_large", what)
            }
            Cause::Replay => {
                let again = if self.is_child() { "started again" } else { "connected to again" };
                let what = format_args!("the server was {again}, but did not take up the session: {how}");
                Failure::new(&service.name, "replay_failed", what)
            }
            Cause::Rehearsal => {
                let patience = self.settings.timeout;
                let what = format_args!("the server was started, but did not answer within {patience:?}");
                Failure::new(&service.name, "rehearsal_failed", what)
            }
        };
        if !self.is_lasting() {
            return self.buried_for_good(failure);
        }
        service.failed(&failure);
        service.restarted();
        recorder.metrics.child_restarted(&service.name, failure.kind);
        let lost = if cause == Cause::Replay { self.give_up(failure) } else { self.lose_passed(failure) };
        self.wait(lived);
        lost
    }

    /// Whether another child is started when this one dies.
    fn is_lasting(&self) -> bool {
        self.rehearsal.is_none() && !self.is_retired
    }

    fn buried_for_good(&mut self, failure: Failure) -> Event {
        self.state = State::Idle;
        self.lose_passed(failure)
    }

    fn wait(&mut self, lived: Duration) {
        let (now, long) = (Instant::now(), self.backoff.after_failure(lived));
        let soonest = now + self.backoff.on_demand();
        let until = if self.held.is_empty() { now + long } else { soonest };
        self.state = State::Backoff { until: Box::pin(sleep_until(until)), soonest };
    }

    /// What the child had been given is lost; what is held waits for the next one.
    fn lose_passed(&mut self, failure: Failure) -> Event {
        self.swallow.clear();
        let mut keys = Vec::new();
        for (key, fate) in self.passed.drain() {
            let again = match fate {
                Fate::Lost => {
                    keys.push(key);
                    continue;
                }
                Fate::Repeated(message) => Outgoing { repeated: true, ..message },
                Fate::Endless(message) => message,
            };
            self.held_bytes += again.bytes.len();
            self.held.push_front(again);
        }
        Event::Lost { keys, failure, versions: self.versions.clone(), gone: Gone::Yes }
    }

    /// What is held is lost as well: a start has failed, and whoever waits shall know why.
    fn give_up(&mut self, failure: Failure) -> Event {
        let mut lost = self.lose_passed(failure);
        if let Event::Lost { keys, .. } = &mut lost {
            keys.extend(self.held.drain(..).filter_map(|message| message.key));
        }
        self.held_bytes = 0;
        lost
    }
}

/// Gives a message to the child and remembers what has to be known of it.
pub(super) fn pass(link: &mut Link, replay: &mut Replay, passed: &mut HashMap<IdKey, Fate>, message: Outgoing) {
    link.push(&message.bytes);
    replay.passed(&message);
    if let Some(key) = message.key.clone() {
        let fate = match message.role {
            Role::Listen => Fate::Endless(message),
            _ if message.safe && !message.repeated => Fate::Repeated(message),
            _ => Fate::Lost,
        };
        passed.insert(key, fate);
    }
}

/// Reads the last words of a dying child, until its output ends or the deadline, and reaps it. Cancel-safe.
pub(super) async fn ending(link: &mut Link, deadline: &mut Pin<Box<Sleep>>) -> Step {
    if !link.has_ended() && !deadline.is_elapsed() {
        tokio::select! {
            progress = link.progress(true) => {
                if let Ok(Progress::Read | Progress::Room) = progress {
                    return Step::Progress(progress);
                }
            }
            () = &mut *deadline => {}
        }
    }
    // Its output has ended: it is about to end by itself, and its own status says more than that of a kill.
    if !deadline.is_elapsed() {
        tokio::select! {
            () = link.ended() => {}
            () = deadline => {}
        }
    }
    Step::Reaped(link.reap().await)
}

/// How long a child is given to end by itself once its output has ended, and to say its last words once it has.
const LAST_WORDS: Duration = Duration::from_millis(300);
