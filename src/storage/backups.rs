//! Backups by the clock: `mcpeg-SECONDS.backup` in a folder, so many of the newest.
//!
//! The newest file says when the last one was, so a restart makes none early. Each is written beside its name, synced and renamed. What fails is
//! said, and tried again after a minute.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tracing::{debug, warn};

use super::kinds::memory::make_folder;
use super::records::{StoreFailure, now};
use super::settings::BackupSettings;
use super::{Shared, carry};
use crate::sealed::{self, Recipients, file};

pub async fn write_if_due(shared: &Shared) {
    let Some(settings) = &shared.backup else { return };
    let (last, _) = state(shared).clone();
    let last = match last {
        Some(last) => last,
        None => newest(&settings.folder).unwrap_or(SystemTime::UNIX_EPOCH),
    };
    if last.elapsed().is_ok_and(|since| since < settings.every) {
        state(shared).0 = Some(last);
        return;
    }
    let done = write(shared, settings).await;
    let mut state = state(shared);
    match done {
        Ok(path) => {
            debug!(path = %path.display(), "a backup was written");
            *state = (Some(SystemTime::now()), None);
        }
        Err(failure) => {
            if state.1.as_ref() != Some(&failure.0) {
                warn!(reason = failure.0, "no backup was written");
            }
            let since = settings.every.saturating_sub(RETRY);
            *state = (SystemTime::now().checked_sub(since), Some(failure.0));
        }
    }
}

fn state(shared: &Shared) -> std::sync::MutexGuard<'_, (Option<SystemTime>, Option<String>)> {
    shared.backed_up.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn write(shared: &Shared, settings: &BackupSettings) -> Result<PathBuf, StoreFailure> {
    let (bytes, _) = carry::dump(&*shared.records).await?;
    let settings = settings.clone();
    let done = tokio::task::spawn_blocking(move || {
        make_folder(&settings.folder)?;
        let path = settings.folder.join(format!("mcpeg-{:012}.backup", now() / 1000));
        let failed = |error: &dyn std::fmt::Display| StoreFailure::of(&path.display().to_string(), error);
        let bytes = match settings.recipients.is_empty() {
            true => bytes,
            false => {
                let recipients = Recipients::Keys(settings.recipients.clone());
                sealed::seal(&bytes, &recipients).map_err(|error| failed(&error))?
            }
        };
        file::replace(&path, &bytes, None).map_err(|error| failed(&error))?;
        let mut files = backups_in(&settings.folder);
        files.sort();
        for old in files.iter().take(files.len().saturating_sub(settings.keep)) {
            std::fs::remove_file(old).map_err(|error| StoreFailure::of(&old.display().to_string(), &error))?;
        }
        Ok(path)
    });
    done.await.map_err(|error| StoreFailure::of("the backup", &error))?
}

fn newest(folder: &Path) -> Option<SystemTime> {
    backups_in(folder).iter().filter_map(|path| std::fs::metadata(path).ok()?.modified().ok()).max()
}

fn backups_in(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let seconds = name.strip_prefix("mcpeg-").and_then(|name| name.strip_suffix(".backup"));
        seconds.is_some_and(|seconds| seconds.len() == 12 && seconds.bytes().all(|byte| byte.is_ascii_digit()))
    };
    files.filter(is_ours).collect()
}

const RETRY: Duration = Duration::from_secs(60);
