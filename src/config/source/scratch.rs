//! A folder for a while, 0700 and under a name that nobody could know before, removed with what holds it.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in `folder`, which is made where it is not there.
    pub fn new(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(format!(".mcpeg-{:016x}", RandomState::new().hash_one(Instant::now())));
        // It fails where somebody has made it before.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It takes room, and does no other harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
