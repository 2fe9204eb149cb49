//! The table of files: which are followed, which were, and what becomes of each when it is renamed, cut short or copied.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::follow::{Followed, State, Step, Tools};
use super::glob::Seen;
use super::position::{Key, Likeness, Position, file_clock, key_of, source_name};
use super::read::{Source, at_end, key_at, leads_to};
use super::rotated::{self, are_related, is_gzip, is_named_after};
use super::settings::{FileSet, StartAt};
use super::watch::RealPaths;
use crate::telemetry::intake::{Entry, Intake, Kind};
use crate::telemetry::lines::batch::{ATTRIBUTES, Owner};
use crate::telemetry::lines::proto::value;
use crate::telemetry::sources::kubernetes;

pub struct Keeper {
    sets: Vec<Arc<FileSet>>,
    /// Those that no scan has seen yet.
    new_sets: Vec<Arc<FileSet>>,
    resource: BTreeMap<String, String>,
    files: BTreeMap<Key, Followed>,
    /// Files that were followed, by this process or one before it, the oldest first.
    past: VecDeque<(Key, Past)>,
    /// What was cut short, and of which no copy was found yet.
    wanted: Vec<Wanted>,
    /// To be forgotten in the spool.
    forgotten: Vec<Key>,
    /// Told in the spool before anything else, as their old place there may be written over.
    to_note: Vec<Key>,
    by_path: BTreeMap<PathBuf, Key>,
    next: usize,
    is_first: bool,
    /// Some file could not be told yet from a copy.
    pub has_deferred: bool,
    /// Every file that was there then has been seen; by the clock of the file system.
    scanned_at: u64,
    rotations: u64,
}

struct Past {
    position: Position,
    path: PathBuf,
    /// The size when it was done, of a file to which nothing is added.
    finished: Option<u64>,
}

struct Wanted {
    key: Key,
    position: Position,
    path: PathBuf,
    set: Arc<FileSet>,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Rest,
    More,
    Blocked,
}

impl Keeper {
    pub fn new(sets: Vec<Arc<FileSet>>, resource: BTreeMap<String, String>, intake: &dyn Intake) -> Self {
        let known = intake.checkpoints();
        let past = known.iter().filter_map(|(source, position)| {
            let (position, path) = Position::decode(position)?;
            Some((key_of(source)?, Past { position, path, finished: None }))
        });
        Self {
            sets,
            new_sets: Vec::new(),
            resource,
            files: BTreeMap::new(),
            past: past.collect(),
            wanted: Vec::new(),
            forgotten: Vec::new(),
            to_note: Vec::new(),
            by_path: BTreeMap::new(),
            next: 0,
            is_first: true,
            has_deferred: false,
            scanned_at: 0,
            rotations: 0,
        }
    }

    /// Other files are to be followed from now on, or by other rules. What was read of a file stays read; one that nobody wants any more is left where
    /// it was.
    pub fn change(&mut self, sets: Vec<FileSet>) {
        let old = std::mem::take(&mut self.sets);
        for set in sets {
            let known = old.iter().find(|known| ***known == set).cloned();
            self.sets.push(known.unwrap_or_else(|| {
                let new = Arc::new(set);
                self.new_sets.push(new.clone());
                new
            }));
        }
        let keys: Vec<Key> = self.files.keys().copied().collect();
        for key in keys {
            let Some(path) = self.files.get(&key).map(|file| file.path.clone()) else { continue };
            match self.set_of(&path) {
                Some(set) => self.use_set(key, &path, set),
                // One that a rotation has renamed is read to its end.
                None if self.files.get(&key).is_some_and(|file| file.state == State::Live) => {
                    if let Some(file) = self.files.remove(&key) {
                        self.keep_past(key, Past { position: file.position, path, finished: None });
                    }
                }
                None => {}
            }
        }
    }

    fn use_set(&mut self, key: Key, path: &Path, set: Arc<FileSet>) {
        let owner = self.owner_of(path, &set);
        let Some(file) = self.files.get_mut(&key).filter(|file| !Arc::ptr_eq(&file.set, &set)) else { return };
        (file.owner, file.constant, file.set) = (owner, constant_attributes(path, &set), set);
    }

    /// Looks for files. The folders in which something may happen.
    pub fn scan(&mut self, now: Instant) -> Vec<PathBuf> {
        if self.is_first {
            self.catch_up(now);
        }
        let started = file_clock();
        self.has_deferred = false;
        self.look_for_wanted(now);
        let (mut folders, mut seen_keys) = (Vec::new(), BTreeSet::new());
        self.by_path.clear();
        let mut real = RealPaths::default();
        for set in self.sets.clone() {
            let mut seen = Seen::default();
            set.include.iter().for_each(|pattern| pattern.look(&mut seen));
            folders.append(&mut seen.folders);
            for path in seen.files.into_iter().filter(|path| !set.excludes(path)) {
                let Some(key) = self.discover(&path, &set, now) else { continue };
                if seen_keys.insert(key) {
                    if let Some(real) = real.of(&path).filter(|real| *real != path) {
                        folders.extend(real.parent().map(Path::to_owned));
                        self.by_path.insert(real, key);
                    }
                    self.by_path.insert(path, key);
                }
            }
        }
        for (key, file) in &mut self.files {
            match (file.state, seen_keys.contains(key)) {
                (State::Live, false) => file.state = State::Moved(now),
                (State::Moved(_), true) => file.state = State::Live,
                _ => {}
            }
        }
        for file in self.files.values_mut() {
            file.folder = real.of(&file.path).and_then(|real| real.parent().map(Path::to_owned));
        }
        folders.extend(self.files.values().filter_map(|file| file.folder.clone()));
        folders.sort();
        folders.dedup();
        self.scanned_at = started;
        self.is_first = false;
        self.new_sets.clear();
        folders
    }

    /// What was read by a process before this one, and is elsewhere now.
    fn catch_up(&mut self, now: Instant) {
        let known: Vec<_> =
            self.past.iter().map(|(key, past)| (*key, past.position.clone(), past.path.clone())).collect();
        for (key, position, path) in known {
            let is_there = std::fs::metadata(&path).is_ok_and(|meta| key_at(&meta) == key);
            if is_there || self.files.contains_key(&key) {
                continue;
            }
            if let Some(set) = self.set_of(&path)
                && self.recover(key, &position, &path, &set, now)
                && !self.files.contains_key(&key)
            {
                // Whatever has its contents now is known by itself.
                self.past.retain(|(known, _)| *known != key);
                self.forgotten.push(key);
            }
        }
    }

    fn set_of(&self, path: &Path) -> Option<Arc<FileSet>> {
        self.sets.iter().find(|set| set.takes(path)).cloned()
    }

    /// Follows the file, if it is not followed yet. Its key.
    fn discover(&mut self, path: &Path, set: &Arc<FileSet>, now: Instant) -> Option<Key> {
        let meta = std::fs::metadata(path).ok()?;
        let key = key_at(&meta);
        if let Some(file) = self.files.get_mut(&key) {
            if file.path != path && !leads_to(&file.path, key) {
                path.clone_into(&mut file.path);
            }
            return Some(key);
        }
        if self.files.len() >= MOST_FILES {
            return None;
        }
        let past = self.past.iter().position(|(known, _)| *known == key);
        if past.is_some_and(|at| self.past[at].1.finished == Some(meta.len())) {
            return None;
        }
        let past = past.map(|at| (self.past[at].1.position.clone(), self.past[at].1.path == path));
        if let Some((known, _)) = &past
            && (known.offset == 0 || matches!(rotated::likeness(path, known), Ok(Likeness::Same)))
        {
            return self.resume(path, known.clone(), set, now);
        }
        if self.is_undecided(path, &meta) {
            self.has_deferred = true;
            return None;
        }
        match (self.original_of(path), past) {
            (Some((original, _, true)), _) => self.follow(path, Position::default(), set, State::CopyOf(original), now),
            (Some((_, position, false)), _) => self.resume(path, position, set, now),
            // It was written anew while nobody looked. Under another name it is another file, which has got its inode.
            (None, Some((known, true))) => {
                self.recover(key, &known, path, set, now);
                self.resume(path, known.next_generation(), set, now)
            }
            (None, _) => self.begin(path, set, now),
        }
    }

    fn resume(&mut self, path: &Path, position: Position, set: &Arc<FileSet>, now: Instant) -> Option<Key> {
        let state = if is_gzip(path) { State::Finished } else { State::Live };
        self.follow(path, position, set, state, now)
    }

    /// It may be a copy that is just being made: there is too little of it yet to tell.
    fn is_undecided(&self, path: &Path, meta: &std::fs::Metadata) -> bool {
        let age = meta.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or(DECIDED_AFTER);
        age < DECIDED_AFTER
            && self.files.values().any(|file| {
                is_named_after(&file.path, path)
                    && file.position.offset > 0
                    && matches!(rotated::likeness(path, &file.position), Ok(Likeness::Unknown))
            })
    }

    /// The file of which this one is a copy: one that is followed (`true`), or one that is over.
    fn original_of(&self, path: &Path) -> Option<(Key, Position, bool)> {
        let like = |position: &Position| rotated::likeness(path, position).unwrap_or(Likeness::Other);
        for (key, file) in &self.files {
            if is_named_after(&file.path, path) && !file.source.is_packed() {
                match like(&file.position) {
                    Likeness::Same => return Some((*key, file.position.clone(), true)),
                    // It may not be complete yet.
                    Likeness::Shorter if !is_gzip(path) => return Some((*key, file.position.clone(), true)),
                    _ => {}
                }
            }
        }
        let past = self
            .past
            .iter()
            .rev()
            .find(|(_, past)| are_related(&past.path, path) && like(&past.position) == Likeness::Same)?;
        Some((past.0, past.1.position.clone(), false))
    }

    /// A file that nobody knows.
    fn begin(&mut self, path: &Path, set: &Arc<FileSet>, now: Instant) -> Option<Key> {
        let state = if is_gzip(path) { State::Finished } else { State::Live };
        let was_there = self.is_first || self.new_sets.iter().any(|new| Arc::ptr_eq(new, set));
        if !was_there || set.start_at == StartAt::Beginning {
            return self.follow(path, Position::default(), set, state, now);
        }
        if is_gzip(path) {
            let meta = std::fs::metadata(path).ok()?;
            let past = Past { position: Position::default(), path: path.to_owned(), finished: Some(meta.len()) };
            self.keep_past(key_at(&meta), past);
            return None;
        }
        match at_end(path) {
            Ok(position) => self.follow(path, position, set, state, now),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a log file cannot be read");
                None
            }
        }
    }

    fn follow(
        &mut self,
        path: &Path,
        position: Position,
        set: &Arc<FileSet>,
        state: State,
        now: Instant,
    ) -> Option<Key> {
        let (source, key) = match Source::open(path) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "a log file cannot be opened");
                return None;
            }
        };
        let end = position.offset;
        let file = Followed {
            path: path.to_owned(),
            folder: None,
            key,
            source,
            position,
            owner: self.owner_of(path, set),
            constant: constant_attributes(path, set),
            set: set.clone(),
            state,
            is_due: true,
            end,
            grew: now,
            failed: None,
        };
        tracing::debug!(path = %path.display(), from = end, ?state, "a log file is followed");
        self.past.retain(|(known, _)| *known != key);
        self.files.insert(key, file);
        Some(key)
    }

    fn owner_of(&self, path: &Path, set: &FileSet) -> Owner {
        let resource = self.resource_of(path, set);
        Owner::new(resource.iter().map(|(key, value)| (key.as_str(), value.as_str())), "mcpeg.files")
    }

    fn resource_of(&self, path: &Path, set: &FileSet) -> BTreeMap<String, String> {
        let mut resource = self.resource.clone();
        let real = path.canonicalize();
        let of_path = kubernetes::of_path(path).or_else(|| kubernetes::of_path(real.as_deref().ok()?));
        resource.extend(of_path.unwrap_or_default());
        resource.extend(set.resource.clone());
        resource
    }

    /// Reads what is left of a file that was cut short or moved away, from what a rotation made of it. Whether anything was found.
    fn recover(&mut self, key: Key, old: &Position, path: &Path, set: &Arc<FileSet>, now: Instant) -> bool {
        if old.offset == 0 {
            return true;
        }
        let candidates = rotated::beside(path);
        let last_read = self.last_read_beside(path);
        let mut found = None;
        for (at, candidate) in candidates.iter().enumerate() {
            let is_free = self.files.get(&candidate.key).is_none_or(|file| file.state == State::CopyOf(key));
            let is_itself = candidate.key == key;
            // It was read as this one's copy already.
            let is_past = !is_itself
                && self.past.iter().any(|(known, past)| *known == candidate.key && past.position.id == old.id);
            let like = if is_free {
                rotated::likeness(&candidate.path, old).unwrap_or(Likeness::Other)
            } else {
                Likeness::Other
            };
            match like {
                Likeness::Same if is_past => found = Some(at),
                Likeness::Same => {
                    self.files.remove(&candidate.key);
                    let state = if is_itself { State::Moved(now) } else { State::Finished };
                    if self.follow(&candidate.path, old.clone(), set, state, now).is_some() {
                        self.to_note.push(candidate.key);
                    }
                    found = Some(at);
                }
                // The copy was made before the last of it was read.
                Likeness::Shorter if !is_itself && found.is_none() => {
                    self.files.remove(&candidate.key);
                    let past = Past {
                        position: old.clone(),
                        path: candidate.path.clone(),
                        finished: size_of(&candidate.path),
                    };
                    self.keep_past(candidate.key, past);
                    found = Some(at);
                }
                _ => {}
            }
        }
        // Rotations after that one, which nobody has seen as they were made.
        for newer in found.map(|at| &candidates[at + 1..]).unwrap_or_default() {
            let is_known =
                self.files.contains_key(&newer.key) || self.past.iter().any(|(known, _)| *known == newer.key);
            // What was there when one of them was last read has been seen.
            if is_known || newer.modified <= last_read {
                continue;
            }
            let state =
                if self.set_of(&newer.path).is_some() && !is_gzip(&newer.path) { State::Live } else { State::Finished };
            let position = match self.original_of(&newer.path) {
                Some((_, _, true)) => continue,
                Some((_, position, false)) => position,
                None => Position::default(),
            };
            self.follow(&newer.path, position, set, state, now);
        }
        found.is_some()
    }

    /// When a file of this rotation was last read.
    fn last_read_beside(&self, path: &Path) -> SystemTime {
        let followed = self.files.values().map(|file| (&file.path, &file.position));
        let past = self.past.iter().map(|(_, past)| (&past.path, &past.position));
        let of_rotation = followed.chain(past).filter(|(other, _)| *other == path || are_related(other, path));
        let last = of_rotation.map(|(_, position)| position.read_at).max().unwrap_or(0).max(self.scanned_at);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(last)
    }

    fn look_for_wanted(&mut self, now: Instant) {
        for wanted in std::mem::take(&mut self.wanted) {
            let Wanted { key, position, path, set, since } = wanted;
            if !self.recover(key, &position, &path, &set, now) && now.duration_since(since) < WANTED_FOR {
                self.wanted.push(Wanted { key, position, path, set, since });
            }
        }
    }

    /// One step of each file that may have something.
    pub fn turn(&mut self, tools: &mut Tools, now: Instant, wall: u64) -> Turn {
        if !self.note(tools) {
            return Turn::Blocked;
        }
        let mut due: Vec<Key> = self.files.values().filter(|file| file.is_due).map(|file| file.key).collect();
        // Whoever was last when the spool became full is first.
        let from = self.next.min(due.len());
        due.rotate_left(from);
        let mut turn = Turn::Rest;
        for (at, key) in due.iter().enumerate() {
            let Some(file) = self.files.get_mut(key) else { continue };
            match file.step(tools, now, wall) {
                Step::Rest => file.is_due = false,
                Step::More => turn = Turn::More,
                Step::Blocked => {
                    self.next = (from + at) % due.len();
                    return Turn::Blocked;
                }
                Step::Done => self.finish(*key, now),
                Step::Rewritten => {
                    self.rewritten(*key, now);
                    turn = Turn::More;
                }
                Step::Failed(error) => {
                    file.is_due = false;
                    if file.failed.replace(error.kind()) != Some(error.kind()) {
                        tracing::warn!(%error, path = %file.path.display(), "a log file cannot be read");
                    }
                    if file.source.is_packed() && error.kind() != io::ErrorKind::UnexpectedEof {
                        self.finish(*key, now);
                    }
                }
            }
        }
        self.next = 0;
        turn
    }

    /// Tells the spool what it has to know before more is read. `false`: it has no room.
    fn note(&mut self, tools: &mut Tools) -> bool {
        let append = |key: Key, position: &[u8]| {
            let name = source_name(key);
            let entry = Entry { kind: Kind::Logs, records: 0, body: &[], checkpoint: Some((&name, position)) };
            tools.intake.append(entry).is_ok()
        };
        while let Some(key) = self.to_note.last().copied() {
            let place = self.files.get(&key).map(|file| file.position.encode(&file.path));
            if place.is_some_and(|place| !append(key, &place)) {
                return false;
            }
            self.to_note.pop();
        }
        while let Some(key) = self.forgotten.last().copied() {
            if !self.files.contains_key(&key) && !append(key, &[]) {
                return false;
            }
            self.forgotten.pop();
        }
        true
    }

    /// The file was written anew in its place: what was there before is read from its copy, and the new one from its beginning.
    fn rewritten(&mut self, key: Key, now: Instant) {
        let Some(file) = self.files.get_mut(&key) else { return };
        let (old, path, set) = (file.position.clone(), file.path.clone(), file.set.clone());
        file.position = old.next_generation();
        (file.end, file.grew, file.is_due) = (0, now, true);
        self.rotations += 1;
        tracing::info!(path = %path.display(), read = old.offset, "a log file was written anew");
        if !self.recover(key, &old, &path, &set, now) {
            tracing::debug!(path = %path.display(), "no copy of it was found yet");
            self.wanted.push(Wanted { key, position: old, path, set, since: now });
            self.wanted.truncate(MOST_WANTED);
        }
    }

    /// All of the file was read, and nothing will come.
    fn finish(&mut self, key: Key, now: Instant) {
        let Some(file) = self.files.remove(&key) else { return };
        tracing::debug!(path = %file.path.display(), read = file.position.offset, "a log file is done with");
        let finished = (file.state == State::Finished).then(|| file.source.stat().map(|(size, _)| size).unwrap_or(0));
        // A copy of it may have more than it had.
        for copy in self.files.values_mut().filter(|copy| copy.state == State::CopyOf(key)) {
            copy.position = file.position.clone();
            copy.state = if copy.source.is_packed() { State::Finished } else { State::Live };
            (copy.end, copy.grew, copy.is_due) = (copy.position.offset, now, true);
        }
        self.keep_past(key, Past { position: file.position, path: file.path, finished });
    }

    fn keep_past(&mut self, key: Key, past: Past) {
        self.past.retain(|(known, _)| *known != key);
        self.past.push_back((key, past));
        if self.past.len() > MOST_PAST
            && let Some((key, _)) = self.past.pop_front()
        {
            self.forgotten.push(key);
        }
    }

    pub fn all_are_due(&mut self) {
        self.files.values_mut().for_each(|file| file.is_due = true);
    }

    /// Only those of which nothing would be told: there is more to come of them than bytes, or nobody watches their folder.
    pub fn restless_are_due(&mut self, is_watched: impl Fn(&Path) -> bool) {
        for file in self.files.values_mut() {
            let is_at_rest = file.state == State::Live && file.lag() == 0 && file.failed.is_none();
            file.is_due |= !is_at_rest || !file.folder.as_deref().is_some_and(&is_watched);
        }
    }

    /// The file was written to. `true`: it is none of those that are followed, and may have to be.
    pub fn is_due(&mut self, path: &Path) -> bool {
        let key = self.by_path.get(path);
        if let Some(file) = key.and_then(|key| self.files.get_mut(key)) {
            file.is_due = true;
            return false;
        }
        self.has_deferred && self.set_of(path).is_some()
    }

    /// A file of this name may be a copy that is just being made.
    pub fn may_be_a_copy(&self, path: &Path) -> bool {
        self.files.values().any(|file| file.state == State::Live && is_named_after(&file.path, path))
    }

    /// Files, bytes not read yet, files that cannot be read, and how often one was written anew.
    pub fn figures(&self) -> (u64, u64, u64, u64) {
        let lag = self.files.values().map(Followed::lag).sum();
        let failing = self.files.values().filter(|file| file.failed.is_some()).count() as u64;
        (self.files.len() as u64, lag, failing, self.rotations)
    }
}

fn constant_attributes(path: &Path, set: &FileSet) -> Vec<u8> {
    let mut out = Vec::new();
    value::text_pair(&mut out, ATTRIBUTES, "log.file.path", &path.to_string_lossy());
    for (key, text) in &set.attributes {
        value::text_pair(&mut out, ATTRIBUTES, key, text);
    }
    out
}

fn size_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.len())
}

/// Followed at a time; each is an open file.
const MOST_FILES: usize = 768;
const MOST_PAST: usize = 1024;
const MOST_WANTED: usize = 64;
const DECIDED_AFTER: Duration = Duration::from_secs(3);
const WANTED_FOR: Duration = Duration::from_secs(60);
