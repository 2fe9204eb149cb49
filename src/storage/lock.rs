//! One process for one folder of data, and the file that says which: an advisory lock (flock) on `mcpeg.lock`, which holds the process's number
//! and the name of its configuration.
//!
//! The kernel lets go of the lock when the process ends, however it does, so a file that was left behind stops nobody. It is never removed: a
//! process that has just opened it would lock what nobody else sees.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::kinds::memory::make_folder;
use super::records::StoreFailure;
use crate::sealed::file;

/// Held for as long as it lives.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// `name` is told to whoever comes second.
    pub fn take(folder: &Path, name: &str) -> Result<Self, StoreFailure> {
        make_folder(folder)?;
        let path = folder.join("mcpeg.lock");
        let failed = |error: &dyn std::fmt::Display| StoreFailure::of(&path.display().to_string(), error);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(|error| failed(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // It may just be writing who it is.
                let _ = file.take(MOST_READ).read_to_string(&mut owner);
                let owner = match owner.trim().split_once(' ') {
                    Some((pid, name)) => format!("mcpeg {name:?}, pid {pid}"),
                    None => "another mcpeg".to_owned(),
                };
                return Err(StoreFailure(format!("{} is in use by {owner}", folder.display())));
            }
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
        }
        let said = format!("{} {name}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.write_all(said.as_bytes()));
        written.map_err(|error| failed(&error))?;
        Ok(Self { _file: file })
    }
}

/// A file with the process's number, removed when it is dropped.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    pub fn write(path: &Path) -> Result<Self, StoreFailure> {
        let failed = |error: &dyn std::fmt::Display| StoreFailure::of(&path.display().to_string(), error);
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        file::replace(path, format!("{}\n", std::process::id()).as_bytes(), None).map_err(|error| failed(&error))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another process may have put its own there.
        let is_ours = std::fs::read_to_string(&self.0).is_ok_and(|pid| pid.trim() == std::process::id().to_string());
        if is_ours && let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the pid file could not be removed");
        }
    }
}

const MOST_READ: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_there_and_a_file_that_was_left_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let first = DataLock::take(&data, "one two").unwrap();
        let refused = DataLock::take(&data, "other").unwrap_err().0;
        assert!(refused.contains(&format!("mcpeg \"one two\", pid {}", std::process::id())), "{refused}");
        drop(first);
        drop(DataLock::take(&data, "other").unwrap());
        std::fs::write(data.join("mcpeg.lock"), "4194305 gone and with a longer name than the next one\n").unwrap();
        let third = DataLock::take(&data, "third").unwrap();
        let said = std::fs::read_to_string(data.join("mcpeg.lock")).unwrap();
        assert_eq!(said, format!("{} third\n", std::process::id()));
        drop(third);
        let path = folder.path().join("run/mcpeg.pid");
        let pid = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(pid);
        assert!(!path.exists());
    }
}
