//! One attempt at one file: render, compare, put on record, replace. Synchronous; `render_once` is a loop around it.

use std::path::PathBuf;

use crate::ports::{AuditLog, SecretReader};

use super::RenderError;
use super::context::record_rendered;
use super::file;
use super::settings::TemplateSettings;
use super::template::{Reads, Template};

/// What `render_once` did for one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub source: PathBuf,
    pub destination: PathBuf,
    /// The bytes on disk are new.
    pub changed: bool,
}

/// Renders every template once and tells nobody (no hooks run). All failures are reported together; what could be written is written.
pub async fn render_once(
    templates: &[TemplateSettings],
    secrets: &dyn SecretReader,
    audit: &dyn AuditLog,
) -> Result<Vec<Rendered>, RenderError> {
    let mut rendered = Vec::with_capacity(templates.len());
    let mut failures = Vec::new();
    for settings in templates {
        let outcome = Template::load(&settings.source)
            .and_then(|template| bring_up_to_date(settings, &template, secrets, audit).1);
        match outcome {
            Ok(changed) => rendered.push(Rendered {
                source: settings.source.clone(),
                destination: settings.file.destination.clone(),
                changed,
            }),
            Err(error) => failures.push(error.to_string()),
        }
        tokio::task::yield_now().await;
    }
    if failures.is_empty() { Ok(rendered) } else { Err(RenderError::Several(failures)) }
}

/// What was read is known even when it fails. True when the bytes on disk are new.
pub(super) fn bring_up_to_date(
    settings: &TemplateSettings,
    template: &Template,
    secrets: &dyn SecretReader,
    audit: &dyn AuditLog,
) -> (Reads, Result<bool, RenderError>) {
    let (reads, text) = template.render(secrets, settings.max_size);
    let outcome = text.and_then(|text| replace(settings, &text, &reads, audit));
    (reads, outcome)
}

/// It is put on record after everything is written and before it takes effect.
fn replace(
    settings: &TemplateSettings,
    bytes: &[u8],
    reads: &Reads,
    audit: &dyn AuditLog,
) -> Result<bool, RenderError> {
    let Some(prepared) = file::prepare(&settings.file, bytes)? else { return Ok(false) };
    record_rendered(audit, settings, reads).map_err(|refused| {
        let destination = settings.file.destination.clone();
        RenderError::Unaudited { destination, refused }
    })?;
    prepared.commit()?;
    Ok(true)
}
