//! A legacy client in front of a modern server, which has told what it can (`server/discover`).
//!
//! A request gets what a modern one has to say in `_meta`, and an id of our own. What the client would set for its session (log level,
//! subscriptions) is kept here and said with each request, or as `subscriptions/listen`. A result that asks for input becomes requests to the client, and then
//! a new try.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::capabilities::{Client, Server, agreed};
use super::inputs::{Asked, Round, may_ask};
use super::listen::LISTS;
use super::outbox::Outbox;
use super::text::{Letter, off_subscription, under};
use crate::mcp::answer;
use crate::mcp::members::Members;
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Message, Notification, Request, parse};
use crate::mcp::protocol::{
    CANCELLED, INITIALIZE, INITIALIZED, LISTEN, PING, PROGRESS, SET_LEVEL, SUBSCRIBE, UNSUBSCRIBE, code,
};

pub struct ToModern {
    client: Client,
    server: Server,
    service: Arc<str>,
    /// As JSON.
    level: Option<String>,
    /// By their ids towards the server.
    calls: HashMap<IdKey, Call>,
    /// What waits for the client's answers, by the ids of its requests.
    rounds: HashMap<IdKey, Round>,
    listens: HashMap<IdKey, Listen>,
    /// Those that broke, and when they are made again.
    broken: Vec<(Instant, Listen)>,
}

/// A request that the server works on.
struct Call {
    key: IdKey,
    /// The client's request, as it came.
    line: Bytes,
    tries: usize,
}

struct Listen {
    what: What,
    breaks: u32,
}

enum What {
    /// The lists that the server says it will tell of.
    Lists,
    /// A resource, and the client's request that has not been answered yet.
    Resource { uri: String, waiting: Option<(Box<str>, IdKey)> },
}

impl ToModern {
    pub fn new(client: Client, server: Server, service: Arc<str>) -> Self {
        Self {
            client,
            server,
            service,
            level: None,
            calls: HashMap::new(),
            rounds: HashMap::new(),
            listens: HashMap::new(),
            broken: Vec::new(),
        }
    }

    pub fn request(&mut self, request: &Request<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        if request.modern_version().is_some() {
            // It knows how to speak to the server by itself.
            return false;
        }
        let text = std::str::from_utf8(line).unwrap_or_default();
        let Some(letter) = Letter::read(text) else { return false };
        match request.method.as_ref() {
            INITIALIZE => {
                self.client = Client::of_initialize(&letter.params);
                let version = agreed(letter.params.text("protocolVersion").as_deref());
                out.give(answer::result(request.id, &self.server.initialize_result(version, &self.service)));
            }
            PING => out.give(answer::result(request.id, "{}")),
            SET_LEVEL if self.server.has("logging") => {
                self.level = letter.params.get("level").map(str::to_owned);
                out.give(answer::result(request.id, "{}"));
            }
            SUBSCRIBE if self.server.says("resources", "subscribe") => self.subscribe(request, out),
            UNSUBSCRIBE => {
                self.unsubscribe(request.params.uri.and_then(Field::text).as_deref(), out);
                out.give(answer::result(request.id, "{}"));
            }
            SET_LEVEL | SUBSCRIBE => {
                let message = format!("the server does not have the method {:?}", request.method);
                out.give(answer::error(Some(request.id), code::METHOD_NOT_FOUND, &message, None));
            }
            _ => self.send(letter, Call { key: request.key.clone(), line: line.clone(), tries: 1 }, out),
        }
        true
    }

    fn send(&mut self, mut letter: Letter<'_>, call: Call, out: &mut Outbox) {
        let (id, key) = out.next_id();
        self.client.say_in(&mut letter.meta, self.level.as_deref());
        out.send_for(&call.key, letter.write(&id));
        self.calls.insert(key, call);
    }

    fn subscribe(&mut self, request: &Request<'_>, out: &mut Outbox) {
        let Some(uri) = request.params.uri.and_then(Field::text) else {
            let message = "\"params.uri\" is missing";
            return out.give(answer::error(Some(request.id), code::INVALID_PARAMS, message, None));
        };
        let known = |listen: &Listen| matches!(&listen.what, What::Resource { uri: its, .. } if *its == uri);
        if self.listens.values().chain(self.broken.iter().map(|(_, listen)| listen)).any(known) {
            return out.give(answer::result(request.id, "{}"));
        }
        if self.listens.len() + self.broken.len() >= MAX_LISTENS {
            let message = format!("{MAX_LISTENS} resources are subscribed to, which is the limit");
            return out.give(answer::error(Some(request.id), code::TOO_MANY, &message, None));
        }
        let waiting = Some((request.id.raw().into(), request.key.clone()));
        self.listen(Listen { what: What::Resource { uri: uri.into_owned(), waiting }, breaks: 0 }, out);
    }

    fn unsubscribe(&mut self, uri: Option<&str>, out: &mut Outbox) {
        let other = |what: &What| !matches!(what, What::Resource { uri: its, .. } if Some(its.as_str()) == uri);
        self.broken.retain(|(_, listen)| other(&listen.what));
        self.listens.retain(|key, listen| {
            let stays = other(&listen.what);
            if !stays {
                out.withdraw(key.clone());
            }
            stays
        });
    }

    fn listen(&mut self, listen: Listen, out: &mut Outbox) {
        let filter = match &listen.what {
            What::Lists => {
                let told = LISTS.into_iter().filter(|list| self.server.says(list, "listChanged"));
                told.map(|list| (format!("{list}ListChanged"), json!(true))).collect::<serde_json::Map<_, _>>().into()
            }
            What::Resource { uri, .. } => json!({ "resourceSubscriptions": [uri] }),
        };
        let (id, key) = out.next_id();
        let mut meta = Members::default();
        self.client.say_in(&mut meta, None);
        let params = format!(r#"{{"notifications":{filter},"_meta":{}}}"#, meta.write());
        out.send(answer::request(&id, LISTEN, &params));
        self.listens.insert(key, listen);
    }

    pub fn notification(&mut self, notification: &Notification<'_>, out: &mut Outbox) -> bool {
        match notification.method.as_ref() {
            INITIALIZED => {
                let tells = LISTS.into_iter().any(|list| self.server.says(list, "listChanged"));
                let listens = self.listens.values().any(|listen| matches!(listen.what, What::Lists));
                if tells && !listens {
                    self.listen(Listen { what: What::Lists, breaks: 0 }, out);
                }
                true
            }
            // A modern server has asked nothing of whose progress it could be told, and asks for roots when it needs them.
            PROGRESS | "notifications/roots/list_changed" => true,
            _ => false,
        }
    }

    pub fn answer(&mut self, answer: &Answer<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        let Some(key) = &answer.key else { return false };
        if let Some(listen) = self.listens.remove(key) {
            self.listen_answered(listen, answer, line, out);
            return true;
        }
        let Some(call) = self.calls.remove(key) else { return false };
        let Ok(Message::Request(request)) = parse(&call.line) else { return true };
        if let AnswerBody::Result { raw, .. } = answer.body
            && may_ask(&request.method)
            && let Some(result) = wants_input(raw.raw())
        {
            self.begin_round(&request, &call, &result, out);
            return true;
        }
        under(answer, line, request.id.raw()).into_iter().for_each(|line| out.give(line));
        true
    }

    /// The server wants to know something first: the client is asked.
    fn begin_round(&mut self, request: &Request<'_>, call: &Call, result: &Members<'_>, out: &mut Outbox) {
        if call.tries >= MAX_TRIES {
            let message = format!("service {}: it asked for input {MAX_TRIES} times", self.service);
            return out.give(answer::error(Some(request.id), code::UPSTREAM_FAILED, &message, None));
        }
        let requests = result.object("inputRequests").unwrap_or_default();
        let mut round = Round {
            line: call.line.clone(),
            tries: call.tries + 1,
            state: result.get("requestState").map(str::to_owned),
            asked: Vec::new(),
        };
        for (name, wanted) in requests.iter().take(MAX_QUESTIONS) {
            let Some(mut question) = Members::read(wanted) else { continue };
            let (id, key) = out.next_id();
            if let Some(mut params) = question.object("params").map(Members::into_owned)
                && params.text("mode").as_deref() == Some("url")
                && params.get("elicitationId").is_none()
            {
                // The legacy era has to have one.
                params.set("elicitationId", json!(id).to_string());
                question.set("params", params.write());
            }
            question.set("jsonrpc", "\"2.0\"");
            question.set("id", json!(id).to_string());
            out.give(question.write());
            round.asked.push(Asked { name: name.to_owned(), key, response: None });
        }
        if round.asked.is_empty() {
            return self.try_again(call.key.clone(), &round, out);
        }
        out.extend(call.key.clone());
        self.rounds.insert(call.key.clone(), round);
    }

    /// The client's answer to one of our questions.
    pub fn client_answer(&mut self, answer: &Answer<'_>, out: &mut Outbox) -> bool {
        let names = |asked: &Asked| Some(&asked.key) == answer.key.as_ref();
        let Some((key, round)) = self.rounds.iter_mut().find(|(_, round)| round.asked.iter().any(names)) else {
            return false;
        };
        let key = key.clone();
        match answer.body {
            AnswerBody::Result { raw, .. } => {
                for asked in round.asked.iter_mut().filter(|asked| names(asked)) {
                    asked.response = Some(raw.raw().to_owned());
                }
                if round.is_answered()
                    && let Some(round) = self.rounds.remove(&key)
                {
                    self.try_again(key, &round, out);
                }
            }
            AnswerBody::Error { code, message } => {
                let Some(round) = self.rounds.remove(&key) else { return true };
                let open = round.asked.iter().filter(|asked| asked.response.is_none() && !names(asked));
                open.for_each(|asked| out.give(answer::cancelled(&asked.key, "another question was not answered")));
                let Ok(Message::Request(request)) = parse(&round.line) else { return true };
                let said = message.and_then(Field::text).unwrap_or_default();
                let message = format!("the client did not answer what the server asked of it: {said}");
                let code = code.and_then(|code| i32::try_from(code).ok()).unwrap_or(code::INVALID_REQUEST);
                out.give(answer::error(Some(request.id), code, &message, None));
            }
        }
        true
    }

    fn try_again(&mut self, key: IdKey, round: &Round, out: &mut Outbox) {
        let text = std::str::from_utf8(&round.line).unwrap_or_default();
        let Some(mut letter) = Letter::read(text) else { return };
        if let Some(responses) = round.responses() {
            letter.params.set("inputResponses", responses);
        }
        if let Some(state) = &round.state {
            letter.params.set("requestState", state.clone());
        }
        out.resume(key.clone());
        self.send(letter, Call { key, line: round.line.clone(), tries: round.tries }, out);
    }

    pub fn upstream_notification(&mut self, notification: &Notification<'_>, line: &Bytes, out: &mut Outbox) -> bool {
        if notification.method == CANCELLED {
            if let Some(listen) = notification.cancelled().and_then(|key| self.listens.remove(&key)) {
                self.broke(listen);
            }
            return true;
        }
        let mark = notification.params.meta.as_ref().and_then(|meta| meta.subscription);
        let Some(listen) = mark.and_then(IdKey::of).and_then(|key| self.listens.get_mut(&key)) else { return false };
        listen.breaks = 0;
        if notification.method != ACKNOWLEDGED {
            off_subscription(line).into_iter().for_each(|line| out.give(line));
            return true;
        }
        if let What::Resource { waiting, .. } = &mut listen.what
            && let Some((id, _)) = waiting.take()
        {
            if acknowledges_resources(line) {
                out.give(answer::result(Field(&id), "{}"));
            } else {
                let message = "the server does not tell of changes of this resource";
                out.give(answer::error(Some(Field(&id)), code::INVALID_PARAMS, message, None));
            }
        }
        true
    }

    /// A subscription has ended: with an error, the server does not have it; with a result, it may come again.
    fn listen_answered(&mut self, mut listen: Listen, answer: &Answer<'_>, line: &Bytes, out: &mut Outbox) {
        if let What::Resource { waiting, .. } = &mut listen.what
            && let Some((id, _)) = waiting.take()
        {
            let given = match answer.body {
                AnswerBody::Error { .. } => under(answer, line, &id),
                AnswerBody::Result { .. } => Some(answer::result(Field(&id), "{}")),
            };
            given.into_iter().for_each(|line| out.give(line));
        }
        if let AnswerBody::Result { .. } = answer.body {
            self.broke(listen);
        } else if matches!(listen.what, What::Lists) {
            tracing::info!(
                service = &*self.service,
                "the server does not tell of changed lists, though it said that it would"
            );
        }
    }

    fn broke(&mut self, mut listen: Listen) {
        let wait = FIRST_WAIT.saturating_mul(1 << listen.breaks.min(6)).min(LONGEST_WAIT);
        listen.breaks += 1;
        self.broken.push((Instant::now() + wait, listen));
    }

    /// `None`: the client itself has made the request, as a modern one.
    pub fn lost(&mut self, key: &IdKey) -> Option<Vec<IdKey>> {
        if let Some(call) = self.calls.remove(key) {
            return Some(vec![call.key]);
        }
        let mut listen = self.listens.remove(key)?;
        let lost = match &mut listen.what {
            What::Resource { waiting, .. } => waiting.take().map(|(_, key)| key),
            What::Lists => None,
        };
        if lost.is_none() {
            self.broke(listen);
        }
        Some(lost.into_iter().collect())
    }

    pub fn withdraw(&mut self, key: &IdKey, out: &mut Outbox) -> bool {
        if let Some(round) = self.rounds.remove(key) {
            let open = round.asked.iter().filter(|asked| asked.response.is_none());
            open.for_each(|asked| out.give(answer::cancelled(&asked.key, "the request is not awaited any more")));
            return true;
        }
        if let Some(found) = self.towards_upstream(key) {
            self.calls.remove(&found);
            out.withdraw(found);
            return true;
        }
        let subscribes =
            |listen: &Listen| matches!(&listen.what, What::Resource { waiting: Some((_, its)), .. } if its == key);
        let Some(found) = self.listens.iter().find(|(_, listen)| subscribes(listen)).map(|(found, _)| found.clone())
        else {
            return false;
        };
        self.listens.remove(&found);
        out.withdraw(found);
        true
    }

    pub fn towards_upstream(&self, key: &IdKey) -> Option<IdKey> {
        self.calls.iter().find(|(_, call)| call.key == *key).map(|(found, _)| found.clone())
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.broken.iter().map(|(again, _)| *again).min()
    }

    /// Makes subscriptions again that broke.
    pub fn expire(&mut self, now: Instant, out: &mut Outbox) {
        let (due, later) = std::mem::take(&mut self.broken).into_iter().partition(|(again, _)| *again <= now);
        self.broken = later;
        let due: Vec<(Instant, Listen)> = due;
        for (_, listen) in due {
            if matches!(listen.what, What::Lists) {
                // What was not told meanwhile may have been a change.
                let lists = LISTS.into_iter().filter(|list| self.server.says(list, "listChanged"));
                lists.for_each(|list| out.give(answer::notification(&format!("notifications/{list}/list_changed"))));
            }
            self.listen(listen, out);
        }
    }
}

/// The members of a result that asks for input.
fn wants_input(result: &str) -> Option<Members<'_>> {
    memchr::memmem::find(result.as_bytes(), b"input_required")?;
    Members::read(result).filter(|members| members.text("resultType").as_deref() == Some("input_required"))
}

fn acknowledges_resources(line: &[u8]) -> bool {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let notifications = Members::read(text)
        .and_then(|message| message.object("params")?.object("notifications").map(Members::into_owned));
    let uris =
        notifications.and_then(|told| serde_json::from_str::<Vec<String>>(told.get("resourceSubscriptions")?).ok());
    uris.is_some_and(|uris| !uris.is_empty())
}

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
/// A server that still asks after so many tries is not tried again.
const MAX_TRIES: usize = 16;
/// Of one try.
const MAX_QUESTIONS: usize = 16;
const MAX_LISTENS: usize = 64;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
