//! Looks for bytes in every readable mapping of a process.
//!
//! mcpeg is not dumpable, so that nobody but root may read its memory. The sidecars of the tests are therefore started with `LOOKED_INTO`, of
//! which only a debug build heeds the first; tests of release builds need root. What finds nothing proves nothing by itself: each search
//! also looks for `MARKER`, which stands in the process's environment, and fails where that is not found or the memory may not be read.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

/// What is added to the environment of a sidecar that is to be looked into.
pub const LOOKED_INTO: [(&str, &str); 2] = [("MCPEG_DEBUG_DUMPABLE", "1"), ("MARKER_OF_THE_TESTS", MARKER)];

const MARKER: &str = "looked-into-by-a-test-4d1f";

/// Where and in which form a value was found.
#[derive(Debug)]
#[allow(dead_code)] // Read through Debug, in a failing test's output.
pub struct Found {
    pub form: &'static str,
    pub mapping: String,
    pub before: String,
}

/// Every copy of `value` in the process: plain, base64, URL-escaped and JSON-escaped.
pub fn find(pid: u32, value: &str) -> Vec<Found> {
    assert!(!search(pid, &[("plain", MARKER.into())]).is_empty(), "the marker is not found, so nothing would be");
    search(pid, &forms_of(value))
}

/// Every copy of `value` in a core that the process left; `None` where the file is not one of a process that was to be looked into.
pub fn find_in_core(core: &std::path::Path, value: &str) -> Option<Vec<&'static str>> {
    let bytes = fs::read(core).unwrap();
    if !bytes.starts_with(b"\x7fELF") || positions(&bytes, MARKER.as_bytes()).is_empty() {
        return None;
    }
    let copies = forms_of(value).into_iter().flat_map(|(form, needle)| vec![form; positions(&bytes, &needle).len()]);
    Some(copies.collect())
}

fn search(pid: u32, forms: &[(&'static str, Vec<u8>)]) -> Vec<Found> {
    let unread = |error| panic!("the memory of {pid} may not be read: {error}");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_else(unread);
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap_or_else(|error| panic!("{pid}: {error}"));
    let mut found = Vec::new();
    let mut read_bytes = 0;
    for line in maps.lines() {
        let Some((start, end)) = readable_range(line) else { continue };
        let mut pages = vec![0; end - start];
        // Secret memory and device mappings cannot be read even by root.
        if memory.seek(SeekFrom::Start(start as u64)).and_then(|_| memory.read_exact(&mut pages)).is_err() {
            continue;
        }
        read_bytes += pages.len();
        for (form, needle) in forms {
            for at in positions(&pages, needle) {
                let before = String::from_utf8_lossy(&pages[at.saturating_sub(48)..at]).into_owned();
                found.push(Found { form, mapping: line.to_owned(), before });
            }
        }
    }
    assert!(read_bytes > 1024 * 1024, "only {read_bytes} bytes could be read");
    found
}

/// The value as it may lie about. Base64 is searched without its ends, which depend on what stands beside it, at all three alignments.
fn forms_of(value: &str) -> Vec<(&'static str, Vec<u8>)> {
    use base64::Engine;
    let mut forms = vec![("plain", value.as_bytes().to_vec())];
    for shift in 0..3 {
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{}{value}", "x".repeat(shift)));
        let inner = encoded.trim_end_matches('=');
        forms.push(("base64", inner.as_bytes()[4..inner.len() - 2].to_vec()));
    }
    let escaped = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string();
    let json = serde_json::to_string(value).unwrap();
    for (form, text) in [("URL-escaped", escaped.as_str()), ("JSON-escaped", json.trim_matches('"'))] {
        if text != value {
            forms.push((form, text.as_bytes().to_vec()));
        }
    }
    forms
}

fn positions(pages: &[u8], needle: &[u8]) -> Vec<usize> {
    let first = needle[0];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = pages[at..].iter().position(|byte| *byte == first) {
        at += next;
        if pages[at..].starts_with(needle) {
            found.push(at);
        }
        at += 1;
    }
    found
}

fn readable_range(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let readable = words.next()?.starts_with('r');
    let range = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (readable && range.1 - range.0 <= 1 << 30).then_some(range)
}

#[test]
fn each_form_of_a_value_is_found() {
    let value = format!("tok\"en/{}+ä", std::process::id());
    let json = serde_json::to_string(&value).unwrap();
    let held = (
        value.clone(),
        json,
        percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC).to_string(),
    );
    let found = search(std::process::id(), &forms_of(&value));
    for form in ["plain", "JSON-escaped", "URL-escaped"] {
        assert!(found.iter().any(|found| found.form == form), "{form} of {held:?}: {found:#?}");
    }
}
