//! A child that takes over from another one, and the one that is taken over from.

use super::{Fate, State, StdioUpstream};
use crate::mcp::answer;
use crate::mcp::message::IdKey;
use crate::mcp::shown::List;
use crate::mcp::upstream::outgoing::{Outgoing, Role};
use crate::mcp::upstream::rehearsal::Rehearsal;
use crate::mcp::upstream::replay::Replay;

impl StdioUpstream {
    /// Starts a child that is to take over: tells it the session, then asks what the rehearsal wants to know.
    pub fn rehearse(&mut self, replay: Replay, rehearsal: Rehearsal) {
        self.replay = replay;
        self.rehearsal = Some(rehearsal);
        self.start();
    }

    /// It has answered all that it was told and asked, and can take over.
    pub fn is_warm(&self) -> bool {
        let answered = self.swallow.is_empty() && self.rehearsal.as_ref().is_some_and(Rehearsal::is_over);
        answered && matches!(self.state, State::Ready { .. })
    }

    /// From here on it serves. The lists that are not what the client has been shown.
    pub fn enter_service(&mut self) -> Vec<List> {
        self.rehearsal.take().map(Rehearsal::changed).unwrap_or_default()
    }

    /// Another one has taken over: it answers what it was asked, and is not started again. What the other one is to be given.
    pub fn retire(&mut self) -> Vec<Outgoing> {
        self.is_retired = true;
        let taken = self.endless();
        self.held_bytes = 0;
        if matches!(self.state, State::Backoff { .. }) {
            self.state = State::Idle;
        }
        if let State::Ready { link } = &mut self.state {
            for key in taken.iter().filter_map(|message| message.key.as_ref()) {
                link.push(&answer::cancelled(key, "another server has taken over"));
            }
        }
        taken
    }

    /// What is held, and the requests without an end.
    pub(super) fn endless(&mut self) -> Vec<Outgoing> {
        let (endless, rest) = self.passed.drain().partition(|(_, fate)| matches!(fate, Fate::Endless(_)));
        self.passed = rest;
        let endless: std::collections::HashMap<IdKey, Fate> = endless;
        let messages = endless.into_values().filter_map(|fate| match fate {
            Fate::Endless(message) | Fate::Repeated(message) => Some(message),
            Fate::Lost => None,
        });
        messages.chain(self.held.drain(..)).collect()
    }

    /// What the session has been told; `None` while an `initialize` is not answered.
    pub fn told(&self) -> Option<Replay> {
        (!self.replay.is_open() && !matches!(self.state, State::Replaying { .. })).then(|| self.replay.clone())
    }

    /// A message that changes the session was given to the one that serves: this one has to know as well.
    pub fn told_beside(&mut self, message: &Outgoing) {
        let changes = match message.role {
            Role::Initialized | Role::Level | Role::Subscribe(_) | Role::Unsubscribe(_) => true,
            Role::Plain => message.key.is_none(),
            Role::Initialize | Role::Listen | Role::Aside => false,
        };
        if !changes {
            return;
        }
        self.replay.passed(message);
        if let State::Ready { link } = &mut self.state {
            link.push(&message.bytes);
            self.swallow.extend(message.key.clone());
        }
    }

    pub fn has(&self, key: &IdKey) -> bool {
        self.passed.contains_key(key)
    }

    /// Asks the next question of the rehearsal.
    pub(super) fn ask(&mut self) {
        if let State::Ready { link } = &mut self.state
            && let Some(question) = self.rehearsal.as_mut().and_then(Rehearsal::question)
        {
            link.push(&question);
        }
    }

    /// Whether it was an answer to a question of the rehearsal.
    pub(super) fn rehearsed(&mut self, key: &IdKey, result: Option<&str>) -> bool {
        let Some(rehearsal) = self.rehearsal.as_mut().filter(|rehearsal| rehearsal.awaits(key)) else { return false };
        if rehearsal.answered(result) == Some(List::Tools)
            && let Some(result) = result
        {
            self.around.service.catalogue.learn(result);
        }
        self.ask();
        true
    }
}

/// Completes when a rehearsal has taken too long; never, where there is none.
pub(super) async fn overdue(rehearsal: &mut Option<Rehearsal>) {
    match rehearsal {
        Some(rehearsal) => rehearsal.deadline.as_mut().await,
        None => std::future::pending().await,
    }
}
