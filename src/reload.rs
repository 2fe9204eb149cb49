//! Load -> diff -> build -> swap -> Outcome.
//!
//! A new configuration is read and checked whole, every domain builds the new beside the old, and only when all of them have is anything
//! swapped. Whatever goes wrong before that leaves everything as it was. Reloads come from SIGHUP, a changed file or the admin socket and
//! run one at a time. Where the configuration comes from a source that is no folder, `remote` follows that.

mod aside;
mod drift;
mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, error, info, warn};

use crate::admin::AdminHandle;
use crate::config::source::Fetched;
use crate::config::{self, Config, Sources};
use crate::guard::{Guard, SecretRedactor};
use crate::lifecycle::{PartError, Shutdown};
use crate::mcp::McpHandle;
use crate::memory;
use crate::ports::{
    AuditEvent, AuditLog, Condition, ConditionState, Drift, Outcome, Reload, ReloadOutcome, SecretObserver,
    SecretReader, StatusReport,
};
use crate::process::ProcessHandle;
use crate::render::RenderHandle;
use crate::secret::Secret;
use crate::secrets::SecretsHandle;
use crate::secrets::serve::ServeHandle;
use crate::services::ServicesHandle;
use crate::storage::StorageHandle;
use crate::telemetry::TelemetryHandle;

use drift::Drifted;
use remote::Following;

/// The domains that a reload reaches.
#[derive(Clone)]
pub struct Domains {
    pub telemetry: TelemetryHandle,
    pub secrets: SecretsHandle,
    pub serve: ServeHandle,
    pub render: RenderHandle,
    pub services: ServicesHandle,
    pub mcp: McpHandle,
    pub redactor: Arc<SecretRedactor>,
    pub process: ProcessHandle,
    pub storage: StorageHandle,
    pub guard: Arc<Guard>,
}

/// Values that stood sealed in the configuration are looked for like those of items.
pub fn show_sealed(guard: &Guard, sealed: &BTreeMap<String, Arc<Secret>>) {
    for (path, secret) in sealed {
        let fields = BTreeMap::from([("value".to_owned(), Secret::copy_from(secret.expose()))]);
        guard.published(path, &fields);
    }
}

pub struct Reloader {
    sources: Sources,
    /// `None`: files in a folder are followed.
    following: Option<Following>,
    domains: Domains,
    admin: OnceLock<AdminHandle>,
    audit: Arc<dyn AuditLog>,
    /// What is running.
    current: Mutex<Arc<Config>>,
    /// Held for a whole reload.
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Option<ReloadOutcome>>,
    /// The files whose change may change the outcome of the next reload.
    followed: Mutex<Vec<PathBuf>>,
    count: Counter<u64>,
    drifted: Drifted,
}

impl Reloader {
    pub fn new(config: Config, sources: Sources, domains: Domains, audit: Arc<dyn AuditLog>) -> Arc<Self> {
        let count = reload_counter(&domains.telemetry.meter());
        let drifted = Drifted::new(&domains.telemetry.meter());
        Arc::new(Self {
            count,
            drifted,
            following: Following::of(&sources),
            sources,
            domains,
            admin: OnceLock::new(),
            audit,
            followed: Mutex::new(config.files.clone()),
            current: Mutex::new(Arc::new(config)),
            turn: tokio::sync::Mutex::new(()),
            last: Mutex::new(None),
        })
    }

    /// The admin domain needs the reloader to be built, so it comes after.
    pub fn attach_admin(&self, admin: AdminHandle) {
        // Attached once, by the composition root.
        let _ = self.admin.set(admin);
    }

    /// How long a stop may take, as it is configured now.
    pub fn shutdown_timeout(&self) -> Duration {
        self.current().shutdown_timeout
    }

    /// Reloads once, and says in log, audit and status how it went.
    pub async fn reload_now(&self, cause: &'static str) -> ReloadOutcome {
        self.reload_from(None, cause).await
    }

    /// From a tree that was fetched; where there is a source and no tree, it is fetched first.
    async fn reload_from(&self, fetched: Option<Arc<Fetched>>, cause: &'static str) -> ReloadOutcome {
        let _turn = self.turn.lock().await;
        let (fetched, outcome) = match (&self.following, fetched) {
            (Some(following), None) => match following.fetch().await {
                Ok(fetched) => (Some(fetched.clone()), self.attempt(self.sources.of_tree(fetched)).await),
                Err(error) => (None, rejected(vec![error.to_string()])),
            },
            (Some(following), Some(fetched)) => {
                let outcome = match following.lay_again(&fetched).await {
                    Ok(()) => self.attempt(self.sources.of_tree(fetched.clone())).await,
                    Err(reason) => rejected(vec![reason]),
                };
                (Some(fetched), outcome)
            }
            (None, _) => (None, self.attempt(self.sources.clone()).await),
        };
        let is_good = !matches!(outcome, ReloadOutcome::Rejected { .. });
        // A source that is away says nothing of what is written.
        if self.following.is_none() || fetched.is_some() {
            self.drifted.set(!is_good);
        }
        if let (Some(following), Some(fetched)) = (&self.following, &fetched) {
            following.looked_at(fetched.clone(), is_good).await;
        }
        // A look at the files that found nothing new is no reload.
        if cause != FILE || outcome != ReloadOutcome::Unchanged {
            self.count.add(1, &[KeyValue::new("outcome", outcome.as_str())]);
        }
        let before = lock(&self.last).replace(outcome.clone());
        // A file that came to be followed is looked at once more: the same rejection is no news then.
        if cause != FILE || before.as_ref() != Some(&outcome) || matches!(outcome, ReloadOutcome::Applied { .. }) {
            self.say(&outcome, cause, fetched.as_ref());
        }
        outcome
    }

    /// Reloads when a file that matters to the configuration changes, appears or goes, until it is told to stop.
    ///
    /// Files are looked at, not waited for: a look follows links and sees folders that were replaced, which a watch on them misses.
    pub async fn watch(self: Arc<Self>, mut shutdown: Shutdown) -> Result<(), PartError> {
        let follow = async {
            match &self.following {
                Some(following) => {
                    following.settle().await;
                    loop {
                        let fetched = following.next().await;
                        self.reload_from(Some(fetched), SOURCE).await;
                    }
                }
                None => self.look_for_changes().await,
            }
        };
        tokio::select! {
            () = shutdown.requested() => Ok(()),
            never = follow => match never {},
        }
    }

    async fn look_for_changes(&self) -> Infallible {
        // Nothing is known at first, so that a change between the start and the first look is not missed.
        let mut known = Looks::default();
        loop {
            sleep(LOOK).await;
            if self.look().await == known {
                continue;
            }
            known = self.settled().await;
            self.reload_now(FILE).await;
        }
    }

    /// Editors and mounted volumes change several files in a row: waits until it is quiet, but not for ever.
    async fn settled(&self) -> Looks {
        let latest = Instant::now() + LONGEST_SETTLE;
        let mut before = self.look().await;
        loop {
            sleep(SETTLE).await;
            let now = self.look().await;
            if now == before || Instant::now() >= latest {
                return now;
            }
            before = now;
        }
    }

    async fn look(&self) -> Looks {
        let files = lock(&self.followed).clone();
        // It cannot be cancelled, and a panic in it would be one of the standard library's.
        tokio::task::spawn_blocking(move || look_at(&files)).await.unwrap_or_default()
    }

    async fn attempt(&self, sources: Sources) -> ReloadOutcome {
        let loaded = aside::run(move || {
            let mut followed = Vec::new();
            (config::load_following(&sources, &mut followed), followed)
        });
        let new = match loaded.await {
            Ok((loaded, followed)) => {
                *lock(&self.followed) = followed;
                match loaded {
                    Ok(config) => config,
                    Err(problems) => return rejected(problems.iter().map(config::Problem::one_line).collect()),
                }
            }
            Err(error) => return rejected(vec![format!("reading the configuration failed: {error}")]),
        };
        let old = self.current();
        if new == *old {
            Arc::make_mut(&mut lock(&self.current)).keys = new.keys;
            return ReloadOutcome::Unchanged;
        }
        let changed = changes(&old, &new);
        if let Err(problem) = self.apply(&old, new).await {
            return rejected(vec![problem]);
        }
        ReloadOutcome::Applied { changed }
    }

    /// Builds everything new first; the swaps after that cannot fail.
    async fn apply(&self, old: &Config, new: Config) -> Result<(), String> {
        if old.lock_memory != new.lock_memory {
            return Err("security.lock_memory: a change needs a restart".to_owned());
        }
        if old.mcp.stdio != new.mcp.stdio {
            return Err("transports.stdio: a change needs a restart".to_owned());
        }
        let domains = &self.domains;
        let telemetry = domains.telemetry.stage(new.telemetry.clone()).map_err(|error| error.to_string())?;
        let secrets = domains.secrets.stage(new.secrets.clone()).map_err(|error| error.to_string())?;
        let serve = domains.serve.stage(new.serve.clone()).map_err(|error| error.to_string())?;
        let render = domains.render.stage(new.templates.clone()).map_err(|error| error.to_string())?;
        let services = domains.services.stage(new.services.clone()).map_err(|error| error.to_string())?;
        let mcp = domains.mcp.stage(new.mcp.clone()).map_err(|error| error.to_string())?;
        let redactor = domains.redactor.stage(&new.redaction).map_err(|error| error.to_string())?;
        let process = domains.process.stage(new.process.clone()).map_err(|error| error.to_string())?;
        let storage = domains.storage.stage(new.storage.clone()).map_err(|error| error.to_string())?;
        let admin = match self.admin.get() {
            Some(admin) => Some(admin.stage(new.admin.clone()).map_err(|error| error.to_string())?),
            None => None,
        };
        show_sealed(&domains.guard, &new.sealed);
        redactor.commit();
        telemetry.commit();
        storage.commit();
        // Old and new items are served side by side until everybody has moved.
        let secrets = secrets.introduce();
        self.await_new_items(old, &new).await;
        serve.commit();
        render.commit();
        services.commit();
        mcp.commit();
        process.commit();
        secrets.finish();
        if let Some(admin) = admin {
            admin.commit();
        }
        memory::set_limit(new.memory_limit);
        old.sealed.keys().filter(|path| !new.sealed.contains_key(*path)).for_each(|path| domains.guard.retired(path));
        *lock(&self.current) = Arc::new(new);
        Ok(())
    }

    /// Gives items that are new a moment to be fetched, so that what refers to them finds them.
    async fn await_new_items(&self, old: &Config, new: &Config) {
        let latest = Instant::now() + NEW_ITEMS;
        for name in new.secrets.items.keys().filter(|name| !old.secrets.items.contains_key(*name)) {
            let Some(mut version) = self.domains.secrets.subscribe(name) else { continue };
            // Late or failed: the item's own condition says so.
            let _ = timeout_at(latest, version.wait_for(|version| *version > 0)).await;
        }
    }

    /// Reads what is written and applies nothing; not while a reload does.
    async fn compare_now(&self) -> Result<Drift, String> {
        let _turn = self.turn.lock().await;
        let (sources, revisions) = match &self.following {
            Some(following) => {
                let fetched = following.peek().await.map_err(|error| error.to_string())?;
                let revisions = (following.revision(None), fetched.revision.clone());
                (self.sources.of_tree(fetched), Some(revisions))
            }
            None => (self.sources.clone(), None),
        };
        let (running, redactor) = (self.current(), self.domains.redactor.clone());
        let compared = aside::run(move || drift::compare(&running, &sources, redactor.as_ref()));
        let mut drift = compared.await.map_err(|error| format!("reading the configuration failed: {error}"))?;
        if let Some(following) = &self.following {
            following.forget_others().await;
        }
        (drift.running_revision, drift.written_revision) = revisions.unzip();
        self.drifted.set(drift.differs);
        Ok(drift)
    }

    fn say(&self, outcome: &ReloadOutcome, cause: &'static str, fetched: Option<&Arc<Fetched>>) {
        let event = match outcome {
            ReloadOutcome::Unchanged => {
                debug!(cause, "the configuration has not changed");
                return;
            }
            ReloadOutcome::Applied { changed } => {
                info!(cause, changed = changed.join(" "), "configuration reloaded");
                AuditEvent::new("config.reloaded", Outcome::Success).with("mcpeg.config.changed", changed.clone())
            }
            ReloadOutcome::Rejected { problems } => {
                for problem in problems {
                    error!(cause, problem, "configuration rejected; the old one goes on");
                }
                AuditEvent::new("config.rejected", Outcome::Failure).with("mcpeg.config.problems", problems.clone())
            }
        };
        let mut event = event.with("mcpeg.config.cause", cause);
        if let Some(following) = &self.following {
            event = event.with("mcpeg.config.revision", following.revision(fetched));
        }
        if let Err(error) = self.audit.record(event) {
            warn!(%error, "the reload is not on record");
        }
    }

    fn current(&self) -> Arc<Config> {
        lock(&self.current).clone()
    }
}

impl Reload for Reloader {
    fn reload(&self) -> Pin<Box<dyn Future<Output = ReloadOutcome> + Send + '_>> {
        Box::pin(self.reload_now("admin"))
    }

    fn compare(&self) -> Pin<Box<dyn Future<Output = Result<Drift, String>> + Send + '_>> {
        Box::pin(self.compare_now())
    }
}

impl StatusReport for Reloader {
    fn section(&self) -> &'static str {
        "config"
    }

    fn conditions(&self) -> Vec<Condition> {
        let (state, message) = match &*lock(&self.last) {
            Some(ReloadOutcome::Rejected { problems }) => (
                ConditionState::Degraded,
                format!("what is written was rejected, the old one goes on: {}", problems.join("; ")),
            ),
            _ => (ConditionState::Ok, String::new()),
        };
        let own = Condition { component: "config".to_owned(), state, message };
        std::iter::once(own).chain(self.following.as_ref().map(Following::condition)).collect()
    }

    fn detail(&self) -> serde_json::Value {
        let current = self.current();
        json!({
            "files": current.files,
            "environment": current.environment,
            "last_reload": *lock(&self.last),
            "drift": self.drifted.is_set(),
            "source": self.following.as_ref().map(Following::detail),
        })
    }
}

/// What tells one content of a file from another without reading it: device, inode, size, change of content (ns). `None`: not there.
type Looks = BTreeMap<PathBuf, Option<(u64, u64, u64, i128)>>;

fn look_at(files: &[PathBuf]) -> Looks {
    let look = |file: &PathBuf| {
        let found = std::fs::metadata(file).ok()?;
        let changed = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Some((found.dev(), found.ino(), found.size(), changed))
    };
    files.iter().map(|file| (file.clone(), look(file))).collect()
}

/// What differs, as dotted paths; for maps of named things by their names.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut changed = Vec::new();
    named("secrets.providers", &old.secrets.providers, &new.secrets.providers, &mut changed);
    named("secrets.items", &old.secrets.items, &new.secrets.items, &mut changed);
    named("services", &old.mcp.services, &new.mcp.services, &mut changed);
    named("telemetry.destinations", &old.telemetry.destinations, &new.telemetry.destinations, &mut changed);
    let sections = [
        ("metadata", old.name != new.name || old.environment != new.environment),
        ("global.shutdown_timeout", old.shutdown_timeout != new.shutdown_timeout),
        ("transports.unix", old.mcp.unix != new.mcp.unix),
        ("transports.http", old.mcp.http != new.mcp.http),
        ("transports.limits", old.mcp.limits != new.mcp.limits),
        ("storage", old.storage != new.storage),
        ("secrets.serve", old.serve != new.serve),
        ("templates", old.templates != new.templates),
        ("process", old.process != new.process),
        ("telemetry.spool", old.telemetry.spool != new.telemetry.spool),
        ("telemetry.resource", old.telemetry.resource != new.telemetry.resource),
        ("telemetry.traces", old.telemetry.traces != new.telemetry.traces),
        ("telemetry.metrics", old.telemetry.metrics != new.telemetry.metrics),
        ("global.memory_limit_mb", old.memory_limit != new.memory_limit),
        ("global.log", old.telemetry.log != new.telemetry.log),
        ("audit", old.telemetry.audit != new.telemetry.audit),
        ("admin", old.admin != new.admin),
        ("files", old.files != new.files),
    ];
    changed.extend(sections.iter().filter(|(_, differs)| *differs).map(|(name, _)| (*name).to_owned()));
    changed
}

fn named<T: PartialEq>(prefix: &str, old: &BTreeMap<String, T>, new: &BTreeMap<String, T>, changed: &mut Vec<String>) {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differ = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    changed.extend(differ.map(|name| format!("{prefix}.{name}")));
}

fn reload_counter(meter: &Meter) -> Counter<u64> {
    meter
        .u64_counter("mcpeg.config.reloads")
        .with_description("Reloads of the configuration by their outcome")
        .with_unit("{reload}")
        .build()
}

fn rejected(problems: Vec<String>) -> ReloadOutcome {
    ReloadOutcome::Rejected { problems }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const FILE: &str = "file";
const SOURCE: &str = "source";
const LOOK: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_millis(150);
const LONGEST_SETTLE: Duration = Duration::from_secs(2);
const NEW_ITEMS: Duration = Duration::from_secs(5);
