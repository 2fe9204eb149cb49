//! Messages as lines over a pair of byte streams: a client's socket, a child's pipes, or a pipe in memory.
//!
//! It owns the buffers and the framing (one message a line, `\n` at its end) and knows nothing of JSON. Everything that is ready is
//! written in one system call, and everything that is there is read in one.
//!
//! Invariants: a line longer than the limit is never returned; `progress` is cancel-safe; nothing here waits for the other side to
//! read, so that two `Lines` that feed each other cannot lock up: whoever uses them stops reading from one while the other is
//! `congested`.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

pub struct Lines<R, W> {
    reader: R,
    writer: W,
    inbox: BytesMut,
    /// So much of `inbox` is known to hold no end of line.
    scanned: usize,
    /// How much room the next read is given.
    room: usize,
    outbox: BytesMut,
    was_congested: bool,
    ended: bool,
    broken: bool,
    max_line: usize,
}

/// What has happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be new lines.
    Read,
    /// The other side has closed its direction; a last line without an end may be left.
    Ended,
    /// The other side takes nothing any more. Said once.
    Broken,
    /// It was congested and no longer is.
    Room,
}

/// The other side sent a line beyond the limit; where the next one begins is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Lines<R, W> {
    pub fn new(reader: R, writer: W, max_line: usize) -> Self {
        Self {
            reader,
            writer,
            inbox: BytesMut::new(),
            scanned: 0,
            room: SMALL_READ,
            outbox: BytesMut::new(),
            was_congested: false,
            ended: false,
            broken: false,
            max_line,
        }
    }

    /// Queues a line; its end is added.
    pub fn push(&mut self, line: &[u8]) {
        if !self.broken {
            self.outbox.reserve(line.len() + 1);
            self.outbox.extend_from_slice(line);
            self.outbox.extend_from_slice(b"\n");
        }
    }

    /// The next whole line, without its end.
    pub fn next_line(&mut self) -> Option<Result<Bytes, TooLong>> {
        let end = match memchr::memchr(b'\n', &self.inbox[self.scanned..]) {
            Some(at) => self.scanned + at,
            None if self.inbox.len() > self.max_line => return Some(Err(TooLong)),
            None if self.ended && !self.inbox.is_empty() => return self.last_line(),
            None => {
                self.scanned = self.inbox.len();
                self.shrink();
                return None;
            }
        };
        if end > self.max_line {
            return Some(Err(TooLong));
        }
        let mut line = self.inbox.split_to(end);
        self.inbox.advance(1);
        self.scanned = 0;
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        }
        Some(Ok(line.freeze()))
    }

    fn last_line(&mut self) -> Option<Result<Bytes, TooLong>> {
        self.scanned = 0;
        Some(Ok(std::mem::take(&mut self.inbox).freeze()))
    }

    /// More is waiting to be written than a reader who keeps up would leave.
    pub fn congested(&self) -> bool {
        self.outbox.len() >= CONGESTED
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn writer(&self) -> &W {
        &self.writer
    }

    /// Writes what is queued and, if `read`, reads what is there, until something is worth saying.
    pub async fn progress(&mut self, read: bool) -> io::Result<Progress> {
        poll_fn(|cx| self.poll_progress(cx, read)).await
    }

    pub fn poll_progress(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<io::Result<Progress>> {
        self.was_congested |= self.congested();
        if !self.outbox.is_empty()
            && let Poll::Ready(Err(_)) = self.poll_write(cx)
        {
            self.broken = true;
            self.outbox = BytesMut::new();
            return Poll::Ready(Ok(Progress::Broken));
        }
        if self.was_congested && !self.congested() {
            self.was_congested = false;
            return Poll::Ready(Ok(Progress::Room));
        }
        if read && !self.ended { self.poll_read(cx) } else { Poll::Pending }
    }

    /// Writes everything that is queued, unless it takes longer than `patience`.
    pub async fn flush(&mut self, patience: Duration) {
        let written = poll_fn(|cx| if self.outbox.is_empty() { Poll::Ready(Ok(())) } else { self.poll_write(cx) });
        // Whoever does not read any more loses what it does not read.
        let _ = tokio::time::timeout(patience, written).await;
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            let written = ready!(Pin::new(&mut self.writer).poll_write(cx, &self.outbox))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbox.advance(written);
        }
        if self.outbox.capacity() > KEPT {
            self.outbox = BytesMut::new();
        }
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Progress>> {
        self.inbox.reserve(self.room);
        let read = ready!(pin!(self.reader.read_buf(&mut self.inbox)).poll(cx))?;
        if read == 0 {
            self.ended = true;
            return Poll::Ready(Ok(Progress::Ended));
        }
        self.room = if read >= self.room { (self.room * 2).min(LARGE_READ) } else { self.room };
        Poll::Ready(Ok(Progress::Read))
    }

    /// A single large message must not keep its room for the life of the connection.
    fn shrink(&mut self) {
        if self.inbox.is_empty() && self.inbox.capacity() > KEPT {
            self.inbox = BytesMut::new();
            self.room = SMALL_READ;
            self.scanned = 0;
        }
    }
}

const SMALL_READ: usize = 4 * 1024;
const LARGE_READ: usize = 64 * 1024;
const CONGESTED: usize = 256 * 1024;
/// An empty buffer above this is given back.
const KEPT: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(max: usize) -> (Lines<tokio::io::DuplexStream, tokio::io::Sink>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 20);
        (Lines::new(near, tokio::io::sink(), max), far)
    }

    async fn all(of: &[u8], chunk: usize, max: usize) -> Vec<Result<Bytes, TooLong>> {
        use tokio::io::AsyncWriteExt;
        let (mut lines, mut far) = lines(max);
        let mut found = Vec::new();
        for part in of.chunks(chunk) {
            far.write_all(part).await.unwrap();
            assert_eq!(lines.progress(true).await.unwrap(), Progress::Read);
            while let Some(line) = lines.next_line() {
                let stop = line.is_err();
                found.push(line);
                if stop {
                    return found;
                }
            }
        }
        drop(far);
        assert_eq!(lines.progress(true).await.unwrap(), Progress::Ended);
        found.extend(std::iter::from_fn(|| lines.next_line()));
        found
    }

    #[tokio::test]
    async fn lines_come_whole_whatever_the_chunks() {
        for chunk in [1, 2, 3, 100] {
            let found = all(b"{\"a\":1}\r\n\n{\"b\":2}\nrest", chunk, 100).await;
            let expected: [&[u8]; 4] = [b"{\"a\":1}", b"", b"{\"b\":2}", b"rest"];
            assert_eq!(found.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected, "chunks of {chunk}");
        }
    }

    #[tokio::test]
    async fn a_line_beyond_the_limit_is_refused_with_or_without_an_end() {
        assert_eq!(all(b"12345\n", 100, 5).await, [Ok(Bytes::from_static(b"12345"))]);
        assert_eq!(all(b"123456\n", 100, 5).await, [Err(TooLong)]);
        assert_eq!(all(b"1234567", 100, 5).await, [Err(TooLong)]);
    }

    #[tokio::test]
    async fn writing_to_a_full_pipe_is_congestion_then_room() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (reader, writer) = tokio::io::split(near);
        let mut lines = Lines::new(reader, writer, 100);
        lines.push(&vec![b'x'; CONGESTED]);
        assert!(lines.congested());
        let mut sink = vec![0; CONGESTED + 1];
        let written = async {
            let progress = lines.progress(false).await.unwrap();
            lines.flush(Duration::from_secs(5)).await;
            progress
        };
        let (progress, read) = tokio::join!(written, far.read_exact(&mut sink));
        assert_eq!((progress, read.unwrap()), (Progress::Room, CONGESTED + 1));
        drop(far);
        lines.push(b"y");
        assert_eq!(lines.progress(false).await.unwrap(), Progress::Broken);
    }
}
