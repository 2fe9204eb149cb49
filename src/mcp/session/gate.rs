//! The way of a request between its arrival and the upstream, and of its answer back, where the service's policy has a word in it.
//!
//! A request that nothing is said of goes straight on. Others: rules -> cache -> rate -> room -> breaker -> upstream. What has to wait, for
//! room among the calls of its tool or for a cache that is elsewhere, is held here, and is in the ledger meanwhile, with its deadline.
//!
//! Invariants: what is held is in the ledger; what is in the ledger and not held is with an upstream; nothing waits longer than its time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncRead;
use tokio::sync::OwnedSemaphorePermit;

use super::{ClientWriter, Session};
use crate::mcp::answer;
use crate::mcp::breaker::{Admission, Change, counts};
use crate::mcp::cache::{Around, Common, Keep, aged, may_have_ttl};
use crate::mcp::call::{Call, Ending};
use crate::mcp::credentials;
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Message, Notification, Request, parse};
use crate::mcp::policy::{Bounded, Caching, Denial, Plan, tool_error};
use crate::mcp::protocol::{LISTEN, RESOURCE_UPDATED, code};
use crate::mcp::splice;
use crate::ports::AuditRefused;

/// Something that a session waits for beside its messages.
pub type Chore = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What has come of it.
pub enum Done {
    /// What the cache has for a request that is held, and its age.
    Looked(IdKey, Option<(Bytes, Duration)>),
    /// Whether a request that is held may go now, by a rate that other processes share; if not, how long it would have to wait.
    Turn(IdKey, Result<(), Duration>),
    /// A request that is held has room.
    Room(IdKey, OwnedSemaphorePermit),
    /// Something was kept or forgotten.
    Kept,
}

/// What goes to the client in place of an answer.
pub struct Shaped {
    pub line: Bytes,
    /// The value of `error.type`, when the answer is withheld.
    pub withheld: Option<&'static str>,
}

impl<R: AsyncRead + Unpin + Send, W: ClientWriter> Session<R, W> {
    /// The request with the tool's own name, where clients know it by another one.
    pub(super) fn with_original_name(&self, request: &Request<'_>, line: &Bytes) -> Result<Option<Bytes>, Denial> {
        let Some(own) = self.policy.original_name(request)? else { return Ok(None) };
        let text = std::str::from_utf8(line).unwrap_or_default();
        let name = request.params.name.unwrap_or(Field("null"));
        Ok(splice::replace(text, name, &json!(own).to_string()).map(Bytes::from))
    }

    /// What the policy says of a request, noted on its call.
    pub(super) fn judge(&self, request: &Request<'_>, line: &[u8], call: &mut Call) -> Result<(), Denial> {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let mut plan = self.policy.judge(request, text, self.ledger.peer)?;
        let rule = plan.as_ref().and_then(|plan| plan.cache);
        let is_modern = request.modern_version().is_some();
        if rule.is_some() || (is_modern && self.policy.honours_server_ttl() && may_have_ttl(&request.method)) {
            let settings = &self.settings;
            let answers = &self.around.answers;
            let common = answers.common(|| credentials::stamp(settings, &*self.around.secrets));
            let versions = match common {
                Common::Unknown => Vec::new(),
                Common::Process => credentials::versions(settings, &*self.around.secrets),
                Common::Shared(_) => Vec::new(),
            };
            let around = Around {
                common,
                service: &self.around.service.name,
                peer: self.ledger.peer,
                version: self.version,
                revision: self.followed.0,
                secrets: &versions,
                changes: &self.around.service.changes,
            };
            if let Some(keys) = self.around.answers.keys(request, text, rule, &around) {
                plan.get_or_insert_default().caching = Some(Caching { keys, hit: false });
            }
        }
        call.plan = plan;
        Ok(())
    }

    /// Sends a request that is in the ledger on its way: at once, or when what it has to wait for is there.
    pub(super) fn forward(&mut self, request: &Request<'_>, line: &Bytes) {
        let plan = self.ledger.plan(&request.key);
        let Some(caching) = plan.and_then(|plan| plan.caching.as_ref()) else { return self.admit(request, line) };
        let (look, key) = (self.around.answers.look(&caching.keys), request.key.clone());
        self.held.insert(key.clone(), line.clone());
        self.start(Box::pin(async move { Done::Looked(key, look.await) }));
    }

    /// Does at once what can be done at once.
    fn start(&mut self, mut chore: Chore) {
        match chore.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => self.on_done(done),
            Poll::Pending => self.chores.push(chore),
        }
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Kept => {}
            Done::Looked(key, found) => {
                // Whoever has waited no longer has got an error already.
                let Some(line) = self.held.remove(&key) else { return };
                // It was read when it came.
                match (found, parse(&line)) {
                    (Some((result, age)), Ok(Message::Request(request))) => self.serve_kept(&request, &result, age),
                    (None, Ok(Message::Request(request))) => self.admit(&request, &line),
                    (_, _) => {}
                }
            }
            Done::Turn(key, turn) => {
                let Some(line) = self.held.remove(&key) else { return };
                if let Ok(Message::Request(request)) = parse(&line) {
                    self.admit_in_turn(&request, &line, turn);
                }
            }
            Done::Room(key, permit) => {
                let Some(line) = self.held.remove(&key) else { return };
                if let Some(plan) = self.ledger.plan_mut(&key) {
                    plan.permit = Some(permit);
                }
                if let Ok(Message::Request(request)) = parse(&line) {
                    self.dispatch(&request, &line);
                }
            }
        }
    }

    /// Rate and room of the tool.
    fn admit(&mut self, request: &Request<'_>, line: &Bytes) {
        let key = &request.key;
        let tool = self.ledger.plan(key).and_then(|plan| plan.tool.clone());
        let Some(tool) = tool else { return self.dispatch(request, line) };
        if tool.limiter().is_none() || !self.around.state.is_shared() {
            return self.admit_in_turn(request, line, tool.take_turn());
        }
        let (state, key) = (self.around.state.clone(), key.clone());
        let counted = format!("rate/{}/{}", self.around.service.name, tool.settings.name.as_str());
        self.held.insert(key.clone(), line.clone());
        self.start(Box::pin(async move {
            let turn = match tool.limiter() {
                Some(limiter) => limiter.take_shared(&*state, &counted).await,
                None => Ok(()),
            };
            Done::Turn(key, turn)
        }));
    }

    fn admit_in_turn(&mut self, request: &Request<'_>, line: &Bytes, turn: Result<(), Duration>) {
        let key = &request.key;
        let tool = self.ledger.plan(key).and_then(|plan| plan.tool.clone());
        let Some(tool) = tool else { return self.dispatch(request, line) };
        if let Err(wait) = turn {
            let denial = self.policy.too_often(&tool, &request.called_name().unwrap_or_default(), wait);
            let refused = match self.ledger.plan_mut(key) {
                Some(plan) => self.policy.refuse(denial, plan),
                None => Err(denial),
            };
            if let Err(denial) = refused {
                return self.refuse_entered(key, denial);
            }
        }
        let Some(room) = tool.room.clone() else { return self.dispatch(request, line) };
        self.held.insert(key.clone(), line.clone());
        let key = key.clone();
        self.start(Box::pin(async move {
            match room.acquire_owned().await {
                Ok(permit) => Done::Room(key, permit),
                // Nobody closes it.
                Err(_) => Done::Kept,
            }
        }));
    }

    /// The breaker, then the upstream.
    fn dispatch(&mut self, request: &Request<'_>, line: &Bytes) {
        if let Some(breaker) = &self.policy.breaker {
            match breaker.admit(request.method != LISTEN) {
                Admission::Pass => {}
                Admission::Probe(probe, change) => {
                    self.breaker_changed(change);
                    if let Some(call) = self.ledger.get_mut(&request.key) {
                        call.plan.get_or_insert_default().probe = Some(probe);
                    }
                }
                Admission::Refused(wait) => {
                    let denial = self.policy.circuit_open(wait);
                    return self.refuse_entered(&request.key, denial);
                }
            }
        }
        self.send_on(request, line);
    }

    /// Answers from the cache, as if the upstream had.
    fn serve_kept(&mut self, request: &Request<'_>, result: &[u8], age: Duration) {
        let key = &request.key;
        let Some(call) = self.ledger.get_mut(key) else { return };
        if let Some(caching) = call.plan.as_mut().and_then(|plan| plan.caching.as_mut()) {
            caching.hit = true;
        }
        let result = String::from_utf8_lossy(result);
        self.shown.kept(request, &result);
        let line = Bytes::from(answer::result(Field(&call.id), &aged(&result, age)));
        if let Ok(Message::Answer(answer)) = parse(&line) {
            self.give_answer(key, &answer, &line, Arc::default());
        }
    }

    /// The upstream has answered: what is made of that besides giving it to the client.
    pub(super) fn note_answer(&mut self, key: &IdKey, answer: &Answer<'_>, line: &[u8]) {
        if self.ledger.get(key).is_none() {
            return;
        }
        let change = self.policy.breaker.as_ref().and_then(|breaker| breaker.succeeded());
        if let Some(change) = change {
            self.breaker_changed(change);
        }
        let AnswerBody::Result { raw, tool_error: false } = answer.body else { return };
        let Some(call) = self.ledger.get(key) else { return };
        let Some(caching) = call.plan.as_ref().and_then(|plan| plan.caching.as_ref()) else { return };
        let Some(keep) = caching.keys.allow(raw.raw(), call.is_modern) else { return };
        self.keep(key, &keep, raw.raw(), line);
    }

    /// Keeps an answer that no secret is in.
    fn keep(&mut self, key: &IdKey, keep: &Keep, result: &str, line: &[u8]) {
        if self.chores.len() >= self.around.limits.max_in_flight || !self.around.leaks.guard.find(line).is_empty() {
            return;
        }
        let Some(caching) = self.ledger.plan(key).and_then(|plan| plan.caching.as_ref()) else { return };
        if caching.keys.is_void(&self.around.service.changes) {
            return;
        }
        let kept = self.around.answers.keep(&caching.keys, keep, result);
        self.start(Box::pin(async move {
            kept.await;
            Done::Kept
        }));
    }

    /// What the client gets in place of an answer; `None`: the answer.
    pub(super) fn shaped(&mut self, key: &IdKey, answer: &Answer<'_>, line: &Bytes) -> Option<Shaped> {
        let AnswerBody::Result { raw, .. } = answer.body else { return None };
        self.ledger.plan(key)?;
        let peer = self.ledger.peer;
        let policy = self.policy.clone();
        let call = self.ledger.get_mut(key)?;
        let name = call.tool().or(call.uri.as_deref()).unwrap_or_default().to_owned();
        let plan = call.plan.as_mut()?;
        let text = std::str::from_utf8(line).ok()?;
        let with = |result: &str| splice::replace(text, raw, result).map(Bytes::from);
        if let Some(list) = plan.list {
            let line = with(&policy.edited(list, raw.raw(), peer)?)?;
            return Some(Shaped { line, withheld: None });
        }
        Some(match policy.bounded(plan, &name, raw.raw())? {
            Bounded::Cut(result) => Shaped { line: with(&result)?, withheld: None },
            Bounded::Result(result) => Shaped { line: with(&result)?, withheld: Some(TOO_LARGE) },
            Bounded::Error(message) => {
                let data = json!({ "service": &*self.around.service.name, "reason": TOO_LARGE, "rule": plan.rule });
                let line = answer::error(Some(answer.id), code::TOO_MANY, &message, Some(&data));
                Shaped { line: line.into(), withheld: Some(TOO_LARGE) }
            }
        })
    }

    /// The upstream could not answer.
    pub(super) fn note_failure(&self, kind: &str) {
        let change = self.policy.breaker.as_ref().filter(|_| counts(kind)).and_then(|breaker| breaker.failed());
        if let Some(change) = change {
            self.breaker_changed(change);
        }
    }

    /// The time of a request is over. A tool's own time, where it is shorter than the service's, says nothing of the service.
    pub(super) fn note_overdue(&self, key: &IdKey) {
        let time = self.ledger.get(key).and_then(|call| call.timeout);
        if time.is_none_or(|time| time >= self.settings.timeout) {
            self.note_failure("timeout");
        }
    }

    /// What a notification of the upstream makes void. False: the client may not be told of it.
    pub(super) fn note_news(&mut self, notification: &Notification<'_>) -> bool {
        if let Some(group) = self.around.service.changes.heard(&notification.method) {
            let forgotten = self.around.answers.forget(&self.around.service.name, group);
            self.start(Box::pin(async move {
                forgotten.await;
                Done::Kept
            }));
        }
        let uri = notification.params.uri.and_then(Field::text).filter(|_| notification.method == RESOURCE_UPDATED);
        uri.is_none_or(|uri| self.policy.tells_of(&uri, self.ledger.peer))
    }

    fn breaker_changed(&self, change: Change) {
        self.around.recorder.breaker_changed(&self.around.service.name, change);
    }

    /// Refuses a request that is in the ledger already.
    fn refuse_entered(&mut self, key: &IdKey, denial: Denial) {
        if let Some(call) = self.ledger.get_mut(key) {
            call.refused(&denial);
        }
        let ending = Ending::Denied { kind: denial.kind };
        if let Some((call, recorded)) = self.ledger.settle(key, Arc::default(), &ending) {
            self.answer_denial(&call, recorded, &denial);
        }
    }

    /// Tells the client why, as an error or, where the model is to read it, as a result of the tool.
    pub(super) fn answer_denial(&mut self, call: &Call, recorded: Result<(), AuditRefused>, denial: &Denial) {
        if denial.as_result && recorded.is_ok() {
            let meta = json!({ "mcpeg/refused": { "reason": denial.kind, "rule": denial.rule } });
            let line = answer::result(Field(&call.id), &tool_error(&denial.message, &meta));
            return self.client.push(&line);
        }
        let mut data = json!({ "service": &*self.around.service.name, "reason": denial.kind });
        if let Some(rule) = &denial.rule {
            data["rule"] = json!(rule);
        }
        if let Some((key, value)) = denial.details {
            data[key] = json!(value);
        }
        self.answer_error(call, recorded, denial.code, &denial.message, &data);
    }
}

/// The call's plan, in the ledger.
impl super::ledger::Ledger {
    fn plan(&self, key: &IdKey) -> Option<&Plan> {
        self.get(key)?.plan.as_deref()
    }

    fn plan_mut(&mut self, key: &IdKey) -> Option<&mut Plan> {
        self.get_mut(key)?.plan.as_deref_mut()
    }
}

/// `error.type` and `data.reason` of an answer that is larger than its bound.
const TOO_LARGE: &str = "result_too_large";
