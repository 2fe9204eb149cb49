//! What the client asks of the aggregate, and where that goes.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::json;
use tokio::time::Instant;

use super::branch::Ask;
use super::lists::{Collection, ListKind};
use super::names;
use super::{Open, Own, Router};
use crate::mcp::answer;
use crate::mcp::call::{Call, Ending};
use crate::mcp::lines::TooLong;
use crate::mcp::message::{Field, IdKey, Message, Notification, Refusal, Request, id_of_refused, parse};
use crate::mcp::policy::{Denial, decide};
use crate::mcp::protocol::{
    CANCELLED, DISCOVER, Era, INITIALIZE, LEGACY, MODERN, PING, PROMPTS_GET, RESOURCES_READ, SUBSCRIBE, TOOLS_CALL,
    UNSUBSCRIBE, code,
};
use crate::mcp::registry::Registry;
use crate::mcp::service::Service;
use crate::mcp::splice;

impl Router {
    pub(super) fn take_client_lines(&mut self) {
        while let Some(line) = self.client.next_line() {
            let Ok(line) = line else {
                let TooLong = TooLong;
                self.refuse(None, &Refusal::Invalid("the message is too large".into()), "message_too_large");
                self.client_writes = false;
                return;
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            match parse(&line) {
                Ok(Message::Request(request)) => self.on_request(&request, &line),
                Ok(Message::Notification(notification)) => self.on_notification(&notification, &line),
                // The client is asked nothing, so there is nothing that it could answer.
                Ok(Message::Answer(_)) => {}
                Err(refusal) => self.refuse(id_of_refused(&line), &refusal, "invalid_request"),
            }
        }
    }

    fn on_request(&mut self, request: &Request<'_>, line: &[u8]) {
        let registry = self.registry.borrow().clone();
        if self.open.contains_key(&request.key) {
            let message = "the id belongs to a request that is not answered yet";
            return self.refuse_request(request, code::INVALID_REQUEST, message, "duplicate_id");
        }
        if let Err(denial) = decide(request, self.open.len(), &registry.limits) {
            return self.refuse_request(request, denial.code, &denial.message, denial.kind);
        }
        let era = match request.modern_version() {
            Some(version) if version != MODERN => return self.unsupported_version(request, &version),
            Some(_) => Era::Modern,
            None => Era::Legacy,
        };
        self.era = Some(era);
        // `parse` has checked that the line is UTF-8.
        let Ok(text) = std::str::from_utf8(line) else { return };
        match request.method.as_ref() {
            INITIALIZE => {
                let result = self.initialize_result(request);
                self.answer_at_once(request, &result);
            }
            DISCOVER => self.answer_at_once(request, &self.discover_result()),
            PING => self.answer_at_once(request, "{}"),
            TOOLS_CALL | PROMPTS_GET => self.route_by_name(request, text, era, &registry),
            RESOURCES_READ | SUBSCRIBE | UNSUBSCRIBE => self.route_by_uri(request, text, era, &registry),
            method => match ListKind::of(method) {
                Some(kind) => self.list(request, kind, era, &registry),
                None => {
                    let message = format!("the aggregate does not have the method {method:?}");
                    self.refuse_request(request, code::METHOD_NOT_FOUND, &message, "method_not_found");
                }
            },
        }
    }

    fn on_notification(&mut self, notification: &Notification<'_>, line: &[u8]) {
        if notification.method != CANCELLED {
            return;
        }
        let Some(open) = notification.cancelled().and_then(|key| Some((key.clone(), self.open.remove(&key)?))) else {
            return;
        };
        match open {
            (key, Open::Routed { service, .. }) => {
                let Some(branch) = self.branches.get_mut(&service) else { return };
                match branch.take_back(&key) {
                    Some(ask) => self.record_unsent(&service, &ask, &Ending::Cancelled),
                    None => branch.lines.push(line),
                }
            }
            (_, Open::Listing { call, .. } | Open::Searching { call, .. }) => self.record(&call, &Ending::Cancelled),
        }
    }

    fn initialize_result(&mut self, request: &Request<'_>) -> String {
        let wanted = request.params.protocol_version.and_then(Field::text);
        let version = LEGACY.into_iter().find(|known| wanted.as_deref() == Some(known)).unwrap_or(LEGACY[0]);
        self.version = Some(version);
        json!({
            "protocolVersion": version,
            "capabilities": capabilities(true),
            "serverInfo": { "name": self.shared.identity.name, "version": self.shared.identity.version },
        })
        .to_string()
    }

    fn discover_result(&self) -> String {
        let server = json!({ "name": self.shared.identity.name, "version": self.shared.identity.version });
        json!({
            "supportedVersions": [MODERN],
            "capabilities": capabilities(false),
            "resultType": "complete",
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": { "io.modelcontextprotocol/serverInfo": server },
        })
        .to_string()
    }

    fn route_by_name(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        let (Some(field), Some(name)) = (request.params.name, request.called_name()) else {
            return self.refuse_request(request, code::INVALID_PARAMS, "\"params.name\" is missing", "invalid_params");
        };
        let Some((_, service, name_there)) = names::split(&name, &registry.services) else {
            let peer = self.peer;
            let visible = registry.services.iter().filter(|(_, service)| service.policy().refuses_peer(peer).is_none());
            let message = names::unknown(&name, visible.map(|(name, _)| name.as_str()));
            return self.refuse_request(request, code::INVALID_PARAMS, &message, "unknown_service");
        };
        if let Some(line) = splice::replace(line, field, &json!(name_there).to_string()) {
            self.route(request, line, service, era);
        }
    }

    fn route_by_uri(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        let Some(uri) = request.params.uri.and_then(Field::text) else {
            return self.refuse_request(request, code::INVALID_PARAMS, "\"params.uri\" is missing", "invalid_params");
        };
        if let Some(service) = self.resources.get(&*uri).and_then(|service| registry.services.get(service)) {
            return self.route(request, line.to_owned(), service, era);
        }
        if request.method != RESOURCES_READ {
            let message = "no service has listed this resource; ask for \"resources/list\" first";
            return self.refuse_request(request, code::INVALID_PARAMS, message, "unknown_resource");
        }
        let left: VecDeque<String> = registry.services.keys().cloned().collect();
        let call = Call::begin(request, &self.name, self.version);
        self.open.insert(request.key.clone(), Open::Searching { call, line: line.to_owned(), left });
        self.search_on(&request.key, None);
    }

    /// Asks the next service that may have the resource.
    pub(super) fn search_on(&mut self, key: &IdKey, last_error: Option<&str>) {
        let registry = self.registry.borrow().clone();
        let own = self.next_id();
        let Some(Open::Searching { line, left, .. }) = self.open.get_mut(key) else { return };
        let next = std::iter::from_fn(|| left.pop_front()).find_map(|service| registry.services.get(&service));
        let Some(service) = next else { return self.nothing_found(key, last_error) };
        // The line was read when it came, so that it has an id.
        let Ok(Message::Request(request)) = parse(line.as_bytes()) else { return };
        let era = if request.modern_version().is_some() { Era::Modern } else { Era::Legacy };
        let Some(line) = splice::replace(line, request.id, &json!(own).to_string()) else { return };
        let own_key = IdKey::Text(own.into());
        let purpose = Own::Search { open: key.clone(), service: service.name.to_string() };
        self.own.insert(own_key.clone(), purpose);
        self.submit(own_key, Ask::Line(line.into_bytes()), service, era);
    }

    fn route(&mut self, request: &Request<'_>, line: String, service: &Arc<Service>, era: Era) {
        if let Some(denial) = service.policy().refuses_peer(self.peer) {
            return self.refuse_by_rule(request, service, &denial);
        }
        let routed = Open::Routed { service: service.name.to_string(), id: request.id.raw().into() };
        self.open.insert(request.key.clone(), routed);
        self.submit(request.key.clone(), Ask::Line(line.into_bytes()), service, era);
    }

    fn list(&mut self, request: &Request<'_>, kind: ListKind, era: Era, registry: &Registry) {
        if request.params.cursor.is_some_and(|cursor| cursor.raw() != "null") {
            let message = "the aggregate gives its lists whole: no cursor is valid";
            return self.refuse_request(request, code::INVALID_PARAMS, message, "invalid_params");
        }
        let call = Call::begin(request, &self.name, self.version);
        // A service that is not for this client is not there.
        let peer = self.peer;
        let visible = || registry.services.values().filter(|service| service.policy().refuses_peer(peer).is_none());
        let names = visible().map(|service| service.name.to_string());
        let mut list = Collection::new(kind, names, registry.limits.max_message_bytes);
        let asked = visible().filter(|service| {
            let lacks = self.branches.get(&*service.name).is_some_and(|branch| branch.lacks(kind.capability()));
            if lacks {
                list.add_nothing(&service.name);
            }
            !lacks
        });
        let asked: Vec<Arc<Service>> = asked.cloned().collect();
        // The session behind a branch keeps to its service's own time-out; the list waits for the most patient of them.
        let deadline =
            Instant::now() + asked.iter().map(|service| service.settings().timeout).max().unwrap_or_default();
        self.open.insert(request.key.clone(), Open::Listing { call, era, list, deadline });
        for service in &asked {
            self.ask_for_page(&request.key, kind, service, era, None);
        }
        self.finish_list_if_done(&request.key);
    }

    pub(super) fn ask_for_page(
        &mut self,
        open: &IdKey,
        kind: ListKind,
        service: &Arc<Service>,
        era: Era,
        cursor: Option<String>,
    ) {
        let id = self.next_id();
        let key = IdKey::Text(id.as_str().into());
        self.own.insert(key.clone(), Own::Page { open: open.clone(), service: service.name.to_string() });
        self.submit(key, Ask::Page { id, method: kind.method(), cursor }, service, era);
    }

    pub(super) fn submit(&mut self, key: IdKey, ask: Ask, service: &Arc<Service>, era: Era) {
        let greeting = self.next_id();
        let shared = self.shared.clone();
        self.branch(service).submit(key, ask, era, &shared.identity, || greeting);
    }

    fn answer_at_once(&mut self, request: &Request<'_>, result: &str) {
        let call = Call::begin(request, &self.name, self.version);
        self.settle(&call, &Ending::Answered { tool_error: false }, answer::result(request.id, result));
    }

    fn unsupported_version(&mut self, request: &Request<'_>, version: &str) {
        let data = json!({ "supported": [MODERN], "requested": version });
        let message = format!("the protocol version {version:?} is not supported");
        let line = answer::error(Some(request.id), code::UNSUPPORTED_VERSION, &message, Some(&data));
        self.settle(
            &Call::begin(request, &self.name, self.version),
            &Ending::Denied { kind: "unsupported_version" },
            line,
        );
    }

    fn refuse_request(&mut self, request: &Request<'_>, code: i32, message: &str, kind: &'static str) {
        let line = answer::error(Some(request.id), code, message, None);
        self.settle(&Call::begin(request, &self.name, self.version), &Ending::Denied { kind }, line);
    }

    fn refuse_by_rule(&mut self, request: &Request<'_>, service: &Service, denial: &Denial) {
        let data = json!({ "service": &*service.name, "reason": denial.kind, "rule": denial.rule });
        let line = answer::error(Some(request.id), denial.code, &denial.message, Some(&data));
        let mut call = Call::begin(request, &self.name, self.version);
        call.refused(denial);
        self.settle(&call, &Ending::Denied { kind: denial.kind }, line);
    }

    fn refuse(&mut self, id: Option<Field<'_>>, refusal: &Refusal, kind: &str) {
        if let Err(error) = self.shared.recorder.refused(id.map(Field::raw), &self.name, self.peer, kind) {
            tracing::error!(%error, "a refused message could not be audited");
        }
        self.client.push(&answer::error(id, refusal.code(), &refusal.to_string(), None));
    }

    /// Records the end of a request that is answered here, and answers it.
    pub(super) fn settle(&mut self, call: &Call, ending: &Ending<'_>, line: Vec<u8>) {
        let line = match self.shared.recorder.settle(call, &self.name, self.peer, ending) {
            Ok(()) => line,
            Err(error) => {
                tracing::error!(%error, "an answer is withheld");
                let message = "the request could not be audited, so its answer is withheld";
                answer::error(Some(Field(&call.id)), code::NOT_AUDITED, message, None)
            }
        };
        self.client.push(&line);
    }
}

/// Whether a list has changed is told on the connection in the legacy era; the modern era would need a subscription.
fn capabilities(list_changed: bool) -> serde_json::Value {
    let capability = || if list_changed { json!({ "listChanged": true }) } else { json!({}) };
    json!({ "tools": capability(), "prompts": capability(), "resources": capability() })
}
