//! The process's own standard input and output as a client of all services, for an MCP client that spawns mcpeg itself.
//!
//! A thread copies between them and one end of a pair of sockets (`connect`); the other end is a connection like any other. When the input
//! has ended and everything is answered, the connection ends, and then the process is to stop.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::call::Peer;
use super::connect::bridge_over;
use super::listener::{Accepted, Stream};
use super::registry::{ConnectionPermit, Shared, Target};
use crate::lifecycle::PartError;

/// Gives the client to the sessions. `ended` is told when it has gone.
pub async fn attach(shared: &Shared, accepted: &mpsc::Sender<Accepted>, ended: Arc<Notify>) -> Result<(), PartError> {
    let (near, far) = UnixStream::pair()?;
    far.set_nonblocking(true)?;
    let stream = Stream::Lines(tokio::net::UnixStream::from_std(far)?);
    let uid = rustix::process::geteuid().as_raw();
    let peer = Peer { uid: Some(uid), pid: None, address: None };
    let permit =
        ConnectionPermit::take(&shared.connections, usize::MAX).ok_or_else(|| io::Error::other("no permit"))?;
    // A thread of its own: it blocks for as long as the client is there, and ends with the process.
    std::thread::Builder::new().name("stdio".into()).spawn(move || {
        if let Err(error) = bridge_over(&near, Path::new("stdio")) {
            tracing::warn!(%error, "standard input and output are used no more");
        }
        ended.notify_one();
    })?;
    accepted.send(Accepted { stream, peer, target: Target::Aggregate, permit }).await?;
    Ok(())
}
