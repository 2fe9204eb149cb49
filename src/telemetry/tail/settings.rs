//! What the configuration says of log files, checked.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::glob::PathPattern;
use crate::telemetry::lines::rules::Rules;

/// Files that are read by the same rules.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSet {
    pub include: Vec<PathPattern>,
    pub exclude: Vec<PathPattern>,
    pub rules: Rules,
    pub start_at: StartAt,
    /// How long lines wait for those that belong to them.
    pub flush_after: Duration,
    /// Attributes of the resource, which win over all others.
    pub resource: BTreeMap<String, String>,
    /// Attributes of each record.
    pub attributes: BTreeMap<String, String>,
}

/// Where a file is begun that is there at the first start. One that comes later is read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    Beginning,
    End,
}

impl FileSet {
    pub fn takes(&self, path: &Path) -> bool {
        self.include.iter().any(|pattern| pattern.matches(path)) && !self.excludes(path)
    }

    pub fn excludes(&self, path: &Path) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(path))
    }
}
