//! `mcpeg audit tail` and `mcpeg audit verify`: the audit trail's end, and whether anybody has touched it. Both read files; the sidecar need not run.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{bad_configuration, block_on, complain, failed, say};
use crate::config::{self, Sources};
use crate::telemetry::audit::verify::{Report, verify};
use crate::telemetry::audit::{LastRecord, parse_anchor, read_head, tail};
use crate::telemetry::rolling::set_aside_from;

#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Show the newest events, and with --follow those that come
    Tail(TailArgs),
    /// Say whether a record was changed or removed, which one, and in which file; fails then
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct TailArgs {
    /// How many
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    lines: u32,
    /// Go on until it is interrupted
    #[arg(short, long)]
    follow: bool,
    /// Print the records as they are
    #[arg(long)]
    json: bool,
    /// The audit file [default: as the configuration says]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Audit files, oldest first [default: the configuration's, and those that were set aside from it]
    files: Vec<PathBuf>,
    /// A record that is known from elsewhere: its number and its hash, as in a log record `audit.anchor`
    #[arg(long, value_name = "SEQ:HASH", value_parser = parse_anchor)]
    anchor: Vec<LastRecord>,
    /// Print JSON: {"ok": bool, "faults": [...], ...}
    #[arg(long)]
    json: bool,
}

pub fn audit(sources: &Sources, args: &AuditArgs) -> ExitCode {
    match &args.command {
        AuditCommand::Tail(args) => show_tail(sources, args),
        AuditCommand::Verify(args) => show_verdict(sources, args),
    }
}

fn show_tail(sources: &Sources, args: &TailArgs) -> ExitCode {
    let path = match path_of(sources, args.file.clone()) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let end = match tail::read(&path, args.lines as usize) {
        Ok(end) => end,
        Err(cause) => return failed(&format!("{}: {cause}", path.display())),
    };
    for record in end.records {
        show(record.get(), args.json);
    }
    if args.follow { block_on(1, follow(&path, end.at, args.json)) } else { ExitCode::SUCCESS }
}

/// Shows what is appended, also to the file that takes this one's place.
async fn follow(path: &Path, (mut known, mut from): (u64, u64), as_json: bool) -> ExitCode {
    let mut rest = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match std::fs::metadata(path) {
            Ok(found) if found.ino() != known || found.len() < from => (known, from) = (found.ino(), 0),
            Ok(found) if found.len() == from => continue,
            Ok(_) => {}
            // Between two files there is none for a moment.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => continue,
            Err(cause) => return failed(&format!("{}: {cause}", path.display())),
        }
        match read_from(path, from, &mut rest) {
            Ok((lines, read)) => {
                from += read;
                lines.iter().for_each(|line| show(line, as_json));
            }
            Err(cause) => return failed(&format!("{}: {cause}", path.display())),
        }
    }
}

/// Whole lines from an offset on; what is begun stays in `rest`.
fn read_from(path: &Path, from: u64, rest: &mut String) -> io::Result<(Vec<String>, u64)> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut reader = BufReader::new(file);
    let mut lines = VecDeque::new();
    let mut read = 0;
    if from == 0 {
        rest.clear();
    }
    loop {
        let count = reader.read_line(rest)?;
        read += count as u64;
        if count == 0 || !rest.ends_with('\n') {
            return Ok((lines.into(), read));
        }
        lines.push_back(std::mem::take(rest).trim_end().to_owned());
    }
}

fn show(record: &str, as_json: bool) {
    match serde_json::from_str::<Value>(record) {
        Ok(value) if !as_json => say(&line_of(&value)),
        _ => say(record),
    }
}

/// `2026-11-26T12:00:00.123456Z       42  denied   mcp.request  key=value ...`
fn line_of(record: &Value) -> String {
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let attributes = record["attributes"].as_object();
    let attributes: Vec<String> = attributes
        .into_iter()
        .flatten()
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name}={text:?}"),
            other => format!("{name}={other}"),
        })
        .collect();
    let line = format!(
        "{}  {:>8}  {:<7}  {:<16}  {}",
        text("time"),
        record["seq"].as_u64().unwrap_or_default(),
        text("outcome"),
        text("event"),
        attributes.join(" ")
    );
    line.trim_end().to_owned()
}

fn show_verdict(sources: &Sources, args: &VerifyArgs) -> ExitCode {
    let (files, current) = match files_of(sources, args) {
        Ok(found) => found,
        Err(code) => return code,
    };
    // Before the files, which may grow meanwhile.
    let head = current.as_deref().and_then(read_head);
    match verify(&files, head, &args.anchor) {
        Ok(report) => {
            let good = report.faults.is_empty();
            if args.json {
                say(&as_json(&report).to_string());
            } else {
                tell(&report);
            }
            if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(cause) => failed(&format!("the audit files cannot be read: {cause}")),
    }
}

/// The files, oldest first, and the one beside which the head file is.
fn files_of(sources: &Sources, args: &VerifyArgs) -> Result<(Vec<PathBuf>, Option<PathBuf>), ExitCode> {
    if !args.files.is_empty() {
        if let Some(missing) = args.files.iter().find(|file| !file.exists()) {
            return Err(failed(&format!("{}: there is no such file", missing.display())));
        }
        return Ok((args.files.clone(), args.files.last().cloned()));
    }
    let path = path_of(sources, None)?;
    let mut files =
        set_aside_from(&path).map_err(|cause| failed(&format!("the folder of {}: {cause}", path.display())))?;
    if path.exists() || files.is_empty() {
        files.push(path.clone());
    }
    Ok((files, Some(path)))
}

fn path_of(sources: &Sources, given: Option<PathBuf>) -> Result<PathBuf, ExitCode> {
    if let Some(given) = given {
        return Ok(given);
    }
    let config = config::load(sources).map_err(|problems| bad_configuration(&problems))?;
    config.telemetry.audit.path.ok_or_else(|| failed("the configuration has no audit.path"))
}

fn tell(report: &Report) {
    for found in &report.files {
        let records = match (found.first, found.last) {
            (Some(first), Some(last)) => format!("records {first} to {last}"),
            _ => "no records".to_owned(),
        };
        say(&format!("{}: {records}", found.path.display()));
    }
    report.notes.iter().for_each(|note| say(&format!("note: {note}")));
    report.faults.iter().for_each(|fault| complain(&fault.to_string()));
    let last = report.last.map(|last| format!("; the last is {}:{}", last.seq, last.hash)).unwrap_or_default();
    match report.faults.len() {
        0 => say(&format!("verified {} records{last}", report.records)),
        count => {
            complain(&format!("mcpeg: the audit trail was touched: {count} fault{}", if count == 1 { "" } else { "s" }))
        }
    }
}

fn as_json(report: &Report) -> Value {
    let faults: Vec<Value> = report
        .faults
        .iter()
        .map(|fault| json!({ "file": fault.file, "line": fault.line, "seq": fault.seq, "what": fault.what }))
        .collect();
    let files: Vec<Value> = report
        .files
        .iter()
        .map(|found| json!({ "path": found.path, "first": found.first, "last": found.last }))
        .collect();
    json!({
        "ok": faults.is_empty(),
        "records": report.records,
        "last": report.last.map(|last| json!({ "seq": last.seq, "hash": last.hash.to_string() })),
        "files": files,
        "faults": faults,
        "notes": report.notes,
    })
}

const LOOK_EVERY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_one_line() {
        let record = json!({ "time": "T", "event": "x.y", "outcome": "denied", "seq": 7,
                             "attributes": { "a": "b c", "n": 3 } });
        assert_eq!(line_of(&record), "T         7  denied   x.y               a=\"b c\" n=3");
    }

    #[test]
    fn a_line_that_is_not_whole_waits_for_its_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let mut rest = String::new();
        std::fs::write(&path, "one\ntw").unwrap();
        assert_eq!(read_from(&path, 0, &mut rest).unwrap(), (vec!["one".to_owned()], 6));
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(read_from(&path, 6, &mut rest).unwrap(), (vec!["two".to_owned()], 2));
    }
}
