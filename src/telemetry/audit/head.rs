//! The head file, `audit.log.head` beside `audit.log`: number and hash of a record that is on the disk, so that a trail whose end was cut off is noticed.
//!
//! `{"seq":42,"hash":"HEX"}` and a line feed, mode 0600, replaced whole after each sync. It is never ahead of the audit file's content on the
//! disk, and may lag behind it by what was written since.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::chain::Hash;
use super::file::LastRecord;

#[derive(Deserialize)]
struct Written {
    seq: u64,
    hash: String,
}

/// The head beside an audit file. `None`: there is none, or it cannot be read as one.
pub fn read(audit: &Path) -> Option<LastRecord> {
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path_of(audit)).ok()?;
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    let Written { seq, hash } = serde_json::from_slice(&text).ok()?;
    Some(LastRecord { seq, hash: Hash::parse(&hash)? })
}

pub fn write(audit: &Path, record: LastRecord) -> io::Result<()> {
    let path = path_of(audit);
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&part)?;
    writeln!(file, "{{\"seq\":{},\"hash\":\"{}\"}}", record.seq, record.hash)?;
    fs::rename(&part, &path)
}

pub fn path_of(audit: &Path) -> PathBuf {
    let mut path = audit.as_os_str().to_owned();
    path.push(".head");
    path.into()
}

const MOST_BYTES: u64 = 1024;
