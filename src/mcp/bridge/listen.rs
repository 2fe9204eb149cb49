//! A modern client's subscriptions in front of a legacy server, which tells of changed lists without being asked, and of a resource to whoever
//! has subscribed to it.
//!
//! Invariant: the server is subscribed to a resource once, however many subscriptions name it, and no more when none does.

use std::collections::{BTreeSet, HashMap};

use serde_json::json;

use super::capabilities::Server;
use super::outbox::Outbox;
use super::text::on_subscription;
use crate::mcp::answer;
use crate::mcp::members::Members;
use crate::mcp::message::{IdKey, Request};
use crate::mcp::protocol::{META_SUBSCRIPTION, SUBSCRIBE, UNSUBSCRIBE, code};

#[derive(Debug, Default)]
pub struct Subscriptions {
    open: Vec<Subscription>,
    /// Our own requests, and the resource that each is about.
    asked: HashMap<IdKey, String>,
}

#[derive(Debug)]
struct Subscription {
    key: IdKey,
    /// As the client wrote it.
    id: Box<str>,
    /// `tools`, `prompts`, `resources`.
    lists: Vec<&'static str>,
    uris: BTreeSet<String>,
    /// Of these the server has not said yet whether it will tell.
    unsure: BTreeSet<String>,
    acknowledged: bool,
}

impl Subscriptions {
    pub fn open(&mut self, request: &Request<'_>, params: &Members<'_>, server: &Server, out: &mut Outbox) {
        let Some(filter) = params.object("notifications") else {
            let message = "\"params.notifications\" is missing";
            return out.give(answer::error(Some(request.id), code::INVALID_PARAMS, message, None));
        };
        if self.open.len() >= MAX_SUBSCRIPTIONS {
            let message = format!("{MAX_SUBSCRIPTIONS} subscriptions are open, which is the limit");
            return out.give(answer::error(Some(request.id), code::TOO_MANY, &message, None));
        }
        let wanted = |list: &&str| filter.is_true(&format!("{list}ListChanged")) && server.says(list, "listChanged");
        let uris: Vec<String> =
            filter.get("resourceSubscriptions").and_then(|uris| serde_json::from_str(uris).ok()).unwrap_or_default();
        let uris: BTreeSet<String> =
            uris.into_iter().take(MAX_RESOURCES).filter(|_| server.says("resources", "subscribe")).collect();
        for uri in &uris {
            if !self.open.iter().any(|open| open.uris.contains(uri)) {
                self.ask(SUBSCRIBE, uri, out);
            }
        }
        let unsure = uris.iter().filter(|uri| self.asked.values().any(|asked| asked == *uri)).cloned().collect();
        self.open.push(Subscription {
            key: request.key.clone(),
            id: request.id.raw().into(),
            lists: LISTS.into_iter().filter(wanted).collect(),
            uris,
            unsure,
            acknowledged: false,
        });
        self.acknowledge(out);
    }

    /// Whether there was such a subscription; it is over.
    pub fn close(&mut self, key: &IdKey, out: &mut Outbox) -> bool {
        let Some(at) = self.open.iter().position(|open| open.key == *key) else { return false };
        let closed = self.open.remove(at);
        for uri in &closed.uris {
            if !self.open.iter().any(|open| open.uris.contains(uri)) {
                self.ask(UNSUBSCRIBE, uri, out);
            }
        }
        true
    }

    fn ask(&mut self, method: &str, uri: &str, out: &mut Outbox) {
        let (id, key) = out.next_id();
        out.send(answer::request(&id, method, &json!({ "uri": uri }).to_string()));
        if method == SUBSCRIBE {
            self.asked.insert(key, uri.to_owned());
        }
    }

    /// The server has answered one of our requests, or never will. `false`: it is none of ours.
    pub fn answered(&mut self, key: &IdKey, good: bool, out: &mut Outbox) -> bool {
        let Some(uri) = self.asked.remove(key) else { return false };
        for open in &mut self.open {
            open.unsure.remove(&uri);
            if !good {
                open.uris.remove(&uri);
            }
        }
        self.acknowledge(out);
        true
    }

    /// Says to whom it is due what their subscriptions will bring.
    fn acknowledge(&mut self, out: &mut Outbox) {
        for open in self.open.iter_mut().filter(|open| !open.acknowledged && open.unsure.is_empty()) {
            open.acknowledged = true;
            let mut honoured = serde_json::Map::new();
            honoured.extend(open.lists.iter().map(|list| (format!("{list}ListChanged"), json!(true))));
            if !open.uris.is_empty() {
                honoured.insert("resourceSubscriptions".into(), json!(open.uris));
            }
            out.give(format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"_meta":{{"{META_SUBSCRIPTION}":{}}},"notifications":{}}}}}"#,
                open.id,
                serde_json::Value::Object(honoured)
            ));
        }
    }

    /// A list has changed, or a resource.
    pub fn tell(&self, list: Option<&str>, uri: Option<&str>, line: &[u8], out: &mut Outbox) {
        for open in self.open.iter().filter(|open| open.acknowledged) {
            let wants_list = list.is_some_and(|list| open.lists.contains(&list));
            if wants_list || uri.is_some_and(|uri| open.uris.contains(uri)) {
                on_subscription(line, &open.id).into_iter().for_each(|line| out.give(line));
            }
        }
    }
}

/// The list that a notification is about.
pub fn changed_list(method: &str) -> Option<&'static str> {
    let list = method.strip_prefix("notifications/")?.strip_suffix("/list_changed")?;
    LISTS.into_iter().find(|known| *known == list)
}

pub const LISTS: [&str; 3] = ["tools", "prompts", "resources"];
pub const UPDATED: &str = "notifications/resources/updated";
const MAX_SUBSCRIPTIONS: usize = 64;
const MAX_RESOURCES: usize = 256;
