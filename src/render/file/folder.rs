//! The folder of a destination, opened once: everything in it is then reached by its descriptor, so that nobody can put another folder
//! or a link in its place between a check and a use.
//!
//! Where the configuration restricts folders, it is asked of the folder that was opened (by the name that the kernel has for it), not
//! of the path. Folders that are missing are made, 0700, one below the other without following links. Invariant: nothing is made or
//! written outside of the allowed folders.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fsync, linkat, mkdirat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::super::RenderError;
use super::super::settings::AllowedFolders;

pub(in super::super) struct Folder(OwnedFd);

/// What stands under a name.
pub(in super::super) enum Found {
    Nothing,
    /// A regular file, open for reading.
    File(File),
    /// A regular file that this process may not read.
    Closed,
}

impl Folder {
    /// The folder of `destination`, made if need be.
    pub fn make(destination: &Path, allowed: &AllowedFolders) -> Result<Self, RenderError> {
        let (mut folder, mut missing) = Self::nearest(destination, allowed)?;
        while let Some(name) = missing.pop() {
            let made = mkdirat(&folder.0, &name, Mode::from_raw_mode(0o700));
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(destination, "creating the folder of", errno)),
            }
            folder = openat(&folder.0, &name, FOLDER.union(OFlags::NOFOLLOW), Mode::empty())
                .map(Self)
                .map_err(|errno| failed(destination, "opening the folder of", errno))?;
        }
        folder.admitted(destination, &[], allowed)?;
        Ok(folder)
    }

    /// `None`: it is not there.
    pub fn find(destination: &Path, allowed: &AllowedFolders) -> Result<Option<Self>, RenderError> {
        let (folder, missing) = Self::nearest(destination, allowed)?;
        Ok(missing.is_empty().then_some(folder))
    }

    /// The nearest folder that is there, admitted together with the names that are missing below it, the last one first.
    fn nearest(destination: &Path, allowed: &AllowedFolders) -> Result<(Self, Vec<OsString>), RenderError> {
        let mut path = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut missing = Vec::new();
        loop {
            let operation = "opening the folder of";
            match openat(CWD, path, FOLDER, Mode::empty()) {
                Ok(folder) => {
                    let folder = Self(folder);
                    folder.admitted(destination, &missing, allowed)?;
                    return Ok((folder, missing));
                }
                Err(Errno::NOENT) => match (path.components().next_back(), path.parent()) {
                    (Some(Component::Normal(name)), Some(parent)) => {
                        missing.push(name.to_owned());
                        path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                    }
                    _ => return Err(failed(destination, operation, Errno::NOENT)),
                },
                Err(errno) => return Err(failed(destination, operation, errno)),
            }
        }
    }

    fn admitted(&self, destination: &Path, missing: &[OsString], allowed: &AllowedFolders) -> Result<(), RenderError> {
        if allowed.is_any() {
            return Ok(());
        }
        let real = real_name(&self.0).map_err(|error| RenderError::Destination {
            destination: destination.to_owned(),
            operation: "finding the real folder of",
            error,
        })?;
        let real = missing.iter().rev().fold(real, |path, name| path.join(name));
        if allowed.admit(&real) {
            return Ok(());
        }
        Err(RenderError::Outside { destination: destination.to_owned(), real })
    }

    /// Anything but a regular file is refused.
    pub fn look(&self, name: &OsStr, destination: &Path) -> Result<Found, RenderError> {
        let facts = match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(facts) => facts,
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(failed(destination, "looking at", errno)),
        };
        let what = match FileType::from_raw_mode(facts.st_mode) {
            FileType::RegularFile => None,
            FileType::Symlink => Some("a symbolic link"),
            FileType::Directory => Some("a folder"),
            _ => Some("not a regular file"),
        };
        if let Some(what) = what {
            return Err(RenderError::NotAFile { destination: destination.to_owned(), what });
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => Ok(Found::File(File::from(file))),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            // It cannot be compared; the folder decides whether it can be replaced.
            Err(Errno::ACCESS | Errno::PERM) => Ok(Found::Closed),
            Err(errno) => Err(failed(destination, "opening", errno)),
        }
    }

    /// A new file that nobody but us can read. What a killed process left under the name is removed.
    pub fn create(&self, name: &OsStr) -> io::Result<File> {
        self.remove(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.0, name, flags, Mode::from_raw_mode(0o600))?))
    }

    /// A file that is not there is removed.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    /// A second name for a file; a link is not followed.
    pub fn link(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
    }

    /// A path that leads here, whatever the folder is called meanwhile.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// What was renamed is on disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.0)?)
    }
}

/// The path by which the kernel knows an open file, without links (proc_pid_fd(5)).
fn real_name(file: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn failed(destination: &Path, operation: &'static str, errno: Errno) -> RenderError {
    RenderError::Destination { destination: destination.to_owned(), operation, error: errno.into() }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
