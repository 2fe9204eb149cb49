//! Tells when something happens in the folders of the files: inotify(7), with a way to be woken.
//!
//! Where the kernel says nothing (a network file system, too many watches) the regular looks at the files do, only later.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;

/// Wakes whoever waits in `Watch::wait`.
#[derive(Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub fn wake(&self) {
        // It can only fail because it has been woken very often.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// What happened to a name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Its contents changed.
    Written(PathBuf),
    /// It is new there.
    Made(PathBuf),
    /// It came or went under another name, or is gone.
    Moved,
    /// Not all was told.
    Missed,
}

pub struct Watch {
    inotify: Option<OwnedFd>,
    folders: BTreeMap<i32, PathBuf>,
    waker: Waker,
}

impl Watch {
    pub fn new(waker: Waker) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags)
            .inspect_err(|error| tracing::warn!(%error, "log files are looked at once a second: no inotify"))
            .ok();
        Self { inotify, folders: BTreeMap::new(), waker }
    }

    /// Watches these folders, and no others.
    pub fn set(&mut self, folders: &[PathBuf]) {
        let Some(inotify) = &self.inotify else { return };
        let gone: Vec<i32> =
            self.folders.iter().filter(|(_, known)| !folders.contains(known)).map(|(id, _)| *id).collect();
        for id in gone {
            self.folders.remove(&id);
            // A folder that is gone has taken its watch along.
            let _ = inotify::remove_watch(inotify, id);
        }
        for folder in folders.iter().take(MOST_FOLDERS) {
            if self.folders.values().any(|known| known == folder) {
                continue;
            }
            let what = inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVE
                | inotify::WatchFlags::DELETE
                | inotify::WatchFlags::ONLYDIR;
            match inotify::add_watch(inotify, folder, what) {
                Ok(id) => {
                    self.folders.insert(id, folder.clone());
                }
                Err(error) => tracing::debug!(%error, folder = %folder.display(), "a folder of logs is not watched"),
            }
        }
    }

    /// Whether what happens in the folder is told.
    pub fn sees(&self, folder: &Path) -> bool {
        self.folders.values().any(|known| known == folder)
    }

    /// Waits until something happens, somebody wakes, or the time is over; gives what happened.
    pub fn wait(&mut self, longest: Duration, happened: &mut Vec<Happening>) {
        let mut waited = vec![PollFd::from_borrowed_fd(self.waker.0.as_fd(), PollFlags::IN)];
        waited.extend(self.inotify.as_ref().map(|inotify| PollFd::new(inotify, PollFlags::IN)));
        let timeout = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(longest.subsec_nanos()),
        };
        // Interrupted is as good as over.
        let _ = poll(&mut waited, Some(&timeout));
        self.drain(happened);
    }

    fn drain(&mut self, happened: &mut Vec<Happening>) {
        let _ = rustix::io::read(&*self.waker.0, &mut [0_u8; 8]);
        let Some(inotify) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); 8 * 1024];
        let mut gone = Vec::new();
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        // `WouldBlock` is its end.
        while let Ok(event) = reader.next() {
            if happened.len() >= MOST_HAPPENINGS {
                happened.clear();
                happened.push(Happening::Missed);
            }
            let flags = event.events();
            if flags.contains(inotify::ReadFlags::IGNORED) {
                // The folder is gone; one of its name would not be watched.
                gone.push(event.wd());
            }
            let path = || {
                let folder = self.folders.get(&event.wd())?;
                let name = event.file_name()?;
                Some(folder.join(std::ffi::OsStr::from_bytes(name.to_bytes())))
            };
            let what = if flags.contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                Happening::Missed
            } else if flags.contains(inotify::ReadFlags::MODIFY) {
                path().map_or(Happening::Moved, Happening::Written)
            } else if flags.contains(inotify::ReadFlags::CREATE) {
                path().map_or(Happening::Moved, Happening::Made)
            } else {
                Happening::Moved
            };
            if happened.last() != Some(&what) {
                happened.push(what);
            }
        }
        gone.iter().for_each(|id| drop(self.folders.remove(id)));
    }
}

/// Paths with every link followed; each folder is looked at once.
#[derive(Default)]
pub struct RealPaths(BTreeMap<PathBuf, Option<PathBuf>>);

impl RealPaths {
    pub fn of(&mut self, path: &Path) -> Option<PathBuf> {
        if path.symlink_metadata().ok()?.is_symlink() {
            return path.canonicalize().ok();
        }
        let (folder, name) = (path.parent()?, path.file_name()?);
        if !self.0.contains_key(folder) {
            self.0.insert(folder.to_owned(), folder.canonicalize().ok());
        }
        Some(self.0.get(folder)?.as_ref()?.join(name))
    }
}

const MOST_FOLDERS: usize = 1024;
const MOST_HAPPENINGS: usize = 4096;
