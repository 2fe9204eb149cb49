//! The part that syncs the spool to the disk a few times a second, for the sake of a power failure; a kill loses nothing that is written.

use std::time::Duration;

use tokio::time::timeout;
use tracing::{error, info};

use crate::lifecycle::{Part, Readiness, Stage};

use super::Spool;

/// Ends after the exporters, so that their last acknowledgements are synced too.
pub fn part(spool: Spool) -> Part {
    Part::new("spool", Stage::Storage, Readiness::immediate(), move |mut shutdown| async move {
        let mut failing = false;
        loop {
            // Nothing wakes it while nothing is written.
            let last = tokio::select! {
                () = spool.written() => timeout(SYNC_AFTER, shutdown.requested()).await.is_ok(),
                () = shutdown.requested() => true,
            };
            let synced = if spool.is_dirty() {
                let spool = spool.clone();
                tokio::task::spawn_blocking(move || spool.sync()).await?
            } else {
                Ok(())
            };
            match synced {
                Err(error) if !failing => {
                    error!(%error, "the spool cannot be synced: a power failure may cost records");
                    failing = true;
                }
                Ok(()) if failing => {
                    info!("the spool is synced again");
                    failing = false;
                }
                _ => {}
            }
            if last {
                return Ok(());
            }
        }
    })
}

/// After the first record that is not synced.
const SYNC_AFTER: Duration = Duration::from_millis(200);
