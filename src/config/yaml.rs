//! Reads one YAML file into a located tree: bounded, without aliases' bombs, duplicate keys found, nothing of its content in an error.

use std::fmt;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Budget, DuplicateKeyPolicy, Options, Spanned, Tagged};

use super::problem::{Problem, Problems};
use super::source::fetched::Files;
use super::tree::{Entry, Node, Origin, SourceFile, Text, Value};

/// Reads and parses `path`. `None` when it could not be; the reason is among the problems then.
pub fn read(files: &Files, path: &Path, problems: &mut Problems) -> Option<Node> {
    let shown = files.shown(path);
    let file = match read_text(path, &shown) {
        Ok(text) => Arc::new(SourceFile { path: shown, text, base: files.base(path) }),
        Err(problem) => {
            problems.push(*problem);
            return None;
        }
    };
    parse(&file, problems)
}

/// Parses a file that was read. An empty file is an empty mapping.
pub fn parse(file: &Arc<SourceFile>, problems: &mut Problems) -> Option<Node> {
    match serde_yaml::from_str_with_options::<Located>(&file.text, options()) {
        Ok(located) => {
            let mut node = located.into_node(file, problems);
            if node.value == Value::Null {
                node = Node { value: Value::Map(Vec::new()), origin: file.at(1, 1) };
            }
            Some(node)
        }
        Err(error) => {
            let error = error.without_snippet();
            let (line, column) =
                error.location().map_or((1, 1), |place| (as_count(place.line()), as_count(place.column())));
            let message = match first_line(&error.to_string()) {
                words if words.contains("budget breached: Documents") => {
                    "a configuration is one document, without `---` in it".to_owned()
                }
                words if words.contains("budget breached") => format!("a configuration may have {BUDGET}"),
                words if words.contains("tag") => "a tag (`!name`) has no meaning here".to_owned(),
                words => format!("this is not YAML that can be read: {words}"),
            };
            problems.push(Problem::new(message, file.at(line, column)));
            None
        }
    }
}

/// One scalar of a file, and the bytes that it takes there without its tag.
pub struct Scalar {
    pub span: Range<usize>,
    pub text: String,
    pub is_sealed: bool,
}

/// The scalar at a path in a text that can be parsed. `None`: nothing is there. An error: it is no scalar.
pub fn scalar_at(text: &str, path: &[&str]) -> Option<Result<Scalar, ()>> {
    let mut at: Located = serde_yaml::from_str_with_options(text, options()).ok()?;
    for name in path {
        let Tagged(raw, _) = at.0.value;
        at = match raw {
            Raw::Map(entries) => entries.into_iter().find(|(key, _)| key.value.0 == *name)?.1,
            Raw::List(items) => items.into_iter().nth(name.parse().ok()?)?,
            _ => return None,
        };
    }
    let span = at.0.referenced.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let span = start..start + usize::try_from(span.byte_len()?).ok()?;
    let Tagged(raw, tag) = at.0.value;
    let value = match raw {
        Raw::Text(value) => value,
        // As it is written: `010` and `1.50` are no other texts.
        Raw::Bool(_) | Raw::Int(_) | Raw::Float(_) => text.get(span.clone())?.trim().to_owned(),
        Raw::Null | Raw::List(_) | Raw::Map(_) => return Some(Err(())),
    };
    Some(Ok(Scalar { span, text: value, is_sealed: tag.as_deref() == Some(SEALED) }))
}

/// Reads a regular UTF-8 file of at most `MAX_FILE_BYTES`, which problems name `shown`.
fn read_text(path: &Path, shown: &Path) -> Result<String, Box<Problem>> {
    let refuse = |message: String| Box::new(Problem::of_file(message, shown));
    let meta = std::fs::metadata(path).map_err(|error| refuse(format!("cannot be opened: {}", plain_io(&error))))?;
    if !meta.is_file() {
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "a folder"
        } else if kind.is_fifo() {
            "a pipe"
        } else {
            "a device or socket"
        };
        return Err(refuse(format!("is {what}, not a regular file")));
    }
    if meta.len() > MAX_FILE_BYTES {
        return Err(refuse(format!("has {} bytes; a configuration file may have {MAX_FILE_BYTES}", meta.len())));
    }
    let bytes = std::fs::read(path).map_err(|error| refuse(format!("cannot be read: {}", plain_io(&error))))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = bytes[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = bytes[..good].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&bytes[start..good]).chars().count() + 1;
        let file = Arc::new(SourceFile::without_text(shown));
        Box::new(Problem::new("the file is not UTF-8: an invalid byte stands here".into(), file.at(line, column)))
    })
}

fn options() -> Options {
    let mut budget = Budget::default();
    budget.max_nodes = 20_000;
    budget.max_depth = 64;
    budget.max_anchors = 64;
    budget.max_aliases = 256;
    budget.max_documents = 1;
    budget.max_total_scalar_bytes = MAX_FILE_BYTES as usize;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.with_snippet = false;
    options.strict_booleans = true;
    options.leading_zero_numbers_as_strings = true;
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    // A tag asks for a meaning: `into_node` gives one to `!sealed`, and refuses the others at their places.
    options.reject_unsupported_tags = false;
    options
}

/// What the parser hands over: a value with its place.
struct Located(Spanned<Tagged<Raw>>);

enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Located>),
    Map(Vec<(Spanned<Key>, Located)>),
}

/// A key is a text; anything else has no meaning here.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Tagged::<Raw>::deserialize(deserializer)? {
            Tagged(_, Some(tag)) if !is_core(&tag) => Err(serde::de::Error::custom("a tag at a key")),
            Tagged(Raw::Text(text), _) => Ok(Self(text)),
            _ => Err(serde::de::Error::custom("a key is a text: put it in quotes")),
        }
    }
}

impl Located {
    fn into_node(self, file: &Arc<SourceFile>, problems: &mut Problems) -> Node {
        let origin = file.at(as_count(self.0.referenced.line()), as_count(self.0.referenced.column()));
        let Tagged(raw, tag) = self.0.value;
        let value = match raw {
            Raw::Text(text) if tag.as_deref() == Some(SEALED) => Value::Sealed(text),
            _ if tag.as_deref().is_some_and(|tag| !is_core(tag)) => {
                let message = "a tag (`!name`) has no meaning here".to_owned();
                problems.push(Problem::new(message, origin.clone()).help("`!sealed` stands before a text"));
                Value::Wrong
            }
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Int(value) => Value::Int(value),
            Raw::Float(value) => Value::Float(value),
            Raw::Text(text) => Value::Text(Text { text, untyped: false }),
            Raw::List(items) => Value::List(items.into_iter().map(|item| item.into_node(file, problems)).collect()),
            Raw::Map(entries) => Value::Map(into_entries(entries, file, problems)),
        };
        Node { value, origin }
    }
}

fn into_entries(raw: Vec<(Spanned<Key>, Located)>, file: &Arc<SourceFile>, problems: &mut Problems) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::with_capacity(raw.len());
    for (key, located) in raw {
        let key_origin = file.at(as_count(key.referenced.line()), as_count(key.referenced.column()));
        let node = located.into_node(file, problems);
        if let Some(first) = entries.iter().find(|entry| entry.key == key.value.0) {
            let place = match &first.key_origin {
                Origin::File { line, column, .. } => format!("line {line}, column {column}"),
                _ => "another place".to_owned(),
            };
            problems
                .push(Problem::new(format!("`{}` is given twice; the first is at {place}", key.value.0), key_origin));
            continue;
        }
        entries.push(Entry { key: key.value.0, key_origin, node });
    }
    entries
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::<Tagged<Raw>>::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

/// The system's words for an error, without the number.
pub fn plain_io(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn as_count(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX).max(1)
}

/// Whether a tag says what the value is anyway: `!!str`.
fn is_core(tag: &str) -> bool {
    tag.starts_with("tag:yaml.org,2002:") || tag == "!"
}

const SEALED: &str = "!sealed";
const BUDGET: &str = "20,000 nodes, 64 levels, 64 anchors and 256 aliases";
/// Of one configuration file.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
