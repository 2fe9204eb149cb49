//! Replacing a file: all or nothing, with the right mode from the first moment on.
//!
//! In two steps: `prepare` compares what is there in memory and, when it differs, writes the new bytes beside it and makes them durable;
//! `Prepared::commit` renames them over it.
//! Invariants: a reader sees the old bytes or the new ones; a link or anything but a regular file is never replaced; a failure leaves the
//! old file as it was and no temporary one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::RenderError;
use super::settings::FileSettings;

/// Writes the bytes beside the file, with everything that it is to have, and makes them durable. `None`: the file holds these bytes
/// already (its mode is set right).
pub(super) fn prepare(settings: &FileSettings, bytes: &[u8]) -> Result<Option<Prepared>, RenderError> {
    let destination = &settings.destination;
    if let Some(existing) = open_existing(destination)?
        && holds(&existing, bytes).map_err(failed(destination, "reading"))?
    {
        set_mode(&existing, settings.mode).map_err(failed(destination, "setting the mode of"))?;
        return Ok(None);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder_of(destination))
        .map_err(failed(destination, "creating the folder of"))?;
    let temporary = Temporary::create(destination).map_err(failed(destination, "writing beside"))?;
    temporary.fill(settings.mode, bytes).map_err(failed(destination, "writing beside"))?;
    Ok(Some(Prepared { destination: destination.clone(), temporary }))
}

/// New bytes beside the file that they are to replace. Dropped, they are removed.
pub(super) struct Prepared {
    destination: PathBuf,
    temporary: Temporary,
}

impl Prepared {
    /// Where the new bytes lie until they take effect.
    // What validates a file before it is switched reads it here.
    #[allow(dead_code)]
    pub fn path(&self) -> &Path {
        &self.temporary.path
    }

    /// They take effect: renamed over the old file, and the folder synced.
    pub fn commit(self) -> Result<(), RenderError> {
        let Self { destination, temporary } = self;
        temporary.rename_to(&destination).map_err(failed(&destination, "renaming over"))?;
        File::open(folder_of(&destination))
            .and_then(|folder| folder.sync_all())
            .map_err(failed(&destination, "syncing the folder of"))
    }
}

fn failed(destination: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> RenderError {
    move |error| RenderError::Destination { destination: destination.to_owned(), operation, error }
}

fn folder_of(destination: &Path) -> &Path {
    match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `None`: there is nothing. Anything but a regular file is refused.
fn open_existing(destination: &Path) -> Result<Option<File>, RenderError> {
    let facts = match fs::symlink_metadata(destination) {
        Ok(facts) => facts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(RenderError::Destination {
                destination: destination.to_owned(),
                operation: "looking at",
                error,
            });
        }
    };
    let kind = facts.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_symlink() => "a symbolic link",
            () if kind.is_dir() => "a folder",
            () => "not a regular file",
        };
        return Err(RenderError::NotAFile { destination: destination.to_owned(), what });
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match OpenOptions::new().read(true).custom_flags(flags).open(destination) {
        Ok(file) => Ok(Some(file)),
        // Not to be read by us, so it cannot be compared; the folder decides whether it can be replaced.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => {
            Err(RenderError::Destination { destination: destination.to_owned(), operation: "opening", error })
        }
    }
}

fn holds(mut existing: &File, bytes: &[u8]) -> io::Result<bool> {
    if existing.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut found = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    Read::by_ref(&mut existing).take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
    Ok(*found == bytes)
}

fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.mode() & 0o7777 == mode {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// A new file beside the destination, removed unless it was renamed.
struct Temporary {
    file: File,
    path: PathBuf,
    is_renamed: bool,
}

impl Temporary {
    /// Created by nobody but us, readable by nobody but us. What a killed process left under the name is removed.
    fn create(destination: &Path) -> io::Result<Self> {
        let name = destination.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(".mcpeg-new");
        let path = destination.with_file_name(beside);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        Ok(Self { file: options.open(&path)?, path, is_renamed: false })
    }

    fn fill(&self, mode: u32, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)?;
        set_mode(&self.file, mode)?;
        self.file.sync_all()
    }

    fn rename_to(mut self, destination: &Path) -> io::Result<()> {
        fs::rename(&self.path, destination)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_renamed {
            // It may be gone already; nothing more can be done about it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(destination: &Path, mode: u32, bytes: &[u8]) -> Result<bool, RenderError> {
        let settings = FileSettings { destination: destination.to_owned(), mode };
        match prepare(&settings, bytes)? {
            Some(prepared) => prepared.commit().map(|()| true),
            None => Ok(false),
        }
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names_in(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_is_made_with_its_folder_then_left_alone_then_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/deep/app.conf");
        assert!(replace(&path, 0o600, b"one").unwrap());
        assert_eq!((mode_of(&path), mode_of(path.parent().unwrap())), (0o600, 0o700));
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!replace(&path, 0o600, b"one").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(!replace(&path, 0o640, b"one").unwrap());
        assert_eq!(mode_of(&path), 0o640);
        assert!(replace(&path, 0o640, b"two").unwrap());
        assert_eq!((fs::read(&path).unwrap(), mode_of(&path)), (b"two".to_vec(), 0o640));
        assert_eq!(names_in(path.parent().unwrap()), 1);
    }

    #[test]
    fn links_and_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let refused = replace(&link, 0o600, b"new").unwrap_err().to_string();
        assert!(refused.ends_with("is a symbolic link and is not replaced"), "{refused}");
        assert_eq!(fs::read(&target).unwrap(), b"kept");
        let refused = replace(folder.path(), 0o600, b"new").unwrap_err().to_string();
        assert!(refused.ends_with("is a folder and is not replaced"), "{refused}");
    }

    #[test]
    fn what_is_dropped_and_a_failed_write_keep_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.conf");
        fs::write(&path, "old").unwrap();
        let settings = FileSettings { destination: path.clone(), mode: 0o600 };
        let prepared = prepare(&settings, b"new").unwrap().unwrap();
        assert_eq!((fs::read(prepared.path()).unwrap(), fs::read(&path).unwrap()), (b"new".to_vec(), b"old".to_vec()));
        drop(prepared);
        assert_eq!((fs::read(&path).unwrap(), names_in(folder.path())), (b"old".to_vec(), 1));
        let under_a_file = path.join("below");
        assert!(matches!(replace(&under_a_file, 0o600, b"new"), Err(RenderError::Destination { .. })));
    }

    #[test]
    fn what_a_killed_process_left_behind_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.conf");
        fs::write(folder.path().join(".app.conf.mcpeg-new"), "left").unwrap();
        assert!(replace(&path, 0o600, b"new").unwrap());
        assert_eq!((fs::read(&path).unwrap(), names_in(folder.path())), (b"new".to_vec(), 1));
    }
}
