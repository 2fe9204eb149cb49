//! The supervised process: the agent itself, run by mcpeg, with secrets in its environment.
//!
//! `environment` makes what it is started with, `keeper` starts it, follows its secrets and ends it, `backoff` says when it is started
//! again, `handle` is what the rest of the process holds, `reaper` collects orphans where mcpeg is an init. Knows nothing of where
//! secrets come from, and nothing of MCP.
//!
//! Invariants: one process at a time; it is started after the parts that it may need have settled and when every secret that its
//! environment names is there; it is stopped before everything else, while sockets and secrets still serve it; nothing of it is left in its
//! group when it has ended.

mod backoff;
mod environment;
mod handle;
mod keeper;
mod metrics;
pub mod reaper;
mod run;
pub mod settings;

use std::io;
use std::sync::Arc;

use opentelemetry::metrics::Meter;
use tokio::sync::mpsc;

use crate::lifecycle::{Part, Readiness, Stage};
use crate::output::Shipping;
use crate::ports::{AuditLog, SecretReader};

use environment::Digester;
use handle::Shared;
use keeper::Keeper;
use metrics::Metrics;
use settings::ProcessSettings;

pub use handle::{ProcessHandle, Staged};

/// What the domain is given.
pub struct Surroundings {
    pub secrets: Arc<dyn SecretReader>,
    pub audit: Arc<dyn AuditLog>,
    pub shipping: Shipping,
    /// What has to settle before the first start.
    pub before: Vec<(&'static str, Readiness)>,
}

/// Makes the part that runs the process. `None`: there is none, until a reload brings one.
pub fn build(
    settings: Option<ProcessSettings>,
    around: Surroundings,
    meter: &Meter,
) -> Result<(ProcessHandle, Part), ProcessError> {
    let (signals, passed_on) = mpsc::channel(MAX_SIGNALS);
    let shared = Arc::new(Shared::new(signals));
    let handle = ProcessHandle::new(shared.clone());
    handle.stage(settings)?.commit();
    let digester = Digester::new()?;
    let metrics = Arc::new(Metrics::new(meter));
    let (ready, readiness) = Readiness::channel();
    let part = Part::new("process", Stage::Process, readiness, move |shutdown| async move {
        Keeper::new(shared, around, metrics, digester, passed_on, ready, shutdown).run().await;
        Ok(())
    });
    Ok((handle, part))
}

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("process: {reason}")]
    Identity { reason: String },
    #[error("process: the system gives no random numbers")]
    Random,
    #[error("the ends of child processes cannot be heard of: {0}")]
    Signals(io::Error),
}

/// Signals that wait for the process to be there to take them.
const MAX_SIGNALS: usize = 16;
