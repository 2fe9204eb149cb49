//! A configuration as a list of keys and values, to be compared with another one and shown to a person. What may be a secret is not in it: of such a
//! value there is a keyed digest, which tells that it is another one and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use ring::hmac;
use ring::rand::SystemRandom;
use serde::Serialize;

use super::tree::{Node, Segment, Value};

/// Every value below a configuration's root by its dotted path, those of service files below `services.NAME`.
///
/// Two are always equal: how a configuration is written is no part of what it is.
#[derive(Debug, Clone, Default)]
pub struct Keys(BTreeMap<String, Leaf>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    /// `None`: it is not to be seen.
    shown: Option<String>,
    digest: [u8; 16],
}

/// One key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub key: String,
    /// What the one side has, `***` in the place of what is not to be seen. `None`: it has nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
}

impl PartialEq for Keys {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Keys {
    /// Adds what stands below `node`. `secret`: the paths at which a secret may stand.
    pub fn add(&mut self, prefix: &str, node: &Node, secret: &BTreeSet<String>) {
        self.walk(prefix, "", node, secret);
    }

    /// `at`: the path in the file, as `secret` has it.
    fn walk(&mut self, path: &str, at: &str, node: &Node, secret: &BTreeSet<String>) {
        let below = |path: &str, key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                for entry in entries {
                    self.walk(&below(path, &entry.key), &below(at, &entry.key), &entry.node, secret);
                }
            }
            Value::List(items) if !items.is_empty() => {
                for (index, item) in items.iter().enumerate() {
                    let index = index.to_string();
                    self.walk(&below(path, &index), &below(at, &index), item, secret);
                }
            }
            value => {
                let is_secret = secret.contains(at) || sounds_secret(path);
                self.0.insert(path.to_owned(), leaf_of(value, is_secret, node.content()));
            }
        }
    }

    /// What differs between what runs (`self`) and what is written.
    pub fn differences(&self, written: &Self) -> Vec<Difference> {
        let keys: BTreeSet<&String> = self.0.keys().chain(written.0.keys()).collect();
        let differ = keys.into_iter().filter(|key| self.0.get(*key) != written.0.get(*key));
        let shown = |leaf: Option<&Leaf>| leaf.map(|leaf| leaf.shown.clone().unwrap_or_else(|| HIDDEN.to_owned()));
        differ
            .map(|key| Difference {
                key: key.clone(),
                running: shown(self.0.get(key)),
                written: shown(written.0.get(key)),
            })
            .collect()
    }
}

fn leaf_of(value: &Value, is_secret: bool, content: u64) -> Leaf {
    let shown = match value {
        Value::Null | Value::Wrong => Some("null".to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => (!is_secret).then(|| value.to_string()),
        Value::Float(value) => (!is_secret).then(|| value.to_string()),
        // The password of a user in an address.
        Value::Text(text) if is_secret || (text.text.contains("://") && text.text.contains('@')) => None,
        Value::Text(text) => Some(text.text.chars().take(LONGEST).collect()),
        Value::Sealed(_) => None,
        Value::WithSecrets(segments) => Some(references(segments)),
        Value::List(_) => Some("[]".to_owned()),
        Value::Map(_) => Some("{}".to_owned()),
    };
    let bytes = match value {
        Value::Text(text) => digest(text.text.as_bytes()),
        _ => digest(&content.to_le_bytes()),
    };
    Leaf { shown, digest: bytes }
}

/// References are names; what stands between them may be a part of a secret.
fn references(segments: &[Segment]) -> String {
    let shown = segments.iter().map(|segment| match segment {
        Segment::Literal(_) | Segment::Opened(_) => HIDDEN.to_owned(),
        Segment::Secret(reference) => format!("${{{reference}}}"),
    });
    shown.collect()
}

/// Whether the name of a key says that its value is a secret, wherever it stands.
fn sounds_secret(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let is_place = ["_file", "_path", "_env", "_url", "_ttl"].iter().any(|end| name.ends_with(end));
    !is_place
        && ["password", "passwd", "secret", "token", "api_key", "apikey", "credential"]
            .iter()
            .any(|word| name.contains(word))
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    static KEY: OnceLock<Option<hmac::Key>> = OnceLock::new();
    let key = KEY.get_or_init(|| hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok());
    let mut short = [0; 16];
    // Without random numbers nothing of a secret is kept, and a change of one is not seen.
    if let Some(key) = key {
        short.copy_from_slice(&hmac::sign(key, bytes).as_ref()[..16]);
    }
    short
}

const HIDDEN: &str = "***";
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::problem::Problems;
    use crate::config::tree::SourceFile;
    use crate::config::yaml;

    fn keys(text: &str) -> Keys {
        let mut file = SourceFile::without_text(std::path::Path::new("a.yaml"));
        file.text = text.to_owned();
        let node = yaml::parse(&std::sync::Arc::new(file), &mut Problems::default()).unwrap();
        let mut keys = Keys::default();
        keys.add("", &node, &BTreeSet::from(["headers.X".to_owned()]));
        keys
    }

    #[test]
    fn differences_are_named_by_key_and_show_no_secret() {
        let old =
            keys("a: 1\nb: [x, y]\nheaders: { X: hunter2 }\ngone: true\npassword: hunter3\nurl: http://u:hunter4@h/");
        let new =
            keys("a: 2\nb: [x]\nheaders: { X: hunter5 }\nmore: { c: d }\npassword: hunter6\nurl: http://u:hunter7@h/");
        let found = old.differences(&new);
        let line = |difference: &Difference| {
            let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "-".to_owned());
            format!("{} {} {}", difference.key, side(&difference.running), side(&difference.written))
        };
        assert_eq!(
            found.iter().map(line).collect::<Vec<_>>(),
            ["a 1 2", "b.1 y -", "gone true -", "headers.X *** ***", "more.c - d", "password *** ***", "url *** ***"]
        );
        assert!(old.differences(&old.clone()).is_empty() && old == new);
        assert!(!format!("{old:?}").contains("hunter"));
    }
}
