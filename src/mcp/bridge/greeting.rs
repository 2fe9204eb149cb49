//! Which era the upstream speaks, found out when the client's first message has told which one the client does.
//!
//! A modern client: the upstream is asked `server/discover`; any other answer than a modern server's, or none within `PATIENCE`, and it is
//! told `initialize`. A legacy client: its own `initialize` goes as it came, so that a server of both eras is not made a modern one; an
//! upstream that refuses it is asked `server/discover`. What was found is kept with the service, for the sessions that follow.
//!
//! Invariant: what the client sends meanwhile is held, in order, and none of it is lost: it goes on, is translated, or is answered with an error.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::capabilities::{Client, Server};
use super::outbox::Outbox;
use super::to_legacy::ToLegacy;
use super::to_modern::ToModern;
use super::{Bridge, Mode};
use crate::mcp::answer;
use crate::mcp::members::Members;
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Message, Request, parse};
use crate::mcp::protocol::{DISCOVER, Era, INITIALIZE, INITIALIZED, code};
use crate::mcp::upstream::Failure;

pub struct Greeting {
    client: Era,
    asked: Asked,
    held: VecDeque<(Option<IdKey>, Bytes)>,
    /// What the upstream has said to the client's own `initialize`, should it not be a modern one either.
    refusal: Option<Vec<u8>>,
    until: Option<Instant>,
}

/// What the upstream has been asked.
enum Asked {
    /// The client's own `initialize`, under its own id.
    Client(IdKey, Bytes),
    Discover(IdKey),
    /// `discover`: a question that was not answered in time, and what has come for it after all.
    Initialize {
        id: IdKey,
        discover: Option<IdKey>,
        modern: Option<Server>,
    },
}

impl Greeting {
    pub fn hold(&mut self, request: &Request<'_>, line: &Bytes) -> bool {
        if matches!(self.asked, Asked::Client(..)) {
            return false;
        }
        self.held.push_back((Some(request.key.clone()), line.clone()));
        true
    }

    pub fn hold_notification(&mut self, line: &Bytes) -> bool {
        if matches!(self.asked, Asked::Client(..)) {
            return false;
        }
        self.held.push_back((None, line.clone()));
        true
    }

    /// Whether it was held, and whether nothing is left to greet for.
    pub fn withdraw(&mut self, key: &IdKey, out: &mut Outbox) -> (bool, bool) {
        let before = self.held.len();
        self.held.retain(|(held, _)| held.as_ref() != Some(key));
        let own = match &self.asked {
            Asked::Client(..) => return (false, false),
            Asked::Discover(id) | Asked::Initialize { id, .. } => id,
        };
        let over = self.held.iter().all(|(key, _)| key.is_none());
        if over {
            out.withdraw(own.clone());
        }
        (self.held.len() < before, over)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.until
    }
}

impl Bridge {
    /// The first request of a client of this era.
    pub(super) fn greet(&mut self, era: Era, request: &Request<'_>, line: &Bytes) -> bool {
        match (era, self.service.speaks(era)) {
            (_, Some(true)) => {
                self.mode = Mode::Same(era);
                false
            }
            (Era::Legacy, None) => {
                let asked = Asked::Client(request.key.clone(), line.clone());
                self.begin(Greeting { client: era, asked, held: VecDeque::new(), refusal: None, until: None });
                false
            }
            (Era::Modern, Some(false)) => {
                let held = VecDeque::from([(Some(request.key.clone()), line.clone())]);
                self.initialize(held, None);
                true
            }
            (Era::Legacy, Some(false)) | (Era::Modern, None) => {
                let held = VecDeque::from([(Some(request.key.clone()), line.clone())]);
                self.discover(era, held, None);
                true
            }
        }
    }

    fn begin(&mut self, greeting: Greeting) {
        self.mode = Mode::Greeting(Box::new(greeting));
    }

    fn discover(&mut self, client: Era, held: VecDeque<(Option<IdKey>, Bytes)>, refusal: Option<Vec<u8>>) {
        let (id, key) = self.out.next_id();
        let mut meta = Members::default();
        client_of(held.front()).say_in(&mut meta, None);
        self.out.send(answer::request(&id, DISCOVER, &format!("{{\"_meta\":{}}}", meta.write())));
        let until = Some(Instant::now() + PATIENCE);
        self.begin(Greeting { client, asked: Asked::Discover(key), held, refusal, until });
    }

    fn initialize(&mut self, held: VecDeque<(Option<IdKey>, Bytes)>, discover: Option<IdKey>) {
        let (id, key) = self.out.next_id();
        let params = client_of(held.front()).initialize(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        self.out.send(answer::request(&id, INITIALIZE, &params));
        let asked = Asked::Initialize { id: key, discover, modern: None };
        self.begin(Greeting { client: Era::Modern, asked, held, refusal: None, until: None });
    }

    /// An answer of the upstream while it is being greeted.
    pub(super) fn greeted(&mut self, answer: &Answer<'_>, line: &Bytes) -> bool {
        let Mode::Greeting(mut greeting) = std::mem::replace(&mut self.mode, Mode::Open) else { return false };
        let result = match answer.body {
            AnswerBody::Result { raw, .. } => Some(raw.raw()),
            AnswerBody::Error { .. } => None,
        };
        let names = |key: &IdKey| answer.key.as_ref() == Some(key);
        match &mut greeting.asked {
            Asked::Client(key, _) if names(key) && result.is_some() => {
                self.service.found(Era::Legacy, true);
                self.mode = Mode::Same(Era::Legacy);
                false
            }
            Asked::Client(key, own) if names(key) && self.service.speaks(Era::Modern) != Some(false) => {
                let held = VecDeque::from([(Some(key.clone()), own.clone())]);
                self.discover(Era::Legacy, held, Some(line.to_vec()));
                true
            }
            Asked::Discover(key) if names(key) => {
                let modern = result.and_then(Server::of_discover);
                // A modern server that speaks another version: the client is to hear it from itself.
                let other_version = result.is_none() && is_modern_error(answer);
                self.discovered(*greeting, modern, other_version);
                true
            }
            Asked::Initialize { id, modern, .. } if names(id) => {
                let (legacy, modern) = (result.and_then(Server::of_initialize), modern.take());
                self.initialized(*greeting, legacy, modern, answer);
                true
            }
            Asked::Initialize { discover, modern, .. } if discover.as_ref().is_some_and(names) => {
                *modern = result.and_then(Server::of_discover);
                greeting.until = modern.is_some().then(|| Instant::now() + PATIENCE);
                self.mode = Mode::Greeting(greeting);
                true
            }
            Asked::Client(key, _) if names(key) => false,
            _ => {
                self.mode = Mode::Greeting(greeting);
                false
            }
        }
    }

    fn discovered(&mut self, greeting: Greeting, modern: Option<Server>, other_version: bool) {
        let Greeting { client, held, refusal, .. } = greeting;
        match (client, modern) {
            (Era::Modern, Some(_)) => {
                self.service.found(Era::Modern, true);
                self.both_modern(held);
            }
            (Era::Modern, None) if other_version => self.both_modern(held),
            (Era::Modern, None) => self.initialize(held, None),
            (Era::Legacy, Some(server)) => {
                self.service.found(Era::Modern, true);
                self.service.found(Era::Legacy, false);
                self.before_modern(server, held);
            }
            (Era::Legacy, None) => self.refused(held, refusal),
        }
    }

    fn initialized(&mut self, greeting: Greeting, legacy: Option<Server>, modern: Option<Server>, answer: &Answer<'_>) {
        let held = greeting.held;
        match (legacy, modern) {
            (Some(server), _) => {
                self.service.found(Era::Legacy, true);
                self.service.found(Era::Modern, false);
                self.out.send(answer::notification(INITIALIZED));
                let to_legacy = ToLegacy::new(server, self.service.name.clone(), self.patience);
                self.mode = Mode::ToLegacy(Box::new(to_legacy));
                self.take_again(held);
            }
            (None, Some(_)) => {
                self.service.found(Era::Modern, true);
                self.both_modern(held);
            }
            (None, None) => {
                let message = match answer.body {
                    AnswerBody::Error { message, .. } => message.and_then(Field::text).map(|text| text.into_owned()),
                    AnswerBody::Result { .. } => None,
                };
                let message = message.unwrap_or_else(|| "its answer to \"initialize\" cannot be read".into());
                self.fail(held, &format!("service {}: it speaks neither era: {message}", self.service.name));
            }
        }
    }

    /// A legacy client, a modern upstream.
    fn before_modern(&mut self, server: Server, held: VecDeque<(Option<IdKey>, Bytes)>) {
        let client = client_of(held.front());
        let to_modern = ToModern::new(client, server, self.service.name.clone());
        self.mode = Mode::ToModern(Box::new(to_modern));
        self.take_again(held);
    }

    /// Nothing is to be translated: what was held goes as it came.
    fn both_modern(&mut self, held: VecDeque<(Option<IdKey>, Bytes)>) {
        self.mode = Mode::Same(Era::Modern);
        for (key, line) in held {
            match key {
                Some(key) => self.out.send_for(&key, line.to_vec()),
                None => self.out.send(line.to_vec()),
            }
        }
    }

    /// It is no modern server either: the client hears what its own `initialize` was answered.
    fn refused(&mut self, held: VecDeque<(Option<IdKey>, Bytes)>, refusal: Option<Vec<u8>>) {
        self.mode = Mode::Open;
        if let Some(refusal) = refusal {
            return self.out.give(refusal);
        }
        // It was a modern one, and is no more.
        self.service.forget_eras();
        let Some((Some(key), line)) = held.into_iter().next() else { return };
        self.out.send_for(&key, line.to_vec());
        let asked = Asked::Client(key, line);
        self.begin(Greeting { client: Era::Legacy, asked, held: VecDeque::new(), refusal: None, until: None });
    }

    fn fail(&mut self, held: VecDeque<(Option<IdKey>, Bytes)>, message: &str) {
        self.mode = Mode::Open;
        for (_, line) in held {
            if let Ok(Message::Request(request)) = parse(&line) {
                self.out.give(answer::error(Some(request.id), code::UPSTREAM_FAILED, message, None));
            }
        }
    }

    /// Takes what was held as if it came now.
    fn take_again(&mut self, held: VecDeque<(Option<IdKey>, Bytes)>) {
        for (_, line) in held {
            match parse(&line) {
                Ok(Message::Request(request)) => drop(self.request(&request, &line)),
                Ok(Message::Notification(notification)) => drop(self.notification(&notification, &line)),
                Ok(Message::Answer(_)) | Err(_) => {}
            }
        }
    }

    /// A question has not been answered in time.
    pub(super) fn greeting_overdue(&mut self) {
        let Mode::Greeting(greeting) = std::mem::replace(&mut self.mode, Mode::Open) else { return };
        match greeting.asked {
            Asked::Discover(key) if greeting.client == Era::Modern => {
                // It may only be slow: an answer that comes after all is looked at.
                self.initialize(greeting.held, Some(key));
            }
            Asked::Discover(key) => {
                self.out.withdraw(key);
                self.refused(greeting.held, greeting.refusal);
            }
            Asked::Initialize { id, modern: Some(_), .. } => {
                self.out.withdraw(id);
                self.service.found(Era::Modern, true);
                self.both_modern(greeting.held);
            }
            Asked::Client(..) | Asked::Initialize { .. } => self.mode = Mode::Greeting(greeting),
        }
    }

    /// A request will not be answered. Gives the client's that fail with it.
    pub(super) fn greeting_lost(&mut self, key: IdKey, failure: &Failure) -> Vec<IdKey> {
        let Mode::Greeting(greeting) = std::mem::replace(&mut self.mode, Mode::Open) else { return vec![key] };
        let says_no = refuses(failure);
        match &greeting.asked {
            Asked::Client(own, line) if *own == key => {
                let request = parse(line);
                if let (true, Ok(Message::Request(request))) =
                    (says_no && self.service.speaks(Era::Modern) != Some(false), request)
                {
                    let refusal = answer::error(Some(request.id), failure.code, &failure.message, None);
                    self.discover(Era::Legacy, VecDeque::from([(Some(key), line.clone())]), Some(refusal));
                    return Vec::new();
                }
                vec![key]
            }
            Asked::Discover(own) if *own == key => {
                if says_no || failure.kind == DIED {
                    self.discovered(*greeting, None, false);
                    return Vec::new();
                }
                requests(greeting.held)
            }
            Asked::Initialize { id, modern: Some(_), .. } if *id == key => {
                self.both_modern(greeting.held);
                Vec::new()
            }
            Asked::Initialize { id, .. } if *id == key => requests(greeting.held),
            Asked::Initialize { discover: Some(late), .. } if *late == key => {
                self.mode = Mode::Greeting(greeting);
                Vec::new()
            }
            _ => {
                self.mode = Mode::Greeting(greeting);
                vec![key]
            }
        }
    }
}

fn requests(held: VecDeque<(Option<IdKey>, Bytes)>) -> Vec<IdKey> {
    held.into_iter().filter_map(|(key, _)| key).collect()
}

/// Who the first message is from.
fn client_of(first: Option<&(Option<IdKey>, Bytes)>) -> Client {
    let text = first.and_then(|(_, line)| std::str::from_utf8(line).ok()).unwrap_or_default();
    let params =
        Members::read(text).and_then(|message| message.object("params").map(Members::into_owned)).unwrap_or_default();
    match params.object("_meta") {
        Some(meta) if meta.get(crate::mcp::protocol::META_VERSION).is_some() => Client::of_meta(&meta),
        _ => Client::of_initialize(&params),
    }
}

/// An answer over HTTP that says no without a word of JSON-RPC, as servers do that do not know the method, or want a session.
fn refuses(failure: &Failure) -> bool {
    matches!(failure.kind, "http_4xx" | "http_404")
}

/// An error that only a modern server has.
fn is_modern_error(answer: &Answer<'_>) -> bool {
    let modern = [code::HEADER_MISMATCH, code::MISSING_CAPABILITY, code::UNSUPPORTED_VERSION].map(i64::from);
    matches!(answer.body, AnswerBody::Error { code: Some(code), .. } if modern.contains(&code))
}

/// How long `server/discover` may take before the upstream is told `initialize`.
const PATIENCE: Duration = Duration::from_secs(3);
/// The kind of a failure of a child that has ended, as some do at a request that they do not know.
const DIED: &str = "upstream_died";
