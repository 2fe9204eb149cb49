//! What the repository says of the configuration is what the binary says. (tests/configurations.py checks every example.)

use std::path::Path;
use std::process::Command;

use crate::support::sidecar::PROGRAM;

#[test]
fn the_reference_says_what_the_schema_says() {
    let output = Command::new(PROGRAM).args(["schema", "--markdown"]).output().unwrap();
    let written = std::fs::read_to_string(root().join("docs/CONFIGURATION.md")).unwrap_or_default();
    let current = String::from_utf8(output.stdout).unwrap();
    assert!(written == current, "docs/CONFIGURATION.md is old: mcpeg schema --markdown > docs/CONFIGURATION.md");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
