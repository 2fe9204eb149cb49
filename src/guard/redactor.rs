//! `SecretRedactor`, what telemetry takes secrets out with: live values first, then what looks like a vendor's key.
//!
//! It counts what it replaces, by item or pattern; both are as many as the configuration and this version have names for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::patterns::{Custom, Patterns};
use super::{Guard, GuardError, mark};
use crate::ports::{RedactedCount, RedactedKind, Redactor};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The shapes that this version knows.
    pub builtin: bool,
    pub custom: Vec<Custom>,
}

pub struct SecretRedactor {
    guard: Arc<Guard>,
    patterns: ArcSwap<Patterns>,
    counts: Mutex<BTreeMap<(RedactedKind, Arc<str>), u64>>,
}

/// Patterns that are ready to be taken. Dropping it leaves everything as it is.
#[must_use = "nothing changes until it is committed"]
pub struct Staged {
    redactor: Arc<SecretRedactor>,
    patterns: Patterns,
}

impl SecretRedactor {
    pub fn new(guard: Arc<Guard>, settings: &Settings) -> Result<Self, GuardError> {
        let patterns = ArcSwap::from_pointee(Patterns::new(settings.builtin, &settings.custom)?);
        Ok(Self { guard, patterns, counts: Mutex::default() })
    }

    /// Makes other patterns ready.
    pub fn stage(self: &Arc<Self>, settings: &Settings) -> Result<Staged, GuardError> {
        Ok(Staged { redactor: self.clone(), patterns: Patterns::new(settings.builtin, &settings.custom)? })
    }

    /// In order and apart from each other; a live value goes before what merely looks like one.
    fn find(&self, text: &[u8]) -> Vec<(Range<usize>, RedactedKind, Arc<str>)> {
        let values = self.guard.find(text).into_iter().map(|found| (found.range, RedactedKind::Secret, found.item));
        let mut found: Vec<_> = values.collect();
        let known = found.len();
        for fit in self.patterns.load().find(text) {
            // What of it is left beside the live values.
            let mut from = fit.range.start;
            for (value, ..) in &found[..known].to_vec() {
                if value.start < fit.range.end && from < value.end {
                    if from < value.start {
                        found.push((from..value.start, RedactedKind::Pattern, fit.name.clone()));
                    }
                    from = value.end;
                }
            }
            if from < fit.range.end {
                found.push((from..fit.range.end, RedactedKind::Pattern, fit.name));
            }
        }
        found.sort_by_key(|(range, ..)| (range.start, range.end));
        found
    }

    fn count(&self, kind: RedactedKind, name: &Arc<str>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((kind, name.clone())).or_default() += 1;
    }
}

impl Redactor for SecretRedactor {
    fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.find(bytes);
        if found.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        for (range, kind, name) in found {
            if range.end <= at {
                continue;
            }
            // Two patterns that overlap leave one mark for the first, and one for the rest of the other.
            out.extend_from_slice(&bytes[at..range.start.max(at)]);
            out.extend_from_slice(mark(&name).as_bytes());
            self.count(kind, &name);
            at = range.end;
        }
        out.extend_from_slice(&bytes[at..]);
        Cow::Owned(out)
    }

    fn is_clean(&self, bytes: &[u8]) -> bool {
        self.guard.find(bytes).is_empty() && self.patterns.load().find(bytes).is_empty()
    }

    fn counts(&self) -> Vec<RedactedCount> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |((kind, name), count): (&(RedactedKind, Arc<str>), &u64)| RedactedCount {
            kind: *kind,
            name: name.clone(),
            count: *count,
        };
        counts.iter().map(count).collect()
    }
}

impl Staged {
    pub fn commit(self) {
        self.redactor.patterns.store(Arc::new(self.patterns));
    }
}
