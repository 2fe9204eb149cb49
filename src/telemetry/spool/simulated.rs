//! A folder in memory whose disk can be full, and which loses at a crash what a real one may lose.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::disk::{DiskFile, Folder};

#[derive(Clone, Default)]
pub struct SimulatedFolder(Arc<Mutex<Disk>>);

#[derive(Default, Clone)]
struct Disk {
    files: BTreeMap<String, Content>,
    /// What may still be written; `None`: as much as is wanted.
    room: Option<usize>,
}

#[derive(Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

impl SimulatedFolder {
    pub fn limit(&self, room: Option<usize>) {
        self.0.lock().unwrap().room = room;
    }

    /// The folder as it is after a power failure: of each file what was synced, and of the rest `keep` bytes.
    pub fn after_power_failure(&self, keep: usize) -> Self {
        let mut disk = self.0.lock().unwrap().clone();
        for content in disk.files.values_mut() {
            let kept = (content.synced.len() + keep).min(content.bytes.len());
            content.bytes.truncate(kept.max(content.synced.len().min(content.bytes.len())));
        }
        Self(Arc::new(Mutex::new(disk)))
    }

    /// A copy, as it is.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    pub fn files(&self) -> Vec<(String, usize)> {
        self.0.lock().unwrap().files.iter().map(|(name, content)| (name.clone(), content.bytes.len())).collect()
    }

    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.0.lock().unwrap().files.get_mut(name).unwrap().bytes);
    }
}

impl Folder for SimulatedFolder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.files().into_iter().map(|(name, length)| (name, length as u64)).collect())
    }

    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut disk = self.0.lock().unwrap();
        if !disk.files.contains_key(name) {
            if !create {
                return Err(io::ErrorKind::NotFound.into());
            }
            disk.files.insert(name.to_owned(), Content::default());
        }
        Ok(Arc::new(SimulatedFile { disk: self.0.clone(), name: name.to_owned() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().files.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Unlike a real one it does not outlive its name.
struct SimulatedFile {
    disk: Arc<Mutex<Disk>>,
    name: String,
}

impl SimulatedFile {
    fn with<T>(&self, look: impl FnOnce(&mut Content, &mut Option<usize>) -> T) -> io::Result<T> {
        let mut disk = self.disk.lock().unwrap();
        let Disk { files, room } = &mut *disk;
        Ok(look(files.get_mut(&self.name).ok_or(io::ErrorKind::NotFound)?, room))
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|content, _| {
            let from = content.bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
            let count = from.len().min(buffer.len());
            buffer[..count].copy_from_slice(&from[..count]);
            count
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|content, room| {
            let at = usize::try_from(offset).unwrap();
            let growth = (at + bytes.len()).saturating_sub(content.bytes.len());
            let fits = room.is_none_or(|room| growth <= room);
            let count = if fits { bytes.len() } else { bytes.len().min(room.unwrap_or_default()) };
            let grown = content.bytes.len().max(at + count);
            content.bytes.resize(grown, 0);
            content.bytes[at..at + count].copy_from_slice(&bytes[..count]);
            if fits { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
        })?
    }

    fn length(&self) -> io::Result<u64> {
        self.with(|content, _| content.bytes.len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.with(|content, _| content.bytes.truncate(usize::try_from(length).unwrap()))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|content, _| content.synced.clone_from(&content.bytes))
    }
}
