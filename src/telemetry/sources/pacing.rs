//! Appending to the spool with patience: as long as it is full, its source waits.

use std::time::Duration;

use super::super::intake::{Entry, Intake, NotTaken};
use crate::lifecycle::Shutdown;

/// `false`: the process stops, and it was not taken.
pub async fn append(intake: &dyn Intake, entry: Entry<'_>, shutdown: &mut Shutdown) -> bool {
    loop {
        match intake.append(entry) {
            Ok(()) => return true,
            Err(NotTaken::TooLarge) => {
                tracing::warn!(records = entry.records, "log records are larger than a request may be");
                return true;
            }
            Err(NotTaken::Full) if shutdown.is_requested() => return false,
            Err(NotTaken::Full) => tokio::select! {
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.requested() => {}
            },
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(100);
