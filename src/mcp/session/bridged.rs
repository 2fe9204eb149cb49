//! What a session does with what its bridge says: messages that stand in the place of others, in either direction.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncRead;

use super::swap::Place;
use super::{ClientWriter, Session};
use crate::mcp::answer;
use crate::mcp::bridge::Step;
use crate::mcp::leaks::Within;
use crate::mcp::message::{IdKey, Message, parse};
use crate::mcp::protocol::code;
use crate::mcp::upstream::Upstream;
use crate::mcp::upstream::outgoing::Outgoing;

impl<R: AsyncRead + Unpin + Send, W: ClientWriter> Session<R, W> {
    /// The versions of the secrets with which a request of the client was sent on.
    pub(super) fn versions_for(&self, key: &IdKey) -> Arc<[String]> {
        let key = self.bridge.towards_upstream(key);
        let leaving = self.swap.leaving.as_ref().filter(|leaving| leaving.has(&key));
        leaving.unwrap_or(&self.upstream).versions_for(&key)
    }

    pub(super) fn take_steps(&mut self) {
        self.take_steps_with(&Arc::default());
    }

    /// `versions`: of the secrets with which the answer was got from which the steps come.
    pub(super) fn take_steps_with(&mut self, versions: &Arc<[String]>) {
        for step in self.bridge.steps() {
            match step {
                Step::Send { line, cause } => self.send_step(&line.into(), cause.as_ref()),
                Step::Give(line) => self.give_step(&line.into(), versions),
                Step::Withdraw(key) => self.cancel_upstream(&key, None),
                Step::Extend(key) => self.ledger.extend(Some(&key), self.around.limits.input_timeout),
                Step::Resume(key) => self.ledger.shorten(Some(&key), self.settings.timeout),
            }
        }
    }

    fn send_step(&mut self, line: &Bytes, cause: Option<&IdKey>) {
        let hints = matches!(self.target(), Upstream::Http(_));
        match parse(line) {
            Ok(Message::Request(request)) => {
                let traceparent = cause.and_then(|cause| self.ledger.get(cause)?.span.onward.clone());
                self.send_request(&request, line, traceparent.as_deref());
            }
            Ok(Message::Notification(notification)) => {
                self.send_up(Outgoing::notification(&notification, line.clone(), hints));
            }
            Ok(Message::Answer(answer)) => {
                // It is for the upstream that has asked.
                let (place, line) = self.asked.answered(&answer, line).unwrap_or((Place::Present, line.clone()));
                if let Some(upstream) = self.at(place) {
                    upstream.send(Outgoing::answer(line));
                }
            }
            Err(refusal) => tracing::error!(%refusal, "a message of the bridge is none"),
        }
    }

    fn give_step(&mut self, line: &Bytes, versions: &Arc<[String]>) {
        match parse(line) {
            Ok(Message::Answer(answer)) => self.settle_answer(&answer, line, versions.clone()),
            Ok(Message::Request(request)) => {
                if self.asked.len() < self.around.limits.max_in_flight && self.pass(line, Within::Request) {
                    self.asked.enter(Place::Present, &request, line);
                } else {
                    self.not_asked(request.id.raw());
                }
            }
            Ok(Message::Notification(_)) => drop(self.pass(line, Within::Notification)),
            Err(refusal) => tracing::error!(%refusal, "a message of the bridge is none"),
        }
    }

    /// A question of the bridge does not reach the client: it is answered in its place.
    fn not_asked(&mut self, id: &str) {
        let message = "the client is not asked: it has too many questions to answer, or this one holds a secret";
        let line = answer::error(Some(crate::mcp::message::Field(id)), code::TOO_MANY, message, None);
        if let Ok(Message::Answer(answer)) = parse(&line) {
            self.bridge.client_answer(&answer);
            self.take_steps();
        }
    }
}
