//! The audit file: opened for appending only, one write for each line, synced up to a mark.
//!
//! A line is handed to the kernel whole before `append` returns, so it survives the death of the process. A write that the disk cut
//! short leaves a torn line; the next line then starts on a line of its own. Several writers may share one `sync_data`.
//! This file knows bytes and numbers, not events.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::telemetry::error::TelemetryError;
use crate::telemetry::rolling::Rolling;

use super::chain::{Hash, unseal};
use super::line::seq_of;

/// An open audit file.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    file: File,
    identity: (u64, u64),
    /// The last record when it was opened; `None`: the file was empty, or what is in it does not end a chain.
    pub last: Option<LastRecord>,
    /// When it was last written by somebody else, or begun.
    begun: SystemTime,
    /// An ordinary file, which can be set aside; not a device.
    ordinary: bool,
    /// The file ends within a line.
    torn: AtomicBool,
    /// Counts writes, so that a sync knows how far it reaches.
    written: AtomicU64,
    synced: Mutex<u64>,
}

/// What the next record goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRecord {
    pub seq: u64,
    pub hash: Hash,
}

impl AuditFile {
    /// Opens or creates the file (0600) and its folder (0700), and finds its last record.
    pub fn open(path: &Path) -> Result<Self, TelemetryError> {
        let failed = |operation| move |cause| TelemetryError::AuditFile { path: path.to_owned(), operation, cause };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("creating its folder"))?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .map_err(failed("opening"))?;
        let metadata = file.metadata().map_err(failed("reading its attributes"))?;
        let kind = metadata.file_type();
        if !(kind.is_file() || kind.is_char_device()) {
            let found = if kind.is_fifo() { "a pipe" } else { "something else" };
            return Err(TelemetryError::AuditFileKind { path: path.to_owned(), found });
        }
        let (mut last, mut torn) = (None, false);
        if kind.is_file() {
            if metadata.permissions().mode() & 0o007 != 0 {
                file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed("closing it to others"))?;
            }
            (last, torn) = last_record(path, metadata.len()).map_err(failed("reading its end"))?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            identity: (metadata.dev(), metadata.ino()),
            last,
            begun: if metadata.len() == 0 { SystemTime::now() } else { metadata.modified().unwrap_or(UNIX_EPOCH) },
            ordinary: kind.is_file(),
            torn: AtomicBool::new(torn),
            written: AtomicU64::new(0),
            synced: Mutex::new(0),
        })
    }

    /// Writes one whole line in one call. The caller lets nobody else write meanwhile. Returns the mark to sync up to.
    pub fn append(&self, line: &[u8]) -> io::Result<u64> {
        if self.torn.load(Ordering::Relaxed) {
            // Somebody may have emptied the file since, to make room.
            if self.file.metadata()?.len() > 0 {
                self.write_whole(b"\n")?;
            }
            self.torn.store(false, Ordering::Relaxed);
        }
        self.write_whole(line)?;
        Ok(self.written.fetch_add(1, Ordering::Release) + 1)
    }

    /// Returns when everything up to `mark` is on the disk; one call's sync serves all who wait.
    pub fn sync(&self, mark: u64) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= mark {
            return Ok(());
        }
        let reached = self.written.load(Ordering::Acquire);
        match self.file.sync_data() {
            Ok(()) => {}
            // A device has nothing to sync.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(error),
        }
        *synced = reached;
        Ok(())
    }

    /// The mark of the newest line.
    pub fn newest(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Whether something was written that no sync has reached.
    pub fn is_dirty(&self) -> bool {
        // While a sync runs its end decides; the next tick asks again.
        self.synced.try_lock().is_ok_and(|synced| *synced < self.newest())
    }

    /// Whether the path still leads to this file: not when it was moved or removed.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is to be set aside now. Not when it was moved: then that has been done by somebody else.
    pub fn is_due(&self, rolling: &Rolling, now: SystemTime) -> bool {
        let bytes = || self.file.metadata().map_or(0, |metadata| metadata.len());
        self.ordinary && *rolling != Rolling::NEVER && rolling.is_due(self.begun, bytes(), now) && self.is_in_place()
    }

    /// Whether what was found in it, or written last, is not a whole line.
    pub fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Relaxed)
    }

    pub fn is_ordinary(&self) -> bool {
        self.ordinary
    }

    fn write_whole(&self, mut bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len();
        while !bytes.is_empty() {
            match (&self.file).write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if bytes.len() < length {
                        self.torn.store(true, Ordering::Relaxed);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// The last whole line, and whether the file ends within a line. Reads at most `MAX_TAIL_BYTES` from the end.
fn last_record(path: &Path, length: u64) -> io::Result<(Option<LastRecord>, bool)> {
    if length == 0 {
        return Ok((None, false));
    }
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(MAX_TAIL_BYTES).read_to_end(&mut tail)?;
    let torn = tail.last().is_some_and(|byte| *byte != b'\n');
    let record = |line: &[u8]| Some(LastRecord { seq: seq_of(line)?, hash: unseal(line)?.1 });
    Ok((tail.rsplit(|byte| *byte == b'\n').find_map(record), torn))
}

const MAX_TAIL_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_new_file_is_private_and_a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/audit.log");
        let file = AuditFile::open(&path).unwrap();
        file.append(b"{\"seq\":1}\n").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let refused = AuditFile::open(&link).unwrap_err().to_string();
        assert!(refused.contains("link: opening failed"), "{refused}");
        let folder_refused = AuditFile::open(folder.path()).unwrap_err().to_string();
        assert!(folder_refused.contains("opening failed: Is a directory"), "{folder_refused}");
    }

    #[test]
    fn numbers_continue_after_a_torn_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let mut line = b"{\"seq\":42".to_vec();
        let hash = super::super::chain::seal(&mut line, Hash::START);
        let line = String::from_utf8(line).unwrap();
        std::fs::write(&path, format!("{{\"seq\":41}}\n{line}{{\"seq\":4")).unwrap();
        let file = AuditFile::open(&path).unwrap();
        assert_eq!(file.last, Some(LastRecord { seq: 42, hash }));
        file.append(b"{\"seq\":43}\n").unwrap();
        drop(file);
        assert_eq!(content(&path), format!("{{\"seq\":41}}\n{line}{{\"seq\":4\n{{\"seq\":43}}\n"));
        assert_eq!(AuditFile::open(&path).unwrap().last.unwrap().seq, 42, "what has no hash ends no chain");
    }

    #[test]
    fn a_file_that_was_emptied_after_a_torn_line_begins_with_a_whole_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        std::fs::write(&path, "{\"seq\":1}\n{\"se").unwrap();
        let file = AuditFile::open(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        file.append(b"{\"seq\":2}\n").unwrap();
        assert_eq!(content(&path), "{\"seq\":2}\n");
    }

    #[test]
    fn a_moved_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let file = AuditFile::open(&path).unwrap();
        assert!(file.is_in_place());
        std::fs::rename(&path, folder.path().join("audit.log.1")).unwrap();
        assert!(!file.is_in_place());
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_sync_reaches_its_mark() {
        let full = AuditFile::open(Path::new("/dev/full")).unwrap();
        assert_eq!(full.append(b"x\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        let folder = tempfile::tempdir().unwrap();
        let file = AuditFile::open(&folder.path().join("audit.log")).unwrap();
        let mark = file.append(b"a\n").unwrap();
        file.append(b"b\n").unwrap();
        file.sync(mark).unwrap();
        assert_eq!(*file.synced.lock().unwrap(), 2);
    }
}
