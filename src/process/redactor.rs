//! Takes the values of the configured secrets out of what the process prints, by looking for the current ones.
//!
//! Invariants: no value is kept, each look reads it where it is held; values of fewer than `SHORTEST` bytes are left, as they stand in
//! ordinary words.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memchr::memmem;

use crate::ports::{Redactor, SecretControl, SecretReader};

pub struct CurrentValues<S> {
    secrets: Arc<S>,
    /// The names of the items, which a reload may change.
    items: Mutex<Option<(Instant, Arc<[String]>)>>,
}

impl<S: SecretReader + SecretControl> CurrentValues<S> {
    pub fn new(secrets: Arc<S>) -> Self {
        Self { secrets, items: Mutex::new(None) }
    }

    fn items(&self) -> Arc<[String]> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        match &*items {
            Some((at, items)) if at.elapsed() < KEPT => items.clone(),
            _ => {
                let names: Arc<[String]> = self.secrets.list().into_iter().map(|summary| summary.item).collect();
                *items = Some((Instant::now(), names.clone()));
                names
            }
        }
    }
}

impl<S: SecretReader + SecretControl> Redactor for CurrentValues<S> {
    fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let mut text = Cow::Borrowed(bytes);
        for item in self.items().iter() {
            let Ok(version) = self.secrets.current(item) else { continue };
            for value in version.fields.values() {
                // A value of several lines is printed line by line.
                for line in value.expose().split(|byte| *byte == b'\n').filter(|line| line.len() >= SHORTEST) {
                    if memmem::find(&text, line).is_some() {
                        text = Cow::Owned(without(&text, line));
                    }
                }
            }
        }
        text
    }
}

fn without(text: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    for found in memmem::find_iter(text, value) {
        out.extend_from_slice(&text[at..found]);
        out.extend_from_slice(b"[REDACTED]");
        at = found + value.len();
    }
    out.extend_from_slice(&text[at..]);
    out
}

const SHORTEST: usize = 6;
const KEPT: Duration = Duration::from_secs(1);
