//! What services ask the client (sampling, elicitation, roots) and what the client tells them: each under ids of our own, as two services may
//! choose the same ones.

use super::Router;
use crate::mcp::answer;
use crate::mcp::message::{Answer, IdKey, Notification, Request};
use crate::mcp::protocol::{Era, PING, code};
use crate::mcp::splice;

/// A request of a service that the client has not answered.
pub struct Asked {
    service: String,
    /// As the service wrote it.
    id: Box<str>,
    key: IdKey,
    /// The progress token, likewise.
    token: Option<Box<str>>,
}

impl Router {
    pub(super) fn on_server_request(&mut self, service: &str, request: &Request<'_>, line: &str) {
        let limit = self.registry.borrow().limits.max_in_flight;
        let refusal = match (request.method.as_ref(), self.era) {
            (PING, _) => return self.say_to(service, &answer::result(request.id, "{}")),
            // The session behind the branch answers a modern client's request with what is asked.
            (_, Some(Era::Modern) | None) => "a client of this era is asked nothing",
            (_, Some(Era::Legacy)) if self.asked.len() >= limit => "the client has too many requests to answer already",
            (_, Some(Era::Legacy)) => "",
        };
        if !refusal.is_empty() {
            return self.say_to(service, &answer::error(Some(request.id), code::METHOD_NOT_FOUND, refusal, None));
        }
        let own = self.next_id();
        let quoted = format!("\"{own}\"");
        let token = request.params.meta.as_ref().and_then(|meta| meta.progress_token);
        let mut parts = vec![(request.id, quoted.as_str())];
        parts.extend(token.map(|token| (token, quoted.as_str())));
        let Some(line) = splice::replace_each(line, &parts) else { return };
        let asked = Asked {
            service: service.to_owned(),
            id: request.id.raw().into(),
            key: request.key.clone(),
            token: token.map(|token| token.raw().into()),
        };
        self.asked.insert(IdKey::Text(own.into()), asked);
        self.client.push(line.as_bytes());
    }

    /// The client has answered.
    pub(super) fn on_client_answer(&mut self, answer: &Answer<'_>, line: &str) {
        let Some(asked) = answer.key.as_ref().and_then(|key| self.asked.remove(key)) else { return };
        if let Some(line) = splice::replace(line, answer.id, &asked.id) {
            self.say_to(&asked.service, line.as_bytes());
        }
    }

    /// The client tells how far it is with what a service has asked.
    pub(super) fn on_client_progress(&mut self, notification: &Notification<'_>, line: &str) {
        let Some(field) = notification.params.progress_token else { return };
        let Some(asked) = IdKey::of(field).and_then(|key| self.asked.get(&key)) else { return };
        let Some(line) = asked.token.as_ref().and_then(|token| splice::replace(line, field, token)) else { return };
        let service = asked.service.clone();
        self.say_to(&service, line.as_bytes());
    }

    /// A service does not wait for an answer any more.
    pub(super) fn on_server_cancelled(&mut self, service: &str, notification: &Notification<'_>, line: &str) {
        let Some(field) = notification.params.request_id else { return };
        let Some(key) = IdKey::of(field) else { return };
        let found = self.asked.iter().find(|(_, asked)| asked.service == service && asked.key == key);
        let Some((IdKey::Text(own), _)) = found else { return };
        let own = own.to_string();
        self.asked.remove(&IdKey::Text(own.as_str().into()));
        if let Some(line) = splice::replace(line, field, &format!("\"{own}\"")) {
            self.client.push(line.as_bytes());
        }
    }

    /// A service will not take answers any more.
    pub(super) fn take_questions_back(&mut self, service: &str) {
        let Self { asked, client, .. } = self;
        asked.retain(|key, asked| {
            let stays = asked.service != service;
            if !stays {
                client.push(&answer::cancelled(key, "the service is gone"));
            }
            stays
        });
    }

    /// What the client tells goes to every service that has been greeted in its era.
    pub(super) fn tell_all(&mut self, line: &[u8]) {
        for branch in self.branches.values_mut().filter(|branch| branch.is_ready(Era::Legacy)) {
            branch.lines.push(line);
        }
    }

    /// `logging/setLevel`, for the services that have a log.
    pub(super) fn set_level(&mut self, request: &Request<'_>, level: Option<String>) {
        let Some(level) = level.filter(|level| severity(level).is_some()) else {
            let message = "\"params.level\" is none of the protocol's levels";
            return self.refuse_request(request, code::INVALID_PARAMS, message, "invalid_params");
        };
        self.level = Some(level);
        let services: Vec<String> = self.branches.keys().cloned().collect();
        services.iter().for_each(|service| self.pass_level_on(service));
        self.answer_at_once(request, "{}");
    }

    pub(super) fn pass_level_on(&mut self, service: &str) {
        let Some(level) = self.level.clone() else { return };
        let fits = |branch: &super::Branch| branch.is_ready(Era::Legacy) && !branch.lacks("logging");
        if !self.branches.get(service).is_some_and(fits) {
            return;
        }
        let id = self.next_id();
        self.own.insert(IdKey::Text(id.as_str().into()), super::Own::Said { service: service.to_owned() });
        let params = serde_json::json!({ "level": level }).to_string();
        self.say_to(service, &answer::request(&id, crate::mcp::protocol::SET_LEVEL, &params));
    }

    pub(super) fn say_to(&mut self, service: &str, line: &[u8]) {
        if let Some(branch) = self.branches.get_mut(service) {
            branch.lines.push(line);
        }
    }

    /// Says on the client's log that a service is missing from a list; `level`: what whoever asked for it wants to hear.
    pub(super) fn warn_of_missing(&mut self, level: Option<&str>, unavailable: &[serde_json::Value]) {
        let wants = |level: &str| severity(level).is_some_and(|level| Some(level) <= severity("warning"));
        if unavailable.is_empty() || !level.is_some_and(wants) {
            return;
        }
        let params = serde_json::json!({
            "level": "warning",
            "logger": "mcpeg",
            "data": { "message": "services are missing from a list", "unavailable": unavailable },
        });
        let line = format!(r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{params}}}"#);
        self.client.push(line.as_bytes());
    }
}

/// The levels of a log in their order.
fn severity(level: &str) -> Option<usize> {
    ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
        .iter()
        .position(|known| *known == level)
}

#[cfg(test)]
mod tests {
    use super::severity;

    #[test]
    fn levels_have_an_order() {
        assert!(severity("info") < severity("warning") && severity("loud").is_none());
    }
}
