//! One client on a service's own socket: its messages go to an upstream of its own, byte for byte, and back.
//!
//! Nothing is shared between sessions, so no state of one client reaches another. The session follows its service: a new secret or new
//! settings replace the upstream between two requests, and the client does not notice.
//!
//! Replacing: new requests go to the `next` upstream, which holds them; those under way are answered by the old one; then the next
//! begins with what it inherits, while the old one, which may be slow to end, is closed beside it. Another replacement waits until it is
//! closed, and requests go to the present one meanwhile. A child whose secrets have changed is replaced without that wait (`swap`).
//! Invariants: a session has two upstreams at work at most; the client's connection outlives any upstream; each request is
//! recorded before its answer is queued; the client is not read while the upstream has no room, nor the upstream while the client
//! has none.

mod bridged;
mod gate;
mod ledger;
mod swap;
mod traffic;

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::gate::Chore;
use self::ledger::Ledger;
use self::swap::{Asked, Place, Swap};
use super::bridge::Bridge;
use super::call::Peer;
use super::lines::{Lines, Progress};
use super::message::IdKey;
use super::policy::Policy;
use super::service::{ServiceState, SessionCount};
use super::settings::ServiceSettings;
use super::shown::Shown;
use super::upstream::{Inheritance, Rotated, Surroundings, Upstream};

/// The direction to a client.
pub trait ClientWriter: AsyncWrite + Unpin + Send {
    /// The client has closed both directions. `ended`: it has closed its own.
    fn is_gone(&self, ended: bool) -> bool;
}

/// A client of any kind.
pub type ClientLines = Lines<Box<dyn AsyncRead + Unpin + Send>, Box<dyn ClientWriter>>;

impl ClientWriter for Box<dyn ClientWriter> {
    fn is_gone(&self, ended: bool) -> bool {
        (**self).is_gone(ended)
    }
}

impl ClientWriter for OwnedWriteHalf {
    fn is_gone(&self, _ended: bool) -> bool {
        // Writing nothing succeeds or would block, unless the peer does not read any more.
        self.try_write(&[]).is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// The aggregate's end of a pipe in memory closes both directions at once.
impl ClientWriter for tokio::io::WriteHalf<tokio::io::DuplexStream> {
    fn is_gone(&self, ended: bool) -> bool {
        ended
    }
}

pub struct Session<R, W> {
    around: Surroundings,
    settings: Arc<ServiceSettings>,
    client: Lines<R, W>,
    ledger: Ledger,
    /// Stands between the client's era and the upstream's, where they differ.
    bridge: Bridge,
    policy: Arc<Policy>,
    /// Requests that wait for room, or for a cache that is elsewhere.
    held: HashMap<IdKey, Bytes>,
    chores: FuturesUnordered<Chore>,
    upstream: Upstream,
    /// Replaces `upstream` as soon as that is drained.
    next: Option<Upstream>,
    /// The one before, while it is being closed.
    closing_upstreams: JoinSet<()>,
    /// A child that is about to take over, or has been taken over from.
    swap: Swap,
    asked: Asked,
    shown: Shown,
    state: watch::Receiver<ServiceState>,
    followed: (u64, u64),
    client_reads: bool,
    client_writes: bool,
    closing: bool,
    /// Of the protocol, as a legacy client has agreed on it.
    version: Option<&'static str>,
    /// Of the modern era, as the latest request has named it.
    modern: Option<String>,
    started: Instant,
}

impl<R: AsyncRead + Unpin + Send, W: ClientWriter> Session<R, W> {
    pub fn new(around: Surroundings, client: Lines<R, W>, peer: Peer) -> Self {
        let state = around.service.watch();
        let now = state.borrow().clone();
        let ledger = Ledger::new(around.recorder.clone(), around.service.name.clone(), peer);
        let bridge = Bridge::new(around.service.clone(), around.limits.input_timeout);
        let mut upstream = Upstream::new(&around, &now.settings);
        upstream.begin(Inheritance::default());
        Self {
            settings: now.settings,
            client,
            ledger,
            bridge,
            policy: now.policy,
            held: HashMap::new(),
            chores: FuturesUnordered::new(),
            upstream,
            next: None,
            closing_upstreams: JoinSet::new(),
            swap: Swap::default(),
            asked: Asked::default(),
            shown: Shown::default(),
            state,
            followed: (now.revision, now.rotation),
            client_reads: true,
            client_writes: true,
            closing: now.closing,
            version: None,
            modern: None,
            started: Instant::now(),
            around,
        }
    }

    /// Serves the client until it is gone, or until everything is answered after it, or we, said that there will be no more.
    pub async fn run(mut self) {
        let _count = SessionCount::of(&self.around.service);
        self.around.recorder.metrics.session_opened(&self.around.service.name);
        while !self.is_done() {
            self.replace_if_drained();
            self.advance_swap();
            let read_client = self.client_writes && !self.closing && self.target().has_room();
            let read_upstream = !self.client.congested();
            tokio::select! {
                progress = self.client.progress(read_client) => self.on_client(progress),
                event = self.upstream.event(read_upstream) => self.on_upstream(Place::Present, event),
                beside = self.swap.event(read_upstream) => if let Some((place, event)) = beside {
                    self.on_upstream(place, event);
                },
                changed = self.state.changed() => match changed {
                    Ok(()) => self.follow(),
                    // The service has been dropped.
                    Err(_) => self.closing = true,
                },
                () = self.ledger.alarm() => self.expire(),
                () = until(self.bridge.deadline()) => {
                    self.bridge.expire();
                    self.take_steps();
                }
                Some(done) = self.chores.next() => self.on_done(done),
                Some(_) = self.closing_upstreams.join_next() => {}
                () = sleep(GONE_CHECK), if !read_client => {
                    self.client_reads = !self.client.writer().is_gone(!self.client_writes);
                }
            }
        }
        self.finish().await;
    }

    fn is_done(&self) -> bool {
        !self.client_reads || ((self.closing || !self.client_writes) && self.ledger.only_endless())
    }

    /// Where new messages go: to the next upstream as soon as nothing but what is under way keeps it from beginning.
    fn target(&mut self) -> &mut Upstream {
        match &mut self.next {
            Some(next) if self.closing_upstreams.is_empty() && self.swap.leaving.is_none() => next,
            _ => &mut self.upstream,
        }
    }

    fn on_client(&mut self, progress: std::io::Result<Progress>) {
        match progress {
            Ok(Progress::Read) => self.take_client_lines(),
            Ok(Progress::Ended) => {
                self.take_client_lines();
                self.client_writes = false;
            }
            Ok(Progress::Room) => {}
            Ok(Progress::Broken) | Err(_) => self.client_reads = false,
        }
    }

    /// The service has changed, got a new secret, or is closing.
    fn follow(&mut self) {
        let now = self.state.borrow_and_update().clone();
        let (revision, rotation) = std::mem::replace(&mut self.followed, (now.revision, now.rotation));
        self.closing |= now.closing;
        if revision != now.revision {
            self.settings = now.settings;
            self.policy = now.policy;
            self.replace("settings_changed");
        } else if rotation != now.rotation && self.next.is_none() {
            match self.upstream.rotated() {
                Rotated::Followed => {}
                Rotated::Replace => self.replace("secret_rotated"),
                Rotated::Swap => self.swap.demand(),
            }
        }
    }

    fn replace(&mut self, reason: &'static str) {
        let Surroundings { service, recorder, .. } = &self.around;
        tracing::info!(service = &*service.name, reason, "replacing the upstream of a session");
        recorder.metrics.child_restarted(&service.name, reason);
        service.restarted();
        let mut next = Upstream::new(&self.around, &self.settings);
        if let Some(mut before) = self.next.take() {
            before.bequeath().again.into_iter().for_each(|message| next.send(message));
        }
        self.next = Some(next);
    }

    fn replace_if_drained(&mut self) {
        if self.closing_upstreams.is_empty()
            && self.swap.leaving.is_none()
            && self.upstream.is_drained()
            && let Some(next) = self.next.take()
        {
            let inheritance = self.upstream.bequeath();
            let old = std::mem::replace(&mut self.upstream, next);
            self.cancel_asked(Place::Present);
            self.closing_upstreams.spawn(old.close());
            self.upstream.begin(inheritance);
        }
    }

    /// The present upstream, which has done nothing yet, gives its messages to one that speaks another transport.
    fn change_transport(&mut self, other: fn(&Surroundings, &Arc<ServiceSettings>) -> Upstream) {
        let inheritance = self.upstream.bequeath();
        let old = std::mem::replace(&mut self.upstream, other(&self.around, &self.settings));
        self.closing_upstreams.spawn(old.close());
        self.upstream.begin(inheritance);
    }

    /// Answers what is left, lets the client read it, and closes everything.
    async fn finish(mut self) {
        if self.client_reads {
            self.answer_the_rest();
            self.client.flush(FLUSH_PATIENCE).await;
        } else {
            self.record_the_rest();
        }
        let Self { upstream, next, swap, mut closing_upstreams, ledger, client, around, version, started, .. } = self;
        drop((ledger, client));
        for upstream in [Some(upstream), next, swap.coming, swap.leaving].into_iter().flatten() {
            closing_upstreams.spawn(upstream.close());
        }
        while closing_upstreams.join_next().await.is_some() {}
        around.recorder.metrics.session_closed(&around.service.name, version, started.elapsed());
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// How often it is looked whether a client that is not read, or writes no more, is still there.
const GONE_CHECK: Duration = Duration::from_millis(200);
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
