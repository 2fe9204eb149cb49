//! What a session sends its messages to: a child of its own (`stdio`), an HTTP session of its own (`http`), or a service of this process
//! (`local`).
//!
//! All kinds take `Outgoing` messages in order, hold them while they are not ready, and give lines back. An upstream knows the ids
//! that it has not answered yet and hands its `Inheritance` over to a successor, so that a session survives a crash, a rotation and a
//! change of settings. It must not audit, and never sees the client.

pub mod backoff;
pub mod client;
pub mod exchange;
pub mod headers;
pub mod http;
pub mod link;
pub mod local;
pub mod older;
pub mod outgoing;
pub mod process;
pub mod rehearsal;
pub mod replay;
pub mod sse;
pub mod stdio;
pub mod unlisted;

use std::sync::Arc;

use bytes::Bytes;

use self::http::HttpUpstream;
use self::local::LocalUpstream;
use self::outgoing::Outgoing;
use self::replay::Replay;
use self::stdio::StdioUpstream;
use super::cache::Answers;
use super::call::Recorder;
use super::leaks::Leaks;
use super::message::IdKey;
use super::protocol::code;
use super::service::Service;
use super::settings::{HttpTransport, Limits, OnRotate, ServiceSettings, UpstreamSettings};
use crate::ports::{LocalServer, SecretControl, SecretReader, StateStore};

/// What every upstream needs to know of its surroundings.
#[derive(Clone)]
pub struct Surroundings {
    pub service: Arc<Service>,
    pub secrets: Arc<dyn SecretReader>,
    pub control: Arc<dyn SecretControl>,
    pub leaks: Arc<Leaks>,
    pub limits: Limits,
    pub recorder: Arc<Recorder>,
    pub answers: Arc<Answers>,
    pub state: Arc<dyn StateStore>,
    /// The services that this process serves itself.
    pub local: Arc<dyn LocalServer>,
}

pub enum Upstream {
    Stdio(Box<StdioUpstream>),
    Http(Box<HttpUpstream>),
    Local(Box<LocalUpstream>),
}

/// What has happened on the upstream's side.
#[derive(Debug)]
pub enum Event {
    /// `next_line` may have something.
    Lines,
    /// The server refuses what a server of the newer HTTP transport would not: it may speak the older one. Nothing is lost.
    Older,
    /// These requests will not be answered.
    Lost { keys: Vec<IdKey>, failure: Failure, versions: Arc<[String]>, gone: Gone },
}

/// Whether the upstream's own requests to the client died with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    Yes,
    No,
}

/// What a new secret means for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotated {
    /// Nothing is to be done.
    Followed,
    /// It is to be replaced once it is drained.
    Replace,
    /// Another child is to take over.
    Swap,
}

/// What a new upstream takes over from the one before.
#[derive(Debug, Default)]
pub struct Inheritance {
    pub replay: Replay,
    /// Long requests, such as a subscription, that are to be made again.
    pub again: Vec<Outgoing>,
}

/// Why an upstream could not answer, in words for the client and as a kind for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The value of `error.type`.
    pub kind: &'static str,
    pub message: String,
    pub code: i32,
}

impl Failure {
    pub fn new(service: &str, kind: &'static str, what: impl std::fmt::Display) -> Self {
        Self { kind, message: format!("service {service}: {what}"), code: code::UPSTREAM_FAILED }
    }
}

impl Upstream {
    /// An upstream that takes messages, and does nothing before `begin`.
    pub fn new(surroundings: &Surroundings, settings: &Arc<ServiceSettings>) -> Self {
        match &settings.upstream {
            UpstreamSettings::Stdio(_) => {
                Self::Stdio(Box::new(StdioUpstream::new(surroundings.clone(), settings.clone())))
            }
            UpstreamSettings::Http(http) if http.transport == HttpTransport::Sse || surroundings.service.is_older() => {
                Self::older(surroundings, settings)
            }
            UpstreamSettings::Http(_) => {
                Self::Http(Box::new(HttpUpstream::new(surroundings.clone(), settings.clone())))
            }
            UpstreamSettings::Local(_) => Self::Local(Box::new(LocalUpstream::new(surroundings.clone()))),
        }
    }

    /// One that speaks the older transport of HTTP.
    pub fn older(surroundings: &Surroundings, settings: &Arc<ServiceSettings>) -> Self {
        Self::Stdio(Box::new(StdioUpstream::new(surroundings.clone(), settings.clone())))
    }

    /// Takes over where another one ended, and starts to work.
    pub fn begin(&mut self, inheritance: Inheritance) {
        match self {
            Self::Stdio(upstream) => upstream.begin(inheritance),
            Self::Http(upstream) => upstream.begin(inheritance),
            Self::Local(upstream) => upstream.begin(inheritance),
        }
    }

    /// Takes a message of the client. What comes of it is told by `event`.
    pub fn send(&mut self, message: Outgoing) {
        match self {
            Self::Stdio(upstream) => upstream.send(message),
            Self::Http(upstream) => upstream.send(message),
            Self::Local(upstream) => upstream.send(message),
        }
    }

    /// Waits for something to happen. Cancel-safe. Lines are only read when `read`.
    pub async fn event(&mut self, read: bool) -> Event {
        match self {
            Self::Stdio(upstream) => upstream.event(read).await,
            Self::Http(upstream) => upstream.event(read).await,
            Self::Local(upstream) => upstream.event(read).await,
        }
    }

    pub fn next_line(&mut self) -> Option<Bytes> {
        match self {
            Self::Stdio(upstream) => upstream.next_line(),
            Self::Http(upstream) => upstream.next_line(),
            Self::Local(upstream) => upstream.next_line(),
        }
    }

    /// The answer to `key` has come.
    pub fn answered(&mut self, key: &IdKey, result: Option<&str>) {
        match self {
            Self::Stdio(upstream) => upstream.answered(key, result),
            Self::Http(upstream) => upstream.answered(key, result),
            Self::Local(upstream) => upstream.answered(key, result),
        }
    }

    /// The answer to `key` is not awaited any more. `notice` is the client's own message that says so, if it was the client.
    pub fn cancel(&mut self, key: &IdKey, notice: Option<Bytes>) {
        match self {
            Self::Stdio(upstream) => upstream.cancel(key, notice),
            Self::Http(upstream) => upstream.cancel(key, notice),
            Self::Local(upstream) => upstream.cancel(key),
        }
    }

    /// A secret has changed.
    pub fn rotated(&mut self) -> Rotated {
        match self {
            Self::Stdio(upstream) => match upstream.on_rotate() {
                OnRotate::Restart if upstream.runs() => Rotated::Replace,
                OnRotate::Swap if upstream.runs() => Rotated::Swap,
                OnRotate::Restart | OnRotate::Swap | OnRotate::Ignore => Rotated::Followed,
            },
            Self::Http(upstream) => {
                upstream.rotated();
                Rotated::Followed
            }
            // Secrets are read at each request.
            Self::Local(_) => Rotated::Followed,
        }
    }

    pub fn as_stdio(&mut self) -> Option<&mut StdioUpstream> {
        match self {
            Self::Stdio(upstream) => Some(upstream),
            Self::Http(_) | Self::Local(_) => None,
        }
    }

    /// Whether it has been given the request and has not answered it. Of a child only.
    pub fn has(&self, key: &IdKey) -> bool {
        match self {
            Self::Stdio(upstream) => upstream.has(key),
            Self::Http(_) | Self::Local(_) => false,
        }
    }

    /// No request waits for its answer, long ones aside.
    pub fn is_drained(&self) -> bool {
        match self {
            Self::Stdio(upstream) => upstream.is_drained(),
            Self::Http(upstream) => upstream.is_drained(),
            Self::Local(upstream) => upstream.is_drained(),
        }
    }

    /// Whether it takes more messages without growing beyond its bounds.
    pub fn has_room(&self) -> bool {
        match self {
            Self::Stdio(upstream) => upstream.has_room(),
            Self::Http(upstream) => upstream.has_room(),
            Self::Local(upstream) => upstream.has_room(),
        }
    }

    /// The versions of the secrets with which a request was sent that is not answered yet.
    pub fn versions_for(&self, key: &IdKey) -> Arc<[String]> {
        match self {
            Self::Stdio(upstream) => upstream.versions_for(key),
            Self::Http(upstream) => upstream.versions_for(key),
            Self::Local(upstream) => upstream.versions_for(key),
        }
    }

    /// What a successor needs. Nothing is answered any more.
    pub fn bequeath(&mut self) -> Inheritance {
        match self {
            Self::Stdio(upstream) => upstream.bequeath(),
            Self::Http(upstream) => upstream.bequeath(),
            Self::Local(upstream) => upstream.bequeath(),
        }
    }

    /// Ends the child, or the HTTP session, within a bounded time.
    pub async fn close(self) {
        match self {
            Self::Stdio(upstream) => upstream.close().await,
            Self::Http(upstream) => upstream.close().await,
            Self::Local(upstream) => drop(upstream),
        }
    }
}
