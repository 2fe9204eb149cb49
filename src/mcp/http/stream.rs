//! The way of messages from a session to one HTTP answer: what a request is told, in order, up to its last message.
//!
//! The queue is bounded by whoever sends: no more is read from the session's pipe while a stream is `congested`. Both taking from the
//! queue and letting go of it ring `wake`, so that the session looks again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

/// One message on its way out.
#[derive(Debug)]
pub struct Item {
    pub line: Bytes,
    pub id: EventId,
    /// The answer: nothing comes after it.
    pub last: bool,
}

/// Where a message stands: the how manieth of which stream of its session. As it is in `id:` and `Last-Event-ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    pub stream: u64,
    pub number: u64,
}

pub struct StreamSender {
    items: mpsc::UnboundedSender<Item>,
    state: Arc<State>,
}

pub struct StreamReceiver {
    items: mpsc::UnboundedReceiver<Item>,
    state: Arc<State>,
}

struct State {
    queued: AtomicUsize,
    /// Of the stream in its session, once the session has taken it.
    number: AtomicU64,
    /// The answer has begun as a stream of events.
    committed: AtomicBool,
    /// The client wants no answer any more: the stream ends without one.
    cancelled: AtomicBool,
    wake: Arc<Notify>,
}

pub fn channel(wake: Arc<Notify>) -> (StreamSender, StreamReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let state = Arc::new(State {
        queued: AtomicUsize::new(0),
        number: AtomicU64::new(0),
        committed: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        wake,
    });
    (StreamSender { items: sender, state: state.clone() }, StreamReceiver { items: receiver, state })
}

impl StreamSender {
    pub fn send(&self, item: Item) {
        self.state.queued.fetch_add(item.line.len(), Ordering::Relaxed);
        // Whoever has gone is noticed by `is_closed`.
        let _ = self.items.send(item);
    }

    /// For another request that is answered on the same stream.
    pub fn shared(&self) -> Self {
        Self { items: self.items.clone(), state: self.state.clone() }
    }

    pub fn set_number(&self, number: u64) {
        self.state.number.store(number, Ordering::Relaxed);
    }

    /// Ends the stream without an answer.
    pub fn cancel(self) {
        self.state.cancelled.store(true, Ordering::Relaxed);
    }

    /// The other end is gone.
    pub fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    pub fn is_congested(&self) -> bool {
        !self.is_closed() && self.state.queued.load(Ordering::Relaxed) >= CONGESTED
    }

    pub fn is_committed(&self) -> bool {
        self.state.committed.load(Ordering::Relaxed)
    }
}

impl StreamReceiver {
    pub async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let item = std::task::ready!(self.items.poll_recv(cx));
        if let Some(item) = &item {
            let before = self.state.queued.fetch_sub(item.line.len(), Ordering::Relaxed);
            if before >= CONGESTED && before - item.line.len() < CONGESTED {
                self.state.wake.notify_one();
            }
        }
        Poll::Ready(item)
    }

    pub fn number(&self) -> u64 {
        self.state.number.load(Ordering::Relaxed)
    }

    /// It has ended without an answer because the client wants none.
    pub fn is_cancelled(&self) -> bool {
        self.state.cancelled.load(Ordering::Relaxed)
    }

    /// From now on it is a stream of events.
    pub fn commit(&self) {
        self.state.committed.store(true, Ordering::Relaxed);
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        self.items.close();
        self.state.wake.notify_one();
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.stream, self.number)
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (stream, number) = text.split_once('-').ok_or(())?;
        let read = |part| u64::from_str_radix(part, 16).map_err(drop);
        Ok(Self { stream: read(stream)?, number: read(number)? })
    }
}

/// More than this is waiting: the client does not keep up.
const CONGESTED: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_congested_until_it_is_read_and_says_when_it_is_dropped() {
        let wake = Arc::new(Notify::new());
        let (sender, mut receiver) = channel(wake.clone());
        let id = EventId { stream: 1, number: 1 };
        for last in [false, true] {
            sender.send(Item { line: vec![b'x'; CONGESTED / 2].into(), id, last });
        }
        assert!(sender.is_congested());
        assert!(!receiver.next().await.unwrap().last);
        wake.notified().await;
        assert!(!sender.is_congested() && !sender.is_closed());
        drop(receiver);
        wake.notified().await;
        assert!(sender.is_closed());
    }

    #[test]
    fn an_event_id_is_read_as_it_is_written() {
        let id = EventId { stream: 31, number: 4711 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "1", "-", "1-", "x-1", "1-2-3"] {
            assert_eq!(bad.parse::<EventId>(), Err(()), "{bad}");
        }
    }
}
