//! The bridge between the eras: a client of one in front of an upstream of the other, message by message.
//!
//! A session asks its bridge about every message of either side. Where both speak the same era, which is what it finds out first
//! (`greeting`), it takes nothing, and everything passes byte for byte. Otherwise it takes every message and says in `Step`s what is to
//! be sent in its place: `to_modern` (a legacy client, a modern upstream), `to_legacy` (the other way round).
//!
//! It does no I/O, keeps no record and judges nothing: policy, audit, time-outs and the leak guard stand between it and the client.
//! Invariants: a request of the client that was taken is given one answer, unless it is withdrawn or lost; ids towards an upstream behind
//! the bridge are our own; what waits here is bounded in number, and in time by `patience`.

pub mod capabilities;
mod greeting;
mod inputs;
mod listen;
mod outbox;
mod text;
mod to_legacy;
mod to_modern;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use self::greeting::Greeting;
use self::outbox::Outbox;
pub use self::outbox::Step;
use self::to_legacy::ToLegacy;
use self::to_modern::ToModern;
use super::message::{Answer, IdKey, Notification, Request};
use super::protocol::{Era, INITIALIZE};
use super::service::Service;
use super::upstream::Failure;

pub struct Bridge {
    service: Arc<Service>,
    mode: Mode,
    out: Outbox,
    /// How long a client may take to answer what it is asked.
    patience: Duration,
}

enum Mode {
    /// Nothing has told yet what the client speaks.
    Open,
    /// Both speak this era.
    Same(Era),
    Greeting(Box<Greeting>),
    ToModern(Box<ToModern>),
    ToLegacy(Box<ToLegacy>),
}

impl Bridge {
    pub fn new(service: Arc<Service>, patience: Duration) -> Self {
        Self { service, mode: Mode::Open, out: Outbox::default(), patience }
    }

    /// What is to be done now, in this order.
    pub fn steps(&mut self) -> Vec<Step> {
        self.out.take()
    }

    /// A request of the client. `false`, as everywhere here: it is not taken, and goes as it came.
    pub fn request(&mut self, request: &Request<'_>, line: &Bytes) -> bool {
        let era = match (request.modern_version().is_some(), request.method == INITIALIZE) {
            (true, _) => Some(Era::Modern),
            (false, true) => Some(Era::Legacy),
            (false, false) => None,
        };
        match (&mut self.mode, era) {
            (Mode::Same(same), Some(era)) if *same == era => false,
            (Mode::Open | Mode::Same(_), None) => false,
            (Mode::Greeting(greeting), Some(Era::Modern) | None) => greeting.hold(request, line),
            (Mode::ToModern(to_modern), _) => to_modern.request(request, line, &mut self.out),
            (Mode::ToLegacy(to_legacy), Some(Era::Modern) | None) => to_legacy.request(request, line, &mut self.out),
            (Mode::Open | Mode::Same(_), Some(era)) => self.greet(era, request, line),
            // A client that has tried the modern era, and begins anew in the other one.
            (Mode::Greeting(_) | Mode::ToLegacy(_), Some(Era::Legacy)) => self.greet(Era::Legacy, request, line),
        }
    }

    /// A notification of the client, other than a cancellation.
    pub fn notification(&mut self, notification: &Notification<'_>, line: &Bytes) -> bool {
        match &mut self.mode {
            Mode::Open | Mode::Same(_) => false,
            Mode::Greeting(greeting) => greeting.hold_notification(line),
            Mode::ToModern(to_modern) => to_modern.notification(notification, &mut self.out),
            Mode::ToLegacy(_) => false,
        }
    }

    /// The client's answer to a request that it was given.
    pub fn client_answer(&mut self, answer: &Answer<'_>) -> bool {
        match &mut self.mode {
            Mode::ToModern(to_modern) => to_modern.client_answer(answer, &mut self.out),
            Mode::Open | Mode::Same(_) | Mode::Greeting(_) | Mode::ToLegacy(_) => false,
        }
    }

    /// An answer of the upstream.
    pub fn answer(&mut self, answer: &Answer<'_>, line: &Bytes) -> bool {
        match &mut self.mode {
            Mode::Open | Mode::Same(_) => false,
            Mode::Greeting(_) => self.greeted(answer, line),
            Mode::ToModern(to_modern) => to_modern.answer(answer, line, &mut self.out),
            Mode::ToLegacy(to_legacy) => to_legacy.answer(answer, line, &mut self.out),
        }
    }

    /// A request of the upstream.
    pub fn upstream_request(&mut self, request: &Request<'_>, line: &Bytes) -> bool {
        match &mut self.mode {
            Mode::ToLegacy(to_legacy) => to_legacy.upstream_request(request, line, &mut self.out),
            Mode::Open | Mode::Same(_) | Mode::Greeting(_) | Mode::ToModern(_) => false,
        }
    }

    /// A notification of the upstream.
    pub fn upstream_notification(&mut self, notification: &Notification<'_>, line: &Bytes) -> bool {
        match &mut self.mode {
            Mode::ToModern(to_modern) => to_modern.upstream_notification(notification, line, &mut self.out),
            Mode::ToLegacy(to_legacy) => to_legacy.upstream_notification(notification, line, &mut self.out),
            Mode::Open | Mode::Same(_) | Mode::Greeting(_) => false,
        }
    }

    /// A request, by its id towards the upstream, will not be answered. Gives the client's requests that fail with it.
    pub fn lost(&mut self, key: IdKey, failure: &Failure) -> Vec<IdKey> {
        match &mut self.mode {
            Mode::Open | Mode::Same(_) => vec![key],
            Mode::Greeting(_) => self.greeting_lost(key, failure),
            Mode::ToModern(to_modern) => to_modern.lost(&key).unwrap_or_else(|| vec![key]),
            Mode::ToLegacy(to_legacy) => to_legacy.lost(&key, failure),
        }
    }

    /// The client does not wait any more for the answer to a request.
    pub fn withdraw(&mut self, key: &IdKey) -> bool {
        match &mut self.mode {
            Mode::Open | Mode::Same(_) => false,
            Mode::Greeting(greeting) => {
                let (taken, over) = greeting.withdraw(key, &mut self.out);
                if over {
                    self.mode = Mode::Open;
                }
                taken
            }
            Mode::ToModern(to_modern) => to_modern.withdraw(key, &mut self.out),
            Mode::ToLegacy(to_legacy) => to_legacy.withdraw(key, &mut self.out),
        }
    }

    /// The id that a request of the client has towards the upstream.
    pub fn towards_upstream<'k>(&self, key: &'k IdKey) -> Cow<'k, IdKey> {
        let found = match &self.mode {
            Mode::Open | Mode::Same(_) | Mode::Greeting(_) => None,
            Mode::ToModern(to_modern) => to_modern.towards_upstream(key),
            Mode::ToLegacy(to_legacy) => to_legacy.towards_upstream(key),
        };
        found.map_or(Cow::Borrowed(key), Cow::Owned)
    }

    /// Whether what the client is asked comes from here, and outlives the upstream that wanted to know.
    pub fn asks_itself(&self) -> bool {
        matches!(self.mode, Mode::ToModern(_))
    }

    /// When `expire` has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.mode {
            Mode::Open | Mode::Same(_) => None,
            Mode::Greeting(greeting) => greeting.deadline(),
            Mode::ToModern(to_modern) => to_modern.deadline(),
            Mode::ToLegacy(to_legacy) => to_legacy.deadline(),
        }
    }

    pub fn expire(&mut self) {
        let now = Instant::now();
        match &mut self.mode {
            Mode::Open | Mode::Same(_) => {}
            Mode::Greeting(greeting) => {
                if greeting.deadline().is_some_and(|deadline| deadline <= now) {
                    self.greeting_overdue();
                }
            }
            Mode::ToModern(to_modern) => to_modern.expire(now, &mut self.out),
            Mode::ToLegacy(to_legacy) => to_legacy.expire(now, &mut self.out),
        }
    }
}

#[cfg(test)]
mod tests;
