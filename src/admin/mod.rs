//! The admin sockets: health, metrics, status and reload, for people, probes and scrapers on this machine.
//!
//! Owns a Unix socket and, if configured, a loopback TCP port. Knows what the others do only through ports. It stops in the telemetry
//! stage, so that `status` can still be asked while requests in flight are answered and secrets are let go.
//!
//! `bind` owns the sockets, `access` says who may ask, `server` accepts, `connections` bounds, `routes` answers, `client` asks (for
//! `mcpeg status`).

mod access;
mod bind;
pub mod client;
mod connections;
mod metrics;
mod points;
mod routes;
mod server;
pub mod settings;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::metrics::Meter;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::error;

use crate::lifecycle::{Part, Readiness, ReadyState, Stage};
use crate::local_socket::SocketError;
use crate::ports::{AuditReader, Backup, MetricsStore, MetricsText, Reload, SecretControl, SecretReader, StatusReport};

use bind::Listeners;
use metrics::AdminMetrics;
use server::{MAX_RELOADS, Server, Shared};
use settings::AdminSettings;

/// What the sockets show and do.
pub struct Surface {
    pub reports: Vec<Arc<dyn StatusReport>>,
    pub metrics: Arc<dyn MetricsText>,
    /// Points of the last hours.
    pub points: Arc<dyn MetricsStore>,
    pub backup: Arc<dyn Backup>,
    pub reload: Arc<dyn Reload>,
    /// Where the TCP socket's token is.
    pub secrets: Arc<dyn SecretReader>,
    /// What is known of the secrets, and a fetch out of turn.
    pub control: Arc<dyn SecretControl>,
    pub audit: Arc<dyn AuditReader>,
    /// Every part and whether it serves.
    pub readiness: Arc<dyn Fn() -> Vec<(String, ReadyState)> + Send + Sync>,
    pub name: String,
    pub version: String,
    pub started: SystemTime,
}

/// The text includes the cause, because a refused reload shows nothing but the text.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("admin {0}")]
    Unix(#[from] SocketError),
    #[error("admin address {address}: listening failed: {cause}")]
    Tcp { address: SocketAddr, cause: io::Error },
}

/// Binds the sockets. They answer once the part runs.
pub fn build(settings: AdminSettings, surface: Surface, meter: Meter) -> Result<(AdminHandle, Vec<Part>), AdminError> {
    let listeners = Listeners::bind(&settings, &Listeners::default())?;
    let (reloads, asked) = mpsc::channel(MAX_RELOADS);
    let shared = Arc::new(Shared {
        surface,
        listeners: watch::Sender::new(listeners),
        metrics: AdminMetrics::new(&meter),
        reloads,
        reload_turns: Arc::new(Semaphore::new(MAX_RELOADS)),
    });
    let server = Server::new(shared.clone(), asked);
    let part = Part::new("admin", Stage::Telemetry, Readiness::immediate(), move |shutdown| server.run(shutdown));
    Ok((AdminHandle { shared }, vec![part]))
}

#[derive(Clone)]
pub struct AdminHandle {
    shared: Arc<Shared>,
}

impl AdminHandle {
    /// Binds what is asked for beside what is listened on. Sockets that stay the same stay open.
    pub fn stage(&self, settings: AdminSettings) -> Result<Staged, AdminError> {
        let present = self.shared.listeners.borrow().clone();
        let listeners = Listeners::bind(&settings, &present)?;
        Ok(Staged { shared: self.shared.clone(), settings, listeners })
    }

    /// What is listened on, in words: `unix:PATH`, `http://ADDRESS`.
    pub fn addresses(&self) -> Vec<String> {
        self.shared.listeners.borrow().addresses()
    }
}

/// Other sockets, bound and not yet served. Dropped, nothing has changed.
#[must_use = "nothing changes until it is committed"]
pub struct Staged {
    shared: Arc<Shared>,
    settings: AdminSettings,
    listeners: Listeners,
}

impl Staged {
    /// Serves the new sockets and lets go of those that are not asked for any more. Connections stay as they are.
    pub fn commit(self) {
        if let (Some(socket), Some(unix)) = (&self.listeners.unix, &self.settings.unix)
            && let Err(error) = socket.set_mode(unix.mode)
        {
            error!(%error, "the admin socket keeps its old mode");
        }
        self.shared.listeners.send_replace(self.listeners);
    }
}

#[cfg(test)]
mod tests;
