//! `mcpeg check`: everything that can be wrong, at once.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{bad_configuration, say};
use crate::config::{self, Config, Sources};

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON: {"ok": bool, "problems": [...]}
    #[arg(long)]
    json: bool,
}

pub fn check(sources: &Sources, args: &CheckArgs) -> ExitCode {
    let loaded = config::load(sources).and_then(|config| {
        let found = crate::render::check(&config.templates).into_iter();
        let found = found.map(|(place, message)| {
            let at = place.line.map(|line| (line, place.column.unwrap_or(1)));
            (place.file, at, message)
        });
        let problems = config::template_problems(&config, found.collect());
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    });
    match loaded {
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
