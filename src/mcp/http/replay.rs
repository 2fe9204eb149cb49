//! What a session has sent on its streams of events, for a client that comes back and says what it had last.
//!
//! Invariant: it never holds more than its limit of bytes; the oldest go first.

use std::collections::VecDeque;

use bytes::Bytes;

use super::stream::EventId;

pub struct Replay {
    events: VecDeque<(EventId, Bytes)>,
    bytes: usize,
    limit: usize,
}

impl Replay {
    pub fn new(limit: usize) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limit }
    }

    pub fn push(&mut self, id: EventId, line: Bytes) {
        if line.len() > self.limit {
            return;
        }
        self.bytes += line.len();
        self.events.push_back((id, line));
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.events.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }

    /// What came on the stream of `last` after it.
    pub fn after(&self, last: EventId) -> impl Iterator<Item = (EventId, Bytes)> {
        let later = move |id: &EventId| id.stream == last.stream && id.number > last.number;
        self.events.iter().filter(move |(id, _)| later(id)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_after_what_was_seen_and_the_oldest_make_room() {
        let mut replay = Replay::new(10);
        let id = |stream, number| EventId { stream, number };
        let seen = |replay: &Replay, last| replay.after(last).map(|(id, _)| id.number).collect::<Vec<_>>();
        for number in 1..=3 {
            replay.push(id(1, number), "xxx".into());
        }
        replay.push(id(2, 1), "y".into());
        assert_eq!(seen(&replay, id(1, 1)), [2, 3]);
        assert_eq!(seen(&replay, id(2, 0)), [1]);
        replay.push(id(2, 2), "y".into());
        assert_eq!(seen(&replay, id(1, 0)), [2, 3], "the first made room");
        replay.push(id(2, 3), "far too long for it".into());
        assert_eq!((seen(&replay, id(1, 0)), seen(&replay, id(2, 0))), (vec![2, 3], vec![1, 2]));
    }
}
