//! What a rendering would change: every template rendered and compared with its file. Nothing is written and nobody told.

use std::path::PathBuf;

use crate::ports::SecretReader;

use super::settings::TemplateSettings;
use super::template::Template;
use super::{RenderError, diff, file};

/// One file beside what it should be.
#[derive(Debug)]
pub struct Compared {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub outcome: Result<Difference, RenderError>,
}

#[derive(Debug, Default)]
pub struct Difference {
    /// In words, without a value: `other bytes`, `mode 0644, not 0600`. Empty: the file is what it should be.
    pub differs: Vec<String>,
    /// A unified diff of the bytes, without a value. Empty where they are the same.
    pub diff: String,
}

/// Renders every template and compares. One that fails costs the others nothing.
pub async fn compare(templates: &[TemplateSettings], secrets: &dyn SecretReader) -> Vec<Compared> {
    let mut compared = Vec::with_capacity(templates.len());
    for settings in templates {
        compared.push(Compared {
            source: settings.source.clone(),
            destination: settings.file.destination.clone(),
            outcome: difference(settings, secrets),
        });
        tokio::task::yield_now().await;
    }
    compared
}

fn difference(settings: &TemplateSettings, secrets: &dyn SecretReader) -> Result<Difference, RenderError> {
    let template = Template::load(&settings.source)?;
    let text = template.render(secrets, settings.max_size).1?;
    let file::Existing { bytes, drift: mut differs } = file::look(&settings.file, settings.max_size + 1)?;
    if bytes.as_deref().is_some_and(|bytes| **bytes == **text) {
        return Ok(Difference { differs, diff: String::new() });
    }
    if bytes.is_some() {
        differs.insert(0, "other bytes".to_owned());
    }
    // A template may not bear names in place of values, such as a number's; then no line is shown.
    let masked = template.render_masked(secrets, settings.max_size.saturating_mul(4)).ok();
    let name = settings.file.destination.display().to_string();
    let old = bytes.as_ref().map(|bytes| bytes.as_slice());
    let diff = diff::unified(&name, old, &text, masked.as_ref().map(|masked| masked.as_slice()));
    Ok(Difference { differs, diff })
}
