//! A tree of a source, laid on the disk, and how its files are named and found.
//!
//! Domains read templates, certificates and the like by path, so the files of a tree are on the disk. What lies directly in the root, and each
//! folder of the root, is a group: it is at `FILES/HASH/...`, where the hash is that of all of the group, so that a path stays the same as
//! long as what it leads to does, and two trees may be there at once. A relative path in a file of the tree leads to the tree's file of that
//! name, and else to where it would lead if the root were the folder `work`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ring::digest;
use zeroize::Zeroizing;

use super::Snapshot;

pub struct Fetched {
    /// The source's address.
    pub source: String,
    pub revision: String,
    pub index: u64,
    pub files: BTreeMap<String, Zeroizing<Vec<u8>>>,
    main: String,
    work: PathBuf,
    /// The folder of the groups.
    root: PathBuf,
    /// The hash of each group; the one of the root's own files has an empty name.
    groups: BTreeMap<String, String>,
}

impl Fetched {
    pub fn new(source: &str, snapshot: Snapshot, main: &str, work: &Path, root: PathBuf) -> Self {
        let names: BTreeSet<&str> = snapshot.files.keys().map(|name| group_of(name)).collect();
        let groups = names.into_iter().map(|group| (group.to_owned(), hash_of(group, &snapshot.files))).collect();
        Self {
            source: source.to_owned(),
            revision: snapshot.revision,
            index: snapshot.index,
            files: snapshot.files,
            main: main.to_owned(),
            work: work.to_owned(),
            root,
            groups,
        }
    }

    /// The main file, which may not be there.
    pub fn main(&self) -> PathBuf {
        self.on_disk(&self.main).unwrap_or_else(|| self.work.join(&self.main))
    }

    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The folders that `on_disk` leads into.
    pub fn hashes(&self) -> impl Iterator<Item = &str> {
        self.groups.values().map(String::as_str)
    }

    /// The files of one group, by their names in the tree.
    pub fn group(&self, hash: &str) -> impl Iterator<Item = (&String, &Zeroizing<Vec<u8>>)> {
        let name = self.groups.iter().find(|(_, known)| *known == hash).map(|(name, _)| name.as_str());
        self.files.iter().filter(move |(file, _)| Some(group_of(file)) == name)
    }

    /// Where a file or a folder of the tree is.
    pub fn on_disk(&self, name: &str) -> Option<PathBuf> {
        let folder = format!("{name}/");
        let is_folder = self.files.range(folder.clone()..).next().is_some_and(|(file, _)| file.starts_with(&folder));
        if !is_folder && !self.files.contains_key(name) {
            return None;
        }
        let group = if is_folder { name.split('/').next().unwrap_or_default() } else { group_of(name) };
        Some(self.root.join(self.groups.get(group)?).join(name))
    }

    /// Where a path leads that stands in a file of `folder`, a folder of the tree (`""`: its root).
    pub fn resolve(&self, folder: &str, text: &str) -> PathBuf {
        let plain = Path::new(folder).join(text);
        if plain.is_absolute() {
            return plain;
        }
        let in_tree = normalised(&plain).and_then(|name| self.on_disk(&name));
        in_tree.unwrap_or_else(|| self.work.join(plain))
    }

    /// The name in the tree of a path that `on_disk` gave.
    pub fn name_of(&self, path: &Path) -> Option<String> {
        let mut parts = path.strip_prefix(&self.root).ok()?.components();
        parts.next()?;
        Some(parts.as_path().to_str()?.to_owned())
    }

    /// As problems name a file of the tree: `etcd://host/mcpeg/services/mysql.yaml`.
    pub fn shown(&self, name: &str) -> PathBuf {
        let (address, at) = match self.source.split_once('#') {
            Some((repository, at)) => (repository, Some(at)),
            None => (self.source.as_str(), None),
        };
        let folder = |text: &str| match text.strip_suffix(&self.main) {
            Some(folder) => folder.to_owned(),
            None => text.to_owned(),
        };
        match at {
            // In a repository the reference comes before the path, as in `git show REF:PATH`.
            Some(at) => {
                let (reference, path) = at.split_once(':').unwrap_or((at, ""));
                let path = folder(path);
                let slash = if path.is_empty() || path.ends_with('/') { "" } else { "/" };
                PathBuf::from(format!("{address}#{reference}:{path}{slash}{name}"))
            }
            None if address.starts_with("git+") => PathBuf::from(format!("{address}#:{name}")),
            None => {
                let address = folder(address);
                let slash = if address.ends_with('/') { "" } else { "/" };
                PathBuf::from(format!("{address}{slash}{name}"))
            }
        }
    }

    /// Whether both have the same files.
    pub fn is_same(&self, other: &Self) -> bool {
        self.groups == other.groups
    }
}

/// Names alone: a file may hold a password.
impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.source, self.revision)
    }
}

/// How the files of a configuration are read and named: from the disk, or as those of a tree.
#[derive(Debug, Clone)]
pub enum Files {
    Disk,
    Fetched(Arc<Fetched>),
}

impl Files {
    /// As problems name it.
    pub fn shown(&self, path: &Path) -> PathBuf {
        match self {
            Self::Disk => path.to_owned(),
            Self::Fetched(tree) => tree.name_of(path).map_or_else(|| path.to_owned(), |name| tree.shown(&name)),
        }
    }

    /// Where the relative paths in a file start from.
    pub fn base(&self, path: &Path) -> Base {
        let on_disk = || Base::Folder(path.parent().unwrap_or(Path::new(".")).to_owned());
        match self {
            Self::Disk => on_disk(),
            Self::Fetched(tree) => match tree.name_of(path) {
                Some(name) => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
                    Base::Tree { tree: tree.clone(), folder }
                }
                None => on_disk(),
            },
        }
    }
}

/// What the relative paths of one file are relative to.
#[derive(Debug, Clone)]
pub enum Base {
    Folder(PathBuf),
    Tree { tree: Arc<Fetched>, folder: String },
}

impl Base {
    pub fn resolve(&self, text: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(text),
            Self::Tree { tree, folder } => tree.resolve(folder, text),
        }
    }
}

impl PartialEq for Base {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Folder(mine), Self::Folder(theirs)) => mine == theirs,
            (Self::Tree { tree, folder }, Self::Tree { tree: other, folder: theirs }) => {
                Arc::ptr_eq(tree, other) && folder == theirs
            }
            _ => false,
        }
    }
}

impl Eq for Base {}

/// The first folder of a name; nothing for a file in the root.
fn group_of(name: &str) -> &str {
    name.split_once('/').map_or("", |(first, _)| first)
}

/// Without `.` and `..`. `None`: it leads out of the tree.
fn normalised(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

fn hash_of(group: &str, files: &BTreeMap<String, Zeroizing<Vec<u8>>>) -> String {
    let mut digest = digest::Context::new(&digest::SHA256);
    for (name, content) in files.iter().filter(|(name, _)| group_of(name) == group) {
        digest.update(&(name.len() as u64).to_le_bytes());
        digest.update(name.as_bytes());
        digest.update(&(content.len() as u64).to_le_bytes());
        digest.update(content);
    }
    hex(&digest.finish().as_ref()[..12])
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
