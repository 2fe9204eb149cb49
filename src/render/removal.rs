//! The file of a template that a reload took away, where it is to go too.
//!
//! Invariants: nobody writes a file while it is removed; a file that a later reload wants again is left alone.

use std::sync::Arc;

use tracing::{info, warn};

use crate::ports::{AuditEvent, Outcome};

use super::context::destination_of;
use super::file;
use super::handle::{Job, Shared};

pub(super) async fn run(job: Arc<Job>, shared: Arc<Shared>) {
    // It cannot be cancelled; a panic in it is counted as an end of this task.
    let _ = tokio::task::spawn_blocking(move || remove(&job, &shared)).await;
}

fn remove(job: &Job, shared: &Shared) {
    let removed = job.while_nobody_writes(|| match shared.wants(&job.settings.file.destination) {
        true => Ok(false),
        false => file::remove(&job.settings.file),
    });
    let destination = destination_of(&job.settings);
    match removed {
        Ok(false) => {}
        Ok(true) => {
            info!(destination, "file.removed");
            let event = AuditEvent::new("file.removed", Outcome::Success).with("mcpeg.file.path", destination);
            if let Err(error) = shared.context.audit.record(event) {
                warn!(%error, "audit event lost");
            }
        }
        Err(error) => shared.context.failed(&job.settings, &error),
    }
}
