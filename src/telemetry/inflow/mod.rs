//! All that others say and mcpeg passes on: files, pipes, sockets and the receiver, put together from the settings.
//!
//! Owns their parts, their state in `status` and their metrics. Each appends to the spool and waits when it is full.

mod metrics;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;
use tokio::sync::watch;

use super::TelemetryError;
use super::intake::Intake;
use super::receiver::{self, Received};
use super::settings::SourceSettings;
use super::sources::{Counts, Surroundings, journald, kubernetes, stdin, syslog};
use super::tail::settings::FileSet;
use super::tail::{Tail, TailState};
use crate::lifecycle::Part;
use crate::ports::{Condition, ConditionState, Redactor};

/// What is known of the sources while they run.
#[derive(Clone, Default)]
pub struct Inflow {
    files: Arc<TailState>,
    sets: Arc<watch::Sender<Vec<FileSet>>>,
    received: Option<Arc<Received>>,
    counts: Arc<Counts>,
}

/// Binds sockets and makes the parts. `run` tells this process's records from those of any other.
pub fn build(
    settings: &SourceSettings,
    intake: &Arc<dyn Intake>,
    redactor: &Arc<dyn Redactor>,
    run: u64,
) -> Result<(Inflow, Vec<Part>), TelemetryError> {
    let resource = resource(settings);
    let around = Surroundings { intake: intake.clone(), redactor: redactor.clone(), resource: resource.clone(), run };
    let (mut inflow, mut parts) = (Inflow::default(), Vec::new());
    inflow.follow(settings.files.clone());
    let (sets, state) = (inflow.sets.subscribe(), inflow.files.clone());
    let tail = Tail { sets, resource, intake: intake.clone(), redactor: redactor.clone(), state };
    let part = tail
        .part()
        .map_err(|error| TelemetryError::Source { what: "telemetry.logs.files", reason: error.to_string() })?;
    parts.push(part);
    if let Some(rules) = &settings.stdin {
        parts.push(stdin::part(rules.clone(), around.clone(), inflow.counts.clone()));
    }
    if let Some(settings) = &settings.syslog {
        parts.push(syslog::part(settings, around.clone(), inflow.counts.clone())?);
    }
    if let Some(settings) = &settings.journald {
        parts.push(journald::part(settings.clone(), around, inflow.counts.clone())?);
    }
    if let Some(settings) = &settings.receiver {
        let received: Arc<Received> = Arc::default();
        inflow.received = Some(received.clone());
        parts.push(receiver::build(settings, intake.clone(), redactor.clone(), received)?);
    }
    Ok((inflow, parts))
}

/// Of what others have written: the host, the pod, and what the configuration says, which wins.
fn resource(settings: &SourceSettings) -> BTreeMap<String, String> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let mut resource = kubernetes::of_environment(|name| std::env::var(name).ok(), read);
    let host = read(Path::new("/proc/sys/kernel/hostname")).map(|name| name.trim().to_owned());
    resource.extend(host.map(|name| ("host.name".to_owned(), name)));
    resource.entry("service.name".to_owned()).or_insert_with(|| "unknown_service".to_owned());
    resource.extend(settings.resource.clone());
    resource
}

impl Inflow {
    /// These files, from now on.
    pub fn follow(&self, sets: Vec<FileSet>) {
        self.files.is_used.fetch_or(!sets.is_empty(), Ordering::Relaxed);
        self.sets.send_if_modified(|known| {
            let changes = *known != sets;
            *known = sets;
            changes
        });
    }

    /// The files, where there are any to follow.
    fn files(&self) -> Option<&TailState> {
        Some(&*self.files).filter(|files| files.is_used.load(Ordering::Relaxed))
    }

    pub fn condition(&self) -> Option<Condition> {
        let files = self.files()?;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (count, lag, failing) = (get(&files.files), get(&files.lag), get(&files.failing));
        let (state, message) = if files.is_blocked.load(Ordering::Relaxed) {
            (ConditionState::Degraded, format!("the spool is full: {count} files wait, nothing of them is lost"))
        } else if failing > 0 {
            (ConditionState::Degraded, format!("{failing} of {count} files cannot be read; the log says why"))
        } else {
            (ConditionState::Ok, format!("{count} files, {lag} bytes not read yet"))
        };
        Some(Condition { component: "logs".to_owned(), state, message })
    }

    pub fn detail(&self) -> serde_json::Value {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let files = self.files().map(|files| {
            json!({
                "followed": get(&files.files),
                "records": get(&files.records),
                "unread_bytes": get(&files.lag),
                "unreadable": get(&files.failing),
                "written_anew": get(&files.rotations),
            })
        });
        let received = self.received.as_ref().map(|received| {
            json!({
                "logs": get(&received.logs),
                "spans": get(&received.spans),
                "metrics": get(&received.metrics),
                "deferred_requests": get(&received.deferred),
                "refused_requests": get(&received.refused),
            })
        });
        json!({ "files": files, "receiver": received })
    }

    fn taken(&self) -> Vec<(&'static str, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let files = self.files().map(|files| ("files", get(&files.records))).into_iter();
        let received = self.received.iter().flat_map(|received| {
            [
                ("receiver.logs", get(&received.logs)),
                ("receiver.traces", get(&received.spans)),
                ("receiver.metrics", get(&received.metrics)),
            ]
        });
        let others = [
            ("stdin", get(&self.counts.stdin)),
            ("syslog", get(&self.counts.syslog)),
            ("journald", get(&self.counts.journald)),
        ];
        files.chain(received).chain(others.into_iter().filter(|(_, count)| *count > 0)).collect()
    }
}
