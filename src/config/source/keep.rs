//! The folder of a source on the disk, 0700, and everything in it 0600:
//!
//! ```text
//! KEEP/files/HASH/...      the groups of the trees in use (see `fetched`)
//! KEEP/last-good.json      the tree that was applied last, whole
//! ```
//!
//! `last-good.json` is `{"format": 1, "source": ADDRESS, "revision": TEXT, "files": {NAME: BASE64}, "sha256": HEX}`, where the digest is over
//! source, revision, names and contents, each with its length before it. It is written beside, made durable and renamed. One that is damaged, or of
//! another source, counts as none. A group is written under another name and renamed, so that one which is there is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::fetched::hex;
use super::{Fetched, Snapshot, SourceError, is_file_name};

pub struct Keep {
    folder: PathBuf,
    source: String,
    /// Held while groups are laid or removed.
    turn: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct LastGood {
    format: u32,
    source: String,
    revision: String,
    files: BTreeMap<String, String>,
    sha256: String,
}

impl Keep {
    pub fn new(folder: PathBuf, source: String) -> Self {
        Self { folder, source, turn: Mutex::new(()) }
    }

    /// Puts a tree on the disk, beside those that are there.
    pub fn lay(&self, snapshot: Snapshot, main: &str, work: &Path) -> Result<Fetched, SourceError> {
        let fetched = Fetched::new(&self.source, snapshot, main, work, self.folder.join("files"));
        self.lay_again(&fetched)?;
        Ok(fetched)
    }

    /// Puts back what `prune` took meanwhile of a tree that did not run yet.
    pub fn lay_again(&self, tree: &Fetched) -> Result<(), SourceError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let root = self.folder.join("files");
        for hash in tree.hashes() {
            lay_group(&root, hash, tree).map_err(|error| self.failed(&root.join(hash), &error))?;
        }
        Ok(())
    }

    /// Makes this the last good one, and removes what no other than it has.
    pub fn settle(&self, running: &Fetched) -> Result<(), SourceError> {
        let path = self.folder.join(LAST_GOOD);
        let files = running.files.iter().map(|(name, content)| (name.clone(), STANDARD.encode(content))).collect();
        let last = LastGood {
            format: FORMAT,
            source: self.source.clone(),
            revision: running.revision.clone(),
            files,
            sha256: sum(&self.source, &running.revision, &running.files),
        };
        let text = Zeroizing::new(serde_json::to_vec(&last).map_err(|error| self.failed(&path, &error.into()))?);
        crate::sealed::file::replace(&path, &text, None).map_err(|error| self.failed(&path, &error))?;
        self.prune(running);
        Ok(())
    }

    /// Removes the groups that `running` has not.
    pub fn prune(&self, running: &Fetched) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let used: BTreeSet<&str> = running.hashes().collect();
        let Ok(found) = fs::read_dir(self.folder.join("files")) else { return };
        for entry in found.filter_map(Result::ok) {
            if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                // It takes room, and does no other harm.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    pub fn last_good(&self, main: &str, work: &Path) -> Option<Fetched> {
        let text = Zeroizing::new(fs::read(self.folder.join(LAST_GOOD)).ok()?);
        let last: LastGood = serde_json::from_slice(&text).ok()?;
        let files = last.files.iter().map(|(name, content)| {
            let content = STANDARD.decode(content).ok()?;
            is_file_name(name).then(|| (name.clone(), Zeroizing::new(content)))
        });
        let files: BTreeMap<String, Zeroizing<Vec<u8>>> = files.collect::<Option<_>>()?;
        let is_ours = last.format == FORMAT && last.source == self.source;
        if !is_ours || last.sha256 != sum(&last.source, &last.revision, &files) {
            return None;
        }
        self.lay(Snapshot { revision: last.revision, index: 0, files }, main, work).ok()
    }

    fn failed(&self, path: &Path, error: &io::Error) -> SourceError {
        SourceError::File { path: path.to_owned(), reason: error.to_string() }
    }
}

fn lay_group(root: &Path, hash: &str, tree: &Fetched) -> io::Result<()> {
    let place = root.join(hash);
    if place.is_dir() {
        // A crash of the machine may have left less than was written.
        let is_whole = |(name, content): (&String, &Zeroizing<Vec<u8>>)| {
            fs::read(place.join(name)).is_ok_and(|found| Zeroizing::new(found) == *content)
        };
        if tree.group(hash).all(is_whole) {
            return Ok(());
        }
        fs::remove_dir_all(&place)?;
    }
    let beside = root.join(format!(".{hash}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&beside);
    private_folder(&beside)?;
    for (name, content) in tree.group(hash) {
        let path = beside.join(name);
        private_folder(path.parent().unwrap_or(&beside))?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content)?;
    }
    match fs::rename(&beside, &place) {
        // Somebody else laid the same.
        Err(_) if place.is_dir() => fs::remove_dir_all(&beside),
        done => done,
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sum(source: &str, revision: &str, files: &BTreeMap<String, Zeroizing<Vec<u8>>>) -> String {
    let mut digest = digest::Context::new(&digest::SHA256);
    let mut add = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    add(source.as_bytes());
    add(revision.as_bytes());
    for (name, content) in files {
        add(name.as_bytes());
        add(content);
    }
    hex(digest.finish().as_ref())
}

const FORMAT: u32 = 1;
const LAST_GOOD: &str = "last-good.json";
