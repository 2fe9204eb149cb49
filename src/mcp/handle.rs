//! What the rest of the process can do with MCP: see what it serves and how it goes, and give it new settings.
//!
//! New settings are staged (everything that can fail, fails then: sockets are bound under temporary names, TLS roots are read) and
//! then committed, which cannot fail but for a socket whose name is taken in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::McpError;
use super::breaker::State;
use super::http::bind::Door;
use super::registry::{Registry, Shared, Socket, Target, service_socket};
use super::service::{Service, http_clients};
use super::settings::{HttpTransport, McpSettings, ServiceSettings, UpstreamSettings};
use super::upstream::client::HttpClients;
use crate::local_socket::{Prepared, SocketError, prepare};
use crate::ports::{Condition, ConditionState, StatusReport};

#[derive(Clone)]
pub struct McpHandle {
    shared: Arc<Shared>,
    /// The client on standard input and output has gone.
    stdio_ended: Arc<Notify>,
}

/// Settings that are ready to be taken. Dropping it leaves everything as it is.
pub struct Staged {
    shared: Arc<Shared>,
    settings: McpSettings,
    services: Vec<(Arc<Service>, Change)>,
    new_sockets: Vec<(Prepared, Target)>,
    http: Option<Arc<Door>>,
}

enum Change {
    None,
    New,
    Settings(Box<ServiceSettings>, Option<Arc<HttpClients>>),
}

impl McpHandle {
    pub(super) fn new(shared: Arc<Shared>, stdio_ended: Arc<Notify>) -> Self {
        Self { shared, stdio_ended }
    }

    /// Completes once when the client on standard input and output, if there is to be one, has gone.
    pub async fn stdio_ended(&self) {
        self.stdio_ended.notified().await;
    }

    /// Where all services are served over HTTP.
    pub fn url(&self) -> Option<String> {
        self.shared.registry.borrow().http.as_ref().map(|door| door.url())
    }

    /// What is listened on: `aggregate` or a service's name, and the path.
    pub fn sockets(&self) -> Vec<(String, PathBuf)> {
        let registry = self.shared.registry.borrow();
        registry.sockets.iter().map(|s| (s.target.name().to_owned(), s.bound.path().to_owned())).collect()
    }

    /// Makes everything ready that the settings need, beside what is running.
    pub fn stage(&self, settings: McpSettings) -> Result<Staged, McpError> {
        let registry = self.shared.registry.borrow().clone();
        let mut services = Vec::new();
        for (name, wanted) in &settings.services {
            let for_service = |source| McpError::Client { service: name.clone(), source };
            services.push(match registry.services.get(name) {
                Some(service) if *service.settings() == *wanted => (service.clone(), Change::None),
                Some(service) => {
                    let http = http_clients(wanted).map_err(for_service)?;
                    (service.clone(), Change::Settings(Box::new(wanted.clone()), http))
                }
                None => (Arc::new(Service::new(name, wanted.clone()).map_err(for_service)?), Change::New),
            });
        }
        let mut new_sockets = Vec::new();
        for (path, target) in wanted_sockets(&settings, services.iter().map(|(service, _)| service)) {
            if !registry.sockets.iter().any(|socket| serves(socket, &path, &target) && socket.bound.is_in_place()) {
                let mode = settings.unix.as_ref().map_or(0o600, |unix| unix.mode);
                new_sockets.push((prepare(&path, mode)?, target));
            }
        }
        let http = settings.http.as_ref().map(|http| Door::open(http, registry.http.as_ref())).transpose()?;
        Ok(Staged { shared: self.shared.clone(), settings, services, new_sockets, http })
    }
}

impl Staged {
    /// Takes the settings: new services get their sockets, removed ones answer what is under way and lose theirs, changed ones go on
    /// with the new settings. Sockets of unchanged services stay open.
    pub fn commit(self) {
        if let Err(error) = self.publish() {
            tracing::error!(%error, "a socket is missing after the new settings were taken");
        }
    }

    /// As `commit`. On an error everything else has been taken.
    pub(super) fn publish(self) -> Result<(), SocketError> {
        let Self { shared, settings, services, new_sockets, http } = self;
        let before = shared.registry.borrow().clone();
        let wanted: Vec<_> = wanted_sockets(&settings, services.iter().map(|(service, _)| service)).collect();
        let mut sockets: Vec<Socket> = before.sockets.clone();
        sockets.retain(|socket| wanted.iter().any(|(path, target)| serves(socket, path, target)));
        let mut failed = None;
        for (prepared, target) in new_sockets {
            let present = sockets.iter().position(|socket| serves(socket, prepared.path(), &target));
            if present.is_some_and(|at| sockets[at].bound.is_in_place()) {
                continue;
            }
            match prepared.publish() {
                Ok(bound) => {
                    present.map(|at| sockets.remove(at));
                    sockets.push(Socket { bound: Arc::new(bound), target });
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(unix) = &settings.unix {
            for socket in &sockets {
                if let Err(error) = socket.bound.set_mode(unix.mode) {
                    tracing::error!(%error, path = %socket.bound.path().display(), "a socket's mode could not be set");
                }
            }
        }
        sockets.sort_by_key(|socket| matches!(socket.target, Target::Service(_)));
        let kept = |service: &Arc<Service>| services.iter().any(|(kept, _)| Arc::ptr_eq(kept, service));
        let removed: Vec<_> = before.services.values().filter(|service| !kept(service)).cloned().collect();
        let map = services.iter().map(|(service, _)| (service.name.to_string(), service.clone())).collect();
        for (service, change) in services {
            if let Change::Settings(settings, http) = change {
                service.change(*settings, http);
            }
        }
        let (allow_uids, allow_gids) = settings.unix.map(|unix| (unix.allow_uids, unix.allow_gids)).unwrap_or_default();
        shared.update(|registry| {
            *registry = Registry {
                services: map,
                sockets,
                limits: settings.limits,
                aggregate: settings.aggregate,
                allow_uids,
                allow_gids,
                http,
                closing: registry.closing,
            };
        });
        shared.leaks.change(settings.leak_guard);
        shared.recorder.digests.change(settings.digest);
        removed.iter().for_each(|service| service.close());
        failed.map_or(Ok(()), Err)
    }
}

impl StatusReport for McpHandle {
    fn section(&self) -> &'static str {
        "mcp"
    }

    fn conditions(&self) -> Vec<Condition> {
        let registry = self.shared.registry.borrow().clone();
        let condition = |service: &Arc<Service>| {
            let (state, message) = match (broken(service), service.failure(), service.swap_trouble()) {
                (Some(broken), _, _) => (ConditionState::Degraded, broken),
                (None, Some((_, reason)), _) => {
                    (ConditionState::Degraded, format!("{reason}; it is tried again when it is needed"))
                }
                (None, None, Some((sessions, reason))) => {
                    let stay =
                        format!("of its sessions {sessions} stay with a server that was started with an older secret");
                    (ConditionState::Degraded, format!("{stay}: {reason}; it is tried again"))
                }
                (None, None, None) => match service.http().and_then(|http| http.trouble()) {
                    Some(trouble) => (ConditionState::Degraded, format!("{trouble}; the ones before stay in use")),
                    None => (ConditionState::Ok, String::new()),
                },
            };
            Condition { component: format!("service/{}", service.name), state, message }
        };
        let hidden = registry.sockets.iter().filter(|socket| !socket.bound.is_in_place()).map(|socket| Condition {
            component: format!("socket/{}", socket.target.name()),
            state: ConditionState::Degraded,
            message: format!("{} was removed or replaced: no client can connect there", socket.bound.path().display()),
        });
        registry.services.values().map(condition).chain(hidden).collect()
    }

    fn detail(&self) -> Value {
        let registry = self.shared.registry.borrow().clone();
        let sockets: Vec<Value> =
            self.sockets().into_iter().map(|(name, path)| json!({ "serves": name, "path": path })).collect();
        let services: serde_json::Map<String, Value> =
            registry.services.values().map(|service| (service.name.to_string(), detail_of(service))).collect();
        json!({
            "connections": self.shared.connections.load(Ordering::Relaxed),
            "max_connections": registry.limits.max_connections,
            "http": registry.http.as_ref().map(|door| door.url()),
            "http_sessions": self.shared.front.count(),
            "sockets": sockets,
            "services": services,
        })
    }
}

fn detail_of(service: &Service) -> Value {
    let settings = service.settings();
    let upstream = match &settings.upstream {
        UpstreamSettings::Stdio(stdio) => json!({ "transport": "stdio", "program": stdio.argv.first() }),
        UpstreamSettings::Http(http) => {
            let transport = if service.is_older() || http.transport == HttpTransport::Sse { "sse" } else { "http" };
            json!({ "transport": transport, "origin": http.url.origin().ascii_serialization() })
        }
        UpstreamSettings::Local(local) => json!({ "transport": "local", "type": local.kind }),
    };
    let children: Vec<Value> = service
        .children()
        .into_iter()
        .map(|(pid, started)| json!({ "pid": pid, "started": seconds(started) }))
        .collect();
    json!({
        "upstream": upstream,
        "sessions": service.sessions(),
        "children": children,
        "restarts": service.restarts(),
        "before": service.before(),
        "circuit_breaker": service.policy().breaker.as_ref().map(|breaker| {
            let (state, failures, wait) = breaker.state();
            json!({ "state": state.as_str(), "failures": failures, "retry_in_seconds": wait.as_secs_f64() })
        }),
        "last_failure": service.failure().map(|(time, reason)| json!({ "time": seconds(time), "reason": reason })),
    })
}

/// What is to be said of a breaker that is not closed.
fn broken(service: &Service) -> Option<String> {
    let (state, failures, wait) = service.policy().breaker.as_ref()?.state();
    match state {
        State::Closed => None,
        State::HalfOpen => {
            Some(format!("the circuit breaker is half-open after {failures} failures in a row: one request finds out"))
        }
        State::Open => Some(format!(
            "the circuit breaker is open after {failures} failures in a row: nothing is tried for another {} s",
            wait.as_secs()
        )),
    }
}

fn wanted_sockets<'a>(
    settings: &'a McpSettings,
    services: impl Iterator<Item = &'a Arc<Service>> + 'a,
) -> impl Iterator<Item = (PathBuf, Target)> + 'a {
    let own = settings.unix.as_ref().map(|unix| (unix.path.clone(), Target::Aggregate));
    let of_services = services.filter_map(move |service| {
        let path = service_socket(settings.unix.as_ref()?, &service.name);
        Some((path, Target::Service(service.clone())))
    });
    own.into_iter().chain(of_services)
}

/// Whether a socket is this one. A removed service that comes back under its name is another one.
fn serves(socket: &Socket, path: &std::path::Path, target: &Target) -> bool {
    let same = match (&socket.target, target) {
        (Target::Aggregate, Target::Aggregate) => true,
        (Target::Service(one), Target::Service(other)) => Arc::ptr_eq(one, other),
        (Target::Aggregate, Target::Service(_)) | (Target::Service(_), Target::Aggregate) => false,
    };
    same && socket.bound.path() == path
}

/// Seconds since the epoch.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
