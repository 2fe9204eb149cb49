//! The part that looks after the audit file: syncs it a few times a second, begins it anew when its time is over or after it was moved or
//! removed (log rotation), compresses and removes old ones, and tries a file that failed. It stops with the storage stage, after everybody who records, and leaves the file synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};

use crate::lifecycle::{Part, Readiness, Shutdown, Stage};

use super::file::AuditFile;
use super::{AuditTrail, Failing, head};
use crate::telemetry::rolling;

pub fn part(trail: Arc<AuditTrail>) -> Part {
    Part::new("audit file", Stage::Storage, Readiness::immediate(), move |shutdown| async move {
        keep(trail, shutdown).await;
        Ok(())
    })
}

async fn keep(trail: Arc<AuditTrail>, mut shutdown: Shutdown) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0_u32;
    loop {
        // An idle process is woken by its looks alone.
        let (stop, look) = tokio::select! {
            _ = looks.tick() => (false, true),
            () = trail.recorded.notified() => (timeout(SYNC_AFTER, shutdown.requested()).await.is_ok(), false),
            () = shutdown.requested() => (true, false),
        };
        count = count.wrapping_add(u32::from(look));
        let tidy = look && count % TIDY_EVERY == 1 && trail.keeps_old_files();
        if !trail.needs_care(look) && !tidy && !stop {
            continue;
        }
        let looked_after = trail.clone();
        let work = tokio::task::spawn_blocking(move || {
            if look {
                looked_after.follow_moved_file();
                looked_after.set_aside_if_due();
                looked_after.try_failed_file();
            }
            looked_after.sync_newest();
            if tidy {
                looked_after.tidy();
            }
        });
        if let Err(panic) = work.await {
            error!(error = %panic, "looking after the audit file failed");
        }
        if stop {
            return;
        }
    }
}

impl AuditTrail {
    /// Whether there is anything to do: cheap, so that an idle process does not keep a blocking thread awake.
    fn needs_care(&self, look: bool) -> bool {
        let state = self.lock();
        let Some(file) = state.file.clone() else { return false };
        let failing = state.failing.is_some();
        let unnoted = state.noted != state.seq;
        let due = look && file.is_due(&state.settings.rolling, SystemTime::now());
        drop(state);
        file.is_dirty() || unnoted || due || (look && (failing || !file.is_in_place()))
    }

    /// Syncs, and remembers beside the file how far that has reached.
    fn sync_newest(&self) {
        let state = self.lock();
        let Some(file) = state.file.clone() else { return };
        let (mark, last, failing) = (file.newest(), state.last(), state.failing.is_some());
        drop(state);
        if let Err(cause) = file.sync(mark) {
            return self.note_failure(&cause.to_string(), "audit file: syncing failed");
        }
        // While events are missing the last number is that of one of them.
        if failing || mark == 0 || !file.is_ordinary() {
            self.lock().noted = last.seq;
            return;
        }
        let written = head::write(file.path(), last);
        let mut state = self.lock();
        state.noted = last.seq;
        let failed_before = std::mem::replace(&mut state.headless, written.is_err());
        drop(state);
        if let Err(cause) = written.map_err(|cause| cause.to_string())
            && !failed_before
        {
            warn!(error = cause, path = %head::path_of(file.path()).display(), "the head file cannot be kept");
        }
    }

    /// Begins the file anew when its day, its hour or its size is over.
    fn set_aside_if_due(&self) {
        let mut state = self.lock();
        let now = SystemTime::now();
        let Some(file) = state.file.clone().filter(|file| file.is_due(&state.settings.rolling, now)) else { return };
        let begun = rolling::set_aside(file.path(), now)
            .map_err(|cause| cause.to_string())
            .and_then(|aside| AuditFile::open(file.path()).map(|new| (aside, new)).map_err(|error| error.to_string()));
        match begun {
            Ok((aside, new)) => {
                state.continue_in(new);
                drop(state);
                info!(path = %aside.display(), "the audit file was set aside and a new one begun");
                if let Err(cause) = file.sync(file.newest()) {
                    warn!(error = %cause, "audit file: syncing the one that was set aside failed");
                }
            }
            Err(reason) => {
                warn!(error = reason, path = %file.path().display(), "the audit file could not be begun anew");
                state.stray = Some(reason);
            }
        }
    }

    fn keeps_old_files(&self) -> bool {
        let state = self.lock();
        let rolling = &state.settings.rolling;
        state.file.as_ref().is_some_and(|file| file.is_ordinary()) && (rolling.compress || rolling.retention.is_some())
    }

    /// Compresses and removes what was set aside.
    fn tidy(&self) {
        let state = self.lock();
        let Some(file) = state.file.clone() else { return };
        let settings = state.settings.rolling.clone();
        drop(state);
        if let Err(cause) = rolling::tidy(file.path(), &settings, SystemTime::now()) {
            warn!(error = %cause, path = %file.path().display(), "audit files that were set aside could not be tidied");
        }
    }

    /// Opens the path anew when it no longer leads to the open file.
    fn follow_moved_file(&self) {
        let Some(file) = self.lock().file.clone() else { return };
        if file.is_in_place() || !is_ordinary(file.path()) {
            return;
        }
        let path: PathBuf = file.path().to_owned();
        match AuditFile::open(&path) {
            Ok(new) => {
                self.swap(&file, new);
                if let Err(cause) = file.sync(file.newest()) {
                    warn!(error = %cause, "audit file: syncing the moved file failed");
                }
                info!(path = %path.display(), "audit file was moved: a new one is open");
            }
            Err(error) => {
                let mut state = self.lock();
                if state.stray.is_none() {
                    warn!(%error, "audit file was moved: events go to the moved one");
                }
                state.stray = Some(error.to_string());
            }
        }
    }

    /// Puts `new` in the place of `old`, unless a reload was faster.
    fn swap(&self, old: &Arc<AuditFile>, new: AuditFile) {
        let mut state = self.lock();
        if state.file.as_ref().is_some_and(|file| Arc::ptr_eq(file, old)) {
            state.continue_in(new);
        }
    }

    /// A file that failed is tried, because nobody may come to record as long as it fails.
    fn try_failed_file(&self) {
        self.try_again(&mut self.lock());
    }

    fn note_failure(&self, reason: &str, what: &'static str) {
        let mut state = self.lock();
        if state.failing.is_none() {
            error!(error = reason, "{what}");
            state.failing = Some(Failing { reason: reason.to_owned(), missing: 0, tried: Instant::now() });
            self.publish(&state);
        }
    }
}

/// A device is never moved by a log rotation.
fn is_ordinary(path: &Path) -> bool {
    std::fs::symlink_metadata(path).map_or(true, |found| found.is_file())
}

/// After the first event that is not synced.
const SYNC_AFTER: Duration = Duration::from_millis(250);
/// The path is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Every so many looks, and at the start.
const TIDY_EVERY: u32 = 60;
