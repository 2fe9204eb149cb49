//! What is configured at the moment, as everybody in this domain sees it: services, sockets, limits.
//!
//! A `Registry` is never changed: a reload puts another one in its place, in which unchanged services and sockets are the same
//! objects. The listener and the sessions follow it and reconcile themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::Identity;
use super::cache::Answers;
use super::call::Recorder;
use super::http::Front;
use super::http::bind::Door;
use super::leaks::Leaks;
use super::service::Service;
use super::settings::{AggregateSettings, Limits, UnixSettings};
use crate::local_socket::BoundSocket;
use crate::memory::{self, Room};
use crate::ports::{LocalServer, SecretControl, SecretReader, StateStore};

#[derive(Clone)]
pub struct Registry {
    pub services: BTreeMap<String, Arc<Service>>,
    pub sockets: Vec<Socket>,
    pub limits: Limits,
    pub aggregate: AggregateSettings,
    pub allow_uids: Vec<u32>,
    pub allow_gids: Vec<u32>,
    pub http: Option<Arc<Door>>,
    pub closing: bool,
}

/// A published socket and what is served on it.
#[derive(Clone)]
pub struct Socket {
    pub bound: Arc<BoundSocket>,
    pub target: Target,
}

#[derive(Clone)]
pub enum Target {
    Aggregate,
    Service(Arc<Service>),
}

impl Target {
    /// A service's name, or `aggregate`.
    pub fn name(&self) -> &str {
        match self {
            Self::Aggregate => AGGREGATE,
            Self::Service(service) => &service.name,
        }
    }
}

/// What all tasks of the domain share.
pub struct Shared {
    pub registry: watch::Sender<Arc<Registry>>,
    pub secrets: Arc<dyn SecretReader>,
    pub control: Arc<dyn SecretControl>,
    pub leaks: Arc<Leaks>,
    pub recorder: Arc<Recorder>,
    pub answers: Arc<Answers>,
    pub state: Arc<dyn StateStore>,
    pub local: Arc<dyn LocalServer>,
    pub identity: Identity,
    pub connections: Arc<AtomicUsize>,
    /// The sessions of HTTP clients.
    pub front: Front,
}

impl Shared {
    /// Puts a changed registry in place of the current one.
    pub fn update(&self, change: impl FnOnce(&mut Registry)) {
        self.registry.send_modify(|current| {
            let mut next = Registry::clone(current);
            change(&mut next);
            *current = Arc::new(next);
        });
    }
}

impl Shared {
    /// Why nothing new may begin now: too much memory is in use, and caches cannot give enough back.
    pub fn no_memory(&self) -> Option<String> {
        while memory::room() == Room::None {
            if self.answers.kept.shrink() == 0 {
                let limit = memory::limit().unwrap_or_default() >> 20;
                return Some(format!(
                    "mcpeg uses the {limit} MB of memory that it may (global.memory_limit_mb): no new session until some is free; those that \
                     there are go on"
                ));
            }
        }
        None
    }
}

/// The right to one connection; lives in the task that serves it.
pub struct ConnectionPermit(Arc<AtomicUsize>);

impl ConnectionPermit {
    /// `None` when `limit` connections are being served.
    pub fn take(counter: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let one_more = |count| (count < limit).then_some(count + 1);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self(counter.clone()))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a service's own socket is: `services/NAME.sock` beside the aggregate's.
pub fn service_socket(unix: &UnixSettings, service: &str) -> PathBuf {
    unix.path.parent().unwrap_or(Path::new("")).join("services").join(format!("{service}.sock"))
}

/// The name of the aggregate's socket where sockets are listed, and of the aggregate in records.
pub const AGGREGATE: &str = "aggregate";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_while_their_permits_live() {
        let counter = Arc::new(AtomicUsize::new(0));
        let first = ConnectionPermit::take(&counter, 2).unwrap();
        let _second = ConnectionPermit::take(&counter, 2).unwrap();
        assert!(ConnectionPermit::take(&counter, 2).is_none());
        drop(first);
        assert!(ConnectionPermit::take(&counter, 2).is_some());
    }
}
