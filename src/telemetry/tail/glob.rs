//! Paths with `*`, `?`, `[a-z]` and `**`: which files they lead to now, and which folders were looked into.
//!
//! `*` and `?` do not cross a `/`, and match a name that begins with a dot only when the pattern does. `**` is any number of folders.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    /// The folder before the first part with a wildcard.
    root: PathBuf,
    parts: Vec<String>,
}

/// What a look at the file system found.
#[derive(Debug, Default)]
pub struct Seen {
    pub files: Vec<PathBuf>,
    pub folders: Vec<PathBuf>,
}

impl PathPattern {
    /// `path` is absolute.
    pub fn new(path: &Path) -> Self {
        let mut root = PathBuf::new();
        let mut parts: Vec<String> = Vec::new();
        for component in path.components() {
            let text = component.as_os_str().to_string_lossy();
            if parts.is_empty() && !is_wild(&text) {
                root.push(component);
            } else if component != Component::CurDir {
                parts.push(text.into_owned());
            }
        }
        if parts.is_empty()
            && let Some(name) = root.file_name().map(|name| name.to_string_lossy().into_owned())
        {
            root.pop();
            parts.push(name);
        }
        Self { root, parts }
    }

    pub fn look(&self, seen: &mut Seen) {
        self.look_below(&self.root, &self.parts, 0, seen);
    }

    pub fn matches(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(&self.root) else { return false };
        let names: Vec<&[u8]> = rest.components().map(|component| component.as_os_str().as_bytes()).collect();
        fits(&self.parts, &names)
    }

    fn look_below(&self, folder: &Path, parts: &[String], depth: usize, seen: &mut Seen) {
        let Some((part, after)) = parts.split_first() else { return };
        if depth > MOST_DEPTH || seen.folders.len() >= MOST_FOLDERS || seen.files.len() >= MOST_FILES {
            return;
        }
        if part == "**" {
            self.look_below(folder, after, depth, seen);
        }
        if !seen.folders.iter().any(|known| known == folder) {
            seen.folders.push(folder.to_owned());
        }
        if !is_wild(part) {
            let path = folder.join(part);
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => self.look_below(&path, after, depth + 1, seen),
                Ok(meta) if meta.is_file() && after.is_empty() => add(&mut seen.files, path),
                _ => {}
            }
            return;
        }
        // A folder that cannot be read now may be readable later.
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_any = part == "**";
            if is_any && name.as_bytes().starts_with(b".") || !is_any && !name_fits(part.as_bytes(), name.as_bytes()) {
                continue;
            }
            // Through links, as Kubernetes has them; not for `**`, which could go round in circles.
            let path = entry.path();
            let Ok(meta) = (if is_any { entry.metadata() } else { fs::metadata(&path) }) else { continue };
            match (is_any, meta.is_dir()) {
                (true, true) => self.look_below(&path, parts, depth + 1, seen),
                (false, true) => self.look_below(&path, after, depth + 1, seen),
                (false, false) if after.is_empty() && meta.is_file() => add(&mut seen.files, path),
                _ => {}
            }
        }
    }
}

fn add(files: &mut Vec<PathBuf>, path: PathBuf) {
    files.push(path);
}

fn is_wild(part: &str) -> bool {
    part.contains(['*', '?', '['])
}

fn fits(parts: &[String], names: &[&[u8]]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((part, after)), _) if part == "**" => {
            fits(after, names) || names.split_first().is_some_and(|(_, rest)| fits(parts, rest))
        }
        (Some((part, after)), Some((name, rest))) => name_fits(part.as_bytes(), name) && fits(after, rest),
        _ => false,
    }
}

fn name_fits(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    // Where the last star was met, and how far the name was then.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match one(&pattern[p..], name[n]) {
            Some(length) => {
                p += length;
                n += 1;
            }
            None if pattern.get(p) == Some(&b'*') => {
                star = Some((p, n));
                p += 1;
            }
            None => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, n) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How long the piece of the pattern is that this byte fits, if it is not a star.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'*' => None,
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().skip(2).position(|byte| *byte == b']')? + 2;
            let (negated, set) = match &pattern[1..end] {
                [b'!' | b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut rest = set;
            let mut is_in = false;
            while let Some(first) = rest.first() {
                is_in |= match rest {
                    [from, b'-', to, ..] => (*from..=*to).contains(&byte),
                    _ => *first == byte,
                };
                rest = if rest.len() > 2 && rest[1] == b'-' { &rest[3..] } else { &rest[1..] };
            }
            (is_in != negated).then_some(end + 1)
        }
        literal => (*literal == byte).then_some(1),
    }
}

const MOST_DEPTH: usize = 32;
const MOST_FOLDERS: usize = 4096;
const MOST_FILES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_fit_as_a_shell_would_have_it() {
        for (pattern, name, expected) in [
            ("*.log", "a.log", true),
            ("*.log", ".log", false),
            (".*", ".log", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "aXbYb", false),
            ("a?c", "abc", true),
            ("a[0-9_]c", "a5c", true),
            ("a[!0-9]c", "a5c", false),
            ("a[", "a[", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(name_fits(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        let pattern = PathPattern::new(Path::new("/var/**/x/*.log"));
        assert!(pattern.matches(Path::new("/var/x/a.log")) && pattern.matches(Path::new("/var/a/b/x/a.log")));
        assert!(!pattern.matches(Path::new("/var/x/y/a.log")) && !pattern.matches(Path::new("/etc/x/a.log")));
    }

    #[test]
    fn files_are_found_at_any_depth_and_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        for name in ["one.log", "a/two.log", "a/b/three.log", "a/b/no.txt"] {
            fs::write(at(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(at("a/b/no.txt"), at("link.log")).unwrap();
        let found = |pattern: &str| {
            let mut seen = Seen::default();
            PathPattern::new(&at(pattern)).look(&mut seen);
            let mut names: Vec<String> =
                seen.files.iter().map(|path| path.strip_prefix(folder.path()).unwrap().display().to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(found("*.log"), ["link.log", "one.log"]);
        assert_eq!(found("**/*.log"), ["a/b/three.log", "a/two.log", "link.log", "one.log"]);
        assert_eq!(found("*/*.log"), ["a/two.log"]);
        assert_eq!(found("one.log"), ["one.log"]);
        assert_eq!(found("none/one.log"), [""; 0]);
    }

    proptest! {
        #[test]
        fn no_pattern_breaks_it(pattern in "[a-c*?\\[\\]!.-]{0,12}", name in "[a-c.\\[-]{0,12}") {
            name_fits(pattern.as_bytes(), name.as_bytes());
            prop_assert!(name.starts_with('.') || name_fits(b"*", name.as_bytes()));
        }
    }
}
