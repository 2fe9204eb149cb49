//! `mcpeg secrets list` and `mcpeg secrets refresh`: what the running sidecar knows of its secrets, never a value.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::control::{SocketArgs, ask};
use super::{complain, failed, say};
use crate::config::Sources;
use crate::secret::is_name;

#[derive(Debug, Args)]
pub struct SecretsArgs {
    #[command(subcommand)]
    command: SecretsCommand,
}

#[derive(Debug, Subcommand)]
enum SecretsCommand {
    /// Names, versions, ages, and when each is asked for again
    List {
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Fetch one secret now, and say what came of it
    Refresh {
        /// A key of secrets.items
        item: String,
        #[command(flatten)]
        socket: SocketArgs,
    },
}

pub fn secrets(sources: &Sources, args: &SecretsArgs) -> ExitCode {
    match &args.command {
        SecretsCommand::List { socket } => list(sources, socket),
        SecretsCommand::Refresh { item, socket } => refresh(sources, item, socket),
    }
}

fn list(sources: &Sources, socket: &SocketArgs) -> ExitCode {
    ask(sources, socket, "GET", "/v1/secrets", |status, answer| {
        if status != 200 {
            return refused(answer);
        }
        if socket.json {
            say(&format!("{answer:#}"));
        } else {
            say(&table(answer["secrets"].as_array().map_or(&[], Vec::as_slice)));
        }
        ExitCode::SUCCESS
    })
}

fn refresh(sources: &Sources, item: &str, socket: &SocketArgs) -> ExitCode {
    if !is_name(item) {
        return failed("a secret's name has 1 to 64 letters, digits, `-` and `_`");
    }
    ask(sources, socket, "POST", &format!("/v1/secrets/{item}/refresh"), |status, answer| {
        if status != 200 {
            return refused(answer);
        }
        if socket.json {
            say(&format!("{answer:#}"));
        } else {
            let what = if answer["changed"] == true { "a new value" } else { "the same value" };
            let theirs = answer["provider_version"].as_str().map(|version| format!(", the provider's {version}"));
            say(&format!("{item}: {what}, version {}{}", answer["version"], theirs.unwrap_or_default()));
        }
        ExitCode::SUCCESS
    })
}

fn refused(answer: &Value) -> ExitCode {
    failed(answer["error"].as_str().unwrap_or("the sidecar answered with something else than expected"))
}

/// One line a secret; what is wrong stands below it.
fn table(secrets: &[Value]) -> String {
    let head = ["SECRET", "STATE", "VERSION", "PROVIDER'S", "AGE", "NEXT IN", "PROVIDER"].map(str::to_owned);
    let rows = secrets.iter().map(|secret| {
        [
            text(&secret["item"]),
            text(&secret["state"]),
            text(&secret["version"]),
            text(&secret["provider_version"]),
            seconds(&secret["age_seconds"]),
            seconds(&secret["next_seconds"]),
            text(&secret["provider"]),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
    let widths: Vec<usize> =
        (0..7).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut lines = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        lines.push(cells.join("  ").trim_end().to_owned());
        let message = number.checked_sub(1).and_then(|at| secrets[at]["message"].as_str()).unwrap_or_default();
        if !message.is_empty() {
            lines.push(format!("  {message}"));
        }
    }
    if secrets.is_empty() {
        complain("no secrets are configured");
    }
    lines.join("\n")
}

/// A text or a number as it is; `-` for nothing.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => "-".to_owned(),
    }
}

fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_secret_and_its_trouble_below_it() {
        let secrets = [
            json!({ "item": "a", "state": "ok", "version": 3, "provider_version": "7", "age_seconds": 1.25,
                    "next_seconds": 4.0, "provider": "corp", "message": "" }),
            json!({ "item": "longer", "state": "failed", "version": null, "provider_version": null, "age_seconds": null,
                    "next_seconds": null, "provider": "corp", "message": "denied" }),
        ];
        let lines: Vec<String> = table(&secrets).lines().map(str::to_owned).collect();
        assert_eq!(lines[1], "a       ok      3        7           1.2 s  4.0 s    corp");
        assert_eq!(lines[2], "longer  failed  -        -           -      -        corp");
        assert_eq!(lines[3], "  denied");
    }
}
