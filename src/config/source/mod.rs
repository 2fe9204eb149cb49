//! Where a configuration comes from that is no folder: a prefix of etcd or Consul, or a Git repository. Each gives the same thing, a tree of
//! files at one revision, and layers, checks and problems are those of a folder.
//!
//! `address` reads what `--config` says, `options` how the source is reached, `etcd`, `consul` and `git` ask, `fetched` lays a tree on the disk so
//! that domains can read templates and certificates from it, `keep` has the last good one. Invariants: a tree is bounded in files, bytes and
//! depth of its names before it is looked at; names lead nowhere else; credentials are read from files, at each use, and stand in no error.

pub mod address;
mod client;
mod consul;
mod etcd;
pub mod fetched;
mod git;
mod keep;
mod options;
mod scratch;
mod signature;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::layers::Sources;
use super::problem::{Problem, Problems};
use address::{Address, Scheme};
pub use fetched::Fetched;
use keep::Keep;
pub use options::Options;
use scratch::Scratch;
pub use write::{WriteError, Written};

/// A configured source that is no folder.
pub struct Remote {
    address: Address,
    options: Options,
    keep: Keep,
    kind: Kind,
    /// What the source gave last, good or not.
    seen: Mutex<Option<Arc<Fetched>>>,
    /// The folder of a remote that keeps nothing, removed with it.
    _scratch: Option<Scratch>,
}

enum Kind {
    Etcd(etcd::Etcd),
    Consul(consul::Consul),
    Git(git::Git),
}

/// A tree as a source gave it: files by their names, which are relative and have `/` between folders.
pub struct Snapshot {
    /// The source's own word for this state: a revision, an index, a commit.
    pub revision: String,
    /// Where to wait on from; 0 where the source is asked by interval.
    pub index: u64,
    pub files: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// Why there is no tree. No variant holds a credential or a value.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{place} cannot be reached: {reason}")]
    Away { place: String, reason: String },
    #[error("{place} answered {status}{words}")]
    Refused { place: String, status: u16, words: String },
    #[error("{place} gave an answer that cannot be read: {reason}")]
    Answer { place: String, reason: String },
    #[error("there is nothing at {place}")]
    Empty { place: String },
    #[error("{place} has {what}")]
    Bounds { place: String, what: String },
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{place}: {reason}")]
    Untrusted { place: String, reason: String },
}

/// How a start found its configuration.
pub enum Started {
    /// As the source has it.
    Fetched(Arc<Fetched>),
    /// The source is away, for this reason; this one was applied last.
    LastGood(Arc<Fetched>, SourceError),
}

impl Remote {
    /// What `--config` or `MCPEG_CONFIG` names, unless it is a path.
    ///
    /// `lasting`: this process keeps trees for later ones; else they are in a folder of their own, and gone with it.
    pub fn named_by(sources: &Sources, lasting: bool) -> Result<Option<Arc<Self>>, Problems> {
        let asked = sources.config.clone().or_else(|| sources.variable("MCPEG_CONFIG").map(PathBuf::from));
        let Some(text) = asked.as_ref().and_then(|asked| asked.to_str()).filter(|text| text.contains("://")) else {
            return Ok(None);
        };
        let refused = |reason: String| {
            let mut problems = Problems::default();
            problems.push(Problem::nowhere(format!("--config: {reason}")));
            problems
        };
        let address = Address::parse(text).map_err(refused)?;
        let mut options = options::load(sources)?;
        let scratch = match lasting {
            true => None,
            false => {
                let scratch = Scratch::new(&std::env::temp_dir()).map_err(|error| refused(error.to_string()))?;
                options.keep = scratch.path().to_owned();
                Some(scratch)
            }
        };
        Self::new(address, options, scratch).map(|remote| Some(Arc::new(remote))).map_err(refused)
    }

    fn new(address: Address, options: Options, scratch: Option<Scratch>) -> Result<Self, String> {
        let kind = match address.scheme {
            Scheme::Etcd => Kind::Etcd(etcd::Etcd::new(&address)),
            Scheme::Consul => Kind::Consul(consul::Consul::new(&address)),
            Scheme::Git => Kind::Git(git::Git::new(&address)?),
        };
        let keep = Keep::new(options.keep.clone(), address.name.clone());
        Ok(Self { address, options, keep, kind, seen: Mutex::new(None), _scratch: scratch })
    }

    /// Without credentials: it has none.
    pub fn name(&self) -> &str {
        &self.address.name
    }

    /// For a start: the source's tree, else the last good one.
    pub async fn start(&self) -> Result<Started, SourceError> {
        match self.fetch().await {
            Ok(fetched) => Ok(Started::Fetched(fetched)),
            Err(error) => match self.last_good() {
                Some(fetched) => Ok(Started::LastGood(fetched, error)),
                None => Err(error),
            },
        }
    }

    /// The tree as it is now, on the disk. What `changed` waits for is anything newer than that.
    pub async fn fetch(&self) -> Result<Arc<Fetched>, SourceError> {
        let fetched = self.peek().await?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(fetched.clone());
        Ok(fetched)
    }

    /// The same, without an effect on `changed`.
    pub async fn peek(&self) -> Result<Arc<Fetched>, SourceError> {
        let seen = self.seen();
        let snapshot = match &self.kind {
            Kind::Etcd(etcd) => etcd.fetch(&self.options).await?,
            Kind::Consul(consul) => consul.fetch(&self.options).await?,
            Kind::Git(git) => {
                match git.fetch(&self.options, seen.as_deref().map(|seen| seen.revision.clone())).await? {
                    Some(snapshot) => snapshot,
                    None => return seen.ok_or_else(|| SourceError::Empty { place: self.name().to_owned() }),
                }
            }
        };
        check(&snapshot.files, self.name(), &self.options)?;
        Ok(Arc::new(self.keep.lay(snapshot, &self.address.main, &self.options.work)?))
    }

    /// Completes when the source may have something newer than what it gave last.
    pub async fn changed(&self) -> Result<(), SourceError> {
        let Some(seen) = self.seen() else { return Ok(()) };
        match &self.kind {
            Kind::Etcd(etcd) => etcd.changed(&self.options, seen.index).await,
            Kind::Consul(consul) => consul.changed(&self.options, seen.index).await,
            Kind::Git(_) => {
                tokio::time::sleep(jittered(self.options.interval)).await;
                Ok(())
            }
        }
    }

    /// What was applied last, by this process or one before it.
    pub fn last_good(&self) -> Option<Arc<Fetched>> {
        self.keep.last_good(&self.address.main, &self.options.work).map(Arc::new)
    }

    /// This tree serves now: it is the last good one from here on.
    pub fn settle(&self, running: &Fetched) -> Result<(), SourceError> {
        self.keep.settle(running)
    }

    /// Another tree was refused: what it alone has is removed.
    pub fn forget_others(&self, running: &Fetched) {
        self.keep.prune(running);
    }

    /// A tree that waited to be looked at is whole on the disk again, whatever was removed meanwhile.
    pub fn lay_again(&self, tree: &Fetched) -> Result<(), SourceError> {
        self.keep.lay_again(tree)
    }

    /// Writes a tree into the source, where that is etcd or Consul.
    pub async fn write(&self, files: &BTreeMap<String, Zeroizing<Vec<u8>>>) -> Result<Written, WriteError> {
        check(files, self.name(), &self.options)?;
        write::write(&self.kind, self.name(), files, &self.options).await
    }

    fn seen(&self) -> Option<Arc<Fetched>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The bounds of a tree, and that its names stay in it.
fn check(files: &BTreeMap<String, Zeroizing<Vec<u8>>>, place: &str, options: &Options) -> Result<(), SourceError> {
    let refuse = |what: String| Err(SourceError::Bounds { place: place.to_owned(), what });
    if files.is_empty() {
        return Err(SourceError::Empty { place: place.to_owned() });
    }
    if files.len() > options.max_files {
        return refuse(format!("{} files; `max_files` is {}", files.len(), options.max_files));
    }
    let bytes: usize = files.values().map(|content| content.len()).sum();
    if bytes > options.max_size {
        return refuse(format!("{bytes} bytes; `max_size` is {}", options.max_size));
    }
    for name in files.keys() {
        if !is_file_name(name) {
            return refuse(format!("a name that is no relative path of a file: {:?}", shown(name)));
        }
        let folders = name.match_indices('/').map(|(at, _)| &name[..at]);
        if let Some(folder) = folders.into_iter().find(|folder| files.contains_key(*folder)) {
            return refuse(format!("`{}` as a file and as a folder", shown(folder)));
        }
    }
    Ok(())
}

/// Whether a name is `a/b/c`: no empty part, none of `.` and `..`, nothing that a file system would take amiss.
pub fn is_file_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.split('/').count() <= DEEPEST
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
}

fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// A wait that starts short and doubles, with jitter, so that many processes do not ask in step.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    pub fn wait(&mut self) -> Duration {
        let doubled = FIRST_WAIT.saturating_mul(1_u32.checked_shl(self.0).unwrap_or(u32::MAX));
        self.0 = (self.0 + 1).min(16);
        jittered(doubled.min(LONGEST_WAIT))
    }

    pub fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Between three quarters of it and all of it.
fn jittered(wait: Duration) -> Duration {
    let part = RandomState::new().hash_one(Instant::now()) as f64 / u64::MAX as f64;
    wait.mul_f64((0.75 + part / 4.0).min(1.0))
}

/// The first line of a file that holds a credential.
fn credential(path: &Path) -> Result<crate::secret::Secret, SourceError> {
    let failed = |reason: String| SourceError::File { path: path.to_owned(), reason };
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| failed(super::yaml::plain_io(&error)))?);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii();
    if line.is_empty() || line.len() > LONGEST_CREDENTIAL {
        return Err(failed(format!("its first line has to have 1 to {LONGEST_CREDENTIAL} bytes")));
    }
    Ok(crate::secret::Secret::copy_from(line))
}

const LONGEST_NAME: usize = 512;
const DEEPEST: usize = 16;
const LONGEST_CREDENTIAL: usize = 8192;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
