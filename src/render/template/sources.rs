//! The files that a template is made of: its own, and what it includes, extends or imports from its folder.
//!
//! A name is opened and then asked of the kernel where it really lies, so that no link leads out of the folder, also not one that is
//! changed meanwhile. Each file that was read, or looked for, is remembered with a stamp from before the reading.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::{Error, ErrorKind};

/// `None`: it was not there.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Mutex<BTreeMap<PathBuf, Option<Stamp>>>>);

type Stamp = (u64, u64, i64, i64);

impl Sources {
    /// The main file; where it lies is the configuration's affair.
    pub fn main(&self, path: &Path) -> io::Result<String> {
        Ok(self.read(path, None)?.unwrap_or_default())
    }

    /// A file that the template names. `None`: there is none.
    pub fn include(&self, folder: &Path, name: &str) -> Result<Option<String>, Error> {
        let refused = |why: String| Err(Error::new(ErrorKind::BadInclude, format!("{name}: {why}")));
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            return refused(OUTSIDE.to_owned());
        }
        match self.read(&folder.join(name), Some(folder)) {
            Ok(Some(text)) => Ok(Some(text)),
            Ok(None) => refused(format!("{OUTSIDE}, and a link leads out of it")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => refused(error.to_string()),
        }
    }

    /// Any of the files is not what it was.
    pub fn changed(&self) -> bool {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().any(|(path, stamp)| stamp_of(path) != *stamp)
    }

    /// `None`: it does not lie in `folder`.
    fn read(&self, path: &Path, folder: Option<&Path>) -> io::Result<Option<String>> {
        let stamp = stamp_of(path);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), stamp);
        // A pipe would block.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if let Some(folder) = folder {
            let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            if !real.starts_with(folder.canonicalize()?) {
                return Ok(None);
            }
        }
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut text = String::new();
        file.take(LARGEST + 1).read_to_string(&mut text)?;
        if text.len() as u64 > LARGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {LARGEST} bytes")));
        }
        Ok(Some(text))
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let facts = fs::metadata(path).ok()?;
    Some((facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec()))
}

const OUTSIDE: &str = "an include must be inside the template's folder";
const LARGEST: u64 = 1024 * 1024;
