//! What the client asks of the aggregate, and where that goes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::branch::{Ask, Submitted};
use super::lists::ListKind;
use super::names::{self, split_address};
use super::search::{self, Query};
use super::{Open, Own, Router};
use crate::mcp::answer;
use crate::mcp::batch;
use crate::mcp::call::{Call, Ending};
use crate::mcp::lines::TooLong;
use crate::mcp::members::Members;
use crate::mcp::message::{Field, IdKey, Message, Notification, Refusal, Request, id_of_refused, parse};
use crate::mcp::policy::{Denial, decide};
use crate::mcp::protocol::{
    CANCELLED, COMPLETE, DISCOVER, Era, INITIALIZE, LISTEN, MODERN, PING, PROGRESS, PROMPTS_GET, RESOURCES_READ,
    SET_LEVEL, SUBSCRIBE, TOOLS_CALL, UNSUBSCRIBE, code,
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
            match batch::messages(&line, self.version) {
                Some(messages) => messages.iter().for_each(|message| self.on_client_line(message)),
                None if line.trim_ascii().is_empty() => {}
                None => self.on_client_line(&line),
            }
        }
    }

    fn on_client_line(&mut self, line: &Bytes) {
        match parse(line) {
            Ok(Message::Request(request)) => self.on_request(&request, line),
            Ok(Message::Notification(notification)) => self.on_notification(&notification, line),
            Ok(Message::Answer(answer)) => self.on_client_answer(&answer, text_of(line)),
            Err(refusal) => self.refuse(id_of_refused(line), &refusal, "invalid_request"),
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
        let first = self.era.replace(era).is_none();
        let text = text_of(line);
        if era == Era::Modern && (first || self.branches.len() < registry.services.len()) {
            self.introduce(text, era);
        }
        match request.method.as_ref() {
            INITIALIZE | DISCOVER => self.hello(request, text, era, &registry),
            PING if era == Era::Legacy => self.answer_at_once(request, "{}"),
            TOOLS_CALL if registry.aggregate.search && self.is_search(request) => {
                self.search(request, text, era, &registry);
            }
            TOOLS_CALL | PROMPTS_GET => self.route_by_name(request, text, era, &registry),
            RESOURCES_READ | SUBSCRIBE | UNSUBSCRIBE => self.route_by_uri(request, text, era, &registry),
            COMPLETE => self.route_by_reference(request, text, era, &registry),
            LISTEN if era == Era::Modern => self.listen(request, text, &registry),
            SET_LEVEL if era == Era::Legacy => {
                let level = Members::read(text).and_then(|message| message.object("params")?.text("level"));
                self.set_level(request, level);
            }
            method => match ListKind::of(method) {
                Some(kind) => self.list(request, text, kind, era, &registry),
                None => {
                    let message = format!("the aggregate does not have the method {method:?}");
                    self.refuse_request(request, code::METHOD_NOT_FOUND, &message, "method_not_found");
                }
            },
        }
    }

    fn on_notification(&mut self, notification: &Notification<'_>, line: &[u8]) {
        match notification.method.as_ref() {
            CANCELLED => {}
            PROGRESS => return self.on_client_progress(notification, text_of(line)),
            ROOTS_CHANGED => return self.tell_all(line),
            _ => return,
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
            (_, Open::Listing { call, .. } | Open::Searching { call, .. } | Open::Greeting { call, .. }) => {
                self.record(&call, &Ending::Cancelled);
            }
            (_, Open::Listening(listening)) => self.stop_listening(*listening),
        }
    }

    fn route_by_name(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        let (Some(field), Some(name)) = (request.params.name, request.called_name()) else {
            return self.refuse_request(request, code::INVALID_PARAMS, "\"params.name\" is missing", "invalid_params");
        };
        match self.owner(&name, registry) {
            Ok((service, there)) => {
                if let Some(line) = splice::replace(line, field, &json!(there).to_string()) {
                    self.route(request, line, &service, era, false);
                }
            }
            Err(message) => self.refuse_request(request, code::INVALID_PARAMS, &message, "unknown_service"),
        }
    }

    /// The service that a name belongs to, and the name there; why there is none.
    fn owner(&self, name: &str, registry: &Registry) -> Result<(Arc<Service>, String), String> {
        if let Some((service, there)) = self.shortened.get(name)
            && let Some(service) = registry.services.get(service)
        {
            return Ok((service.clone(), there.clone()));
        }
        match names::split(name, &registry.services) {
            Some(_) if names::may_be_shortened(name) && !names::is_whole(name, &registry.services) => {
                Err("the name is a shortened one: ask for the list that it is in first".to_owned())
            }
            Some((_, service, there)) => Ok((service.clone(), there.to_owned())),
            None => {
                let visible = self.visible(registry);
                Err(names::unknown(name, visible.iter().map(|service| &*service.name)))
            }
        }
    }

    fn is_search(&self, request: &Request<'_>) -> bool {
        matches!(request.called_name().as_deref(), Some(search::FIND | search::CALL))
    }

    /// `find_tools`, or `call_tool`, which is the call of the tool that it names.
    fn search(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        let Some(mut message) = Members::read(line) else { return };
        let mut params = message.object("params").unwrap_or_default().into_owned();
        let arguments = params.object("arguments").map(Members::into_owned);
        if request.called_name().as_deref() == Some(search::FIND) {
            return match Query::of(arguments.as_ref()) {
                Ok(query) => self.find(request, line, query, era, registry),
                Err(message) => self.refuse_request(request, code::INVALID_PARAMS, &message, "invalid_params"),
            };
        }
        let Some(name) = arguments.as_ref().and_then(|arguments| arguments.text("name")) else {
            let message = "\"name\" is missing in the arguments of call_tool";
            return self.refuse_request(request, code::INVALID_PARAMS, message, "invalid_params");
        };
        let (service, there) = match self.owner(&name, registry) {
            Ok(found) => found,
            Err(message) => return self.refuse_request(request, code::INVALID_PARAMS, &message, "unknown_service"),
        };
        params.set("name", json!(there).to_string());
        match arguments.as_ref().and_then(|arguments| arguments.get("arguments")) {
            Some(inner) => params.set("arguments", inner.to_owned()),
            None => params.set("arguments", "{}"),
        }
        message.set("params", params.write());
        self.route(request, message.write(), &service, era, false);
    }

    fn route_by_uri(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        let (Some(field), Some(uri)) = (request.params.uri, request.params.uri.and_then(Field::text)) else {
            return self.refuse_request(request, code::INVALID_PARAMS, "\"params.uri\" is missing", "invalid_params");
        };
        if let Some((_, service, there)) = split_address(&uri, &registry.services) {
            self.note_subscription(request, service, there, &uri);
            if let Some(line) = splice::replace(line, field, &json!(there).to_string()) {
                self.route(request, line, service, era, request.method == RESOURCES_READ);
            }
            return;
        }
        if let Some(service) = self.addresses.get(&*uri).and_then(|service| registry.services.get(service)).cloned() {
            self.note_subscription(request, &service, &uri, &uri);
            return self.route(request, line.to_owned(), &service, era, false);
        }
        if request.method != RESOURCES_READ {
            let message = "no service has listed this resource; ask for \"resources/list\" first";
            return self.refuse_request(request, code::INVALID_PARAMS, message, "unknown_resource");
        }
        let left: VecDeque<String> = self.visible(registry).iter().map(|service| service.name.to_string()).collect();
        let call = Call::begin(request, &self.name, self.version);
        self.open.insert(request.key.clone(), Open::Searching { call, line: line.to_owned(), left });
        self.search_on(&request.key, None);
    }

    /// Changes of the resource are to be told under the address that the client has used.
    fn note_subscription(&mut self, request: &Request<'_>, service: &Arc<Service>, there: &str, written: &str) {
        let key = (service.name.to_string(), there.to_owned());
        if request.method == UNSUBSCRIBE {
            self.subscribed.remove(&key);
        } else if request.method == SUBSCRIBE && self.subscribed.len() < MAX_SUBSCRIBED {
            self.subscribed.insert(key, written.to_owned());
        }
    }

    /// `completion/complete`: for an argument of a prompt, or of a template.
    fn route_by_reference(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        let reference = serde_json::from_str::<Referring<'_>>(line).ok().map(|referring| referring.params.reference);
        let Some(Reference { name, uri }) = reference else {
            return self.refuse_request(request, code::INVALID_PARAMS, "\"params.ref\" is missing", "invalid_params");
        };
        let found = match (name.map(|name| Field(name.get())), uri.map(|uri| Field(uri.get()))) {
            (Some(field), _) => {
                let name = field.text().unwrap_or_default();
                self.owner(&name, registry).map(|(service, there)| (field, service, there))
            }
            (None, Some(field)) => {
                let uri = field.text().unwrap_or_default();
                let listed = || Some((self.addresses.get(&*uri)?.clone(), uri.clone().into_owned()));
                let split = split_address(&uri, &registry.services);
                let split = split.map(|(service, _, there)| (service.to_owned(), there.to_owned())).or_else(listed);
                let found =
                    split.and_then(|(service, there)| Some((field, registry.services.get(&service)?.clone(), there)));
                found.ok_or_else(|| "no service has listed this template".to_owned())
            }
            (None, None) => Err("\"params.ref\" has neither \"name\" nor \"uri\"".to_owned()),
        };
        match found {
            Ok((field, service, there)) => {
                if let Some(line) = splice::replace(line, field, &json!(there).to_string()) {
                    self.route(request, line, &service, era, false);
                }
            }
            Err(message) => self.refuse_request(request, code::INVALID_PARAMS, &message, "invalid_params"),
        }
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

    fn route(&mut self, request: &Request<'_>, line: String, service: &Arc<Service>, era: Era, addressed: bool) {
        if let Some(denial) = service.policy().refuses_peer(self.peer) {
            return self.refuse_by_rule(request, service, &denial);
        }
        let routed = Open::Routed { service: service.name.to_string(), id: request.id.raw().into(), addressed };
        self.open.insert(request.key.clone(), routed);
        self.submit(request.key.clone(), Ask::Line(line.into_bytes()), service, era);
    }

    pub(super) fn submit(&mut self, key: IdKey, ask: Ask, service: &Arc<Service>, era: Era) {
        let client = self.introduced.clone();
        if self.branch(service).submit(key, ask, era, &client) == Submitted::Ungreeted {
            self.greet(service, era);
        }
    }

    /// Begins to greet a service, unless that is under way or done.
    pub(super) fn greet(&mut self, service: &Arc<Service>, era: Era) {
        let id = self.next_id();
        let (client, shared) = (self.introduced.clone(), self.shared.clone());
        let branch = self.branch(service);
        if branch.wants_greeting(era) {
            branch.greet(era, &client, &shared.identity, id);
        }
    }

    pub(super) fn answer_at_once(&mut self, request: &Request<'_>, result: &str) {
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

    pub(super) fn refuse_request(&mut self, request: &Request<'_>, code: i32, message: &str, kind: &'static str) {
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

/// `parse` has checked that the line is UTF-8.
fn text_of(line: &[u8]) -> &str {
    std::str::from_utf8(line).unwrap_or_default()
}

#[derive(Deserialize)]
struct Referring<'a> {
    #[serde(borrow)]
    params: ReferringParams<'a>,
}

#[derive(Deserialize)]
struct ReferringParams<'a> {
    #[serde(borrow, rename = "ref")]
    reference: Reference<'a>,
}

#[derive(Deserialize)]
struct Reference<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    uri: Option<&'a RawValue>,
}

const ROOTS_CHANGED: &str = "notifications/roots/list_changed";
const MAX_SUBSCRIBED: usize = 256;
