//! What comes back from the services of an aggregate.

use super::branch::Ask;
use super::lists::Page;
use super::{Open, Own, Router, revisions};
use crate::mcp::answer;
use crate::mcp::call::{Call, Ending};
use crate::mcp::message::{Answer, AnswerBody, Field, IdKey, Message, Request, parse};
use crate::mcp::protocol::{CANCELLED, Era, PING, code};
use crate::mcp::splice;
use crate::mcp::upstream::Failure;

impl Router {
    pub(super) fn take_branch_lines(&mut self, service: &str) {
        while let Some(Ok(line)) = self.branches.get_mut(service).and_then(|branch| branch.lines.next_line()) {
            match parse(&line) {
                Ok(Message::Answer(answer)) => self.on_answer(service, &answer, &line),
                Ok(Message::Request(request)) => self.on_server_request(service, &request),
                // The server takes back a request that was refused already.
                Ok(Message::Notification(notification)) if notification.method == CANCELLED => {}
                Ok(Message::Notification(_)) => self.client.push(&line),
                Err(refusal) => tracing::warn!(service, %refusal, "a line of a service's session is no message"),
            }
        }
    }

    /// When services have come, gone or changed, a legacy client is told that its lists are not the same any more.
    pub(super) fn services_changed(&mut self) {
        let registry = self.registry.borrow_and_update().clone();
        self.resources.retain(|_, service| registry.services.contains_key(service));
        let before = std::mem::replace(&mut self.known, revisions(&registry));
        if self.era == Some(Era::Legacy) && before != self.known {
            for list in ["tools", "prompts", "resources"] {
                self.client.push(&answer::notification(&format!("notifications/{list}/list_changed")));
            }
        }
    }

    /// Lists whose time is over.
    pub(super) fn expire(&mut self) {
        let now = tokio::time::Instant::now();
        self.ask_absent();
        let mut due = Vec::new();
        for (key, open) in &mut self.open {
            if let Open::Listing { list, deadline, .. } = open
                && *deadline <= now
            {
                due.push((key.clone(), list.kind, list.give_up()));
            }
        }
        for (key, kind, left_out) in due {
            left_out.iter().for_each(|service| self.left_out(service, kind));
            self.finish_list_if_done(&key);
        }
    }

    /// The session behind a branch has ended: the service was removed, or mcpeg stops.
    pub(super) fn branch_ended(&mut self, service: &str) {
        let unsent = self.branches.remove(service).map(|mut branch| branch.take_waiting()).unwrap_or_default();
        self.unsent_failed(service, unsent, "its session has ended");
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

    pub(super) fn finish_list_if_done(&mut self, key: &IdKey) {
        let Some(Open::Listing { list, .. }) = self.open.get(key) else { return };
        if !list.is_done() {
            return;
        }
        if let Some(Open::Listing { call, era, list, .. }) = self.open.remove(key) {
            let line = answer::result(Field(&call.id), &list.result(era));
            self.settle(&call, &Ending::Answered { tool_error: false }, line);
        }
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
            Some(Own::Search { open, .. }) => self.on_search(&open, answer, line, result),
            None => self.on_routed(key, line),
        }
    }

    fn on_routed(&mut self, key: &IdKey, line: &str) {
        // Whoever cancelled does not want the answer any more.
        if let Some(Open::Routed { .. }) = self.open.remove(key) {
            self.client.push(line.as_bytes());
        }
    }

    fn on_page(&mut self, open: &IdKey, service: &str, answer: &Answer<'_>, result: Option<Field<'_>>) {
        let Some(Open::Listing { list, era, .. }) = self.open.get_mut(open) else { return };
        let (kind, era) = (list.kind, *era);
        let Some(result) = result else {
            match answer.body {
                // It does not know the method: it has nothing of the kind.
                AnswerBody::Error { code: Some(code), .. } if code == i64::from(code::METHOD_NOT_FOUND) => {
                    list.add_nothing(service);
                    return self.finish_list_if_done(open);
                }
                _ => return self.page_failed(open, service, &error_of(answer, service)),
            }
        };
        let (page, uris) = list.add(service, result.raw());
        for uri in uris {
            if self.resources.len() < MAX_RESOURCES {
                self.resources.entry(uri).or_insert_with(|| service.to_owned());
            }
        }
        let found = self.registry.borrow().services.get(service).cloned();
        match (page, found) {
            (Page::More(cursor), Some(service)) => self.ask_for_page(open, kind, &service, era, Some(cursor)),
            (Page::More(_), None) => self.page_failed(open, service, "it was removed"),
            (Page::Last, _) => {
                self.listed(service, kind);
                self.finish_list_if_done(open);
            }
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

    fn on_server_request(&mut self, service: &str, request: &Request<'_>) {
        let Some(branch) = self.branches.get_mut(service) else { return };
        let line = if request.method == PING {
            answer::result(request.id, "{}")
        } else {
            let message = "the aggregate offers servers no such capability";
            answer::error(Some(request.id), code::METHOD_NOT_FOUND, message, None)
        };
        branch.lines.push(&line);
    }

    fn greeted(&mut self, service: &str, result: Option<&str>, problem: &str) {
        let shared = self.shared.clone();
        let Some(branch) = self.branches.get_mut(service) else { return };
        let unsent = branch.greeted(result, &shared.identity);
        self.unsent_failed(service, unsent, problem);
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
            Some(Own::Search { open, .. }) => self.search_on(&open, None),
            // It is asked again later.
            Some(Own::Again { .. }) | None => {}
        }
    }

    fn page_failed(&mut self, open: &IdKey, service: &str, problem: &str) {
        // Why is for the client alone: it may be the server's own text.
        tracing::warn!(service, "a service is left out of a list");
        if let Some(Open::Listing { list, .. }) = self.open.get_mut(open) {
            list.fail(service, problem);
            let kind = list.kind;
            self.left_out(service, kind);
        }
        self.finish_list_if_done(open);
    }
}

/// What the error of an answer says, cut to a length that a list of problems can bear, without the name that is said anyway.
fn error_of(answer: &Answer<'_>, service: &str) -> String {
    let message = match answer.body {
        AnswerBody::Error { message, .. } => message.and_then(Field::text),
        AnswerBody::Result { .. } => None,
    };
    let message = message.as_deref().unwrap_or("it answered with an error");
    let message = message.strip_prefix(&format!("service {service}: ")).unwrap_or(message);
    message.chars().take(MAX_PROBLEM_CHARS).collect()
}

impl Own {
    fn service(&self) -> &str {
        match self {
            Self::Page { service, .. } | Self::Search { service, .. } | Self::Again { service } => service,
        }
    }
}

const MAX_RESOURCES: usize = 10_000;
const MAX_PROBLEM_CHARS: usize = 300;
