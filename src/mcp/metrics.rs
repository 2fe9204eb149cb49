//! The MCP domain's metrics, declared once. Names and boundaries are those of OpenTelemetry's semantic conventions for MCP.
//!
//! Invariant: the variety of every label is bounded: methods by the protocol, services by the configuration, tools and prompts together by `MAX_TOOLS`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

use super::breaker::State;
use super::trace::EXECUTE_TOOL;

pub struct Metrics {
    server_operation: Histogram<f64>,
    client_operation: Histogram<f64>,
    session_duration: Histogram<f64>,
    sessions: UpDownCounter<i64>,
    restarts: Counter<u64>,
    bytes: Counter<u64>,
    leaks: Counter<u64>,
    rules: Counter<u64>,
    cache: Counter<u64>,
    breaker_changes: Counter<u64>,
    breaker_state: Gauge<u64>,
    tools: Mutex<HashSet<Arc<str>>>,
}

/// One request, as it is labelled.
pub struct Operation<'a> {
    pub method: &'static str,
    pub service: Arc<str>,
    pub tool: Option<&'a str>,
    pub prompt: Option<&'a str>,
    /// The value of `error.type`, of bounded variety.
    pub error: Option<&'a str>,
    /// The code of an error of the protocol, of bounded variety.
    pub status: Option<i64>,
}

/// Where bytes came from.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    FromClient,
    FromUpstream,
}

impl Metrics {
    pub fn new(meter: &Meter) -> Self {
        let operation = |name: &'static str, description: &'static str| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(description)
                .with_boundaries(BOUNDARIES.to_vec())
                .build()
        };
        Self {
            server_operation: operation(
                "mcp.server.operation.duration",
                "A client's request, from its arrival to its answer",
            ),
            client_operation: operation(
                "mcp.client.operation.duration",
                "A request to an upstream, from its sending to its answer",
            ),
            session_duration: operation(
                "mcp.server.session.duration",
                "A client's session, from its connection to its end",
            ),
            sessions: meter.i64_up_down_counter("mcpeg.mcp.sessions").with_unit("{session}").build(),
            restarts: meter.u64_counter("mcpeg.mcp.child.restarts").with_unit("{restart}").build(),
            bytes: meter.u64_counter("mcpeg.mcp.io").with_unit("By").build(),
            leaks: meter.u64_counter("mcpeg.mcp.leaks").with_unit("{match}").build(),
            rules: meter.u64_counter("mcpeg.mcp.rules").with_unit("{request}").build(),
            cache: meter.u64_counter("mcpeg.mcp.cache").with_unit("{request}").build(),
            breaker_changes: meter.u64_counter("mcpeg.mcp.breaker.changes").with_unit("{change}").build(),
            breaker_state: meter.u64_gauge("mcpeg.mcp.breaker.state").with_unit("{state}").build(),
            tools: Mutex::default(),
        }
    }

    /// A request of a client is answered. `upstream`: how long it was with the upstream, if it got there.
    pub fn answered(&self, operation: &Operation<'_>, total: Duration, upstream: Option<Duration>) {
        let mut labels = Vec::with_capacity(6);
        labels.push(KeyValue::new("mcp.method.name", operation.method));
        labels.push(KeyValue::new(SERVICE, operation.service.clone()));
        if let Some(tool) = operation.tool {
            labels.push(KeyValue::new("gen_ai.operation.name", EXECUTE_TOOL));
            labels.push(KeyValue::new("gen_ai.tool.name", self.bounded(tool)));
        }
        if let Some(prompt) = operation.prompt {
            labels.push(KeyValue::new("gen_ai.prompt.name", self.bounded(prompt)));
        }
        if let Some(status) = operation.status {
            labels.push(KeyValue::new("rpc.response.status_code", status.to_string()));
        }
        if let Some(error) = operation.error {
            labels.push(KeyValue::new("error.type", error.to_owned()));
        }
        self.server_operation.record(total.as_secs_f64(), &labels);
        if let Some(upstream) = upstream {
            self.client_operation.record(upstream.as_secs_f64(), &labels);
        }
    }

    pub fn session_opened(&self, service: &Arc<str>) {
        self.sessions.add(1, &[KeyValue::new(SERVICE, service.clone())]);
    }

    /// `version`: what the client spoke, if it said so.
    pub fn session_closed(&self, service: &Arc<str>, version: Option<&'static str>, lasted: Duration) {
        self.sessions.add(-1, &[KeyValue::new(SERVICE, service.clone())]);
        let mut labels = vec![KeyValue::new(SERVICE, service.clone()), KeyValue::new("network.transport", "unix")];
        labels.extend(version.map(|version| KeyValue::new("mcp.protocol.version", version)));
        self.session_duration.record(lasted.as_secs_f64(), &labels);
    }

    pub fn child_restarted(&self, service: &Arc<str>, reason: &'static str) {
        self.restarts.add(1, &[KeyValue::new(SERVICE, service.clone()), KeyValue::new("mcpeg.reason", reason)]);
    }

    /// A secret was found in what goes to a client. Items are as many as are configured.
    pub fn leaked(&self, service: &Arc<str>, item: &Arc<str>, action: &'static str, count: u64) {
        let labels = [
            KeyValue::new(SERVICE, service.clone()),
            KeyValue::new("mcpeg.secret.item", item.clone()),
            KeyValue::new("mcpeg.leak.action", action),
        ];
        self.leaks.add(count, &labels);
    }

    /// A rule of the service file has refused, would have refused, or has cut. Rules are as many as are configured.
    pub fn ruled(&self, service: &Arc<str>, decision: &'static str, rule: &str) {
        let labels = [
            KeyValue::new(SERVICE, service.clone()),
            KeyValue::new("mcpeg.decision", decision),
            KeyValue::new("mcpeg.rule", rule.to_owned()),
        ];
        self.rules.add(1, &labels);
    }

    /// A request that may be answered from the cache was (`hit`), or not (`miss`).
    pub fn looked(&self, service: &Arc<str>, method: &'static str, found: &'static str) {
        let labels = [
            KeyValue::new(SERVICE, service.clone()),
            KeyValue::new("mcp.method.name", method),
            KeyValue::new("mcpeg.cache", found),
        ];
        self.cache.add(1, &labels);
    }

    pub fn breaker_changed(&self, service: &Arc<str>, state: State) {
        let service = KeyValue::new(SERVICE, service.clone());
        self.breaker_state.record(state as u64, std::slice::from_ref(&service));
        self.breaker_changes.add(1, &[service, KeyValue::new("mcpeg.breaker.state", state.as_str())]);
    }

    pub fn bytes(&self, service: &Arc<str>, direction: Direction, count: usize) {
        let direction = match direction {
            Direction::FromClient => "client",
            Direction::FromUpstream => "upstream",
        };
        let labels = [KeyValue::new(SERVICE, service.clone()), KeyValue::new("mcpeg.io.source", direction)];
        self.bytes.add(count as u64, &labels);
    }

    /// The first `MAX_TOOLS` names are labels; later ones share `other`.
    fn bounded(&self, tool: &str) -> Arc<str> {
        let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tools.get(tool) {
            return known.clone();
        }
        if tools.len() >= MAX_TOOLS || tool.len() > MAX_TOOL_BYTES {
            return "other".into();
        }
        let name: Arc<str> = tool.into();
        tools.insert(name.clone());
        name
    }
}

const SERVICE: &str = "mcpeg.service";
const MAX_TOOLS: usize = 200;
const MAX_TOOL_BYTES: usize = 128;
const BOUNDARIES: [f64; 14] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variety_of_tool_names_is_bounded() {
        let metrics = Metrics::new(&opentelemetry::global::meter("test"));
        for n in 0..MAX_TOOLS {
            assert_eq!(&*metrics.bounded(&format!("tool{n}")), format!("tool{n}"));
        }
        assert_eq!(&*metrics.bounded("one too many"), "other");
        assert_eq!(&*metrics.bounded("tool7"), "tool7");
    }
}
