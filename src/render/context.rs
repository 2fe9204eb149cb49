//! What every worker uses: the secrets, the audit log, the metrics; and the events of the domain, put together in one place.

use std::sync::{Arc, OnceLock};

use tracing::{info, warn};

use crate::ports::{AuditEvent, AuditLog, AuditRefused, Outcome, SecretReader, SupervisedProcess};

use super::RenderError;
use super::hook::{HookError, HookKind, Targets};
use super::metrics::Metrics;
use super::settings::{GroupSettings, TemplateSettings};
use super::template::Reads;
use super::unit::Unit;

pub(super) struct Context {
    pub secrets: Arc<dyn SecretReader>,
    pub audit: Arc<dyn AuditLog>,
    pub metrics: Metrics,
    pub targets: Targets,
    supervised: OnceLock<Arc<dyn SupervisedProcess>>,
}

impl Context {
    pub fn new(secrets: Arc<dyn SecretReader>, audit: Arc<dyn AuditLog>, metrics: Metrics) -> Self {
        Self { secrets, audit, metrics, targets: Targets::default(), supervised: OnceLock::new() }
    }

    pub fn attach_process(&self, process: Arc<dyn SupervisedProcess>) {
        // The first one stays.
        let _ = self.supervised.set(process);
    }

    pub fn supervised(&self) -> Option<&dyn SupervisedProcess> {
        self.supervised.get().map(|process| &**process)
    }

    pub fn failed(&self, unit: &Unit, error: &RenderError) {
        let destination = unit.label();
        warn!(destination, %error, output = error.output().map(tracing::field::display), "file.failed");
        self.note(
            about(unit, "file.failed", Outcome::Failure)
                .with("error.type", error.kind())
                .with("error.message", error.to_string()),
        );
    }

    pub fn hook_ran(&self, unit: &Unit, kind: HookKind, attempt: u32, result: &Result<(), HookError>) {
        let destination = unit.label();
        self.metrics.hook_ran(&destination, kind.as_str(), result.is_ok());
        let outcome = match result {
            Ok(()) => Outcome::Success,
            Err(_) => Outcome::Failure,
        };
        let event =
            about(unit, "hook.ran", outcome).with("mcpeg.hook.kind", kind.as_str()).with("mcpeg.hook.attempt", attempt);
        match result {
            Ok(()) => {
                info!(destination, kind = kind.as_str(), "hook.ran");
                self.note(event);
            }
            Err(error) => {
                let output = error.output().map(tracing::field::display);
                warn!(destination, kind = kind.as_str(), attempt, %error, output, "hook.ran");
                self.note(event.with("error.message", error.to_string()));
            }
        }
    }

    /// A group's hook has failed, and readers have the generation before again.
    pub fn rolled_back(&self, unit: &Unit, from: u64, to: u64, problem: &str) {
        let destination = unit.label();
        self.metrics.switched(&destination, "rolled_back");
        warn!(destination, from, to, problem, "group.rolled_back");
        self.note(
            about(unit, "group.rolled_back", Outcome::Failure)
                .with("mcpeg.group.generation", to)
                .with("mcpeg.group.generation_before", from)
                .with("error.message", problem),
        );
    }

    /// For events about something that has already happened, so that there is nothing left to refuse.
    fn note(&self, event: AuditEvent) {
        if let Err(error) = self.audit.record(event) {
            warn!(%error, "audit event lost");
        }
    }
}

/// The event that has to be on record before the new bytes take effect.
pub(super) fn record_rendered(
    audit: &dyn AuditLog,
    settings: &TemplateSettings,
    reads: &Reads,
) -> Result<(), AuditRefused> {
    let destination = settings.file.destination.display().to_string();
    let event = AuditEvent::new("file.rendered", Outcome::Success)
        .with("mcpeg.file.path", destination.as_str())
        .with("mcpeg.file.template", settings.source.display().to_string())
        .with("mcpeg.secret.items", reads.in_words());
    audit.record(event)?;
    info!(destination, "file.rendered");
    Ok(())
}

/// As `record_rendered`, for all files of a group.
pub(super) fn record_switched(
    audit: &dyn AuditLog,
    group: &GroupSettings,
    members: &[TemplateSettings],
    generation: u64,
    reads: &Reads,
) -> Result<(), AuditRefused> {
    let destination = group.folder.display().to_string();
    let files = members.iter().filter_map(|settings| settings.file.destination.file_name());
    let event = AuditEvent::new("group.switched", Outcome::Success)
        .with("mcpeg.file.path", destination.as_str())
        .with("mcpeg.group.name", group.name.as_str())
        .with("mcpeg.group.generation", generation)
        .with("mcpeg.group.files", files.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>())
        .with("mcpeg.secret.items", reads.in_words());
    audit.record(event)?;
    info!(destination, generation, "group.switched");
    Ok(())
}

fn about(unit: &Unit, name: &'static str, outcome: Outcome) -> AuditEvent {
    AuditEvent::new(name, outcome)
        .with("mcpeg.file.path", unit.label())
        .with_some("mcpeg.group.name", unit.group().map(|group| group.name.as_str()))
}
