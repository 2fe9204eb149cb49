//! What a session does with each message: client to upstream, upstream to client, and what never arrives.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncRead;

use super::swap::Place;
use super::{ClientWriter, Session};
use crate::mcp::answer;
use crate::mcp::batch;
use crate::mcp::call::{Call, Ending};
use crate::mcp::leaks::{Checked, Leak, Within};
use crate::mcp::lines::TooLong;
use crate::mcp::message::{
    Answer, AnswerBody, Field, IdKey, Message, Notification, Refusal, Request, answered_by_refused, id_of_refused,
    parse,
};
use crate::mcp::metrics::Direction;
use crate::mcp::policy::{Denial, decide};
use crate::mcp::protocol::{CANCELLED, INITIALIZE, LISTEN, TOOLS_CALL, code, known_version};
use crate::mcp::shown::List;
use crate::mcp::upstream::outgoing::Outgoing;
use crate::mcp::upstream::replay::Agreed;
use crate::mcp::upstream::{Event, Failure, Gone, Upstream};
use crate::ports::AuditRefused;

impl<R: AsyncRead + Unpin + Send, W: ClientWriter> Session<R, W> {
    pub(super) fn take_client_lines(&mut self) {
        let mut count = 0;
        while let Some(line) = self.client.next_line() {
            match line {
                Ok(line) => {
                    count += line.len() + 1;
                    self.on_client_line(&line);
                }
                Err(TooLong) => {
                    let limit = self.around.limits.max_message_bytes;
                    let refusal = Refusal::Invalid(format!("the message is larger than {limit} bytes"));
                    self.refuse(None, &refusal, "message_too_large");
                    self.client_writes = false;
                    break;
                }
            }
        }
        self.around.recorder.metrics.bytes(&self.around.service.name, Direction::FromClient, count);
    }

    pub(super) fn on_upstream(&mut self, place: Place, event: Event) {
        match event {
            Event::Lines => {
                let mut count = 0;
                while let Some(line) = self.at(place).and_then(Upstream::next_line) {
                    count += line.len() + 1;
                    self.on_upstream_line(place, &line);
                }
                self.around.recorder.metrics.bytes(&self.around.service.name, Direction::FromUpstream, count);
            }
            Event::Older => self.change_transport(Upstream::older),
            Event::Lost { failure, .. } if place == Place::Coming => self.coming_failed(&failure),
            Event::Lost { keys, failure, versions, gone } => {
                if !keys.is_empty() {
                    self.note_failure(failure.kind);
                }
                keys.iter().for_each(|key| self.shown.lost(key));
                let lost: Vec<IdKey> = keys.into_iter().flat_map(|key| self.bridge.lost(key, &failure)).collect();
                self.take_steps();
                for key in lost {
                    let settled = self.ledger.settle(&key, versions.clone(), &Ending::Failed(&failure));
                    if let Some((call, recorded)) = settled {
                        self.answer_failure(&call, recorded, failure.code, &failure.message, failure.kind);
                    }
                }
                if gone == Gone::Yes {
                    self.cancel_asked(place);
                }
                if place == Place::Leaving {
                    self.leaving_died();
                } else if self.upstream.as_stdio().is_some_and(|upstream| upstream.is_wrong_guess()) {
                    self.change_transport(Upstream::new);
                }
            }
        }
    }

    /// Requests whose time is over: an error for the client, a cancellation for the upstream.
    pub(super) fn expire(&mut self) {
        for key in self.ledger.overdue() {
            let versions = self.versions_for(&key);
            if self.held.remove(&key).is_none() {
                self.withdraw(&key, None);
                self.note_overdue(&key);
            }
            if let Some((call, recorded)) = self.ledger.settle(&key, versions, &Ending::TimedOut) {
                let timeout = call.timeout.unwrap_or_default();
                let message = format!("service {}: no answer within {timeout:?}", self.around.service.name);
                self.answer_failure(&call, recorded, code::TIMED_OUT, &message, "timeout");
            }
        }
    }

    /// The upstream that asked is gone: the client need not answer.
    pub(super) fn cancel_asked(&mut self, place: Place) {
        if self.bridge.asks_itself() {
            return;
        }
        for key in self.asked.take(place) {
            self.client.push(&answer::cancelled(&key, "the server was restarted"));
        }
    }

    /// The client is gone: nobody will read an answer.
    pub(super) fn record_the_rest(&mut self) {
        for key in self.ledger.keys() {
            let versions = self.versions_for(&key);
            if let Some((_, Err(error))) = self.ledger.settle(&key, versions, &Ending::ClientGone) {
                tracing::error!(%error, service = &*self.around.service.name, "an unanswered request could not be audited");
            }
        }
    }

    /// The session ends before its requests are answered.
    pub(super) fn answer_the_rest(&mut self) {
        let failure =
            Failure::new(&self.around.service.name, "closing", "closing: mcpeg stops, or the service was removed");
        for key in self.ledger.keys() {
            let versions = self.versions_for(&key);
            if let Some((call, recorded)) = self.ledger.settle(&key, versions, &Ending::Failed(&failure)) {
                self.answer_failure(&call, recorded, failure.code, &failure.message, failure.kind);
            }
        }
    }

    fn on_client_line(&mut self, line: &Bytes) {
        if line.trim_ascii().is_empty() {
            return;
        }
        if let Some(messages) = batch::messages(line, self.version) {
            return messages.iter().for_each(|message| self.on_client_line(message));
        }
        match parse(line) {
            Ok(Message::Request(request)) => self.on_request(&request, line),
            Ok(Message::Notification(notification)) => self.on_notification(&notification, line),
            Ok(Message::Answer(answer)) => {
                // An answer that nobody waits for, because the upstream that asked is gone, must not reach its successor.
                let Some((place, line)) = self.asked.answered(&answer, line) else { return };
                if self.bridge.client_answer(&answer) {
                    self.take_steps();
                } else if let Some(upstream) = self.at(place) {
                    upstream.send(Outgoing::answer(line));
                    if self.asked.is_empty() {
                        self.ledger.shorten(None, self.settings.timeout);
                    }
                }
            }
            Err(refusal) => self.refuse(id_of_refused(line), &refusal, "invalid_request"),
        }
    }

    fn on_request(&mut self, request: &Request<'_>, line: &Bytes) {
        match self.with_original_name(request, line) {
            Ok(None) => self.on_named_request(request, line, None),
            // Only the name in it is another one.
            Ok(Some(line)) => {
                if let Ok(Message::Request(renamed)) = parse(&line) {
                    self.on_named_request(&renamed, &line, request.called_name().as_deref());
                }
            }
            Err(denial) => {
                let call = Call::begin(request, &self.around.service.name, self.version);
                self.deny(call, &denial);
            }
        }
    }

    /// `alias`: the name that the client knows the tool by, if it is another one.
    fn on_named_request(&mut self, request: &Request<'_>, line: &Bytes, alias: Option<&str>) {
        let mut call = Call::begin(request, &self.around.service.name, self.version);
        call.arguments = self.around.recorder.digests.of(request.params.arguments);
        if self.ledger.contains(&request.key) {
            let message = "the id belongs to a request that is not answered yet".to_owned();
            return self.deny(call, &Denial::new(code::INVALID_REQUEST, "duplicate_id", message));
        }
        let judged =
            decide(request, self.ledger.len(), &self.around.limits).and_then(|()| self.judge(request, line, &mut call));
        if let Some(alias) = alias {
            call.plan.get_or_insert_default().alias = Some(alias.into());
        }
        if let Err(denial) = judged {
            return self.deny(call, &denial);
        }
        if self.around.recorder.audit.ready().is_err() {
            return self.deny_unaudited(&call);
        }
        let own_time = call.plan.as_ref().and_then(|plan| plan.timeout);
        let timeout = (request.method != LISTEN).then_some(own_time.unwrap_or(self.settings.timeout));
        self.ledger.enter(request.key.clone(), call, timeout);
        self.forward(request, line);
    }

    /// Sends a request that is in the ledger to the upstream.
    pub(super) fn send_on(&mut self, request: &Request<'_>, line: &Bytes) {
        if let Some(call) = self.ledger.get_mut(&request.key) {
            call.sent();
        }
        if self.bridge.request(request, line) {
            return self.take_steps();
        }
        let Some(call) = self.ledger.get(&request.key) else { return };
        let onward = call.span.onward.clone();
        self.send_request(request, line, onward.as_deref());
    }

    fn on_notification(&mut self, notification: &Notification<'_>, line: &Bytes) {
        if notification.method != CANCELLED {
            if self.policy.refuses_peer(self.ledger.peer).is_some() {
                return;
            }
            if self.bridge.notification(notification, line) {
                return self.take_steps();
            }
            let hints = matches!(self.target(), Upstream::Http(_));
            let outgoing = Outgoing::notification(notification, line.clone(), hints);
            return self.send_up(outgoing);
        }
        // Too late if it is answered already; and the protocol does not let `initialize` be cancelled.
        let Some(key) = notification.cancelled() else { return };
        if self.ledger.get(&key).is_none_or(|call| call.method == INITIALIZE) {
            return;
        }
        let versions = self.versions_for(&key);
        if self.held.remove(&key).is_none() {
            self.withdraw(&key, Some(line.clone()));
        }
        if let Some((_, Err(error))) = self.ledger.settle(&key, versions, &Ending::Cancelled) {
            tracing::error!(%error, service = &*self.around.service.name, "a cancelled request could not be audited");
        }
    }

    /// Sends a request to whom it belongs, as the client or the bridge has written it.
    pub(super) fn send_request(&mut self, request: &Request<'_>, line: &Bytes, traceparent: Option<&str>) {
        if let Some(version) = request.modern_version() {
            self.modern = Some(version.into_owned());
        }
        self.shown.asked(request);
        let called = request.called_name().filter(|_| request.method == TOOLS_CALL);
        let tool = called.and_then(|tool| self.around.service.catalogue.tool(&tool));
        let hints = matches!(self.target(), Upstream::Http(_));
        self.send_up(Outgoing::request(request, line.clone(), hints, traceparent, tool.as_deref()));
    }

    pub(super) fn on_upstream_line(&mut self, place: Place, line: &Bytes) {
        if let Some(messages) = batch::messages(line, self.version) {
            return messages.iter().for_each(|message| self.on_upstream_line(place, message));
        }
        match parse(line) {
            Ok(Message::Answer(answer)) => self.on_answer(place, &answer, line),
            Ok(Message::Request(request)) => {
                if let Err((code, refusal)) = self.ask_client(place, &request, line)
                    && let Some(upstream) = self.at(place)
                {
                    let refusal = answer::error(Some(request.id), code, refusal, None);
                    upstream.send(Outgoing::answer(refusal.into()));
                }
            }
            Ok(Message::Notification(notification)) => {
                if !self.note_news(&notification) {
                    return;
                }
                let renamed = match notification.method.as_ref() {
                    CANCELLED => self.asked.withdrawn(place, &notification, line).map(Bytes::from),
                    _ => None,
                };
                let shown = renamed.as_ref().unwrap_or(line);
                if let Ok(Message::Notification(notification)) = parse(shown)
                    && self.bridge.upstream_notification(&notification, shown)
                {
                    return self.take_steps();
                }
                self.pass(shown, Within::Notification);
            }
            Err(refusal) => self.on_unreadable(place, &refusal, line),
        }
    }

    /// Passes a request of the upstream's on, or says why not.
    fn ask_client(&mut self, place: Place, request: &Request<'_>, line: &Bytes) -> Result<(), (i32, &'static str)> {
        if self.asked.len() >= self.around.limits.max_in_flight {
            return Err((code::TOO_MANY, "the client has too many requests of this server to answer already"));
        }
        let renamed = self.asked.enter(place, request, line).map(Bytes::from);
        let shown = renamed.as_ref().unwrap_or(line);
        if let Ok(Message::Request(request)) = parse(shown)
            && self.bridge.upstream_request(&request, shown)
        {
            self.asked.bridged(&request.key);
            self.take_steps();
            return Ok(());
        }
        if self.pass(shown, Within::Request) {
            if asks_a_person(&request.method) {
                // It does not say which request it is for.
                self.ledger.extend(None, self.around.limits.input_timeout);
            }
            return Ok(());
        }
        self.asked.refused(place, request);
        Err((code::LEAK, "the request holds a secret, and the client does not get it"))
    }

    /// What was meant as an answer settles its request, so that the client need not wait for its time-out.
    fn on_unreadable(&mut self, place: Place, refusal: &Refusal, line: &[u8]) {
        let service = &self.around.service.name;
        tracing::warn!(service = &**service, %refusal, bytes = line.len(), "the upstream sent a line that is no message: dropped");
        let Some(key) = answered_by_refused(line).filter(|key| self.owner(key) == place) else { return };
        let failure =
            Failure::new(service, "bad_answer", format_args!("the server's answer cannot be read: {refusal}"));
        let versions = self.upstream_answered(place, &key, None);
        let lost = self.bridge.lost(key, &failure);
        self.take_steps();
        for key in lost {
            if let Some((call, recorded)) = self.ledger.settle(&key, versions.clone(), &Ending::Failed(&failure)) {
                self.answer_failure(&call, recorded, failure.code, &failure.message, failure.kind);
            }
        }
    }

    /// A request, by its id towards the upstream, is answered. The versions of the secrets with which it was sent.
    fn upstream_answered(&mut self, place: Place, key: &IdKey, result: Option<&str>) -> Arc<[String]> {
        if self.shown.answered(key, result) == Some(List::Tools)
            && let Some(result) = result
        {
            self.around.service.catalogue.learn(result);
        }
        let Some(upstream) = self.at(place) else { return Arc::default() };
        let versions = upstream.versions_for(key);
        upstream.answered(key, result);
        versions
    }

    fn on_answer(&mut self, place: Place, answer: &Answer<'_>, line: &Bytes) {
        let Some(key) = &answer.key else {
            self.pass(line, Within::Answer);
            return;
        };
        if self.owner(key) != place {
            return;
        }
        let result = match answer.body {
            AnswerBody::Result { raw, .. } => Some(raw.raw()),
            AnswerBody::Error { .. } => None,
        };
        let versions = self.upstream_answered(place, key, result);
        if self.bridge.answer(answer, line) {
            return self.take_steps_with(&versions);
        }
        // It has told the bridge that nothing is to be translated, or that something else has to be said first.
        self.take_steps();
        self.settle_answer(answer, line, versions);
    }

    /// The client gets an answer, as it is or as the bridge has written it.
    pub(super) fn settle_answer(&mut self, answer: &Answer<'_>, line: &Bytes, versions: Arc<[String]>) {
        if let Some(key) = &answer.key {
            self.note_answer(key, answer, line);
            self.give_answer(key, answer, line, versions);
        }
    }

    /// The client gets an answer, of the upstream or of the cache, as the policy wants it.
    pub(super) fn give_answer(&mut self, key: &IdKey, answer: &Answer<'_>, line: &Bytes, versions: Arc<[String]>) {
        let Some(shaped) = self.shaped(key, answer, line) else {
            return self.deliver(key, answer, line, versions, None);
        };
        if let Ok(Message::Answer(answer)) = parse(&shaped.line) {
            self.deliver(key, &answer, &shaped.line, versions, shaped.withheld);
        }
    }

    /// `withheld`: what the upstream said is not in it, and why.
    fn deliver(
        &mut self,
        key: &IdKey,
        answer: &Answer<'_>,
        line: &Bytes,
        versions: Arc<[String]>,
        withheld: Option<&'static str>,
    ) {
        let (ending, result) = match (withheld, answer.body) {
            (Some(kind), _) => (Ending::Denied { kind }, None),
            (None, AnswerBody::Result { raw, tool_error }) => (Ending::Answered { tool_error }, Some(raw.raw())),
            (None, AnswerBody::Error { code, .. }) => (Ending::ErrorAnswer { code }, None),
        };
        let checked = self.around.leaks.check(line, Some(answer.id));
        let ending = if matches!(checked, Checked::Blocked(_)) { Ending::Denied { kind: LEAK } } else { ending };
        if self.around.recorder.digests.are_made() {
            self.digest_result(key, &ending, answer, &checked);
        }
        // Whoever has waited no longer has got an error already.
        let Some((call, recorded)) = self.ledger.settle(key, versions, &ending) else { return };
        if call.method == INITIALIZE {
            let agreed = result.and_then(Agreed::of);
            self.version = agreed.and_then(|agreed| known_version(&agreed.version));
        }
        match recorded.and_then(|()| self.record_leak(&checked, Within::Answer, Some(&call))) {
            Err(error) => self.answer_unaudited(&call, &error),
            Ok(()) => match checked {
                Checked::Clean | Checked::Reported(_) => self.client.push(line),
                Checked::Redacted(line, _) => self.client.push(&line),
                Checked::Blocked(leak) => self.answer_blocked(&call, &leak),
            },
        }
    }

    /// Of the result as the client gets it, if it gets one.
    fn digest_result(&mut self, key: &IdKey, ending: &Ending<'_>, answer: &Answer<'_>, checked: &Checked) {
        let Some(call) = self.ledger.get_mut(key).filter(|_| matches!(ending, Ending::Answered { .. })) else { return };
        let result = |body: &AnswerBody<'_>| match body {
            AnswerBody::Result { raw, .. } => self.around.recorder.digests.of(Some(*raw)),
            AnswerBody::Error { .. } => None,
        };
        call.result = match checked {
            Checked::Redacted(line, _) => match parse(line) {
                Ok(Message::Answer(left)) => result(&left.body),
                _ => None,
            },
            _ => result(&answer.body),
        };
    }

    /// Passes on what is no answer to a request, or what is left of it. False when the client does not get it.
    pub(super) fn pass(&mut self, line: &[u8], within: Within) -> bool {
        let checked = self.around.leaks.check(line, None);
        if let Err(error) = self.record_leak(&checked, within, None) {
            tracing::error!(%error, service = &*self.around.service.name, "a message with a secret in it is withheld");
            return false;
        }
        match checked {
            Checked::Clean | Checked::Reported(_) => self.client.push(line),
            Checked::Redacted(line, _) => self.client.push(&line),
            Checked::Blocked(_) => return false,
        }
        true
    }

    fn record_leak(&self, checked: &Checked, within: Within, call: Option<&Call>) -> Result<(), AuditRefused> {
        let (Checked::Reported(leak) | Checked::Redacted(_, leak) | Checked::Blocked(leak)) = checked else {
            return Ok(());
        };
        leak.record(&self.around.recorder, &self.around.service.name, self.ledger.peer, within, call)
    }

    fn answer_blocked(&mut self, call: &Call, leak: &Leak) {
        let items = leak.items();
        let message = format!(
            "service {}: the answer is withheld, as it holds the value of the secret {}",
            self.around.service.name,
            items.join(", ")
        );
        let data = json!({ "service": &*self.around.service.name, "reason": LEAK, "items": items });
        self.client.push(&answer::error(Some(Field(&call.id)), code::LEAK, &message, Some(&data)));
    }

    /// Tells whichever upstream has the request that its answer is not awaited any more.
    fn withdraw(&mut self, key: &IdKey, notice: Option<Bytes>) {
        if self.bridge.withdraw(key) {
            return self.take_steps();
        }
        self.cancel_upstream(key, notice);
    }

    /// As `withdraw`, by the id towards the upstream.
    pub(super) fn cancel_upstream(&mut self, key: &IdKey, notice: Option<Bytes>) {
        self.shown.lost(key);
        if let Some(next) = &mut self.next {
            next.cancel(key, None);
        }
        let owner = self.owner(key);
        if let Some(upstream) = self.at(owner) {
            upstream.cancel(key, notice);
        }
    }

    fn refuse(&mut self, id: Option<Field<'_>>, refusal: &Refusal, kind: &str) {
        let service = &self.around.service.name;
        if let Err(error) = self.around.recorder.refused(id.map(Field::raw), service, self.ledger.peer, kind) {
            tracing::error!(%error, service = &**service, "a refused message could not be audited");
        }
        self.client.push(&answer::error(id, refusal.code(), &refusal.to_string(), None));
    }

    fn deny(&mut self, mut call: Call, denial: &Denial) {
        call.refused(denial);
        let recorded = self.ledger.settle_at_once(&call, &Ending::Denied { kind: denial.kind });
        self.answer_denial(&call, recorded, denial);
    }

    /// Nothing may happen that could not be put on record. That the denial cannot be either is said by the trail itself.
    fn deny_unaudited(&mut self, call: &Call) {
        let recorded = self.ledger.settle_at_once(call, &Ending::Denied { kind: NOT_AUDITED });
        tracing::debug!(recorded = recorded.is_ok(), service = &*self.around.service.name, "a request was not sent");
        let message = "the audit trail cannot be written, so the request was not sent to the service";
        self.answer_failure(call, Ok(()), code::NOT_AUDITED, message, NOT_AUDITED);
    }

    fn answer_failure(
        &mut self,
        call: &Call,
        recorded: Result<(), AuditRefused>,
        code: i32,
        message: &str,
        reason: &str,
    ) {
        let data = json!({ "service": &*self.around.service.name, "reason": reason });
        self.answer_error(call, recorded, code, message, &data);
    }

    pub(super) fn answer_error(
        &mut self,
        call: &Call,
        recorded: Result<(), AuditRefused>,
        code: i32,
        message: &str,
        data: &serde_json::Value,
    ) {
        if let Err(error) = recorded {
            return self.answer_unaudited(call, &error);
        }
        // The words may be the upstream's.
        let line = answer::error(Some(Field(&call.id)), code, message, Some(data));
        let checked = self.around.leaks.check(&line, None);
        if let Err(error) = self.record_leak(&checked, Within::Failure, Some(call)) {
            return self.answer_unaudited(call, &error);
        }
        match checked {
            Checked::Clean | Checked::Reported(_) => self.client.push(&line),
            Checked::Redacted(line, _) => self.client.push(&line),
            Checked::Blocked(leak) => self.answer_blocked(call, &leak),
        }
    }

    fn answer_unaudited(&mut self, call: &Call, error: &AuditRefused) {
        tracing::error!(%error, service = &*self.around.service.name, "an answer is withheld");
        let message = "the request could not be audited, so its answer is withheld";
        let data = json!({ "service": &*self.around.service.name, "reason": "answer_withheld" });
        self.client.push(&answer::error(Some(Field(&call.id)), code::NOT_AUDITED, message, Some(&data)));
    }
}

/// Whether a request of a server may wait for a person to read and to answer it.
fn asks_a_person(method: &str) -> bool {
    matches!(method, "elicitation/create" | "sampling/createMessage")
}

/// `error.type` and `data.reason` of a request that was not sent because it could not be audited.
const NOT_AUDITED: &str = "not_audited";
/// The same, of a request whose answer was withheld because of a secret in it.
const LEAK: &str = "secret_leak";
