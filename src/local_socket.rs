//! A Unix socket in the file system: made so that nobody can connect before it may, removed when it is dropped.
//!
//! The way: bind under a temporary name in the same folder, with the mode set on the socket before it has a name, listen, and rename
//! over the final name when it is published. A live socket and anything that is not a socket are never replaced; the socket of a dead
//! process is. The umask of the process is not touched (it is one for all threads).
//!
//! A leaf: the MCP sockets and the admin socket are made here; who may connect and what is said there is theirs.

use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("socket {}: the path has {length} bytes, and the system allows {MAX_PATH}", path.display())]
    PathTooLong { path: PathBuf, length: usize },
    #[error("socket {}: a path needs a folder and a name", path.display())]
    NoName { path: PathBuf },
    #[error("socket {}: its folder cannot be made: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("socket {}: something that is not a socket stands there", path.display())]
    NotASocket { path: PathBuf },
    #[error("socket {}: another process listens there: is another mcpeg running?", path.display())]
    InUse { path: PathBuf },
    #[error("socket {}: cannot {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
}

/// A socket that listens under a temporary name.
#[derive(Debug)]
pub struct Prepared {
    socket: BoundSocket,
    path: PathBuf,
}

/// A socket that listens; its name is removed when this is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that only our own name is removed.
    identity: (u64, u64),
    number: u32,
    mode: AtomicU32,
}

/// Binds a socket for `path`. Nobody finds it before it is published.
pub fn prepare(path: &Path, mode: u32) -> Result<Prepared, SocketError> {
    let io_error = |what| move |source| SocketError::Io { path: path.to_owned(), what, source };
    let folder = folder_of(path)?;
    check_length(path, path)?;
    make_folder(folder, mode).map_err(|source| SocketError::Folder { path: path.to_owned(), source })?;
    check_replaceable(path)?;
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{:x}.{number:x}", std::process::id()));
    check_length(&temporary, path)?;
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove a leftover")(error)),
        _ => {}
    }
    let listener = bound(&temporary, mode).map_err(io_error("bind"))?;
    let metadata = std::fs::symlink_metadata(&temporary).map_err(io_error("look at it"))?;
    let socket = BoundSocket { listener, path: temporary, identity: identity(&metadata), number, mode: mode.into() };
    // The umask may have taken bits away.
    std::fs::set_permissions(&socket.path, PermissionsExt::from_mode(mode)).map_err(io_error("set the mode"))?;
    listen(&socket.listener, BACKLOG).map_err(|error| io_error("listen")(error.into()))?;
    Ok(Prepared { socket, path: path.to_owned() })
}

impl Prepared {
    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the socket its name, in one step, in place of a dead one.
    pub fn publish(mut self) -> Result<BoundSocket, SocketError> {
        check_replaceable(&self.path)?;
        std::fs::rename(&self.socket.path, &self.path).map_err(|source| SocketError::Io {
            path: self.path.clone(),
            what: "give it its name",
            source,
        })?;
        self.socket.path = self.path;
        Ok(self.socket)
    }
}

impl BoundSocket {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Different for every socket of the process.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Another descriptor of the same socket, for the reactor of the runtime that this is called in.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }

    /// Whether the path leads to this socket: not when somebody removed or replaced the file.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|now| identity(&now) == self.identity)
    }

    /// Another socket of the same path and mode, if this one's name has been removed or taken by a dead one.
    pub fn renewed(&self) -> Result<Option<Self>, SocketError> {
        if self.is_in_place() {
            return Ok(None);
        }
        prepare(&self.path, self.mode.load(Ordering::Relaxed))?.publish().map(Some)
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.mode.store(mode, Ordering::Relaxed);
        std::fs::set_permissions(&self.path, PermissionsExt::from_mode(mode))
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if self.is_in_place()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "a socket could not be removed");
        }
    }
}

/// Makes the folder if it is missing, so that whoever the socket's mode lets in can also reach it.
fn make_folder(folder: &Path, socket_mode: u32) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let of_class = |bits: u32, reach: u32| if socket_mode & bits == 0 { 0 } else { reach };
    let mode = 0o700 | of_class(0o070, 0o050) | of_class(0o007, 0o005);
    std::fs::set_permissions(folder, PermissionsExt::from_mode(mode))
}

fn bound(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // On Linux the name gets the mode that the socket has when it is bound.
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn check_replaceable(path: &Path) -> Result<(), SocketError> {
    let path_buf = || path.to_owned();
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Io { path: path_buf(), what: "look at it", source }),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path_buf() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path_buf() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(source) => Err(SocketError::Io { path: path_buf(), what: "tell whether it is alive", source }),
    }
}

fn folder_of(path: &Path) -> Result<&Path, SocketError> {
    let parent = path.parent().filter(|_| path.file_name().is_some());
    let parent = parent.ok_or_else(|| SocketError::NoName { path: path.to_owned() })?;
    Ok(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// `path` is what is bound, `wanted` what the error names.
fn check_length(path: &Path, wanted: &Path) -> Result<(), SocketError> {
    let length = path.as_os_str().len();
    if length > MAX_PATH { Err(SocketError::PathTooLong { path: wanted.to_owned(), length }) } else { Ok(()) }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

static COUNT: AtomicU32 = AtomicU32::new(0);
/// `sun_path` of `sockaddr_un`, without the zero at its end.
const MAX_PATH: usize = 107;
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_folder_is_as_open_as_the_socket_and_the_name_goes_with_it() {
        let folder = folder();
        let path = folder.path().join("deep/er/a.sock");
        let prepared = prepare(&path, 0o666).unwrap();
        assert!(!path.exists(), "it has no name before it is published");
        let socket = prepared.publish().unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o666, 0o755));
        let private = folder.path().join("own/b.sock");
        drop(prepare(&private, 0o600).unwrap());
        assert_eq!(mode(private.parent().unwrap()), 0o700);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let folder = folder();
        let path = folder.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = prepare(&path, 0o600).unwrap().publish().unwrap();
        assert!(matches!(prepare(&path, 0o600), Err(SocketError::InUse { .. })));
        drop(socket);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(prepare(&path, 0o600), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn another_socket_of_the_same_name_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("a.sock");
        let socket = prepare(&path, 0o600).unwrap().publish().unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_whose_name_is_gone_is_renewed_with_its_mode() {
        let folder = folder();
        let path = folder.path().join("run/a.sock");
        let socket = prepare(&path, 0o600).unwrap().publish().unwrap();
        socket.set_mode(0o660).unwrap();
        assert!(socket.renewed().unwrap().is_none());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let again = socket.renewed().unwrap().unwrap();
        drop(socket);
        assert_eq!(mode(&path), 0o660);
        UnixStream::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(again.renewed().is_err());
    }

    #[test]
    fn a_path_that_the_system_would_cut_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(110));
        let error = prepare(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("has 115 bytes, and the system allows 107"), "{error}");
    }
}
