//! What stands in place of a secret in a rendering that is shown: its name between two marks, once a line.
//!
//! The marks are characters of the private use area (Unicode 23.5), so that what is masked can be told from what is not.

/// `item.field` in place of each line of a text that was made of that field.
pub(super) fn masked(name: &str, text: &str) -> String {
    let mut shown = String::new();
    for line in text.split_inclusive('\n') {
        if !line.trim_end_matches('\n').is_empty() {
            shown.extend([OPEN, name, CLOSE]);
        }
        if line.ends_with('\n') {
            shown.push('\n');
        }
    }
    if text.is_empty() {
        shown.extend([OPEN, name, CLOSE]);
    }
    shown
}

pub(super) fn is_masked(text: &str) -> bool {
    text.contains(OPEN)
}

/// The beginning of a masked part.
pub(in super::super) const OPEN: &str = "\u{e000}";
pub(in super::super) const CLOSE: &str = "\u{e001}";
