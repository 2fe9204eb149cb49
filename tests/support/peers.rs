//! The real peers, installed by tests/peers/install.py on first use and found again after that. `MCPEG_PEERS` names a file with its answer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

/// One path of install.py's answer.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(all()[name].as_str().unwrap_or_else(|| panic!("install.py gives no `{name}`")))
}

/// One command line of install.py's answer.
pub fn argv(name: &str) -> Vec<String> {
    let words = all()[name].as_array().unwrap_or_else(|| panic!("install.py gives no `{name}`"));
    words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Variables that a peer needs.
pub fn env(name: &str) -> Vec<(String, String)> {
    let variables = all()[name].as_object().unwrap_or_else(|| panic!("install.py gives no `{name}`"));
    variables.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn all() -> &'static Value {
    static PEERS: OnceLock<Value> = OnceLock::new();
    PEERS.get_or_init(|| {
        let answer = match std::env::var_os("MCPEG_PEERS") {
            Some(file) => std::fs::read(&file).unwrap_or_else(|error| panic!("MCPEG_PEERS {file:?}: {error}")),
            None => install(),
        };
        serde_json::from_slice(&answer).expect("install.py's answer is not JSON")
    })
}

/// The groups that the tests need.
const GROUPS: [&str; 11] =
    ["base", "conformance", "inspector", "rmcp", "databases", "mariadb", "aws", "nginx", "oauth", "sealing", "sources"];

/// Runs install.py, which does nothing where everything is there, with the Python that it wants where there is one by that name.
fn install() -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/install.py");
    let output = ["python3.11", "python3"]
        .iter()
        .find_map(|python| Command::new(python).arg(&script).args(GROUPS).output().ok());
    let output = output.expect("there is no python3 on this machine");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the peers could not be installed:\n{said}");
    output.stdout
}
