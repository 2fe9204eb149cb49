//! The spool on a disk that somebody has written to: whatever lies in its folder, it starts, gives out nothing that was not put in, and goes on.
//!
//! The first byte says what is done: the rest of the input is a segment, or a cursor, or changes to a spool that was in order (each a place and a
//! byte), or what frames say that are in order by themselves. Real files, in memory where the machine has that, as the code under test is the one that opens them.

#![no_main]
#![allow(dead_code)]

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libfuzzer_sys::fuzz_target;

#[path = "../../src/lifecycle.rs"]
mod lifecycle;
#[path = "../../src/telemetry/spool/mod.rs"]
mod spool;

use spool::{BatchLimit, Checkpoint, Lane, Loss, Losses, Spool, SpoolBounds, SpoolSettings, WhenFull};

fuzz_target!(|input: &[u8]| {
    thread_local!(static FOLDER: RefCell<Option<(PathBuf, Vec<(PathBuf, Vec<u8>)>)>> = const { RefCell::new(None) });
    FOLDER.with_borrow_mut(|made| {
        let (folder, good) = made.get_or_insert_with(prepared);
        restore(folder, good);
        let Some((what, rest)) = input.split_first() else { return };
        let segment = folder.join("logs/00000000000000000000.seg");
        match what % 4 {
            0 => fs::write(&segment, rest).unwrap(),
            1 => fs::write(folder.join("logs/one.cursor"), rest).unwrap(),
            2 => change(&segment, rest),
            _ => fs::write(&segment, frames(rest)).unwrap(),
        }
        goes_on(folder, matches!(what % 4, 0 | 3));
    });
});

/// A folder with a spool that is in order, and its files.
fn prepared() -> (PathBuf, Vec<(PathBuf, Vec<u8>)>) {
    let root = Path::new("/dev/shm");
    let root = if root.is_dir() { root.to_owned() } else { std::env::temp_dir() };
    let folder = root.join(format!("mcpeg-fuzz-spool-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    let (spool, _) = open(&folder);
    for number in 0..RECORDS {
        let position = number.to_le_bytes();
        let checkpoint = Checkpoint { source: ["a", "b"][number as usize % 2], position: &position };
        spool.append(Lane::Logs, 1, &body(number), Some(checkpoint)).unwrap();
    }
    drop(spool);
    let mut good = Vec::new();
    for lane in Lane::ALL {
        for entry in fs::read_dir(folder.join(lane.as_str())).unwrap() {
            let path = entry.unwrap().path();
            good.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    (folder, good)
}

fn restore(folder: &Path, good: &[(PathBuf, Vec<u8>)]) {
    for lane in Lane::ALL {
        for entry in fs::read_dir(folder.join(lane.as_str())).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    good.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
}

/// Three bytes a change: where, and what stands there then. The last odd one cuts the file.
fn change(path: &Path, changes: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    for change in changes.chunks(3) {
        let &[low, high, byte] = change else {
            bytes.truncate(usize::from(change[0]) * bytes.len() / 255);
            break;
        };
        let at = usize::from(u16::from_le_bytes([low, high]));
        if let Some(there) = bytes.get_mut(at) {
            *there = byte;
        }
    }
    fs::write(path, bytes).unwrap();
}

/// Frames with a good sum and numbers in any order: six of eight bytes say the first record's, one how many, one how long the body is.
fn frames(mut input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((head, rest)) = input.split_first_chunk::<10>() {
        let first = u64::from_le_bytes(*head.first_chunk().unwrap()) >> 16;
        let (body, rest) = rest.split_at(rest.len().min(usize::from(head[9])));
        let checkpoint = (head[9] % 2 == 1).then_some(Checkpoint { source: "a", position: body });
        spool::frame::write(&mut out, first, u32::from(head[8]), body, checkpoint);
        input = rest;
    }
    out
}

/// It starts twice, gives what was there, takes something more, and gives that.
fn goes_on(folder: &Path, is_anything: bool) {
    let (spool, _) = open(folder);
    let mut given = take_all(&spool);
    spool.append(Lane::Logs, 1, NEW, Some(Checkpoint { source: "c", position: b"9" })).unwrap();
    let more = take_all(&spool);
    assert_eq!(more.last().map(Vec::as_slice), Some(NEW), "what is put in comes out");
    given.extend(more);
    if !is_anything {
        let known = |found: &Vec<u8>| found == NEW || (0..RECORDS).any(|number| *found == body(number));
        assert!(given.iter().all(known), "a record that nobody has put in");
    }
    drop(spool);
    let (spool, _) = open(folder);
    assert_eq!(spool.checkpoint("c").as_deref(), Some(&b"9"[..]), "the position is kept");
    assert!(take_all(&spool).last().is_none_or(|last| last == NEW));
}

fn take_all(spool: &Spool) -> Vec<Vec<u8>> {
    let mut given = Vec::new();
    let limit = BatchLimit { records: 7, bytes: 1 << 20 };
    let mut rounds = 0;
    while let Some(batch) = spool.take(Lane::Logs, "one", limit).unwrap() {
        assert!(!batch.is_empty() && batch.chunks.iter().all(|chunk| chunk.skip < chunk.records));
        given.extend(batch.chunks.iter().map(|chunk| chunk.body.to_vec()));
        rounds += 1;
        assert!(rounds < 100_000, "it never ends");
    }
    let depth = spool.depth(Lane::Logs, "one");
    assert_eq!(depth.records, 0, "something waits that cannot be taken");
    given
}

fn open(folder: &Path) -> (Spool, Arc<Counted>) {
    let bounds = SpoolBounds { max_bytes: 8 << 20, when_full: WhenFull::Block };
    let counted = Arc::new(Counted::default());
    let settings = SpoolSettings { path: folder.to_owned(), bounds, dead_letter_bytes: 0 };
    let spool = Spool::on_disk(&settings, counted.clone()).expect("it always starts");
    spool.set_destinations(&["one".to_owned()]).unwrap();
    (spool, counted)
}

#[derive(Default)]
struct Counted(AtomicU64);

impl Losses for Counted {
    fn lost(&self, _: &str, _: Lane, _: Loss, records: u64) {
        self.0.fetch_add(records, Ordering::Relaxed);
    }
}

fn body(number: u64) -> Vec<u8> {
    format!("record {number} {}", "x".repeat(number as usize * 3)).into_bytes()
}

const RECORDS: u64 = 12;
const NEW: &[u8] = b"after all that";
