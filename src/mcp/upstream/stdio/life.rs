//! The life of a child: its start, the replay of a legacy session, its death, and what is lost with it.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::{Cause, State, StdioUpstream, Step};
use crate::mcp::lines::Progress;
use crate::mcp::message::{AnswerBody, IdKey, Message, answered_by_refused, parse};
use crate::mcp::settings::UpstreamSettings;
use crate::mcp::upstream::outgoing::{Outgoing, Role};
use crate::mcp::upstream::process::Process;
use crate::mcp::upstream::replay::{Agreed, Replay};
use crate::mcp::upstream::{Event, Failure, Gone, Surroundings};

impl StdioUpstream {
    /// Starts a child: tells it the session again if there is one, else gives it what is held.
    pub(super) fn start(&mut self) {
        let UpstreamSettings::Stdio(settings) = &self.settings.upstream else { return };
        let Surroundings { service, secrets, limits, recorder, .. } = &self.around;
        match Process::spawn(settings, service, &**secrets, &recorder.shipping, limits.max_message_bytes) {
            Ok(process) => self.started(Box::new(process)),
            Err(error) => {
                let failure = Failure::new(&service.name, "upstream_not_started", error);
                service.failed(&failure);
                self.lost = Some(self.give_up(failure));
                self.wait(Duration::ZERO);
            }
        }
    }

    fn started(&mut self, mut process: Box<Process>) {
        self.versions = process.versions.clone();
        if let Some(initialize) = self.replay.initialize() {
            process.lines.push(&initialize.bytes);
            let deadline = Box::pin(sleep(self.settings.timeout));
            self.state = State::Replaying { process, deadline };
        } else {
            self.ready(process);
        }
    }

    fn ready(&mut self, mut process: Box<Process>) {
        self.held_bytes = 0;
        for message in self.held.drain(..) {
            pass(&mut process, &mut self.replay, &mut self.passed, message);
        }
        self.state = State::Ready { process };
    }

    /// Looks whether the line answers something that we said again.
    pub(super) fn swallowed(&mut self, line: &[u8]) -> bool {
        let replaying = matches!(self.state, State::Replaying { .. });
        if !replaying && self.swallow.is_empty() {
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
                return self.swallow.remove(&key);
            }
        };
        let Some(key) = answer.key else { return false };
        let is_initialize = is_initialize(&self.replay, &key);
        if replaying && is_initialize {
            self.replayed(&answer.body);
            return true;
        }
        self.swallow.remove(&key)
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
        let State::Replaying { mut process, .. } = std::mem::replace(&mut self.state, State::Idle) else { return };
        for message in self.replay.rest() {
            self.swallow.extend(message.key.clone());
            process.lines.push(&message.bytes);
        }
        self.around.service.works();
        self.ready(process);
    }

    pub(super) fn end(&mut self, cause: Cause) {
        let deadline = Box::pin(sleep(LAST_WORDS));
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Ready { process } => State::Ending { process, deadline, cause },
            State::Replaying { process, .. } => State::Ending { process, deadline, cause: Cause::Replay },
            other => other,
        };
    }

    /// The child is gone: says what was lost with it, and when the next one is started.
    pub(super) fn bury(&mut self, how: &str) -> Event {
        let (cause, lived) = match &self.state {
            State::Ending { process, cause, .. } => (*cause, process.started.elapsed()),
            _ => (Cause::Died, Duration::ZERO),
        };
        let Surroundings { service, recorder, limits, .. } = &self.around;
        let failure = match cause {
            Cause::Died => Failure::new(&service.name, "upstream_died", format_args!("the server died: {how}")),
            Cause::TooLong => {
                let limit = limits.max_message_bytes;
                let what = format_args!("the server sent a message of more than {limit} bytes, and was ended");
                Failure::new(&service.name, "message_too_large", what)
            }
            Cause::Replay => {
                let what = format_args!("the server was started again, but did not take up the session: {how}");
                Failure::new(&service.name, "replay_failed", what)
            }
        };
        service.failed(&failure);
        service.restarted();
        recorder.metrics.child_restarted(&service.name, failure.kind);
        self.wait(lived);
        if cause == Cause::Replay { self.give_up(failure) } else { self.lose_passed(failure) }
    }

    fn wait(&mut self, lived: Duration) {
        let until = Box::pin(sleep(self.backoff.after_failure(lived)));
        self.state = State::Backoff { until };
    }

    /// What the child had been given is lost; what is held waits for the next one.
    fn lose_passed(&mut self, failure: Failure) -> Event {
        self.swallow.clear();
        let mut keys = Vec::new();
        for (key, again) in self.passed.drain() {
            match again {
                Some(message) => {
                    self.held_bytes += message.bytes.len();
                    self.held.push_front(message);
                }
                None => keys.push(key),
            }
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
pub(super) fn pass(
    process: &mut Process,
    replay: &mut Replay,
    passed: &mut HashMap<IdKey, Option<Outgoing>>,
    message: Outgoing,
) {
    process.lines.push(&message.bytes);
    replay.passed(&message);
    if let Some(key) = message.key.clone() {
        passed.insert(key, (message.role == Role::Listen).then_some(message));
    }
}

/// Reads the last words of a dying child, until its output ends or the deadline, and reaps it. Cancel-safe.
pub(super) async fn ending(process: &mut Process, deadline: &mut Pin<Box<Sleep>>) -> Step {
    if !process.lines.has_ended() && !deadline.is_elapsed() {
        tokio::select! {
            progress = process.lines.progress(true) => {
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
            () = process.leader.ended() => {}
            () = deadline => {}
        }
    }
    Step::Reaped(crate::child::describe(process.leader.reap().await))
}

/// How long a child is given to end by itself once its output has ended, and to say its last words once it has.
const LAST_WORDS: Duration = Duration::from_millis(300);
