//! `mcpeg check`: everything that can be wrong, at once; with `--all-environments`, in each of them.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{bad_configuration, complain, say};
use crate::config::{self, Config, Problems, Sources};

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON: {"ok": bool, "problems": [...]}
    #[arg(long)]
    json: bool,
    /// Check without an overlay, and with each overlay that there is
    #[arg(long, conflicts_with = "environment")]
    all_environments: bool,
}

pub fn check(sources: &Sources, args: &CheckArgs) -> ExitCode {
    let sources = &Sources { only_checks: true, ..sources.clone() };
    if args.all_environments {
        return check_all(sources, args.json);
    }
    match checked(sources) {
        Ok(config) => {
            if args.json {
                say(&json!({ "ok": true, "problems": [], "files": config.files }).to_string());
            } else {
                say(&summary(&config));
            }
            ExitCode::SUCCESS
        }
        Err(problems) if args.json => {
            say(&json!({ "ok": false, "problems": problems.to_json() }).to_string());
            ExitCode::from(64)
        }
        Err(problems) => bad_configuration(&problems),
    }
}

fn checked(sources: &Sources) -> Result<Config, Problems> {
    config::load(sources).and_then(|config| {
        let found = crate::render::check(&config.templates).into_iter();
        let found = found.map(|(place, message)| {
            let at = place.line.map(|line| (line, place.column.unwrap_or(1)));
            (place.file, at, message)
        });
        let problems = config::template_problems(&config, found.collect());
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    })
}

/// The main file as it chooses for itself, and with each overlay.
fn check_all(sources: &Sources, as_json: bool) -> ExitCode {
    let names = match config::environments(sources) {
        Ok(names) => names,
        Err(problem) => {
            let mut problems = Problems::default();
            problems.push(problem);
            return bad_configuration(&problems);
        }
    };
    let mut all: Vec<Value> = Vec::new();
    let mut good = true;
    for name in std::iter::once(None).chain(names.into_iter().map(Some)) {
        let sources = Sources { environment: name.clone(), ..sources.clone() };
        let shown = name.as_deref().unwrap_or("(as it stands)");
        let outcome = checked(&sources);
        good &= outcome.is_ok();
        match &outcome {
            Ok(config) if as_json => {
                all.push(json!({ "environment": name, "ok": true, "problems": [], "files": config.files }));
            }
            Err(problems) if as_json => {
                all.push(json!({ "environment": name, "ok": false, "problems": problems.to_json() }));
            }
            Ok(config) => say(&format!("{shown}: {}", summary(config))),
            Err(problems) => complain(&format!("{shown}:\n{}", problems.render())),
        }
    }
    if as_json {
        say(&json!({ "ok": good, "environments": all }).to_string());
    }
    if good { ExitCode::SUCCESS } else { ExitCode::from(64) }
}

fn summary(config: &Config) -> String {
    let main = config.files.first().map(|file| file.display().to_string()).unwrap_or_default();
    let counts = [
        (config.secrets.items.len(), "secret"),
        (config.mcp.services.len(), "service"),
        (config.templates.len(), "template"),
        (config.files.len(), "file"),
    ];
    let counts: Vec<String> =
        counts.iter().map(|(count, what)| format!("{count} {what}{}", if *count == 1 { "" } else { "s" })).collect();
    format!("{main}: good ({})", counts.join(", "))
}
