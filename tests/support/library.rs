//! The server of `library.py` as a service, and what it has read.

use tempfile::NamedTempFile;

use super::peers;

pub struct Library {
    log: NamedTempFile,
    argv: Vec<String>,
}

impl Library {
    /// `hints`: the `ttlMs` and the `cacheScope` of what may be kept.
    pub fn new(hints: &[&str]) -> Self {
        let log = NamedTempFile::new().unwrap();
        let script = format!("{}/tests/support/library.py", env!("CARGO_MANIFEST_DIR"));
        let mut argv = vec![peers::path("python").display().to_string(), script, log.path().display().to_string()];
        argv.extend(hints.iter().map(|hint| (*hint).to_owned()));
        Self { log, argv }
    }

    /// A service file with more keys.
    pub fn service(&self, more: &str) -> String {
        format!("type: mcp\ncommand: {}\n{more}", serde_json::to_string(&self.argv).unwrap())
    }

    /// How many of the lines that it has read hold `words`.
    pub fn has_read(&self, words: &str) -> usize {
        let read = std::fs::read_to_string(self.log.path()).unwrap();
        read.lines().filter(|line| line.contains(words)).count()
    }
}
