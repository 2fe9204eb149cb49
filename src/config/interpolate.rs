//! `${NAME}`, `${NAME:default}`, `$${` and `${secret.ITEM.FIELD}` in the texts of a tree.
//!
//! Variables are put in here, once; references to secrets stay references.

use super::problem::{Problem, Problems};
use super::tree::{Node, Segment, Text, Value};
use crate::secret::SecretRef;

/// Replaces variables in every text below `node`. `variable` gives the value of an environment variable.
pub fn interpolate(node: &mut Node, variable: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) {
    match &mut node.value {
        Value::Map(entries) => entries.iter_mut().for_each(|entry| interpolate(&mut entry.node, variable, problems)),
        Value::List(items) => items.iter_mut().for_each(|item| interpolate(item, variable, problems)),
        Value::Text(text) if text.text.contains("${") => match split(&text.text, variable) {
            Ok(segments) => node.value = joined(segments),
            Err(mistake) => {
                problems.push(mistake.into_problem(node));
                node.value = Value::Wrong;
            }
        },
        _ => {}
    }
}

#[derive(Debug, PartialEq)]
enum Mistake {
    Unset(String),
    Open,
    Name,
    Secret,
}

impl Mistake {
    fn into_problem(self, node: &Node) -> Problem {
        let (message, help) = match self {
            Self::Unset(name) => (
                format!("the environment variable {name} is not set"),
                format!("set it, or give a default: ${{{name}:default}}"),
            ),
            Self::Open => ("`${` is not closed by `}`".to_owned(), "write `$${` for a literal `${`".to_owned()),
            Self::Name => (
                "`${...}` needs the name of an environment variable: letters, digits and `_`".to_owned(),
                "write `$${` for a literal `${`".to_owned(),
            ),
            Self::Secret => (
                "a reference to a secret has the form `${secret.ITEM}` or `${secret.ITEM.FIELD}`".to_owned(),
                "a secret has no default".to_owned(),
            ),
        };
        Problem::new(message, node.origin.clone()).help(help)
    }
}

fn split(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Segment>, Mistake> {
    let mut segments = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            literal.push_str(&rest[..at - 1]);
            literal.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        literal.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let end = inside.find('}').ok_or(Mistake::Open)?;
        rest = &inside[end + 1..];
        match inside[..end].strip_prefix("secret.") {
            Some(reference) => {
                let reference = SecretRef::parse(reference).ok_or(Mistake::Secret)?;
                if !literal.is_empty() {
                    segments.push(Segment::Literal(std::mem::take(&mut literal)));
                }
                segments.push(Segment::Secret(reference));
            }
            None => literal.push_str(&value_of(&inside[..end], variable)?),
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() || segments.is_empty() {
        segments.push(Segment::Literal(literal));
    }
    Ok(segments)
}

fn value_of(inside: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, Mistake> {
    let (name, default) = match inside.split_once(':') {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Mistake::Name);
    }
    variable(name).or_else(|| default.map(str::to_owned)).ok_or_else(|| Mistake::Unset(name.to_owned()))
}

fn joined(segments: Vec<Segment>) -> Value {
    match <[Segment; 1]>::try_from(segments) {
        Ok([Segment::Literal(text)]) => Value::Text(Text { text, untyped: true }),
        Ok([only]) => Value::WithSecrets(vec![only]),
        Err(segments) => Value::WithSecrets(segments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        (name == "HOST").then(|| "db.example".to_owned())
    }

    fn literal(text: &str) -> Vec<Segment> {
        vec![Segment::Literal(text.to_owned())]
    }

    #[test]
    fn variables_defaults_and_escapes() {
        assert!(split("${HOST}:${PORT:3306}", &environment).unwrap() == literal("db.example:3306"));
        assert!(split("${HOST:other}", &environment).unwrap() == literal("db.example"));
        assert!(split("${EMPTY:}", &environment).unwrap() == literal(""));
        assert!(split("$${HOST} costs $5", &environment).unwrap() == literal("${HOST} costs $5"));
        assert!(split("$${secret.a.b}", &environment).unwrap() == literal("${secret.a.b}"));
        assert!(split("${URL:http://a:1/}", &environment).unwrap() == literal("http://a:1/"));
    }

    #[test]
    fn secrets_stay_references() {
        let segments = split("Bearer ${secret.github.token}", &environment).unwrap();
        let expected = vec![
            Segment::Literal("Bearer ".to_owned()),
            Segment::Secret(SecretRef { item: "github".into(), field: Some("token".into()) }),
        ];
        assert!(segments == expected);
    }

    #[test]
    fn mistakes_are_told_apart() {
        for (text, mistake) in [
            ("${NOT_SET}", Mistake::Unset("NOT_SET".into())),
            ("${HOST", Mistake::Open),
            ("${}", Mistake::Name),
            ("${1A}", Mistake::Name),
            ("${a b}", Mistake::Name),
            ("${secret.}", Mistake::Secret),
            ("${secret.a b}", Mistake::Secret),
        ] {
            assert_eq!(split(text, &environment).err(), Some(mistake), "{text}");
        }
    }
}
