//! Services that were left out of a list because they were slow or failed: they are asked again, and the client is told when they answer.
//!
//! A legacy client is told on the connection, a modern one on its subscriptions. Bounds: one question for each
//! service at a time, after `FIRST_WAIT`, then at growing distances up to `LONGEST_WAIT` beyond the service's own time-out.

use std::time::Duration;

use tokio::time::Instant;

use super::branch::Ask;
use super::lists::ListKind;
use super::{Own, Router};
use crate::mcp::message::{AnswerBody, IdKey};
use crate::mcp::protocol::{Era, code};

pub struct Absent {
    /// The lists without it, of which the client has seen at least one.
    lists: Vec<ListKind>,
    wait: Duration,
    pub again: Instant,
}

impl Router {
    pub(super) fn left_out(&mut self, service: &str, list: ListKind) {
        let absent = self.absent.entry(service.to_owned()).or_insert_with(|| Absent {
            lists: Vec::new(),
            wait: FIRST_WAIT,
            again: Instant::now() + FIRST_WAIT,
        });
        if !absent.lists.contains(&list) {
            absent.lists.push(list);
        }
    }

    /// The client has a list with the service in it.
    pub(super) fn listed(&mut self, service: &str, list: ListKind) {
        if let Some(absent) = self.absent.get_mut(service) {
            absent.lists.retain(|without| *without != list);
            if absent.lists.is_empty() {
                self.absent.remove(service);
            }
        }
    }

    /// Asks those again whose time has come.
    pub(super) fn ask_absent(&mut self) {
        let now = Instant::now();
        let registry = self.registry.borrow().clone();
        self.absent.retain(|service, _| registry.services.contains_key(service));
        let mut due = Vec::new();
        for (name, absent) in &mut self.absent {
            let (Some(service), Some(list)) = (registry.services.get(name), absent.lists.first()) else { continue };
            if absent.again <= now {
                absent.wait = (absent.wait * 2).min(LONGEST_WAIT);
                absent.again = now + service.settings().timeout + absent.wait;
                due.push((service, *list));
            }
        }
        let era = self.era.unwrap_or(Era::Legacy);
        for (service, list) in due {
            let id = self.next_id();
            let key = IdKey::Text(id.as_str().into());
            self.own.insert(key.clone(), Own::Again { service: service.name.to_string() });
            self.submit(key, Ask::Page { id, method: list.method(), cursor: None }, service, era);
        }
    }

    /// What the service has answered when it was asked again.
    pub(super) fn on_again(&mut self, service: &str, body: &AnswerBody<'_>) {
        let has_none = |code: Option<i64>| code == Some(i64::from(code::METHOD_NOT_FOUND));
        if matches!(body, AnswerBody::Error { code, .. } if !has_none(*code)) {
            return;
        }
        let Some(absent) = self.absent.remove(service) else { return };
        tracing::info!(service, "a service that was left out of lists answers");
        let mut changed: Vec<&str> = absent.lists.iter().map(|list| list.capability()).collect();
        changed.dedup();
        self.tell_changed(&changed);
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
