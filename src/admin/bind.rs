//! The admin sockets: bound before anything serves, kept open over reloads, removed at the end.
//!
//! A Unix socket has its mode before anybody can connect: it is bound, then restricted, and only then listens. A socket file that
//! nobody listens on is replaced; one that somebody listens on, and anything that is no socket, is left alone and is an error.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use crate::secret::SecretText;

use super::AdminError;
use super::settings::{AdminHttpSettings, AdminSettings, AdminUnixSettings};

/// What is listened on now.
#[derive(Clone, Default)]
pub struct Listeners {
    pub unix: Option<Arc<UnixSocket>>,
    pub tcp: Option<Arc<TcpSocket>>,
    /// What a request over TCP must bring.
    pub token: Option<SecretText>,
}

impl Listeners {
    /// Binds what `settings` ask for; a socket of `present` that is asked for again is kept.
    pub fn bind(settings: &AdminSettings, present: &Self) -> Result<Self, AdminError> {
        let unix = settings.unix.as_ref().map(|unix| match &present.unix {
            Some(socket) if socket.path == unix.path && socket.is_in_place() => Ok(socket.clone()),
            _ => UnixSocket::bind(unix).map(Arc::new),
        });
        let tcp = settings.http.as_ref().map(|http| match &present.tcp {
            Some(socket) if socket.asked == http.address => Ok(socket.clone()),
            _ => TcpSocket::bind(http).map(Arc::new),
        });
        let token = settings.http.as_ref().map(|http| http.token.clone());
        Ok(Self { unix: unix.transpose()?, tcp: tcp.transpose()?, token })
    }

    pub fn addresses(&self) -> Vec<String> {
        let unix = self.unix.iter().map(|socket| format!("unix:{}", socket.path.display()));
        unix.chain(self.tcp.iter().map(|socket| format!("http://{}", socket.address))).collect()
    }
}

pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl UnixSocket {
    fn bind(settings: &AdminUnixSettings) -> Result<Self, AdminError> {
        let path = &settings.path;
        let failed = |operation| move |cause: io::Error| AdminError::Unix { path: path.clone(), operation, cause };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("creating its folder"))?;
        }
        remove_dead(path)?;
        let address = SocketAddrUnix::new(path.as_path()).map_err(|e| failed("using its path")(e.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|e| failed("making the socket")(e.into()))?;
        // The file that `bind` makes takes its mode from the socket.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|e| failed("restricting it")(e.into()))?;
        bind(&socket, &address).map_err(|e| failed("binding")(e.into()))?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed("looking at it"))?;
        let bound = Self { listener: socket.into(), path: path.clone(), identity: (metadata.dev(), metadata.ino()) };
        bound.set_mode(settings.mode)?;
        listen(&bound.listener, BACKLOG).map_err(|e| failed("listening")(e.into()))?;
        Ok(bound)
    }

    pub fn set_mode(&self, mode: u32) -> Result<(), AdminError> {
        std::fs::set_permissions(&self.path, Permissions::from_mode(mode)).map_err(|cause| AdminError::Unix {
            path: self.path.clone(),
            operation: "setting its mode",
            cause,
        })
    }

    /// Whether the path leads to this socket: not when somebody removed the file.
    fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    /// The same socket for the runtime to accept on.
    pub fn to_async(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

/// The file goes with the socket, unless another process has put its own there.
impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.is_in_place() {
            // What cannot be removed is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

pub struct TcpSocket {
    listener: TcpListener,
    /// As configured, maybe with port 0.
    asked: SocketAddr,
    address: SocketAddr,
}

impl TcpSocket {
    fn bind(settings: &AdminHttpSettings) -> Result<Self, AdminError> {
        let asked = settings.address;
        let failed = |cause| AdminError::Tcp { address: asked, cause };
        let listener = TcpListener::bind(asked).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, asked, address })
    }

    /// The same socket for the runtime to accept on.
    pub fn to_async(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener.try_clone()?)
    }
}

fn remove_dead(path: &Path) -> Result<(), AdminError> {
    let failed = |operation| move |cause: io::Error| AdminError::Unix { path: path.to_owned(), operation, cause };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at it")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(AdminError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path).map_err(|e| failed("using its path")(e.into()))?;
    let probe =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
            .map_err(|e| failed("making the socket")(e.into()))?;
    match connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed("removing the dead one")),
        Err(Errno::NOENT) => Ok(()),
        // Whether it answers, is too busy to, or speaks another way: somebody is there.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE | Errno::ACCESS) => {
            Err(AdminError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failed("trying the one that is there")(error.into())),
    }
}

const BACKLOG: i32 = 64;
