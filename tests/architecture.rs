//! Who may import whom: a domain meets another only through `ports`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const DOMAINS: [&str; 8] = ["secrets", "render", "services", "mcp", "process", "storage", "telemetry", "admin"];
const LEAVES: [&str; 11] = [
    "child",
    "environment",
    "guard",
    "lifecycle",
    "local_socket",
    "memory",
    "output",
    "ports",
    "sealed",
    "secret",
    "tls",
];

#[test]
fn a_domain_imports_only_leaves_and_itself() {
    let mut breaches = Vec::new();
    for domain in DOMAINS {
        let allowed: BTreeSet<&str> = LEAVES.into_iter().chain([domain]).collect();
        breaches.extend(breaches_below(&source().join(domain), &allowed));
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn a_leaf_imports_only_leaves() {
    let allowed = BTreeSet::from(LEAVES);
    let breaches: Vec<String> = LEAVES.iter().flat_map(|leaf| breaches_below(&place_of(leaf), &allowed)).collect();
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn configuration_knows_the_domains_settings_and_nothing_else_of_them() {
    for file in files_below(&source().join("config")) {
        for import in imports(&file) {
            let mut parts = import.split("::");
            let first = parts.next().unwrap_or_default();
            if DOMAINS.contains(&first) {
                assert_eq!(parts.next(), Some("settings"), "{} imports {import}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_code_is_in_two_leaves() {
    let unsafe_files: Vec<PathBuf> = files_below(&source())
        .into_iter()
        .filter(|file| {
            ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"].iter().any(|form| code_of(file).contains(form))
        })
        .collect();
    // `memory`: the allocator and the locked arena. `child`: a hook between fork and exec, which has no safe form.
    assert_eq!(unsafe_files, [source().join("child.rs"), source().join("memory.rs")]);
}

#[test]
fn every_file_says_what_it_owns_and_none_is_too_long() {
    for file in files_below(&source()).into_iter().chain(files_below(&source().with_file_name("tests"))) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with what it owns", file.display());
        assert!(text.lines().count() <= 600, "{} has more than 600 lines", file.display());
    }
}

/// A leaf is a file, or a folder.
fn place_of(leaf: &str) -> PathBuf {
    let folder = source().join(leaf);
    if folder.is_dir() { folder } else { folder.with_extension("rs") }
}

fn breaches_below(place: &Path, allowed: &BTreeSet<&str>) -> Vec<String> {
    files_below(place)
        .iter()
        .flat_map(|file| imports(file).into_iter().map(move |import| (file.clone(), import)))
        .filter(|(_, import)| !allowed.contains(import.split("::").next().unwrap_or_default()))
        .map(|(file, import)| format!("{} imports crate::{import}", file.display()))
        .collect()
}

/// Every path after `crate::` in the code of a file; a group such as `crate::{a, b::c}` counts as its members.
fn imports(file: &Path) -> Vec<String> {
    let code = code_of(file);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let inside = group.split('}').next().unwrap_or_default();
                found.extend(inside.split(',').map(|member| path_at(member.trim())).filter(|path| !path.is_empty()));
            }
            None => found.push(path_at(rest)),
        }
    }
    found
}

fn path_at(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect()
}

/// A file without its comments.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn files_below(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut files: Vec<PathBuf> = fs::read_dir(place)
        .unwrap_or_else(|error| panic!("{}: {error}", place.display()))
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            let is_code = path.extension().is_some_and(|extension| extension == "rs");
            if path.is_dir() {
                files_below(&path)
            } else if is_code {
                vec![path]
            } else {
                Vec::new()
            }
        })
        .collect();
    files.sort();
    files
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
