//! The composition root: the only file that names every domain. It builds them from a configuration and hands them to the supervisor.
//!
//! Sockets are bound while building, before anything serves. What is built here is also what a reload changes (`reload`).

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use opentelemetry::metrics::{Meter, MeterProvider};

use crate::admin::{self, AdminHandle, Surface};
use crate::config::{Config, Items, LockMemory, Sources};
use crate::guard::{Guard, SecretRedactor};
use crate::lifecycle::{Part, PartError, Readiness, ReadyState, Stage};
use crate::mcp::{self, Identity, McpHandle};
use crate::memory::{self, Protection, Room};
use crate::output::Shipping;
use crate::ports::{AuditEvent, AuditLog, AuditRefused, Outcome, StatusReport};
use crate::process::{self, ProcessHandle};
use crate::reload::{self, Domains, Reloader};
use crate::render::{self, RenderHandle};
use crate::secrets;
use crate::secrets::serve::{self, ServeHandle};
use crate::services;
use crate::storage;
use crate::telemetry::{self, TelemetryHandle};

/// A process that is built and not yet started.
pub struct App {
    pub parts: Vec<Part>,
    pub reloader: Arc<Reloader>,
    pub telemetry: TelemetryHandle,
    pub process: ProcessHandle,
    /// What is listened on, in words.
    pub listening: Vec<String>,
    pub mcp: McpHandle,
    /// Standard output belongs to an MCP client.
    pub stdio: bool,
    /// To be filled when the supervisor has started: what `/readyz` asks.
    pub readiness: Arc<OnceLock<Vec<(&'static str, Readiness)>>>,
}

/// Protects the memory of secrets as the configuration asks. The reason why it cannot, where that is fatal.
pub fn protect_memory(lock_memory: LockMemory) -> Result<Protection, String> {
    let hardened = memory::harden_process();
    let protection = memory::protection();
    if lock_memory == LockMemory::Require {
        hardened?;
        if protection == Protection::Unlocked {
            return Err(
                "the memory of secrets cannot be locked: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=)".to_owned()
            );
        }
    }
    if protection == Protection::Unlocked && lock_memory == LockMemory::Warn {
        tracing::warn!(protection = protection.as_str(), "secrets may be swapped out");
    }
    Ok(protection)
}

/// Fetches the item that has the key of what is sealed in the configuration, where it names one, for `sources` to be read with once more. The
/// fetch counts as reading the configuration: the item's own, which is on record, comes later.
pub async fn fetch_key(config: &Config, sources: &mut Sources) -> Result<(), String> {
    let Some(item) = &config.unopened else { return Ok(()) };
    let mut settings = config.secrets.clone();
    settings.items.retain(|name, _| *name == item.item);
    (settings.cache, settings.revoke_on_exit) = (None, false);
    let meter = opentelemetry_sdk::metrics::SdkMeterProvider::default().meter("mcpeg");
    let (secrets, _rotator) = secrets::build(settings, Arc::new(NoRecord), meter).map_err(|error| error.to_string())?;
    secrets.fetch_all_once().await.map_err(|error| error.to_string())?;
    sources.items = Items(Some(Arc::new(secrets)));
    Ok(())
}

/// Before the audit file is open.
struct NoRecord;

impl AuditLog for NoRecord {
    fn record(&self, _: AuditEvent) -> Result<(), AuditRefused> {
        Ok(())
    }

    fn ready(&self) -> Result<(), AuditRefused> {
        Ok(())
    }
}

/// Builds every domain. Nothing runs yet.
pub fn build(config: Config, mut sources: Sources) -> Result<App, PartError> {
    let mut parts = Vec::new();
    let domains = build_domains(&config, &mut parts)?;
    let Domains { telemetry, serve, mcp, process, .. } = domains.clone();
    let audit: Arc<dyn AuditLog> = Arc::new(telemetry.clone());

    sources.items = Items(Some(Arc::new(domains.secrets.clone())));
    let revision = sources.fetched.as_ref().map(|fetched| fetched.revision.clone());
    let readiness = Arc::new(OnceLock::new());
    let reloader = Reloader::new(config.clone(), sources, domains.clone(), audit.clone());
    let surface = surface(&config, &reloader, &domains, readiness.clone());
    let (admin, more) = admin::build(config.admin.clone(), surface, telemetry.meter())?;
    parts.extend(more);
    reloader.attach_admin(admin.clone());
    parts.push(reload_part(reloader.clone()));

    let event = AuditEvent::new("config.loaded", Outcome::Success)
        .with("mcpeg.config.files", config.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>())
        .with_some("mcpeg.config.revision", revision);
    audit.record(event)?;
    Ok(App {
        parts,
        reloader,
        telemetry,
        process,
        listening: listening(&mcp, &serve, &admin),
        mcp,
        stdio: config.mcp.stdio,
        readiness,
    })
}

/// The domains without admin, which shows them, and their parts.
fn build_domains(config: &Config, parts: &mut Vec<Part>) -> Result<Domains, PartError> {
    let guard = Arc::new(Guard::new()?);
    let redactor = Arc::new(SecretRedactor::new(guard.clone(), &config.redaction)?);
    let (telemetry, more) = telemetry::build(config.telemetry.clone(), redactor.clone(), config.named())?;
    parts.extend(more);
    telemetry.install_logging()?;
    protect_memory(config.lock_memory)?;
    memory::set_limit(config.memory_limit);
    let audit: Arc<dyn AuditLog> = Arc::new(telemetry.clone());
    let meter = telemetry.meter();

    let (secrets, part) = secrets::build(config.secrets.clone(), audit.clone(), meter.clone())?;
    parts.push(part);
    secrets.attach_observer(guard.clone());
    let shown_to = guard.clone();
    reload::show_sealed(guard.as_ref(), &config.sealed);
    let reader = Arc::new(secrets.clone());
    telemetry.attach_secrets(reader.clone());

    let outside = storage::Outside {
        secrets: reader.clone(),
        control: reader.clone(),
        metrics: Arc::new(telemetry.clone()),
        name: config.name.clone(),
    };
    let (storage, part) = storage::build(config.storage.clone(), outside, &meter)?;
    parts.push(part);

    let (serve, part) = serve::build(config.serve.clone(), reader.clone(), audit.clone(), &meter)?;
    parts.push(part);

    let (render, part) = render::build(config.templates.clone(), reader.clone(), audit.clone(), meter.clone())?;
    parts.push(part);

    let shipping = Shipping { redactor: redactor.clone(), sink: Arc::new(telemetry.clone()) };
    let (services, part) = services::build(
        config.services.clone(),
        services::Outside { secrets: reader.clone(), control: reader.clone(), report: reader.clone() },
    )?;
    parts.push(part);
    let outside = mcp::Outside {
        secrets: reader.clone(),
        control: reader.clone(),
        guard,
        audit: audit.clone(),
        meter: meter.clone(),
        shipping: shipping.clone(),
        cache: Arc::new(storage.clone()),
        state: storage.state(),
        local: Arc::new(services.clone()),
        identity: Identity { name: config.name.clone(), version: env!("CARGO_PKG_VERSION").to_owned() },
    };
    let (mcp, more) = mcp::build(config.mcp.clone(), outside)?;
    parts.extend(more);

    let around = process::Surroundings { secrets: reader.clone(), audit: audit.clone(), shipping, before: Vec::new() };
    let process = add_process(config, around, &render, &meter, parts)?;
    Ok(Domains { telemetry, secrets, serve, render, services, mcp, redactor, process, storage, guard: shown_to })
}

/// The process may use all that was built so far, so it comes after it.
fn add_process(
    config: &Config,
    mut around: process::Surroundings,
    render: &RenderHandle,
    meter: &Meter,
    parts: &mut Vec<Part>,
) -> Result<ProcessHandle, PartError> {
    around.before = parts.iter().map(|part| (part.name, part.ready.clone())).collect();
    let (process, part) = process::build(config.process.clone(), around, meter)?;
    parts.push(part);
    parts.extend(process::reaper::part()?);
    render.attach_process(Arc::new(process.clone()));
    Ok(process)
}

fn surface(
    config: &Config,
    reloader: &Arc<Reloader>,
    domains: &Domains,
    readiness: Arc<OnceLock<Vec<(&'static str, Readiness)>>>,
) -> Surface {
    let Domains { telemetry, secrets, serve, render, mcp, process, storage, .. } = domains;
    let reports: Vec<Arc<dyn StatusReport>> = vec![
        Arc::new(secrets.clone()),
        Arc::new(serve.clone()),
        Arc::new(render.clone()),
        Arc::new(mcp.clone()),
        Arc::new(process.clone()),
        Arc::new(storage.clone()),
        Arc::new(telemetry.clone()),
        reloader.clone(),
        Arc::new(MemoryReport(config.lock_memory)),
    ];
    Surface {
        reports,
        metrics: Arc::new(telemetry.clone()),
        points: storage.metrics(),
        backup: storage.backup(),
        reload: reloader.clone(),
        secrets: Arc::new(secrets.clone()),
        control: Arc::new(secrets.clone()),
        audit: Arc::new(telemetry.clone()),
        readiness: Arc::new(move || match readiness.get() {
            Some(parts) => parts.iter().map(|(name, readiness)| ((*name).to_owned(), readiness.state())).collect(),
            None => vec![("mcpeg".to_owned(), ReadyState::Starting)],
        }),
        name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: SystemTime::now(),
    }
}

fn reload_part(reloader: Arc<Reloader>) -> Part {
    Part::new("reload", Stage::Intake, Readiness::immediate(), move |shutdown| reloader.watch(shutdown))
}

fn listening(mcp: &McpHandle, serve: &ServeHandle, admin: &AdminHandle) -> Vec<String> {
    let sockets = mcp.sockets().into_iter().map(|(name, path)| format!("mcp {name} unix:{}", path.display()));
    let sockets = sockets
        .chain(mcp.url().map(|url| format!("mcp {url}")))
        .chain(serve.address().map(|address| format!("secrets {address}")));
    sockets.chain(admin.addresses().into_iter().map(|address| format!("admin {address}"))).collect()
}

/// How the memory of secrets is protected by now: it grows with them, and may grow beyond the lock limit.
struct MemoryReport(LockMemory);

impl StatusReport for MemoryReport {
    fn section(&self) -> &'static str {
        "memory"
    }

    fn conditions(&self) -> Vec<crate::ports::Condition> {
        use crate::ports::{Condition, ConditionState};
        let protection = memory::protection();
        let state = match self.0 {
            _ if protection != Protection::Unlocked => ConditionState::Ok,
            LockMemory::Require => ConditionState::Failed,
            _ => ConditionState::Degraded,
        };
        let mut conditions =
            vec![Condition { component: "memory".to_owned(), state, message: protection.as_str().to_owned() }];
        if let Some(limit) = memory::limit() {
            let (live, limit) = (memory::live_bytes() >> 20, limit >> 20);
            let (state, message) = match memory::room() {
                Room::Enough => (ConditionState::Ok, String::new()),
                Room::Little => {
                    (ConditionState::Ok, format!("{live} of {limit} MB are in use: caches give theirs back"))
                }
                Room::None => {
                    (ConditionState::Degraded, format!("the {limit} MB are in use: new sessions are refused"))
                }
            };
            conditions.push(Condition { component: "memory/limit".to_owned(), state, message });
        }
        conditions
    }

    fn detail(&self) -> serde_json::Value {
        serde_json::json!({
            "secrets": memory::protection().as_str(),
            "live_bytes": memory::live_bytes(),
            "limit_bytes": memory::limit(),
        })
    }
}
