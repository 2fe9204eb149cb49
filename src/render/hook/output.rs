//! What a command printed, made fit to be logged: bounded, and with every secret of the rendering taken out.

use std::sync::Weak;

use crate::secret::SecretVersion;

use super::super::template::{ItemRead, Reads};

/// The versions whose values a hook may have come to see. It keeps none of them alive.
#[derive(Default)]
pub(super) struct Seen(Vec<Weak<SecretVersion>>);

impl Seen {
    pub fn of(reads: &Reads) -> Self {
        let held = reads.0.values().filter_map(|read| match read {
            ItemRead::Version { held, .. } => Some(held.clone()),
            ItemRead::NotFetched | ItemRead::Refused => None,
        });
        Self(held.collect())
    }

    /// Values that are not known any more: nothing is shown.
    pub fn unknown() -> Self {
        Self(vec![Weak::new()])
    }

    pub fn add(&mut self, version: Weak<SecretVersion>) {
        self.0.push(version);
    }
}

/// Keeps the first bytes and counts the rest.
#[derive(Default)]
pub(super) struct Captured {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Captured {
    pub fn push(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(LARGEST - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..fits]);
        self.is_cut |= fits < bytes.len();
    }

    /// The text without the values of what was read. If a version is gone by now it cannot be looked for, so nothing is shown.
    pub fn without_secrets(self, seen: &Seen) -> String {
        let mut text = self.bytes;
        for held in &seen.0 {
            let Some(version) = held.upgrade() else {
                return "[output withheld: a secret was replaced while the command ran]".to_owned();
            };
            text = redacted(text, &version, self.is_cut);
        }
        let mut text = String::from_utf8_lossy(&text).trim_end().to_owned();
        if self.is_cut {
            text.push_str(" [cut]");
        }
        text
    }
}

fn redacted(mut text: Vec<u8>, version: &SecretVersion, is_cut: bool) -> Vec<u8> {
    for value in version.fields.values().map(|secret| secret.expose()).filter(|value| !value.is_empty()) {
        if is_cut {
            // The cut may have left the beginning of the value at the end.
            let most = value.len().min(text.len());
            let left = (1..=most).rev().find(|len| text.ends_with(&value[..*len])).unwrap_or(0);
            text.truncate(text.len() - left);
        }
        // A value of several lines may be printed line by line.
        for needle in std::iter::once(value).chain(value.split(|byte| *byte == b'\n').filter(|line| line.len() >= 8)) {
            text = replaced(&text, needle);
        }
    }
    text
}

fn replaced(text: &[u8], needle: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        if rest.starts_with(needle) {
            result.extend_from_slice(b"[REDACTED]");
            rest = &rest[needle.len()..];
        } else {
            result.push(rest[0]);
            rest = &rest[1..];
        }
    }
    result
}

pub(super) const LARGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    fn version(value: &[u8]) -> Arc<SecretVersion> {
        let fields = BTreeMap::from([("value".to_owned(), Secret::copy_from(value))]);
        Arc::new(SecretVersion { version: 1, provider_version: None, fields, fetched_at: SystemTime::now() })
    }

    fn reads(version: &Arc<SecretVersion>) -> Reads {
        let read = ItemRead::Version { version: 1, held: Arc::downgrade(version) };
        Reads(BTreeMap::from([("item".to_owned(), read)]))
    }

    #[test]
    fn a_secret_is_taken_out_and_a_replaced_one_withholds_everything() {
        let held = version(b"hunter2");
        let reads = reads(&held);
        let mut captured = Captured::default();
        captured.push(b"login with hunter2 failed\n");
        assert_eq!(captured.without_secrets(&Seen::of(&reads)), "login with [REDACTED] failed");
        drop(held);
        let mut captured = Captured::default();
        captured.push(b"login with hunter2 failed\n");
        assert!(captured.without_secrets(&Seen::of(&reads)).starts_with("[output withheld"));
    }

    proptest! {
        #[test]
        fn no_part_of_a_secret_survives_a_cut(before in LARGEST - 40..LARGEST + 10, secret in "[a-z]{5,20}") {
            let held = version(secret.as_bytes());
            let mut captured = Captured::default();
            captured.push(&b"_".repeat(before));
            captured.push(secret.as_bytes());
            captured.push(b" and more");
            captured.push(&b"_".repeat(LARGEST));
            let shown = captured.without_secrets(&Seen::of(&reads(&held)));
            prop_assert!(!shown.contains(&secret));
            let tail = shown.trim_end_matches(" [cut]");
            prop_assert!(!tail.ends_with(&secret[..1]) || tail.contains("[REDACTED]"), "{tail}");
            prop_assert!(shown.len() <= LARGEST + 20);
        }
    }
}
