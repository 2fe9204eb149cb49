//! Files of lines that are begun anew now and then, and what becomes of those that were set aside.
//!
//! A file is set aside by renaming it, beside its own name: `audit.log` becomes `audit.log.20261126T235959Z` (the time at which it was
//! set aside, UTC; a second one within the same second gets `-1`, and so on), later `audit.log.20261126T235959Z.gz`. Only names of exactly
//! this shape are ever compressed or removed, so that a neighbour's file is not. Nothing here writes lines.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::civil::{STAMP_BYTES, is_stamp, stamp};

/// When a file is set aside, and for how long it is kept then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolling {
    pub rotation: Rotation,
    /// Whatever the rotation, a file that has reached this size is set aside. `None`: no bound.
    pub max_bytes: Option<u64>,
    /// `None`: for good.
    pub retention: Option<Duration>,
    /// With gzip, once it is set aside.
    pub compress: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Only by size, if at all.
    Size,
    /// At each full hour, UTC.
    Hourly,
    /// At each midnight, UTC.
    Daily,
}

impl Rolling {
    /// A file that is never set aside by mcpeg.
    pub const NEVER: Self = Self { rotation: Rotation::Size, max_bytes: None, retention: None, compress: false };

    /// Whether a file that was begun (or last written by an earlier process) at `begun` is to be set aside now.
    pub fn is_due(&self, begun: SystemTime, bytes: u64, now: SystemTime) -> bool {
        let period = match self.rotation {
            Rotation::Size => None,
            Rotation::Hourly => Some(3600),
            Rotation::Daily => Some(86_400),
        };
        let number =
            |time: SystemTime, period: u64| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / period;
        // A clock that was set back is no new period.
        let another = period.is_some_and(|period| number(now, period) > number(begun, period));
        bytes > 0 && (another || self.max_bytes.is_some_and(|most| bytes >= most))
    }
}

/// Renames the file to a name of its own beside it, which it returns.
pub fn set_aside(path: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let stamp = stamp(now);
    for number in 0..MOST_A_SECOND {
        let suffix = if number == 0 { String::new() } else { format!("-{number}") };
        let target = beside(path, &format!(".{stamp}{suffix}"));
        if target.symlink_metadata().is_err() && beside(&target, ".gz").symlink_metadata().is_err() {
            fs::rename(path, &target)?;
            return Ok(target);
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "too many files were set aside within one second"))
}

/// The files that were set aside from this one, oldest first.
pub fn set_aside_from(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(name), Some(folder)) = (path.file_name().and_then(|name| name.to_str()), path.parent()) else {
        return Ok(Vec::new());
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut found: Vec<((String, u32), PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let rest = file_name.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.'));
        if let Some(order) = rest.and_then(order_of) {
            found.push((order, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Compresses and removes what was set aside, as asked. Goes on after a failure and returns the first.
pub fn tidy(path: &Path, rolling: &Rolling, now: SystemTime) -> io::Result<()> {
    let oldest = rolling.retention.and_then(|retention| now.checked_sub(retention)).map(stamp);
    let mut result = Ok(());
    for file in set_aside_from(path)? {
        let done = if oldest.as_ref().is_some_and(|oldest| is_older(path, &file, oldest)) {
            fs::remove_file(&file)
        } else if rolling.compress && file.extension().is_none_or(|extension| extension != "gz") {
            compress(&file)
        } else {
            Ok(())
        };
        result = result.and(done);
    }
    result
}

/// Replaces the file by a compressed one. A crash leaves both at most, and the next call goes on.
fn compress(file: &Path) -> io::Result<()> {
    let part = beside(file, ".gz.part");
    let mut source = File::open(file)?;
    let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    let written = (|| {
        let mut encoder = GzEncoder::new(target, Compression::default());
        io::copy(&mut source, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        fs::rename(&part, beside(file, ".gz"))
    })();
    match written {
        Ok(()) => fs::remove_file(file),
        Err(cause) => {
            // What is half written helps nobody; the whole file is still there.
            let _ = fs::remove_file(&part);
            Err(cause)
        }
    }
}

/// Stamp and number of `STAMP`, `STAMP-N`, `STAMP.gz` and `STAMP-N.gz`; `None` for any other text.
fn order_of(rest: &str) -> Option<(String, u32)> {
    let rest = rest.strip_suffix(".gz").unwrap_or(rest);
    let (stamp, number) = rest.split_at_checked(STAMP_BYTES)?;
    let number = match number.strip_prefix('-') {
        Some(number) => number.parse().ok()?,
        None if number.is_empty() => 0,
        None => return None,
    };
    is_stamp(stamp).then(|| (stamp.to_owned(), number))
}

fn is_older(path: &Path, file: &Path, oldest: &str) -> bool {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    name(file).strip_prefix(&format!("{}.", name(path))).and_then(order_of).is_some_and(|(stamp, _)| *stamp < *oldest)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

const MOST_A_SECOND: u32 = 1000;

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_file_is_due_at_its_period_or_its_size() {
        let daily = Rolling { rotation: Rotation::Daily, max_bytes: Some(100), retention: None, compress: false };
        assert!(!daily.is_due(at(1000), 99, at(86_399)));
        assert!(daily.is_due(at(1000), 1, at(86_400)));
        assert!(daily.is_due(at(1000), 100, at(1001)));
        assert!(!daily.is_due(at(1000), 0, at(86_400)), "an empty file stays");
        assert!(!daily.is_due(at(90_000), 1, at(1000)), "a clock that was set back is no new day");
        let hourly = Rolling { rotation: Rotation::Hourly, ..Rolling::NEVER };
        assert!(hourly.is_due(at(3599), 1, at(3600)) && !hourly.is_due(at(3600), 1, at(7199)));
        assert!(!Rolling::NEVER.is_due(at(0), u64::MAX, at(u64::from(u32::MAX))));
    }

    #[test]
    fn what_was_set_aside_is_compressed_then_removed_and_no_other_file_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let neighbours = ["a.log.1", "a.log.head", "a.log.2026", "b.log.20261101T120001Z", "a.log.20261101T120001Zx"];
        for name in neighbours {
            fs::write(folder.path().join(name), "theirs").unwrap();
        }
        let now = at(1_793_534_401);
        for text in ["one", "two", "three"] {
            fs::write(&path, text).unwrap();
            set_aside(&path, now).unwrap();
        }
        let names = || -> Vec<String> {
            let files = set_aside_from(&path).unwrap();
            files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(), ["a.log.20261101T120001Z", "a.log.20261101T120001Z-1", "a.log.20261101T120001Z-2"]);
        let rolling = Rolling { retention: Some(Duration::from_secs(60)), compress: true, ..Rolling::NEVER };
        tidy(&path, &rolling, now + Duration::from_secs(60)).unwrap();
        assert_eq!(names()[1], "a.log.20261101T120001Z-1.gz");
        let mut text = String::new();
        GzDecoder::new(File::open(&set_aside_from(&path).unwrap()[1]).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "two");
        tidy(&path, &rolling, now + Duration::from_secs(61)).unwrap();
        assert!(names().is_empty());
        for name in neighbours {
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "theirs");
        }
    }
}
