//! Checks a tree against the JSON Schema and makes it ready to be read: the schema is the one list of keys, types and forms.
//!
//! Every mistake is reported with its place, and the node that has it is taken out, so that the rest can still be read and checked.
//! On the way, untyped texts become the numbers and booleans that the schema asks for, and paths become absolute.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use url::Url;

use super::problem::{Problem, Problems};
use super::tree::{Entry, Node, Origin, Segment, Text, Value};
use super::units;
use crate::secret::SecretRef;

/// What one check needs and finds.
pub struct Shape<'a> {
    /// Relative paths from variables and flags start here.
    pub folder: &'a Path,
    pub problems: &'a mut Problems,
    /// Every reference to a secret, with its place.
    pub references: Vec<(SecretRef, Origin)>,
    /// The dotted paths at which a secret may stand.
    pub secret_places: BTreeSet<String>,
    path: Vec<String>,
}

impl<'a> Shape<'a> {
    pub fn new(folder: &'a Path, problems: &'a mut Problems) -> Self {
        Self { folder, problems, references: Vec::new(), secret_places: BTreeSet::new(), path: Vec::new() }
    }

    /// Checks `node`; `false` when it cannot be read as what the schema describes.
    pub fn check(&mut self, node: &mut Node, schema: &Json) -> bool {
        if node.value == Value::Wrong {
            return false;
        }
        if let Some(of) = alternatives(schema, "anyOf") {
            return self.check_any(node, of);
        }
        if let Some(of) = alternatives(schema, "oneOf") {
            return self.check_one(node, of);
        }
        let types = types_of(schema);
        if types.contains(&"null") && node.value == Value::Null {
            return true;
        }
        if let Some(words) = schema.get("enum").and_then(Json::as_array) {
            let words: Vec<&str> = words.iter().filter_map(Json::as_str).collect();
            return self.check_word(node, &words);
        }
        match types.iter().find(|kind| **kind != "null") {
            Some(&"object") => self.check_object(node, schema),
            Some(&"array") => self.check_array(node, schema),
            Some(&"string") => self.check_text(node, schema),
            Some(&"boolean") => self.check_boolean(node),
            Some(kind @ (&"integer" | &"number")) => self.check_number(node, schema, *kind == "integer"),
            _ => self.check_anything(node),
        }
    }

    /// `anyOf`: an optional value (one alternative is null), or scalars of several types.
    fn check_any(&mut self, node: &mut Node, of: &[Json]) -> bool {
        if node.value == Value::Null && of.iter().any(|schema| types_of(schema).contains(&"null")) {
            return true;
        }
        let real: Vec<&Json> = of.iter().filter(|schema| types_of(schema) != ["null"]).collect();
        if let [only] = real.as_slice() {
            return self.check(node, only);
        }
        let untyped_bool = node.as_str().is_some_and(|text| text.parse::<bool>().is_ok());
        let kind = match &node.value {
            Value::Bool(_) => "boolean",
            Value::Text(text) if text.untyped && untyped_bool => "boolean",
            Value::Int(_) => "integer",
            Value::List(_) => "array",
            _ => "string",
        };
        let of_kind = real.iter().find(|schema| types_of(schema).contains(&kind));
        let fits = of_kind.or_else(|| real.iter().find(|schema| !types_of(schema).contains(&"boolean")));
        fits.is_none_or(|schema| self.check(node, schema))
    }

    /// `oneOf`: words with a description each, or mappings told apart by one key.
    fn check_one(&mut self, node: &mut Node, of: &[Json]) -> bool {
        let words: Vec<&str> = of.iter().flat_map(words_of).collect();
        if !words.is_empty() {
            return self.check_word(node, &words);
        }
        let Some(tag) = of.first().and_then(tag_of).map(|(key, _)| key.to_owned()) else { return true };
        if !matches!(node.value, Value::Map(_)) {
            return self.wrong_type(node, "a mapping");
        }
        let words: Vec<&str> = of.iter().filter_map(tag_of).map(|(_, word)| word).collect();
        let Some(given) = node.get(&tag) else {
            let message = format!("`{tag}` is missing: one of {}", list(&words));
            return self.problem(message, node.origin.clone());
        };
        let mut given = given.clone();
        self.path.push(tag);
        let known = self.check_word(&mut given, &words);
        self.path.pop();
        let word = given.as_str().unwrap_or_default();
        let variant = of.iter().find(|schema| tag_of(schema).is_some_and(|(_, known)| known == word));
        known && variant.is_none_or(|schema| self.check_object(node, schema))
    }

    fn check_word(&mut self, node: &mut Node, words: &[&str]) -> bool {
        match node.as_str() {
            Some(text) if words.contains(&text) => true,
            Some(text) => {
                let help = near(text, words.iter().copied()).map(|word| format!("did you mean `{word}`?"));
                self.problem_with(format!("expected one of {}", list(words)), help, node.origin.clone())
            }
            None => self.wrong_type(node, &format!("one of {}", list(words))),
        }
    }

    fn check_object(&mut self, node: &mut Node, schema: &Json) -> bool {
        let origin = node.origin.clone();
        let Value::Map(entries) = &mut node.value else { return self.wrong_type(node, "a mapping") };
        let empty = serde_json::Map::new();
        let known = schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let others = schema.get("additionalProperties");
        let given = std::mem::take(entries);
        let mut kept = Vec::with_capacity(given.len());
        // Keys that were given and are wrong: reported, and so not missing.
        let mut rejected = Vec::new();
        for mut entry in given {
            let Some(inner) = known.get(&entry.key).or_else(|| others.filter(|others| others.is_object())) else {
                self.unknown_key(&entry, known.keys().map(String::as_str));
                continue;
            };
            // A key with nothing behind it counts as not given.
            if entry.node.value == Value::Null {
                continue;
            }
            self.path.push(entry.key.clone());
            let readable = self.check(&mut entry.node, inner);
            self.path.pop();
            if readable {
                kept.push(entry);
            } else {
                rejected.push(entry.key);
            }
        }
        node.value = Value::Map(kept);
        let required = schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
        let missing: Vec<&str> = required.filter(|key| node.get(key).is_none()).collect();
        for key in missing.iter().filter(|key| !rejected.iter().any(|name| name == *key)) {
            self.problem(format!("`{key}` is missing"), origin.clone());
        }
        missing.is_empty()
    }

    fn unknown_key<'k>(&mut self, entry: &Entry, known: impl Iterator<Item = &'k str>) {
        let known: Vec<&str> = known.collect();
        let help = near(&entry.key, known.iter().copied()).map(|name| format!("did you mean `{name}`?"));
        let help = help.or_else(|| (!known.is_empty()).then(|| format!("known here: {}", list(&known))));
        self.path.push(entry.key.clone());
        self.problem_with(format!("unknown key `{}`", entry.key), help, entry.key_origin.clone());
        self.path.pop();
    }

    fn check_array(&mut self, node: &mut Node, schema: &Json) -> bool {
        let origin = node.origin.clone();
        if let Value::Text(text) = &node.value
            && text.untyped
        {
            let parts = text.text.split(',').map(str::trim).filter(|part| !part.is_empty());
            node.value = Value::List(parts.map(|part| Node::text(part, true, origin.clone())).collect());
        }
        let Value::List(items) = &mut node.value else { return self.wrong_type(node, "a list") };
        let mut whole = true;
        if let Some(inner) = schema.get("items") {
            for (index, item) in items.iter_mut().enumerate() {
                self.path.push(index.to_string());
                whole &= self.check(item, inner);
                self.path.pop();
            }
        }
        let least = schema.get("minItems").and_then(Json::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            return self.problem(format!("needs at least {least} entry"), origin);
        }
        whole
    }

    fn check_text(&mut self, node: &mut Node, schema: &Json) -> bool {
        let secret_allowed = schema.get("x-secret").and_then(Json::as_bool) == Some(true);
        if secret_allowed {
            self.secret_places.insert(self.path.join("."));
        }
        if let Value::WithSecrets(segments) = &node.value {
            let found: Vec<SecretRef> = segments.iter().filter_map(secret_of).collect();
            self.references.extend(found.into_iter().map(|reference| (reference, node.origin.clone())));
            return secret_allowed
                || self.problem_with(
                    "a secret may not stand here".to_owned(),
                    Some("secrets may stand in headers, environments, tokens and passwords".to_owned()),
                    node.origin.clone(),
                );
        }
        if matches!(node.value, Value::Sealed(_)) {
            return secret_allowed || self.misplaced_seal(node);
        }
        let Some(text) = node.as_str() else {
            let expected = if matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Bool(_)) {
                "a text (put it in quotes)"
            } else {
                "a text"
            };
            return self.wrong_type(node, expected);
        };
        let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
        let fault = match format {
            "duration" if units::parse_duration(text).is_none() => {
                Some("expected a duration such as `250ms`, `30s`, `5m`, `1h` or `30d`".to_owned())
            }
            "size" if units::parse_size(text).is_none() => {
                Some("expected a size such as `512B`, `64KiB` or `1MiB`, at most `64MiB`".to_owned())
            }
            "rate" if units::parse_rate(text).is_none() => {
                Some("expected a rate such as `10/s`, `100/m` or `1000/h`".to_owned())
            }
            "mode" if units::parse_mode(text).is_none() => {
                Some("expected octal permission bits that the owner can read, such as `\"0600\"`".to_owned())
            }
            "signal" if units::parse_signal(text).is_none() => {
                Some("expected a signal such as `SIGHUP`, `SIGTERM` or `SIGUSR1`".to_owned())
            }
            "url" => url_fault(text),
            "ip" | "ipv4" | "ipv6" if text.parse::<std::net::IpAddr>().is_err() => {
                Some("expected an IP address such as `127.0.0.1`".to_owned())
            }
            _ => None,
        };
        if let Some(message) = fault {
            return self.problem(message, node.origin.clone());
        }
        if format == "path" && !text.is_empty() {
            let absolute = self.absolute(text, &node.origin);
            let Some(absolute) = absolute.to_str() else {
                return self.problem("the path is not UTF-8".to_owned(), node.origin.clone());
            };
            node.value = Value::Text(Text { text: absolute.to_owned(), untyped: false });
        }
        true
    }

    /// What the schema leaves open: secrets may not stand there, because nobody would know of them.
    fn check_anything(&mut self, node: &Node) -> bool {
        match &node.value {
            Value::Wrong => false,
            Value::Sealed(_) => self.misplaced_seal(node),
            Value::WithSecrets(_) => self.problem_with(
                "a secret may not stand here".to_owned(),
                Some("secrets may stand in headers, environments, tokens and passwords".to_owned()),
                node.origin.clone(),
            ),
            Value::List(items) => items.iter().all(|item| self.check_anything(item)),
            Value::Map(entries) => entries.iter().all(|entry| self.check_anything(&entry.node)),
            _ => true,
        }
    }

    fn misplaced_seal(&mut self, node: &Node) -> bool {
        self.problem_with(
            "a sealed value may not stand here".to_owned(),
            Some("it may stand where a secret may: in headers, environments, tokens and passwords".to_owned()),
            node.origin.clone(),
        )
    }

    fn check_boolean(&mut self, node: &mut Node) -> bool {
        if let Value::Text(text) = &node.value
            && text.untyped
            && let Ok(value) = text.text.parse()
        {
            node.value = Value::Bool(value);
        }
        matches!(node.value, Value::Bool(_)) || self.wrong_type(node, "`true` or `false`")
    }

    fn check_number(&mut self, node: &mut Node, schema: &Json, whole: bool) -> bool {
        if let Value::Text(text) = &node.value
            && text.untyped
        {
            if let Ok(value) = text.text.parse::<i64>() {
                node.value = Value::Int(value);
            } else if let (false, Ok(value)) = (whole, text.text.parse::<f64>()) {
                node.value = Value::Float(value);
            }
        }
        let value = match node.value {
            Value::Int(value) => value as f64,
            Value::Float(value) if !whole => value,
            _ => return self.wrong_type(node, if whole { "a whole number" } else { "a number" }),
        };
        let (least, most) = bounds_of(schema);
        if value < least || value > most {
            let range = if most == f64::INFINITY {
                format!("a number of at least {least}")
            } else {
                format!("a number from {least} to {most}")
            };
            return self.problem(format!("expected {range}"), node.origin.clone());
        }
        true
    }

    fn absolute(&self, text: &str, origin: &Origin) -> PathBuf {
        match origin {
            Origin::File { file, .. } => file.base.resolve(text),
            _ => self.folder.join(text),
        }
    }

    fn wrong_type(&mut self, node: &Node, expected: &str) -> bool {
        self.problem(format!("expected {expected}, found {}", node.value.kind()), node.origin.clone())
    }

    fn problem(&mut self, message: String, origin: Origin) -> bool {
        self.problem_with(message, None, origin)
    }

    fn problem_with(&mut self, message: String, help: Option<String>, origin: Origin) -> bool {
        let mut problem = Problem::new(message, origin).path(self.path.join("."));
        problem.help = help;
        self.problems.push(problem);
        false
    }
}

/// The name among `known` that a person may have meant.
pub fn near<'k>(given: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let most = (given.chars().count() / 3).clamp(1, 3);
    known
        .map(|name| (strsim::damerau_levenshtein(&given.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn url_fault(text: &str) -> Option<String> {
    let expected = "expected an address such as `https://host:8200`";
    match Url::parse(text) {
        Err(error) => Some(format!("{expected}: {error}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => Some(expected.to_owned()),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Some("an address may not hold a user or a password".to_owned())
        }
        Ok(_) => None,
    }
}

fn secret_of(segment: &Segment) -> Option<SecretRef> {
    match segment {
        Segment::Secret(reference) => Some(reference.clone()),
        Segment::Literal(_) | Segment::Opened(_) => None,
    }
}

fn alternatives<'s>(schema: &'s Json, key: &str) -> Option<&'s Vec<Json>> {
    schema.get(key).and_then(Json::as_array)
}

fn types_of(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(one)) => vec![one],
        Some(Json::Array(several)) => several.iter().filter_map(Json::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The words of one alternative of `oneOf`: its `const`, or its `enum`.
fn words_of(schema: &Json) -> Vec<&str> {
    match schema.get("const") {
        Some(Json::String(word)) => vec![word],
        _ => schema.get("enum").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect(),
    }
}

/// The key and the word by which one alternative of `oneOf` is told from the others.
fn tag_of(schema: &Json) -> Option<(&str, &str)> {
    let properties = schema.get("properties")?.as_object()?;
    properties.iter().find_map(|(key, inner)| Some((key.as_str(), inner.get("const")?.as_str()?)))
}

fn bounds_of(schema: &Json) -> (f64, f64) {
    let least = schema.get("minimum").and_then(Json::as_f64).unwrap_or(f64::NEG_INFINITY);
    let most = schema.get("maximum").and_then(Json::as_f64).unwrap_or(f64::INFINITY);
    match schema.get("format").and_then(Json::as_str) {
        Some("uint16") => (least.max(0.0), most.min(f64::from(u16::MAX))),
        Some("uint32") => (least.max(0.0), most.min(f64::from(u32::MAX))),
        Some("uint64") => (least.max(0.0), most),
        _ => (least, most),
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
