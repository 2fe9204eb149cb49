//! What programs print: split into lines, cut to a bounded length and rate, redacted, and shipped.
//!
//! Owns the way from a pipe to the own log and to the `LogSink`. A leaf, because both the supervised process and the children of MCP
//! services print.
//!
//! Invariants: nothing leaves unredacted; a line is redacted whole, with enough of what follows the bound that a secret across it is
//! known; the buffers are wiped after each use, as a program may print a secret; a program is never held up by a collector.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::{Zeroize, Zeroizing};

use crate::ports::{LogLine, LogOrigin, LogSink, Redactor};

/// Where lines go, and what they go through.
#[derive(Clone)]
pub struct Shipping {
    pub redactor: Arc<dyn Redactor>,
    pub sink: Arc<dyn LogSink>,
}

/// The output of one program.
pub struct Printed {
    pub shipping: Shipping,
    pub origin: Origin,
    pub pid: u32,
    pub max_line_bytes: usize,
    pub rate: Arc<Rate>,
    /// Whether lines are written to our own standard output and error, in place of the own log.
    pub is_passed_through: bool,
}

#[derive(Debug, Clone)]
pub enum Origin {
    Process(Arc<str>),
    Service(Arc<str>),
}

impl Origin {
    fn as_port(&self) -> LogOrigin<'_> {
        match self {
            Self::Process(program) => LogOrigin::Process(program),
            Self::Service(service) => LogOrigin::Service(service),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl Printed {
    /// Reads until the end of the stream.
    pub async fn ship(self: Arc<Self>, from: impl AsyncRead + Unpin, stream: Stream) {
        let own: Box<dyn AsyncWrite + Send + Unpin> = match stream {
            Stream::Stdout => Box::new(tokio::io::stdout()),
            Stream::Stderr => Box::new(tokio::io::stderr()),
        };
        let mut own = self.is_passed_through.then_some(own);
        let mut splitter = Splitter::new(self.max_line_bytes);
        let mut from = from;
        let mut chunk = Zeroizing::new(vec![0; CHUNK]);
        loop {
            // A broken pipe is an ended one.
            let count = from.read(&mut chunk).await.unwrap_or(0);
            let mut rest = &chunk[..count];
            while let Some(line) = splitter.next_line(&mut rest, count == 0) {
                self.emit(&line, stream, &mut own).await;
            }
            chunk[..count].zeroize();
            if count == 0 {
                break;
            }
        }
    }

    async fn emit(&self, line: &[u8], stream: Stream, own: &mut Option<Box<dyn AsyncWrite + Send + Unpin>>) {
        let redacted = self.shipping.redactor.redact(line);
        let (text, is_cut) = cut(&redacted, self.max_line_bytes);
        if let Some(to) = own {
            // Whoever read it has gone: the program goes on.
            let end: &[u8] = if is_cut { CUT_NEWLINE } else { b"\n" };
            let _ = to.write_all(text).await;
            let _ = to.write_all(end).await;
            let _ = to.flush().await;
        }
        let text = String::from_utf8_lossy(text);
        let text = text.trim_end();
        if text.is_empty() || !self.rate.admits() {
            return;
        }
        let marked;
        let text = if is_cut {
            marked = format!("{text}{CUT}");
            marked.as_str()
        } else {
            text
        };
        if own.is_none() {
            match &self.origin {
                Origin::Process(program) => {
                    tracing::info!(target: "mcpeg::process", program = &**program, pid = self.pid, line = text, "{}", stream.as_str());
                }
                Origin::Service(service) => {
                    tracing::info!(target: "mcpeg::upstream", service = &**service, pid = self.pid, line = text, "{}", stream.as_str());
                }
            }
        }
        let (origin, stream) = (self.origin.as_port(), stream.as_str());
        self.shipping.sink.ship(&LogLine { time: SystemTime::now(), origin, stream, pid: self.pid, text });
    }
}

fn cut(line: &[u8], most: usize) -> (&[u8], bool) {
    if line.len() <= most { (line, false) } else { (&line[..most], true) }
}

/// Puts lines together from what is read. Of a line that is too long the beginning is kept.
struct Splitter {
    line: Zeroizing<Vec<u8>>,
    most: usize,
}

impl Splitter {
    fn new(max_line_bytes: usize) -> Self {
        // All of it at once: growing would leave nothing behind, but cost copies.
        let most = max_line_bytes + BEYOND;
        Self { line: Zeroizing::new(Vec::new()), most }
    }

    /// Takes from `rest` up to the end of a line; `None` when there is none in it. At the end of the stream what is left is a line.
    fn next_line(&mut self, rest: &mut &[u8], at_end: bool) -> Option<Zeroizing<Vec<u8>>> {
        let end = memchr::memchr(b'\n', rest);
        let piece = &rest[..end.unwrap_or(rest.len())];
        let room = self.most - self.line.len();
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        *rest = end.map_or(&[][..], |end| &rest[end + 1..]);
        let is_whole = end.is_some() || (at_end && !self.line.is_empty());
        is_whole.then(|| std::mem::take(&mut self.line))
    }
}

/// So many lines in a second and no more, with a second's worth at once. Shared by the streams of a program.
pub struct Rate {
    per_second: u32,
    state: Mutex<RateState>,
    on_drop: Box<dyn Fn() + Send + Sync>,
}

struct RateState {
    tokens: f64,
    at: Instant,
    /// Since it was last said.
    dropped: u64,
    said: Instant,
}

impl Rate {
    /// `on_drop` is called for each line that is left out.
    pub fn new(per_second: u32, on_drop: impl Fn() + Send + Sync + 'static) -> Self {
        let now = Instant::now();
        let state = RateState { tokens: f64::from(per_second), at: now, dropped: 0, said: now - SAY_EVERY };
        Self { per_second, state: Mutex::new(state), on_drop: Box::new(on_drop) }
    }

    fn admits(&self) -> bool {
        let admitted = self.admits_at(Instant::now());
        if !admitted {
            (self.on_drop)();
        }
        admitted
    }

    fn admits_at(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        let rate = f64::from(self.per_second);
        state.tokens = (state.tokens + passed * rate).min(rate);
        state.at = now;
        let admitted = state.tokens >= 1.0;
        if admitted {
            state.tokens -= 1.0;
        } else {
            state.dropped += 1;
        }
        if state.dropped > 0 && now.saturating_duration_since(state.said) >= SAY_EVERY {
            tracing::warn!(
                lines = state.dropped,
                per_second = self.per_second,
                "a program prints too much; lines are left out"
            );
            state.dropped = 0;
            state.said = now;
        }
        admitted
    }
}

const CHUNK: usize = 8 * 1024;
/// Read beyond the bound, so that a secret that begins before it is seen whole.
const BEYOND: usize = 4 * 1024;
const SAY_EVERY: Duration = Duration::from_secs(10);
const CUT: &str = " [cut]";
const CUT_NEWLINE: &[u8] = b" [cut]\n";

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;

    struct Hide(&'static str);

    impl Redactor for Hide {
        fn redact<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
            let text = String::from_utf8_lossy(bytes);
            if text.contains(self.0) {
                Cow::Owned(text.replace(self.0, "[REDACTED]").into_bytes())
            } else {
                Cow::Borrowed(bytes)
            }
        }

        fn counts(&self) -> Vec<crate::ports::RedactedCount> {
            Vec::new()
        }
    }

    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl LogSink for Kept {
        fn ship(&self, line: &LogLine<'_>) {
            self.0.lock().unwrap().push(line.text.to_owned());
        }
    }

    async fn shipped(input: &[u8], max_line_bytes: usize, per_second: u32) -> Vec<String> {
        let kept = Arc::new(Kept::default());
        let printed = Printed {
            shipping: Shipping { redactor: Arc::new(Hide("hunter2")), sink: kept.clone() },
            origin: Origin::Process("agent".into()),
            pid: 1,
            max_line_bytes,
            rate: Arc::new(Rate::new(per_second, || {})),
            is_passed_through: false,
        };
        Arc::new(printed).ship(input, Stream::Stdout).await;
        std::mem::take(&mut kept.0.lock().unwrap())
    }

    #[tokio::test]
    async fn lines_are_split_redacted_and_cut() {
        assert_eq!(shipped(b"one\r\n\ntwo hunter2\nthree", 100, 100).await, ["one", "two [REDACTED]", "three"]);
        let long = format!("{}hunter2{}\nnext\n", "_".repeat(60), "x".repeat(9000));
        let lines = shipped(long.as_bytes(), 64, 100).await;
        // The secret lies across the bound, and no part of it is left.
        assert_eq!(lines, [format!("{}[RED [cut]", "_".repeat(60)), "next".to_owned()]);
    }

    #[tokio::test]
    async fn no_more_lines_than_the_rate_allows() {
        let many = "line\n".repeat(5000);
        let count = shipped(many.as_bytes(), 64, 100).await.len();
        assert!((100..2000).contains(&count), "{count}");
    }

    #[test]
    fn the_rate_comes_back_with_time() {
        let rate = Rate::new(2, || {});
        let start = Instant::now();
        let admitted: Vec<bool> = (0..3).map(|_| rate.admits_at(start)).collect();
        assert_eq!(admitted, [true, true, false]);
        assert!(rate.admits_at(start + Duration::from_millis(500)));
        assert!(!rate.admits_at(start + Duration::from_millis(600)));
    }

    proptest! {
        #[test]
        fn the_lines_do_not_depend_on_how_they_arrive(text in "[ab\n]{0,200}", size in 1_usize..20) {
            let mut splitter = Splitter::new(64);
            let mut lines = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                let mut rest = piece;
                while !rest.is_empty() {
                    lines.extend(splitter.next_line(&mut rest, false));
                }
            }
            lines.extend(splitter.next_line(&mut &[][..], true));
            let lines: Vec<String> = lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            prop_assert_eq!(lines, text.lines().map(str::to_owned).collect::<Vec<_>>());
        }
    }
}
