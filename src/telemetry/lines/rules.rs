//! What a source's lines are and what is made of them: format, keys, limits. Checked settings, made once for a source.

use std::ops::Deref;

use regex::bytes::{Regex, RegexBuilder};

use super::multiline::Multiline;
use super::severity::Names;
use super::time::TimeFormat;

/// What stands around each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wrapping {
    #[default]
    None,
    /// `TIME STREAM F|P LINE`, as container runtimes write (Kubernetes CRI logging format).
    Cri,
    /// `{"log":"LINE\n","stream":"stdout","time":"..."}`, Docker's `json-file`.
    Docker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    #[default]
    Plain,
    Json,
    Logfmt,
}

/// A regular expression over bytes, without Unicode classes.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// The reason why not, in words.
    pub fn new(text: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(text).unicode(false).size_limit(LARGEST).dfa_size_limit(LARGEST).build();
        // The last line says what is wrong; those before quote the expression.
        let reason = |error: regex::Error| {
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        };
        regex.map(Self).map_err(reason)
    }
}

impl Deref for Pattern {
    type Target = Regex;

    fn deref(&self) -> &Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    pub wrapping: Wrapping,
    pub content: Content,
    pub multiline: Option<Multiline>,
    pub time: TimeRule,
    pub severity: SeverityRule,
    /// The keys whose value is the record's body, the first that is there.
    pub body_keys: Vec<String>,
    /// Of a record, without what stands around it; the rest is cut off.
    pub max_line_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct TimeRule {
    /// Of JSON and logfmt.
    pub keys: Vec<String>,
    pub format: TimeFormat,
    /// Of plain lines: its first group, or all of it, is the time.
    pub pattern: Option<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeverityRule {
    pub keys: Vec<String>,
    pub pattern: Option<Pattern>,
    pub names: Names,
}

/// What a key of JSON or logfmt stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Time,
    Severity,
    Body,
    Trace,
    Span,
    Attribute,
}

impl Rules {
    pub fn role(&self, key: &str) -> Role {
        let among = |keys: &[String]| keys.iter().any(|known| known == key);
        if among(&self.body_keys) {
            Role::Body
        } else if among(&self.severity.keys) {
            Role::Severity
        } else if among(&self.time.keys) {
            Role::Time
        } else if matches!(key, "trace_id" | "traceId" | "traceid" | "trace.id") {
            Role::Trace
        } else if matches!(key, "span_id" | "spanId" | "spanid" | "span.id") {
            Role::Span
        } else {
            Role::Attribute
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        let keys = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            wrapping: Wrapping::None,
            content: Content::Plain,
            multiline: None,
            time: TimeRule { keys: keys(&TIME_KEYS), ..TimeRule::default() },
            severity: SeverityRule { keys: keys(&SEVERITY_KEYS), ..SeverityRule::default() },
            body_keys: keys(&BODY_KEYS),
            max_line_bytes: DEFAULT_MAX_LINE,
        }
    }
}

/// Of a compiled expression, in bytes.
const LARGEST: usize = 512 * 1024;
pub const DEFAULT_MAX_LINE: usize = 64 * 1024;
const TIME_KEYS: [&str; 6] = ["time", "timestamp", "ts", "@timestamp", "datetime", "t"];
const SEVERITY_KEYS: [&str; 7] = ["level", "severity", "lvl", "log.level", "levelname", "loglevel", "severity_text"];
const BODY_KEYS: [&str; 5] = ["message", "msg", "log", "body", "event"];
