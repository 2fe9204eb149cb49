//! The configuration as a tree in which every node knows where it was written.
//!
//! Owns `Node`, the deep merge of layers and the lookup by path. It knows nothing of keys and their meaning. Order of keys is kept.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::fetched::Base;
use crate::secret::{Secret, SecretRef};

/// A value and the place where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub origin: Origin,
}

#[derive(Clone, PartialEq)]
pub enum Value {
    Null,
    /// Its mistake has been reported.
    Wrong,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Text),
    /// A text in which references to secrets were found.
    WithSecrets(Vec<Segment>),
    /// What stands behind `!sealed`, which has not been opened.
    Sealed(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, PartialEq)]
pub struct Text {
    pub text: String,
    /// It came from a variable or a flag, which have no types: it may stand for a number or a boolean.
    pub untyped: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_origin: Origin,
    pub node: Node,
}

#[derive(Clone, PartialEq)]
pub enum Segment {
    Literal(String),
    Secret(SecretRef),
    /// Of a sealed value.
    Opened(Arc<Secret>),
}

/// Where a node was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Line and column count from 1, the column in characters.
    File {
        file: Arc<SourceFile>,
        line: usize,
        column: usize,
    },
    Variable(String),
    Flag(String),
}

/// A file that was read, kept for the lines that problems quote.
#[derive(PartialEq, Eq)]
pub struct SourceFile {
    /// As problems name it.
    pub path: PathBuf,
    pub text: String,
    /// Where relative paths in it start from.
    pub base: Base,
}

impl SourceFile {
    /// Of a file that problems do not quote.
    pub fn without_text(path: &Path) -> Self {
        Self { path: path.to_owned(), text: String::new(), base: Base::Folder(PathBuf::from(".")) }
    }

    pub fn at(self: &Arc<Self>, line: usize, column: usize) -> Origin {
        Origin::File { file: self.clone(), line, column }
    }
}

impl Node {
    pub fn text(text: &str, untyped: bool, origin: Origin) -> Self {
        Self { value: Value::Text(Text { text: text.to_owned(), untyped }), origin }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// A number that is another one for another content; where it was written does not matter.
    pub fn content(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_into(&mut hasher);
        hasher.finish()
    }

    fn hash_into(&self, hasher: &mut DefaultHasher) {
        std::mem::discriminant(&self.value).hash(hasher);
        match &self.value {
            Value::Null | Value::Wrong => {}
            Value::Bool(value) => value.hash(hasher),
            Value::Int(value) => value.hash(hasher),
            Value::Float(value) => value.to_bits().hash(hasher),
            Value::Text(text) => text.text.hash(hasher),
            Value::Sealed(text) => text.hash(hasher),
            Value::WithSecrets(segments) => segments.iter().for_each(|segment| match segment {
                Segment::Literal(literal) => literal.hash(hasher),
                Segment::Secret(reference) => reference.hash(hasher),
                Segment::Opened(secret) => secret.expose().hash(hasher),
            }),
            Value::List(items) => items.iter().for_each(|item| item.hash_into(hasher)),
            Value::Map(entries) => entries.iter().for_each(|entry| {
                entry.key.hash(hasher);
                entry.node.hash_into(hasher);
            }),
        }
    }

    /// The node at `path`, in mappings and lists.
    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Node> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let next = match &mut self.value {
            Value::Map(entries) => &mut entries.iter_mut().find(|entry| entry.key == *first)?.node,
            Value::List(items) => items.get_mut(first.parse::<usize>().ok()?)?,
            _ => return None,
        };
        next.at_mut(rest)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(&text.text),
            _ => None,
        }
    }

    /// Where the node at `path` was written; where the path leaves the tree, the last node that exists.
    pub fn origin_of(&self, path: &[&str]) -> &Origin {
        let Some((first, rest)) = path.split_first() else { return &self.origin };
        let next = match &self.value {
            Value::Map(_) => self.get(first),
            Value::List(items) => first.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => None,
        };
        next.map_or(&self.origin, |node| node.origin_of(rest))
    }

    /// Lays `upper` over this node: mappings are merged key by key, anything else is replaced.
    pub fn lay_over(&mut self, upper: Node) {
        match (&mut self.value, upper.value) {
            (Value::Map(mine), Value::Map(theirs)) => {
                for entry in theirs {
                    match mine.iter_mut().find(|known| known.key == entry.key) {
                        Some(known) => {
                            known.key_origin = entry.key_origin;
                            known.node.lay_over(entry.node);
                        }
                        None => mine.push(entry),
                    }
                }
            }
            (_, value) => *self = Node { value, origin: upper.origin },
        }
    }

    /// Puts a text in the place of a key that is missing, so that the rest can be read. `None` when this is no mapping.
    pub fn stand_in(&mut self, key: &str, text: &str) -> Option<()> {
        let origin = self.origin.clone();
        let Value::Map(entries) = &mut self.value else { return None };
        if !entries.iter().any(|entry| entry.key == key) {
            let node = Node::text(text, false, origin.clone());
            entries.push(Entry { key: key.to_owned(), key_origin: origin, node });
        }
        Some(())
    }

    /// Puts `node` at `path`, making the mappings on the way. A name is matched as it is, else without regard to case and `-`/`_`.
    pub fn put(&mut self, path: &[String], node: Node) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self.value, Value::Map(_)) {
            *self = Node { value: Value::Map(Vec::new()), origin: node.origin.clone() };
        }
        let Value::Map(entries) = &mut self.value else { return };
        let found = entries
            .iter()
            .position(|entry| entry.key == *first)
            .or_else(|| entries.iter().position(|entry| loose(&entry.key) == loose(first)));
        let index = found.unwrap_or_else(|| {
            let empty = Node { value: Value::Map(Vec::new()), origin: node.origin.clone() };
            entries.push(Entry { key: first.clone(), key_origin: node.origin.clone(), node: empty });
            entries.len() - 1
        });
        entries[index].node.put(rest, node);
    }
}

fn loose(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

impl Value {
    /// What a person would call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null | Self::Wrong => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) | Self::WithSecrets(_) => "a text",
            Self::Sealed(_) => "a sealed value",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

// Debug never shows a text: it may be a password.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(entries) => f.debug_list().entries(entries).finish(),
            Self::List(items) => f.debug_list().entries(items).finish(),
            other => f.write_str(other.kind()),
        }
    }
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}
