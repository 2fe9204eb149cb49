//! Syslog over a Unix datagram socket: a datagram is a message, and a record.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::UnixDatagram;
use zeroize::Zeroize;

use super::{Counts, Surroundings, pacing};
use crate::lifecycle::{Part, Readiness, Shutdown, Stage};
use crate::ports::Redactor;
use crate::telemetry::error::TelemetryError;
use crate::telemetry::intake::{Entry, Kind};
use crate::telemetry::lines::batch::{ATTRIBUTES, LogBatch, Record, Uid};
use crate::telemetry::lines::proto::value;
use crate::telemetry::lines::severity;
use crate::telemetry::lines::syslog::{NIL, parse, unescaped};

#[derive(Debug, Clone, PartialEq)]
pub struct SyslogSettings {
    pub path: PathBuf,
    pub mode: u32,
}

/// A socket whose name goes with it.
struct Bound(std::os::unix::net::UnixDatagram, PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        // Whoever removed it before has done the work.
        let _ = std::fs::remove_file(&self.1);
    }
}

pub fn part(settings: &SyslogSettings, around: Surroundings, counts: Arc<Counts>) -> Result<Part, TelemetryError> {
    let bound = bind(settings).map_err(|error| TelemetryError::Source {
        what: "telemetry.logs.syslog",
        reason: format!("socket {}: {error}", settings.path.display()),
    })?;
    Ok(Part::new("syslog", Stage::Workers, Readiness::immediate(), move |shutdown| {
        run(bound, around, counts, shutdown)
    }))
}

/// In place of a socket that nobody reads any more, and of nothing else.
fn bind(settings: &SyslogSettings) -> io::Result<Bound> {
    use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
    let SyslogSettings { path, mode } = settings;
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is not a socket stands there"));
        }
        Ok(_) => {
            if std::os::unix::net::UnixDatagram::unbound()?.connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process reads there"));
            }
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    let socket = std::os::unix::net::UnixDatagram::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))?;
    socket.set_nonblocking(true)?;
    Ok(Bound(socket, path.clone()))
}

async fn run(
    bound: Bound,
    around: Surroundings,
    counts: Arc<Counts>,
    mut shutdown: Shutdown,
) -> Result<(), crate::lifecycle::PartError> {
    let socket = UnixDatagram::from_std(bound.0.try_clone()?)?;
    let owner = around.owner("mcpeg.syslog");
    let (mut buffer, mut batch, mut number) = (vec![0; LONGEST], LogBatch::default(), 0);
    loop {
        tokio::select! {
            readable = socket.readable() => readable?,
            () = shutdown.requested() => {}
        }
        let is_last = shutdown.is_requested();
        batch.begin(&owner);
        while batch.records() < MOST_AT_ONCE {
            let Ok(length) = socket.try_recv(&mut buffer) else { break };
            number += 1;
            push(&mut batch, &buffer[..length], Uid { source: around.run, position: number }, &*around.redactor);
            buffer[..length].zeroize();
        }
        let records = batch.records();
        if records > 0 {
            let entry = Entry { kind: Kind::Logs, records, body: batch.finish(&owner), checkpoint: None };
            if !pacing::append(&*around.intake, entry, &mut shutdown).await {
                return Ok(());
            }
            counts.syslog.fetch_add(u64::from(records), Ordering::Relaxed);
        } else if is_last {
            return Ok(());
        }
    }
}

fn push(batch: &mut LogBatch, datagram: &[u8], uid: Uid, redactor: &dyn Redactor) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let clean = redactor.redact(datagram);
    let text = String::from_utf8_lossy(&clean);
    let message = parse(&text, now);
    if message.text.is_empty() && message.data.is_empty() {
        return;
    }
    let mut attributes = Vec::new();
    let mut add = |key: &str, text: &str| {
        if !text.is_empty() && text != NIL {
            value::text_pair(&mut attributes, ATTRIBUTES, key, text);
        }
    };
    add("host.name", message.host);
    add("syslog.appname", message.program);
    add("syslog.procid", message.pid);
    add("syslog.msgid", message.id);
    add("syslog.facility", &message.facility.map(|facility| facility.to_string()).unwrap_or_default());
    for (element, name, text) in &message.data {
        // What an escape hid is looked at again.
        add(&format!("syslog.{element}.{name}"), &redactor.redact_text(&unescaped(text)));
    }
    let number = message.severity.map_or(0, severity::of_syslog);
    batch.push(&Record {
        time: message.time,
        observed: now,
        severity: number,
        severity_text: severity::name_of(number),
        body: message.text,
        attributes: &attributes,
        uid,
        ..Record::default()
    });
}

/// Of a datagram; what is longer the kernel cuts.
const LONGEST: usize = 64 * 1024;
const MOST_AT_ONCE: u32 = 512;
