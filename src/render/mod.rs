//! Rendered files: templates filled with the current secrets, written atomically, and whoever reads them told.
//!
//! `template` compiles and renders, `file` replaces, `hook` tells, `removal` takes away; `preview` compares and `diff` shows it without a
//! secret; `attempt` puts the first two together for one template, `worker` repeats
//! that whenever a secret or a source changes, `crew` runs one worker a template inside the part's task, `handle` is what the rest of
//! the process holds. Invariants: bytes on disk change only after the audit event was accepted; on any failure the old file stays;
//! a template that fails costs the others nothing; the hooks of one template never overlap.

mod attempt;
mod context;
mod crew;
mod diff;
mod file;
mod generation;
mod handle;
mod hook;
mod metrics;
mod preview;
mod removal;
pub mod settings;
mod status;
mod tell;
mod template;
#[cfg(test)]
mod tests;
mod unit;
mod worker;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use opentelemetry::metrics::Meter;

use crate::lifecycle::{Part, Readiness, Stage};
use crate::ports::{AuditLog, AuditRefused, SecretReader};

use context::Context;
use handle::Shared;
use metrics::Metrics;
use settings::TemplateSettings;

pub use attempt::{Rendered, render_once};
pub use handle::{RenderHandle, Staged};
pub use preview::{Compared, Difference, compare};
pub use template::SecretProblem;

/// Compiles the templates and makes the part that keeps their files up to date. Writes nothing yet.
pub fn build(
    templates: Vec<TemplateSettings>,
    secrets: Arc<dyn SecretReader>,
    audit: Arc<dyn AuditLog>,
    meter: Meter,
) -> Result<(RenderHandle, Part), RenderError> {
    let shared = Arc::new(Shared::new(Context::new(secrets, audit, Metrics::new(&meter))));
    let handle = RenderHandle::new(shared.clone());
    handle.stage(templates)?.commit();
    let (signal, readiness) = Readiness::channel();
    let part = Part::new("render", Stage::Workers, readiness, move |shutdown| async move {
        crew::run(shared, signal, shutdown).await;
        Ok(())
    });
    Ok((handle, part))
}

/// What keeps templates from being compiled: where, and message.
pub fn check(templates: &[TemplateSettings]) -> Vec<(Place, String)> {
    let faults = templates.iter().filter_map(|settings| template::Template::load(&settings.source).err());
    faults
        .map(|fault| match fault {
            RenderError::Template { place, message } => (place, message),
            RenderError::Source { source_file, error } => {
                (Place { file: source_file, line: None, column: None }, format!("cannot be read: {error}"))
            }
            other => (Place { file: PathBuf::new(), line: None, column: None }, other.to_string()),
        })
        .collect()
}

/// Somewhere in a template, as far as it is known: `FILE:LINE:COLUMN`, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: Option<usize>,
    pub column: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(f, ":{line}:{column}"),
            (Some(line), None) => write!(f, ":{line}"),
            (None, _) => Ok(()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("reading the template {}: {error}", .source_file.display())]
    Source { source_file: PathBuf, error: io::Error },
    #[error("{place}: {message}")]
    Template { place: Place, message: String },
    #[error("{place}: {problem}")]
    Secret { place: Place, problem: Box<SecretProblem> },
    #[error("{}: the output has more than {limit} bytes", .source_file.display())]
    TooLarge { source_file: PathBuf, limit: usize },
    #[error("{operation} {}: {error}", .destination.display())]
    Destination { destination: PathBuf, operation: &'static str, error: io::Error },
    #[error("{} is {what} and is not replaced", .destination.display())]
    NotAFile { destination: PathBuf, what: &'static str },
    #[error("{} is not written: its folder is {}, which is outside of render.allowed_folders", .destination.display(), .real.display())]
    Outside { destination: PathBuf, real: PathBuf },
    #[error("{} is not written: {problem}", .destination.display())]
    Owner { destination: PathBuf, problem: String },
    #[error("{} is not written: {refused}", .destination.display())]
    Unaudited { destination: PathBuf, refused: AuditRefused },
    #[error("{} is {what} and is not replaced: a group's folder is a link that mcpeg makes; move it away", .folder.display())]
    NotOurLink { folder: PathBuf, what: &'static str },
    #[error("{} is refused by its validation: {reason}", .destination.display())]
    Invalid { destination: PathBuf, reason: String, output: String },
    #[error("{} went back to the generation before: {reason}", .folder.display())]
    RolledBack { folder: PathBuf, reason: String },
    #[error("rendering {} ended early: {reason}", .source_file.display())]
    Interrupted { source_file: PathBuf, reason: String },
    /// One line for each template that failed.
    #[error("{}", .0.join("\n"))]
    Several(Vec<String>),
}

impl RenderError {
    /// It may pass by itself as soon as a secret is there.
    fn is_waiting(&self) -> bool {
        matches!(self, Self::Secret { problem, .. } if matches!(**problem, SecretProblem::Unavailable(_)))
    }

    /// What a command printed, fit to be logged.
    fn output(&self) -> Option<&str> {
        match self {
            Self::Invalid { output, .. } if !output.is_empty() => Some(output),
            _ => None,
        }
    }

    /// `error.type` in metrics and audit events.
    fn kind(&self) -> &'static str {
        match self {
            Self::Source { .. } => "source",
            Self::Template { .. } => "template",
            Self::Secret { .. } => "secret",
            Self::TooLarge { .. } => "too_large",
            Self::Destination { .. } | Self::NotAFile { .. } | Self::NotOurLink { .. } => "destination",
            Self::Outside { .. } => "outside",
            Self::Owner { .. } => "owner",
            Self::Invalid { .. } => "invalid",
            Self::RolledBack { .. } => "rolled_back",
            Self::Unaudited { .. } => "unaudited",
            Self::Interrupted { .. } | Self::Several(_) => "interrupted",
        }
    }
}
