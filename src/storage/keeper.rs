//! What is done from time to time: the stores are healed, made to last, and their room looked at. Once more at the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, error};

use super::leases::Leases;
use super::lock::PidFile;
use super::{Shared, StorageHandle, backups};
use crate::lifecycle::{Part, PartError, Readiness, Shutdown, Stage};
use crate::memory::{self, Room};

/// The pid file is there until the end.
pub fn part(handle: StorageHandle, pid_file: Option<PidFile>) -> Part {
    Part::new("storage", Stage::Storage, Readiness::immediate(), move |shutdown| async move {
        let _pid_file = pid_file;
        run(handle.shared, shutdown).await
    })
}

async fn run(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), PartError> {
    let mut tick = interval(HEAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut persisted = Instant::now();
    let mut trimmed = Instant::now();
    let mut leases = Leases::default();
    let mut recorded: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shutdown.requested() => break,
            _ = tick.tick() => {}
        }
        if let Some(sturdy) = &shared.sturdy {
            sturdy.heal().await;
        }
        let external = shared.cache.load().external.clone();
        if let Some(cache) = external {
            cache.heal().await;
            if trimmed.elapsed() >= TRIM {
                trimmed = Instant::now();
                cache.trim().await;
            }
        }
        if memory::room() > Room::Enough {
            let given = shared.cache.load().cache.shrink();
            if given > 0 {
                debug!(bytes = given, "the cache has given back memory, which is nearly all taken");
            }
        }
        if let Some(points) = &shared.points
            && recorded.is_none_or(|recorded| recorded.elapsed() >= points.settings.interval)
        {
            recorded = Some(Instant::now());
            shared.record_points().await;
        }
        if let Err(failure) = leases.keep(&*shared.control, &*shared.records).await {
            debug!(reason = failure.0, "what is known of secrets is not kept");
        }
        backups::write_if_due(&shared).await;
        if persisted.elapsed() >= shared.runtime.snapshot_interval {
            persisted = Instant::now();
            persist(&shared).await;
        }
    }
    shared.record_points().await;
    persist(&shared).await;
    Ok(())
}

/// What cannot be written is said, and tried again the next time.
async fn persist(shared: &Shared) {
    let done = shared.records.flush().await;
    let mut last = shared.unwritten.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Err(failure) = &done
        && last.as_ref() != Some(&failure.0)
    {
        error!(reason = failure.0, "what is kept could not be made to last");
    }
    *last = done.err().map(|failure| failure.0);
}

const HEAL: Duration = Duration::from_secs(1);
const TRIM: Duration = Duration::from_secs(60);
