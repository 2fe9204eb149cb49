//! Services: the MCP servers inside mcpeg, which it serves to its clients like any other upstream.
//!
//! `server` speaks the protocol (`resources` its part of it), for one message at a time and without sessions; behind it stands a kind of
//! service: `database` (SQL), `http` (tools that are requests to any HTTP interface) or `vault` (what is known of mcpeg's own secrets). What the settings say is made ready beside what runs, and swapped; a request keeps
//! what it began with.
//!
//! The part `keepers` does what no call waits for: it closes connections that are old and ends statements that were given up.
//!
//! This domain must not know clients, policy or audit: it is asked through `ports::LocalServer`, and reads secrets at each use.

mod database;
mod http;
mod resources;
mod server;
pub mod settings;
mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::database::DatabaseService;
use self::database::pool::Pool;
use self::http::HttpService;
use self::server::Served;
use self::settings::ServiceSettings;
use self::vault::VaultService;
use crate::lifecycle::{Part, Readiness, Shutdown, Stage};
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
    pools: Arc<watch::Sender<Vec<Arc<Pool>>>>,
}

#[derive(Clone)]
struct Running {
    settings: ServiceSettings,
    served: Arc<dyn Served>,
    /// What has to be kept beside it.
    pool: Option<Arc<Pool>>,
}

/// Settings that are ready to be taken. Dropping it leaves everything as it is.
pub struct Staged {
    handle: ServicesHandle,
    running: BTreeMap<String, Running>,
}

/// Makes the services ready.
pub fn build(
    settings: BTreeMap<String, ServiceSettings>,
    outside: Outside,
) -> Result<(ServicesHandle, Part), ServicesError> {
    let handle = ServicesHandle { outside, running: Arc::default(), pools: Arc::new(watch::Sender::default()) };
    handle.stage(settings)?.commit();
    let pools = handle.pools.subscribe();
    let part = Part::new("keepers", Stage::Workers, Readiness::immediate(), async move |shutdown| {
        keep(pools, shutdown).await;
        Ok(())
    });
    Ok((handle, part))
}

/// Runs a keeper for each pool that there is, until its pool has ended.
async fn keep(mut pools: watch::Receiver<Vec<Arc<Pool>>>, mut shutdown: Shutdown) {
    let (mut kept, mut keepers) = (Vec::new(), JoinSet::new());
    loop {
        let now = pools.borrow_and_update().clone();
        for pool in &now {
            if !kept.iter().any(|known| Arc::ptr_eq(known, pool)) {
                keepers.spawn(pool.clone().keep(shutdown.clone()));
            }
        }
        kept = now;
        tokio::select! {
            () = shutdown.requested() => break,
            changed = pools.changed() => if changed.is_err() { break },
            Some(_) = keepers.join_next() => {}
        }
    }
    while keepers.join_next().await.is_some() {}
}

impl ServicesHandle {
    /// Makes everything ready that the settings need, beside what is running. What has not changed goes on.
    pub fn stage(&self, settings: BTreeMap<String, ServiceSettings>) -> Result<Staged, ServicesError> {
        let before = self.running.load();
        let mut running = BTreeMap::new();
        for (name, settings) in settings {
            let now = match before.get(&name).filter(|running| running.settings == settings) {
                Some(same) => same.clone(),
                None => self.start(&name, settings)?,
            };
            running.insert(name, now);
        }
        Ok(Staged { handle: self.clone(), running })
    }

    fn start(&self, name: &str, settings: ServiceSettings) -> Result<Running, ServicesError> {
        let Outside { secrets, control, report } = self.outside.clone();
        let mut pool = None;
        let served: Arc<dyn Served> = match &settings {
            ServiceSettings::Database(database) => {
                let service = DatabaseService::new(name, (**database).clone(), secrets, control)?;
                pool = Some(service.pool().clone());
                Arc::new(service)
            }
            ServiceSettings::Http(http) => Arc::new(HttpService::new(name, http.clone(), secrets)?),
            ServiceSettings::Vault(vault) => Arc::new(VaultService::new(vault.clone(), control, report)),
        };
        Ok(Running { settings, served, pool })
    }
}

impl Staged {
    pub fn commit(self) {
        let pools: Vec<Arc<Pool>> = self.running.values().filter_map(|running| running.pool.clone()).collect();
        self.handle.running.store(Arc::new(self.running));
        let before = self.handle.pools.send_replace(pools.clone());
        before.iter().filter(|old| !pools.iter().any(|pool| Arc::ptr_eq(old, pool))).for_each(|old| old.retire());
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
