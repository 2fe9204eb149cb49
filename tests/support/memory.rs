//! Looks for bytes in every readable mapping of a process, as root or the same user may.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

/// Where and in which form a value was found.
#[derive(Debug)]
#[allow(dead_code)] // Read through Debug, in a failing test's output.
pub struct Found {
    pub form: &'static str,
    pub mapping: String,
    pub before: String,
}

/// Every copy of `value` in the process: plain, base64, URL-escaped and JSON-escaped. `None` when its memory may not be read.
pub fn find(pid: u32, value: &str) -> Option<Vec<Found>> {
    let forms = forms_of(value);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut memory = File::open(format!("/proc/{pid}/mem")).ok()?;
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
        for (form, needle) in &forms {
            for at in positions(&pages, needle) {
                let before = String::from_utf8_lossy(&pages[at.saturating_sub(48)..at]).into_owned();
                found.push(Found { form, mapping: line.to_owned(), before });
            }
        }
    }
    assert!(read_bytes > 1024 * 1024, "only {read_bytes} bytes could be read");
    Some(found)
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
