//! What comes back from the services of an aggregate.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::branch::Ask;
use super::names::address;
use super::{Open, Own, Router, revisions};
use crate::mcp::answer;
use crate::mcp::call::{Call, Ending};
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Message, Notification, parse};
use crate::mcp::protocol::{CANCELLED, Era, code};
use crate::mcp::splice;
use crate::mcp::upstream::Failure;

impl Router {
    pub(super) fn take_branch_lines(&mut self, service: &str) {
        while let Some(Ok(line)) = self.branches.get_mut(service).and_then(|branch| branch.lines.next_line()) {
            match parse(&line) {
                Ok(Message::Answer(answer)) => self.on_answer(service, &answer, &line),
                Ok(Message::Request(request)) => self.on_server_request(service, &request, text_of(&line)),
                Ok(Message::Notification(notification)) => self.on_service_notification(service, &notification, &line),
                Err(refusal) => tracing::warn!(service, %refusal, "a line of a service's session is no message"),
            }
        }
    }

    fn on_service_notification(&mut self, service: &str, notification: &Notification<'_>, line: &[u8]) {
        let text = text_of(line);
        match notification.method.as_ref() {
            _ if self.on_told(service, notification, text) => {}
            CANCELLED => self.on_server_cancelled(service, notification, text),
            UPDATED if self.era == Some(Era::Legacy) => {
                let Some((field, there)) = notification.params.uri.and_then(|field| Some((field, field.text()?)))
                else {
                    return;
                };
                let written = self.subscribed.get(&(service.to_owned(), there.clone().into_owned())).cloned();
                let written = written.unwrap_or_else(|| address(service, &there));
                if let Some(line) = splice::replace(text, field, &json!(written).to_string()) {
                    self.client.push(line.as_bytes());
                }
            }
            method => {
                if method == "notifications/tools/list_changed" {
                    self.catalogue = None;
                    if self.registry.borrow().aggregate.search {
                        return;
                    }
                }
                self.client.push(line);
            }
        }
    }

    /// When services have come, gone or changed, the client is told that its lists are not the same any more.
    pub(super) fn services_changed(&mut self) {
        let registry = self.registry.borrow_and_update().clone();
        self.addresses.retain(|_, service| registry.services.contains_key(service));
        self.shortened.retain(|_, (service, _)| registry.services.contains_key(service));
        let before = std::mem::replace(&mut self.known, revisions(&registry));
        if before != self.known {
            self.tell_changed(&["tools", "prompts", "resources"]);
            self.listen_to_new(&registry);
        }
    }

    /// Lists, greetings and subscriptions whose time is over.
    pub(super) fn expire(&mut self) {
        let now = tokio::time::Instant::now();
        self.ask_absent();
        let (mut due, mut greetings, mut listens) = (Vec::new(), Vec::new(), Vec::new());
        for (key, open) in &mut self.open {
            match open {
                Open::Listing { list, deadline, .. } if *deadline <= now => {
                    due.push((key.clone(), list.kind, list.give_up()));
                }
                Open::Greeting { deadline, .. } if *deadline <= now => greetings.push(key.clone()),
                Open::Listening(listening) if listening.deadline().is_some_and(|until| until <= now) => {
                    listens.push(key.clone());
                }
                _ => {}
            }
        }
        greetings.iter().for_each(|key| self.finish_hello_if_known(key, true));
        listens.iter().for_each(|key| self.acknowledge_if_sure(key, true));
        for (key, kind, left_out) in due {
            left_out.iter().for_each(|service| self.left_out(service, kind));
            self.finish_list_if_done(&key);
        }
    }

    /// The session behind a branch has ended: the service was removed, or mcpeg stops.
    pub(super) fn branch_ended(&mut self, service: &str) {
        let unsent = self.branches.remove(service).map(|mut branch| branch.take_waiting()).unwrap_or_default();
        self.unsent_failed(service, unsent, "its session has ended");
        self.met(service);
        self.take_questions_back(service);
        let own = self.own.iter().filter(|(_, own)| own.service() == service).map(|(key, _)| key.clone());
        for key in own.collect::<Vec<_>>() {
            self.own_failed(&key, "its session has ended");
        }
        // What was sent has been recorded by the session that ended.
        let message = format!("service {service}: its session has ended");
        let Self { open, client, .. } = self;
        open.retain(|_, open| match open {
            Open::Routed { service: its, id, .. } if its == service => {
                client.push(&answer::error(Some(Field(id)), code::UPSTREAM_FAILED, &message, None));
                false
            }
            _ => true,
        });
    }

    /// No service has the resource. The last one's error says it best.
    pub(super) fn nothing_found(&mut self, key: &IdKey, last_error: Option<&str>) {
        let Some(Open::Searching { call, .. }) = self.open.remove(key) else { return };
        let id = Field(&call.id);
        let with_id = last_error.and_then(|line| match parse(line.as_bytes()) {
            Ok(Message::Answer(answer)) => splice::replace(line, answer.id, id.raw()),
            _ => None,
        });
        let line = with_id.map_or_else(
            || answer::error(Some(id), code::INVALID_PARAMS, "no service has this resource", None),
            String::into_bytes,
        );
        self.settle(&call, &Ending::ErrorAnswer { code: Some(code::INVALID_PARAMS.into()) }, line);
    }

    fn on_answer(&mut self, service: &str, answer: &Answer<'_>, line: &[u8]) {
        let Some(key) = &answer.key else { return };
        let result = match answer.body {
            AnswerBody::Result { raw, .. } => Some(raw),
            AnswerBody::Error { .. } => None,
        };
        if self.branches.get(service).is_some_and(|branch| branch.is_greeting(key)) {
            return self.greeted(service, result.map(Field::raw), &error_of(answer, service));
        }
        // `parse` has checked that the line is UTF-8.
        let Ok(line) = std::str::from_utf8(line) else { return };
        match self.own.remove(key) {
            Some(Own::Page { open, service }) => self.on_page(&open, &service, answer, result),
            Some(Own::Again { service }) => self.on_again(&service, &answer.body),
            Some(Own::Listen { open, service }) => self.listen_ended(&open, &service),
            Some(Own::Said { .. }) => {}
            Some(Own::Search { open, .. }) => self.on_search(&open, answer, line, result),
            None => self.on_routed(key, line, result),
        }
    }

    fn on_routed(&mut self, key: &IdKey, line: &str, result: Option<Field<'_>>) {
        // Whoever cancelled does not want the answer any more.
        match self.open.remove(key) {
            Some(Open::Routed { service, addressed: true, .. }) => {
                let readdressed = readdressed(&service, line, result);
                self.client.push(readdressed.as_deref().unwrap_or(line).as_bytes());
            }
            Some(Open::Routed { .. }) => self.client.push(line.as_bytes()),
            Some(other) => drop(self.open.insert(key.clone(), other)),
            None => {}
        }
    }

    fn on_search(&mut self, open: &IdKey, answer: &Answer<'_>, line: &str, result: Option<Field<'_>>) {
        if result.is_none() {
            return self.search_on(open, Some(line));
        }
        let Some(Open::Searching { call, .. }) = self.open.remove(open) else { return };
        if let Some(line) = splice::replace(line, answer.id, &call.id) {
            self.settle(&call, &Ending::Answered { tool_error: false }, line.into_bytes());
        }
    }

    fn greeted(&mut self, service: &str, result: Option<&str>, problem: &str) {
        let client = self.introduced.clone();
        let Some(branch) = self.branches.get_mut(service) else { return };
        match branch.greeted(result, &client) {
            Ok(server) => {
                if let Some(service) = self.registry.borrow().services.get(service) {
                    service.introduced(server);
                }
                self.pass_level_on(service);
            }
            Err(unsent) => self.unsent_failed(service, unsent, problem),
        }
        self.met(service);
    }

    /// Requests that never went to their service, so that nobody else records and answers them.
    fn unsent_failed(&mut self, service: &str, unsent: Vec<(IdKey, Ask)>, problem: &str) {
        for (key, ask) in unsent {
            if self.open.remove(&key).is_none() {
                self.own_failed(&key, problem);
                continue;
            }
            let failure = Failure::new(service, "not_initialized", problem);
            self.record_unsent(service, &ask, &Ending::Failed(&failure));
            if let Ask::Line(line) = &ask
                && let Ok(Message::Request(request)) = parse(line)
            {
                self.client.push(&answer::error(Some(request.id), failure.code, &failure.message, None));
            }
        }
    }

    pub(super) fn record_unsent(&self, service: &str, ask: &Ask, ending: &Ending<'_>) {
        let Ask::Line(line) = ask else { return };
        let Ok(Message::Request(request)) = parse(line) else { return };
        let call = Call::begin(&request, service, self.version);
        if let Err(error) = self.shared.recorder.settle(&call, &service.into(), self.peer, ending) {
            tracing::error!(%error, service, "a request that was not sent could not be audited");
        }
    }

    /// Records the end of a request that nobody waits for any more.
    pub(super) fn record(&self, call: &Call, ending: &Ending<'_>) {
        if let Err(error) = self.shared.recorder.settle(call, &self.name, self.peer, ending) {
            tracing::error!(%error, "an unanswered request could not be audited");
        }
    }

    fn own_failed(&mut self, key: &IdKey, problem: &str) {
        match self.own.remove(key) {
            Some(Own::Page { open, service }) => self.page_failed(&open, &service, problem),
            Some(Own::Listen { open, service }) => self.listen_ended(&open, &service),
            Some(Own::Said { .. }) => {}
            Some(Own::Search { open, .. }) => self.search_on(&open, None),
            // It is asked again later.
            Some(Own::Again { .. }) | None => {}
        }
    }
}

/// What the error of an answer says, cut to a length that a list of problems can bear, without the name that is said anyway.
pub(super) fn error_of(answer: &Answer<'_>, service: &str) -> String {
    let message = match answer.body {
        AnswerBody::Error { message, .. } => message.and_then(Field::text),
        AnswerBody::Result { .. } => None,
    };
    let message = message.as_deref().unwrap_or("it answered with an error");
    let message = message.strip_prefix(&format!("service {service}: ")).unwrap_or(message);
    message.chars().take(MAX_PROBLEM_CHARS).collect()
}

/// What was read, with addresses of the aggregate in it. `None`: there are none to change.
fn readdressed(service: &str, line: &str, result: Option<Field<'_>>) -> Option<String> {
    let read: Read<'_> = serde_json::from_str(result?.raw()).ok()?;
    let addresses: Vec<(Field<'_>, String)> = read
        .contents
        .iter()
        .filter_map(|content| {
            let field = Field(content.uri?.get());
            Some((field, json!(address(service, &field.text()?)).to_string()))
        })
        .collect();
    let parts: Vec<(Field<'_>, &str)> = addresses.iter().map(|(field, address)| (*field, address.as_str())).collect();
    splice::replace_each(line, &parts)
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    contents: Vec<Content<'a>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
}

/// `parse` has checked that the line is UTF-8.
fn text_of(line: &[u8]) -> &str {
    std::str::from_utf8(line).unwrap_or_default()
}

impl Own {
    fn service(&self) -> &str {
        match self {
            Self::Page { service, .. }
            | Self::Search { service, .. }
            | Self::Again { service }
            | Self::Listen { service, .. }
            | Self::Said { service } => service,
        }
    }
}

const UPDATED: &str = "notifications/resources/updated";
const MAX_PROBLEM_CHARS: usize = 300;
