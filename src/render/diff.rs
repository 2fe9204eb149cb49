//! A unified diff of two texts that hold secrets, in which none is shown.
//!
//! Lines are compared as they are and shown as the masked rendering has them. A line that goes is of an older secret or an older
//! template, about which nobody knows what is secret in it: it is shown as far as a line of the masked rendering says the same at the
//! same place, and hidden beyond. Invariant: every character that is shown stands in the masked rendering, at the beginning or at the
//! end of a line.

use std::ops::Range;

use super::template::mask::{CLOSE, OPEN};

/// `masked`: the new text with masks; `None` where it could not be rendered, or has other lines: then nothing of a line is shown.
pub(super) fn unified(name: &str, old: Option<&[u8]>, new: &[u8], masked: Option<&[u8]>) -> String {
    let (before, after) = (lines(old.unwrap_or_default()), lines(new));
    let masked = masked.map(lines).filter(|masked| masked.len() == after.len());
    let masked: Option<Vec<String>> =
        masked.map(|masked| masked.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect());
    let shown = Shown { before: &before, masked: masked.as_deref() };
    let steps = steps(&before, &after);
    let mut text = format!("--- {}\n+++ {name} (rendered)\n", if old.is_some() { name } else { "/dev/null" });
    for hunk in hunks(&steps) {
        write_hunk(&steps, hunk, &shown, &mut text);
    }
    text
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// In both, at these indices.
    Same(usize, usize),
    Gone(usize),
    New(usize),
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// By a longest common subsequence of what differs; where that would cost too much, all goes and all comes.
fn steps(before: &[&[u8]], after: &[&[u8]]) -> Vec<Step> {
    let head = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let tail = before[head..].iter().rev().zip(after[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (old, new) = (&before[head..before.len() - tail], &after[head..after.len() - tail]);
    let mut steps: Vec<Step> = (0..head).map(|at| Step::Same(at, at)).collect();
    let width = new.len() + 1;
    // `best[i * width + j]`: the longest of old[i..] and new[j..].
    let mut best = match (old.len() + 1).checked_mul(width) {
        Some(cells) if cells <= MOST_CELLS => vec![0_u32; cells],
        _ => Vec::new(),
    };
    if !best.is_empty() {
        for i in (0..old.len()).rev() {
            for j in (0..new.len()).rev() {
                best[i * width + j] = match old[i] == new[j] {
                    true => best[(i + 1) * width + j + 1] + 1,
                    false => best[(i + 1) * width + j].max(best[i * width + j + 1]),
                };
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let is_same = !best.is_empty() && i < old.len() && j < new.len() && old[i] == new[j];
        let goes = i < old.len()
            && (j == new.len() || best.is_empty() || best[(i + 1) * width + j] >= best[i * width + j + 1]);
        let step = match (is_same, goes) {
            (true, _) => Step::Same(head + i, head + j),
            (false, true) => Step::Gone(head + i),
            (false, false) => Step::New(head + j),
        };
        i += usize::from(!matches!(step, Step::New(_)));
        j += usize::from(!matches!(step, Step::Gone(_)));
        steps.push(step);
    }
    steps.extend((0..tail).map(|at| Step::Same(before.len() - tail + at, after.len() - tail + at)));
    steps
}

/// Changes with the lines around them; those that touch are one.
fn hunks(steps: &[Step]) -> Vec<Range<usize>> {
    let mut hunks: Vec<Range<usize>> = Vec::new();
    for (at, _) in steps.iter().enumerate().filter(|(_, step)| !matches!(step, Step::Same(..))) {
        let around = at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(steps.len());
        match hunks.last_mut() {
            Some(last) if last.end >= around.start => last.end = around.end,
            _ => hunks.push(around),
        }
    }
    hunks
}

fn write_hunk(steps: &[Step], hunk: Range<usize>, shown: &Shown<'_>, text: &mut String) {
    let is_old = |step: &Step| !matches!(step, Step::New(_));
    let is_new = |step: &Step| !matches!(step, Step::Gone(_));
    let range = |is_in: &dyn Fn(&Step) -> bool| {
        let count = steps[hunk.clone()].iter().filter(|step| is_in(step)).count();
        let first = steps[..hunk.start].iter().filter(|step| is_in(step)).count() + usize::from(count > 0);
        if count == 1 { first.to_string() } else { format!("{first},{count}") }
    };
    text.push_str(&format!("@@ -{} +{} @@\n", range(&is_old), range(&is_new)));
    for step in &steps[hunk.clone()] {
        let (sign, line) = match step {
            Step::Same(_, new) => (' ', shown.line(*new)),
            Step::Gone(old) => ('-', shown.old(*old)),
            Step::New(new) => ('+', shown.line(*new)),
        };
        text.push(sign);
        text.push_str(&line);
        if !line.ends_with('\n') {
            text.push_str("\n\\ No newline at end of file\n");
        }
    }
}

/// Lines as they may be shown.
struct Shown<'a> {
    before: &'a [&'a [u8]],
    masked: Option<&'a [String]>,
}

impl Shown<'_> {
    fn line(&self, at: usize) -> String {
        match self.masked {
            Some(masked) => masked[at].replace(OPEN, "[").replace(CLOSE, "]"),
            None => format!("{HIDDEN}\n"),
        }
    }

    fn old(&self, at: usize) -> String {
        let line = String::from_utf8_lossy(self.before[at]);
        let (line, end) = match line.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (&*line, ""),
        };
        let masked = self.masked.unwrap_or_default().iter().map(|line| line.trim_end_matches('\n'));
        // A line that has a secret at this place says more than one that happens to begin the same way.
        let with_secret = masked.clone().filter_map(|masked| {
            let (head, rest) = masked.split_once(OPEN)?;
            let tail = rest.rsplit_once(CLOSE)?.1;
            (!head.trim().is_empty() && line.starts_with(head)).then_some((head, tail))
        });
        if let Some((head, tail)) = with_secret.max_by_key(|(head, _)| head.len()) {
            let rest = &line[head.len()..];
            let tail = if rest.len() > tail.len() && rest.ends_with(tail) { tail } else { "" };
            return format!("{head}{HIDDEN}{tail}{end}");
        }
        let plain = masked.filter(|masked| !masked.contains(OPEN)).map(|masked| common(line, masked));
        match plain.max().unwrap_or_default() {
            length if length == line.len() => format!("{line}{end}"),
            length => format!("{}{HIDDEN}{end}", &line[..length]),
        }
    }
}

/// How many bytes of whole words two lines have in common at their beginning.
fn common(line: &str, other: &str) -> usize {
    if line == other {
        return line.len();
    }
    let length: usize = line.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    line[..length].trim_end_matches(char::is_alphanumeric).len()
}

const HIDDEN: &str = "[hidden]";
const CONTEXT: usize = 3;
const MOST_CELLS: usize = 4_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn diff(old: &str, new: &str, masked: &str) -> String {
        let text = unified("f", Some(old.as_bytes()), new.as_bytes(), Some(masked.as_bytes()));
        text.strip_prefix("--- f\n+++ f (rendered)\n").unwrap().to_owned()
    }

    #[test]
    fn what_is_secret_is_named_and_what_went_is_hidden() {
        let masked = "# app\nuser = \u{e000}secret.db.user\u{e001}!\nport = 5433\n";
        let text = diff("# app\nuser = old-one!\nport = 5432\n", "# app\nuser = new-one!\nport = 5433\n", masked);
        assert_eq!(
            text,
            "@@ -1,3 +1,3 @@\n # app\n-user = [hidden]!\n-port = [hidden]\n+user = [secret.db.user]!\n+port = 5433\n"
        );
        let none = unified("f", None, b"a\nb", Some(b"a\n\xee\x80\x80s\xee\x80\x81"));
        assert_eq!(none, "--- /dev/null\n+++ f (rendered)\n@@ -0,0 +1,2 @@\n+a\n+[s]\n\\ No newline at end of file\n");
        assert_eq!(diff("hunter2\n", "hunter3\n", "too\nmany\n"), "@@ -1 +1 @@\n-[hidden]\n+[hidden]\n");
        // A comment with the same words does not show what stands after them.
        let masked = "pass = changeme\npass = \u{e000}s\u{e001}\n";
        assert!(!diff("pass = hunter2\n", "pass = changeme\npass = x\n", masked).contains("hunter2"));
    }

    #[test]
    fn changes_far_apart_are_hunks_of_their_own() {
        let old: String = (0..30).map(|n| format!("{n}\n")).collect();
        let new = old.replace("\n2\n", "\ntwo\n").replace("\n25\n", "\n");
        let text = diff(&old, &new, &new);
        assert_eq!(text.matches("@@ -").count(), 2, "{text}");
        assert!(text.contains("@@ -1,6 +1,6 @@") && text.contains("@@ -23,7 +23,6 @@"), "{text}");
    }

    proptest! {
        #[test]
        fn the_steps_lead_from_one_to_the_other(old in "[abc\n]{0,40}", new in "[abc\n]{0,40}") {
            let (before, after) = (lines(old.as_bytes()), lines(new.as_bytes()));
            let (mut left, mut right) = (Vec::new(), Vec::new());
            for step in steps(&before, &after) {
                match step {
                    Step::Same(i, j) => {
                        prop_assert_eq!(before[i], after[j]);
                        left.push(i);
                        right.push(j);
                    }
                    Step::Gone(i) => left.push(i),
                    Step::New(j) => right.push(j),
                }
            }
            prop_assert_eq!(left, (0..before.len()).collect::<Vec<_>>());
            prop_assert_eq!(right, (0..after.len()).collect::<Vec<_>>());
        }
    }
}
