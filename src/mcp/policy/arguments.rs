//! Checks the arguments of a call against the schema that its tool has shown in `tools/list`.
//!
//! A schema is learned from whatever list passes, for all sessions of the service, and compiled when it is first needed. A tool whose
//! schema is not known, or cannot be compiled, is not checked: its server does that anyway. Problems name places and rules, never values.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

#[derive(Default)]
pub struct Schemas(Mutex<HashMap<Box<str>, Arc<Schema>>>);

struct Schema {
    text: Box<str>,
    /// `None`: it is no schema that could be used.
    compiled: OnceLock<Option<Validator>>,
}

impl Schemas {
    /// The tool's schema, as JSON, is this now.
    pub fn learn(&self, tool: &str, schema: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(tool).is_some_and(|before| &*before.text == schema) {
            return;
        }
        if schema.len() <= MAX_SCHEMA_BYTES && (known.len() < MAX_SCHEMAS || known.contains_key(tool)) {
            known.insert(tool.into(), Arc::new(Schema { text: schema.into(), compiled: OnceLock::new() }));
        } else {
            known.remove(tool);
        }
    }

    /// What is wrong with the arguments (JSON), at most `MAX_PROBLEMS` of it; nothing if they are not checked.
    pub fn problems(&self, tool: &str, arguments: Option<&str>) -> Vec<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(tool).cloned();
        let Some(schema) = known else { return Vec::new() };
        let Some(validator) = schema.compiled.get_or_init(|| compile(tool, &schema.text)) else { return Vec::new() };
        let Ok(arguments) = serde_json::from_str::<Value>(arguments.unwrap_or("{}")) else {
            return vec!["the arguments cannot be read".to_owned()];
        };
        let problem = |error: jsonschema::ValidationError<'_>| {
            let (what, place) = (error.masked().to_string(), error.instance_path().to_string());
            let text = if place.is_empty() { what } else { format!("{place}: {what}") };
            text.chars().take(MAX_PROBLEM_CHARS).collect()
        };
        validator.iter_errors(&arguments).take(MAX_PROBLEMS).map(problem).collect()
    }
}

/// Patterns are matched in linear time: they are the server's. Nothing is fetched for a reference.
fn compile(tool: &str, schema: &str) -> Option<Validator> {
    let schema: Value = serde_json::from_str(schema).ok()?;
    match jsonschema::options().with_pattern_options(PatternOptions::regex()).build(&schema) {
        Ok(validator) => Some(validator),
        Err(error) => {
            let reason: String = error.masked().to_string().chars().take(MAX_PROBLEM_CHARS).collect();
            tracing::warn!(tool, reason, "the tool's schema cannot be used: its arguments are not checked");
            None
        }
    }
}

const MAX_SCHEMAS: usize = 4096;
const MAX_SCHEMA_BYTES: usize = 256 * 1024;
const MAX_PROBLEMS: usize = 5;
const MAX_PROBLEM_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"{"type":"object","properties":{"text":{"type":"string","maxLength":3},"n":{"type":"integer"}},"required":["text"],"additionalProperties":false}"#;

    #[test]
    fn arguments_are_checked_once_the_schema_is_known_and_no_value_is_said() {
        let schemas = Schemas::default();
        assert!(schemas.problems("t", Some("{}")).is_empty());
        schemas.learn("t", SCHEMA);
        assert!(schemas.problems("t", Some(r#"{"text":"abc","n":1}"#)).is_empty());
        let missing = schemas.problems("t", None);
        assert!(missing.len() == 1 && missing[0].contains("text"), "{missing:?}");
        let problems = schemas.problems("t", Some(r#"{"text":"sentinel","n":"x","more":1}"#));
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.starts_with("/text: ")), "{problems:?}");
        assert!(!problems.concat().contains("sentinel"), "{problems:?}");
        assert!(schemas.problems("other", Some("{}")).is_empty());
    }

    #[test]
    fn a_new_list_brings_a_new_schema_and_a_bad_one_checks_nothing() {
        let schemas = Schemas::default();
        schemas.learn("t", SCHEMA);
        schemas.learn("t", r#"{"type":"object"}"#);
        assert!(schemas.problems("t", Some(r#"{"any":1}"#)).is_empty());
        for bad in ["7", r#"{"type":"nonsense"}"#, r#"{"$ref":"https://example.com/x"}"#] {
            schemas.learn("t", bad);
            assert!(schemas.problems("t", Some("{}")).is_empty(), "{bad}");
        }
        schemas.learn("t", &format!("{SCHEMA}{}", " ".repeat(MAX_SCHEMA_BYTES)));
        assert!(schemas.problems("t", Some("{}")).is_empty());
    }
}
