//! What a legacy session has told its upstream, so that a new child or a new HTTP session can be told the same.
//!
//! Kept: the `initialize` that was answered, `notifications/initialized`, the last `logging/setLevel`, and what is subscribed to.
//! Invariant: a message is noted when it is passed to the upstream, not when it arrives; bounded by `MAX_SUBSCRIPTIONS`.

use std::collections::BTreeMap;

use super::outgoing::{Outgoing, Role};
use crate::mcp::message::IdKey;

#[derive(Debug, Default, Clone)]
pub struct Replay {
    offered: Option<Outgoing>,
    initialize: Option<Outgoing>,
    /// The version and the capabilities of the answer, as JSON.
    agreed: Option<Agreed>,
    initialized: Option<Outgoing>,
    level: Option<Outgoing>,
    subscriptions: BTreeMap<Box<str>, Outgoing>,
}

/// What an upstream answered to `initialize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    pub version: String,
    capabilities: serde_json::Value,
}

impl Agreed {
    /// Reads the result of `initialize`; `None` if it has no version.
    pub fn of(result: &str) -> Option<Self> {
        let mut result: serde_json::Value = serde_json::from_str(result).ok()?;
        let version = result.get("protocolVersion")?.as_str()?.to_owned();
        Some(Self { version, capabilities: result["capabilities"].take() })
    }
}

impl Replay {
    /// The message is on its way to the upstream.
    pub fn passed(&mut self, message: &Outgoing) {
        match &message.role {
            Role::Initialize => self.offered = Some(message.clone()),
            Role::Initialized => self.initialized = Some(message.clone()),
            Role::Level => self.level = Some(message.clone()),
            Role::Subscribe(uri) if self.subscriptions.len() < MAX_SUBSCRIPTIONS => {
                self.subscriptions.insert(uri.clone(), message.clone());
            }
            Role::Unsubscribe(uri) => {
                self.subscriptions.remove(uri);
            }
            Role::Subscribe(_) | Role::Plain | Role::Listen | Role::Aside => {}
        }
    }

    /// The answer to `key` has come; `result` if it was one.
    pub fn answered(&mut self, key: &IdKey, result: Option<&str>) -> Option<&Agreed> {
        let offered = self.offered.take_if(|offered| offered.key.as_ref() == Some(key))?;
        self.agreed = Agreed::of(result?);
        self.initialize = Some(offered);
        self.agreed.as_ref()
    }

    /// Whether `key` is an `initialize` that is not answered yet.
    pub fn awaits(&self, key: &IdKey) -> bool {
        self.offered.as_ref().is_some_and(|offered| offered.key.as_ref() == Some(key))
    }

    /// Whether an `initialize` is not answered yet.
    pub fn is_open(&self) -> bool {
        self.offered.is_some()
    }

    /// The `initialize` to say first to a new upstream.
    pub fn initialize(&self) -> Option<&Outgoing> {
        self.initialize.as_ref()
    }

    pub fn agreed(&self) -> Option<&Agreed> {
        self.agreed.as_ref()
    }

    /// What follows once the new upstream has answered `initialize`.
    pub fn rest(&self) -> Vec<Outgoing> {
        let rest = self.initialized.iter().chain(&self.level).chain(self.subscriptions.values());
        rest.cloned().collect()
    }
}

const MAX_SUBSCRIPTIONS: usize = 256;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mcp::message::{Message, parse};

    fn outgoing(line: &'static str) -> Outgoing {
        match parse(line.as_bytes()).unwrap() {
            Message::Request(request) => {
                Outgoing::request(&request, Bytes::from_static(line.as_bytes()), false, None, None)
            }
            Message::Notification(notification) => {
                Outgoing::notification(&notification, Bytes::from_static(line.as_bytes()), false)
            }
            Message::Answer(_) => panic!("an answer"),
        }
    }

    #[test]
    fn a_session_is_told_again_as_it_stands() {
        let mut replay = Replay::default();
        let initialize = outgoing(r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}"#);
        replay.passed(&initialize);
        assert!(replay.initialize().is_none(), "it is not answered yet");
        let agreed = replay.answered(&IdKey::Integer(0), Some(r#"{"protocolVersion":"2025-06-18","capabilities":{}}"#));
        assert_eq!(agreed.unwrap().version, "2025-06-18");
        for line in [
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":2,"method":"resources/subscribe","params":{"uri":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"resources/unsubscribe","params":{"uri":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"t"}}"#,
        ] {
            replay.passed(&outgoing(line));
        }
        assert_eq!(replay.initialize().unwrap().bytes, initialize.bytes);
        let roles: Vec<Role> = replay.rest().into_iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::Initialized, Role::Subscribe("b".into())]);
    }

    #[test]
    fn an_initialize_that_failed_is_not_told_again() {
        let mut replay = Replay::default();
        replay.passed(&outgoing(r#"{"jsonrpc":"2.0","id":0,"method":"initialize"}"#));
        assert!(replay.answered(&IdKey::Integer(0), None).is_none());
        assert!(replay.initialize().is_none());
    }
}
