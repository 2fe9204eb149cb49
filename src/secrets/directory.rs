//! The `directory` kind: a folder with a file for each secret, such as a mounted Kubernetes Secret or ConfigMap, systemd credentials, or
//! Docker secrets.
//!
//! An item's path is a file's name and gives one field called `value`; the empty path takes every file as a field of that name. Bytes are
//! taken as they are, a closing line break too. Kubernetes swaps all files of a volume at once, by renaming the link `..data`
//! (kubernetes.io/docs/concepts/configuration/secret, `pkg/volume/util/atomic_writer.go`): the link is followed once for each read, so
//! that two files of different updates are never mixed. The folder is looked at twice a second.
//! Invariants: what was read is wiped; reading is bounded in files and bytes; no message holds contents. Modes are not this process's
//! to choose in a mounted volume, so that wide ones are warned about once.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::warn;
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::source::{BoxFuture, FailureKind, FetchError, Fetched, SecretSource};

pub(super) struct DirectorySource {
    folder: Arc<Folder>,
}

struct Folder {
    path: PathBuf,
    /// Whether a wide mode was warned about.
    warned: AtomicBool,
}

impl DirectorySource {
    pub fn new(path: PathBuf) -> Self {
        Self { folder: Arc::new(Folder { path, warned: AtomicBool::new(false) }) }
    }

    /// Waits until the folder differs from `seen` and has stopped changing, and tells what it looks like then.
    async fn changed_from(&self, seen: &Stamp) -> Stamp {
        let mut before = seen.clone();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut now = self.stamp().await;
            while now != before {
                let swapped = matches!(now, Stamp::Link(_));
                before = now.clone();
                // A swap is whole at once; files that are written one by one may need a moment.
                if !swapped {
                    tokio::time::sleep(SETTLE).await;
                    now = self.stamp().await;
                }
            }
            if now != *seen {
                return now;
            }
        }
    }

    async fn stamp(&self) -> Stamp {
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || folder.stamp()).await.unwrap_or(Stamp::Gone)
    }
}

impl SecretSource for DirectorySource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        let (folder, item) = (self.folder.clone(), path.to_owned());
        Box::pin(async move {
            tokio::task::spawn_blocking(move || folder.read(&item)).await.unwrap_or_else(|error| {
                Err(FetchError::new(FailureKind::Malformed, format!("reading the folder ended early: {error}")))
            })
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn tend<'a>(&'a self, changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut seen = self.stamp().await;
            loop {
                seen = self.changed_from(&seen).await;
                changed();
            }
        })
    }
}

/// What tells one state of the folder from another without reading its files.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stamp {
    Gone,
    /// Where `..data` points to.
    Link(PathBuf),
    /// Of each file its name, inode, size, and the time of its last change.
    Files(BTreeMap<PathBuf, (u64, u64, i64, i64)>),
}

impl Folder {
    fn stamp(&self) -> Stamp {
        if let Ok(target) = std::fs::read_link(self.path.join(DATA_LINK)) {
            return Stamp::Link(target);
        }
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Stamp::Gone };
        let facts_of = |path: PathBuf| {
            let facts = std::fs::metadata(&path).ok()?;
            Some((path, (facts.ino(), facts.size(), facts.ctime(), facts.ctime_nsec())))
        };
        Stamp::Files(entries.flatten().take(MOST_FILES).filter_map(|entry| facts_of(entry.path())).collect())
    }

    /// Reads one file, or all, of one state of the folder.
    fn read(&self, item: &str) -> Result<Fetched, FetchError> {
        for _ in 0..MOST_TRIES {
            let before = self.stamp();
            let link = if let Stamp::Link(target) = &before { Some(target) } else { None };
            let state = link.map_or_else(|| self.path.clone(), |target| self.path.join(target));
            let outcome = self.read_state(&state, item, link.map(PathBuf::as_path));
            // After a swap the state that was being read is taken away, and a file may have been written while it was read: what was
            // read may be a part of it.
            if self.stamp() == before {
                return outcome;
            }
        }
        Err(self.malformed("was changed again at each try to read it".to_owned()))
    }

    fn read_state(&self, state: &Path, item: &str, link: Option<&Path>) -> Result<Fetched, FetchError> {
        let names = if item.is_empty() { self.names_in(state)? } else { vec![item.to_owned()] };
        let (mut fields, mut total, mut newest) = (BTreeMap::new(), 0, (0, 0));
        for name in names {
            let (bytes, modified) = self.read_file(&state.join(&name), &name)?;
            total += bytes.len() as u64;
            if total > LARGEST {
                return Err(self.malformed(format!("holds more than {LARGEST} bytes")));
            }
            newest = newest.max(modified);
            let field = if item.is_empty() { name } else { "value".to_owned() };
            fields.insert(field, Secret::copy_from(&bytes));
        }
        let version = match link {
            Some(target) => target.display().to_string(),
            None => format!("{}.{:09}", newest.0, newest.1),
        };
        Ok(Fetched { fields, provider_version: Some(version), lease: None })
    }

    /// The files, without the folders and what Kubernetes keeps beside them (`..data`, `..2026_01_01_...`).
    fn names_in(&self, state: &Path) -> Result<Vec<String>, FetchError> {
        let failed = |error: std::io::Error| self.failed("cannot be listed", &error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(state).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(self.malformed("has a file whose name is not UTF-8".to_owned()));
            };
            if name.starts_with("..") || !std::fs::metadata(entry.path()).map_err(failed)?.is_file() {
                continue;
            }
            if names.len() == MOST_FILES {
                return Err(self.malformed(format!("has more than {MOST_FILES} files")));
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err(FetchError::new(FailureKind::NotFound, format!("{} has no files", self.path.display())));
        }
        Ok(names)
    }

    /// The contents, and when they were modified.
    fn read_file(&self, path: &Path, name: &str) -> Result<Contents, FetchError> {
        let failed = |error: std::io::Error| self.failed(&format!("gives no {name}"), &error);
        // Non-blocking, so that a FIFO in the file's place does not hold the thread.
        let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(self.malformed(format!("has {name}, which is not a regular file")));
        }
        if facts.len() > LARGEST {
            return Err(self.malformed(format!("has {name} with {} bytes; at most {LARGEST} are read", facts.len())));
        }
        self.warn_of(facts.mode(), name);
        let mut bytes = Zeroizing::new(Vec::with_capacity(facts.len() as usize + 1));
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST {
            return Err(self.malformed(format!("has {name} with more than {LARGEST} bytes")));
        }
        Ok((bytes, (facts.mtime(), facts.mtime_nsec())))
    }

    fn warn_of(&self, mode: u32, name: &str) {
        if mode & WIDE != 0 && !self.warned.swap(true, Ordering::Relaxed) {
            let (folder, mode) = (self.path.display(), format!("{:04o}", mode & 0o7777));
            warn!(%folder, file = name, mode, "others may read these secrets; in Kubernetes defaultMode: 0400 narrows a volume");
        }
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> FetchError {
        let kind = if error.kind() == ErrorKind::NotFound { FailureKind::NotFound } else { FailureKind::Malformed };
        FetchError::new(kind, format!("{} {what}: {error}", self.path.display()))
    }

    fn malformed(&self, what: String) -> FetchError {
        FetchError::new(FailureKind::Malformed, format!("{} {what}", self.path.display()))
    }
}

/// Bytes that are wiped, and when they were modified: seconds and nanoseconds.
type Contents = (Zeroizing<Vec<u8>>, (i64, i64));

/// The link that Kubernetes renames over the old one when a volume changes.
const DATA_LINK: &str = "..data";
/// Group may read, which `fsGroup` needs; others may not.
const WIDE: u32 = 0o027;
const LARGEST: u64 = 4 * 1024 * 1024;
const MOST_FILES: usize = 1000;
const MOST_TRIES: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume as the kubelet writes it.
    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn swap(&self, state: &str, files: &[(&str, &str)]) {
            let folder = self.0.path().join(state);
            std::fs::create_dir(&folder).unwrap();
            for (name, text) in files {
                std::fs::write(folder.join(name), text).unwrap();
                let _ = std::os::unix::fs::symlink(format!("..data/{name}"), self.0.path().join(name));
            }
            let old = std::fs::read_link(self.0.path().join(DATA_LINK)).ok();
            std::os::unix::fs::symlink(state, self.0.path().join("..data_tmp")).unwrap();
            std::fs::rename(self.0.path().join("..data_tmp"), self.0.path().join(DATA_LINK)).unwrap();
            if let Some(old) = old {
                std::fs::remove_dir_all(self.0.path().join(old)).unwrap();
            }
        }

        fn source(&self) -> DirectorySource {
            DirectorySource::new(self.0.path().to_owned())
        }
    }

    #[test]
    fn a_file_is_a_value_and_the_folder_is_its_files() {
        let volume = Volume::new();
        volume.swap("..2026_1", &[("user", "me"), ("password", "one\n")]);
        let folder = volume.source().folder;
        let whole = folder.read("").unwrap();
        assert_eq!(whole.fields.keys().collect::<Vec<_>>(), ["password", "user"]);
        assert_eq!(whole.fields["password"].expose(), b"one\n");
        assert_eq!(whole.provider_version.as_deref(), Some("..2026_1"));
        assert_eq!(folder.read("user").unwrap().fields["value"].expose(), b"me");
        let missing = folder.read("token").map(drop).unwrap_err();
        assert_eq!(missing.kind, FailureKind::NotFound);
        assert!(missing.message.contains(" gives no token: No such file"), "{missing}");
    }

    #[test]
    fn plain_files_are_read_and_what_is_no_secret_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let source = DirectorySource::new(folder.path().to_owned());
        assert_eq!(source.folder.read("").map(drop).unwrap_err().kind, FailureKind::NotFound);
        std::fs::write(folder.path().join("key"), b"\xff\x00").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/deep"), "two").unwrap();
        assert_eq!(source.folder.read("").unwrap().fields["key"].expose(), b"\xff\x00");
        assert_eq!(source.folder.read("sub/deep").unwrap().fields["value"].expose(), b"two");
        assert!(source.folder.read("sub").map(drop).unwrap_err().message.ends_with("is not a regular file"));
        std::fs::write(folder.path().join("large"), vec![0; LARGEST as usize]).unwrap();
        assert!(source.folder.read("").map(drop).unwrap_err().message.contains("more than"));
    }

    #[tokio::test]
    async fn a_plain_file_that_is_written_anew_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "one").unwrap();
        let source = DirectorySource::new(folder.path().to_owned());
        let notify = tokio::sync::Notify::new();
        let changed = || notify.notify_one();
        let written = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            std::fs::write(&file, "two").unwrap();
            notify.notified().await;
            assert_eq!(source.fetch("token").await.unwrap().fields["value"].expose(), b"two");
            std::fs::write(folder.path().join("new"), "six").unwrap();
            std::fs::rename(folder.path().join("new"), &file).unwrap();
            notify.notified().await;
            assert_eq!(source.fetch("token").await.unwrap().fields["value"].expose(), b"six");
        };
        tokio::select! {
            () = source.tend(&changed) => unreachable!("tending never ends"),
            () = written => {}
        }
    }

    /// A swap under way is met with the old pair or the new, never with one of each, and never with a part.
    #[test]
    fn a_pair_is_never_mixed() {
        let volume = Volume::new();
        volume.swap("..0", &[("cert", "0"), ("key", "0")]);
        let folder = volume.source().folder;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = std::collections::BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    let Ok(pair) = folder.read("") else { continue };
                    assert_eq!(pair.fields.len(), 2);
                    assert_eq!(pair.fields["cert"], pair.fields["key"]);
                    seen.insert(pair.fields["key"].expose().to_vec());
                }
                seen.len()
            });
            for number in 1..300 {
                let text = number.to_string();
                volume.swap(&format!("..{number}"), &[("cert", &text), ("key", &text)]);
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 3);
        });
    }

    #[tokio::test]
    async fn a_swap_is_noticed_within_a_second() {
        let volume = Volume::new();
        volume.swap("..1", &[("key", "one")]);
        let source = volume.source();
        let notify = tokio::sync::Notify::new();
        let changed = || notify.notify_one();
        let swapped = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            volume.swap("..2", &[("key", "two")]);
            let since = std::time::Instant::now();
            notify.notified().await;
            assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
            source.fetch("key").await.unwrap()
        };
        tokio::select! {
            () = source.tend(&changed) => unreachable!("tending never ends"),
            found = swapped => assert_eq!(found.fields["value"].expose(), b"two"),
        }
    }
}
