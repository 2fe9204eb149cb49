//! Standard input and output as a client's end of a socket: what `mcpeg connect` is, so that an MCP client can spawn it.
//!
//! A copy, byte for byte, of whatever passes. When the input ends, the socket is told, and answers are copied on until the socket
//! closes. Each direction has a thread that blocks, as standard input may be anything: a pipe, a terminal, a file. The one that reads it
//! cannot be interrupted: it is left behind, and ends with the process, which has nothing else to do.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("socket {}: cannot connect: {source}{}", path.display(), hint(source))]
    Connect { path: PathBuf, source: io::Error },
    #[error("standard input and output cannot be used: {0}")]
    Stdio(#[source] io::Error),
    #[error("standard output cannot be written: {0}")]
    Output(#[source] io::Error),
    #[error("socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    /// The last line that came may say why.
    #[error("socket {}: mcpeg closed the connection", path.display())]
    Closed { path: PathBuf },
    #[error("the bridge was stopped")]
    Stopped,
}

/// Bridges standard input and output to the socket, until the socket closes.
pub async fn bridge_stdio(socket: &Path) -> Result<(), ConnectError> {
    let path = socket.to_owned();
    let bridged = tokio::task::spawn_blocking(move || bridge_over(&connect(&path)?, &path));
    bridged.await.unwrap_or(Err(ConnectError::Stopped))
}

/// Bridges standard input and output to a connected socket, until that closes. Blocks. `path` is how the socket is called in errors.
pub fn bridge_over(stream: &UnixStream, path: &Path) -> Result<(), ConnectError> {
    let duplicate = |fd: io::Result<std::os::fd::OwnedFd>| fd.map(File::from).map_err(ConnectError::Stdio);
    // Unbuffered: what Rust's own `Stdin` and `Stdout` hold back would be late.
    let input = duplicate(io::stdin().as_fd().try_clone_to_owned())?;
    let output = duplicate(io::stdout().as_fd().try_clone_to_owned())?;
    bridge(input, output, stream, path)
}

fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    UnixStream::connect(path).map_err(|source| ConnectError::Connect { path: path.to_owned(), source })
}

fn bridge(
    input: impl Read + Send + 'static,
    output: impl Write,
    stream: &UnixStream,
    path: &Path,
) -> Result<(), ConnectError> {
    let broken = |source| ConnectError::Socket { path: path.to_owned(), source };
    let mut to_socket = stream.try_clone().map_err(broken)?;
    let input_ended = Arc::new(AtomicBool::new(false));
    let ended = input_ended.clone();
    let send = move || {
        if let Err(Side::Reading(error)) = copy(input, &mut to_socket) {
            tracing::warn!(%error, "standard input cannot be read any more");
        }
        ended.store(true, Ordering::Release);
        // It may be closed already, which the other direction sees.
        let _ = to_socket.shutdown(Shutdown::Write);
    };
    std::thread::Builder::new().name("connect input".into()).spawn(send).map_err(ConnectError::Stdio)?;
    match copy(stream, output) {
        Ok(()) if input_ended.load(Ordering::Acquire) => Ok(()),
        Ok(()) => Err(ConnectError::Closed { path: path.to_owned() }),
        Err(Side::Reading(error)) => Err(broken(error)),
        // Whoever spawned us has closed its end, and needs no word about it.
        Err(Side::Writing(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Side::Writing(error)) => Err(ConnectError::Output(error)),
    }
}

enum Side {
    Reading(io::Error),
    Writing(io::Error),
}

fn copy(mut from: impl Read, mut to: impl Write) -> Result<(), Side> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read]).map_err(Side::Writing)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Side::Reading(error)),
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": is mcpeg running, and is the service configured?",
        io::ErrorKind::ConnectionRefused => ": mcpeg does not run any more",
        io::ErrorKind::PermissionDenied => ": the socket's mode does not let this user in",
        _ => "",
    }
}

const BUFFER: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_end_of_input_answers_are_copied_until_the_socket_closes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut seen = Vec::new();
            far.read_to_end(&mut seen).unwrap();
            far.write_all(b"late \0 answer").unwrap();
            seen
        });
        let mut output = Vec::new();
        bridge(&b"\xff\0 request"[..], &mut output, &near, Path::new("x")).unwrap();
        assert_eq!(server.join().unwrap(), b"\xff\0 request");
        assert_eq!(output, b"late \0 answer");
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_a_hint() {
        let error = bridge_stdio(Path::new("/nowhere/x.sock")).await.unwrap_err();
        assert!(error.to_string().starts_with("socket /nowhere/x.sock: cannot connect: "), "{error}");
        assert!(error.to_string().ends_with("is the service configured?"), "{error}");
    }
}
