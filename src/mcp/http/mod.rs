//! Streamable HTTP for clients, of both eras: over TCP, and on the same Unix sockets as JSON lines.
//!
//! `connection` serves one connection and `endpoint` one request; `modern` holds the rules of the sessionless era. Behind them a `session`
//! is a pipe in memory to the same `Session` or `Router` that a client of JSON lines has: requests go in as lines, and each line that comes
//! out is put on the `stream` of the request that it belongs to.
//!
//! A legacy client has a session of its own, by `Mcp-Session-Id`. Modern requests have none: those of one user (by uid, or by the token) to
//! one endpoint share one, and their ids are told apart there. `Front` knows all of them. Invariants: at most `max_sessions` at one time;
//! a session serves no other user and no other endpoint than it was made for; one that is idle for `idle_timeout` ends.

pub mod access;
pub mod bind;
pub mod connection;
mod endpoint;
mod ids;
mod modern;
mod replay;
mod reply;
mod session;
mod stream;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;

use self::session::{HttpSession, Kind};
use super::call::Peer;
use super::registry::{Shared, Target};

/// What runs a session, for the part that owns its task.
pub type Start = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who asks: sessions are kept apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Owner {
    User(u32),
    /// Whoever has the token.
    Token,
}

impl Owner {
    pub fn of(peer: Peer) -> Self {
        peer.uid.map_or(Self::Token, Self::User)
    }
}

/// The sessions of HTTP clients.
#[derive(Clone)]
pub struct Front {
    sessions: Arc<Mutex<HashMap<Key, Arc<HttpSession>>>>,
    starts: mpsc::Sender<Start>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// By `Mcp-Session-Id`.
    Legacy(String),
    /// By user and endpoint.
    Modern(Owner, String),
}

#[derive(Debug, thiserror::Error)]
pub enum NoSession {
    #[error("mcpeg serves {0} HTTP sessions already, all of them at work, which is the limit")]
    TooMany(usize),
    #[error("{0}")]
    NoMemory(String),
    #[error("mcpeg stops")]
    Stopping,
    #[error("the system gives no random numbers")]
    Random,
}

impl Front {
    pub fn new() -> (Self, mpsc::Receiver<Start>) {
        let (starts, receiver) = mpsc::channel(STARTS);
        (Self { sessions: Arc::default(), starts }, receiver)
    }

    /// The session of this id, if it is this user's and serves this endpoint.
    pub fn find(&self, id: &str, owner: Owner, target: &Target) -> Option<Arc<HttpSession>> {
        let found = self.lock().get(&Key::Legacy(id.to_owned())).cloned();
        found.filter(|session| session.owner == owner && session.serves(target))
    }

    pub async fn start_legacy(
        &self,
        shared: &Arc<Shared>,
        peer: Peer,
        target: &Target,
    ) -> Result<Arc<HttpSession>, NoSession> {
        let key = Key::Legacy(random_id().ok_or(NoSession::Random)?);
        self.start(shared, peer, target, key, Kind::Legacy).await
    }

    /// The session that modern requests share.
    pub async fn shared_modern(
        &self,
        shared: &Arc<Shared>,
        peer: Peer,
        target: &Target,
    ) -> Result<Arc<HttpSession>, NoSession> {
        let key = Key::Modern(Owner::of(peer), target.name().to_owned());
        self.start(shared, peer, target, key, Kind::Modern).await
    }

    async fn start(
        &self,
        shared: &Arc<Shared>,
        peer: Peer,
        target: &Target,
        key: Key,
        kind: Kind,
    ) -> Result<Arc<HttpSession>, NoSession> {
        let limit = shared.registry.borrow().limits.max_sessions;
        let (session, task) = {
            let mut sessions = self.lock();
            if let Some(session) = sessions.get(&key).filter(|session| session.is_open() && session.serves(target)) {
                return Ok(session.clone());
            }
            if let Some(text) = shared.no_memory() {
                return Err(NoSession::NoMemory(text));
            }
            if sessions.len() >= limit {
                make_room(&mut sessions).ok_or(NoSession::TooMany(limit))?;
            }
            let (session, task) = session::new(shared, self.clone(), key.clone(), peer, target, kind);
            sessions.insert(key, session.clone());
            (session, task)
        };
        match self.starts.send(task).await {
            Ok(()) => Ok(session),
            Err(_) => {
                self.forget(&session);
                Err(NoSession::Stopping)
            }
        }
    }

    /// The session has ended, or is about to.
    pub fn forget(&self, session: &Arc<HttpSession>) {
        let mut sessions = self.lock();
        if sessions.get(&session.key).is_some_and(|known| Arc::ptr_eq(known, session)) {
            sessions.remove(&session.key);
        }
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<HttpSession>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the session that has been idle longest. `None`: all are at work.
fn make_room(sessions: &mut HashMap<Key, Arc<HttpSession>>) -> Option<()> {
    let idle = sessions.iter().filter_map(|(key, session)| Some((session.idle_since()?, key)));
    let key = idle.min_by_key(|(since, _)| *since)?.1.clone();
    sessions.remove(&key)?.end();
    tracing::warn!("the HTTP session that was idle longest made room for a new one");
    Some(())
}

/// 128 bits that nobody can guess, in visible ASCII.
fn random_id() -> Option<String> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Sessions that are made and whose task does not run yet.
const STARTS: usize = 16;
