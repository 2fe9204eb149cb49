//! A modern client in front of a legacy server, with which a session has been begun in the client's name.
//!
//! A request loses what only the modern era has and gets an id and a progress token of our own; its answer gets the members that the modern
//! era wants. A server that asks something while it works on a request gets its answer by the client's next try of that request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::capabilities::{Client, Server};
use super::inputs::{Question, input_required, may_ask, visits};
use super::listen::{Subscriptions, UPDATED, changed_list};
use super::outbox::Outbox;
use super::text::{Letter, under, with_result, without_modern};
use crate::mcp::answer;
use crate::mcp::members::Members;
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Message, Notification, Request, parse};
use crate::mcp::protocol::{
    CANCELLED, DISCOVER, INITIALIZE, LISTEN, META_LEVEL, MODERN, PING, PROGRESS, PROMPTS_LIST, RESOURCES_LIST,
    RESOURCES_READ, SET_LEVEL, SUBSCRIBE, TEMPLATES_LIST, TOOLS_LIST, UNSUBSCRIBE, code,
};
use crate::mcp::splice;
use crate::mcp::upstream::Failure;

pub struct ToLegacy {
    server: Server,
    service: Arc<str>,
    patience: Duration,
    /// By their ids towards the server.
    calls: HashMap<IdKey, Call>,
    subscriptions: Subscriptions,
    /// The last one that the server was told.
    level: Option<String>,
    count: u64,
}

/// A request that the server works on.
struct Call {
    serial: u64,
    /// Nobody, while the client is asked something.
    waiter: Option<Waiter>,
    method: String,
    subject: Option<String>,
    /// What the client brings again.
    state: String,
    questions: Vec<Question>,
    asked: u64,
    /// Came while nobody waited.
    answer: Option<Vec<u8>>,
    /// When it is given up, if nobody comes.
    until: Option<Instant>,
}

/// The client's request that the answer is for.
struct Waiter {
    key: IdKey,
    /// As the client wrote it.
    id: Box<str>,
    /// As JSON.
    token: Option<String>,
    level: Option<String>,
    client: Client,
}

impl ToLegacy {
    pub fn new(server: Server, service: Arc<str>, patience: Duration) -> Self {
        Self {
            server,
            service,
            patience,
            calls: HashMap::new(),
            subscriptions: Subscriptions::default(),
            level: None,
            count: 0,
        }
    }

    pub fn request(&mut self, request: &Request<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        if let Some((code, message, data)) = refusal(request) {
            out.give(answer::error(Some(request.id), code, &message, data.as_ref()));
            return true;
        }
        // `parse` has checked that the line is UTF-8 and an object.
        let text = std::str::from_utf8(line).unwrap_or_default();
        let Some(mut letter) = Letter::read(text) else { return false };
        match request.method.as_ref() {
            DISCOVER => out.give(answer::result(request.id, &self.server.discover_result())),
            LISTEN => self.subscriptions.open(request, &letter.params, &self.server, out),
            _ => {
                let waiter = Waiter {
                    key: request.key.clone(),
                    id: request.id.raw().into(),
                    token: letter.meta.get("progressToken").map(str::to_owned),
                    level: letter.meta.text(META_LEVEL),
                    client: Client::of_meta(&letter.meta),
                };
                if let Some(state) = letter.params.text("requestState") {
                    self.resume(&state, waiter, request, &letter.params, out);
                } else {
                    letter.params.remove("inputResponses");
                    self.pass(letter, waiter, request, out);
                }
            }
        }
        true
    }

    fn pass(&mut self, mut letter: Letter<'_>, waiter: Waiter, request: &Request<'_>, out: &mut Outbox) {
        let (id, key) = out.next_id();
        without_modern(&mut letter.meta);
        if waiter.token.is_some() {
            letter.meta.set("progressToken", json!(id).to_string());
        }
        if let Some(level) =
            waiter.level.as_ref().filter(|level| self.server.has("logging") && self.level.as_ref() != Some(level))
        {
            let (id, _) = out.next_id();
            out.send(answer::request(&id, SET_LEVEL, &json!({ "level": level }).to_string()));
            self.level = Some(level.clone());
        }
        self.count += 1;
        let call = Call {
            serial: self.count,
            method: request.method.to_string(),
            subject: subject(request),
            state: format!("{id}.state"),
            questions: Vec::new(),
            asked: 0,
            answer: None,
            until: None,
            waiter: None,
        };
        out.send_for(&waiter.key, letter.write(&id));
        self.calls.insert(key, Call { waiter: Some(waiter), ..call });
    }

    /// The client comes again with what the server wanted to know.
    fn resume(&mut self, state: &str, waiter: Waiter, request: &Request<'_>, params: &Members<'_>, out: &mut Outbox) {
        let fits = |call: &Call| {
            call.state == state
                && call.waiter.is_none()
                && call.method == request.method
                && call.subject == subject(request)
        };
        let Some((key, call)) = self.calls.iter_mut().find(|(_, call)| fits(call)) else {
            let message = "there is no request that waits with this \"requestState\": ask anew, without it";
            return out.give(answer::error(Some(request.id), code::INVALID_PARAMS, message, None));
        };
        let responses = params.object("inputResponses").unwrap_or_default();
        call.questions.retain(|question| match responses.get(&question.name) {
            Some(response) => {
                out.send(answer::result(Field(&question.id), response));
                false
            }
            None => true,
        });
        call.waiter = Some(waiter);
        call.until = None;
        let key = key.clone();
        if let Some(answer) = call.answer.take() {
            self.give(&key, &answer, out);
        } else if !call.questions.is_empty() {
            call.ask(self.patience, out);
        }
    }

    pub fn answer(&mut self, answer: &Answer<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        let Some(key) = &answer.key else { return false };
        let good = matches!(answer.body, AnswerBody::Result { .. });
        if self.subscriptions.answered(key, good, out) {
            return true;
        }
        match self.calls.get_mut(key) {
            Some(call) if call.waiter.is_none() => call.answer = Some(line.to_vec()),
            Some(_) => self.give(key, line, out),
            // To something that was asked in nobody's name, or is not awaited any more.
            None => {}
        }
        true
    }

    /// Gives an answer of the server to whoever waits for it.
    fn give(&mut self, key: &IdKey, line: &[u8], out: &mut Outbox) {
        let Some(call) = self.calls.remove(key) else { return };
        let (Some(waiter), Ok(Message::Answer(answer))) = (call.waiter, parse(line)) else { return };
        let given = match answer.body {
            AnswerBody::Result { raw, .. } => {
                let members = Members::read(raw.raw()).unwrap_or_default();
                let added: &[(&str, &str)] = match call.method.as_str() {
                    TOOLS_LIST | PROMPTS_LIST | RESOURCES_LIST | TEMPLATES_LIST | RESOURCES_READ => &CACHEABLE,
                    _ => &CACHEABLE[..1],
                };
                let result = splice::add_members(raw.raw(), added, |key| members.get(key).is_some());
                result.and_then(|result| with_result(&answer, line, &waiter.id, raw, &result))
            }
            AnswerBody::Error { code, .. } => error_for_modern(line, code, &waiter.id),
        };
        let given = given.or_else(|| under(&answer, line, &waiter.id));
        given.into_iter().for_each(|line| out.give(line));
    }

    pub fn upstream_request(&mut self, request: &Request<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        if request.method == PING {
            out.send(answer::result(request.id, "{}"));
            return true;
        }
        let parked = self.calls.values().filter(|call| call.waiter.is_none()).count();
        let takes = |call: &&mut Call| match &call.waiter {
            Some(waiter) => may_ask(&call.method) && waiter.client.takes(&request.method),
            None => call.answer.is_none(),
        };
        // The one that is worked on, the newest first; else one that is asked something already.
        let newest = self.calls.values_mut().filter(takes).max_by_key(|call| (call.waiter.is_some(), call.serial));
        let Some(call) = newest else {
            let message = "no request is under way whose client would answer this";
            out.send(answer::error(Some(request.id), code::METHOD_NOT_FOUND, message, None));
            return true;
        };
        if call.questions.len() >= MAX_QUESTIONS || (call.waiter.is_some() && parked >= MAX_PARKED) {
            let message = "the client has too many requests of this server to answer already";
            out.send(answer::error(Some(request.id), code::TOO_MANY, message, None));
            return true;
        }
        call.asked += 1;
        let name = format!("{}-{}", request.method.split('/').next().unwrap_or_default(), call.asked);
        let question = Question::of(name, request.key.clone(), request.id.raw(), &request.method, line);
        call.questions.extend(question);
        if call.waiter.is_some() {
            call.ask(self.patience, out);
        }
        true
    }

    pub fn upstream_notification(&mut self, notification: &Notification<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        let params = &notification.params;
        match notification.method.as_ref() {
            PROGRESS => {
                let call = params.progress_token.and_then(IdKey::of).and_then(|key| self.calls.get(&key));
                let token = call.and_then(|call| call.waiter.as_ref()?.token.as_ref());
                let text = std::str::from_utf8(line).unwrap_or_default();
                if let (Some(token), Some(field)) = (token, params.progress_token) {
                    splice::replace(text, field, token).into_iter().for_each(|line| out.give(line));
                }
            }
            CANCELLED => {
                let Some(key) = notification.cancelled() else { return true };
                self.calls.values_mut().for_each(|call| call.questions.retain(|question| question.key != key));
            }
            MESSAGE => {
                if self.wants(line) {
                    out.give(line.to_vec());
                }
            }
            // The client learns the outcome by asking again.
            "notifications/elicitation/complete" => {}
            UPDATED => {
                let uri = params.uri.and_then(Field::text);
                self.subscriptions.tell(None, uri.as_deref(), line, out);
            }
            method => match changed_list(method) {
                Some(list) => self.subscriptions.tell(Some(list), None, line, out),
                None => return false,
            },
        }
        true
    }

    /// Whether somebody wants to be told of this line of the server's log.
    fn wants(&self, line: &[u8]) -> bool {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let level = Members::read(text).and_then(|message| message.object("params")?.text("level"));
        let level = severity(level.as_deref().unwrap_or_default());
        let wanted = self.calls.values().filter_map(|call| call.waiter.as_ref()?.level.as_deref());
        wanted.map(severity).any(|wanted| level >= wanted)
    }

    pub fn lost(&mut self, key: &IdKey, failure: &Failure) -> Vec<IdKey> {
        let Some(call) = self.calls.get_mut(key) else { return Vec::new() };
        match &call.waiter {
            Some(waiter) => {
                let lost = vec![waiter.key.clone()];
                self.calls.remove(key);
                lost
            }
            None => {
                // Whoever comes back for it shall know why.
                call.questions.clear();
                call.answer = Some(answer::error(Some(Field("0")), failure.code, &failure.message, None));
                Vec::new()
            }
        }
    }

    pub fn withdraw(&mut self, key: &IdKey, out: &mut Outbox) -> bool {
        if self.subscriptions.close(key, out) {
            return true;
        }
        let Some(found) = self.towards_upstream(key) else { return false };
        self.calls.remove(&found);
        out.withdraw(found);
        true
    }

    pub fn towards_upstream(&self, key: &IdKey) -> Option<IdKey> {
        let waits = |call: &Call| call.waiter.as_ref().is_some_and(|waiter| waiter.key == *key);
        self.calls.iter().find(|(_, call)| waits(call)).map(|(key, _)| key.clone())
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.calls.values().filter_map(|call| call.until).min()
    }

    /// Gives up what the client has not come back for.
    pub fn expire(&mut self, now: Instant, out: &mut Outbox) {
        let due = self.calls.iter().filter(|(_, call)| call.until.is_some_and(|until| until <= now));
        let due: Vec<IdKey> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some(call) = self.calls.remove(&key) else { continue };
            tracing::info!(
                service = &*self.service,
                method = call.method,
                "a client has not come back with what the server asked"
            );
            for question in call.questions {
                let message = "the client did not answer in time";
                out.send(answer::error(Some(Field(&question.id)), code::TIMED_OUT, message, None));
            }
            if call.answer.is_none() {
                out.withdraw(key);
            }
        }
    }
}

impl Call {
    /// Answers whoever waits with the questions of the server.
    fn ask(&mut self, patience: Duration, out: &mut Outbox) {
        let Some(waiter) = self.waiter.take() else { return };
        out.give(answer::result(Field(&waiter.id), &input_required(&self.questions, Some(&self.state))));
        self.until = Some(Instant::now() + patience);
    }
}

/// Why a server of the modern era would not take a request.
fn refusal(request: &Request<'_>) -> Option<(i32, String, Option<serde_json::Value>)> {
    let meta = request.params.meta.as_ref();
    match request.modern_version() {
        None => Some((code::INVALID_PARAMS, "the protocol version is missing in \"params._meta\"".into(), None)),
        Some(version) if version != MODERN => {
            let data = json!({ "supported": [MODERN], "requested": version });
            Some((code::UNSUPPORTED_VERSION, format!("the protocol version {version:?} is not supported"), Some(data)))
        }
        Some(_) if meta.is_none_or(|meta| meta.client_capabilities.is_none()) => {
            Some((code::INVALID_PARAMS, "the client's capabilities are missing in \"params._meta\"".into(), None))
        }
        Some(_) => matches!(request.method.as_ref(), INITIALIZE | PING | SET_LEVEL | SUBSCRIBE | UNSUBSCRIBE)
            .then(|| (code::METHOD_NOT_FOUND, format!("{MODERN} does not have the method {:?}", request.method), None)),
    }
}

fn subject(request: &Request<'_>) -> Option<String> {
    request.params.name.or(request.params.uri).and_then(Field::text).map(|text| text.into_owned())
}

/// An error whose code the modern era does not have, in its words. `None`: it has it.
fn error_for_modern(line: &[u8], code: Option<i64>, id: &str) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(line).ok()?;
    match code? {
        NOT_FOUND => {
            let mut message = Members::read(text)?;
            let mut error = message.object("error")?.into_owned();
            error.set("code", code::INVALID_PARAMS.to_string());
            message.set("id", id.to_owned());
            message.set("error", error.write());
            Some(message.write().into_bytes())
        }
        VISIT_FIRST => {
            let message = Members::read(text)?;
            Some(answer::result(Field(id), &visits(message.get("error")?)?))
        }
        _ => None,
    }
}

/// The levels of a server's log in their order; what is none is the most severe.
fn severity(level: &str) -> usize {
    LEVELS.iter().position(|known| *known == level).unwrap_or(LEVELS.len())
}

const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
const MESSAGE: &str = "notifications/message";
/// What a result has to say in the modern era, of which all but the first belongs to what could be kept: nothing is to be.
const CACHEABLE: [(&str, &str); 3] = [("resultType", "\"complete\""), ("ttlMs", "0"), ("cacheScope", "\"private\"")];
/// "No such resource" in the legacy era.
const NOT_FOUND: i64 = -32002;
/// A legacy server's way to say that the user has to visit an address.
const VISIT_FIRST: i64 = -32042;
/// Of one request at a time.
const MAX_QUESTIONS: usize = 16;
/// Requests that wait for their clients to come again.
const MAX_PARKED: usize = 64;
