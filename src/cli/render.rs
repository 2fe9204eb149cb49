//! `mcpeg render --once`: every template rendered, then the end.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{bad_configuration, block_on, failed, say, take_variables};
use crate::app;
use crate::config::{self, Config, Sources};
use crate::guard::{Guard, SecretRedactor};
use crate::lifecycle::PartError;
use crate::ports::{AuditLog, SecretReader};
use crate::supervisor::Supervisor;
use crate::{render, secrets, telemetry};

#[derive(Debug, Args)]
pub struct RenderArgs {
    /// Render and end; without it, `mcpeg run` is what keeps files fresh
    #[arg(long, required = true)]
    once: bool,
}

pub fn render(sources: Sources, args: &RenderArgs) -> ExitCode {
    debug_assert!(args.once, "clap requires it");
    let config = match config::load(&sources) {
        Ok(config) => config,
        Err(problems) => return bad_configuration(&problems),
    };
    take_variables(&config);
    block_on(1, async move {
        match once(config).await {
            Ok(lines) => {
                lines.iter().for_each(|line| say(line));
                ExitCode::SUCCESS
            }
            Err(error) => failed(&format!("rendering failed: {error}")),
        }
    })
}

/// The secrets are fetched once, the templates rendered once, and what is on record is flushed.
async fn once(config: Config) -> Result<Vec<String>, PartError> {
    let guard = Arc::new(Guard::new()?);
    let redactor = Arc::new(SecretRedactor::new(guard.clone(), &config.redaction)?);
    let (telemetry, parts) = telemetry::build(config.telemetry.clone(), redactor)?;
    telemetry.install_logging()?;
    app::protect_memory(config.lock_memory)?;
    let audit: Arc<dyn AuditLog> = Arc::new(telemetry.clone());
    // The rotator's part is not run: one fetch is all there is.
    let (secrets, _rotator) = secrets::build(config.secrets, audit.clone(), telemetry.meter())?;
    secrets.attach_observer(guard);
    let reader: Arc<dyn SecretReader> = Arc::new(secrets.clone());
    telemetry.attach_secrets(reader.clone());
    let supervisor = Supervisor::start(parts);
    let rendered = match secrets.fetch_all_once().await {
        Ok(()) => {
            render::render_once(&config.templates, reader.as_ref(), audit.as_ref()).await.map_err(PartError::from)
        }
        Err(error) => Err(error.into()),
    };
    supervisor.stop(config.shutdown_timeout).await;
    let lines = rendered?.into_iter().map(|file| {
        let how = if file.changed { "written" } else { "unchanged" };
        format!("{}: {how}", file.destination.display())
    });
    Ok(lines.collect())
}
