//! One service as a part of one client's aggregate: a session of its own behind a pipe in memory, and the handshake with it.
//!
//! The session behind the pipe does what it does for a client on the service's own socket (the child, the HTTP session, crash,
//! rotation, time-out, audit, and the bridge between the eras), so a branch speaks the client's era, whatever the service speaks. It only
//! has to greet: `initialize` in the legacy era, `server/discover` in the modern one, to learn what the service has. Requests wait until
//! the greeting is over.

use std::collections::VecDeque;

use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

use crate::mcp::Identity;
use crate::mcp::answer;
use crate::mcp::bridge::capabilities::{Client, Server};
use crate::mcp::lines::Lines;
use crate::mcp::members::Members;
use crate::mcp::message::IdKey;
use crate::mcp::protocol::{DISCOVER, Era, INITIALIZE, INITIALIZED};

pub struct Branch {
    pub lines: Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
    phase: Phase,
    waiting: VecDeque<(IdKey, Ask)>,
    server: Server,
}

/// What has become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    Sent,
    Waits,
    /// It waits for a greeting, which has to begin.
    Ungreeted,
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
        Self { lines, phase: Phase::Fresh, waiting: VecDeque::new(), server: Server::default() }
    }

    /// Sends a request, now or when the service has been greeted. Gives it back, if a greeting has to begin first: `greet`.
    pub fn submit(&mut self, key: IdKey, ask: Ask, era: Era, client: &Client) -> Submitted {
        if self.phase == Phase::Ready(era) {
            self.lines.push(&ask.written(era, client));
            return Submitted::Sent;
        }
        self.waiting.push_back((key, ask));
        if matches!(self.phase, Phase::Greeting(..)) { Submitted::Waits } else { Submitted::Ungreeted }
    }

    /// Neither has it been greeted in this era, nor is a greeting under way.
    pub fn wants_greeting(&self, era: Era) -> bool {
        !matches!(self.phase, Phase::Greeting(..)) && self.phase != Phase::Ready(era)
    }

    pub fn is_ready(&self, era: Era) -> bool {
        self.phase == Phase::Ready(era)
    }

    /// Whether `key` is the id of the greeting that is under way.
    pub fn is_greeting(&self, key: &IdKey) -> bool {
        matches!(&self.phase, Phase::Greeting(_, id) if id == key)
    }

    /// The greeting is answered; `result` if it was one. Gives what will not be sent, because it failed.
    pub fn greeted(&mut self, result: Option<&str>, client: &Client) -> Result<Server, Vec<(IdKey, Ask)>> {
        let Phase::Greeting(era, _) = self.phase else { return Err(Vec::new()) };
        let found = match era {
            Era::Legacy => result.and_then(Server::of_initialize),
            Era::Modern => result.and_then(Server::of_discover),
        };
        let Some(found) = found else {
            self.phase = Phase::Fresh;
            return Err(self.take_waiting());
        };
        self.server = found.clone();
        if era == Era::Legacy {
            self.lines.push(&answer::notification(INITIALIZED));
        }
        self.phase = Phase::Ready(era);
        self.waiting.drain(..).for_each(|(_, ask)| self.lines.push(&ask.written(era, client)));
        Ok(found)
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
        matches!(self.phase, Phase::Ready(_)) && !self.server.has(capability)
    }

    /// Begins the greeting, in the client's name.
    pub fn greet(&mut self, era: Era, client: &Client, identity: &Identity, id: String) {
        let line = match era {
            Era::Legacy => answer::request(&id, INITIALIZE, &client.initialize(&identity.name, &identity.version)),
            Era::Modern => answer::request(&id, DISCOVER, &format!("{{\"_meta\":{}}}", meta(client))),
        };
        self.lines.push(&line);
        self.phase = Phase::Greeting(era, IdKey::Text(id.into()));
    }
}

impl Ask {
    fn written(self, era: Era, client: &Client) -> Vec<u8> {
        match self {
            Self::Line(line) => line,
            Self::Page { id, method, cursor } => {
                let cursor = cursor.map(|cursor| format!("\"cursor\":{cursor}"));
                let meta = (era == Era::Modern).then(|| format!("\"_meta\":{}", meta(client)));
                let params: Vec<String> = cursor.into_iter().chain(meta).collect();
                answer::request(&id, method, &format!("{{{}}}", params.join(",")))
            }
        }
    }
}

/// `params._meta` of a request of our own in the modern era.
pub fn meta(client: &Client) -> String {
    let mut meta = Members::default();
    client.say_in(&mut meta, None);
    meta.write()
}
