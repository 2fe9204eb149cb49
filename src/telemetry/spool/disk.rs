//! Where segments lie: one folder of the file system, behind two traits so that a test can tear a write, fill the disk or lose what was
//! not synced.
//!
//! Folders are 0700, files 0600. A file is written at a place and not at its end, so that a write that the disk cut short is written over.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

/// A folder of files.
pub trait Folder: Send + Sync {
    /// Every file's name and length.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// To read and write.
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>>;

    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of the files are on the disk when it returns.
    fn sync(&self) -> io::Result<()>;
}

pub trait DiskFile: Send + Sync {
    /// Fewer bytes than were asked for only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// All of it; after an error some of it may be there.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    fn length(&self) -> io::Result<u64>;

    fn truncate(&self, length: u64) -> io::Result<()>;

    /// The content is on the disk when it returns.
    fn sync(&self) -> io::Result<()>;
}

/// A real folder.
#[derive(Debug)]
pub struct RealFolder(PathBuf);

impl RealFolder {
    /// Made if it is not there.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Folder for RealFolder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // It went between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                found.push((name, metadata.len()));
            }
        }
        Ok(found)
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        Ok(Arc::new(RealFile(options.open(self.0.join(name))?)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Keeps every other process away while it lives. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, never read")] File);

impl Lock {
    /// `WouldBlock`: somebody else has it.
    pub fn take(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(folder.join(LOCK_FILE))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self(file))
    }
}

const LOCK_FILE: &str = "lock";
