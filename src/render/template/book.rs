//! What a template sees of the secrets: objects that write straight from locked memory into the output.
//!
//! `Book` holds the versions of one rendering. MiniJinja's objects cannot fail while they print, and a template could swallow an error
//! that they return, so what goes wrong is noted in the book and decides over the rendering afterwards.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind};

use crate::ports::SecretUnavailable;
use crate::secret::SecretVersion;

use super::mask;

#[derive(Debug)]
pub(super) struct Book {
    pages: Mutex<Pages>,
    /// The rendering is shown: in place of each secret stands its name.
    is_masked: bool,
}

#[derive(Default)]
struct Pages {
    items: BTreeMap<String, Result<Arc<SecretVersion>, SecretUnavailable>>,
    /// An item that was asked for and is not in the book yet.
    wanted: Option<String>,
    /// The first thing that went wrong.
    problem: Option<SecretProblem>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.items.keys()).finish()
    }
}

/// What a rendering read, by item. Holds no value.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Reads(pub BTreeMap<String, ItemRead>);

#[derive(Debug, Clone)]
pub(in super::super) enum ItemRead {
    Version {
        version: u64,
        held: Weak<SecretVersion>,
    },
    /// There was no version yet.
    NotFetched,
    /// Unknown, or too old to be used.
    Refused,
}

impl Reads {
    /// `item@version`, for the record.
    pub fn in_words(&self) -> Vec<String> {
        let named = self.0.iter().filter_map(|(item, read)| match read {
            ItemRead::Version { version, .. } => Some(format!("{item}@{version}")),
            ItemRead::NotFetched | ItemRead::Refused => None,
        });
        named.collect()
    }
}

impl ItemRead {
    fn of(found: &Result<Arc<SecretVersion>, SecretUnavailable>) -> Self {
        match found {
            Ok(version) => Self::Version { version: version.version, held: Arc::downgrade(version) },
            Err(SecretUnavailable::NotFetched { .. }) => Self::NotFetched,
            Err(SecretUnavailable::Unknown { .. } | SecretUnavailable::Stale { .. }) => Self::Refused,
        }
    }

    /// A newer version than the one that was read has been published.
    pub fn is_behind(&self, newest: u64) -> bool {
        match self {
            Self::Version { version, .. } => *version != newest,
            Self::NotFetched => newest != 0,
            Self::Refused => false,
        }
    }
}

/// Why a secret could not be put into the output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretProblem {
    #[error(transparent)]
    Unavailable(SecretUnavailable),
    #[error("secret {item} has no field {field:?}; it has {}", list(.has))]
    NoSuchField { item: String, field: String, has: Vec<String> },
    #[error("secret {item} has several fields ({}): name one", list(.has))]
    NotOneField { item: String, has: Vec<String> },
    #[error("secret {item}, field {field:?}, is not text; use the base64 filter")]
    NotText { item: String, field: String },
    #[error("{problem}")]
    NoBundle { problem: String },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Book {
    pub fn new(is_masked: bool) -> Arc<Self> {
        Arc::new(Self { pages: Mutex::default(), is_masked })
    }

    pub fn as_value(self: &Arc<Self>) -> Value {
        Value::from_object(Secrets(self.clone()))
    }

    pub fn add(&self, item: &str, found: Result<Arc<SecretVersion>, SecretUnavailable>) {
        self.pages().items.insert(item.to_owned(), found);
    }

    pub fn take_wanted(&self) -> Option<String> {
        let mut pages = self.pages();
        // What went wrong on the way to a missing item may go right when it is there.
        if pages.wanted.is_some() {
            pages.problem = None;
        }
        pages.wanted.take()
    }

    pub fn take_problem(&self) -> Option<SecretProblem> {
        self.pages().problem.take()
    }

    pub fn reads(&self) -> Reads {
        Reads(self.pages().items.iter().map(|(item, found)| (item.clone(), ItemRead::of(found))).collect())
    }

    /// One of the values that were read stands in `text`.
    pub fn occurs_in(&self, text: &str) -> bool {
        let pages = self.pages();
        let mut values = pages.items.values().flatten().flat_map(|version| version.fields.values());
        values.any(|value| value.expose_str().is_some_and(|value| !value.is_empty() && text.contains(value)))
    }

    /// One of the values that were read stands in `bytes`, or they are a long part of one.
    pub fn knows(&self, bytes: &[u8]) -> bool {
        let pages = self.pages();
        let mut values = pages.items.values().flatten().flat_map(|version| version.fields.values());
        values.any(|value| {
            let (value, is_in) = (value.expose(), memchr::memmem::find);
            !value.is_empty() && (is_in(bytes, value).is_some() || bytes.len() >= 8 && is_in(value, bytes).is_some())
        })
    }

    /// Gives an error value, so that most templates stop here and tell the line.
    fn fail(&self, problem: SecretProblem) -> Value {
        Value::from(self.note(problem))
    }

    fn note(&self, problem: SecretProblem) -> Error {
        let error = Error::new(ErrorKind::UndefinedError, problem.to_string());
        self.pages().problem.get_or_insert(problem);
        error
    }

    fn item(self: &Arc<Self>, name: &str) -> Value {
        let found = self.pages().items.get(name).cloned();
        match found {
            Some(Ok(version)) => Value::from_object(Item { name: name.to_owned(), version, book: self.clone() }),
            Some(Err(unavailable)) => self.fail(SecretProblem::Unavailable(unavailable)),
            None => {
                self.pages().wanted.get_or_insert_with(|| name.to_owned());
                Value::from(Error::new(ErrorKind::UndefinedError, "an item that is not read yet"))
            }
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `secret`
#[derive(Debug)]
struct Secrets(Arc<Book>);

impl Object for Secrets {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        Some(self.0.item(key.as_str()?))
    }

    /// A template must name what it reads.
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secrets]")
    }
}

/// `secret.ITEM`
pub(super) struct Item {
    name: String,
    version: Arc<SecretVersion>,
    book: Arc<Book>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret.{}", self.name)
    }
}

impl Item {
    /// The field that stands for the item, where there is one.
    pub fn only_field(&self) -> Option<Field> {
        let (name, _) = match self.version.fields.len() {
            1 => self.version.fields.first_key_value(),
            _ => self.version.fields.get_key_value("value"),
        }?;
        Some(self.field(name))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_masked(&self) -> bool {
        self.book.is_masked
    }

    /// A field that may be missing.
    pub fn field_named(&self, name: &str) -> Option<Field> {
        self.version.fields.contains_key(name).then(|| self.field(name))
    }

    /// Notes why no bundle can be made.
    pub fn fail(&self, problem: String) -> Error {
        self.book.note(SecretProblem::NoBundle { problem })
    }

    fn field(&self, name: &str) -> Field {
        Field { name: name.to_owned(), item: self.name.clone(), version: self.version.clone(), book: self.book.clone() }
    }

    fn has(&self) -> Vec<String> {
        self.version.fields.keys().cloned().collect()
    }
}

impl Object for Item {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        if self.version.fields.contains_key(name) {
            return Some(Value::from_object(self.field(name)));
        }
        let (item, field) = (self.name.clone(), name.to_owned());
        Some(self.book.fail(SecretProblem::NoSuchField { item, field, has: self.has() }))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names: Vec<Value> = self.version.fields.keys().map(Value::from).collect();
        Enumerator::Values(names)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.only_field() {
            Some(field) => field.write_to(f),
            None => {
                self.book.fail(SecretProblem::NotOneField { item: self.name.clone(), has: self.has() });
                Ok(())
            }
        }
    }
}

/// `secret.ITEM.FIELD`
#[derive(Clone)]
pub(super) struct Field {
    name: String,
    item: String,
    version: Arc<SecretVersion>,
    book: Arc<Book>,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret.{}.{}", self.item, self.name)
    }
}

impl Field {
    /// The value in locked memory.
    pub fn bytes(&self) -> &[u8] {
        self.version.fields.get(&self.name).map(|secret| secret.expose()).unwrap_or_default()
    }

    /// As it is to stand in the output.
    pub fn text(&self) -> Cow<'_, str> {
        let text = std::str::from_utf8(self.bytes()).unwrap_or_else(|_| {
            self.book.fail(SecretProblem::NotText { item: self.item.clone(), field: self.name.clone() });
            ""
        });
        if self.is_masked() { Cow::Owned(self.mask(text)) } else { Cow::Borrowed(text) }
    }

    pub fn is_masked(&self) -> bool {
        self.book.is_masked
    }

    /// What stands in place of a text that was made of this field.
    pub fn mask(&self, text: &str) -> String {
        mask::masked(&format!("secret.{}.{}", self.item, self.name), text)
    }

    fn write_to(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Object for Field {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        !self.bytes().is_empty()
    }

    fn custom_cmp(self: &Arc<Self>, other: &minijinja::value::DynObject) -> Option<std::cmp::Ordering> {
        Some(self.bytes().cmp(other.downcast_ref::<Self>()?.bytes()))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_to(f)
    }
}
