//! `secrets.serve`: named items for local programs, on a Unix socket of its own.
//!
//! `routes` answers, `access` says who may read what, `answer` is the body that keeps no value longer than it takes to send it, `watch`
//! tells of new versions, `server` accepts and bounds. It reads the secrets through `ports::SecretReader` and owns none of them.
//! Invariants: a value leaves only after its audit event was accepted; an answer that holds a value is written, or cut, within
//! half a second, so that no connection holds one for longer; watches carry versions, never values.

mod access;
mod answer;
mod metrics;
mod routes;
mod server;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry::metrics::Meter;
use serde_json::json;
use tracing::error;

use crate::lifecycle::{Part, Readiness, Stage};
use crate::local_socket::{BoundSocket, Prepared, SocketError, prepare};
use crate::ports::{AuditLog, Condition, ConditionState, SecretReader, StatusReport};

use super::settings::ServeSettings;
use metrics::Metrics;
use server::{Open, Shared};

/// Binds the socket, if one is configured. It answers once the part runs.
pub fn build(
    settings: Option<ServeSettings>,
    secrets: Arc<dyn SecretReader>,
    audit: Arc<dyn AuditLog>,
    meter: &Meter,
) -> Result<(ServeHandle, Part), ServeError> {
    let shared = Arc::new(Shared::new(secrets, audit, Metrics::new(meter)));
    let handle = ServeHandle { shared: shared.clone() };
    handle.stage(settings)?.commit();
    let part = Part::new("secrets.serve", Stage::Intake, Readiness::immediate(), move |shutdown| async move {
        server::run(shared, shutdown).await;
        Ok(())
    });
    Ok((handle, part))
}

#[derive(Debug, thiserror::Error)]
#[error("secrets.serve {0}")]
pub struct ServeError(#[from] SocketError);

#[derive(Clone)]
pub struct ServeHandle {
    shared: Arc<Shared>,
}

impl ServeHandle {
    /// Binds what is asked for beside what is listened on; a socket that stays the same stays open.
    pub fn stage(&self, settings: Option<ServeSettings>) -> Result<Staged, ServeError> {
        let present = self.shared.open.borrow().clone();
        let open = match settings {
            None => None,
            Some(settings) => {
                let socket = match present {
                    Some(open) if in_place(&open.socket, &settings) => open.socket.clone(),
                    _ => Arc::new(prepare(&settings.path, settings.mode).and_then(Prepared::publish)?),
                };
                Some(Arc::new(Open { socket, settings }))
            }
        };
        Ok(Staged { shared: self.shared.clone(), open })
    }

    /// What is listened on, in words.
    pub fn address(&self) -> Option<String> {
        self.shared.open.borrow().as_ref().map(|open| format!("unix:{}", open.socket.path().display()))
    }
}

fn in_place(socket: &BoundSocket, settings: &ServeSettings) -> bool {
    socket.path() == settings.path && socket.is_in_place()
}

/// Another socket and other rules, not yet served. Dropped, nothing has changed.
#[must_use = "nothing changes until it is committed"]
pub struct Staged {
    shared: Arc<Shared>,
    open: Option<Arc<Open>>,
}

impl Staged {
    /// From here on the new rules count, for connections that are open too.
    pub fn commit(self) {
        if let Some(open) = &self.open
            && let Err(error) = open.socket.set_mode(open.settings.mode)
        {
            error!(%error, "the socket for local programs keeps its old mode");
        }
        self.shared.open.send_replace(self.open);
    }
}

impl StatusReport for ServeHandle {
    fn section(&self) -> &'static str {
        "serve"
    }

    fn conditions(&self) -> Vec<Condition> {
        let Some(open) = self.shared.open.borrow().clone() else { return Vec::new() };
        let path = open.socket.path().display();
        let (state, message) = if open.socket.is_in_place() {
            (ConditionState::Ok, format!("local programs read at {path}"))
        } else {
            (ConditionState::Degraded, format!("the socket {path} was removed or replaced: reload to make it anew"))
        };
        vec![Condition { component: "secrets/serve".to_owned(), state, message }]
    }

    fn detail(&self) -> serde_json::Value {
        let open = self.shared.open.borrow().clone();
        json!({
            "path": open.as_ref().map(|open| open.socket.path()),
            "rules": open.as_ref().map_or(0, |open| open.settings.allow.len()),
            "connections": self.shared.connections.load(Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
mod tests;
