//! One service as a part of one client's aggregate: a session of its own behind a pipe in memory, and the handshake with it.
//!
//! The session behind the pipe does what it does for a client on the service's own socket (the child, the HTTP session, crash,
//! rotation, time-out, audit), so a branch only has to greet: `server/discover` for a modern client, falling back to `initialize` on any
//! other answer or none, and `initialize` for a legacy one. Requests wait until the greeting is over.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::mcp::Identity;
use crate::mcp::answer;
use crate::mcp::lines::Lines;
use crate::mcp::message::{Field, IdKey};
use crate::mcp::protocol::{DISCOVER, Era, INITIALIZE, INITIALIZED, LEGACY, META_VERSION, MODERN};
use crate::mcp::service::Service;
use crate::mcp::splice;

pub struct Branch {
    pub service: Arc<Service>,
    pub lines: Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
    phase: Phase,
    waiting: VecDeque<(IdKey, Ask)>,
    capabilities: Value,
    /// It was asked `server/discover`, and did not answer as a modern server does.
    fell_back: bool,
}

/// What a service is asked.
pub enum Ask {
    /// A message as it is.
    Line(Vec<u8>),
    /// A list, from this cursor (JSON) on. Written when it is known which era the service speaks.
    Page { id: String, method: &'static str, cursor: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Fresh,
    /// With the id of the greeting.
    Discovering(IdKey, Instant),
    Initializing(IdKey),
    Ready(Era),
}

/// What became of a greeting.
pub enum Greeted {
    /// Nothing to do yet.
    Wait,
    /// It failed: these will not be sent.
    Failed(Vec<(IdKey, Ask)>),
}

impl Branch {
    pub fn new(service: Arc<Service>, lines: Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>) -> Self {
        Self {
            service,
            lines,
            phase: Phase::Fresh,
            waiting: VecDeque::new(),
            capabilities: Value::Null,
            fell_back: false,
        }
    }

    /// Sends a request, now or when the service has been greeted.
    pub fn submit(&mut self, key: IdKey, ask: Ask, client: Era, identity: &Identity, id: impl FnOnce() -> String) {
        match self.phase {
            Phase::Ready(era) => return self.lines.push(&ask.written(era, identity)),
            Phase::Fresh if client == Era::Modern && self.service.era() != Some(Era::Legacy) => {
                let id = id();
                let params = json!({ "_meta": modern_meta(identity) }).to_string();
                self.lines.push(&answer::request(&id, DISCOVER, &params));
                self.phase = Phase::Discovering(IdKey::Text(id.into()), Instant::now() + DISCOVER_PATIENCE);
            }
            Phase::Fresh => self.initialize(identity, id()),
            Phase::Discovering(..) | Phase::Initializing(_) => {}
        }
        self.waiting.push_back((key, ask));
    }

    /// Whether `key` is the id of the greeting that is under way.
    pub fn is_greeting(&self, key: &IdKey) -> bool {
        matches!(&self.phase, Phase::Discovering(id, _) | Phase::Initializing(id) if id == key)
    }

    /// The greeting is answered; `result` if it was one.
    pub fn greeted(&mut self, result: Option<&str>, identity: &Identity, id: impl FnOnce() -> String) -> Greeted {
        let found = result.and_then(|result| serde_json::from_str::<Value>(result).ok());
        let discovering = matches!(self.phase, Phase::Discovering(..));
        match found {
            Some(mut found) if !discovering || speaks_modern(&found) => {
                self.capabilities = found["capabilities"].take();
                let era = if discovering { Era::Modern } else { Era::Legacy };
                // A server that answers `initialize` may speak the modern era as well.
                if era == Era::Modern || self.fell_back {
                    self.service.remember_era(era);
                }
                if era == Era::Legacy {
                    self.lines.push(&answer::notification(INITIALIZED));
                }
                self.phase = Phase::Ready(era);
                self.waiting.drain(..).for_each(|(_, ask)| self.lines.push(&ask.written(era, identity)));
                Greeted::Wait
            }
            _ if discovering => {
                self.fell_back = true;
                self.initialize(identity, id());
                Greeted::Wait
            }
            _ => {
                self.phase = Phase::Fresh;
                Greeted::Failed(self.take_waiting())
            }
        }
    }

    /// When a server that does not answer `server/discover` is taken for a legacy one.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Discovering(_, deadline) => Some(deadline),
            _ => None,
        }
    }

    /// Takes a request back that has not been sent.
    pub fn take_back(&mut self, key: &IdKey) -> Option<Ask> {
        let at = self.waiting.iter().position(|(waiting, _)| waiting == key)?;
        self.waiting.remove(at).map(|(_, ask)| ask)
    }

    /// Takes back everything that has not been sent.
    pub fn take_waiting(&mut self) -> Vec<(IdKey, Ask)> {
        self.waiting.drain(..).collect()
    }

    /// What the service speaks, once it has been greeted.
    pub fn era(&self) -> Option<Era> {
        match self.phase {
            Phase::Ready(era) => Some(era),
            _ => None,
        }
    }

    /// Whether it said that it has a capability; unknown before the greeting.
    pub fn lacks(&self, capability: &str) -> bool {
        self.era().is_some() && self.capabilities.get(capability).is_none_or(Value::is_null)
    }

    fn initialize(&mut self, identity: &Identity, id: String) {
        let params = json!({
            "protocolVersion": LEGACY[0],
            "capabilities": {},
            "clientInfo": { "name": identity.name, "version": identity.version },
        });
        self.lines.push(&answer::request(&id, INITIALIZE, &params.to_string()));
        self.phase = Phase::Initializing(IdKey::Text(id.into()));
    }
}

impl Ask {
    fn written(self, era: Era, identity: &Identity) -> Vec<u8> {
        match self {
            Self::Line(line) if era == Era::Legacy => legacy(&line).unwrap_or(line),
            Self::Line(line) => line,
            Self::Page { id, method, cursor } => {
                let cursor = cursor.map(|cursor| format!("\"cursor\":{cursor}"));
                let meta = (era == Era::Modern).then(|| format!("\"_meta\":{}", modern_meta(identity)));
                let params: Vec<String> = cursor.into_iter().chain(meta).collect();
                answer::request(&id, method, &format!("{{{}}}", params.join(",")))
            }
        }
    }
}

/// A modern client's request for a legacy server: without what belongs to the modern era in `_meta`, which some servers refuse. `None`:
/// nothing does.
fn legacy(line: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(line, META_VERSION.as_bytes())?;
    let line = std::str::from_utf8(line).ok()?;
    let meta = serde_json::from_str::<WithMeta<'_>>(line).ok()?.params.meta;
    let mut members: serde_json::Map<String, Value> = serde_json::from_str(meta.get()).ok()?;
    members.retain(|key, _| !key.starts_with(PROTOCOL_PREFIX));
    splice::replace(line, Field(meta.get()), &Value::Object(members).to_string()).map(String::into_bytes)
}

#[derive(Deserialize)]
struct WithMeta<'a> {
    #[serde(borrow)]
    params: ParamsWithMeta<'a>,
}

#[derive(Deserialize)]
struct ParamsWithMeta<'a> {
    #[serde(borrow, rename = "_meta")]
    meta: &'a RawValue,
}

/// `params._meta` of a request of our own in the modern era.
fn modern_meta(identity: &Identity) -> Value {
    json!({
        META_VERSION: MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": { "name": identity.name, "version": identity.version },
    })
}

fn speaks_modern(discovered: &Value) -> bool {
    let versions = discovered["supportedVersions"].as_array();
    versions.is_none_or(|versions| versions.iter().any(|version| version == MODERN))
}

const PROTOCOL_PREFIX: &str = "io.modelcontextprotocol/";
const DISCOVER_PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legacy_server_sees_nothing_of_the_modern_era() {
        let line = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":7},"arguments":{ "n":1.0 }}}"#;
        assert_eq!(
            String::from_utf8(legacy(line.as_bytes()).unwrap()).unwrap(),
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","_meta":{"progressToken":7},"arguments":{ "n":1.0 }}}"#
        );
        assert_eq!(legacy(br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#), None);
    }
}
