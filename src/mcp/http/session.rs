//! One session of HTTP clients: the near end of a pipe in memory, behind which a `Session` or a `Router` works as for a client of JSON lines.
//!
//! It puts each line that comes out of the pipe on the stream where it belongs. An answer and progress: that of their request. What belongs
//! to no request that can be told: in the legacy era the stream that GET has opened, or will open within the bounds of the replay, or, for what a server says or asks while it works, that
//! of the newest request; in the modern era that of the newest request if it is about its work, and else nobody.
//!
//! Invariants: every request that was taken is answered once, also when the session ends, but for one that the client cancels, whose stream ends; a client that does not read its stream for
//! `STALLED` loses it, so that it holds up nobody else for longer; in the modern era a stream that is closed cancels its request, in the
//! legacy one it does not.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::ids::Original;
use super::replay::Replay;
use super::stream::{self, EventId, Item, StreamReceiver, StreamSender};
use super::{Front, Key, Owner, Start};
use crate::mcp::answer;
use crate::mcp::call::Peer;
use crate::mcp::lines::{Lines, Progress};
use crate::mcp::message::{Answer, Field, IdKey, Message, Notification, parse};
use crate::mcp::protocol::{CANCELLED, INITIALIZE, LISTEN, PROGRESS, code};
use crate::mcp::registry::{Shared, Target};
use crate::mcp::router::Router;
use crate::mcp::session::Session;
use crate::mcp::sessions::surroundings;
use crate::mcp::upstream::backoff::random;

/// What requests hold of a session.
pub struct HttpSession {
    pub key: Key,
    pub owner: Owner,
    target: Target,
    input: mpsc::Sender<Input>,
    wake: Arc<Notify>,
    /// `None`: something is under way, or a stream is open.
    idle_since: Mutex<Option<Instant>>,
    ending: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Legacy,
    Modern,
}

enum Input {
    Request {
        line: Bytes,
        out: StreamSender,
    },
    /// A notification, or an answer of the client's.
    Message(Bytes),
    /// The stream for what belongs to no request, or one that goes on after an event.
    Listen {
        after: Option<EventId>,
        out: StreamSender,
    },
}

/// The session does not take anything any more.
#[derive(Debug)]
pub struct Ended;

impl HttpSession {
    pub fn id(&self) -> &str {
        match &self.key {
            Key::Legacy(id) => id,
            Key::Modern(..) => "",
        }
    }

    pub fn serves(&self, target: &Target) -> bool {
        match (&self.target, target) {
            (Target::Aggregate, Target::Aggregate) => true,
            (Target::Service(one), Target::Service(other)) => Arc::ptr_eq(one, other),
            (Target::Aggregate, Target::Service(_)) | (Target::Service(_), Target::Aggregate) => false,
        }
    }

    /// Sends a request, which `parse` has read, and gives the stream of what comes of it.
    pub async fn request(&self, line: Bytes) -> Result<StreamReceiver, Ended> {
        let (out, receiver) = stream::channel(self.wake.clone());
        self.put(Input::Request { line, out }).await?;
        Ok(receiver)
    }

    /// Sends the messages of a batch in their order, and gives the one stream of what comes of its requests, which ends with the last answer.
    /// Without a request in it, the stream ends at once.
    pub async fn batch(&self, messages: Vec<Bytes>) -> Result<StreamReceiver, Ended> {
        let (out, receiver) = stream::channel(self.wake.clone());
        for line in messages {
            let is_request = matches!(parse(&line), Ok(Message::Request(_)));
            let input = if is_request { Input::Request { line, out: out.shared() } } else { Input::Message(line) };
            self.put(input).await?;
        }
        Ok(receiver)
    }

    pub async fn message(&self, line: Bytes) -> Result<(), Ended> {
        self.put(Input::Message(line)).await
    }

    pub async fn listen(&self, after: Option<EventId>) -> Result<StreamReceiver, Ended> {
        let (out, receiver) = stream::channel(self.wake.clone());
        self.put(Input::Listen { after, out }).await?;
        Ok(receiver)
    }

    async fn put(&self, input: Input) -> Result<(), Ended> {
        self.input.send(input).await.map_err(|_| Ended)
    }

    pub fn is_open(&self) -> bool {
        !self.input.is_closed()
    }

    pub fn end(&self) {
        self.ending.notify_one();
    }

    pub fn idle_since(&self) -> Option<Instant> {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_idle(&self, since: Option<Instant>) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// A session and what runs it.
pub fn new(
    shared: &Arc<Shared>,
    front: Front,
    key: Key,
    peer: Peer,
    target: &Target,
    kind: Kind,
) -> (Arc<HttpSession>, Start) {
    let limits = shared.registry.borrow().limits.clone();
    let (input, inputs) = mpsc::channel(INPUTS);
    let wake = Arc::new(Notify::new());
    let session = Arc::new(HttpSession {
        key,
        owner: Owner::of(peer),
        target: target.clone(),
        input,
        wake: wake.clone(),
        idle_since: Mutex::new(None),
        ending: Notify::new(),
    });
    // Our own ids are longer than the client's.
    let longest = limits.max_message_bytes + LONGER;
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (reader, writer) = tokio::io::split(near);
    let pump = Pump {
        session: session.clone(),
        front,
        kind,
        inputs,
        lines: Lines::new(reader, writer, longest),
        waiting: HashMap::new(),
        general: Stream { out: None, number: 0, sent: 0, heard: 0 },
        replay: Replay::new(if kind == Kind::Legacy { limits.replay_bytes } else { 0 }),
        wake,
        idle_timeout: limits.idle_timeout,
        stalled: None,
        mark: random(),
        count: 0,
    };
    let serve = behind(shared.clone(), target.clone(), far, peer, longest);
    let start = Box::pin(async move {
        tokio::join!(pump.run(), serve);
    });
    (session, start)
}

/// What a client of JSON lines would have at the other end.
async fn behind(shared: Arc<Shared>, target: Target, far: DuplexStream, peer: Peer, longest: usize) {
    let (reader, writer) = tokio::io::split(far);
    match target {
        Target::Service(service) => {
            Session::new(surroundings(&shared, service), Lines::new(reader, writer, longest), peer).run().await;
        }
        Target::Aggregate => {
            Router::new(shared, Lines::new(Box::new(reader), Box::new(writer), longest), peer).run().await;
        }
    }
}

struct Pump {
    session: Arc<HttpSession>,
    front: Front,
    kind: Kind,
    inputs: mpsc::Receiver<Input>,
    lines: Lines<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
    /// Requests that are not answered yet, by their ids on the session.
    waiting: HashMap<IdKey, Waiting>,
    /// The stream that GET has opened.
    general: Stream,
    replay: Replay,
    /// A stream was closed or has room again.
    wake: Arc<Notify>,
    idle_timeout: Duration,
    /// Since when a stream has been congested.
    stalled: Option<Instant>,
    mark: u64,
    count: u64,
}

struct Waiting {
    stream: Stream,
    /// As the client wrote it.
    id: Box<str>,
    token: Option<IdKey>,
    original: Option<Original>,
    endless: bool,
    /// The protocol does not let `initialize` be cancelled.
    cancellable: bool,
}

struct Stream {
    out: Option<StreamSender>,
    number: u64,
    sent: u64,
    /// The latest that was sent while somebody listened.
    heard: u64,
}

impl Pump {
    async fn run(mut self) {
        let session = self.session.clone();
        loop {
            let congested = self.is_congested();
            self.stalled = if congested { self.stalled.or_else(|| Some(Instant::now())) } else { None };
            let deadline = self.mark_idle();
            tokio::select! {
                input = self.inputs.recv(), if !self.lines.congested() => match input {
                    Some(input) => self.take(input),
                    // The session holds a sender itself.
                    None => break,
                },
                progress = self.lines.progress(!congested) => if !self.on_lines(progress) { break },
                () = self.wake.notified() => self.look_at_streams(),
                () = sleep_until(deadline.unwrap_or_else(far_away)), if deadline.is_some() => {
                    if !self.cut_stalled() { break }
                }
                () = session.ending.notified() => break,
            }
        }
        self.finish();
    }

    /// Notes whether the session is idle; when something has to happen.
    fn mark_idle(&self) -> Option<Instant> {
        let listens = self.general.out.as_ref().is_some_and(|out| !out.is_closed());
        if listens || !self.waiting.is_empty() {
            self.session.set_idle(None);
            return self.stalled.map(|since| since + STALLED);
        }
        let since = self.session.idle_since().unwrap_or_else(Instant::now);
        self.session.set_idle(Some(since));
        Some(since + self.idle_timeout)
    }

    fn take(&mut self, input: Input) {
        // Whatever is asked, it is idle no more, or from now on anew.
        self.session.set_idle(None);
        match input {
            Input::Request { line, out } => self.request(&line, out),
            Input::Message(line) => self.message(&line),
            Input::Listen { after, out } => self.listen(after, out),
        }
    }

    fn request(&mut self, line: &Bytes, out: StreamSender) {
        self.count += 1;
        out.set_number(self.count);
        let stream = Stream { out: Some(out), number: self.count, sent: 0, heard: 0 };
        // Whoever sent it has read it.
        let Ok(Message::Request(request)) = parse(line) else { return };
        let (endless, cancellable) = (request.method == LISTEN, request.method != INITIALIZE);
        let id = request.id.raw().into();
        if self.kind == Kind::Modern {
            let text = std::str::from_utf8(line).unwrap_or_default();
            let Some((original, line, key)) = Original::replace(text, &request, self.mark, self.count) else { return };
            let token = Some(key.clone());
            self.waiting.insert(key, Waiting { stream, id, token, original: Some(original), endless, cancellable });
            return self.lines.push(line.as_bytes());
        }
        let mut waiting = Waiting {
            stream,
            id,
            token: request.params.meta.as_ref().and_then(|meta| meta.progress_token).and_then(IdKey::of),
            original: None,
            endless,
            cancellable,
        };
        if self.waiting.contains_key(&request.key) {
            let message = "the id belongs to a request that is not answered yet";
            let line = answer::error(Some(request.id), code::INVALID_REQUEST, message, None);
            return waiting.stream.send(line.into(), true, &mut self.replay);
        }
        self.waiting.insert(request.key, waiting);
        self.lines.push(line);
    }

    /// A notification, or an answer of the client's. What it cancels will not be answered behind the pipe either.
    fn message(&mut self, line: &Bytes) {
        self.lines.push(line);
        let Ok(Message::Notification(notification)) = parse(line) else { return };
        if self.kind == Kind::Modern || notification.method != CANCELLED {
            return;
        }
        let cancelled = notification.cancelled().filter(|key| self.waiting.get(key).is_some_and(|of| of.cancellable));
        if let Some(out) = cancelled.and_then(|key| self.waiting.remove(&key)?.stream.out) {
            out.cancel();
        }
    }

    fn listen(&mut self, after: Option<EventId>, out: StreamSender) {
        // A server may have spoken before the client came to listen.
        let last = after.unwrap_or(EventId { stream: 0, number: self.general.heard });
        for (id, line) in self.replay.after(last) {
            // An answer is the last of its stream.
            let ends = last.stream != 0 && matches!(parse(&line), Ok(Message::Answer(_)));
            out.send(Item { line, id, last: ends });
        }
        if last.stream == 0 {
            self.general.heard = self.general.sent;
            self.general.out = Some(out);
        } else if let Some(waiting) = self.waiting.values_mut().find(|waiting| waiting.stream.number == last.stream) {
            waiting.stream.out = Some(out);
        }
    }

    /// `false`: the other end of the pipe is gone.
    fn on_lines(&mut self, progress: io::Result<Progress>) -> bool {
        while let Some(Ok(line)) = self.lines.next_line() {
            self.on_line(line);
        }
        matches!(progress, Ok(Progress::Read | Progress::Room))
    }

    fn on_line(&mut self, line: Bytes) {
        match parse(&line) {
            Ok(Message::Answer(answer)) => self.on_answer(&answer, &line),
            Ok(Message::Notification(notification)) => self.on_notification(&notification, &line),
            Ok(Message::Request(request)) if self.kind == Kind::Modern => {
                let message = "a client of this era is asked nothing";
                self.lines.push(&answer::error(Some(request.id), code::METHOD_NOT_FOUND, message, None));
            }
            Ok(Message::Request(_)) => self.aside(line.clone()),
            Err(refusal) => tracing::warn!(%refusal, "a line of an HTTP client's session is no message"),
        }
    }

    fn on_answer(&mut self, answer: &Answer<'_>, line: &Bytes) {
        let Some(mut waiting) = answer.key.as_ref().and_then(|key| self.waiting.remove(key)) else { return };
        let text = std::str::from_utf8(line).unwrap_or_default();
        let back = waiting.original.as_ref().and_then(|original| original.answer(text, answer, waiting.endless));
        waiting.stream.send(back.map_or_else(|| line.clone(), Bytes::from), true, &mut self.replay);
    }

    fn on_notification(&mut self, notification: &Notification<'_>, line: &Bytes) {
        let params = &notification.params;
        let subscription = params.meta.as_ref().and_then(|meta| meta.subscription).and_then(IdKey::of);
        let token = params.progress_token.filter(|_| notification.method == PROGRESS).and_then(IdKey::of);
        let named = |waiting: &&mut Waiting| token.is_some() && waiting.token == token;
        let found = match &subscription {
            Some(key) if self.kind == Kind::Modern => self.waiting.get_mut(key),
            _ => self.waiting.values_mut().find(named),
        };
        if let Some(waiting) = found {
            let text = std::str::from_utf8(line).unwrap_or_default();
            let back = waiting.original.as_ref().and_then(|original| original.notification(text, notification));
            return waiting.stream.send(back.map_or_else(|| line.clone(), Bytes::from), false, &mut self.replay);
        }
        match (self.kind, notification.method.as_ref()) {
            (_, MESSAGE) => self.aside(line.clone()),
            (Kind::Legacy, _) => self.general.send(line.clone(), false, &mut self.replay),
            // Nobody has asked for it.
            (Kind::Modern, _) => {}
        }
    }

    /// What a server says or asks while it works, for which it names no request.
    fn aside(&mut self, line: Bytes) {
        let at_work = self.waiting.values_mut().filter(|waiting| !waiting.endless && waiting.stream.is_open());
        match at_work.max_by_key(|waiting| waiting.stream.number) {
            Some(waiting) => waiting.stream.send(line, false, &mut self.replay),
            None if self.kind == Kind::Legacy => self.general.send(line, false, &mut self.replay),
            None => {}
        }
    }

    fn is_congested(&self) -> bool {
        self.streams().any(|stream| stream.out.as_ref().is_some_and(StreamSender::is_congested))
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.waiting.values().map(|waiting| &waiting.stream).chain([&self.general])
    }

    /// Who is gone in the modern era does not want its answer.
    fn look_at_streams(&mut self) {
        if self.kind != Kind::Modern {
            return;
        }
        let Self { waiting, lines, .. } = self;
        waiting.retain(|key, waiting| {
            let open = waiting.stream.is_open();
            if !open {
                lines.push(&answer::cancelled(key, "the client closed its stream"));
            }
            open
        });
    }

    /// Takes the streams away from clients that do not read. `false`: there were none, so that the session was idle for too long.
    fn cut_stalled(&mut self) -> bool {
        let Some(since) = self.stalled else { return false };
        if since.elapsed() >= STALLED {
            tracing::warn!("an HTTP client that does not read has lost its stream");
            let waiting = self.waiting.values_mut().map(|waiting| &mut waiting.stream);
            for stream in waiting.chain([&mut self.general]) {
                stream.out = stream.out.take().filter(|out| !out.is_congested());
            }
            self.look_at_streams();
        }
        true
    }

    fn finish(mut self) {
        self.inputs.close();
        self.front.forget(&self.session);
        let ended = |id: &str| -> Bytes {
            answer::error(Some(Field(id)), code::UPSTREAM_FAILED, "the session has ended", None).into()
        };
        for (_, mut waiting) in std::mem::take(&mut self.waiting) {
            waiting.stream.send(ended(&waiting.id), true, &mut self.replay);
        }
        while let Ok(input) = self.inputs.try_recv() {
            if let Input::Request { line, out } = input
                && let Ok(Message::Request(request)) = parse(&line)
            {
                let id = EventId { stream: 0, number: 0 };
                out.send(Item { line: ended(request.id.raw()), id, last: true });
            }
        }
    }
}

impl Stream {
    fn send(&mut self, line: Bytes, last: bool, replay: &mut Replay) {
        self.sent += 1;
        let id = EventId { stream: self.number, number: self.sent };
        // An answer that goes out as one document has no id to come back with.
        if !last || self.out.as_ref().is_some_and(StreamSender::is_committed) || self.sent > 1 {
            replay.push(id, line.clone());
        }
        if let Some(out) = self.out.as_ref().filter(|out| !out.is_closed()) {
            self.heard = self.sent;
            out.send(Item { line, id, last });
        }
    }

    fn is_open(&self) -> bool {
        self.out.as_ref().is_some_and(|out| !out.is_closed())
    }
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

const MESSAGE: &str = "notifications/message";
const INPUTS: usize = 32;
const PIPE_BYTES: usize = 64 * 1024;
const LONGER: usize = 256;
const STALLED: Duration = Duration::from_secs(10);
