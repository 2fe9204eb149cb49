//! What a collector will never take: requests that it refused, kept in a folder of bounded size, the oldest going first.
//!
//! A file is the body of one request, not compressed, as it would be posted to `/v1/logs`, `/v1/traces` or `/v1/metrics`; its name says
//! when, of which signal, for which destination and why: `1764200000000-000000-logs-elastic-refused.pb`. Files are 0600. Nothing is in them
//! that was not sent: what is secret was taken out before.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::telemetry::tallies::{Reason, Signal};

#[derive(Debug)]
pub struct DeadLetters {
    folder: PathBuf,
    max_bytes: AtomicU64,
    number: AtomicU64,
}

impl DeadLetters {
    /// The folder is made when it is needed.
    pub fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes: AtomicU64::new(max_bytes), number: AtomicU64::new(0) }
    }

    pub fn set_max_bytes(&self, max_bytes: u64) {
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    /// Whether it was kept. A larger one than the folder may hold is not.
    pub fn keep(&self, destination: &str, signal: Signal, reason: Reason, body: &[u8]) -> bool {
        let most = self.max_bytes.load(Ordering::Relaxed);
        let Some(others) = most.checked_sub(body.len() as u64) else { return false };
        match self.make_room(others).and_then(|()| self.write(destination, signal, reason, body)) {
            Ok(()) => true,
            Err(error) => {
                warn!(%error, "a refused request could not be kept");
                false
            }
        }
    }

    /// Removes the oldest until at most `most` bytes are left.
    fn make_room(&self, most: u64) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                files.push((entry.file_name(), metadata.len(), entry.path()));
            }
        }
        // By name, which begins with the time.
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= most {
                break;
            }
            fs::remove_file(path)?;
            total -= length;
        }
        Ok(())
    }

    fn write(&self, destination: &str, signal: Signal, reason: Reason, body: &[u8]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("{now:013}-{number:06}-{}-{destination}-{}.pb", signal.as_str(), reason.as_str());
        let path = self.folder.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(body).inspect_err(|_| drop(fs::remove_file(&path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_stays_within_its_bound_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let letters = DeadLetters::new(folder.path().join("dead-letters"), 1000);
        for number in 0..20_u8 {
            assert!(letters.keep("elastic", Signal::Logs, Reason::Refused, &[number; 300]));
        }
        assert!(!letters.keep("elastic", Signal::Logs, Reason::TooLarge, &[0; 1001]));
        let mut names: Vec<_> = fs::read_dir(&letters.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3);
        assert!(names[2].ends_with("-000019-logs-elastic-refused.pb"), "{names:?}");
        assert_eq!(fs::read(letters.folder.join(&names[2])).unwrap(), [19; 300]);
    }
}
