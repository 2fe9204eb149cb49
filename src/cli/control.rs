//! `mcpeg status` and `mcpeg reload`: questions to the running sidecar on its admin socket.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{bad_configuration, block_on, complain, failed, say};
use crate::admin::client;
use crate::config::{self, Sources};

#[derive(Debug, Args)]
pub struct SocketArgs {
    /// The sidecar's admin socket [default: as the configuration says]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print what the sidecar answered
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print nothing when it is ready: for a probe
    #[arg(long)]
    ready: bool,
}

#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

pub fn status(sources: &Sources, args: &StatusArgs) -> ExitCode {
    ask(sources, &args.socket, "GET", "/v1/status", |_, answer| {
        let ready = answer["ready"] == true;
        if args.socket.json {
            say(&format!("{answer:#}"));
        } else if !(args.ready && ready) {
            say(status_text(answer).trim_end());
        }
        if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

pub fn reload(sources: &Sources, args: &ReloadArgs) -> ExitCode {
    ask(sources, &args.socket, "POST", "/v1/reload", |status, answer| {
        if args.socket.json {
            say(&format!("{answer:#}"));
        } else {
            match reload_text(status, answer) {
                Ok(done) => say(&done),
                Err(reason) => complain(&reason),
            }
        }
        match status {
            200 => ExitCode::SUCCESS,
            422 => ExitCode::from(64),
            _ => ExitCode::FAILURE,
        }
    })
}

/// The outcome as a person reads it; an error if the new configuration is not in force.
fn reload_text(status: u16, answer: &Value) -> Result<String, String> {
    match answer["outcome"].as_str() {
        Some("applied") => Ok(format!("applied: {}", words(&answer["changed"]).join(", "))),
        Some("unchanged") => Ok("unchanged".to_owned()),
        Some("rejected") => {
            let problems: String = words(&answer["problems"]).iter().map(|problem| format!("\n  {problem}")).collect();
            Err(format!("mcpeg: rejected; the old configuration goes on:{problems}"))
        }
        _ => {
            let reason = answer["error"].as_str().unwrap_or("the answer does not say why");
            Err(format!("mcpeg: no outcome: {reason} (status {status})"))
        }
    }
}

/// One request to the admin socket; `answer` gets the status and the JSON of the answer.
pub(super) fn ask(
    sources: &Sources,
    args: &SocketArgs,
    method: &str,
    path: &str,
    answer: impl FnOnce(u16, &Value) -> ExitCode,
) -> ExitCode {
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => match config::sockets(sources) {
            Ok(sockets) => sockets.admin,
            Err(problems) => return bad_configuration(&problems),
        },
    };
    block_on(1, async {
        let result = match method {
            "POST" => client::post(&socket, path).await,
            _ => client::get(&socket, path).await,
        };
        match result {
            Ok(response) => match serde_json::from_slice::<Value>(&response.body) {
                Ok(json) => answer(response.status, &json),
                Err(_) => {
                    failed(&format!("{} answered {} with something else than JSON", socket.display(), response.status))
                }
            },
            Err(error) => failed(&error.to_string()),
        }
    })
}

/// The status as a person reads it: one line a thing, what is wrong first.
fn status_text(status: &Value) -> String {
    let mut text = String::new();
    let word = if status["ready"] == true { "ready" } else { "NOT READY" };
    let _ = writeln!(
        text,
        "{} {}: {word}, pid {}, up {} s",
        status["name"].as_str().unwrap_or("mcpeg"),
        status["version"].as_str().unwrap_or("?"),
        status["pid"],
        status["uptime_s"].as_f64().unwrap_or(0.0) as u64
    );
    let empty = Vec::new();
    let mut conditions: Vec<&Value> = status["conditions"].as_array().unwrap_or(&empty).iter().collect();
    let rank = |condition: &Value| match condition["state"].as_str() {
        Some("failed") => 0,
        Some("degraded") => 1,
        _ => 2,
    };
    conditions.sort_by_key(|condition| rank(condition));
    let width = conditions.iter().filter_map(|c| c["component"].as_str()).map(str::len).max().unwrap_or(0);
    for condition in conditions {
        let (component, state) =
            (condition["component"].as_str().unwrap_or("?"), condition["state"].as_str().unwrap_or("?"));
        let line = format!("  {state:<8}  {component:<width$}  {}", condition["message"].as_str().unwrap_or(""));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reload_without_an_outcome_says_why() {
        let text = |status, answer: Value| reload_text(status, &answer).unwrap_err();
        assert_eq!(text(503, json!({ "error": "too many" })), "mcpeg: no outcome: too many (status 503)");
        assert_eq!(text(500, json!([])), "mcpeg: no outcome: the answer does not say why (status 500)");
        let rejected = text(422, json!({ "outcome": "rejected", "problems": ["a:1:1: no", "b"] }));
        assert_eq!(rejected, "mcpeg: rejected; the old configuration goes on:\n  a:1:1: no\n  b");
    }
}
