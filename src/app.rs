//! The composition root: the only file that names every domain. It builds them from a configuration and hands them to the supervisor.
//!
//! Sockets are bound while building, before anything serves. What is built here is also what a reload changes (`reload`).

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::admin::{self, AdminHandle, Surface};
use crate::config::{Config, LockMemory, Sources};
use crate::lifecycle::{Part, PartError, Readiness, ReadyState, Stage};
use crate::mcp::{self, Identity, McpHandle};
use crate::memory::{self, Protection};
use crate::ports::{AuditEvent, AuditLog, Outcome, StatusReport};
use crate::reload::{Domains, Reloader};
use crate::render::{self, RenderHandle};
use crate::secrets::serve::{self, ServeHandle};
use crate::secrets::{self, SecretsHandle};
use crate::telemetry::{self, TelemetryHandle};

/// A process that is built and not yet started.
pub struct App {
    pub parts: Vec<Part>,
    pub reloader: Arc<Reloader>,
    pub telemetry: TelemetryHandle,
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
    Ok(protection)
}

/// Builds every domain. Nothing runs yet.
pub fn build(config: Config, sources: Sources) -> Result<App, PartError> {
    let (telemetry, mut parts) = telemetry::build(config.telemetry.clone())?;
    telemetry.install_logging()?;
    let protection = protect_memory(config.lock_memory)?;
    if protection == Protection::Unlocked && config.lock_memory == LockMemory::Warn {
        tracing::warn!(protection = protection.as_str(), "secrets may be swapped out");
    }
    let audit: Arc<dyn AuditLog> = Arc::new(telemetry.clone());
    let meter = telemetry.meter();

    let (secrets, part) = secrets::build(config.secrets.clone(), audit.clone(), meter.clone())?;
    parts.push(part);
    let reader = Arc::new(secrets.clone());
    telemetry.attach_secrets(reader.clone());

    let (serve, part) = serve::build(config.serve.clone(), reader.clone(), audit.clone(), &meter)?;
    parts.push(part);

    let (render, part) = render::build(config.templates.clone(), reader.clone(), audit.clone(), meter.clone())?;
    parts.push(part);

    let identity = Identity { name: config.name.clone(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let (mcp, more) = mcp::build(config.mcp.clone(), reader.clone(), audit.clone(), meter.clone(), identity)?;
    parts.extend(more);

    let readiness = Arc::new(OnceLock::new());
    let domains = Domains {
        telemetry: telemetry.clone(),
        secrets: secrets.clone(),
        serve: serve.clone(),
        render: render.clone(),
        mcp: mcp.clone(),
    };
    let reloader = Reloader::new(config.clone(), sources, domains, audit.clone());
    let surface =
        surface(&config, &reloader, &telemetry, (&secrets, &serve, &render, &mcp), protection, readiness.clone());
    let (admin, more) = admin::build(config.admin.clone(), surface, meter)?;
    parts.extend(more);
    reloader.attach_admin(admin.clone());
    parts.push(reload_part(reloader.clone()));

    let event = AuditEvent::new("config.loaded", Outcome::Success)
        .with("mcpeg.config.files", config.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>());
    audit.record(event)?;
    Ok(App {
        parts,
        reloader,
        telemetry,
        listening: listening(&mcp, &serve, &admin),
        mcp,
        stdio: config.mcp.stdio,
        readiness,
    })
}

fn surface(
    config: &Config,
    reloader: &Arc<Reloader>,
    telemetry: &TelemetryHandle,
    (secrets, serve, render, mcp): (&SecretsHandle, &ServeHandle, &RenderHandle, &McpHandle),
    protection: Protection,
    readiness: Arc<OnceLock<Vec<(&'static str, Readiness)>>>,
) -> Surface {
    let reports: Vec<Arc<dyn StatusReport>> = vec![
        Arc::new(secrets.clone()),
        Arc::new(serve.clone()),
        Arc::new(render.clone()),
        Arc::new(mcp.clone()),
        Arc::new(telemetry.clone()),
        reloader.clone(),
        Arc::new(MemoryReport(protection)),
    ];
    Surface {
        reports,
        metrics: Arc::new(telemetry.clone()),
        reload: reloader.clone(),
        secrets: Arc::new(secrets.clone()),
        control: Arc::new(secrets.clone()),
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

/// How the memory of secrets is protected.
struct MemoryReport(Protection);

impl StatusReport for MemoryReport {
    fn section(&self) -> &'static str {
        "memory"
    }

    fn conditions(&self) -> Vec<crate::ports::Condition> {
        use crate::ports::{Condition, ConditionState};
        let state = if self.0 == Protection::Unlocked { ConditionState::Degraded } else { ConditionState::Ok };
        vec![Condition { component: "memory".to_owned(), state, message: self.0.as_str().to_owned() }]
    }

    fn detail(&self) -> serde_json::Value {
        serde_json::json!({ "secrets": self.0.as_str() })
    }
}
