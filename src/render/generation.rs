//! Generations: how the files of a group change all at once.
//!
//! ```text
//! run/tls -> .tls.mcpeg/0000017     a link, which is what readers open
//! run/.tls.mcpeg/0000016/           the generation before
//! run/.tls.mcpeg/0000017/cert.pem
//! run/.tls.mcpeg/0000018/           one that is being written, or was refused
//! run/.tls.mcpeg/untold             there while nobody has been told of the current one; holds the number to go back to, or nothing
//! run/.tls.mcpeg-link               the next link, for a moment
//! ```
//!
//! A generation is written whole and made durable, then the link is replaced by a rename. Invariants: what the link leads to is whole and
//! does not change any more; a number is not used again for other bytes that a reader could have seen; nothing is replaced at the
//! link's place but a link of ours; numbers above the link's were never in use, or were gone back from, and are swept at the start; all of
//! it happens in the folder above as it was opened, which has to be an allowed one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::RenderError;
use super::file::{self, Folder};
use super::settings::{AllowedFolders, FileSettings, GroupSettings};

/// Where a group's generations are.
pub(super) struct Place {
    link: PathBuf,
    /// `.NAME.mcpeg`, beside the link.
    store_name: OsString,
    mode: u32,
    allowed_folders: AllowedFolders,
}

impl Place {
    pub fn of(group: &GroupSettings) -> Self {
        let mut store_name = OsString::from(".");
        store_name.push(group.folder.file_name().unwrap_or_default());
        store_name.push(".mcpeg");
        Self {
            link: group.folder.clone(),
            store_name,
            mode: group.mode,
            allowed_folders: group.allowed_folders.clone(),
        }
    }

    /// The generation that the link leads to. Anything else at its place is refused.
    pub fn current(&self) -> Result<Option<u64>, RenderError> {
        self.find()?.map_or(Ok(None), |above| self.current_in(&above))
    }

    fn current_in(&self, above: &Above) -> Result<Option<u64>, RenderError> {
        let refused = |what| Err(RenderError::NotOurLink { folder: self.link.clone(), what });
        match fs::symlink_metadata(&above.link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("looking at")(error)),
            Ok(facts) if facts.is_dir() => return refused("a folder"),
            Ok(facts) if !facts.is_symlink() => return refused("a file"),
            Ok(_) => {}
        }
        let target = fs::read_link(&above.link).map_err(self.failed("reading the link"))?;
        let number = target.strip_prefix(&self.store_name).ok().and_then(number_of);
        number.map_or_else(|| refused("a link that leads elsewhere"), |number| Ok(Some(number)))
    }

    /// Writes a generation beside the others. `None`: the current one holds just these files with these bytes.
    pub fn build(&self, files: &[(&FileSettings, Zeroizing<Vec<u8>>)]) -> Result<Option<Built>, RenderError> {
        let above = self.make()?;
        let current = self.current_in(&above)?;
        if let Some(current) = current
            && holds(&above.folder_of(current), files).map_err(self.failed("comparing"))?
        {
            // Not the bytes, but the mode may have been told anew.
            for (settings, bytes) in files {
                file::prepare(&in_folder(&self.shown(current), settings), bytes)?;
            }
            return Ok(None);
        }
        let failed = || self.failed("writing a generation of");
        self.make_folder(&above.store).map_err(failed())?;
        let last = above.numbers().map_err(failed())?.into_iter().max().unwrap_or(0).max(current.unwrap_or(0));
        let (number, path) = (last + 1, self.shown(last + 1));
        let built = Built { number, before: current, path, above, is_kept: false };
        self.make_folder(&built.above.folder_of(number)).map_err(failed())?;
        for (settings, bytes) in files {
            if let Some(prepared) = file::prepare(&in_folder(&built.path, settings), bytes)? {
                prepared.commit()?;
            }
        }
        sync(&built.above.store).map_err(failed())?;
        Ok(Some(built))
    }

    /// Readers get this generation from now on.
    pub fn switch_to(&self, number: u64) -> Result<(), RenderError> {
        let above = self.existing("switching")?;
        // What came there meanwhile is not destroyed.
        self.current_in(&above)?;
        remove_if_there(&above.link_beside).map_err(self.failed("switching"))?;
        let target = Path::new(&self.store_name).join(name_of(number));
        symlink(target, &above.link_beside)
            .and_then(|()| fs::rename(&above.link_beside, &above.link))
            .and_then(|()| above.folder.sync())
            .map_err(self.failed("switching"))
    }

    /// Empties a generation that was gone back from. Its number stays taken.
    pub fn hollow(&self, number: u64) -> Result<(), RenderError> {
        let above = self.existing("emptying")?;
        let entries = fs::read_dir(above.folder_of(number)).map_err(self.failed("emptying"))?;
        let mut removed = entries.map(|entry| fs::remove_file(entry?.path()));
        removed.try_for_each(|removed| removed.map_err(self.failed("emptying")))
    }

    /// What is older than the `keep` generations before the current one goes, except `also`.
    pub fn prune(&self, keep: usize, also: Option<u64>) -> Result<(), RenderError> {
        let Some(above) = self.find()? else { return Ok(()) };
        let Ok(Some(current)) = self.current_in(&above) else { return Ok(()) };
        let numbers = above.numbers().map_err(self.failed("tidying up"))?;
        let mut older: Vec<u64> = numbers.into_iter().filter(|number| *number < current).collect();
        older.sort_unstable();
        older.truncate(older.len().saturating_sub(keep));
        let mut older = older.into_iter().filter(|number| Some(*number) != also);
        older.try_for_each(|number| above.remove(number)).map_err(self.failed("tidying up"))
    }

    /// At the start: what a process that ended early has left goes.
    pub fn sweep(&self) -> Result<(), RenderError> {
        let Some(above) = self.find()? else { return Ok(()) };
        let current = self.current_in(&above)?;
        remove_if_there(&above.link_beside).map_err(self.failed("tidying up"))?;
        let newer = |number: &u64| current.is_none_or(|current| *number > current);
        let left = above.numbers().map_err(self.failed("tidying up"))?;
        left.into_iter().filter(newer).try_for_each(|number| above.remove(number)).map_err(self.failed("tidying up"))
    }

    /// From now on somebody has to be told; where that fails, `back_to` is what they know.
    pub fn mark_untold(&self, back_to: Option<u64>) -> Result<(), RenderError> {
        let (operation, above) = ("writing a mark beside", self.existing("writing a mark beside")?);
        fs::write(above.mark(), back_to.map(|number| number.to_string()).unwrap_or_default())
            .and_then(|()| sync(&above.store))
            .map_err(self.failed(operation))
    }

    pub fn mark_told(&self) -> Result<(), RenderError> {
        let Some(above) = self.find()? else { return Ok(()) };
        remove_if_there(&above.mark()).map_err(self.failed("removing the mark beside"))
    }

    /// `None`: everybody knows. Else the generation to go back to, if there is one.
    pub fn untold(&self) -> Option<Option<u64>> {
        let above = self.find().ok().flatten()?;
        let text = fs::read_to_string(above.mark()).ok()?;
        Some(text.trim().parse().ok().filter(|number| above.folder_of(*number).is_dir()))
    }

    /// Opens the folder above, made if need be.
    fn make(&self) -> Result<Above, RenderError> {
        Ok(Above::of(Folder::make(&self.link, &self.allowed_folders)?, self))
    }

    /// `None`: there is none.
    fn find(&self) -> Result<Option<Above>, RenderError> {
        Ok(Folder::find(&self.link, &self.allowed_folders)?.map(|folder| Above::of(folder, self)))
    }

    fn existing(&self, operation: &'static str) -> Result<Above, RenderError> {
        self.find()?.ok_or_else(|| self.failed(operation)(io::ErrorKind::NotFound.into()))
    }

    /// With its mode whatever the umask is; the folders above it are as those of any file.
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(self.mode))
    }

    /// Where a generation is, for people and for other programs.
    fn shown(&self, number: u64) -> PathBuf {
        self.link.with_file_name(&self.store_name).join(name_of(number))
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> RenderError {
        let destination = self.link.clone();
        move |error| RenderError::Destination { destination, operation, error }
    }
}

/// The folder in which the link stands, open, with paths that lead through it: they lead nowhere when this is dropped.
struct Above {
    folder: Folder,
    link: PathBuf,
    link_beside: PathBuf,
    store: PathBuf,
}

impl Above {
    fn of(folder: Folder, place: &Place) -> Self {
        let path = folder.path();
        let mut link_beside = place.store_name.clone();
        link_beside.push("-link");
        let link = path.join(place.link.file_name().unwrap_or_default());
        Self { link, link_beside: path.join(link_beside), store: path.join(&place.store_name), folder }
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        match fs::read_dir(&self.store) {
            Ok(entries) => {
                let names = entries.map(|entry| Ok(number_of(Path::new(&entry?.file_name()))));
                names.filter_map(Result::transpose).collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        fs::remove_dir_all(self.folder_of(number))
    }

    fn folder_of(&self, number: u64) -> PathBuf {
        self.store.join(name_of(number))
    }

    fn mark(&self) -> PathBuf {
        self.store.join("untold")
    }
}

/// A generation that is whole, and that nobody reads yet. Dropped, it is removed, unless it was kept.
pub(super) struct Built {
    pub number: u64,
    /// The one that it is to replace.
    pub before: Option<u64>,
    path: PathBuf,
    above: Above,
    is_kept: bool,
}

impl Built {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        if !self.is_kept {
            // It was never in use; what is left of it is swept at the next start.
            let _ = self.above.remove(self.number);
        }
    }
}

/// Just these files with these bytes are there.
fn holds(folder: &Path, files: &[(&FileSettings, Zeroizing<Vec<u8>>)]) -> io::Result<bool> {
    let found = match fs::read_dir(folder) {
        Ok(entries) => entries.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if found != files.len() {
        return Ok(false);
    }
    for (settings, bytes) in files {
        match fs::read(in_folder(folder, settings).destination).map(Zeroizing::new) {
            Ok(found) if *found == **bytes => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The same file in another folder.
fn in_folder(folder: &Path, settings: &FileSettings) -> FileSettings {
    let name = settings.destination.file_name().unwrap_or_default();
    FileSettings { destination: folder.join(name), ..settings.clone() }
}

fn name_of(number: u64) -> String {
    format!("{number:07}")
}

fn number_of(name: &Path) -> Option<u64> {
    let text = name.to_str()?;
    let number = text.parse().ok()?;
    (name_of(number) == text).then_some(number)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
