//! Services: the MCP servers inside mcpeg, which it serves to its clients like any other upstream.
//!
//! `server` speaks the protocol, for one message at a time and without sessions; behind it stands a kind of service: `http` (tools that
//! are requests to any HTTP interface) or `vault` (what is known of mcpeg's own secrets). What the settings say is made ready beside what runs, and swapped; a request keeps
//! what it began with.
//!
//! This domain must not know clients, policy or audit: it is asked through `ports::LocalServer`, and reads secrets at each use.

mod http;
mod server;
pub mod settings;
mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use self::http::HttpService;
use self::server::Served;
use self::settings::ServiceSettings;
use self::vault::VaultService;
use crate::ports::{LocalAnswer, LocalFuture, LocalServer, SecretControl, SecretReader, StatusReport};
use crate::tls::TlsError;

#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error("service {service}: {source}")]
    Tls { service: String, source: TlsError },
    #[error("service {service}: the HTTP client: {reason}")]
    Client { service: String, reason: String },
}

/// What this domain needs of the one that has the secrets.
#[derive(Clone)]
pub struct Outside {
    pub secrets: Arc<dyn SecretReader>,
    pub control: Arc<dyn SecretControl>,
    pub report: Arc<dyn StatusReport>,
}

/// What the rest of the process has of the services.
#[derive(Clone)]
pub struct ServicesHandle {
    outside: Outside,
    running: Arc<ArcSwap<BTreeMap<String, Running>>>,
}

#[derive(Clone)]
struct Running {
    settings: ServiceSettings,
    served: Arc<dyn Served>,
}

/// Settings that are ready to be taken. Dropping it leaves everything as it is.
pub struct Staged {
    handle: ServicesHandle,
    running: BTreeMap<String, Running>,
}

/// Makes the services ready.
pub fn build(settings: BTreeMap<String, ServiceSettings>, outside: Outside) -> Result<ServicesHandle, ServicesError> {
    let handle = ServicesHandle { outside, running: Arc::default() };
    handle.stage(settings)?.commit();
    Ok(handle)
}

impl ServicesHandle {
    /// Makes everything ready that the settings need, beside what is running. What has not changed goes on.
    pub fn stage(&self, settings: BTreeMap<String, ServiceSettings>) -> Result<Staged, ServicesError> {
        let before = self.running.load();
        let mut running = BTreeMap::new();
        for (name, settings) in settings {
            let now = match before.get(&name).filter(|running| running.settings == settings) {
                Some(same) => same.clone(),
                None => Running { served: self.start(&name, &settings)?, settings },
            };
            running.insert(name, now);
        }
        Ok(Staged { handle: self.clone(), running })
    }

    fn start(&self, name: &str, settings: &ServiceSettings) -> Result<Arc<dyn Served>, ServicesError> {
        let Outside { secrets, control, report } = self.outside.clone();
        Ok(match settings {
            ServiceSettings::Http(http) => Arc::new(HttpService::new(name, http.clone(), secrets)?),
            ServiceSettings::Vault(vault) => Arc::new(VaultService::new(vault.clone(), control, report)),
        })
    }
}

impl Staged {
    pub fn commit(self) {
        self.handle.running.store(Arc::new(self.running));
    }
}

impl LocalServer for ServicesHandle {
    fn answer(&self, service: &str, message: Bytes) -> LocalFuture {
        match self.running.load().get(service) {
            Some(running) => Box::pin(server::answer(running.served.clone(), message)),
            // It was removed a moment ago, and its sessions are about to learn.
            None => Box::pin(std::future::ready(LocalAnswer::Failed {
                kind: "upstream_not_started",
                reason: "the service is not configured any more".to_owned(),
                versions: Arc::default(),
            })),
        }
    }
}
