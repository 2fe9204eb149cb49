//! What the aggregate says of itself: `initialize` and `server/discover`.
//!
//! It claims what at least one service has. A service that has been greeted once is known until its settings change; the others are greeted
//! now, and waited for as long as for a list; one that is still silent then may have anything, one that has failed has nothing. Tools are always
//! claimed, as is a log: a service that is missing is told there.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{Open, Router};
use crate::mcp::answer;
use crate::mcp::bridge::capabilities::{Client, Server, agreed};
use crate::mcp::call::{Call, Ending};
use crate::mcp::members::Members;
use crate::mcp::message::{Field, IdKey, Request};
use crate::mcp::protocol::{Era, META_SERVER, MODERN};
use crate::mcp::registry::Registry;
use crate::mcp::service::Service;

impl Router {
    /// `initialize`, or `server/discover`.
    pub(super) fn hello(&mut self, request: &Request<'_>, line: &str, era: Era, registry: &Registry) {
        self.introduce(line, era);
        let version = request.params.protocol_version.and_then(Field::text).map(|version| version.into_owned());
        if era == Era::Legacy {
            self.version = Some(agreed(version.as_deref()));
        }
        let unknown: Vec<Arc<Service>> =
            self.visible(registry).into_iter().filter(|service| service.introduction().is_none()).collect();
        let greeting = Open::Greeting {
            call: Call::begin(request, &self.name, self.version),
            era,
            version,
            waiting: unknown.iter().map(|service| service.name.to_string()).collect(),
            deadline: Instant::now() + registry.aggregate.list_timeout,
        };
        self.open.insert(request.key.clone(), greeting);
        for service in unknown {
            self.greet(&service, era);
        }
        self.finish_hello_if_known(&request.key, false);
    }

    /// Reads who the client is.
    pub(super) fn introduce(&mut self, line: &str, era: Era) {
        let Some(message) = Members::read(line) else { return };
        let params = message.object("params").unwrap_or_default();
        self.introduced = match era {
            Era::Legacy => Client::of_initialize(&params),
            Era::Modern => Client::of_meta(&params.object("_meta").unwrap_or_default()),
        };
    }

    /// A service has been greeted, or will not be.
    pub(super) fn met(&mut self, service: &str) {
        let mut waiting = Vec::new();
        for (key, open) in &mut self.open {
            if let Open::Greeting { waiting: services, .. } = open
                && services.remove(service)
            {
                waiting.push(key.clone());
            }
        }
        waiting.iter().for_each(|key| self.finish_hello_if_known(key, false));
    }

    /// `late`: with what is known now.
    pub(super) fn finish_hello_if_known(&mut self, key: &IdKey, late: bool) {
        if !matches!(self.open.get(key), Some(Open::Greeting { waiting, .. }) if late || waiting.is_empty()) {
            return;
        }
        let Some(Open::Greeting { call, era, version, waiting, .. }) = self.open.remove(key) else { return };
        let registry = self.registry.borrow().clone();
        let result = self.face(&registry, era, version.as_deref(), !waiting.is_empty());
        self.settle(&call, &Ending::Answered { tool_error: false }, answer::result(Field(&call.id), &result));
    }

    /// `unsure`: a service has not said yet what it has.
    fn face(&self, registry: &Registry, era: Era, version: Option<&str>, unsure: bool) -> String {
        let visible = self.visible(registry);
        let known: Vec<(&str, Arc<Server>)> =
            visible.iter().filter_map(|service| Some((&*service.name, service.introduction()?))).collect();
        let capabilities = merged(&known, registry.aggregate.search, unsure);
        let server = json!({ "name": self.shared.identity.name, "version": self.shared.identity.version });
        let mut face = match era {
            Era::Legacy => json!({
                "protocolVersion": agreed(version),
                "capabilities": capabilities,
                "serverInfo": server,
            }),
            Era::Modern => json!({
                "supportedVersions": [MODERN],
                "capabilities": capabilities,
                "resultType": "complete",
                "ttlMs": 0,
                "cacheScope": "private",
                "_meta": { META_SERVER: server },
            }),
        };
        if let Some(instructions) = instructions(&known, registry.aggregate.search) {
            face["instructions"] = json!(instructions);
        }
        face.to_string()
    }
}

/// What at least one service has. Lists change whenever services come and go, which mcpeg tells itself.
fn merged(known: &[(&str, Arc<Server>)], search: bool, unsure: bool) -> Value {
    let any = |capability: &str| unsure || known.iter().any(|(_, server)| server.has(capability));
    let mut merged = Map::new();
    merged.insert("tools".into(), json!({ "listChanged": !search }));
    merged.insert("logging".into(), json!({}));
    if any("prompts") {
        merged.insert("prompts".into(), json!({ "listChanged": true }));
    }
    if any("resources") {
        let mut resources = json!({ "listChanged": true });
        if unsure || known.iter().any(|(_, server)| server.says("resources", "subscribe")) {
            resources["subscribe"] = json!(true);
        }
        merged.insert("resources".into(), resources);
    }
    if any("completions") {
        merged.insert("completions".into(), json!({}));
    }
    let mut extensions = Map::new();
    for (_, server) in known {
        let its = server.capabilities.get("extensions").and_then(Value::as_object);
        // A task is asked for by an id that does not tell whose it is.
        let its = its.into_iter().flatten().filter(|(name, _)| !name.ends_with("/tasks"));
        for (name, value) in its {
            extensions.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if !extensions.is_empty() {
        merged.insert("extensions".into(), Value::Object(extensions));
    }
    Value::Object(merged)
}

/// What each service wants to be known, under its name.
fn instructions(known: &[(&str, Arc<Server>)], search: bool) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    if search {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        parts.push(format!("Find tools with find_tools and call them with call_tool. Services: {}.", names.join(", ")));
    }
    for (name, server) in known {
        let its = server.instructions.as_ref().and_then(|text| serde_json::from_str::<String>(text).ok());
        if let Some(its) = its.filter(|its| !its.trim().is_empty()) {
            let its: String = its.chars().take(MAX_INSTRUCTIONS).collect();
            parts.push(format!("{name}: {its}"));
        }
    }
    (!parts.is_empty()).then(|| parts.join("\n\n"))
}

/// Characters of one service's.
const MAX_INSTRUCTIONS: usize = 4000;

#[cfg(test)]
mod tests {
    use super::*;

    fn server(capabilities: Value) -> Arc<Server> {
        Arc::new(Server { capabilities, info: None, instructions: Some("\"use me\"".into()) })
    }

    #[test]
    fn nothing_is_claimed_that_no_service_has() {
        let tools = ("a", server(json!({ "tools": {}, "prompts": null })));
        let all = (
            "b",
            server(json!({ "prompts": {}, "resources": { "subscribe": true }, "completions": {},
            "extensions": { "x/ui": { "n": 1 }, "io.modelcontextprotocol/tasks": {} } })),
        );
        assert_eq!(
            merged(std::slice::from_ref(&tools), false, false),
            json!({ "tools": { "listChanged": true }, "logging": {} })
        );
        let unsure = merged(std::slice::from_ref(&tools), false, true);
        assert!(
            unsure["prompts"].is_object()
                && unsure["completions"].is_object()
                && unsure["resources"]["subscribe"] == true
        );
        assert_eq!(
            merged(&[tools.clone(), all], true, false),
            json!({ "tools": { "listChanged": false }, "logging": {}, "prompts": { "listChanged": true },
                "resources": { "listChanged": true, "subscribe": true }, "completions": {},
                "extensions": { "x/ui": { "n": 1 } } })
        );
        assert_eq!(instructions(&[tools], false).unwrap(), "a: use me");
        assert_eq!(instructions(&[], false), None);
    }
}
