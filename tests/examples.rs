//! What the repository ships as an example is checked as a user would check it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::sidecar::PROGRAM;

#[test]
fn the_working_example_is_good_in_every_environment() {
    for environment in [None, Some("development")] {
        let mut check = Command::new(PROGRAM);
        check.args(["check", "--config"]).arg(root().join("config/mcpeg.yaml"));
        check.args(environment.iter().flat_map(|name| ["--environment", name]));
        let output = check.output().unwrap();
        assert!(output.status.success(), "{environment:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_configurations_in_deploy_are_good() {
    let files: Vec<PathBuf> =
        below(&root().join("deploy")).into_iter().filter(|file| file.ends_with("mcpeg.yaml")).collect();
    assert!(!files.is_empty());
    for file in files {
        let output = Command::new(PROGRAM).args(["check", "--config"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
}

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

fn below(place: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
    entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { below(&path) } else { vec![path] }
        })
        .collect()
}
