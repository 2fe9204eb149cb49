//! Subscriptions of a modern client (`subscriptions/listen`), each made of one to every service that may have something to tell.
//!
//! Invariants: a client's subscription is acknowledged once, when every service has said what it will tell or has had its time; what is told
//! on it carries its id, and addresses as the client has written them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::branch::{Ask, meta};
use super::names::{address, split_address};
use super::{Open, Own, Router};
use crate::mcp::answer;
use crate::mcp::call::{Call, Ending};
use crate::mcp::members::Members;
use crate::mcp::message::{Field, IdKey, Notification, Request};
use crate::mcp::protocol::{Era, LISTEN, META_SUBSCRIPTION, code};
use crate::mcp::registry::Registry;
use crate::mcp::service::Service;
use crate::mcp::splice;

pub struct Listening {
    pub call: Call,
    lists: Vec<&'static str>,
    /// By service and address there: the address as the client has written it.
    uris: BTreeMap<(String, String), String>,
    /// Those that a service has agreed to.
    agreed: BTreeSet<String>,
    /// Our own requests, by service.
    own: BTreeMap<String, IdKey>,
    /// Who has not said yet what it will tell.
    unsure: BTreeSet<String>,
    /// When it is acknowledged at the latest; `None` once it is.
    until: Option<Instant>,
}

impl Listening {
    pub fn deadline(&self) -> Option<Instant> {
        self.until
    }
}

impl Router {
    pub(super) fn listen(&mut self, request: &Request<'_>, line: &str, registry: &Registry) {
        let filter = Members::read(line)
            .and_then(|message| Some(message.object("params")?.object("notifications")?.into_owned()));
        let Some(filter) = filter else {
            let message = "\"params.notifications\" is missing";
            return self.refuse_request(request, code::INVALID_PARAMS, message, "invalid_params");
        };
        let uris: Vec<String> =
            filter.get("resourceSubscriptions").and_then(|uris| serde_json::from_str(uris).ok()).unwrap_or_default();
        let mut known = BTreeMap::new();
        for uri in uris.into_iter().take(MAX_RESOURCES) {
            if let Some((service, _, there)) = split_address(&uri, &registry.services) {
                known.insert((service.to_owned(), there.to_owned()), uri);
            } else if let Some(service) = self.addresses.get(&uri) {
                known.insert((service.clone(), uri.clone()), uri);
            }
        }
        let listening = Listening {
            call: Call::begin(request, &self.name, self.version),
            lists: LISTS.into_iter().filter(|list| filter.is_true(&format!("{list}ListChanged"))).collect(),
            uris: known,
            agreed: BTreeSet::new(),
            own: BTreeMap::new(),
            unsure: BTreeSet::new(),
            until: Some(Instant::now() + registry.aggregate.list_timeout),
        };
        self.open.insert(request.key.clone(), Open::Listening(Box::new(listening)));
        for service in self.visible(registry) {
            self.listen_to(&request.key, &service);
        }
        self.acknowledge_if_sure(&request.key, false);
    }

    /// Subscribes to what one service has to tell for a subscription of the client.
    fn listen_to(&mut self, open: &IdKey, service: &Arc<Service>) {
        let Some(Open::Listening(listening)) = self.open.get(open) else { return };
        if listening.own.contains_key(&*service.name) {
            return;
        }
        let mut filter = Map::new();
        filter.extend(listening.lists.iter().map(|list| (format!("{list}ListChanged"), json!(true))));
        let its = listening.uris.keys().filter(|(name, _)| **name == *service.name).map(|(_, uri)| uri.clone());
        let its: Vec<String> = its.collect();
        if !its.is_empty() {
            filter.insert("resourceSubscriptions".into(), json!(its));
        }
        if filter.is_empty() {
            return;
        }
        let id = self.next_id();
        let key = IdKey::Text(id.as_str().into());
        let params = format!(r#"{{"notifications":{},"_meta":{}}}"#, Value::Object(filter), meta(&self.introduced));
        let line = answer::request(&id, LISTEN, &params);
        if let Some(Open::Listening(listening)) = self.open.get_mut(open) {
            listening.own.insert(service.name.to_string(), key.clone());
            listening.unsure.insert(service.name.to_string());
        }
        self.own.insert(key.clone(), Own::Listen { open: open.clone(), service: service.name.to_string() });
        self.submit(key, Ask::Line(line), service, Era::Modern);
    }

    /// Services have come, which may have something to tell.
    pub(super) fn listen_to_new(&mut self, registry: &Registry) {
        let listening = self.open.iter().filter(|(_, open)| matches!(open, Open::Listening(_)));
        for key in listening.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.visible(registry).iter().for_each(|service| self.listen_to(&key, service));
        }
    }

    /// A service will not tell, or not any more.
    pub(super) fn listen_ended(&mut self, open: &IdKey, service: &str) {
        if let Some(Open::Listening(listening)) = self.open.get_mut(open) {
            listening.own.remove(service);
            listening.unsure.remove(service);
        }
        self.acknowledge_if_sure(open, false);
    }

    /// `late`: with what is known now.
    pub(super) fn acknowledge_if_sure(&mut self, key: &IdKey, late: bool) {
        let Some(Open::Listening(listening)) = self.open.get_mut(key) else { return };
        if listening.until.is_none() || !(late || listening.unsure.is_empty()) {
            return;
        }
        listening.until = None;
        let mut honoured = Map::new();
        // That services come and go, which changes every list, is told by the aggregate itself.
        honoured.extend(listening.lists.iter().map(|list| (format!("{list}ListChanged"), json!(true))));
        if !listening.agreed.is_empty() {
            honoured.insert("resourceSubscriptions".into(), json!(listening.agreed));
        }
        let (id, honoured) = (&listening.call.id, Value::Object(honoured));
        let line = format!(
            r#"{{"jsonrpc":"2.0","method":"{ACKNOWLEDGED}","params":{{"_meta":{{"{META_SUBSCRIPTION}":{id}}},"notifications":{honoured}}}}}"#
        );
        self.client.push(line.as_bytes());
    }

    /// A notification of a service on one of our subscriptions. `false`: it is on none.
    pub(super) fn on_told(&mut self, service: &str, notification: &Notification<'_>, line: &str) -> bool {
        let Some(mark) = notification.params.meta.as_ref().and_then(|meta| meta.subscription) else { return false };
        let Some(Own::Listen { open, .. }) = IdKey::of(mark).and_then(|key| self.own.get(&key)) else { return false };
        let open = open.clone();
        let Some(Open::Listening(listening)) = self.open.get_mut(&open) else { return true };
        if notification.method == ACKNOWLEDGED {
            let told = Members::read(line)
                .and_then(|message| message.object("params")?.object("notifications").map(Members::into_owned));
            let uris =
                told.and_then(|told| serde_json::from_str::<Vec<String>>(told.get("resourceSubscriptions")?).ok());
            for uri in uris.unwrap_or_default() {
                listening.agreed.extend(listening.uris.get(&(service.to_owned(), uri)).cloned());
            }
            listening.unsure.remove(service);
            self.acknowledge_if_sure(&open, false);
            return true;
        }
        let own_address = notification.params.uri.and_then(|field| {
            let there = field.text()?.into_owned();
            let written = listening.uris.get(&(service.to_owned(), there.clone())).cloned();
            Some((field, json!(written.unwrap_or_else(|| address(service, &there))).to_string()))
        });
        let mut parts = vec![(mark, &*listening.call.id)];
        parts.extend(own_address.as_ref().map(|(field, address)| (*field, address.as_str())));
        if let Some(line) = splice::replace_each(line, &parts) {
            self.client.push(line.as_bytes());
        }
        if notification.method.ends_with("/list_changed") {
            self.catalogue = None;
        }
        true
    }

    /// The lists are not the same any more: tells a legacy client, and on every subscription to them.
    pub(super) fn tell_changed(&mut self, lists: &[&str]) {
        self.catalogue = None;
        let search = self.registry.borrow().aggregate.search;
        let Self { open, client, era, .. } = self;
        // The two tools of a searched catalogue stay the same.
        for list in lists.iter().filter(|list| !(search && **list == "tools")) {
            let method = format!("notifications/{list}/list_changed");
            if *era == Some(Era::Legacy) {
                client.push(&answer::notification(&method));
            }
            for listening in open.values() {
                let Open::Listening(listening) = listening else { continue };
                if listening.lists.contains(list) {
                    let id = &listening.call.id;
                    let line = format!(
                        r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"_meta":{{"{META_SUBSCRIPTION}":{id}}}}}}}"#
                    );
                    client.push(line.as_bytes());
                }
            }
        }
    }

    /// The client does not want to be told any more.
    pub(super) fn stop_listening(&mut self, listening: Listening) {
        for (service, key) in &listening.own {
            self.own.remove(key);
            let Some(branch) = self.branches.get_mut(service) else { continue };
            if branch.take_back(key).is_none() {
                branch.lines.push(&answer::cancelled(key, "the client has cancelled its subscription"));
            }
        }
        self.record(&listening.call, &Ending::Cancelled);
    }

    /// Nothing will be told any more.
    pub(super) fn end_listening(&mut self, listening: Listening) {
        let id = &listening.call.id;
        let result = format!(r#"{{"resultType":"complete","_meta":{{"{META_SUBSCRIPTION}":{id}}}}}"#);
        self.settle(&listening.call, &Ending::Answered { tool_error: false }, answer::result(Field(id), &result));
    }
}

const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
const LISTS: [&str; 3] = ["tools", "prompts", "resources"];
const MAX_RESOURCES: usize = 256;
