//! Replacing a file by its sealed or opened form: whole or not at all, with the mode 0600 from the first moment on.
//!
//! The new bytes are written beside it, made durable and renamed over it; a failure leaves the old file as it was and nothing beside it.
//! When plaintext is replaced, the old bytes are overwritten afterwards: as far as the disk keeps them in one place, they are gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// A file as it was read, to be replaced by something else.
pub struct Original {
    path: PathBuf,
    file: File,
    pub bytes: Zeroizing<Vec<u8>>,
}

impl Original {
    /// Reads a regular file that has one name. What a symbolic link leads to is what is read and replaced.
    pub fn read(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let mut file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
        let facts = file.metadata()?;
        if !facts.is_file() || facts.len() > LARGEST {
            return Err(io::Error::other(format!("it is not a regular file of at most {LARGEST} bytes")));
        }
        if facts.nlink() > 1 {
            return Err(io::Error::other("it has another name (a hard link), under which it would stay as it is"));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(facts.len() as usize + 1));
        Read::by_ref(&mut file).take(LARGEST + 1).read_to_end(&mut bytes)?;
        Ok(Self { path, file, bytes })
    }

    /// Replaces it, keeping its owner. `wipe`: it was plaintext.
    pub fn replace(self, bytes: &[u8], wipe: bool) -> io::Result<()> {
        let facts = self.file.metadata()?;
        replace(&self.path, bytes, Some((facts.uid(), facts.gid())))?;
        if wipe {
            overwrite(&self.file, facts.len())?;
        }
        Ok(())
    }
}

/// Makes `path` hold these bytes, with the mode 0600.
pub fn replace(path: &Path, bytes: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let temporary = Temporary::create(path)?;
    (&temporary.file).write_all(bytes)?;
    let facts = temporary.file.metadata()?;
    if let Some((uid, gid)) = owner
        && (facts.uid(), facts.gid()) != (uid, gid)
    {
        fchown(&temporary.file, Some(uid), Some(gid))?;
    }
    temporary.file.set_permissions(fs::Permissions::from_mode(0o600))?;
    temporary.file.sync_all()?;
    temporary.rename_to(path)?;
    File::open(folder_of(path))?.sync_all()
}

/// Makes a file that was not there before.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(folder_of(path))?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn overwrite(file: &File, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; length as usize];
    file.write_all_at(&zeros, 0)?;
    file.sync_all()
}

/// A new file beside another, removed unless it was renamed.
struct Temporary {
    file: File,
    path: Option<PathBuf>,
}

impl Temporary {
    /// What a killed process left under the name is removed.
    fn create(beside: &Path) -> io::Result<Self> {
        let name = beside.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        let mut own = std::ffi::OsString::from(".");
        own.push(name);
        own.push(".mcpeg-new");
        let path = beside.with_file_name(own);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        Ok(Self { file: options.open(&path)?, path: Some(path) })
    }

    fn rename_to(mut self, destination: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, destination)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone already; nothing more can be done about it.
            let _ = fs::remove_file(path);
        }
    }
}

const LARGEST: u64 = 16 * 1024 * 1024;
