//! One service as a part of one client's aggregate: a session of its own behind a pipe in memory, and the handshake with it.
//!
//! The session behind the pipe does what it does for a client on the service's own socket (the child, the HTTP session, crash,
//! rotation, time-out, audit, and the bridge between the eras), so a branch speaks the client's era, whatever the service speaks. It only
//! has to greet: `initialize` in the legacy era, `server/discover` in the modern one, to learn what the service has. Requests wait until
//! the greeting is over.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use crate::mcp::Identity;
use crate::mcp::answer;
use crate::mcp::lines::Lines;
use crate::mcp::message::IdKey;
use crate::mcp::protocol::{DISCOVER, Era, INITIALIZE, INITIALIZED, LEGACY, META_VERSION, MODERN};

pub struct Branch {
    pub lines: Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
    phase: Phase,
    waiting: VecDeque<(IdKey, Ask)>,
    capabilities: Value,
}

/// What a service is asked.
pub enum Ask {
    /// A message as it is.
    Line(Vec<u8>),
    /// A list, from this cursor (JSON) on. Written in the era of the greeting.
    Page { id: String, method: &'static str, cursor: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Fresh,
    /// With the id of the greeting.
    Greeting(Era, IdKey),
    Ready(Era),
}

impl Branch {
    pub fn new(lines: Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>) -> Self {
        Self { lines, phase: Phase::Fresh, waiting: VecDeque::new(), capabilities: Value::Null }
    }

    /// Sends a request, now or when the service has been greeted.
    pub fn submit(&mut self, key: IdKey, ask: Ask, client: Era, identity: &Identity, id: impl FnOnce() -> String) {
        match self.phase {
            Phase::Ready(era) if era == client => return self.lines.push(&ask.written(era, identity)),
            Phase::Fresh | Phase::Ready(_) => self.greet(client, identity, id()),
            Phase::Greeting(..) => {}
        }
        self.waiting.push_back((key, ask));
    }

    /// Whether `key` is the id of the greeting that is under way.
    pub fn is_greeting(&self, key: &IdKey) -> bool {
        matches!(&self.phase, Phase::Greeting(_, id) if id == key)
    }

    /// The greeting is answered; `result` if it was one. Gives what will not be sent, because it failed.
    pub fn greeted(&mut self, result: Option<&str>, identity: &Identity) -> Vec<(IdKey, Ask)> {
        let Phase::Greeting(era, _) = self.phase else { return Vec::new() };
        let Some(mut found) = result.and_then(|result| serde_json::from_str::<Value>(result).ok()) else {
            self.phase = Phase::Fresh;
            return self.take_waiting();
        };
        self.capabilities = found["capabilities"].take();
        if era == Era::Legacy {
            self.lines.push(&answer::notification(INITIALIZED));
        }
        self.phase = Phase::Ready(era);
        self.waiting.drain(..).for_each(|(_, ask)| self.lines.push(&ask.written(era, identity)));
        Vec::new()
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

    /// Whether it said that it has a capability; unknown before the greeting.
    pub fn lacks(&self, capability: &str) -> bool {
        matches!(self.phase, Phase::Ready(_)) && self.capabilities.get(capability).is_none_or(Value::is_null)
    }

    fn greet(&mut self, era: Era, identity: &Identity, id: String) {
        let line = match era {
            Era::Legacy => {
                let params = json!({
                    "protocolVersion": LEGACY[0],
                    "capabilities": {},
                    "clientInfo": { "name": identity.name, "version": identity.version },
                });
                answer::request(&id, INITIALIZE, &params.to_string())
            }
            Era::Modern => answer::request(&id, DISCOVER, &json!({ "_meta": modern_meta(identity) }).to_string()),
        };
        self.lines.push(&line);
        self.phase = Phase::Greeting(era, IdKey::Text(id.into()));
    }
}

impl Ask {
    fn written(self, era: Era, identity: &Identity) -> Vec<u8> {
        match self {
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

/// `params._meta` of a request of our own in the modern era.
fn modern_meta(identity: &Identity) -> Value {
    json!({
        META_VERSION: MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": { "name": identity.name, "version": identity.version },
    })
}
