//! What the exchanges of an HTTP upstream report, and what follows from it.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::HeaderValue;
use tokio::time::sleep;

use super::{HttpUpstream, Running};
use crate::mcp::message::{AnswerBody, IdKey, Message, parse};
use crate::mcp::settings::HttpTransport;
use crate::mcp::upstream::exchange::{News, Report, Trouble};
use crate::mcp::upstream::outgoing::Role;
use crate::mcp::upstream::replay::Agreed;
use crate::mcp::upstream::{Event, Failure, Gone};

impl HttpUpstream {
    pub(super) fn apply(&mut self, Report { serial, news }: Report) {
        let is_stream = self.stream.as_ref().is_some_and(|(stream, _)| *stream == serial);
        match news {
            _ if !is_stream && !self.running.contains_key(&serial) => {}
            News::Session(id) if self.is_of_older(serial) => drop(id),
            News::Session(id) => self.session = Some(id),
            News::Line(line, id) => {
                // What is said again on the long stream may have come on another one; the server may have asked something in it.
                if !(id.is_some_and(|id| self.is_known(serial, &id)) && is_stream) {
                    self.line(serial, line);
                }
            }
            News::EventId(id) => self.last_event = is_stream.then_some(id).or(self.last_event.take()),
            News::Done(result) if is_stream => {
                self.stream = None;
                self.stream_refused = result.is_err();
                self.stream_stands();
            }
            News::StreamAnswered => {
                self.around.service.answers_streams(false);
                self.stream_stands();
            }
            News::Refreshed => self.refreshed(serial),
            News::Done(result) => self.done(serial, result),
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// Whether an event of this session has been taken already; from now on it has.
    fn is_known(&mut self, serial: u64, id: &str) -> bool {
        !self.is_of_older(serial) && self.seen.again(id)
    }

    /// Whether the exchange belongs to a session before this one.
    fn is_of_older(&self, serial: u64) -> bool {
        self.running.get(&serial).is_some_and(|running| running.epoch != self.epoch)
    }

    fn line(&mut self, serial: u64, line: Bytes) {
        if line.trim_ascii().is_empty() {
            return;
        }
        let Some(running) = self.running.get(&serial).filter(|running| running.swallow) else {
            self.inbox.push_back(line);
            return;
        };
        let Ok(Message::Answer(answer)) = parse(&line) else {
            self.inbox.push_back(line);
            return;
        };
        if running.message.role != Role::Initialize {
            return;
        }
        let agreed = match answer.body {
            AnswerBody::Result { raw, .. } => Agreed::of(raw.raw()),
            AnswerBody::Error { .. } => None,
        };
        let Some(agreed) = agreed else {
            self.opening_refused = true;
            return;
        };
        if self.replay.agreed().is_some_and(|before| *before != agreed) {
            let service = &*self.around.service.name;
            tracing::warn!(
                service,
                "the new session agreed to another version or other capabilities than the one before"
            );
        }
        self.version = HeaderValue::from_str(&agreed.version).ok();
    }

    fn done(&mut self, serial: u64, result: Result<(), Trouble>) {
        let was_alone = self.alone == Some(serial);
        let Some(running) = self.remove(serial) else { return };
        let refused = running.swallow && std::mem::take(&mut self.opening_refused);
        match result {
            Ok(()) if refused => self.failed(running, Trouble::new("replay_failed", REFUSED)),
            Ok(()) => self.succeeded(&running),
            Err(trouble) if trouble.session_lost => self.session_lost(running, trouble),
            Err(trouble) if trouble.may_be_older && self.may_be_older(&running) => {
                self.begun = false;
                self.queued_bytes += running.message.bytes.len();
                self.queue.push_front(running.message);
                self.lost.push_back(Event::Older);
            }
            Err(trouble) if trouble.is_refused() && !running.reauthorized => self.refresh(running, trouble, was_alone),
            Err(trouble) => self.failed(running, trouble),
        }
        self.advance();
    }

    /// Only the first message of a session tells.
    fn may_be_older(&self, running: &Running) -> bool {
        let is_first =
            running.message.role == Role::Initialize && !running.swallow && self.replay.initialize().is_none();
        is_first && !running.message.repeated && self.http().transport == HttpTransport::Found
    }

    fn succeeded(&mut self, running: &Running) {
        if running.message.role == Role::Initialized {
            self.open_stream_first();
        }
        if running.swallow && running.epoch == self.epoch && self.opening.is_empty() {
            self.opened = Some(Instant::now());
            self.around.service.works();
        }
    }

    /// The server has forgotten the session: a new one is begun once, and what is safe is repeated once.
    fn session_lost(&mut self, running: Running, trouble: Trouble) {
        let is_current = running.epoch == self.epoch;
        if is_current && running.swallow {
            return self.opening_failed(Trouble { message: FORGOTTEN.into(), ..trouble });
        }
        if running.swallow {
            return;
        }
        if is_current {
            self.forget_session();
            tracing::info!(
                service = &*self.around.service.name,
                "the upstream has forgotten the session: beginning anew"
            );
            self.reopen();
        }
        let mut message = running.message;
        if message.repeated || (message.key.is_some() && !message.safe) {
            let what = "the upstream has forgotten the session; a new one is begun, but the request is not repeated, \
                        as it may not be safe to do it twice";
            self.lose(message.key, running.versions, Trouble { message: what.into(), ..trouble });
            return;
        }
        message.repeated = true;
        self.queued_bytes += message.bytes.len();
        self.queue.push_front(message);
    }

    pub(super) fn failed(&mut self, running: Running, trouble: Trouble) {
        if running.swallow {
            return self.opening_failed(trouble);
        }
        let mut message = running.message;
        let may_be_repeated = message.key.is_some() && message.safe && !message.repeated && !running.answered;
        if trouble.is_broken() && may_be_repeated {
            message.repeated = true;
            self.queued_bytes += message.bytes.len();
            self.queue.push_front(message);
            return;
        }
        self.lose(message.key, running.versions, trouble);
    }

    /// Whoever waits for the opening shall know why it failed; the next message tries again, after a pause.
    pub(super) fn opening_failed(&mut self, trouble: Trouble) {
        self.opening.clear();
        self.opening_due = true;
        self.forget_session();
        let lived = self.opened.take().map_or(Duration::ZERO, |opened| opened.elapsed());
        self.backoff.after_failure(lived);
        // An opening is tried only when somebody asks for something, and each try answers whoever has.
        self.pause = Some(Box::pin(sleep(self.backoff.on_demand())));
        self.asides.clear();
        let keys: Vec<IdKey> = self.queue.drain(..).filter_map(|message| message.key).collect();
        self.queued_bytes = 0;
        let failure = self.failure(trouble);
        self.lost.push_back(Event::Lost { keys, failure, versions: Arc::default(), gone: Gone::No });
    }

    pub(super) fn lose(&mut self, key: Option<IdKey>, versions: Arc<[String]>, trouble: Trouble) {
        let failure = self.failure(trouble);
        self.lost.push_back(Event::Lost { keys: key.into_iter().collect(), failure, versions, gone: Gone::No });
    }

    fn failure(&self, trouble: Trouble) -> Failure {
        let failure = Failure::new(&self.around.service.name, trouble.kind, trouble.message);
        self.around.service.failed(&failure);
        failure
    }
}

/// The latest events of a session, so that a message that a server sends again is not taken twice.
#[derive(Default)]
pub(super) struct SeenEvents(VecDeque<u64>);

impl SeenEvents {
    /// Whether the event has been seen; from now on it has.
    fn again(&mut self, id: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let hash = hasher.finish();
        if self.0.contains(&hash) {
            return true;
        }
        if self.0.len() >= SEEN_EVENTS {
            self.0.pop_front();
        }
        self.0.push_back(hash);
        false
    }
}

const SEEN_EVENTS: usize = 256;
const REFUSED: &str = "the upstream began a new session, but refused to initialize it as the one before";
pub(super) const FORGOTTEN: &str =
    "the upstream began a new session, but forgot it before it had been told what the one before was told";
