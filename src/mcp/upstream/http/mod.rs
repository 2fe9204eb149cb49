//! A streamable HTTP upstream: one HTTP session for one client session.
//!
//! Requests run side by side, each in a task of its own within this upstream's `JoinSet`; what changes the session (`initialize`,
//! notifications) goes alone, in order, as over a pipe. Credentials are read at each request. A server that has forgotten the session
//! (404) is told it anew, and what is safe to repeat is repeated once. An opening that fails, also because the server forgets the new
//! session before it has been told all, is tried again for the next message, after a pause that grows. What a server asks by itself goes to
//! the session's long stream, and is lost where there is none: after `notifications/initialized`, and after a rotation, nothing is sent before
//! the server has answered to the wish for that stream, for `STREAM_PATIENCE` at most.
//!
//! Invariants: `running` has exactly the exchanges whose end has not been reported; nothing but the opening is sent while `opening` is
//! not empty; what nobody waits for ends within the service's `timeout`; header values with secrets are marked sensitive and live no longer than their exchange.

mod refused;
mod reports;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep};

use self::reports::SeenEvents;
use super::backoff::Backoff;
use super::exchange::{Exchange, Report, SESSION_ID, Trouble};
use super::headers::{self, Authorized};
use super::outgoing::{Outgoing, Role};
use super::replay::Replay;
use super::unlisted::ToolCall;
use super::{Event, Inheritance, Surroundings};
use crate::mcp::credentials::CredentialError;
use crate::mcp::message::IdKey;
use crate::mcp::settings::{HttpSettings, ServiceSettings, UpstreamSettings};

pub struct HttpUpstream {
    around: Surroundings,
    settings: Arc<ServiceSettings>,
    tasks: JoinSet<()>,
    running: HashMap<u64, Running>,
    serial: u64,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    begun: bool,
    /// The exchange that goes alone.
    alone: Option<u64>,
    queue: VecDeque<Outgoing>,
    /// What waits for no other message, only for one of its kind to end when too many are under way.
    asides: VecDeque<Outgoing>,
    asides_running: usize,
    /// Of `queue` and `asides`.
    queued_bytes: usize,
    inbox: VecDeque<Bytes>,
    lost: VecDeque<Event>,
    session: Option<HeaderValue>,
    version: Option<HeaderValue>,
    /// Counts the sessions, so that many who meet a 404 begin one new session, and a late event of an old one is told from a new one's.
    epoch: u32,
    replay: Replay,
    /// What tells a new session the old one, message by message.
    opening: VecDeque<Outgoing>,
    /// The session is to be opened before the next message goes.
    opening_due: bool,
    opening_refused: bool,
    /// When the session was last opened to its end.
    opened: Option<Instant>,
    backoff: Backoff,
    /// Until it is over, an opening that has failed is not tried again.
    pause: Option<Pin<Box<Sleep>>>,
    stream: Option<(u64, AbortHandle)>,
    /// The server has yet to answer to the wish for the stream; until this is over nothing else is sent.
    stream_awaited: Option<Pin<Box<Sleep>>>,
    /// The server did not accept the credentials of the long stream.
    stream_refused: bool,
    last_event: Option<String>,
    seen: SeenEvents,
}

struct Running {
    message: Outgoing,
    task: AbortHandle,
    versions: Arc<[String]>,
    epoch: u32,
    /// Part of an opening: the client has had the answer already.
    swallow: bool,
    /// Only the end of the stream is awaited.
    answered: bool,
    /// The server has refused the credentials, and fresh ones are awaited.
    refused: Option<Trouble>,
    /// It is sent a second time because of that.
    reauthorized: bool,
}

impl Running {
    fn is_awaited(&self) -> bool {
        self.message.key.is_some() && !self.answered && self.message.role != Role::Listen
    }
}

impl HttpUpstream {
    pub fn new(around: Surroundings, settings: Arc<ServiceSettings>) -> Self {
        Self {
            around,
            settings,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            serial: 0,
            reports: mpsc::channel(REPORTS),
            begun: false,
            alone: None,
            queue: VecDeque::new(),
            asides: VecDeque::new(),
            asides_running: 0,
            queued_bytes: 0,
            inbox: VecDeque::new(),
            lost: VecDeque::new(),
            session: None,
            version: None,
            epoch: 0,
            replay: Replay::default(),
            opening: VecDeque::new(),
            opening_due: false,
            opening_refused: false,
            opened: None,
            backoff: Backoff::default(),
            pause: None,
            stream: None,
            stream_awaited: None,
            stream_refused: false,
            last_event: None,
            seen: SeenEvents::default(),
        }
    }

    pub fn begin(&mut self, inheritance: Inheritance) {
        self.replay = inheritance.replay;
        for message in inheritance.again.into_iter().rev() {
            self.queued_bytes += message.bytes.len();
            self.queue.push_front(message);
        }
        self.begun = true;
        self.reopen();
    }

    pub fn send(&mut self, message: Outgoing) {
        self.queued_bytes += message.bytes.len();
        match message.role {
            Role::Aside => self.asides.push_back(message),
            _ => self.queue.push_back(message),
        }
        self.advance();
    }

    pub async fn event(&mut self, read: bool) -> Event {
        loop {
            if let Some(event) = self.lost.pop_front() {
                return event;
            }
            if !self.inbox.is_empty() {
                return Event::Lines;
            }
            if !read {
                std::future::pending::<()>().await;
            }
            // The sender is kept in `self`, so there is always something to wait for.
            tokio::select! {
                Some(report) = self.reports.1.recv() => self.apply(report),
                () = elapsed(&mut self.pause) => {
                    self.pause = None;
                    self.advance();
                }
                () = elapsed(&mut self.stream_awaited) => {
                    self.around.service.answers_streams(true);
                    self.stream_stands();
                }
            }
        }
    }

    pub fn next_line(&mut self) -> Option<Bytes> {
        self.inbox.pop_front()
    }

    pub fn answered(&mut self, key: &IdKey, result: Option<&str>) {
        if let Some(agreed) = self.replay.answered(key, result) {
            self.version = HeaderValue::from_str(&agreed.version).ok();
            self.opened = Some(Instant::now());
        }
        if let Some(running) = self.running.values_mut().find(|running| running.message.key.as_ref() == Some(key)) {
            running.answered = true;
        }
        self.around.service.works();
    }

    pub fn cancel(&mut self, key: &IdKey, notice: Option<Bytes>) {
        if let Some(at) = self.queue.iter().position(|message| message.key.as_ref() == Some(key)) {
            let message = self.queue.remove(at);
            self.queued_bytes -= message.map_or(0, |message| message.bytes.len());
            return;
        }
        let found = self.running.iter().find(|(_, running)| running.message.key.as_ref() == Some(key));
        let Some((&serial, running)) = found else { return };
        let modern = running.message.hints.as_ref().is_some_and(|hints| hints.modern.is_some());
        if !modern && running.message.role != Role::Initialize {
            // Legacy: closing the stream is no cancellation, the notification is. Modern: the other way round.
            let bytes = notice.unwrap_or_else(|| crate::mcp::answer::cancelled(key, "no answer in time").into());
            self.queued_bytes += bytes.len();
            self.asides.push_back(Outgoing::answer(bytes));
        }
        self.abort(serial);
        self.advance();
    }

    /// Credentials have changed: the long stream, whose connection was opened with the old ones, is opened anew.
    pub fn rotated(&mut self) {
        if self.stream.is_some() || std::mem::take(&mut self.stream_refused) {
            self.open_stream_first();
        }
        let listening: Vec<u64> = self.serials(|running| running.message.role == Role::Listen);
        for serial in listening {
            if let Some(running) = self.abort(serial) {
                self.dispatch(running.message, false);
            }
        }
        // An opening may have failed for the old ones.
        self.pause = None;
        self.advance();
    }

    pub fn is_drained(&self) -> bool {
        !self.running.values().any(Running::is_awaited)
    }

    pub fn has_room(&self) -> bool {
        self.queue.len() + self.asides.len() < self.max_asides() * 2 && self.queued_bytes < QUEUED_BYTES
    }

    pub fn versions_for(&self, key: &IdKey) -> Arc<[String]> {
        let running = self.running.values().find(|running| running.message.key.as_ref() == Some(key));
        running.map(|running| running.versions.clone()).unwrap_or_default()
    }

    pub fn bequeath(&mut self) -> Inheritance {
        let listening: Vec<u64> = self.serials(|running| running.message.role == Role::Listen);
        let mut again: Vec<Outgoing> = Vec::new();
        for serial in listening {
            again.extend(self.abort(serial).map(|running| running.message));
        }
        again.extend(self.asides.drain(..).chain(self.queue.drain(..)));
        self.queued_bytes = 0;
        Inheritance { again, replay: std::mem::take(&mut self.replay) }
    }

    /// Ends the exchanges, and a legacy session by DELETE.
    pub async fn close(mut self) {
        self.tasks.abort_all();
        let Some(session) = self.session.take() else { return };
        let Some(clients) = self.around.service.http() else { return };
        let Some(Ok(Authorized { headers, url, .. })) = self.credentials() else { return };
        let request = clients.current().delete(url).headers(headers).header(SESSION_ID, session);
        // A server may refuse this (405) or be gone; it will forget the session by itself.
        let _ = tokio::time::timeout(DELETE_PATIENCE, request.send()).await;
    }

    /// Tells a new session what the old one had been told.
    fn reopen(&mut self) {
        self.opening.clear();
        self.opening_due = false;
        if let Some(initialize) = self.replay.initialize() {
            self.opening.push_back(initialize.clone());
            self.opening.extend(self.replay.rest());
        }
        self.advance();
    }

    /// Sends what may be sent now.
    fn advance(&mut self) {
        self.advance_asides();
        while self.begun && self.alone.is_none() && self.stream_awaited.is_none() {
            if let Some(message) = self.opening.pop_front() {
                self.alone = self.dispatch(message, true);
                continue;
            }
            if self.opening_due {
                if self.pause.is_none() && !(self.queue.is_empty() && self.asides.is_empty()) {
                    self.reopen();
                }
                return;
            }
            let Some(message) = self.queue.pop_front() else { return };
            self.queued_bytes -= message.bytes.len();
            let goes_alone = message.key.is_none() || message.role == Role::Initialize;
            let serial = self.dispatch(message, false);
            self.alone = serial.filter(|_| goes_alone);
        }
    }

    /// Sends what waits for no other, as many at a time as there may be requests.
    fn advance_asides(&mut self) {
        while self.begun && !self.opening_due && self.opening.is_empty() && self.asides_running < self.max_asides() {
            let Some(message) = self.asides.pop_front() else { return };
            self.queued_bytes -= message.bytes.len();
            self.dispatch(message, false);
        }
    }

    fn max_asides(&self) -> usize {
        self.around.limits.max_in_flight.max(1)
    }

    /// Starts an exchange. `None` if it could not be started, which `event` will tell.
    fn dispatch(&mut self, message: Outgoing, swallow: bool) -> Option<u64> {
        let Authorized { mut headers, url, versions } = match self.credentials()? {
            Ok(found) => found,
            Err(error) => {
                let trouble = Trouble::new("credential_unavailable", error);
                if swallow {
                    self.opening_failed(trouble);
                } else {
                    self.lose(message.key, Arc::default(), trouble);
                }
                return None;
            }
        };
        if message.role == Role::Initialize {
            self.forget_session();
        }
        headers::add_protocol(&mut headers, message.hints.as_deref(), self.session.as_ref(), self.version.as_ref());
        if !swallow {
            self.replay.passed(&message);
        }
        let mut exchange = self.exchange(url, headers, message.key.clone())?;
        // The ledger of the client's session has the time of what the client waits for, and of nothing else.
        exchange.call = ToolCall::of(&self.around.service, message.hints.as_deref());
        exchange.patience = (swallow || message.key.is_none()).then_some(self.settings.timeout);
        let serial = exchange.serial;
        self.asides_running += usize::from(message.role == Role::Aside);
        let task = self.tasks.spawn(exchange.post(message.bytes.clone()));
        let running = Running {
            message,
            task,
            versions,
            epoch: self.epoch,
            swallow,
            answered: false,
            refused: None,
            reauthorized: false,
        };
        self.running.insert(serial, running);
        Some(serial)
    }

    /// What belongs to one session of the server, and means nothing in the next.
    fn forget_session(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        (self.session, self.version, self.last_event) = (None, None, None);
        self.seen = SeenEvents::default();
        if let Some((_, stream)) = self.stream.take() {
            stream.abort();
        }
        self.stream_awaited = None;
    }

    /// Opens the stream, which has to stand before the server is asked anything more.
    fn open_stream_first(&mut self) {
        self.open_stream();
        if self.stream.is_some() && !self.around.service.is_late_with_streams() {
            self.stream_awaited = Some(Box::pin(sleep(STREAM_PATIENCE)));
        }
    }

    /// Nothing waits for the stream any more: it is there, or will not be.
    fn stream_stands(&mut self) {
        self.stream_awaited = None;
        self.advance();
    }

    /// Opens the stream of a legacy session on which the server sends by itself, in place of the one there is.
    fn open_stream(&mut self) {
        if let Some((_, stream)) = self.stream.take() {
            stream.abort();
        }
        let Some(Ok(Authorized { mut headers, url, .. })) = self.credentials() else { return };
        headers::add_protocol(&mut headers, None, self.session.as_ref(), self.version.as_ref());
        let Some(exchange) = self.exchange(url, headers, None) else { return };
        let serial = exchange.serial;
        let task = self.tasks.spawn(exchange.listen(self.last_event.clone()));
        self.stream = Some((serial, task));
    }

    fn exchange(&mut self, url: Url, headers: HeaderMap, key: Option<IdKey>) -> Option<Exchange> {
        self.serial += 1;
        let clients = self.around.service.http()?;
        Some(Exchange {
            serial: self.serial,
            client: (*clients.current()).clone(),
            url,
            headers,
            key,
            call: None,
            patience: None,
            limit: self.around.limits.max_message_bytes,
            reports: self.reports.0.clone(),
        })
    }

    /// `None`: the settings have just become those of another kind of service.
    fn credentials(&self) -> Option<Result<Authorized, CredentialError>> {
        let clients = self.around.service.http()?;
        Some(headers::credentials(self.http(), clients.url(), &*self.around.secrets))
    }

    fn serials(&self, wanted: impl Fn(&Running) -> bool) -> Vec<u64> {
        self.running.iter().filter(|(_, running)| wanted(running)).map(|(serial, _)| *serial).collect()
    }

    fn abort(&mut self, serial: u64) -> Option<Running> {
        let running = self.remove(serial)?;
        running.task.abort();
        Some(running)
    }

    /// The exchange has ended.
    fn remove(&mut self, serial: u64) -> Option<Running> {
        let running = self.running.remove(&serial)?;
        self.asides_running -= usize::from(running.message.role == Role::Aside);
        if self.alone == Some(serial) {
            self.alone = None;
        }
        Some(running)
    }

    fn http(&self) -> &HttpSettings {
        match &self.settings.upstream {
            UpstreamSettings::Http(http) => http,
            // `Upstream::new` makes this kind for HTTP settings only.
            UpstreamSettings::Stdio(_) | UpstreamSettings::Local(_) => {
                unreachable!("an HTTP upstream with other settings")
            }
        }
    }
}

/// Completes at the end of a pause; never, if there is none.
async fn elapsed(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.as_mut().await,
        None => std::future::pending().await,
    }
}

const REPORTS: usize = 64;
const QUEUED_BYTES: usize = 1024 * 1024;
/// How long the next message waits for the server's answer to the wish for the long stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);
const DELETE_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
