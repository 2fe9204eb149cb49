//! The file of a template that a reload took away, where it is to go too.
//!
//! Invariants: nobody writes a file while it is removed; a file that a later reload wants again is left alone.

use std::sync::Arc;

use tracing::{info, warn};

use crate::ports::{AuditEvent, Outcome};

use super::file;
use super::handle::{Job, Shared};
use super::unit::Unit;

pub(super) async fn run(job: Arc<Job>, shared: Arc<Shared>) {
    let turn = job.turn().await;
    // It cannot be cancelled; a panic in it is counted as an end of this task.
    let remove = move || {
        let _turn = turn;
        remove(&job, &shared);
    };
    let _ = tokio::task::spawn_blocking(remove).await;
}

fn remove(job: &Job, shared: &Shared) {
    // The last generation of a group stays.
    let Unit::File(settings) = &job.unit else { return };
    let removed = match shared.wants(&settings.file.destination) {
        true => Ok(false),
        false => file::remove(&settings.file),
    };
    let destination = job.unit.label();
    match removed {
        Ok(false) => {}
        Ok(true) => {
            info!(destination, "file.removed");
            let event = AuditEvent::new("file.removed", Outcome::Success).with("mcpeg.file.path", destination);
            if let Err(error) = shared.context.audit.record(event) {
                warn!(%error, "audit event lost");
            }
        }
        Err(error) => shared.context.failed(&job.unit, &error),
    }
}
