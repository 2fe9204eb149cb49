//! Finds secret values in bytes, also as base64, URL, hex and JSON write them: what the leak guard and the redaction of telemetry look with.
//!
//! `Guard` knows the live values, and those that were replaced a short while ago, by keyed fingerprints (`index`); it never keeps a value,
//! so that it takes none along when a secret is replaced. `Stream` does the same for bytes that come in chunks. `patterns` finds what
//! looks like a vendor's key, whether it is known or not, and `redactor` puts both together for `ports::Redactor`.
//!
//! Invariants: a value is found from the moment on when `published` returns; searching never waits for a change; a value that is
//! shorter than `SHORTEST`, or that is no secret by itself (`is_common`), is not looked for.

mod forms;
mod index;
pub mod patterns;
mod redactor;
mod stream;
#[cfg(test)]
mod tests;
mod values;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub use forms::Encoding;
pub use index::Match;
use index::{Index, Keys, Print};
pub use redactor::{SecretRedactor, Settings};
pub use stream::Stream;

use crate::memory::with_wiped_stack;
use crate::ports::SecretObserver;
use crate::secret::Secret;

/// Knows the secrets that must not get out.
pub struct Guard {
    keys: Keys,
    index: ArcSwap<Index>,
    items: Mutex<BTreeMap<Arc<str>, Item>>,
}

/// What is kept of one item.
#[derive(Default)]
struct Item {
    current: Arc<[Print]>,
    /// Replaced, the newest first: such a value may still be on its way in an answer, or in the environment of a child that ends.
    past: VecDeque<(Instant, Arc<[Print]>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("leak guard: the system gives no random numbers")]
    NoRandomness,
    #[error("redaction pattern {name}: {reason}")]
    Pattern { name: String, reason: String },
}

impl Guard {
    pub fn new() -> Result<Self, GuardError> {
        let index = ArcSwap::from_pointee(Index::default());
        Ok(Self { keys: Keys::random()?, index, items: Mutex::default() })
    }

    /// Every place where a value stands, in order and apart from each other.
    pub fn find(&self, text: &[u8]) -> Vec<Match> {
        self.index.load().find(&self.keys, text)
    }

    /// The text with `[REDACTED:item]` in place of each value; the text itself if there is none.
    pub fn redact<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        replaced(text, &self.find(text))
    }

    /// There is nothing to look for.
    pub fn is_idle(&self) -> bool {
        self.index.load().is_empty()
    }

    fn longest(&self) -> usize {
        self.index.load().longest
    }

    fn prints(&self, fields: &BTreeMap<String, Secret>) -> Arc<[Print]> {
        with_wiped_stack(|| {
            let mut prints = Vec::new();
            let mut seen = HashSet::new();
            for field in fields.values() {
                values::each(field.expose(), &mut |value| {
                    forms::each(value, |form| {
                        prints.extend(self.keys.print(&form).filter(|print| seen.insert(print.digest)));
                    });
                });
            }
            prints.into()
        })
    }

    fn change(&self, name: &str, current: Arc<[Print]>) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.entry(name.into()).or_default().replace(current, Instant::now());
        items.retain(|_, item| !(item.current.is_empty() && item.past.is_empty()));
        let prints = items.iter().flat_map(|(name, item)| item.all().map(|print| (name.clone(), print.clone())));
        self.index.store(Arc::new(Index::new(prints.collect())));
    }
}

impl SecretObserver for Guard {
    fn published(&self, item: &str, fields: &BTreeMap<String, Secret>) {
        self.change(item, self.prints(fields));
    }

    fn retired(&self, item: &str) {
        self.change(item, Arc::default());
    }
}

impl Item {
    fn replace(&mut self, current: Arc<[Print]>, now: Instant) {
        let before = std::mem::replace(&mut self.current, current);
        if !before.is_empty() {
            self.past.push_front((now, before));
        }
        self.past.truncate(MOST_PAST);
        self.past.retain(|(since, _)| now.duration_since(*since) < KEPT_FOR);
    }

    /// Each form once.
    fn all(&self) -> impl Iterator<Item = &Print> {
        let mut seen = HashSet::new();
        let past = self.past.iter().flat_map(|(_, prints)| prints.iter());
        self.current.iter().chain(past).filter(move |print| seen.insert(print.digest))
    }
}

/// The text with the matches replaced.
fn replaced<'a>(text: &'a [u8], matches: &[Match]) -> Cow<'a, [u8]> {
    if matches.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    for found in matches {
        out.extend_from_slice(&text[at..found.range.start]);
        out.extend_from_slice(mark(&found.item).as_bytes());
        at = found.range.end;
    }
    out.extend_from_slice(&text[at..]);
    Cow::Owned(out)
}

/// What stands in place of a value: `[REDACTED:item]`.
pub fn mark(name: &str) -> String {
    format!("[REDACTED:{name}]")
}

/// Bytes of the shortest value that is looked for.
pub const SHORTEST: usize = 8;
/// How long a replaced value is found.
const KEPT_FOR: Duration = Duration::from_secs(15 * 60);
/// Of one item.
const MOST_PAST: usize = 8;
