//! Replacing one value in a configuration file and nothing else: comments, order and layout stay as they are.
//!
//! The parser says where the value stands; the new text is read again and compared with the old one, and where anything else has changed, it is refused.

use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::problem::Problems;
use super::tree::{Node, SourceFile, Value};
use super::yaml::{self, Scalar};

#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("{0}")]
    Unreadable(String),
    #[error("there is no value at `{0}`")]
    NoValue(String),
    #[error("`{0}` is a mapping or a list, or empty; a value is one text or number")]
    NoScalar(String),
    #[error("`{0}` is sealed already")]
    Sealed(String),
    #[error("`{0}` is not sealed")]
    NotSealed(String),
    #[error("`{0}` has a reference in it, which is no secret: `${{...}}`")]
    Reference(String),
    #[error(
        "`{0}` is written in a form that cannot be replaced in its place (a block, an anchor, an alias): write it on one line, in quotes"
    )]
    Form(String),
    #[error("{0}")]
    Sealing(String),
}

/// The text with the value at `path` sealed by `seal`, which is given the value.
pub fn seal(
    file: &Path,
    text: &str,
    path: &str,
    seal: impl FnOnce(&[u8]) -> Result<String, String>,
) -> Result<Zeroizing<String>, EditError> {
    let scalar = find(file, text, path)?;
    if scalar.is_sealed {
        return Err(EditError::Sealed(path.to_owned()));
    }
    if scalar.text.replace("$${", "").contains("${") {
        return Err(EditError::Reference(path.to_owned()));
    }
    // What is opened is taken as it is.
    let value = Zeroizing::new(scalar.text.replace("$${", "${"));
    let sealed = seal(value.as_bytes()).map_err(EditError::Sealing)?;
    replace(file, text, path, &scalar, &format!("!sealed {sealed}"))
}

/// The text with the sealed value at `path` opened by `open`.
pub fn unseal(
    file: &Path,
    text: &str,
    path: &str,
    open: impl FnOnce(&str) -> Result<Zeroizing<String>, String>,
) -> Result<Zeroizing<String>, EditError> {
    let scalar = find(file, text, path)?;
    if !scalar.is_sealed {
        return Err(EditError::NotSealed(path.to_owned()));
    }
    let plain = open(&scalar.text).map_err(EditError::Sealing)?;
    // A text of JSON is one of YAML. `$${` is how a literal `${` is written.
    let quoted =
        serde_json::to_string(&plain.replace("${", "$${")).map_err(|error| EditError::Sealing(error.to_string()))?;
    replace(file, text, path, &scalar, &Zeroizing::new(quoted))
}

/// The sealed value at `path`.
pub fn sealed_at(file: &Path, text: &str, path: &str) -> Result<String, EditError> {
    let scalar = find(file, text, path)?;
    if scalar.is_sealed { Ok(scalar.text.clone()) } else { Err(EditError::NotSealed(path.to_owned())) }
}

fn find(file: &Path, text: &str, path: &str) -> Result<Scalar, EditError> {
    // Says what is wrong with it, if anything is.
    parse(file, text)?;
    match yaml::scalar_at(text, &path.split('.').collect::<Vec<_>>()) {
        Some(Ok(scalar)) => Ok(scalar),
        Some(Err(())) => Err(EditError::NoScalar(path.to_owned())),
        None => Err(EditError::NoValue(path.to_owned())),
    }
}

fn replace(file: &Path, text: &str, path: &str, scalar: &Scalar, by: &str) -> Result<Zeroizing<String>, EditError> {
    let refuse = || EditError::Form(path.to_owned());
    let mut start = scalar.span.start;
    if scalar.is_sealed {
        // The tag stands before its value, on the same line.
        let line = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        start = line + text.get(line..scalar.span.end).and_then(|line| line.rfind("!sealed")).ok_or_else(refuse)?;
    }
    let end = end_of(text, scalar).ok_or_else(refuse)?;
    let new = Zeroizing::new(format!("{}{by}{}", &text[..start], &text[end..]));
    let (mut before, mut after) = (parse(file, text)?, parse(file, &new).map_err(|_| refuse())?);
    let keys: Vec<&str> = path.split('.').collect();
    // It has to have become what was meant, and nothing else something else.
    let is_sealed = matches!(after.at_mut(&keys).map(|node| &node.value), Some(Value::Sealed(_)));
    if is_sealed == scalar.is_sealed {
        return Err(refuse());
    }
    for tree in [&mut before, &mut after] {
        tree.at_mut(&keys).ok_or_else(refuse)?.value = Value::Null;
    }
    if before.content() == after.content() { Ok(new) } else { Err(refuse()) }
}

/// Where the value ends. The parser's word for it may take in what follows in a flow mapping, so a quoted text ends with its quote, and a plain one with
/// itself.
fn end_of(text: &str, scalar: &Scalar) -> Option<usize> {
    let start = scalar.span.start;
    let rest = text.get(start..)?;
    let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''));
    let Some(quote) = quote else {
        return match rest.starts_with(scalar.text.as_str()) {
            true => Some(start + scalar.text.len()),
            false => Some(start + text.get(start..scalar.span.end)?.trim_end().len()),
        };
    };
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quote == '"' => {
                chars.next();
            }
            // Doubled, it stands for itself.
            '\'' if quote == '\'' && chars.peek().is_some_and(|(_, next)| *next == '\'') => {
                chars.next();
            }
            c if c == quote => return Some(start + at + 1),
            _ => {}
        }
    }
    None
}

fn parse(file: &Path, text: &str) -> Result<Node, EditError> {
    let mut problems = Problems::default();
    let mut source = SourceFile::without_text(file);
    source.text = text.to_owned();
    let node = yaml::parse(&Arc::new(source), &mut problems);
    match node.filter(|_| problems.is_empty()) {
        Some(node) => Ok(node),
        None => Err(EditError::Unreadable(problems.render())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# head\nconnection:   # of the database\n  host: \"db\"\n  password: \"hun: ter2\"   # to be sealed\n  flow: { a: plain, b: 'it''s' }\n  pem: |\n    one\n    two\n  port: 3306\nlist:\n- first\n- second # two\n";

    fn sealed(path: &str) -> Result<String, EditError> {
        seal(Path::new("a.yaml"), TEXT, path, |value| {
            Ok("x".to_owned() + &value.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        })
        .map(|text| text.to_string())
    }

    fn opened(text: &str, path: &str) -> String {
        let open = |text: &str| {
            let text = &text[1..];
            let bytes = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap());
            Ok(Zeroizing::new(String::from_utf8(bytes.collect()).unwrap()))
        };
        unseal(Path::new("a.yaml"), text, path, open).unwrap().to_string()
    }

    #[test]
    fn one_value_is_replaced_and_nothing_else() {
        for (path, old, new) in [
            ("connection.password", "\"hun: ter2\"   #", "!sealed x68756e3a2074657232   #"),
            ("connection.flow.a", "{ a: plain,", "{ a: !sealed x706c61696e,"),
            ("connection.flow.b", "'it''s' }", "!sealed x69742773 }"),
            ("connection.port", "3306", "!sealed x33333036"),
            ("list.1", "second #", "!sealed x7365636f6e64 #"),
        ] {
            let text = sealed(path).unwrap();
            assert_eq!(text, TEXT.replacen(old, new, 1), "{path}");
        }
        let text = sealed("connection.password").unwrap();
        assert_eq!(opened(&text, "connection.password"), TEXT);
        let text = sealed("connection.flow.b").unwrap();
        assert_eq!(opened(&text, "connection.flow.b"), TEXT.replace("'it''s'", "\"it's\""));
    }

    #[test]
    fn what_cannot_be_sealed_is_said() {
        assert!(matches!(sealed("connection.nothing"), Err(EditError::NoValue(_))));
        assert!(matches!(sealed("connection"), Err(EditError::NoScalar(_))));
        // A block's text, which the tag cannot stand in.
        assert!(matches!(sealed("connection.pem"), Err(EditError::Form(_))));
        let again =
            |path: &str, text: &str| seal(Path::new("a.yaml"), text, path, |_| Ok("00".to_owned())).unwrap_err();
        assert!(matches!(again("a", "a: !sealed AAAA\n"), EditError::Sealed(_)));
        assert!(matches!(again("a", "a: ${PASSWORD}\n"), EditError::Reference(_)));
        assert!(matches!(again("a", "a: &x hunter2\nb: *x\n"), EditError::Form(_)));
        assert!(matches!(again("a", "a: [\n"), EditError::Unreadable(_)));
    }
}
