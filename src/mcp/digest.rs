//! Keyed digests of arguments and results for the audit trail (`audit.digest`): HMAC-SHA-256 (RFC 2104) over the bytes of the JSON value as
//! they stand in the message, in lower case hexadecimal. Whoever has the key and the message can show that an event is about it; nobody
//! else learns anything from the event.
//!
//! Invariants: off, it costs a look at a pointer; the key is read for each digest and not kept; no value is in an error.

use std::fmt::Write;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ring::hmac;

use super::credentials::{Versions, resolve};
use super::message::Field;
use crate::ports::SecretReader;
use crate::secret::SecretText;

pub struct Digests {
    /// `None`: none are made.
    key: ArcSwapOption<SecretText>,
    secrets: Arc<dyn SecretReader>,
}

/// One that was to be made.
#[derive(Debug)]
pub enum Digested {
    Made {
        hmac: String,
        /// `item@version` of the key.
        key: String,
    },
    /// Why there is none, in words.
    Failed(String),
}

impl Digests {
    pub fn new(secrets: Arc<dyn SecretReader>, key: Option<SecretText>) -> Self {
        Self { key: ArcSwapOption::from_pointee(key), secrets }
    }

    pub fn change(&self, key: Option<SecretText>) {
        self.key.store(key.map(Arc::new));
    }

    pub fn are_made(&self) -> bool {
        self.key.load().is_some()
    }

    /// Of a value as it is written. `None`: none are made, or there is no value.
    pub fn of(&self, value: Option<Field<'_>>) -> Option<Box<Digested>> {
        let value = value?;
        let key = self.key.load();
        Some(Box::new(self.make(key.as_deref()?, value.raw().as_bytes()).unwrap_or_else(Digested::Failed)))
    }

    fn make(&self, key: &SecretText, bytes: &[u8]) -> Result<Digested, String> {
        let mut versions = Versions::default();
        let secret = resolve(key, || "audit.digest.key".to_owned(), &*self.secrets, &mut versions)
            .map_err(|error| error.to_string())?;
        if secret.len() < SHORTEST_KEY {
            return Err(format!("audit.digest.key: it is shorter than {SHORTEST_KEY} bytes"));
        }
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose()), bytes);
        let mut hex = String::with_capacity(2 * tag.as_ref().len());
        for byte in tag.as_ref() {
            // A string takes whatever is written to it.
            let _ = write!(hex, "{byte:02x}");
        }
        Ok(Digested::Made { hmac: hex, key: versions.list().join(",") })
    }
}

impl Digested {
    pub fn hmac(&self) -> Option<&str> {
        match self {
            Self::Made { hmac, .. } => Some(hmac),
            Self::Failed(_) => None,
        }
    }

    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Made { key, .. } => Some(key),
            Self::Failed(_) => None,
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Made { .. } => None,
            Self::Failed(error) => Some(error),
        }
    }
}

/// What is shorter may be guessed.
const SHORTEST_KEY: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::testing::Secrets;
    use crate::secret::{Part, SecretRef};

    fn key_of(item: &str) -> SecretText {
        SecretText::new(vec![Part::Reference(SecretRef::parse(item).unwrap())])
    }

    #[test]
    fn a_digest_is_that_of_the_standard_and_names_the_version_of_its_key() {
        let secrets = Secrets::new(&[("digest", "0123456789abcdef0123456789abcdef"), ("short", "fifteen bytes..")]);
        let digests = Digests::new(secrets, None);
        assert!(digests.of(Some(Field("{}"))).is_none() && !digests.are_made());
        digests.change(Some(key_of("digest")));
        let made = digests.of(Some(Field(r#"{"text": "x"}"#))).unwrap();
        assert_eq!(made.hmac(), Some(EXPECTED));
        assert_eq!(made.key(), Some("digest@1"));
        assert!(digests.of(None).is_none());
        digests.change(Some(key_of("short")));
        let failed = digests.of(Some(Field("1"))).unwrap();
        assert_eq!(failed.error(), Some("audit.digest.key: it is shorter than 16 bytes"));
        digests.change(Some(key_of("none")));
        assert!(digests.of(Some(Field("1"))).unwrap().error().unwrap().contains("audit.digest.key: "));
    }

    /// printf '{"text": "x"}' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
    const EXPECTED: &str = "c9c433fd1161034ede9179394fb4e3e4514d29d7c45bd15aae2931a3e4793af7";
}
