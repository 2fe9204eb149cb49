//! The `file` kind: a YAML mapping in a file that only its owner may read, or that is sealed (`sealed`).
//!
//! An item's path is a key of the mapping; a scalar there is one field called `value`, a mapping gives its fields. An empty path takes
//! the whole file as fields. Scalars are taken as they are written: `0123` stays `0123`. The file is looked at twice a second, so that a
//! change is published within about a second whatever the items' `refresh` says.
//! Invariants: a plain file that group or others could read is refused; what was read is wiped; no message holds contents.

mod document;
mod seal;

use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::sealed::KeySource;

use super::source::{BoxFuture, FailureKind, FetchError, Fetched, SecretSource};

use seal::Seal;

pub(super) struct FileSource {
    path: PathBuf,
    seal: Arc<Seal>,
}

impl FileSource {
    /// With a key the file has to be sealed, without one it must not be.
    pub fn new(path: PathBuf, sealed_with: Option<KeySource>) -> Self {
        Self { path, seal: Arc::new(Seal::new(sealed_with)) }
    }

    /// Waits until the file differs from `seen` and has stopped changing, and tells what it looks like then.
    async fn changed_from(&self, seen: Option<Stamp>) -> Option<Stamp> {
        let mut before = seen;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let mut now = Stamp::of(&self.path).await;
            while now != before {
                before = now;
                tokio::time::sleep(SETTLE).await;
                now = Stamp::of(&self.path).await;
            }
            if now != seen {
                return now;
            }
        }
    }
}

impl SecretSource for FileSource {
    fn fetch<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        let (file, key, seal) = (self.path.clone(), path.to_owned(), self.seal.clone());
        Box::pin(async move {
            tokio::task::spawn_blocking(move || read_item(&file, &key, &seal)).await.unwrap_or_else(|error| {
                Err(FetchError::new(FailureKind::Malformed, format!("reading the file ended early: {error}")))
            })
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn tend<'a>(&'a self, changed: &'a (dyn Fn() + Send + Sync)) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut seen = Stamp::of(&self.path).await;
            loop {
                seen = self.changed_from(seen).await;
                changed();
            }
        })
    }
}

/// What tells one state of the file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Changes with the mode, too.
    changed: (i64, i64),
}

impl Stamp {
    /// `None`: there is no such file, or no way to it.
    async fn of(path: &Path) -> Option<Self> {
        let facts = tokio::fs::metadata(path).await.ok()?;
        Some(Self {
            inode: facts.ino(),
            size: facts.size(),
            modified: (facts.mtime(), facts.mtime_nsec()),
            changed: (facts.ctime(), facts.ctime_nsec()),
        })
    }
}

fn read_item(file: &Path, key: &str, seal: &Seal) -> Result<Fetched, FetchError> {
    let (text, provider_version) = read_private(file, seal)?;
    let name = file.display();
    let text = std::str::from_utf8(&text)
        .map_err(|error| malformed(format!("{name} is not UTF-8 (after byte {})", error.valid_up_to())))?;
    let fields = crate::memory::with_wiped_stack(|| document::fields(text, key)).map_err(|problem| match problem {
        document::Problem::NoSuchKey => {
            FetchError::new(FailureKind::NotFound, format!("{name} has no key {key:?} at its top level"))
        }
        problem => malformed(format!("{name}{problem}")),
    })?;
    Ok(Fetched { fields, provider_version: Some(provider_version), lease: None })
}

/// Reads a file that is sealed or that only its owner may read, and tells when it was modified.
fn read_private(path: &Path, seal: &Seal) -> Result<(Zeroizing<Vec<u8>>, String), FetchError> {
    let name = path.display();
    let failed = |error: std::io::Error| {
        let kind = if error.kind() == ErrorKind::NotFound { FailureKind::NotFound } else { FailureKind::Malformed };
        FetchError::new(kind, format!("cannot read {name}: {error}"))
    };
    // Non-blocking, so that a FIFO in the file's place does not hold the thread.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(malformed(format!("{name} is not a regular file")));
    }
    let mode = facts.mode() & 0o7777;
    if !seal.is_expected() && mode & !0o600 != 0 {
        return Err(malformed(format!("{name} has mode {mode:04o}; it must be 0600 or narrower (chmod 600 {name})")));
    }
    if facts.len() > LARGEST {
        return Err(malformed(format!("{name} has {} bytes; at most {LARGEST} are read", facts.len())));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(facts.len() as usize + 1));
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST {
        return Err(malformed(format!("{name} has more than {LARGEST} bytes")));
    }
    let text = seal.open(text).map_err(|problem| malformed(format!("{name}: {problem}")))?;
    Ok((text, format!("{}.{:09}", facts.mtime(), facts.mtime_nsec())))
}

fn malformed(message: String) -> FetchError {
    FetchError::new(FailureKind::Malformed, message)
}

const LARGEST: u64 = 1024 * 1024;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A writer that is not done within this goes on being waited for.
const SETTLE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(file: &Path, key: &str) -> Result<Fetched, FetchError> {
        read_item(file, key, &Seal::new(None))
    }

    fn file_with(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_private_file_gives_its_fields_and_a_version() {
        let file = file_with("github:\n  token: abc\n  user: me\n", 0o600);
        let found = read(file.path(), "github").unwrap();
        assert_eq!(found.fields["token"].expose(), b"abc");
        assert_eq!(found.fields.len(), 2);
        assert!(found.provider_version.is_some());
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_its_mode_and_path() {
        let file = file_with("a: b\n", 0o644);
        let error = read(file.path(), "a").map(drop).unwrap_err().to_string();
        let name = file.path().display();
        assert_eq!(error, format!("{name} has mode 0644; it must be 0600 or narrower (chmod 600 {name})"));
        assert!(read(file_with("a: b\n", 0o400).path(), "a").is_ok());
        assert!(read(file_with("a: b\n", 0o700).path(), "a").is_err());
    }

    #[test]
    fn a_missing_file_a_folder_and_a_missing_key_are_told_apart() {
        let gone = read(Path::new("/nonexistent/keys.yaml"), "a").map(drop).unwrap_err();
        assert_eq!(gone.kind, FailureKind::NotFound);
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path(), "a").map(drop).unwrap_err();
        assert!(error.to_string().ends_with("is not a regular file"), "{error}");
        let file = file_with("a: b\n", 0o600);
        let error = read(file.path(), "c").map(drop).unwrap_err();
        assert_eq!(error.kind, FailureKind::NotFound);
        assert!(error.to_string().ends_with("has no key \"c\" at its top level"), "{error}");
    }

    #[test]
    fn what_is_too_large_or_not_text_is_refused() {
        let file = file_with(&format!("a: {}\n", "x".repeat(1024 * 1024)), 0o600);
        assert!(read(file.path(), "a").map(drop).unwrap_err().to_string().contains("at most 1048576 are read"));
        let file = file_with("", 0o600);
        std::fs::write(file.path(), b"a: \xff\n").unwrap();
        assert!(read(file.path(), "a").map(drop).unwrap_err().to_string().ends_with("is not UTF-8 (after byte 3)"));
    }

    #[tokio::test]
    async fn a_change_is_noticed_and_fetched() {
        let file = file_with("a: one\n", 0o600);
        let source = FileSource::new(file.path().to_owned(), None);
        let notify = tokio::sync::Notify::new();
        let changed = || notify.notify_one();
        let tend = source.tend(&changed);
        tokio::pin!(tend);
        let noticed = async {
            // The first look is taken when `tend` is polled first; the write comes after it.
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            std::fs::write(file.path(), "a: two, longer\n").unwrap();
            notify.notified().await;
            source.fetch("a").await.unwrap()
        };
        tokio::select! {
            () = &mut tend => unreachable!("tending never ends"),
            found = tokio::time::timeout(Duration::from_secs(5), noticed) => {
                assert_eq!(found.unwrap().fields["value"].expose(), b"two, longer");
            }
        }
    }
}
