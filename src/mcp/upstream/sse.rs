//! Reads a stream of server-sent events (WHATWG HTML, section 9.2), in chunks of any size.
//!
//! Knows nothing of JSON-RPC. Invariant: an event larger than the limit ends the stream; what is buffered never grows beyond it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

/// One event that carries data and is of the default type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub data: Bytes,
    /// Its own, not one that an earlier event has set.
    pub id: Option<String>,
}

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Message,
    Endpoint,
    Other,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an event of the stream is larger than {0} bytes")]
pub struct EventTooLarge(pub usize);

#[derive(Debug)]
pub struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    kind: Kind,
    endpoint: Option<String>,
    after_return: bool,
    at_start: bool,
    ready: VecDeque<Event>,
    own_id: Option<String>,
    last_id: Option<String>,
    retry: Option<Duration>,
    limit: usize,
}

impl Parser {
    pub fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            kind: Kind::Message,
            endpoint: None,
            after_return: false,
            at_start: true,
            ready: VecDeque::new(),
            own_id: None,
            last_id: None,
            retry: None,
            limit,
        }
    }

    /// Takes the next bytes. Lines end with `\n`, `\r\n` or `\r`.
    pub fn push(&mut self, mut chunk: &[u8]) -> Result<(), EventTooLarge> {
        if self.after_return && !chunk.is_empty() {
            chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
            self.after_return = false;
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) {
            self.extend_line(&chunk[..end])?;
            self.end_of_line()?;
            let returned = chunk[end] == b'\r';
            chunk = &chunk[end + 1..];
            if returned {
                self.after_return = chunk.is_empty();
                chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
            }
        }
        self.extend_line(chunk)
    }

    pub fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    /// What an event of the type `endpoint`, which the older transport has, has told since it was last asked.
    pub fn take_endpoint(&mut self) -> Option<String> {
        self.endpoint.take()
    }

    /// What a reconnection says in `Last-Event-ID`.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref().filter(|id| !id.is_empty())
    }

    /// How long the server wants a reconnection to wait.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn extend_line(&mut self, part: &[u8]) -> Result<(), EventTooLarge> {
        if self.line.len() + self.data.len() + part.len() > self.limit + LONGEST_FIELD_NAME {
            return Err(EventTooLarge(self.limit));
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_of_line(&mut self) -> Result<(), EventTooLarge> {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.at_start) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            self.dispatch();
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', &line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &[][..]),
        };
        self.field(field, value.strip_prefix(b" ").unwrap_or(value));
        if self.data.len() > self.limit { Err(EventTooLarge(self.limit)) } else { Ok(()) }
    }

    fn field(&mut self, field: &[u8], value: &[u8]) {
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.kind = match value {
                    b"" | b"message" => Kind::Message,
                    b"endpoint" => Kind::Endpoint,
                    _ => Kind::Other,
                }
            }
            // It counts from the end of the event on: a stream that breaks before has not brought the event.
            b"id" if !value.contains(&0) => self.own_id = std::str::from_utf8(value).ok().map(str::to_owned),
            b"retry" => {
                let millis = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                self.retry = millis.map(Duration::from_millis).or(self.retry);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let data = std::mem::take(&mut self.data);
        let id = self.own_id.take();
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        let has_data = std::mem::take(&mut self.has_data) && !data.is_empty();
        match std::mem::take(&mut self.kind) {
            Kind::Message if has_data => self.ready.push_back(Event { data: data.into(), id }),
            Kind::Endpoint if has_data => self.endpoint = String::from_utf8(data).ok(),
            _ => {}
        }
    }
}

const LONGEST_FIELD_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(of: &[u8], chunks: impl IntoIterator<Item = usize>) -> (Vec<String>, Parser) {
        let mut parser = Parser::new(1000);
        let (mut rest, mut found) = (of, Vec::new());
        let mut chunks = chunks.into_iter();
        while !rest.is_empty() {
            let (chunk, left) = rest.split_at(chunks.next().unwrap_or(rest.len()).clamp(1, rest.len()));
            parser.push(chunk).unwrap();
            rest = left;
            found.extend(std::iter::from_fn(|| parser.next()).map(|e| String::from_utf8(e.data.to_vec()).unwrap()));
        }
        (found, parser)
    }

    const STREAM: &[u8] =
        b"\xef\xbb\xbf: hello\r\n\r\nid: 7\nevent: message\ndata: {\"a\":\ndata: 1}\n\nretry: 1500\rdata:x\r\r\
        event: ping\ndata: no\n\ndata\n\ndata: last\n\ndata: unfinished";

    #[test]
    fn events_have_their_data_joined_and_other_types_and_empty_ones_are_left_out() {
        let (found, parser) = events(STREAM, [STREAM.len()]);
        assert_eq!(found, ["{\"a\":\n1}", "x", "last"]);
        assert_eq!(parser.last_id(), Some("7"));
        assert_eq!(parser.retry(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn an_id_counts_once_its_event_is_whole() {
        let mut parser = Parser::new(1000);
        parser.push(b"id: 1\ndata: a\n\nid: 2\ndata: b\n").unwrap();
        assert_eq!(parser.last_id(), Some("1"), "the second event has not ended");
        parser.push(b"\n").unwrap();
        assert_eq!(parser.last_id(), Some("2"));
        parser.push(b"data: c\n\n").unwrap();
        assert_eq!(parser.last_id(), Some("2"), "an event without an id leaves it");
        let ids: Vec<Option<String>> = std::iter::from_fn(|| parser.next()).map(|event| event.id).collect();
        assert_eq!(ids, [Some("1".to_owned()), Some("2".to_owned()), None]);
        parser.push(b"id: 3\n\n").unwrap();
        assert_eq!(parser.next(), None);
        assert_eq!(parser.last_id(), Some("3"), "an id may stand alone");
    }

    proptest! {
        #[test]
        fn the_borders_of_chunks_do_not_matter(chunks in proptest::collection::vec(1_usize..9, 0..80)) {
            prop_assert_eq!(events(STREAM, chunks).0, events(STREAM, [STREAM.len()]).0);
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut parser = Parser::new(1000);
            let _ = parser.push(&bytes);
        }
    }

    #[test]
    fn an_event_beyond_the_limit_ends_the_stream() {
        let mut parser = Parser::new(100);
        assert_eq!(parser.push(&[b"data: ".as_slice(), &[b'x'; 200]].concat()), Err(EventTooLarge(100)));
        let mut parser = Parser::new(100);
        let line = [b"data: ".as_slice(), &[b'x'; 60], b"\n"].concat();
        assert!(parser.push(&line).and_then(|()| parser.push(&line)).is_err());
    }
}
