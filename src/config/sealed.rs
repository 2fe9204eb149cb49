//! Values that are sealed where they stand in a file: `password: !sealed BASE64`, where the base64 is a sealed file of age (`crate::sealed`) with
//! the value in it.
//!
//! They are opened while a configuration is read, with the key of `security.sealed_with`, into locked memory, and stand in the checked settings as any
//! literal does that stands where a secret may: never as a text on the heap. A value that was opened before and is still in use is not opened again, so
//! that a reload does not cost a passphrase's second for each. `mcpeg check` is content with a key that is not there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use super::layers::Items;
use super::problem::{Problem, Problems};
use super::tree::{Node, Segment, Value};
use crate::sealed::{self, Key, KeySource};
use crate::secret::{Secret, SecretRef};

/// Opens the sealed values of one configuration.
pub struct Opener {
    source: Option<SealedWith>,
    items: Items,
    /// Read when the first value asks for it.
    key: Option<Result<Key, String>>,
    /// A key that cannot be read is no mistake.
    only_checks: bool,
    /// What was opened, by its dotted path.
    pub opened: BTreeMap<String, Arc<Secret>>,
    /// The item that has to be fetched for what was not opened.
    pub wanted: Option<SecretRef>,
}

/// What opens the sealed values of a configuration.
pub enum SealedWith {
    Key(KeySource),
    Item(SecretRef),
}

impl Opener {
    pub fn new(source: Option<SealedWith>, items: Items, only_checks: bool) -> Self {
        Self { source, items, key: None, only_checks, opened: BTreeMap::new(), wanted: None }
    }

    /// Puts what they hold in the place of all sealed values below `node`.
    pub fn open(&mut self, path: &str, node: &mut Node, problems: &mut Problems) {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match &mut node.value {
            Value::Map(entries) => {
                entries.iter_mut().for_each(|entry| self.open(&below(&entry.key), &mut entry.node, problems));
            }
            Value::List(items) => {
                let items = items.iter_mut().enumerate();
                items.for_each(|(index, item)| self.open(&below(&index.to_string()), item, problems));
            }
            Value::Sealed(_) if path.starts_with("secrets.") && self.is_by_item() => {
                let reason = "the item in `security.sealed_with` is fetched before what is sealed is opened: nothing sealed may stand below `secrets`";
                problems.push(Problem::new(reason.to_owned(), node.origin.clone()).path(path));
            }
            Value::Sealed(text) => match self.value_of(text) {
                Ok(secret) => {
                    self.opened.insert(path.to_owned(), secret.clone());
                    node.value = Value::WithSecrets(vec![Segment::Opened(secret)]);
                }
                Err(reason) => problems.push(Problem::new(reason, node.origin.clone()).path(path)),
            },
            _ => {}
        }
    }

    fn is_by_item(&self) -> bool {
        matches!(self.source, Some(SealedWith::Item(_)))
    }

    /// The item that has the key, by whatever it is named there.
    pub fn item(&self) -> Option<&SecretRef> {
        match &self.source {
            Some(SealedWith::Item(item)) => Some(item),
            _ => None,
        }
    }

    fn value_of(&mut self, text: &str) -> Result<Arc<Secret>, String> {
        let sealed = STANDARD.decode(text.trim()).map_err(|_| "what follows `!sealed` is not base64".to_owned())?;
        let name = digest_of(&sealed);
        if let Some(known) = known(&name) {
            return Ok(known);
        }
        let Some(source) = &self.source else {
            return Err("a sealed value needs a key, and `security.sealed_with` names none".to_owned());
        };
        if let SealedWith::Item(item) = source
            && self.items.0.is_none()
        {
            self.wanted = Some(item.clone());
            return Ok(Arc::new(Secret::copy_from(b"")));
        }
        let items = &self.items;
        let key = self.key.get_or_insert_with(|| match source {
            SealedWith::Key(source) => source.read().map_err(|error| error.to_string()),
            SealedWith::Item(item) => key_of(item, items),
        });
        let key = match key {
            Ok(key) => key,
            Err(_) if self.only_checks => return Ok(Arc::new(Secret::copy_from(b""))),
            Err(reason) => return Err(format!("the sealed value is not opened: {reason}")),
        };
        let plain = sealed::open(&sealed, key).map_err(|error| format!("the sealed value is not opened: {error}"))?;
        let secret = Arc::new(Secret::copy_from(&plain));
        remember(name, &secret);
        Ok(secret)
    }
}

fn key_of(item: &SecretRef, items: &Items) -> Result<Key, String> {
    let Some(items) = &items.0 else { return Err(format!("{item} is not there")) };
    let version = items.current(&item.item).map_err(|error| error.to_string())?;
    let value = version.field(item.field.as_deref()).and_then(Secret::expose_str);
    let value = value.ok_or_else(|| format!("{item} has no such field, or no text in it"))?;
    Key::of_text(value, Path::new(&item.to_string())).map_err(|error| error.to_string())
}

/// A value as it stands behind `!sealed`.
pub fn in_words(sealed: &[u8]) -> String {
    STANDARD.encode(sealed)
}

/// What `in_words` has made.
pub fn from_words(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim()).ok()
}

/// Hands an opened value over to whoever reads the tree with serde, which takes texts: gives the text that stands for it.
pub fn hand_over(secret: &Arc<Secret>) -> String {
    HANDED.with_borrow_mut(|handed| {
        handed.push(secret.clone());
        format!("${{{MARK}{}}}", handed.len() - 1)
    })
}

/// The value that a text between `${` and `}` stands for. No text of a file has this form: `interpolate` would have taken it for a variable.
pub fn handed_over(inside: &str) -> Option<Arc<Secret>> {
    let number: usize = inside.strip_prefix(MARK)?.parse().ok()?;
    HANDED.with_borrow(|handed| handed.get(number).cloned())
}

/// Everything has been taken over.
pub fn handed_over_all() {
    HANDED.with_borrow_mut(Vec::clear);
}

thread_local! {
    static HANDED: RefCell<Vec<Arc<Secret>>> = const { RefCell::new(Vec::new()) };
}

type Name = [u8; 32];

/// Values in use, by the digest of what is sealed.
static OPENED: Mutex<BTreeMap<Name, Weak<Secret>>> = Mutex::new(BTreeMap::new());

fn known(name: &Name) -> Option<Arc<Secret>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.upgrade()
}

fn remember(name: Name, secret: &Arc<Secret>) {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.retain(|_, secret| secret.strong_count() > 0);
    opened.insert(name, Arc::downgrade(secret));
}

fn digest_of(sealed: &[u8]) -> Name {
    let mut name = [0; 32];
    name.copy_from_slice(digest::digest(&digest::SHA256, sealed).as_ref());
    name
}

const MARK: &str = "sealed:";
