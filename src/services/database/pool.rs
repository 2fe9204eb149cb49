//! The connections of one database: made when they are needed, kept for the next call, bounded in number and age.
//!
//! Invariants: no more than `max_connections` are in use or idle; a connection is used again only with the current login; whoever gives a
//! call up leaves its connection to the keeper, which stops the statement at the server. Where a secret changes, idle connections are
//! closed at once, and those in use once their call is answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, select_all};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::login::{Login, Logins};
use super::rows::Rows;
use super::session::{Fault, Query, Session};
use crate::lifecycle::Shutdown;
use crate::ports::SecretReader;
use crate::services::settings::database::{Bounds, DatabaseSettings};

pub struct Pool {
    settings: DatabaseSettings,
    logins: Logins,
    secrets: Arc<dyn SecretReader>,
    room: Arc<Semaphore>,
    idle: Mutex<Vec<Link>>,
    /// The keeper has something to look at.
    changed: Notify,
    /// Not more than there are permits: each keeps its own.
    abandoned: mpsc::UnboundedSender<Abandoned>,
    received: Mutex<Option<mpsc::UnboundedReceiver<Abandoned>>>,
    retired: watch::Sender<bool>,
}

/// A connection, and what it was made with.
struct Link {
    session: Session,
    login: Arc<Login>,
    made: Instant,
}

/// A link that was given up, and its place.
type Abandoned = (Link, Option<OwnedSemaphorePermit>);

/// A connection in use, ready for one statement. Dropped before `give_back` it is given up.
pub struct Lease {
    pool: Arc<Pool>,
    link: Option<Link>,
    place: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub fn new(settings: DatabaseSettings, logins: Logins, secrets: Arc<dyn SecretReader>) -> Self {
        let (abandoned, received) = mpsc::unbounded_channel();
        Self {
            room: Arc::new(Semaphore::new(settings.pool.max_connections)),
            settings,
            logins,
            secrets,
            idle: Mutex::default(),
            changed: Notify::new(),
            abandoned,
            received: Mutex::new(Some(received)),
            retired: watch::Sender::new(false),
        }
    }

    /// A connection that works: one that is idle, else a new one.
    pub async fn lease(self: &Arc<Self>, bounds: &Bounds) -> Result<Lease, Fault> {
        let wait = self.settings.pool.wait;
        let place = match tokio::time::timeout(wait, self.room.clone().acquire_owned()).await {
            Ok(Ok(place)) => place,
            // The semaphore is never closed.
            Ok(Err(_)) => return Err(Fault::Busy("the database is not configured any more".to_owned())),
            Err(_) => {
                let count = self.settings.pool.max_connections;
                return Err(Fault::Busy(format!("all {count} connections to the database were in use for {wait:?}")));
            }
        };
        let mut lease = Lease { pool: self.clone(), link: None, place: Some(place) };
        while let Some(link) = self.take_idle() {
            // Given up in between it goes to the keeper as well.
            let link = lease.link.insert(link);
            if link.session.begin(bounds).await.is_ok() {
                return Ok(lease);
            }
            lease.link = None;
        }
        let link = lease.link.insert(self.connect().await?);
        link.session.begin(bounds).await?;
        Ok(lease)
    }

    /// The newest of the idle ones that can be used.
    fn take_idle(&self) -> Option<Link> {
        let mut idle = self.idle();
        while let Some(link) = idle.pop() {
            if self.is_good(&link) {
                return Some(link);
            }
        }
        None
    }

    fn is_good(&self, link: &Link) -> bool {
        link.made.elapsed() < self.settings.pool.connection_lifetime && self.logins.is_current(&link.login)
    }

    /// A login that is refused is fetched anew, once.
    async fn connect(&self) -> Result<Link, Fault> {
        let login = self.logins.current()?;
        let refused = match self.open(&login).await {
            Err(Fault::Login(words)) => Fault::Login(words),
            opened => return opened,
        };
        self.logins.refresh(&login).await;
        let fresh = self.logins.current()?;
        if Arc::ptr_eq(&fresh, &login) { Err(refused) } else { self.open(&fresh).await }
    }

    async fn open(&self, login: &Arc<Login>) -> Result<Link, Fault> {
        let session = Session::open(&self.settings, login).await?;
        Ok(Link { session, login: login.clone(), made: Instant::now() })
    }

    /// Nothing new is asked of it: what is idle is closed, and the rest once it is given back.
    pub fn retire(&self) {
        self.retired.send_replace(true);
    }

    fn put_back(&self, link: Link) {
        let is_wanted = !*self.retired.borrow() && self.is_good(&link);
        let mut idle = self.idle();
        if is_wanted && idle.len() < self.settings.pool.idle_connections {
            idle.push(link);
        } else {
            drop(idle);
            // The keeper takes leave of it; where there is none any more, it ends as it is.
            let _ = self.abandoned.send((link, None));
        }
        self.changed.notify_one();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what calls do not wait for, until it is retired and nobody uses it any more, or the process stops.
    pub async fn keep(self: Arc<Self>, mut shutdown: Shutdown) {
        let taken = self.received.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut received) = taken else { return };
        let mut ending = JoinSet::new();
        let mut rotations: Vec<watch::Receiver<u64>> =
            self.logins.items().filter_map(|item| self.secrets.subscribe(item)).collect();
        let mut retired = self.retired.subscribe();
        let all = u32::try_from(self.settings.pool.max_connections).unwrap_or(u32::MAX);
        loop {
            self.logins.forget_old();
            for link in self.outdated() {
                ending.spawn(link.session.close());
            }
            let is_over = *retired.borrow_and_update();
            let oldest = self.idle().iter().map(|link| link.made).min();
            let next = oldest.and_then(|made| made.checked_add(self.settings.pool.connection_lifetime));
            tokio::select! {
                () = shutdown.requested() => break,
                () = self.changed.notified() => {}
                () = any_changed(&mut rotations) => {}
                Some((link, place)) = received.recv() => {
                    let pool = self.clone();
                    ending.spawn(async move { pool.end(link, place).await });
                }
                Some(_) = ending.join_next() => {}
                () = async { sleep_until(next.unwrap_or_else(Instant::now).into()).await }, if next.is_some() => {}
                _ = self.room.acquire_many(all), if is_over => break,
                Ok(()) = retired.changed(), if !is_over => {}
            }
        }
        self.retire();
        let rest = std::mem::take(&mut *self.idle());
        rest.into_iter().for_each(|link| drop(ending.spawn(link.session.close())));
        while let Ok((link, place)) = received.try_recv() {
            let pool = self.clone();
            ending.spawn(async move { pool.end(link, place).await });
        }
        while ending.join_next().await.is_some() {}
    }

    /// Stops what was given up while it still held its place; takes leave of what was given back.
    async fn end(&self, link: Link, place: Option<OwnedSemaphorePermit>) {
        let ended = async {
            match &place {
                Some(_) => link.session.stop(&self.settings, &link.login).await,
                None => link.session.close().await,
            }
        };
        // A server that does not answer is not waited for.
        let _ = tokio::time::timeout(self.settings.pool.connect, ended).await;
        drop(place);
    }

    fn outdated(&self) -> Vec<Link> {
        let is_over = *self.retired.borrow();
        let mut idle = self.idle();
        let (old, good) = std::mem::take(&mut *idle).into_iter().partition(|link| is_over || !self.is_good(link));
        *idle = good;
        old
    }
}

/// Waits for a change of any; for ever when there is nothing that changes.
async fn any_changed(watched: &mut [watch::Receiver<u64>]) {
    let waiting: Vec<BoxFuture<'_, bool>> =
        watched.iter_mut().map(|watched| async { watched.changed().await.is_ok() }.boxed()).collect();
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    let (has_changed, ..) = select_all(waiting).await;
    if !has_changed {
        // The item is gone, and with it soon the service.
        std::future::pending::<()>().await;
    }
}

impl Lease {
    pub async fn run(&mut self, query: &Query<'_>) -> Result<Rows, Fault> {
        match &mut self.link {
            Some(link) => link.session.run(query).await,
            // There is one from `lease` to `give_back`.
            None => Err(Fault::Broken("the connection was given back".to_owned())),
        }
    }

    pub fn versions(&self) -> Arc<[String]> {
        self.link.as_ref().map(|link| link.login.list()).unwrap_or_default()
    }

    /// Makes the connection as new, for whoever comes next. One that broke is not kept.
    pub async fn give_back(mut self, is_broken: bool) {
        let Some(link) = &mut self.link else { return };
        if !is_broken && matches!(link.session.end().await, Ok(true)) {
            let link = self.link.take();
            link.into_iter().for_each(|link| self.pool.put_back(link));
        } else if is_broken {
            self.link = None;
        }
        // One that is still sending what nobody wants is left to the keeper.
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            // Where there is no keeper any more, the connection ends as it is.
            let _ = self.pool.abandoned.send((link, self.place.take()));
        }
    }
}
