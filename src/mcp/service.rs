//! A configured service and what is known of it at run time, shared by all its sessions.
//!
//! A `Service` lives as long as its name is configured: a reload changes its settings in place. Sessions watch `ServiceState`; they
//! report here what they start and how it goes, for `status`. It holds no secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::future::join_all;
use tokio::sync::watch;

use super::bridge::capabilities::Server;
use super::cache::Changes;
use super::catalogue::Catalogue;
use super::credentials;
use super::policy::Policy;
use super::protocol::Era;
use super::settings::{ServiceSettings, UpstreamSettings};
use super::upstream::Failure;
use super::upstream::client::{ClientError, HttpClients};
use crate::ports::{SecretControl, SecretReader};
use crate::tls;

/// Between two questions for fresh secrets.
const REFRESH_PAUSE: Duration = Duration::from_secs(2);

pub struct Service {
    pub name: Arc<str>,
    state: watch::Sender<ServiceState>,
    /// `None` for any but an HTTP upstream.
    http: ArcSwapOption<HttpClients>,
    /// What the upstream was found to speak: two bits for each era, the higher one if it is known.
    eras: AtomicU8,
    pub changes: Changes,
    /// Its server was found to speak the older transport of HTTP.
    older: AtomicBool,
    /// Its server was late to answer to the last wish for the long stream of a session.
    late_streams: AtomicBool,
    sessions: AtomicUsize,
    restarts: AtomicU64,
    run: Mutex<Run>,
    pub catalogue: Catalogue,
    /// When the secrets were last asked for because the upstream had refused them.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
}

/// What a session must follow.
#[derive(Clone)]
pub struct ServiceState {
    pub settings: Arc<ServiceSettings>,
    pub policy: Arc<Policy>,
    /// Counts the changes of `settings`.
    pub revision: u64,
    /// Counts the new versions of secrets that the service refers to.
    pub rotation: u64,
    /// No new requests: answer what is under way and end.
    pub closing: bool,
}

#[derive(Debug, Default)]
struct Run {
    children: BTreeMap<u32, SystemTime>,
    failure: Option<(SystemTime, String)>,
    /// Of sessions that stay with a child that has older secrets, and why.
    swaps: BTreeMap<u64, String>,
    swap_count: u64,
    /// Of the files that children read, as they were last seen.
    files: Option<tls::Stamp>,
    /// What the upstream has said of itself, since its settings last changed.
    introduction: Option<Arc<Server>>,
    /// What an earlier process knew of it, last.
    before: serde_json::Value,
}

impl Service {
    pub fn new(name: &str, settings: ServiceSettings) -> Result<Self, ClientError> {
        let http = http_clients(&settings)?;
        let name: Arc<str> = name.into();
        let policy = Arc::new(Policy::new(name.clone(), settings.policy.clone(), None));
        let state = ServiceState { settings: Arc::new(settings), policy, revision: 0, rotation: 0, closing: false };
        Ok(Self {
            name,
            state: watch::Sender::new(state),
            http: ArcSwapOption::new(http),
            eras: AtomicU8::new(0),
            changes: Changes::default(),
            older: AtomicBool::new(false),
            late_streams: AtomicBool::new(false),
            sessions: AtomicUsize::new(0),
            restarts: AtomicU64::new(0),
            run: Mutex::default(),
            catalogue: Catalogue::default(),
            refreshed: tokio::sync::Mutex::default(),
        })
    }

    pub fn watch(&self) -> watch::Receiver<ServiceState> {
        self.state.subscribe()
    }

    pub fn settings(&self) -> Arc<ServiceSettings> {
        self.state.borrow().settings.clone()
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.state.borrow().policy.clone()
    }

    /// Takes new settings; `http` was built from them.
    pub fn change(&self, settings: ServiceSettings, http: Option<Arc<HttpClients>>) {
        self.http.store(http);
        self.forget_eras();
        self.older.store(false, Ordering::Relaxed);
        self.late_streams.store(false, Ordering::Relaxed);
        self.catalogue.forget();
        self.run().files = None;
        self.run().introduction = None;
        self.state.send_modify(|state| {
            let policy = Policy::new(self.name.clone(), settings.policy.clone(), Some(&*state.policy));
            state.policy = Arc::new(policy);
            state.settings = Arc::new(settings);
            state.revision += 1;
        });
    }

    /// A secret that the service refers to has a new version. Idle connections, whose buffers still hold the old one, are closed.
    pub fn rotated(&self) {
        if let Some(http) = &*self.http.load()
            && let Err(error) = http.renew()
        {
            tracing::error!(%error, service = &*self.name, "the HTTP client could not be renewed after a rotation");
        }
        // The old one may have been the reason of failures.
        if let Some(breaker) = &self.policy().breaker {
            breaker.try_again();
        }
        self.state.send_modify(|state| state.rotation += 1);
    }

    /// Asks for fresh secrets, because the upstream has refused the ones that were `used`. Who comes while somebody else asks waits for that one's
    /// answer; does nothing where there are other versions already, or when it was asked a moment ago.
    pub async fn refresh(&self, secrets: &dyn SecretReader, control: &dyn SecretControl, used: &[String]) {
        let mut last = self.refreshed.lock().await;
        let settings = self.settings();
        let is_recent = last.is_some_and(|last| last.elapsed() < REFRESH_PAUSE);
        if is_recent || credentials::versions(&settings, secrets) != used {
            return;
        }
        let items = credentials::items(&settings);
        let outcomes = join_all(items.iter().map(|item| control.refresh(item))).await;
        for (item, outcome) in items.iter().zip(outcomes) {
            match outcome {
                Ok(refreshed) => {
                    let changed = refreshed.changed;
                    tracing::info!(
                        service = &*self.name,
                        item,
                        changed,
                        "the upstream refused a credential, which was fetched anew"
                    );
                }
                Err(error) => {
                    tracing::warn!(service = &*self.name, item, %error, "a refused credential was not fetched anew")
                }
            }
        }
        *last = Some(Instant::now());
    }

    /// Whether the settings name files that may change while they are in use.
    pub fn has_files(&self) -> bool {
        match &self.settings().upstream {
            UpstreamSettings::Stdio(stdio) => !stdio.files.is_empty(),
            UpstreamSettings::Http(_) => self.http.load().as_ref().is_some_and(|http| http.has_files()),
            UpstreamSettings::Local(_) => false,
        }
    }

    /// Uses the files as they are now.
    pub fn follow_files(&self) {
        if let UpstreamSettings::Stdio(stdio) = &self.settings().upstream {
            let files: Vec<&Path> = stdio.files.iter().map(PathBuf::as_path).collect();
            let stamp = tls::stamp(&files);
            let before = self.run().files.replace(stamp.clone());
            if before.is_some_and(|before| before != stamp) {
                tracing::info!(service = &*self.name, "a file of the service has changed");
                self.rotated();
            }
        }
        if let Some(http) = &*self.http.load()
            && let Err(error) = http.follow()
        {
            tracing::error!(%error, service = &*self.name, "the HTTP client could not be renewed after its files changed");
        }
    }

    pub fn close(&self) {
        self.state.send_modify(|state| state.closing = true);
    }

    /// The clients for the current settings.
    pub fn http(&self) -> Option<Arc<HttpClients>> {
        self.http.load_full()
    }

    /// Whether the upstream speaks an era, if that is known.
    pub fn speaks(&self, era: Era) -> Option<bool> {
        let known = self.eras.load(Ordering::Relaxed) >> shift(era);
        (known & 2 != 0).then_some(known & 1 != 0)
    }

    pub fn found(&self, era: Era, speaks: bool) {
        let found = (2 | u8::from(speaks)) << shift(era);
        let replaced = |known: u8| Some(known & !(3 << shift(era)) | found);
        // The closure always gives a value.
        let _ = self.eras.fetch_update(Ordering::Relaxed, Ordering::Relaxed, replaced);
    }

    /// The upstream may be another one next time.
    pub fn forget_eras(&self) {
        self.eras.store(0, Ordering::Relaxed);
    }

    pub fn is_older(&self) -> bool {
        self.older.load(Ordering::Relaxed)
    }

    pub fn speaks_older(&self) {
        if !self.older.swap(true, Ordering::Relaxed) {
            tracing::info!(service = &*self.name, "the upstream speaks HTTP+SSE");
        }
    }

    /// Whether it is of no use to wait for the server's answer to the wish for a long stream: some give none before they have something to say.
    pub fn is_late_with_streams(&self) -> bool {
        self.late_streams.load(Ordering::Relaxed)
    }

    pub fn answers_streams(&self, late: bool) {
        self.late_streams.store(late, Ordering::Relaxed);
    }

    pub fn introduced(&self, server: Server) {
        self.run().introduction = Some(Arc::new(server));
    }

    pub fn introduction(&self) -> Option<Arc<Server>> {
        self.run().introduction.clone()
    }

    pub fn works(&self) {
        let mut run = self.run();
        if run.failure.take().is_some() {
            tracing::info!(service = &*self.name, "the upstream answers again");
        }
    }

    pub fn failed(&self, failure: &Failure) {
        self.forget_eras();
        tracing::warn!(service = &*self.name, kind = failure.kind, reason = failure.message, "the upstream failed");
        self.run().failure = Some((SystemTime::now(), failure.message.clone()));
    }

    /// The last failure, unless the upstream has worked since.
    pub fn failure(&self) -> Option<(SystemTime, String)> {
        self.run().failure.clone()
    }

    /// How many sessions stay with a child that has older secrets, because the new one failed; and the latest reason.
    pub fn swap_trouble(&self) -> Option<(usize, String)> {
        let run = self.run();
        run.swaps.values().next_back().map(|reason| (run.swaps.len(), reason.clone()))
    }

    /// Takes what an earlier process knew of it.
    pub fn was(&self, before: serde_json::Value) {
        self.run().before = before;
    }

    /// What an earlier process knew of it; null: nothing.
    pub fn before(&self) -> serde_json::Value {
        self.run().before.clone()
    }

    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    pub fn children(&self) -> BTreeMap<u32, SystemTime> {
        self.run().children.clone()
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shift(era: Era) -> u8 {
    if era == Era::Legacy { 0 } else { 2 }
}

/// The clients that the settings need; `None` for any but an HTTP upstream.
pub fn http_clients(settings: &ServiceSettings) -> Result<Option<Arc<HttpClients>>, ClientError> {
    match &settings.upstream {
        UpstreamSettings::Http(http) => Ok(Some(Arc::new(HttpClients::new(http)?))),
        UpstreamSettings::Stdio(_) | UpstreamSettings::Local(_) => Ok(None),
    }
}

/// Counts a session while it lives.
pub struct SessionCount(Arc<Service>);

impl SessionCount {
    pub fn of(service: &Arc<Service>) -> Self {
        service.sessions.fetch_add(1, Ordering::Relaxed);
        Self(service.clone())
    }
}

impl Drop for SessionCount {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says, while it is kept, that a session stays with a child that has older secrets.
pub struct SwapTrouble {
    service: Arc<Service>,
    number: u64,
}

impl SwapTrouble {
    pub fn of(service: &Arc<Service>, reason: &str) -> Self {
        let mut run = service.run();
        run.swap_count += 1;
        let number = run.swap_count;
        run.swaps.insert(number, reason.to_owned());
        drop(run);
        Self { service: service.clone(), number }
    }
}

impl Drop for SwapTrouble {
    fn drop(&mut self) {
        self.service.run().swaps.remove(&self.number);
    }
}

/// Lists a child while it lives.
pub struct ChildEntry {
    service: Arc<Service>,
    pid: u32,
}

impl ChildEntry {
    pub fn of(service: &Arc<Service>, pid: u32) -> Self {
        service.run().children.insert(pid, SystemTime::now());
        Self { service: service.clone(), pid }
    }
}

impl Drop for ChildEntry {
    fn drop(&mut self) {
        self.service.run().children.remove(&self.pid);
    }
}
