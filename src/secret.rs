//! `Secret`, the one type that holds a secret value, and `SecretText`, a configured text that refers to secrets.
//!
//! A `Secret` lives in locked memory, is wiped when dropped, prints as `[REDACTED]`, and can be neither cloned nor serialised.
//! `expose` is the one way to read it; whoever calls it must not let the bytes outlive the use. Sharing is by `Arc`.
//! This is a leaf: it knows nothing of providers, files or sockets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretBox};
use zeroize::{Zeroize, Zeroizing};

use crate::memory::LockedBytes;

/// A secret value of any bytes.
pub struct Secret(SecretBox<LockedBytes>);

impl Secret {
    /// Takes the bytes over and wipes the buffer that they came in.
    pub fn new(mut plain: Vec<u8>) -> Self {
        let secret = Self::copy_from(&plain);
        plain.zeroize();
        secret
    }

    /// Copies the bytes into locked memory; the caller still owns, and wipes, the original.
    pub fn copy_from(plain: &[u8]) -> Self {
        Self(SecretBox::new(Box::new(LockedBytes::copy_from(plain))))
    }

    /// The value itself, for the moment of use.
    pub fn expose(&self) -> &[u8] {
        self.0.expose_secret().as_slice()
    }

    /// The value as text; `None` when it is not UTF-8.
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(self.expose()).ok()
    }

    pub fn len(&self) -> usize {
        self.expose().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl From<String> for Secret {
    fn from(plain: String) -> Self {
        Self::new(plain.into_bytes())
    }
}

/// Equality in constant time for equal lengths.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.expose(), other.expose());
        a.len() == b.len() && a.iter().zip(b).fold(0_u8, |differs, (x, y)| differs | (x ^ y)) == 0
    }
}

impl Eq for Secret {}

/// What a provider holds under one item at one moment: named fields, each a secret.
#[derive(Debug)]
pub struct SecretVersion {
    /// Counts the versions that this process has published for the item, from 1.
    pub version: u64,
    /// The provider's own name for the version (a KV version, a file's digest), where it has one.
    pub provider_version: Option<String>,
    pub fields: BTreeMap<String, Secret>,
    pub fetched_at: SystemTime,
}

impl SecretVersion {
    /// The field called `name`; without a name, the only field, or the one called `value`.
    pub fn field(&self, name: Option<&str>) -> Option<&Secret> {
        match name {
            Some(name) => self.fields.get(name),
            None if self.fields.len() == 1 => self.fields.values().next(),
            None => self.fields.get("value"),
        }
    }
}

/// `ITEM` or `ITEM.FIELD`, as written in `${secret.ITEM.FIELD}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretRef {
    pub item: String,
    pub field: Option<String>,
}

impl SecretRef {
    /// Parses what stands between `secret.` and the closing brace. `None` unless item and field are names.
    pub fn parse(text: &str) -> Option<Self> {
        let (item, field) = match text.split_once('.') {
            Some((item, field)) => (item, Some(field)),
            None => (text, None),
        };
        if !is_name(item) || !field.is_none_or(is_field_name) {
            return None;
        }
        Some(Self { item: item.to_owned(), field: field.map(str::to_owned) })
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "secret.{}.{field}", self.item),
            None => write!(f, "secret.{}", self.item),
        }
    }
}

/// A configured text with references to secrets in it, such as `Bearer ${secret.github.token}`.
///
/// The references are kept, never the values: `resolve` reads them at each use. A literal that stands where a secret may stand is
/// itself kept in locked memory.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    Literal(Arc<Secret>),
    Reference(SecretRef),
}

impl SecretText {
    pub fn new(parts: Vec<Part>) -> Self {
        Self { parts }
    }

    pub fn literal(text: &str) -> Self {
        Self { parts: vec![Part::Literal(Arc::new(Secret::copy_from(text.as_bytes())))] }
    }

    pub fn references(&self) -> impl Iterator<Item = &SecretRef> {
        self.parts.iter().filter_map(|part| match part {
            Part::Reference(reference) => Some(reference),
            Part::Literal(_) => None,
        })
    }

    /// Puts the text together from the current versions. `lookup` gives the current version of an item.
    pub fn resolve<E>(
        &self,
        mut lookup: impl FnMut(&SecretRef) -> Result<Arc<SecretVersion>, E>,
    ) -> Result<Secret, ResolveError<E>> {
        let mut text = Zeroizing::new(Vec::new());
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.extend_from_slice(literal.expose()),
                Part::Reference(reference) => {
                    let version = lookup(reference).map_err(ResolveError::Unavailable)?;
                    let field = version
                        .field(reference.field.as_deref())
                        .ok_or_else(|| ResolveError::NoSuchField(reference.clone()))?;
                    text.extend_from_slice(field.expose());
                }
            }
        }
        Ok(Secret::copy_from(&text))
    }
}

/// Shows the references, never a literal, which may be a password.
impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Literal(_) => f.write_str("[literal]")?,
                Part::Reference(reference) => write!(f, "${{{reference}}}")?,
            }
        }
        Ok(())
    }
}

/// Why a `SecretText` has no value now.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError<E> {
    #[error(transparent)]
    Unavailable(E),
    #[error("{0}: the secret has no such field")]
    NoSuchField(SecretRef),
}

/// A name as the configuration allows it for items, services and providers: letters, digits, `-` and `_`, 1 to 64 of them.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn is_field_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'}' && b != b'{' && b != b'$')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(fields: &[(&str, &str)]) -> Arc<SecretVersion> {
        Arc::new(SecretVersion {
            version: 1,
            provider_version: None,
            fields: fields.iter().map(|(k, v)| ((*k).to_owned(), Secret::from((*v).to_owned()))).collect(),
            fetched_at: SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn debug_shows_neither_value_nor_literal() {
        let text = SecretText::new(vec![
            Part::Literal(Arc::new(Secret::copy_from(b"hunter2"))),
            Part::Reference(SecretRef::parse("github.token").unwrap()),
        ]);
        assert_eq!(format!("{text:?}"), "[literal]${secret.github.token}");
        assert_eq!(format!("{:?}", Secret::copy_from(b"hunter2")), "[REDACTED]");
    }

    #[test]
    fn resolving_joins_literals_and_fields_and_names_what_is_missing() {
        let text = SecretText::new(vec![
            Part::Literal(Arc::new(Secret::copy_from(b"Bearer "))),
            Part::Reference(SecretRef::parse("github.token").unwrap()),
        ]);
        let found = text.resolve::<()>(|_| Ok(version(&[("token", "abc")]))).unwrap();
        assert_eq!(found.expose(), b"Bearer abc");
        let missing = text.resolve::<std::convert::Infallible>(|_| Ok(version(&[("other", "abc")]))).unwrap_err();
        assert_eq!(missing.to_string(), "secret.github.token: the secret has no such field");
    }

    #[test]
    fn a_reference_without_a_field_takes_the_only_one_or_value() {
        assert_eq!(version(&[("any", "1")]).field(None).unwrap().expose(), b"1");
        assert_eq!(version(&[("a", "1"), ("value", "2")]).field(None).unwrap().expose(), b"2");
        assert!(version(&[("a", "1"), ("b", "2")]).field(None).is_none());
    }
}
