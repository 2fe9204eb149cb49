//! Two children of one session for a while: the next one gets ready beside the present one, takes over between two messages, and the one
//! before answers what it was asked and ends (`on_rotate: swap`).
//!
//! The *coming* child is started with the new secrets, told the session again and asked what the client has been shown; until it has
//! answered all of that, the present one serves. A coming child that fails changes nothing: `status` says so, and another one is
//! started after a pause, or with the next secret.
//!
//! Invariants: a request belongs to the child that it was given to, and only that one can answer it; what a child asks is answered to that
//! child, also when both use the same id; a coming child is not started beside a leaving one, nor beside one that is being closed.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio::time::{Sleep, sleep};

use super::{ClientWriter, Session};
use crate::mcp::answer;
use crate::mcp::message::{Answer, IdKey, Notification, Request};
use crate::mcp::protocol::META_SUBSCRIPTION;
use crate::mcp::service::SwapTrouble;
use crate::mcp::shown::List;
use crate::mcp::splice;
use crate::mcp::upstream::backoff::Backoff;
use crate::mcp::upstream::outgoing::{Outgoing, Role};
use crate::mcp::upstream::rehearsal::Rehearsal;
use crate::mcp::upstream::{Event, Failure, Upstream};

/// Which of a session's upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Present,
    Coming,
    Leaving,
}

#[derive(Default)]
pub(super) struct Swap {
    /// The present child was started with secrets that are not the current ones.
    due: bool,
    /// Its upstream speaks the modern era.
    modern: bool,
    pub coming: Option<Upstream>,
    pub leaving: Option<Upstream>,
    backoff: Backoff,
    /// Until it is over, no other child is started.
    pause: Option<Pin<Box<Sleep>>>,
    trouble: Option<SwapTrouble>,
}

impl Swap {
    /// A secret is another one now: it is tried at once, whatever came of the one before.
    pub fn demand(&mut self) {
        self.due = true;
        self.pause = None;
    }

    /// What happens beside the present upstream; `None`: a pause is over. Cancel-safe.
    pub async fn event(&mut self, read: bool) -> Option<(Place, Event)> {
        tokio::select! {
            event = event_of(&mut self.coming, read) => Some((Place::Coming, event)),
            event = event_of(&mut self.leaving, read) => Some((Place::Leaving, event)),
            () = elapsed(&mut self.pause) => {
                self.pause = None;
                None
            }
        }
    }
}

/// Requests of the upstreams that the client has not answered, by the id that the client knows.
#[derive(Default)]
pub(super) struct Asked {
    open: HashMap<IdKey, Question>,
    count: u64,
}

struct Question {
    by: Place,
    /// The upstream's own id, as it wrote it, where the client was given another.
    own: Option<Box<str>>,
    /// The bridge answers it; the client knows nothing of it.
    bridged: bool,
}

impl Asked {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Enters a request. The line to show the client where its id had to be changed, because another child uses it.
    pub fn enter(&mut self, by: Place, request: &Request<'_>, line: &[u8]) -> Option<Vec<u8>> {
        if self.open.get(&request.key).is_none_or(|question| question.by == by) {
            self.open.insert(request.key.clone(), Question { by, own: None, bridged: false });
            return None;
        }
        self.count += 1;
        let id = format!("mcpeg-{}", self.count);
        let shown = splice::replace(std::str::from_utf8(line).ok()?, request.id, &json!(id).to_string())?;
        self.open.insert(IdKey::Text(id.into()), Question { by, own: Some(request.id.raw().into()), bridged: false });
        Some(shown.into_bytes())
    }

    /// The bridge has taken the request.
    pub fn bridged(&mut self, key: &IdKey) {
        if let Some(question) = self.open.get_mut(key) {
            question.bridged = true;
        }
    }

    /// The request that was entered last was not passed on.
    pub fn refused(&mut self, by: Place, request: &Request<'_>) {
        let own = |question: &Question| question.own.as_deref() == Some(request.id.raw());
        let renamed = self.open.iter().find(|(_, question)| question.by == by && own(question));
        let key = renamed.map_or_else(|| request.key.clone(), |(key, _)| key.clone());
        self.open.remove(&key);
    }

    /// Takes the client's answer: whose it is, and the line under the id which that one knows. `None`: nobody has asked.
    pub fn answered(&mut self, answer: &Answer<'_>, line: &bytes::Bytes) -> Option<(Place, bytes::Bytes)> {
        let Question { by, own, .. } = self.open.remove(answer.key.as_ref()?)?;
        let line = match own {
            Some(own) => splice::replace(std::str::from_utf8(line).ok()?, answer.id, &own)?.into(),
            None => line.clone(),
        };
        Some((by, line))
    }

    /// The upstream takes a request back. The line to show the client where it knows the request by another id.
    pub fn withdrawn(&mut self, by: Place, notification: &Notification<'_>, line: &[u8]) -> Option<Vec<u8>> {
        let (id, key) = (notification.params.request_id?, notification.cancelled()?);
        let own = |question: &Question| question.own.as_deref() == Some(id.raw());
        let shown = self.open.iter().find(|(_, question)| question.by == by && own(question));
        let Some((shown, _)) = shown else {
            if self.open.get(&key).is_some_and(|question| question.by == by) {
                self.open.remove(&key);
            }
            return None;
        };
        let shown = shown.clone();
        self.open.remove(&shown);
        let IdKey::Text(text) = shown else { return None };
        splice::replace(std::str::from_utf8(line).ok()?, id, &json!(text).to_string()).map(String::into_bytes)
    }

    /// Takes out what this one has asked. What of it the client knows.
    pub fn take(&mut self, by: Place) -> Vec<IdKey> {
        let gone = self.open.extract_if(|_, question| question.by == by);
        gone.filter(|(_, question)| !question.bridged).map(|(key, _)| key).collect()
    }

    fn moved(&mut self) {
        for question in self.open.values_mut() {
            question.by = match question.by {
                Place::Present => Place::Leaving,
                Place::Coming => Place::Present,
                Place::Leaving => Place::Leaving,
            };
        }
    }
}

impl<R: AsyncRead + Unpin + Send, W: ClientWriter> Session<R, W> {
    pub(super) fn at(&mut self, place: Place) -> Option<&mut Upstream> {
        match place {
            Place::Present => Some(&mut self.upstream),
            Place::Coming => self.swap.coming.as_mut(),
            Place::Leaving => self.swap.leaving.as_mut(),
        }
    }

    /// Who has been given the request.
    pub(super) fn owner(&self, key: &IdKey) -> Place {
        let leaving = self.swap.leaving.as_ref().is_some_and(|leaving| leaving.has(key));
        if leaving { Place::Leaving } else { Place::Present }
    }

    /// Gives a message of the client to whom it belongs, and what changes the session's state also to a child that gets ready.
    pub(super) fn send_up(&mut self, message: Outgoing) {
        let is_progress = message.key.is_none() && message.role == Role::Aside;
        if let Some(coming) = self.swap.coming.as_mut().and_then(Upstream::as_stdio) {
            coming.told_beside(&message);
        }
        if let Some(leaving) = self.swap.leaving.as_mut().filter(|_| is_progress) {
            // Whose token it is, the token alone does not say; to the other one it means nothing.
            leaving.send(message.clone());
        }
        self.target().send(message);
    }

    /// Does what is due between two messages.
    pub(super) fn advance_swap(&mut self) {
        if let Some(left) = self.swap.leaving.take_if(|leaving| leaving.is_drained()) {
            self.let_go(Place::Leaving, left);
        }
        if self.next.is_some() {
            self.swap.due = false;
            if let Some(coming) = self.swap.coming.take() {
                self.let_go(Place::Coming, coming);
            }
        }
        if self.swap.coming.as_mut().and_then(Upstream::as_stdio).is_some_and(|coming| coming.is_warm()) {
            self.take_over();
        }
        let idle = self.swap.coming.is_none() && self.swap.leaving.is_none() && self.closing_upstreams.is_empty();
        if self.swap.due && idle && self.swap.pause.is_none() && !self.closing {
            self.start_coming();
        }
    }

    fn start_coming(&mut self) {
        let shown: Vec<(List, u64)> = self.shown.lists().collect();
        let (settings, modern) = (self.settings.clone(), self.modern.clone());
        let Some(present) = self.upstream.as_stdio() else { return };
        if !present.runs() {
            // The next one gets the new secrets anyway.
            self.swap.due = false;
            return;
        }
        let Some(replay) = present.told() else { return };
        let modern = modern.filter(|_| replay.initialize().is_none());
        self.swap.modern = modern.is_some();
        let rehearsal = Rehearsal::new(modern, shown.into_iter(), settings.timeout);
        let mut coming = Upstream::new(&self.around, &settings);
        if let Some(coming) = coming.as_stdio() {
            coming.rehearse(replay, rehearsal);
        }
        self.swap.due = false;
        self.swap.coming = Some(coming);
    }

    /// The coming child is as far as the present one: from the next message on it serves.
    fn take_over(&mut self) {
        let is_greeting = self.upstream.as_stdio().is_some_and(|present| present.told().is_none());
        let Some(mut coming) = self.swap.coming.take_if(|_| !is_greeting) else { return };
        let changed = coming.as_stdio().map(|coming| coming.enter_service()).unwrap_or_default();
        let mut old = std::mem::replace(&mut self.upstream, coming);
        self.asked.moved();
        let taken = old.as_stdio().map(|old| old.retire()).unwrap_or_default();
        let subscriptions: Vec<_> = taken.iter().filter(|message| message.role == Role::Listen).cloned().collect();
        self.give_present(taken);
        self.swap.leaving = Some(old);
        (self.swap.backoff, self.swap.trouble) = (Backoff::default(), None);
        let (service, recorder) = (&self.around.service, &self.around.recorder);
        tracing::info!(service = &*service.name, lists_changed = changed.len(), "a new child has taken over a session");
        recorder.metrics.child_restarted(&service.name, "secret_rotated");
        service.restarted();
        self.announce(&changed, &subscriptions);
    }

    /// Tells the client which lists are not those that it has been shown.
    fn announce(&mut self, changed: &[List], subscriptions: &[Outgoing]) {
        let mut told: Vec<&str> = Vec::new();
        for list in changed {
            self.shown.forget(*list);
            if told.contains(&list.changed()) {
                continue;
            }
            told.push(list.changed());
            if !self.swap.modern {
                self.on_upstream_line(Place::Present, &answer::notification(list.changed()).into());
                continue;
            }
            for id in subscriptions.iter().filter_map(|listen| wants(&listen.bytes, *list)) {
                let params = json!({ "_meta": { META_SUBSCRIPTION: id } });
                let line = json!({ "jsonrpc": "2.0", "method": list.changed(), "params": params });
                self.on_upstream_line(Place::Present, &line.to_string().into());
            }
        }
    }

    /// The coming child has failed; the present one goes on.
    pub(super) fn coming_failed(&mut self, failure: &Failure) {
        let Some(coming) = self.swap.coming.take() else { return };
        self.let_go(Place::Coming, coming);
        let service = &self.around.service;
        let (kind, reason) = (failure.kind, &failure.message);
        tracing::warn!(
            service = &*service.name,
            kind,
            reason,
            "a new child could not take over; the one before serves"
        );
        self.swap.trouble = Some(SwapTrouble::of(service, reason));
        self.swap.due = true;
        self.swap.pause = Some(Box::pin(sleep(self.swap.backoff.after_failure(Duration::ZERO))));
    }

    /// A leaving child has died: what may be asked twice is asked of the present one.
    pub(super) fn leaving_died(&mut self) {
        let taken = self.swap.leaving.as_mut().and_then(Upstream::as_stdio).map(|leaving| leaving.retire());
        self.give_present(taken.unwrap_or_default());
    }

    /// What was for another child and is not bound to it: an answer or a sign of progress is.
    fn give_present(&mut self, messages: Vec<Outgoing>) {
        let unbound = messages.into_iter().filter(|message| message.role != Role::Aside);
        unbound.for_each(|message| self.upstream.send(message));
    }

    fn let_go(&mut self, place: Place, upstream: Upstream) {
        self.cancel_asked(place);
        self.closing_upstreams.spawn(upstream.close());
    }
}

/// The id of a `subscriptions/listen`, if it wants to be told of changes of the list.
fn wants(listen: &[u8], list: List) -> Option<Value> {
    let mut listen: Value = serde_json::from_slice(listen).ok()?;
    (listen["params"]["notifications"][list.filter()] == true).then(|| listen["id"].take())
}

async fn event_of(upstream: &mut Option<Upstream>, read: bool) -> Event {
    match upstream {
        Some(upstream) => upstream.event(read).await,
        None => std::future::pending().await,
    }
}

async fn elapsed(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.as_mut().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mcp::message::{Message, parse};

    fn enter(asked: &mut Asked, by: Place, line: &str) -> Option<String> {
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { panic!("{line}") };
        asked.enter(by, &request, line.as_bytes()).map(|line| String::from_utf8(line).unwrap())
    }

    fn answered(asked: &mut Asked, line: &'static str) -> Option<(Place, String)> {
        let Ok(Message::Answer(answer)) = parse(line.as_bytes()) else { panic!("{line}") };
        let (by, line) = asked.answered(&answer, &Bytes::from_static(line.as_bytes()))?;
        Some((by, String::from_utf8(line.to_vec()).unwrap()))
    }

    const ASKS: &str = r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#;

    #[test]
    fn two_children_may_ask_under_one_id_and_each_gets_its_answer() {
        let mut asked = Asked::default();
        assert_eq!(enter(&mut asked, Place::Present, ASKS), None);
        let shown = enter(&mut asked, Place::Coming, ASKS).unwrap();
        assert_eq!(shown, r#"{"jsonrpc":"2.0","id":"mcpeg-1","method":"roots/list"}"#);
        asked.moved();
        let of_the_new = answered(&mut asked, r#"{"jsonrpc":"2.0","id":"mcpeg-1","result":{"n":1.0}}"#).unwrap();
        assert_eq!(of_the_new, (Place::Present, r#"{"jsonrpc":"2.0","id":1,"result":{"n":1.0}}"#.to_owned()));
        let of_the_old = answered(&mut asked, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).unwrap();
        assert_eq!(of_the_old.0, Place::Leaving);
        assert_eq!(answered(&mut asked, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), None, "answered already");
    }

    #[test]
    fn what_a_child_takes_back_is_named_as_the_client_knows_it() {
        let mut asked = Asked::default();
        enter(&mut asked, Place::Leaving, ASKS);
        enter(&mut asked, Place::Present, ASKS);
        let line = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        let Ok(Message::Notification(cancelled)) = parse(line.as_bytes()) else { panic!("{line}") };
        let shown = asked.withdrawn(Place::Present, &cancelled, line.as_bytes()).unwrap();
        assert!(String::from_utf8(shown).unwrap().contains(r#""requestId":"mcpeg-1""#));
        assert_eq!(asked.withdrawn(Place::Present, &cancelled, line.as_bytes()), None);
        assert_eq!(asked.take(Place::Leaving), [IdKey::Integer(1)]);
    }

    #[test]
    fn a_subscription_is_told_only_of_what_it_asked_for() {
        let listen = br#"{"jsonrpc":"2.0","id":"s","method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}"#;
        assert_eq!(wants(listen, List::Tools), Some(json!("s")));
        assert_eq!(wants(listen, List::Prompts), None);
    }
}
