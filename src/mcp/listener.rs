//! Accepts connections on all sockets and hands those that may come in over to the sessions.
//!
//! Who may: the process's own uid, those of `allow_uids` and groups of `allow_gids`, by the credentials that the kernel gives
//! (`SO_PEERCRED`); up to `max_connections` at once. Over TCP (`http::bind`) everybody, as each request has to show the token. Everybody else is closed, and that is audited. It reads and writes no message.
//!
//! A socket whose name was removed or replaced, by a cleaner of old files for instance, is published again within `CHECK_NAMES`.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::answer;
use super::call::Peer;
use super::http::bind::{Door, TcpLoop};
use super::protocol::code;
use super::registry::{ConnectionPermit, Registry, Shared, Socket, Target};
use super::stdio;
use crate::lifecycle::{PartError, ReadySignal, Shutdown};

/// A connection that was let in.
pub struct Accepted {
    pub stream: Stream,
    pub peer: Peer,
    pub target: Target,
    pub permit: ConnectionPermit,
}

pub enum Stream {
    /// JSON lines or HTTP: the first byte tells.
    Unix(UnixStream),
    /// JSON lines.
    Lines(UnixStream),
    /// HTTP, maybe in TLS, through the door that was there when it came.
    Tcp(TcpStream, Arc<Door>),
}

/// Accepts on the sockets of the registry, as they come and go, until it is told to stop. With `stdio`, standard input and output are a
/// client from the start.
pub async fn run(
    shared: Arc<Shared>,
    accepted: mpsc::Sender<Accepted>,
    stdio: Option<Arc<Notify>>,
    ready: ReadySignal,
    mut shutdown: Shutdown,
) -> Result<(), PartError> {
    if let Some(ended) = stdio {
        stdio::attach(&shared, &accepted, ended).await?;
    }
    let mut registry = shared.registry.subscribe();
    let mut loops = JoinSet::new();
    let mut running = HashMap::new();
    let mut names = Names::default();
    let mut tcp = TcpLoop::default();
    let mut check = tokio::time::interval(CHECK_NAMES);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = registry.borrow_and_update().clone();
        reconcile(&shared, &accepted, &now, &mut loops, &mut running)?;
        tcp.reconcile(&shared, &accepted, now.http.as_ref(), &mut loops)?;
        drop(now);
        ready.ready();
        tokio::select! {
            () = shutdown.requested() => break,
            changed = registry.changed() => if changed.is_err() { break },
            _ = check.tick() => names.restore(&shared),
        }
    }
    // Their names go now, so that nobody waits in the backlog of a socket on which nobody accepts.
    shared.update(|registry| {
        registry.sockets.clear();
        registry.http = None;
    });
    Ok(())
}

/// Brings back the names of sockets that nobody can find any more.
#[derive(Default)]
struct Names {
    /// The sockets whose names could not be brought back, which is logged once for each.
    failed: HashSet<u32>,
}

impl Names {
    fn restore(&mut self, shared: &Shared) {
        let registry = shared.registry.borrow().clone();
        let mut renewed = HashMap::new();
        for socket in &registry.sockets {
            let (number, path) = (socket.bound.number(), socket.bound.path().display());
            match socket.bound.renewed() {
                Ok(None) => drop(self.failed.remove(&number)),
                Ok(Some(bound)) => {
                    tracing::warn!(socket = socket.target.name(), %path, "the socket's name was gone: published again");
                    renewed.insert(number, Arc::new(bound));
                }
                Err(error) if self.failed.insert(number) => {
                    tracing::error!(%error, socket = socket.target.name(), "the socket's name is gone and cannot be given again");
                }
                Err(_) => {}
            }
        }
        self.failed.retain(|number| registry.sockets.iter().any(|socket| socket.bound.number() == *number));
        if renewed.is_empty() {
            return;
        }
        shared.update(|registry| {
            for socket in &mut registry.sockets {
                if let Some(bound) = renewed.remove(&socket.bound.number()) {
                    socket.bound = bound;
                }
            }
        });
    }
}

/// Starts a loop for each new socket and ends those of sockets that are no more.
fn reconcile(
    shared: &Arc<Shared>,
    accepted: &mpsc::Sender<Accepted>,
    registry: &Registry,
    loops: &mut JoinSet<()>,
    running: &mut HashMap<u32, AbortHandle>,
) -> io::Result<()> {
    let key = |socket: &Socket| socket.bound.number();
    running.retain(|known, task| {
        let stays = registry.sockets.iter().any(|socket| key(socket) == *known);
        if !stays {
            task.abort();
        }
        stays
    });
    for socket in &registry.sockets {
        let Entry::Vacant(place) = running.entry(key(socket)) else { continue };
        let listener = socket.bound.listener()?;
        tracing::info!(socket = socket.target.name(), path = %socket.bound.path().display(), "listening");
        // The loop does not hold the socket itself, so that its name goes when the registry lets go of it.
        place.insert(loops.spawn(accept(shared.clone(), listener, socket.target.clone(), accepted.clone())));
    }
    while loops.try_join_next().is_some() {}
    Ok(())
}

async fn accept(shared: Arc<Shared>, listener: UnixListener, target: Target, accepted: mpsc::Sender<Accepted>) {
    let registry = shared.registry.subscribe();
    let mut refused = Refused::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Some(connection) = admit(&shared, &registry, stream, &target, &mut refused).await
                    && accepted.send(connection).await.is_err()
                {
                    return;
                }
            }
            Err(error) => {
                // Out of descriptors, most likely: the backlog keeps who waits.
                tracing::error!(%error, socket = target.name(), "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn admit(
    shared: &Shared,
    registry: &watch::Receiver<Arc<Registry>>,
    stream: UnixStream,
    target: &Target,
    refused: &mut Refused,
) -> Option<Accepted> {
    let registry = registry.borrow().clone();
    let found = match stream.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::error!(%error, socket = target.name(), "a peer's credentials could not be read: closed");
            return None;
        }
    };
    let (uid, gid) = (found.uid(), found.gid());
    let peer = Peer { uid: Some(uid), pid: found.pid(), address: None };
    if !may_connect(uid, &registry.allow_uids) && !registry.allow_gids.contains(&gid) {
        if let Some(unsaid) = refused.count() {
            let (pid, socket) = (peer.pid, target.name());
            tracing::warn!(uid, gid, pid, socket, unsaid, "a connection was refused: neither uid nor gid is allowed");
        }
        shared.recorder.connection_denied(target.name(), peer, "uid_not_allowed");
        let text = format!(
            "uid {uid} may not connect to mcpeg: it is not in transports.unix.allow_uids, nor its group {gid} in allow_gids"
        );
        refuse(stream, code::NOT_ALLOWED, &text).await;
        return None;
    }
    if let Some(text) = shared.no_memory() {
        if let Some(unsaid) = refused.count() {
            tracing::warn!(socket = target.name(), unsaid, "a connection was refused: too little memory");
        }
        shared.recorder.connection_denied(target.name(), peer, "memory_limit");
        refuse(stream, code::TOO_MANY, &text).await;
        return None;
    }
    let limit = registry.limits.max_connections;
    let Some(permit) = ConnectionPermit::take(&shared.connections, limit) else {
        if let Some(unsaid) = refused.count() {
            tracing::warn!(limit, socket = target.name(), unsaid, "a connection was refused: too many");
        }
        shared.recorder.connection_denied(target.name(), peer, "too_many_connections");
        let text = format!("mcpeg serves {limit} connections already, which is the limit");
        refuse(stream, code::TOO_MANY, &text).await;
        return None;
    };
    Some(Accepted { stream: Stream::Unix(stream), peer, target: target.clone(), permit })
}

/// Connections of one socket that were not let in. Each is audited; the log tells of one in `LOG_PAUSE`, with how many it left out.
#[derive(Default)]
pub struct Refused {
    told: Option<Instant>,
    unsaid: u64,
}

impl Refused {
    /// One more. `Some`: it is to be told, with the number of those before it that were not.
    pub fn count(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.told.is_some_and(|told| now.duration_since(told) < LOG_PAUSE) {
            self.unsaid += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// A last word, so that the client can say why. A fresh socket has room for a line, and a client that is gone needs none.
async fn refuse(mut stream: UnixStream, code: i32, text: &str) {
    let mut line = answer::error(None, code, text, None);
    line.push(b'\n');
    let _ = tokio::time::timeout(COURTESY, stream.write_all(&line)).await;
}

fn may_connect(uid: u32, allowed: &[u32]) -> bool {
    uid == rustix::process::geteuid().as_raw() || allowed.contains(&uid)
}

/// How often it is looked whether the sockets are where they should be.
const CHECK_NAMES: Duration = Duration::from_secs(2);
const LOG_PAUSE: Duration = Duration::from_secs(10);
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const COURTESY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refused_connections_is_told_with_its_number() {
        let mut refused = Refused::default();
        assert_eq!(refused.count(), Some(0));
        assert!((0..1000).all(|_| refused.count().is_none()));
        tokio::time::advance(LOG_PAUSE).await;
        assert_eq!((refused.count(), refused.count()), (Some(1000), None));
    }

    #[test]
    fn the_own_uid_always_may_and_others_only_when_named() {
        let own = rustix::process::geteuid().as_raw();
        assert!(may_connect(own, &[]));
        assert!(!may_connect(own + 1, &[own + 2]));
        assert!(may_connect(own + 1, &[own + 1]));
    }
}
