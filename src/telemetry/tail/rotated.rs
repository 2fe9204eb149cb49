//! Which files are what a rotation made of another one, by name and by content.
//!
//! By name: `app.log.1`, `app.log-20261126`, `app.log.1.gz`, `app-20261126.log` and `app.log.old` stand beside `app.log`. A number before
//! the extension (`worker-2.log`) is no rotation: it tells programs apart. The content then has the last word, so that two files that only
//! look alike are never taken for one.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

use super::position::{Contents, Key, Likeness, Position};
use super::read::key_at;

/// A file that may be what became of another.
#[derive(Debug)]
pub struct Candidate {
    pub path: PathBuf,
    pub key: Key,
    pub modified: SystemTime,
}

pub fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

/// Whether both names are of one rotation.
pub fn are_related(one: &Path, other: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (one_name, other_name) = (name(one), name(other));
    if one.parent() != other.parent() || one_name == other_name {
        return false;
    }
    let follows =
        |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with(['.', '-', '_', '~']));
    base(&one_name) == base(&other_name) || follows(&one_name, &other_name) || follows(&other_name, &one_name)
}

/// Whether a copy of `original` would have the name of `copy`.
pub fn is_named_after(original: &Path, copy: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (original_name, copy_name) = (name(original), name(copy));
    are_related(original, copy) && (copy_name.starts_with(&original_name) || base(&copy_name) == original_name)
}

/// The files beside `path` that a rotation may have made of it, the oldest first.
pub fn beside(path: &Path) -> Vec<Candidate> {
    let Some(Ok(entries)) = path.parent().map(fs::read_dir) else { return Vec::new() };
    let mut found: Vec<Candidate> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|other| are_related(path, other))
        .filter_map(|path| {
            let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some(Candidate { key: key_at(&meta), modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), path })
        })
        .collect();
    found.sort_by_key(|candidate| candidate.modified);
    found.truncate(MOST_CANDIDATES);
    found
}

/// Whether the file has what this position is of.
pub fn likeness(path: &Path, position: &Position) -> io::Result<Likeness> {
    if position.offset == 0 {
        return Ok(Likeness::Other);
    }
    let file = File::open(path)?;
    if is_gzip(path) { position.is_of(&Unpacked::new(file)) } else { position.is_of(&file) }
}

/// The name before any rotation.
fn base(name: &str) -> String {
    let mut name = name;
    for suffix in [".gz", ".old", ".bak", "~"] {
        name = name.strip_suffix(suffix).unwrap_or(name);
    }
    let number = |c: char| c.is_ascii_digit() || matches!(c, '-' | '_' | '.' | 'T' | ':');
    // Behind everything: `.1`, `-20261126`.
    let front = name.trim_end_matches(number);
    if front.len() < name.len() && front.contains('.') && name[front.len()..].contains(|c: char| c.is_ascii_digit()) {
        return front.to_owned();
    }
    // Before the extension: a date, no mere number.
    if let Some((stem, extension)) = name.rsplit_once('.') {
        let front = stem.trim_end_matches(number);
        let digits = stem[front.len()..].chars().filter(char::is_ascii_digit).count();
        if digits >= DATE_DIGITS && !front.is_empty() {
            return format!("{front}.{extension}");
        }
    }
    name.to_owned()
}

/// What is in a gzip file, read from front to back.
struct Unpacked(RefCell<(MultiGzDecoder<io::BufReader<File>>, u64)>);

impl Unpacked {
    fn new(file: File) -> Self {
        Self(RefCell::new((MultiGzDecoder::new(io::BufReader::new(file)), 0)))
    }
}

impl Contents for Unpacked {
    /// Places have to be asked for in order; the head that was read before the tail may reach into it.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let (decoder, at) = &mut *self.0.borrow_mut();
        if offset < *at {
            let file = decoder.get_ref().get_ref().try_clone()?;
            io::Seek::rewind(&mut &file)?;
            (*decoder, *at) = (MultiGzDecoder::new(io::BufReader::new(file)), 0);
        }
        *at += io::copy(&mut decoder.take(offset - *at), &mut io::sink())?;
        let mut filled = 0;
        while *at == offset + filled as u64 && filled < buffer.len() {
            let count = decoder.read(&mut buffer[filled..])?;
            if count == 0 {
                break;
            }
            filled += count;
            *at += count as u64;
        }
        Ok(filled)
    }
}

const MOST_CANDIDATES: usize = 256;
const DATE_DIGITS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_rotations_are_known() {
        let related = |one: &str, other: &str| are_related(&Path::new("/l").join(one), &Path::new("/l").join(other));
        for rotated in [
            "app.log.1",
            "app.log.12",
            "app.log-20261126",
            "app.log.1.gz",
            "app-20261126.log",
            "app.log.old",
            "app.log.2026-11-26T10:00",
            "app.log.copy",
        ] {
            assert!(related("app.log", rotated), "{rotated}");
            assert!(related("app.log.2.gz", rotated) || rotated == "app.log.copy", "{rotated}");
        }
        for other in ["app.log", "app2.log", "other.log", "app-2.log", "app.txt"] {
            assert!(!related("app.log", other), "{other}");
        }
        assert!(!related("worker-1.log", "worker-2.log"));
        let named_after =
            |one: &str, other: &str| is_named_after(&Path::new("/l").join(one), &Path::new("/l").join(other));
        assert!(named_after("app.log", "app.log.1") && named_after("app.log", "app-20261126.log"));
        assert!(!named_after("app.log.1", "app.log") && !named_after("app.log.1", "app.log.2"));
        assert!(!are_related(Path::new("/a/app.log"), Path::new("/b/app.log.1")));
    }
}
