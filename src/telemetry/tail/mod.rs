//! Log files that are followed: found, read, and known again after a rename, a truncation, a copy or a restart.
//!
//! `glob` finds files, `watch` tells when something happens to them, `follow` is one file and a step of it, `read` its bytes, `position` how
//! it is known again, `rotated` what a rotation made of it, `keeper` the table of all of them, and this the loop around it. All of it runs
//! on one thread of its own, with one buffer, so that a hundred files cost no more memory than one.
//!
//! Invariants: a file that was opened is read to its end, whatever its name becomes; of a file that was cut short, what had not been read
//! is read from its copy; when the spool is full nothing is read, and nothing lost.

mod follow;
mod glob;
mod keeper;
mod position;
mod read;
mod rotated;
pub mod settings;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use follow::Tools;
pub use glob::PathPattern;
use keeper::{Keeper, Turn};
use settings::FileSet;
use tokio::sync::watch as changing;
use watch::{Happening, Waker, Watch};

use super::intake::Intake;
use super::lines::LineReader;
use super::lines::batch::LogBatch;
use super::lines::rules::Rules;
use crate::lifecycle::{Part, Readiness, Stage};
use crate::ports::Redactor;

/// What is counted of the files, and told to them.
#[derive(Debug, Default)]
pub struct TailState {
    pub records: AtomicU64,
    pub files: AtomicU64,
    /// Bytes that are there and not read.
    pub lag: AtomicU64,
    /// Files that cannot be read.
    pub failing: AtomicU64,
    pub rotations: AtomicU64,
    /// The spool is full, and nothing is read.
    pub is_blocked: AtomicBool,
    /// There are, or were, files to follow.
    pub is_used: AtomicBool,
    stop: AtomicBool,
    /// Other files to follow from now on.
    next: Mutex<Option<Vec<FileSet>>>,
}

/// What the tail is built of.
pub struct Tail {
    /// May change while it runs; while there is none there is no thread.
    pub sets: changing::Receiver<Vec<FileSet>>,
    /// Of the resource of every file.
    pub resource: BTreeMap<String, String>,
    pub intake: Arc<dyn Intake>,
    pub redactor: Arc<dyn Redactor>,
    pub state: Arc<TailState>,
}

impl Tail {
    /// The part that follows the files. When it is told to stop it reads what is there, within `LAST_LOOK`.
    pub fn part(self) -> std::io::Result<Part> {
        let waker = Waker::new()?;
        let part = move |mut shutdown: crate::lifecycle::Shutdown| async move {
            let (state, wake, mut sets) = (self.state.clone(), waker.clone(), self.sets.clone());
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                // The sender lives as long as the process.
                _ = sets.wait_for(|sets| !sets.is_empty()) => {}
            }
            let first = sets.borrow_and_update().clone();
            let mut thread = tokio::task::JoinSet::new();
            thread.spawn_blocking(move || self.run(first, waker));
            loop {
                tokio::select! {
                    () = shutdown.requested() => {
                        state.stop.store(true, Ordering::Relaxed);
                        wake.wake();
                        break;
                    }
                    Ok(()) = sets.changed() => {
                        let changed = sets.borrow_and_update().clone();
                        *state.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(changed);
                        wake.wake();
                    }
                    ended = thread.join_next() => return Ok(ended.transpose().map(|_| ())?),
                }
            }
            while let Some(ended) = thread.join_next().await {
                ended?;
            }
            Ok(())
        };
        Ok(Part::new("log files", Stage::Workers, Readiness::immediate(), part))
    }

    fn run(self, sets: Vec<FileSet>, waker: Waker) {
        let Self { sets: _, resource, intake, redactor, state } = self;
        let counted = state.clone();
        let tools = Tools {
            buffer: vec![0; room_for(&sets)],
            reader: LineReader::default(),
            batch: LogBatch::default(),
            intake: intake.clone(),
            redactor,
            on_records: Box::new(move |count| {
                counted.records.fetch_add(count, Ordering::Relaxed);
            }),
        };
        let keeper = Keeper::new(sets.into_iter().map(Arc::new).collect(), resource, &*intake);
        Loop { keeper, tools, watch: Watch::new(waker), state, hot_until: None }.run();
    }
}

/// A chunk, and the longest line twice.
fn room_for(sets: &[FileSet]) -> usize {
    let longest = sets.iter().map(|set| set.rules.longest_read()).max();
    position::TAIL + CHUNK.max(2 * longest.unwrap_or_else(|| Rules::default().longest_read()))
}

struct Loop {
    keeper: Keeper,
    tools: Tools,
    watch: Watch,
    state: Arc<TailState>,
    /// A copy is being made: read without a pause, so that the least is missing from it.
    hot_until: Option<Instant>,
}

impl Loop {
    fn run(mut self) {
        self.scan();
        let (mut scanned, mut looked) = (Instant::now(), Instant::now());
        let mut happened = Vec::new();
        while !self.state.stop.load(Ordering::Relaxed) {
            let turn = self.turn();
            let is_hot = self.hot_until.is_some_and(|until| Instant::now() < until);
            let longest = match turn {
                Turn::More => Duration::ZERO,
                Turn::Blocked => BLOCKED_WAIT,
                Turn::Rest if is_hot => Duration::ZERO,
                Turn::Rest => LOOK_EVERY.saturating_sub(looked.elapsed()),
            };
            self.watch.wait(longest, &mut happened);
            if turn == Turn::Rest && !is_hot && happened.iter().any(|one| matches!(one, Happening::Written(_))) {
                // What is written in a moment is read together.
                self.watch.wait(GATHER, &mut happened);
            }
            let scan_after = if self.keeper.has_deferred { LOOK_EVERY } else { SCAN_EVERY };
            let mut rescan = scanned.elapsed() >= scan_after;
            for one in happened.drain(..) {
                rescan |= self.take_note(&one);
            }
            let is_regular = scanned.elapsed() >= SCAN_EVERY;
            rescan |= self.change_sets();
            if rescan {
                self.scan();
                scanned = Instant::now();
            }
            if is_regular || is_hot {
                self.keeper.all_are_due();
            }
            if looked.elapsed() >= LOOK_EVERY {
                self.keeper.restless_are_due(|folder| self.watch.sees(folder));
                looked = Instant::now();
            }
        }
        self.last_look();
    }

    /// Whether others are to be followed.
    fn change_sets(&mut self) -> bool {
        let next = self.state.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(sets) = next else { return false };
        let room = room_for(&sets);
        if room > self.tools.buffer.len() {
            self.tools.buffer.resize(room, 0);
        }
        self.keeper.change(sets);
        true
    }

    /// Whether the files have to be looked for again.
    fn take_note(&mut self, happening: &Happening) -> bool {
        match happening {
            Happening::Written(path) => self.keeper.is_due(path),
            Happening::Made(path) => {
                if self.keeper.may_be_a_copy(path) {
                    self.hot_until = Some(Instant::now() + HOT);
                }
                true
            }
            Happening::Moved | Happening::Missed => {
                self.keeper.all_are_due();
                true
            }
        }
    }

    fn turn(&mut self) -> Turn {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let turn = self.keeper.turn(&mut self.tools, Instant::now(), u64::try_from(wall).unwrap_or(u64::MAX));
        self.state.is_blocked.store(turn == Turn::Blocked, Ordering::Relaxed);
        self.tell();
        turn
    }

    fn scan(&mut self) {
        let folders = self.keeper.scan(Instant::now());
        self.watch.set(&folders);
        self.tell();
    }

    fn last_look(&mut self) {
        let until = Instant::now() + LAST_LOOK;
        self.scan();
        self.keeper.all_are_due();
        while Instant::now() < until && self.turn() == Turn::More {}
    }

    fn tell(&self) {
        let (files, lag, failing, rotations) = self.keeper.figures();
        self.state.files.store(files, Ordering::Relaxed);
        self.state.lag.store(lag, Ordering::Relaxed);
        self.state.failing.store(failing, Ordering::Relaxed);
        self.state.rotations.store(rotations, Ordering::Relaxed);
    }
}

/// Read at once.
const CHUNK: usize = 256 * 1024;
/// Files are looked at though nothing was told of them: those of which time alone makes something, or that nobody watches.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And all of them, as some ways of writing are not told (`mmap`).
const SCAN_EVERY: Duration = Duration::from_secs(10);
const GATHER: Duration = Duration::from_millis(20);
const BLOCKED_WAIT: Duration = Duration::from_millis(100);
const HOT: Duration = Duration::from_secs(2);
const LAST_LOOK: Duration = Duration::from_secs(2);
