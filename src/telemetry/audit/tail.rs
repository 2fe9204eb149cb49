//! The end of an audit file: its newest records, as they stand there.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde_json::value::RawValue;

/// What the end of a file held.
pub struct End {
    /// Oldest first.
    pub records: Vec<Box<RawValue>>,
    /// The file's inode, and the offset at which its next line begins.
    pub at: (u64, u64),
}

/// At most `most` records out of the last `MOST_BYTES` of the file. A torn line is left out.
pub fn read(path: &Path, most: usize) -> io::Result<End> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
    let metadata = file.metadata()?;
    let from = metadata.len().saturating_sub(MOST_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1));
    let at = (metadata.ino(), from + bytes.len() as u64);
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if from > 0 {
        // It most likely begins within this line.
        lines.remove(0);
    }
    let mut records: Vec<Box<RawValue>> =
        lines.iter().rev().filter_map(|line| serde_json::from_slice(line).ok()).take(most).collect();
    records.reverse();
    Ok(End { records, at })
}

const MOST_BYTES: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_records_come_oldest_first_and_torn_lines_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        std::fs::write(&path, "{\"seq\":1}\n{\"seq\":2}\n{\"se\n{\"seq\":3}\n{\"seq\":4").unwrap();
        let found = read(&path, 2).unwrap();
        assert_eq!(found.at.1, 35);
        assert_eq!(found.records.iter().map(|record| record.get()).collect::<Vec<_>>(), ["{\"seq\":2}", "{\"seq\":3}"]);
    }
}
