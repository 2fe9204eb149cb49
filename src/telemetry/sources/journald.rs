//! The journal of systemd, through `journalctl`, which has the library: its entries as JSON, from the last cursor on.
//!
//! A program of its own, as the library is on few images, and a fault of it is then not one of this process. It is started again when it
//! ends; the cursor is the checkpoint, in the same frame as the entries before it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::process::Command;

use super::stream::Stream;
use super::{Counts, Surroundings};
use crate::lifecycle::{Part, Readiness, Stage};
use crate::telemetry::error::TelemetryError;
use crate::telemetry::lines::rules::{Content, Rules, SeverityRule, TimeRule};

#[derive(Debug, Clone, PartialEq, Default)]
pub struct JournaldSettings {
    /// Only of these units; none: all.
    pub units: Vec<String>,
    /// Begin with what is there at the first start, not with what comes.
    pub from_beginning: bool,
}

/// Where `journalctl` is. The reason why there is no journal, in words.
pub fn find(path: Option<std::ffi::OsString>) -> Result<PathBuf, String> {
    let path = path.unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|program| program.is_file());
    found.ok_or_else(|| "`journalctl` is not on this system: the journal cannot be read".to_owned())
}

pub fn part(settings: JournaldSettings, around: Surroundings, counts: Arc<Counts>) -> Result<Part, TelemetryError> {
    let program = find(std::env::var_os("PATH"))
        .map_err(|reason| TelemetryError::Source { what: "telemetry.logs.journald", reason })?;
    Ok(Part::new("journal", Stage::Workers, Readiness::immediate(), move |mut shutdown| async move {
        while !shutdown.is_requested() {
            let mut command = Command::new(&program);
            command.args(arguments(&settings, last_cursor(&around).as_deref()));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
            match command.spawn() {
                Ok(mut child) => {
                    if let Some(output) = child.stdout.take() {
                        let counted = counts.clone();
                        let stream = Stream {
                            scope: "mcpeg.journald",
                            rules: rules(),
                            around: around.clone(),
                            checkpoint: |bytes: &[u8]| cursor(bytes).map(|cursor| (SOURCE, cursor.to_vec())),
                            on_records: Box::new(move |count| {
                                counted.journald.fetch_add(count, Ordering::Relaxed);
                            }),
                        };
                        stream.run(output, &mut shutdown).await;
                    }
                    // Killed here, or ended by itself.
                    let _ = child.start_kill();
                    let _ = child.wait().await;
                }
                Err(error) => tracing::warn!(%error, "the journal cannot be read"),
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = shutdown.requested() => {}
            }
        }
        Ok(())
    }))
}

fn last_cursor(around: &Surroundings) -> Option<String> {
    let known = around.intake.checkpoints().into_iter().find(|(source, _)| source == SOURCE)?;
    String::from_utf8(known.1).ok()
}

fn arguments(settings: &JournaldSettings, cursor: Option<&str>) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--follow", "--output=json", "--no-pager", "--all", FIELDS].map(str::to_owned).to_vec();
    arguments.push(match cursor {
        Some(cursor) => format!("--after-cursor={cursor}"),
        None if settings.from_beginning => "--no-tail".to_owned(),
        None => "--lines=0".to_owned(),
    });
    if cursor.is_some() {
        arguments.push("--no-tail".to_owned());
    }
    arguments.extend(settings.units.iter().map(|unit| format!("--unit={unit}")));
    arguments
}

/// The cursor of the last whole entry.
fn cursor(bytes: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::rfind(bytes, CURSOR)? + CURSOR.len();
    let rest = bytes[at..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    Some(&rest[..memchr::memchr(b'"', rest)?])
}

fn rules() -> Rules {
    let keys = |key: &str| vec![key.to_owned()];
    Rules {
        content: Content::Json,
        body_keys: keys("MESSAGE"),
        time: TimeRule { keys: keys("__REALTIME_TIMESTAMP"), ..TimeRule::default() },
        severity: SeverityRule { keys: keys("PRIORITY"), ..SeverityRule::default() },
        ..Rules::default()
    }
}

const PROGRAM: &str = "journalctl";
const SOURCE: &str = "journald";
const CURSOR: &[u8] = b"\"__CURSOR\"";
const FIELDS: &str = "--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,_PID,_UID,_COMM";
const AGAIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cursor_is_found_and_given_to_the_next_start() {
        let lines =
            b"{\"__CURSOR\":\"s=1;i=1\",\"MESSAGE\":\"a\"}\n{ \"MESSAGE\":\"b\", \"__CURSOR\" : \"s=1;i=2\" }\n";
        assert_eq!(cursor(lines), Some(&b"s=1;i=2"[..]));
        assert_eq!(cursor(b"{}"), None);
        let settings = JournaldSettings { units: vec!["app.service".into()], from_beginning: true };
        assert!(arguments(&settings, None).contains(&"--no-tail".to_owned()));
        let next = arguments(&settings, Some("s=1;i=2"));
        assert!(next.contains(&"--after-cursor=s=1;i=2".to_owned()) && next.contains(&"--unit=app.service".to_owned()));
        assert!(find(Some("/nowhere".into())).unwrap_err().contains("journalctl"));
    }
}
