//! One client on the aggregate's socket: mcpeg itself is the MCP server, and all services are behind it.
//!
//! A tool `t` of the service `s` is `s__t`, its resource `u` is `mcpeg://s/u`. Lists are made from those of all services (`listing`); a
//! request that is for one service loses its prefix and goes, with the client's own id, to the service's `branch`, and its answer comes back byte for byte.
//! What a service asks the client (`asked`) comes back to it; what it tells goes to the client, or to its subscriptions (`listens`).
//!
//! A branch speaks the client's era: where the service speaks the other one, the session behind it translates.
//!
//! Invariants: every id in `open` is answered or cancelled once; ids of our own begin with a random mark, so that no client's id is
//! one; requests that go to one service are recorded by the session behind its branch, all others here.

mod absent;
mod asked;
mod branch;
mod hello;
mod listens;
mod listing;
mod lists;
pub mod names;
mod pages;
mod replies;
mod requests;
mod search;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::{pending, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use self::absent::Absent;
use self::asked::Asked;
use self::branch::Branch;
use self::listens::Listening;
use self::lists::Collection;
use self::pages::Pages;
use self::search::Query;
use super::bridge::capabilities::Client;
use super::call::{Call, Ending, Peer};
use super::lines::{Lines, Progress};
use super::message::IdKey;
use super::protocol::Era;
use super::registry::{AGGREGATE, Registry, Shared};
use super::service::Service;
use super::session::{ClientLines, ClientWriter, Session};
use super::sessions::surroundings;
use super::upstream::backoff::random;

pub struct Router {
    shared: Arc<Shared>,
    registry: watch::Receiver<Arc<Registry>>,
    /// The services that the client knows of, with the revisions of their settings.
    known: Vec<(String, u64)>,
    /// The aggregate's name in records.
    name: Arc<str>,
    peer: Peer,
    client: ClientLines,
    /// By service. Made when something is sent there.
    branches: BTreeMap<String, Branch>,
    sessions: JoinSet<()>,
    /// The client's requests that are not answered yet.
    open: HashMap<IdKey, Open>,
    /// Our own requests to services.
    own: HashMap<IdKey, Own>,
    /// Services that are missing from lists which the client has.
    absent: BTreeMap<String, Absent>,
    /// Which service has listed a resource, or a template, by its own address.
    addresses: HashMap<String, String>,
    /// Names that had to be shortened: the service, and the name there.
    shortened: HashMap<String, (String, String)>,
    /// Resources that a legacy client is subscribed to, by service and address there, as the client has written them.
    subscribed: HashMap<(String, String), String>,
    /// Requests of services that the client has not answered.
    asked: HashMap<IdKey, Asked>,
    pages: Pages,
    /// The tools of all services, for searches.
    catalogue: Option<Catalogue>,
    /// Who the client says that it is, and what it can.
    introduced: Client,
    /// What a legacy client wants to hear of logs.
    level: Option<String>,
    mark: u64,
    count: u64,
    /// What the client speaks, by its last request.
    era: Option<Era>,
    /// Of the protocol, as a legacy client has agreed on it.
    version: Option<&'static str>,
    started: Instant,
    client_reads: bool,
    client_writes: bool,
}

/// A request of the client.
enum Open {
    /// With a service; the answer comes under the same id.
    Routed {
        service: String,
        id: Box<str>,
        /// It was asked for by an address of the aggregate, so that the answer gets such ones.
        addressed: bool,
    },
    Listing {
        call: Call,
        era: Era,
        list: Collection,
        purpose: Purpose,
        deadline: Instant,
        /// The least severe level of the log that it wants to be told, if any.
        level: Option<String>,
    },
    /// Services are greeted, to know what they have.
    Greeting {
        call: Call,
        era: Era,
        /// The version that a legacy client wants.
        version: Option<String>,
        waiting: BTreeSet<String>,
        deadline: Instant,
    },
    Listening(Box<Listening>),
    /// Services are tried one after the other; `line` is the request.
    Searching {
        call: Call,
        line: String,
        left: VecDeque<String>,
    },
}

/// What a search has found out, for the next one.
struct Catalogue {
    tools: Vec<String>,
    unavailable: Vec<serde_json::Value>,
    until: Instant,
}

/// What a list is made for.
enum Purpose {
    List,
    Find(Query),
}

/// A request of our own, and whom it is for.
enum Own {
    Page {
        open: IdKey,
        service: String,
    },
    Search {
        open: IdKey,
        service: String,
    },
    /// To a service that was left out of a list.
    Again {
        service: String,
    },
    /// A subscription to what a service tells, for one of the client's.
    Listen {
        open: IdKey,
        service: String,
    },
    /// The answer does not matter.
    Said {
        service: String,
    },
}

impl Router {
    pub fn new(shared: Arc<Shared>, client: ClientLines, peer: Peer) -> Self {
        let registry = shared.registry.subscribe();
        let known = revisions(&registry.borrow());
        Self {
            registry,
            known,
            shared,
            name: AGGREGATE.into(),
            peer,
            client,
            branches: BTreeMap::new(),
            sessions: JoinSet::new(),
            open: HashMap::new(),
            own: HashMap::new(),
            absent: BTreeMap::new(),
            addresses: HashMap::new(),
            shortened: HashMap::new(),
            subscribed: HashMap::new(),
            asked: HashMap::new(),
            pages: Pages::default(),
            catalogue: None,
            introduced: Client::unknown(),
            level: None,
            mark: random(),
            count: 0,
            era: None,
            version: None,
            started: Instant::now(),
            client_reads: true,
            client_writes: true,
        }
    }

    pub async fn run(mut self) {
        self.shared.recorder.metrics.session_opened(&self.name);
        while self.client_reads && !(self.only_listens() && (self.is_closing() || !self.client_writes)) {
            let read_client = self.client_writes && !self.is_closing() && self.has_room();
            let read_branches = !self.client.congested();
            let deadline = self.deadline();
            tokio::select! {
                progress = self.client.progress(read_client) => self.on_client(progress),
                (service, progress) = any_branch(&mut self.branches, read_branches) => self.on_branch(&service, progress),
                changed = self.registry.changed() => if changed.is_ok() { self.services_changed() } else { break },
                () = until(deadline) => self.expire(),
                Some(_) = self.sessions.join_next() => {}
                () = sleep(GONE_CHECK), if !read_client => {
                    self.client_reads = !self.client.writer().is_gone(!self.client_writes);
                }
            }
        }
        self.finish().await;
    }

    fn is_closing(&self) -> bool {
        self.registry.borrow().closing
    }

    /// The services that this client may use: another one is not there for it.
    fn visible(&self, registry: &Registry) -> Vec<Arc<Service>> {
        let services = registry.services.values();
        services.filter(|service| service.policy().refuses_peer(self.peer).is_none()).cloned().collect()
    }

    /// Nothing is under way but subscriptions, which may take for ever.
    fn only_listens(&self) -> bool {
        self.open.values().all(|open| matches!(open, Open::Listening(_)))
    }

    fn has_room(&self) -> bool {
        self.branches.values().all(|branch| !branch.lines.congested())
    }

    fn on_client(&mut self, progress: io::Result<Progress>) {
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

    fn on_branch(&mut self, service: &str, progress: io::Result<Progress>) {
        self.take_branch_lines(service);
        match progress {
            Ok(Progress::Read | Progress::Room) => {}
            Ok(Progress::Ended | Progress::Broken) | Err(_) => self.branch_ended(service),
        }
    }

    /// The branch to a service, with a session of its own behind it.
    fn branch(&mut self, service: &Arc<Service>) -> &mut Branch {
        let Self { branches, shared, peer, sessions, .. } = self;
        branches.entry(service.name.to_string()).or_insert_with(|| {
            let limit = shared.registry.borrow().limits.max_message_bytes;
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let (reader, writer) = tokio::io::split(far);
            let far = Lines::new(reader, writer, limit);
            sessions.spawn(Session::new(surroundings(shared, service.clone()), far, *peer).run());
            let (reader, writer) = tokio::io::split(near);
            Branch::new(Lines::new(reader, writer, limit))
        })
    }

    /// An id of our own.
    fn next_id(&mut self) -> String {
        self.count += 1;
        format!("mcpeg-{:x}-{}", self.mark, self.count)
    }

    fn deadline(&self) -> Option<Instant> {
        let lists = self.open.values().filter_map(|open| match open {
            Open::Listing { deadline, .. } | Open::Greeting { deadline, .. } => Some(*deadline),
            Open::Listening(listening) => listening.deadline(),
            Open::Routed { .. } | Open::Searching { .. } => None,
        });
        let absent = self.absent.values().map(|absent| absent.again);
        lists.chain(absent).min()
    }

    async fn finish(mut self) {
        for (_, open) in std::mem::take(&mut self.open) {
            match open {
                // Recorded by the session behind the branch, or below.
                Open::Routed { .. } => {}
                Open::Listening(listening) if self.client_reads => self.end_listening(*listening),
                Open::Listening(listening) => self.record(&listening.call, &Ending::ClientGone),
                Open::Listing { call, .. } | Open::Searching { call, .. } | Open::Greeting { call, .. } => {
                    self.record(&call, &Ending::ClientGone);
                }
            }
        }
        for (service, branch) in &mut std::mem::take(&mut self.branches) {
            for (_, ask) in branch.take_waiting() {
                self.record_unsent(service, &ask, &Ending::ClientGone);
            }
        }
        let Self { mut client, mut sessions, shared, name, client_reads, version, started, .. } = self;
        if client_reads {
            client.flush(FLUSH_PATIENCE).await;
        }
        drop(client);
        // The sessions have seen the end of their pipes.
        while sessions.join_next().await.is_some() {}
        shared.recorder.metrics.session_closed(&name, version, started.elapsed());
    }
}

/// The first branch on which something happens. Cancel-safe.
async fn any_branch(branches: &mut BTreeMap<String, Branch>, read: bool) -> (String, io::Result<Progress>) {
    poll_fn(|cx| {
        for (service, branch) in &mut *branches {
            if let Poll::Ready(progress) = branch.lines.poll_progress(cx, read) {
                return Poll::Ready((service.clone(), progress));
            }
        }
        Poll::Pending
    })
    .await
}

fn revisions(registry: &Registry) -> Vec<(String, u64)> {
    let services = registry.services.iter();
    services.map(|(name, service)| (name.clone(), service.watch().borrow().revision)).collect()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

const PIPE_BYTES: usize = 64 * 1024;
const GONE_CHECK: Duration = Duration::from_millis(200);
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);
