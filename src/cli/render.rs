//! `mcpeg render`: every template rendered (`--once`), shown (`--dry-run`) or compared (`--check`), then the end.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::{block_on, complain, failed, load_opened, say};
use crate::app;
use crate::config::{Config, Sources};
use crate::guard::{Guard, SecretRedactor};
use crate::lifecycle::PartError;
use crate::ports::{AuditLog, SecretReader};
use crate::render::{Compared, Rendered};
use crate::secrets::SecretsError;
use crate::supervisor::Supervisor;
use crate::{render, secrets, telemetry};

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub struct RenderArgs {
    /// Write the files and end; `mcpeg run` is what keeps them fresh
    #[arg(long, group = "what")]
    once: bool,
    /// Write nothing: show what would change as a diff, with each secret's name in place of its value
    #[arg(long, group = "what")]
    dry_run: bool,
    /// Write nothing: say which files differ from what they should be, and fail if any does
    #[arg(long, group = "what")]
    check: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn render(mut sources: Sources, args: &RenderArgs) -> ExitCode {
    let config = match load_opened(&mut sources) {
        Ok(config) => config,
        Err(code) => return code,
    };
    block_on(1, async move {
        let (done, unfetched) = match run(config, args).await {
            Ok(done) => done,
            Err(error) => return failed(&format!("rendering failed: {error}")),
        };
        let code = match done {
            Done::Written(files, failures) => say_written(&files, &failures, args.json),
            Done::Compared(files) => say_compared(&files, args),
        };
        unfetched.map_or(code, |error| failed(&format!("rendering failed: {error}")))
    })
}

enum Done {
    /// And what could not be, in words.
    Written(Vec<Rendered>, Vec<String>),
    Compared(Vec<Compared>),
}

/// What became of the templates, and of the secrets that could not be fetched: templates that do without those are rendered.
type Outcome = (Done, Option<SecretsError>);

/// The secrets are fetched once, the templates rendered once, and what is on record is flushed.
async fn run(config: Config, args: &RenderArgs) -> Result<Outcome, PartError> {
    let guard = Arc::new(Guard::new()?);
    let redactor = Arc::new(SecretRedactor::new(guard.clone(), &config.redaction)?);
    let (telemetry, parts) = telemetry::build(config.telemetry.clone(), redactor, config.named())?;
    telemetry.install_logging()?;
    app::protect_memory(config.lock_memory)?;
    let audit: Arc<dyn AuditLog> = Arc::new(telemetry.clone());
    // The rotator's part is not run: one fetch is all there is.
    let (secrets, _rotator) = secrets::build(config.secrets, audit.clone(), telemetry.meter())?;
    secrets.attach_observer(guard);
    let reader: Arc<dyn SecretReader> = Arc::new(secrets.clone());
    telemetry.attach_secrets(reader.clone());
    let supervisor = Supervisor::start(parts);
    let unfetched = secrets.fetch_all_once().await.err();
    let done = match args.once {
        true => {
            let (files, failures) = render::render_once(&config.templates, reader.as_ref(), audit.as_ref()).await;
            Done::Written(files, failures)
        }
        false => Done::Compared(render::compare(&config.templates, reader.as_ref()).await),
    };
    supervisor.stop(config.shutdown_timeout).await;
    Ok((done, unfetched))
}

/// Fails when anything did.
fn say_written(files: &[Rendered], failures: &[String], as_json: bool) -> ExitCode {
    if as_json {
        let files: Vec<Value> = files
            .iter()
            .map(|file| json!({ "source": file.source, "destination": file.destination, "changed": file.changed }))
            .collect();
        say(&json!({ "files": files, "failures": failures }).to_string());
    } else {
        for file in files {
            let how = if file.changed { "written" } else { "unchanged" };
            say(&format!("{}: {how}", file.destination.display()));
        }
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { failed(&format!("rendering failed: {}", failures.join("\n"))) }
}

/// Fails when a template does, and with `--check` when a file differs.
fn say_compared(files: &[Compared], args: &RenderArgs) -> ExitCode {
    if args.json {
        say(&json!({ "files": files.iter().map(|file| to_json(file, args)).collect::<Vec<_>>() }).to_string());
    } else {
        files.iter().for_each(|file| say_one(file, args));
    }
    let is_good = |file: &Compared| match &file.outcome {
        Ok(difference) => !args.check || difference.differs.is_empty(),
        Err(_) => false,
    };
    if files.iter().all(is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say_one(file: &Compared, args: &RenderArgs) {
    let destination = file.destination.display();
    match &file.outcome {
        Err(error) => complain(&format!("error: {error}")),
        Ok(difference) if difference.differs.is_empty() => say(&format!("{destination}: as it should be")),
        Ok(difference) => {
            say(&format!("{destination}: {}", difference.differs.join("; ")));
            if args.dry_run && !difference.diff.is_empty() {
                say(difference.diff.trim_end_matches('\n'));
            }
        }
    }
}

fn to_json(file: &Compared, args: &RenderArgs) -> Value {
    let mut object = json!({ "source": file.source, "destination": file.destination });
    match &file.outcome {
        Ok(difference) => {
            object["differs"] = json!(difference.differs);
            if args.dry_run {
                object["diff"] = json!(difference.diff);
            }
        }
        Err(error) => object["error"] = json!(error.to_string()),
    }
    object
}
