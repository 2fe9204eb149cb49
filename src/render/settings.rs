//! What the render domain is told by the configuration, checked.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use url::Url;

use crate::secret::SecretText;

#[derive(Debug, Clone, PartialEq)]
pub struct TemplateSettings {
    pub source: PathBuf,
    /// The most bytes that it may render to.
    pub max_size: usize,
    pub file: FileSettings,
    pub on_change: Option<OnChange>,
    /// Asked before new bytes take effect.
    pub validate: Option<Validation>,
    /// The files that this one changes together with; then `on_change` is the group's.
    pub group: Option<Arc<GroupSettings>>,
}

/// What a rendered file is to be, apart from its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSettings {
    pub destination: PathBuf,
    /// Permission bits of the written file.
    pub mode: u32,
    /// `None`: whoever this process is.
    pub owner: Option<Owner>,
    /// The value of `security.selinux`; `None`: what the system gives.
    pub selinux_label: Option<String>,
    /// The file that is replaced is kept as `NAME.bak`.
    pub backup: bool,
    pub on_remove: OnRemove,
    pub allowed_folders: AllowedFolders,
}

impl FileSettings {
    /// 0600, and all else as it is by default.
    pub fn new(destination: PathBuf) -> Self {
        Self {
            destination,
            mode: 0o600,
            owner: None,
            selinux_label: None,
            backup: false,
            on_remove: OnRemove::Keep,
            allowed_folders: AllowedFolders::default(),
        }
    }
}

/// `USER`, `USER:GROUP` or `:GROUP`. Names are looked up when the file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<Account>,
    pub group: Option<Account>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    Id(u32),
    Name(String),
}

impl Owner {
    /// `None`: it is none of the three forms.
    pub fn parse(text: &str) -> Option<Self> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(Account::parse(group)?)),
            None => (text, None),
        };
        let user = match user {
            "" => None,
            user => Some(Account::parse(user)?),
        };
        (user.is_some() || group.is_some()).then_some(Self { user, group })
    }
}

impl Account {
    fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // The highest number stands for "leave it" in chown(2).
            return text.parse().ok().filter(|id| *id != u32::MAX).map(Self::Id);
        }
        let is_good = |c: char| !c.is_whitespace() && !c.is_control() && c != ':' && c != '/';
        (!text.is_empty() && text.chars().all(is_good)).then(|| Self::Name(text.to_owned()))
    }
}

/// What becomes of the file when a reload takes its template away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRemove {
    #[default]
    Keep,
    Remove,
}

/// The folders below which files may be written, without links in their paths. Empty: any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowedFolders(Arc<[PathBuf]>);

impl AllowedFolders {
    /// They are what they are now: a link that is put in the place of one later leads nowhere.
    pub fn new<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(folders.into_iter().map(real_path).collect())
    }

    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// `real` has no links in it.
    pub fn admit(&self, real: &Path) -> bool {
        self.is_any() || self.0.iter().any(|folder| real.starts_with(folder))
    }

    /// Whether a file there would be admitted as things stand now. The writer asks again, of the folder that it has opened.
    pub fn admit_now(&self, destination: &Path) -> bool {
        self.is_any() || destination.parent().is_some_and(|folder| self.admit(&real_path(folder)))
    }
}

/// The path without links, as far as it exists; what does not exist yet has none.
fn real_path(path: &Path) -> PathBuf {
    let mut missing: Vec<OsString> = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return missing.iter().rev().fold(real, |path, name| path.join(name));
        }
        missing.extend(ancestor.components().next_back().map(|last| last.as_os_str().to_owned()));
    }
    path.to_owned()
}

/// Where the configuration says nothing: the most bytes that a template may render to.
pub const MAX_SIZE: usize = 1024 * 1024;

/// Files that change together: their folder is a link, which is switched from one generation of them to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSettings {
    pub name: String,
    /// The link; its members' destinations stand in it.
    pub folder: PathBuf,
    /// Permission bits of a generation's folder.
    pub mode: u32,
    pub validate: Option<Validation>,
    pub on_change: Option<OnChange>,
    /// Go back to the generation before when the hook fails.
    pub rollback: bool,
    /// How long a change waits for others to come with it.
    pub settle: Duration,
    /// How many old generations are kept.
    pub keep: usize,
    /// Of its members too.
    pub allowed_folders: AllowedFolders,
}

/// A command that says whether new bytes are good, before they take effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Validation {
    /// Program and arguments, in which `{file}` and `{folder}` stand for the new ones; no shell.
    pub argv: Vec<String>,
    pub timeout: Duration,
}

/// What follows a change. Several may be set; they run in this order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OnChange {
    pub signal: Option<SignalHook>,
    pub command: Option<CommandHook>,
    pub http: Option<HttpHook>,
    pub systemd: Option<SystemdHook>,
    /// How long the first change waits for others. Zero: not at all.
    pub settle: Duration,
    /// How often one that failed is tried again.
    pub retries: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SignalHook {
    /// A signal's number on this system.
    pub signal: i32,
    /// For people: `SIGHUP`.
    pub name: String,
    pub whom: Whom,
}

/// Who is signalled.
#[derive(Debug, Clone, PartialEq)]
pub enum Whom {
    PidFile(PathBuf),
    /// Every process of this name in our pid namespace.
    Named(String),
    /// The one that mcpeg runs.
    Supervised,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CommandHook {
    /// Program and arguments; no shell.
    pub argv: Vec<String>,
    /// Added to the few variables that a command gets.
    pub env: BTreeMap<String, SecretText>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpHook {
    pub method: Method,
    pub url: Url,
    /// Connect there, and not where the URL says.
    pub socket: Option<PathBuf>,
    pub headers: Vec<(HeaderName, SecretText)>,
    pub body: Option<String>,
    /// The one that means success; `None`: every 2xx.
    pub status: Option<u16>,
    /// PEM; in place of the system's roots.
    pub ca_file: Option<PathBuf>,
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SystemdHook {
    pub unit: String,
    /// The word that `systemctl` knows: `reload`, `restart`, `reload-or-restart`.
    pub action: &'static str,
    pub timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_user_a_group_or_both() {
        let name = |name: &str| Some(Account::Name(name.to_owned()));
        assert_eq!(Owner::parse("app"), Some(Owner { user: name("app"), group: None }));
        assert_eq!(Owner::parse("1000:web"), Some(Owner { user: Some(Account::Id(1000)), group: name("web") }));
        assert_eq!(Owner::parse(":33"), Some(Owner { user: None, group: Some(Account::Id(33)) }));
        for wrong in ["", ":", "app:", "a b", "a:b:c", "4294967295", "99999999999", "../x"] {
            assert_eq!(Owner::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn folders_are_compared_without_their_links() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("in")).unwrap();
        std::fs::create_dir(root.join("out")).unwrap();
        std::os::unix::fs::symlink(root.join("out"), root.join("in/link")).unwrap();
        let allowed = AllowedFolders::new([&*root.join("in"), &*root.join("later")]);
        assert!(allowed.admit_now(&root.join("in/a")) && allowed.admit_now(&root.join("in/new/deep/a")));
        assert!(allowed.admit_now(&root.join("later/a")));
        assert!(!allowed.admit_now(&root.join("in/link/a")) && !allowed.admit_now(&root.join("in/../out/a")));
        assert!(!allowed.admit_now(&root.join("inner/a")));
        assert!(AllowedFolders::default().admit_now(Path::new("/anywhere/a")));
    }
}
