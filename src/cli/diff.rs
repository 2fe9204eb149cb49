//! `mcpeg diff`: what the running sidecar has, against what is written. The sidecar compares, with its own variables and flags.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::control::{SocketArgs, ask};
use super::{complain, say};
use crate::config::Sources;

#[derive(Debug, Args)]
pub struct DiffArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

/// 0: the same; 1: they differ, or what is written cannot be applied.
pub fn diff(sources: &Sources, args: &DiffArgs) -> ExitCode {
    ask(sources, &args.socket, "GET", "/v1/diff", |status, answer| {
        if args.socket.json {
            say(&format!("{answer:#}"));
        } else if status == 200 {
            lines(answer).iter().for_each(|line| say(line));
        } else {
            complain(&format!("mcpeg: {}", answer["error"].as_str().unwrap_or("the answer does not say why")));
        }
        let is_same = status == 200 && answer["differs"] == false;
        if is_same { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

/// `+` is written and does not run, `-` runs and is not written, `~` is another value.
fn lines(answer: &Value) -> Vec<String> {
    let list = |key: &str| answer[key].as_array().into_iter().flatten();
    let mut lines: Vec<String> = Vec::new();
    let revision = |side: &str| answer[side].as_str();
    if let (Some(running), Some(written)) = (revision("running_revision"), revision("written_revision")) {
        lines.push(format!("running: revision {running}; written: revision {written}"));
    }
    for found in list("keys") {
        let (key, side) = (found["key"].as_str().unwrap_or("?"), |side: &str| found[side].as_str());
        lines.push(match (side("running"), side("written")) {
            (None, written) => format!("+ {key}: {}", written.unwrap_or_default()),
            (Some(running), None) => format!("- {key}: {running}"),
            (Some(running), Some(written)) => format!("~ {key}: {running} -> {written}"),
        });
    }
    let problems: Vec<&str> = list("problems").filter_map(Value::as_str).collect();
    if !problems.is_empty() {
        lines.push("what is written cannot be applied:".to_owned());
        lines.extend(problems.iter().map(|problem| format!("  {problem}")));
    }
    if answer["differs"] == false {
        lines.push("what is written is what runs".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_difference_is_a_line() {
        let answer = json!({ "differs": true, "problems": [], "running_revision": "7", "written_revision": "9", "keys": [
            { "key": "a", "running": "1", "written": "2" }, { "key": "b", "written": "x" }, { "key": "c", "running": "***" },
        ]});
        assert_eq!(lines(&answer), ["running: revision 7; written: revision 9", "~ a: 1 -> 2", "+ b: x", "- c: ***"]);
        assert_eq!(lines(&json!({ "differs": false, "keys": [], "problems": [] })), ["what is written is what runs"]);
    }
}
