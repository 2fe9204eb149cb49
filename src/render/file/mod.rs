//! Replacing a file: all or nothing, with the right owner, mode and label from the first moment on.
//!
//! In two steps: `prepare` compares what is there in memory and, when it differs, writes the new bytes beside it and makes them durable;
//! `Prepared::commit` renames them over it, after the last one got a second name where it is to be kept. `.NAME.mcpeg-untold` beside the
//! file is there while somebody has not been told of it yet.
//! Invariants: a reader sees the old bytes or the new ones; a link or anything but a regular file is never replaced, nor is a link on
//! the way followed out of the allowed folders; a failure leaves the old file as it was and no temporary one.

mod accounts;
mod attributes;
mod folder;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::RenderError;
use super::settings::FileSettings;

use attributes::Attributes;
pub(super) use folder::Folder;
use folder::Found;

/// Writes the bytes beside the file, with everything that it is to have, and makes them durable. `None`: the file holds these bytes
/// already (what else it is to be is set right).
pub(super) fn prepare(settings: &FileSettings, bytes: &[u8]) -> Result<Option<Prepared>, RenderError> {
    let destination = &settings.destination;
    let name = name_of(destination)?;
    let attributes = Attributes::of(settings)?;
    let folder = Folder::make(destination, &settings.allowed_folders)?;
    if let Found::File(existing) = folder.look(name, destination)?
        && holds(&existing, bytes).map_err(failed(destination, "reading"))?
    {
        attributes.apply(&existing).map_err(|(operation, error)| failed(destination, operation)(error))?;
        return Ok(None);
    }
    let temporary = Temporary::create(folder, name).map_err(failed(destination, "writing beside"))?;
    temporary.fill(&attributes, bytes).map_err(|(operation, error)| failed(destination, operation)(error))?;
    let path = destination.with_file_name(&temporary.name);
    let destination = destination.clone();
    Ok(Some(Prepared { destination, path, attributes, keeps_last: settings.backup, temporary }))
}

/// New bytes beside the file that they are to replace. Dropped, they are removed.
pub(super) struct Prepared {
    destination: PathBuf,
    path: PathBuf,
    attributes: Attributes,
    keeps_last: bool,
    temporary: Temporary,
}

impl Prepared {
    /// Where the new bytes lie until they take effect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// They take effect: renamed over the old file, and the folder synced. Where that fails they have taken effect all the same, so that whoever
    /// reads them is told; only a loss of power may bring the old file back.
    pub fn commit(mut self) -> Result<(), RenderError> {
        let name = name_of(&self.destination)?;
        if self.keeps_last {
            self.keep_last(name)?;
        }
        self.temporary.rename_to(name).map_err(failed(&self.destination, "renaming over"))?;
        if let Err(error) = self.temporary.folder.sync() {
            let destination = self.destination.display();
            tracing::warn!(%error, %destination, "the folder of a file that was replaced could not be synced");
        }
        Ok(())
    }

    /// From now on somebody has to be told.
    pub fn mark_untold(&self) -> Result<(), RenderError> {
        let mark = hidden(name_of(&self.destination)?, UNTOLD);
        let made = self.temporary.folder.create(&mark);
        made.map(drop).map_err(failed(&self.destination, "writing a mark beside"))
    }

    /// The old file gets a second name, so that no copy of it is made, and loses its first one when the new one takes it.
    fn keep_last(&self, name: &OsStr) -> Result<(), RenderError> {
        let operation = "keeping the last one of";
        let folder = &self.temporary.folder;
        match folder.look(name, &self.destination)? {
            Found::Nothing => return Ok(()),
            // As the new one is to be; nobody gets to read more than of the new one.
            Found::File(old) => {
                self.attributes.apply(&old).map_err(|(_, error)| failed(&self.destination, operation)(error))?;
            }
            Found::Closed => {}
        }
        let beside = hidden(name, "mcpeg-bak");
        let kept = folder
            .remove(&beside)
            .and_then(|()| folder.link(name, &beside))
            .and_then(|()| folder.rename(&beside, &backup_name(name)));
        // rename(2) does nothing where both are names of one file, which is so after a commit that failed.
        let removed = folder.remove(&beside);
        kept.and(removed).map_err(failed(&self.destination, operation))
    }
}

/// What is there now, for whoever compares and does not write.
pub(super) struct Existing {
    /// `None`: there is no file, or it may not be read.
    pub bytes: Option<Zeroizing<Vec<u8>>>,
    /// How it differs apart from the bytes, in words.
    pub drift: Vec<String>,
}

/// Reads at most `limit` bytes of the file.
pub(super) fn look(settings: &FileSettings, limit: usize) -> Result<Existing, RenderError> {
    let destination = &settings.destination;
    let attributes = Attributes::of(settings)?;
    let found = match Folder::find(destination, &settings.allowed_folders)? {
        Some(folder) => folder.look(name_of(destination)?, destination)?,
        None => Found::Nothing,
    };
    let mut existing = match found {
        Found::File(existing) => existing,
        Found::Nothing => return Ok(Existing { bytes: None, drift: vec!["it does not exist".to_owned()] }),
        Found::Closed => return Ok(Existing { bytes: None, drift: vec!["it cannot be read".to_owned()] }),
    };
    let drift = attributes.drift(&existing).map_err(failed(destination, "looking at"))?;
    let size = existing.metadata().map_err(failed(destination, "looking at"))?.len();
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(limit).min(limit) + 1));
    Read::by_ref(&mut existing).take(limit as u64).read_to_end(&mut bytes).map_err(failed(destination, "reading"))?;
    Ok(Existing { bytes: Some(bytes), drift })
}

/// Whether somebody has not been told of the file that is there; not where that cannot be known.
pub(super) fn is_untold(settings: &FileSettings) -> bool {
    let folder = Folder::find(&settings.destination, &settings.allowed_folders).ok().flatten();
    let found = folder.zip(name_of(&settings.destination).ok());
    found.is_some_and(|(folder, name)| {
        matches!(folder.look(&hidden(name, UNTOLD), &settings.destination), Ok(Found::File(_) | Found::Closed))
    })
}

pub(super) fn mark_told(settings: &FileSettings) -> Result<(), RenderError> {
    let destination = &settings.destination;
    let Some(folder) = Folder::find(destination, &settings.allowed_folders)? else { return Ok(()) };
    folder.remove(&hidden(name_of(destination)?, UNTOLD)).map_err(failed(destination, "removing the mark beside"))
}

/// Takes the file and its backup away. True when there was one.
pub(super) fn remove(settings: &FileSettings) -> Result<bool, RenderError> {
    let destination = &settings.destination;
    let name = name_of(destination)?;
    let Some(folder) = Folder::find(destination, &settings.allowed_folders)? else { return Ok(false) };
    if let Found::Nothing = folder.look(name, destination)? {
        return Ok(false);
    }
    let kept = if settings.backup { folder.remove(&backup_name(name)) } else { Ok(()) };
    kept.and_then(|()| folder.remove(&hidden(name, UNTOLD)))
        .and_then(|()| folder.remove(name))
        .map_err(failed(destination, "removing"))?;
    folder.sync().map_err(failed(destination, "syncing the folder of"))?;
    Ok(true)
}

fn failed(destination: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> RenderError {
    move |error| RenderError::Destination { destination: destination.to_owned(), operation, error }
}

fn name_of(destination: &Path) -> Result<&OsStr, RenderError> {
    destination.file_name().ok_or_else(|| failed(destination, "writing")(io::Error::other("the path names no file")))
}

const UNTOLD: &str = "mcpeg-untold";

/// A name beside `name` that listings do not show.
fn hidden(name: &OsStr, purpose: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(purpose);
    hidden
}

fn backup_name(name: &OsStr) -> OsString {
    let mut backup = name.to_owned();
    backup.push(".bak");
    backup
}

fn holds(mut existing: &File, bytes: &[u8]) -> io::Result<bool> {
    if existing.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut found = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    Read::by_ref(&mut existing).take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
    Ok(*found == bytes)
}

/// A new file beside the destination, removed unless it was renamed.
struct Temporary {
    folder: Folder,
    name: OsString,
    file: File,
    is_renamed: bool,
}

impl Temporary {
    /// Created by nobody but us, readable by nobody but us.
    fn create(folder: Folder, beside: &OsStr) -> io::Result<Self> {
        let name = hidden(beside, "mcpeg-new");
        let file = folder.create(&name)?;
        Ok(Self { folder, name, file, is_renamed: false })
    }

    fn fill(&self, attributes: &Attributes, bytes: &[u8]) -> Result<(), (&'static str, io::Error)> {
        (&self.file).write_all(bytes).map_err(|error| ("writing beside", error))?;
        attributes.apply(&self.file)?;
        self.file.sync_all().map_err(|error| ("writing beside", error))
    }

    fn rename_to(&mut self, name: &OsStr) -> io::Result<()> {
        self.folder.rename(&self.name, name)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_renamed {
            // It may be gone already; nothing more can be done about it.
            let _ = self.folder.remove(&self.name);
        }
    }
}
