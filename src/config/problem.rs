//! What is wrong with a configuration: each mistake with its place, all of them at once.
//!
//! A quoted line shows keys only; every value in it is masked, for it may be a password. A message never holds a value.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::tree::{Origin, SourceFile};

#[derive(Debug, Clone)]
pub struct Problem {
    pub message: String,
    pub help: Option<String>,
    /// The key in dotted form, where the problem has one.
    pub path: Option<String>,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub enum Place {
    Origin(Origin),
    /// The file as a whole.
    File(PathBuf),
    Nowhere,
}

impl Problem {
    pub fn new(message: String, origin: Origin) -> Self {
        Self { message, help: None, path: None, place: Place::Origin(origin) }
    }

    pub fn of_file(message: String, path: &Path) -> Self {
        Self { message, help: None, path: None, place: Place::File(path.to_owned()) }
    }

    pub fn nowhere(message: String) -> Self {
        Self { message, help: None, path: None, place: Place::Nowhere }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    fn sort_key(&self) -> (PathBuf, usize, usize) {
        match &self.place {
            Place::Origin(Origin::File { file, line, column }) => (file.path.clone(), *line, *column),
            Place::File(path) => (path.clone(), 0, 0),
            _ => (PathBuf::new(), 0, 0),
        }
    }

    /// `file:line:column: message`, on one line.
    pub fn one_line(&self) -> String {
        let what = match &self.help {
            Some(help) => format!("{} ({help})", self.message),
            None => self.message.clone(),
        };
        match &self.place {
            Place::Origin(Origin::File { file, line, column }) => {
                format!("{}:{line}:{column}: {what}", file.path.display())
            }
            Place::Origin(Origin::Variable(name)) => format!("environment variable {name}: {what}"),
            Place::Origin(Origin::Flag(flag)) => format!("flag --set {flag}: {what}"),
            Place::File(path) => format!("{}: {what}", path.display()),
            Place::Nowhere => what,
        }
    }

    fn render(&self, text: &mut String) {
        let _ = writeln!(text, "error: {}", self.message);
        match &self.place {
            Place::Origin(Origin::File { file, line, column }) => {
                let _ = writeln!(text, "  --> {}:{line}:{column}", file.path.display());
                if let Some((quoted, caret)) = quote(file, *line, *column) {
                    let margin = line.to_string().len();
                    let _ = writeln!(text, " {:margin$} |", "");
                    let _ = writeln!(text, " {line} | {quoted}");
                    let _ = writeln!(text, " {:margin$} | {:caret$}^", "", "");
                }
            }
            Place::Origin(Origin::Variable(name)) => {
                let _ = writeln!(text, "  --> environment variable {name}");
            }
            Place::Origin(Origin::Flag(flag)) => {
                let _ = writeln!(text, "  --> flag --set {flag}");
            }
            Place::File(path) => {
                let _ = writeln!(text, "  --> {}", path.display());
            }
            Place::Nowhere => {}
        }
        if let Some(help) = &self.help {
            let _ = writeln!(text, "  help: {help}");
        }
    }
}

/// All problems of one load.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In the order of files, lines and columns.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.0.sort_by_key(Problem::sort_key);
        // One mistake may be met on several ways.
        let mut said = std::collections::HashSet::new();
        self.0.retain(|problem| said.insert(problem.one_line()));
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// For a terminal: every problem with its line.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for problem in &self.0 {
            problem.render(&mut text);
            text.push('\n');
        }
        let _ = write!(text, "{} found", plural(self.0.len()));
        text
    }

    /// For a program.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self.0.iter().map(JsonProblem::from).collect::<Vec<_>>())
    }
}

fn plural(count: usize) -> String {
    if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for Problems {}

#[derive(Serialize)]
struct JsonProblem {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snippet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<String>,
}

impl From<&Problem> for JsonProblem {
    fn from(problem: &Problem) -> Self {
        let mut json = Self {
            message: problem.message.clone(),
            help: problem.help.clone(),
            path: problem.path.clone(),
            file: None,
            line: None,
            column: None,
            snippet: None,
            variable: None,
            flag: None,
        };
        match &problem.place {
            Place::Origin(Origin::File { file, line, column }) => {
                json.file = Some(file.path.clone());
                json.line = Some(*line);
                json.column = Some(*column);
                json.snippet = quote(file, *line, *column).map(|(line, _)| line);
            }
            Place::Origin(Origin::Variable(name)) => json.variable = Some(name.clone()),
            Place::Origin(Origin::Flag(flag)) => json.flag = Some(flag.clone()),
            Place::File(path) => json.file = Some(path.clone()),
            Place::Nowhere => {}
        }
        json
    }
}

/// The masked line and how many characters stand before the caret. `None` when there is no such line.
fn quote(file: &Arc<SourceFile>, line: usize, column: usize) -> Option<(String, usize)> {
    let text = file.text.lines().nth(line.checked_sub(1)?)?;
    Some(mask(text, column.saturating_sub(1)))
}

/// Replaces everything in a YAML line that is not a key, a dash or an opening brace by `***`; tells where `column` has moved to.
///
/// A key is a name directly followed by a colon and a blank or the line's end, at the line's start or after `{`, `,` or `-`, outside
/// quotes. When in doubt it is masked.
fn mask(line: &str, column: usize) -> (String, usize) {
    let chars: Vec<char> = line.chars().take(MAX_QUOTED).collect();
    let mut out = String::new();
    let mut shown = 0;
    let mut caret = None;
    let mut at = 0;
    let mut may_be_key = true;
    while at < chars.len() {
        if at >= column && caret.is_none() {
            caret = Some(shown);
        }
        let step = match chars[at] {
            ' ' | '\t' => Step::keep(1, may_be_key),
            '-' if may_be_key && chars.get(at + 1).is_none_or(|next| *next == ' ') => Step::keep(1, true),
            '{' if !out.trim_end().ends_with("***") && is_closed(&chars[at..]) => Step::keep(1, true),
            ',' if shown > 0 && in_flow(&chars[..at]) => Step::keep(1, true),
            _ if may_be_key && key_length(&chars[at..]).is_some() => {
                Step::keep(key_length(&chars[at..]).unwrap_or(1), false)
            }
            _ => Step::mask(masked_length(&chars[at..], in_flow(&chars[..at]))),
        };
        if step.shown {
            out.extend(&chars[at..at + step.length]);
            shown += step.length;
        } else {
            out.push_str("***");
            shown += 3;
        }
        if caret.is_none() && column < at + step.length {
            caret = Some(shown - if step.shown { at + step.length - column } else { 3 });
        }
        may_be_key = step.key_may_follow;
        at += step.length;
    }
    (out.trim_end().to_owned(), caret.unwrap_or(shown))
}

struct Step {
    length: usize,
    shown: bool,
    key_may_follow: bool,
}

impl Step {
    fn keep(length: usize, key_may_follow: bool) -> Self {
        Self { length, shown: true, key_may_follow }
    }

    fn mask(length: usize) -> Self {
        Self { length, shown: false, key_may_follow: false }
    }
}

/// Length of a key with its colon at the start of `rest`.
fn key_length(rest: &[char]) -> Option<usize> {
    let name = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')).count();
    let colon = name > 0 && rest.get(name) == Some(&':');
    (colon && rest.get(name + 1).is_none_or(|next| *next == ' ')).then_some(name + 1)
}

/// Whether a `{` was opened before and not closed, outside quotes.
fn in_flow(before: &[char]) -> bool {
    let mut depth = 0_i32;
    let mut quote = None;
    for c in before {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(*c),
            (Some(open), c) if open == *c => quote = None,
            (None, '{') => depth += 1,
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    depth > 0 && quote.is_none()
}

/// Whether the `{` that `rest` begins with is closed in it, outside quotes: else it may be the first sign of a value.
fn is_closed(rest: &[char]) -> bool {
    (1..=rest.len()).any(|length| rest[length - 1] == '}' && !in_flow(&rest[..length]))
}

/// How much to mask: up to the comma that ends the value in a flow mapping, else the rest of the line.
fn masked_length(rest: &[char], in_flow: bool) -> usize {
    if !in_flow {
        return rest.len();
    }
    let mut quote = None;
    let mut depth = 0_i32;
    for (index, c) in rest.iter().enumerate() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(*c),
            (Some(open), c) if open == *c => quote = None,
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth -= 1,
            (None, ',') if depth <= 0 && index > 0 => return index,
            _ => {}
        }
    }
    rest.len()
}

const MAX_QUOTED: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_line_shows_keys_and_no_value() {
        for (line, masked) in [
            ("  password: hunter2", "  password: ***"),
            ("  - hunter2", "  - ***"),
            ("hunter2", "***"),
            ("  password: hunter2 # or: hunter3", "  password: ***"),
            ("a: { user: bob, password: \"hun, ter: 2\" }", "a: { user: ***, password: ***"),
            ("env: { A: [hunter2, b: c], B: x }", "env: { A: ***, B: ***"),
            ("  pass: \"half open", "  pass: ***"),
            ("# secret: hunter2", "***"),
            ("? hunter2", "***"),
            ("  key: |", "  key: ***"),
            ("  password: {hunter2: x", "  password: ***"),
        ] {
            assert_eq!(mask(line, 0).0, masked, "for {line:?}");
        }
    }

    #[test]
    fn the_caret_moves_with_what_was_masked() {
        let (line, caret) = mask("a: { user: somebody, password: x }", 21);
        assert_eq!((line.as_str(), caret), ("a: { user: ***, password: ***", 16));
        assert_eq!(mask("  timeout: 30", 11), ("  timeout: ***".to_owned(), 11));
    }

    proptest::proptest! {
        #[test]
        fn no_value_survives_masking(indent in 0_usize..8, key in "[a-z]{1,9}", value in "[!-~]{0,6}hunter2[ -~]{0,8}", column in 0_usize..40) {
            // What stands before a colon in a mapping is a key.
            proptest::prop_assume!(!(value.contains('{') && value.contains('}')));
            let line = format!("{:indent$}{key}: {value}", "");
            proptest::prop_assert!(!mask(&line, column).0.contains("hunter2"));
            let (_, caret) = mask(&line, column);
            proptest::prop_assert!(caret <= 200);
        }
    }
}
