//! `Cache`: tokens and leased values in a sealed file, so that a process that is started again logs in to nothing and leases nothing anew.
//!
//! `save` writes what has changed; whoever got a token or a lease waits for it before going on, so that a process that dies at once finds
//! it again. `document` is the form of what is sealed; what was read at the start waits here until its session or rotator takes it and asks
//! the provider whether it still holds. Invariants: off, it does nothing; no plaintext reaches a file; a file that cannot be used is set aside
//! and no reason to stop; only one process uses a file, another goes without; each entry is bound to the settings that it was made under.

mod document;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use crate::ports::{Condition, ConditionState};
use crate::sealed::{self, Key, Recipients};
use crate::secret::Secret;

use super::settings::CacheSettings;
use super::source::Lease;
use super::store::Item;

use document::Document;
pub(super) use document::{KeptItem, KeptToken, OURS};

#[derive(Default)]
pub(super) struct Cache {
    keeper: Option<Keeper>,
    /// Why there is none though the configuration asks for it.
    off: Option<String>,
}

struct Keeper {
    path: PathBuf,
    recipients: Arc<Recipients>,
    /// Held for as long as the process lives.
    _lock: File,
    state: Mutex<State>,
    /// One writes at a time, and goes on writing though nobody waits for it any more.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    document: Document,
    /// What was read at the start and not taken yet.
    untaken_tokens: BTreeSet<String>,
    untaken_items: BTreeSet<String>,
    /// Counts changes of the document; the one that was written, or tried to be, last.
    changed: u64,
    tried: u64,
    trouble: Option<String>,
}

impl Cache {
    /// Reads what there is. `bindings` are those of the configured providers.
    pub fn open(settings: &CacheSettings, bindings: &BTreeSet<String>) -> Self {
        match Keeper::open(settings, bindings) {
            Ok(keeper) => Self { keeper: Some(keeper), off: None },
            Err(reason) => {
                warn!(path = %settings.path.display(), reason, "leases are not kept over a restart");
                Self { keeper: None, off: Some(reason) }
            }
        }
    }

    /// The token that an earlier process of the same settings had; given once.
    pub fn take_token(&self, provider: &str, binding: &str) -> Option<KeptToken> {
        let mut state = self.keeper.as_ref()?.state();
        if !state.untaken_tokens.remove(provider) {
            return None;
        }
        let kept =
            state.document.tokens.get(provider).filter(|kept| kept.binding == binding && !kept.is_over()).cloned();
        if kept.is_none() {
            state.document.tokens.remove(provider);
            state.changed += 1;
        }
        kept
    }

    /// The leased values that an earlier process had for the same item; given once.
    pub fn take_item(&self, item: &Item) -> Option<KeptItem> {
        let mut state = self.keeper.as_ref()?.state();
        if !state.untaken_items.remove(item.name()) {
            return None;
        }
        let binding = item.binding();
        let kept = state.document.items.get(item.name());
        let kept = kept.filter(|kept| kept.binding == binding && !kept.left().is_zero()).cloned();
        if kept.is_none() {
            info!(secret = item.name(), "the kept lease has ended or belongs to other settings");
            state.document.items.remove(item.name());
            state.changed += 1;
        }
        kept
    }

    pub fn put_token(&self, provider: &str, token: KeptToken) {
        self.change(|state| {
            state.untaken_tokens.remove(provider);
            state.document.tokens.insert(provider.to_owned(), token);
            true
        });
    }

    /// The token is dead.
    pub fn forget_token(&self, provider: &str) {
        self.change(|state| state.document.tokens.remove(provider).is_some());
    }

    /// Keeps the values that `item` has now, if they are leased and have `left` to live; else forgets what was kept.
    pub fn put_item(&self, item: &Item, lease: Option<&Lease>, left: Option<Duration>) {
        self.change(|state| {
            state.untaken_items.remove(item.name());
            let lease = lease.filter(|lease| !matches!(lease, Lease::Rotates(_)));
            match (lease, left, item.slot.value()) {
                (Some(lease), Some(left), Some(values)) => {
                    let kept = KeptItem {
                        binding: item.binding(),
                        provider: item.provider.name.clone(),
                        values,
                        lease: lease.clone(),
                        ends: SystemTime::now() + left,
                    };
                    state.document.items.insert(item.name().to_owned(), kept);
                    true
                }
                _ => state.document.items.remove(item.name()).is_some(),
            }
        });
    }

    /// The lease of `item` lives for `left` from now.
    pub fn prolonged(&self, item: &str, left: Duration) {
        self.change(|state| match state.document.items.get_mut(item) {
            Some(kept) => {
                kept.ends = SystemTime::now() + left;
                true
            }
            None => false,
        });
    }

    /// Forgets what the configuration does not have any more.
    pub fn keep_only(&self, is_provider: impl Fn(&str) -> bool, is_item: impl Fn(&str) -> bool) {
        self.change(|state| {
            let before = (state.document.tokens.len(), state.document.items.len());
            state.document.tokens.retain(|name, _| is_provider(name));
            state.document.items.retain(|name, _| is_item(name));
            before != (state.document.tokens.len(), state.document.items.len())
        });
    }

    /// Whether all that changed is in the file, or could not be written.
    pub fn is_settled(&self) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| {
            let state = keeper.state();
            state.tried >= state.changed
        })
    }

    /// Completes when everything that has changed until now is in the file, or could not be written, which is said.
    pub async fn save(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.save().await;
        }
    }

    /// `None`: it is not asked for.
    pub fn condition(&self) -> Option<Condition> {
        let trouble = match &self.keeper {
            Some(keeper) => keeper.state().trouble.clone(),
            None => Some(self.off.clone()?),
        };
        let (state, message) = match trouble {
            None => (ConditionState::Ok, String::new()),
            Some(why) => (ConditionState::Degraded, format!("leases are not kept over a restart: {why}")),
        };
        Some(Condition { component: "secrets/cache".to_owned(), state, message })
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        if let Some(keeper) = &self.keeper {
            let mut state = keeper.state();
            if change(&mut state) {
                state.changed += 1;
            }
        }
    }
}

impl Keeper {
    fn open(settings: &CacheSettings, bindings: &BTreeSet<String>) -> Result<Self, String> {
        let path = settings.path.clone();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| format!("{}: {error}", folder.display()))?;
        let lock = lock(&path)?;
        let key = settings.sealed_with.read().map_err(|error| error.to_string())?;
        let document = read(&path, &key, bindings).unwrap_or_else(|reason| {
            set_aside(&path, &reason);
            None
        });
        let document = document.unwrap_or_default();
        let state = State {
            untaken_tokens: document.tokens.keys().cloned().collect(),
            untaken_items: document.items.keys().cloned().collect(),
            document,
            ..State::default()
        };
        let recipients = Arc::new(key.into_recipients());
        Ok(Self { path, recipients, _lock: lock, state: Mutex::new(state), turn: Arc::default() })
    }

    async fn save(&self) {
        let turn = self.turn.clone().lock_owned().await;
        let (changed, plain) = {
            let state = self.state();
            if state.tried >= state.changed {
                return;
            }
            (state.changed, document::write(&state.document))
        };
        let (path, recipients) = (self.path.clone(), self.recipients.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let sealed = sealed::seal(&plain, &recipients).map_err(|error| error.to_string())?;
            drop(plain);
            sealed::file::replace(&path, &sealed, None).map_err(|error| error.to_string())
        });
        let outcome = written.await.unwrap_or_else(|error| Err(format!("writing ended early: {error}")));
        let mut state = self.state();
        state.tried = changed;
        let trouble = outcome.err().map(|reason| format!("{}: {reason}", self.path.display()));
        if let Some(reason) = &trouble
            && state.trouble.is_none()
        {
            warn!(reason, "leases are not kept over a restart");
        }
        state.trouble = trouble;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two processes at one file would each forget what the other has.
fn lock(path: &Path) -> Result<File, String> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".lock");
    let beside = path.with_file_name(name);
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&beside);
    let file = file.map_err(|error| format!("{}: {error}", beside.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!("another process uses {}", path.display())),
        Err(TryLockError::Error(error)) => Err(format!("{}: {error}", beside.display())),
    }
}

/// `None`: there is none yet.
fn read(path: &Path, key: &Key, bindings: &BTreeSet<String>) -> Result<Option<Document>, String> {
    let sealed = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(facts) if !facts.is_file() || facts.len() > LARGEST => {
            return Err(format!("it is not a regular file of at most {LARGEST} bytes"));
        }
        _ => std::fs::read(path).map_err(|error| error.to_string())?,
    };
    let plain = sealed::open(&sealed, key).map_err(|error| error.to_string())?;
    let document = document::read(&plain)?;
    let is_ours = |binding: &String| bindings.contains(binding);
    let tokens = document.tokens.values().map(|kept| &kept.binding);
    if !document.tokens.is_empty() && !tokens.into_iter().any(is_ours) {
        return Err("its logins belong to other providers than the configured ones".to_owned());
    }
    Ok(Some(document))
}

/// Out of the way, but not lost: the newest of such files is kept.
fn set_aside(path: &Path, reason: &str) {
    let mut name = path.as_os_str().to_owned();
    name.push(".unusable");
    let aside = PathBuf::from(name);
    let kept = std::fs::rename(path, &aside);
    let aside = aside.display().to_string();
    match kept {
        Ok(()) => warn!(path = %path.display(), reason, aside, "the kept leases cannot be used and were set aside"),
        Err(error) => warn!(path = %path.display(), reason, %error, "the kept leases cannot be used"),
    }
}

/// What settings are told from others by, where nothing of them may be shown.
pub(super) fn binding_of(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl KeptToken {
    pub fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| ends <= SystemTime::now())
    }

    pub fn is(&self, token: &Secret) -> bool {
        *self.token == *token
    }
}

impl KeptItem {
    pub fn left(&self) -> Duration {
        self.ends.duration_since(SystemTime::now()).unwrap_or_default()
    }
}

const LARGEST: u64 = 16 * 1024 * 1024;
