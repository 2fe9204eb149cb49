//! What every worker uses: the secrets, the audit log, the metrics; and the events of the domain, put together in one place.

use std::sync::Arc;

use tracing::{info, warn};

use crate::ports::{AuditEvent, AuditLog, AuditRefused, Outcome, SecretReader};

use super::RenderError;
use super::hook::{HookError, HookKind};
use super::metrics::Metrics;
use super::settings::TemplateSettings;
use super::template::Reads;

pub(super) struct Context {
    pub secrets: Arc<dyn SecretReader>,
    pub audit: Arc<dyn AuditLog>,
    pub metrics: Metrics,
}

impl Context {
    pub fn failed(&self, settings: &TemplateSettings, error: &RenderError) {
        let destination = destination_of(settings);
        warn!(destination, %error, "file.failed");
        self.note(
            AuditEvent::new("file.failed", Outcome::Failure)
                .with("mcpeg.file.path", destination)
                .with("error.type", error.kind())
                .with("error.message", error.to_string()),
        );
    }

    pub fn hook_ran(&self, settings: &TemplateSettings, kind: HookKind, result: &Result<(), HookError>) {
        let destination = destination_of(settings);
        self.metrics.hook_ran(&destination, kind.as_str(), result.is_ok());
        let outcome = match result {
            Ok(()) => Outcome::Success,
            Err(_) => Outcome::Failure,
        };
        let event = AuditEvent::new("hook.ran", outcome)
            .with("mcpeg.file.path", destination.as_str())
            .with("mcpeg.hook.kind", kind.as_str());
        match result {
            Ok(()) => {
                info!(destination, kind = kind.as_str(), "hook.ran");
                self.note(event);
            }
            Err(error) => {
                let output = error.output().map(tracing::field::display);
                warn!(destination, kind = kind.as_str(), %error, output, "hook.ran");
                self.note(event.with("error.message", error.to_string()));
            }
        }
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
    let destination = destination_of(settings);
    let event = AuditEvent::new("file.rendered", Outcome::Success)
        .with("mcpeg.file.path", destination.as_str())
        .with("mcpeg.file.template", settings.source.display().to_string())
        .with("mcpeg.secret.items", reads.in_words());
    audit.record(event)?;
    info!(destination, "file.rendered");
    Ok(())
}

pub(super) fn destination_of(settings: &TemplateSettings) -> String {
    settings.file.destination.display().to_string()
}
