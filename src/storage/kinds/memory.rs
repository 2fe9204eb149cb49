//! Records in this process's memory; with a file they outlive it by snapshots.
//!
//! A snapshot (`snapshot` has its form) is written beside the file, made durable and renamed over it: a kill at any moment leaves the one
//! before or the new one. A file that cannot be read is set aside as `NAME.broken-TIME` and said so. Cached answers are in no snapshot.
//! Invariant: what a successful `flush` found is in the file.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::sealed::file;
use crate::storage::records::{Pending, Record, Records, Space, StoreFailure, Trimmed, now};
use crate::storage::snapshot;

#[derive(Default)]
pub struct MemoryRecords {
    kept: Mutex<Kept>,
    file: Option<PathBuf>,
    /// One writes at a time.
    turn: Arc<Mutex<()>>,
}

#[derive(Default)]
struct Kept {
    records: BTreeMap<(Space, String), (Bytes, Option<u64>)>,
    /// Counts the changes, and the last one that is in the file.
    changed: u64,
    written: u64,
}

impl MemoryRecords {
    /// Reads the file, if there is one. The second is what was wrong with it.
    pub fn open(path: &Path) -> Result<(Self, Option<String>), StoreFailure> {
        let folder = path.parent().unwrap_or(Path::new("."));
        make_folder(folder)?;
        let (records, trouble) = match std::fs::read(path) {
            Ok(bytes) => match snapshot::decode(&bytes) {
                Ok(records) => (records, None),
                Err(reason) => (Vec::new(), Some(set_aside(path, &reason)?)),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => return Err(StoreFailure::of(&path.display().to_string(), &error)),
        };
        let records = records.into_iter().map(|(space, record)| ((space, record.key), (record.value, record.until)));
        let kept = Mutex::new(Kept { records: records.collect(), ..Kept::default() });
        Ok((Self { kept, file: Some(path.to_owned()), turn: Arc::default() }, trouble))
    }

    /// What is there now.
    pub fn peek(&self, space: Space, key: &str) -> Option<Bytes> {
        self.kept().live(space, key).cloned()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self) -> Result<(), StoreFailure> {
        let Some(path) = self.file.clone() else { return Ok(()) };
        let (bytes, changed) = {
            let kept = self.kept();
            if kept.changed == kept.written {
                return Ok(());
            }
            let records = kept.records.iter().filter(|((space, _), _)| Space::KEPT.contains(space));
            let records = records.map(|((space, key), (value, until))| (*space, key.as_str(), value, *until));
            (snapshot::encode(records), kept.changed)
        };
        let turn = self.turn.clone();
        let written = tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            file::replace(&path, &bytes, None).map_err(|error| StoreFailure::of(&path.display().to_string(), &error))
        });
        written.await.map_err(|error| StoreFailure::of("writing the snapshot", &error))??;
        let mut kept = self.kept();
        kept.written = kept.written.max(changed);
        Ok(())
    }
}

impl Kept {
    fn live(&self, space: Space, key: &str) -> Option<&Bytes> {
        let (value, until) = self.records.get(&(space, key.to_owned()))?;
        until.is_none_or(|until| until > now()).then_some(value)
    }

    fn put(&mut self, space: Space, record: Record) {
        self.changed += 1;
        self.records.insert((space, record.key), (record.value, record.until));
    }
}

impl Records for MemoryRecords {
    fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>> {
        let found = self.kept().live(space, key).cloned();
        at_once(found)
    }

    fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()> {
        let mut kept = self.kept();
        records.into_iter().for_each(|record| kept.put(space, record));
        at_once(())
    }

    fn swap<'a>(&'a self, space: Space, key: &'a str, expected: Option<Bytes>, value: Bytes) -> Pending<'a, bool> {
        let mut kept = self.kept();
        let same = kept.live(space, key) == expected.as_ref();
        if same {
            kept.put(space, Record::new(key, value));
        }
        at_once(same)
    }

    fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()> {
        let mut kept = self.kept();
        for key in keys {
            if kept.records.remove(&(space, key)).is_some() {
                kept.changed += 1;
            }
        }
        at_once(())
    }

    fn list<'a>(
        &'a self,
        space: Space,
        prefix: &'a str,
        after: Option<&'a str>,
        most: usize,
    ) -> Pending<'a, Vec<Record>> {
        let kept = self.kept();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded((space, after.to_owned())),
            _ => Bound::Included((space, prefix.to_owned())),
        };
        let now = now();
        let found = kept.records.range((from, Bound::Unbounded));
        let found = found.take_while(|((of, key), _)| *of == space && key.starts_with(prefix));
        let found = found.filter(|(_, (_, until))| until.is_none_or(|until| until > now)).take(most);
        let record = |((_, key), (value, until)): (&(Space, String), &(Bytes, Option<u64>))| Record {
            key: key.clone(),
            value: value.clone(),
            until: *until,
        };
        at_once(found.map(record).collect())
    }

    fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()> {
        let mut kept = self.kept();
        let before = kept.records.len();
        kept.records.retain(|(of, key), _| *of != space || !key.starts_with(prefix));
        kept.changed += (before - kept.records.len()) as u64;
        at_once(())
    }

    fn trim(&self, _space: Space, _most: u64) -> Pending<'_, Option<Trimmed>> {
        at_once(None)
    }

    fn flush(&self) -> Pending<'_, ()> {
        Box::pin(self.write())
    }

    fn probe(&self) -> Pending<'_, ()> {
        at_once(())
    }
}

/// Moves a file that is of no use out of the way; what is to be said of it.
pub fn set_aside(path: &Path, reason: &str) -> Result<String, StoreFailure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".broken-{}", now() / 1000));
    let aside = path.with_file_name(name);
    let failed = |error: std::io::Error| StoreFailure::of(&format!("setting {} aside", path.display()), &error);
    std::fs::rename(path, &aside).map_err(failed)?;
    Ok(format!("{} could not be used ({reason}) and is now {}", path.display(), aside.display()))
}

/// For its owner alone.
pub fn make_folder(folder: &Path) -> Result<(), StoreFailure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| StoreFailure::of(&folder.display().to_string(), &error))
}

fn at_once<'a, T: Send + 'a>(value: T) -> Pending<'a, T> {
    Box::pin(std::future::ready(Ok(value)))
}
