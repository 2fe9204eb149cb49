//! Everything that can be done to a trail is named, and nothing is that was not done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{AuditTrail, head};
use super::*;
use crate::ports::{AuditEvent, Outcome};
use crate::telemetry::rolling::{Rolling, set_aside, set_aside_from};
use crate::telemetry::settings::{AuditSettings, AuditSync};

fn trail(path: &Path) -> AuditTrail {
    let settings = AuditSettings {
        path: Some(path.to_owned()),
        required: true,
        sync: AuditSync::Interval,
        rolling: Rolling::NEVER,
        anchor_every: 4,
    };
    AuditTrail::open(settings, Arc::default()).unwrap()
}

fn record(trail: &AuditTrail, count: usize) -> Vec<LastRecord> {
    let event = AuditEvent::new("secret.rotated", Outcome::Success).with("mcpeg.secret.item", "weather");
    (0..count).filter_map(|_| trail.record(&event).unwrap().anchor).collect()
}

/// A trail of two files: records 1 to 6 (the first is `audit.opened`), and 7 (`audit.opened`) to 10.
fn two_files(folder: &Path) -> (PathBuf, Vec<PathBuf>, Vec<LastRecord>) {
    let path = folder.join("audit.log");
    let mut anchors = record(&trail(&path), 5);
    std::fs::write(head::path_of(&path), "").unwrap();
    set_aside(&path, std::time::UNIX_EPOCH).unwrap();
    let last = verify(&set_aside_from(&path).unwrap(), None, &[]).unwrap().last.unwrap();
    head::write(&path, last).unwrap();
    anchors.extend(record(&trail(&path), 3));
    let mut files = set_aside_from(&path).unwrap();
    files.push(path.clone());
    (path, files, anchors)
}

fn faults(files: &[PathBuf], head: Option<LastRecord>, anchors: &[LastRecord]) -> Vec<String> {
    let report = verify(files, head, anchors).unwrap();
    let name = |fault: &Fault| fault.to_string().rsplit('/').next().unwrap().to_owned();
    report.faults.iter().map(name).collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_trail_that_nobody_touched_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, files, anchors) = two_files(folder.path());
    let head = head::read(&path).unwrap();
    assert_eq!(head.seq, 6);
    let report = verify(&files, Some(head), &anchors).unwrap();
    assert_eq!(report.faults, []);
    assert_eq!((report.records, report.last.unwrap().seq), (10, 10));
    assert!(!anchors.is_empty());
    assert_eq!(faults(&files[1..], None, &[]), Vec::<String>::new(), "one file by itself");
}

#[test]
fn every_changed_byte_is_named_with_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let (path, files, _) = two_files(folder.path());
    let good = std::fs::read(&files[0]).unwrap();
    let second_line = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let third_line = second_line + good[second_line..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for at in second_line..third_line - 1 {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&files[0], &bad).unwrap();
        let found = faults(&files, None, &[]);
        assert!(found.iter().any(|fault| fault.contains("Z:2: ") || fault.contains("Z:3: ")), "byte {at}: {found:?}");
        assert!(found.len() <= 2, "byte {at}: {found:?}");
    }
    std::fs::write(&files[0], String::from_utf8(good).unwrap().replacen("weather", "whether", 1)).unwrap();
    assert_eq!(
        faults(&files, head::read(&path), &[]),
        ["audit.log.19700101T000000Z:2: record 2 was changed: its hash does not fit"]
    );
}

#[test]
fn a_removed_line_a_removed_file_and_a_moved_line_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files, _) = two_files(folder.path());
    let good = lines(&files[0]);
    let without = |numbers: &[usize]| {
        let kept = good.iter().enumerate().filter(|(index, _)| !numbers.contains(&(index + 1)));
        std::fs::write(&files[0], kept.map(|(_, line)| line.as_str()).collect::<String>()).unwrap();
        faults(&files, None, &[])
    };
    assert_eq!(without(&[3]), ["audit.log.19700101T000000Z:3: record 3 is missing before it"]);
    assert_eq!(without(&[3, 4]), ["audit.log.19700101T000000Z:3: records 3 to 4 are missing before it"]);
    assert_eq!(without(&[6]), ["audit.log:1: record 6 is missing before it"], "the end of a file that was set aside");
    assert_eq!(
        without(&[1]),
        ["audit.log.19700101T000000Z:1: records are missing before it: a file begins with audit.opened"]
    );
    let swapped = [&good[0], &good[2], &good[1], &good[3], &good[4], &good[5]].map(String::as_str).concat();
    std::fs::write(&files[0], swapped).unwrap();
    assert!(faults(&files, None, &[])[1].ends_with(":3: record 2 stands after record 3"));
}

#[test]
fn a_tail_that_was_cut_is_named_by_the_head_and_by_anchors() {
    let folder = tempfile::tempdir().unwrap();
    let (path, files, anchors) = two_files(folder.path());
    let last = verify(&files, None, &[]).unwrap().last.unwrap();
    let kept = lines(&path)[..2].concat();
    std::fs::write(&path, kept).unwrap();
    assert_eq!(
        faults(&files, Some(last), &[]),
        ["audit.log: its end is missing: the last record is 8, and the head file says that 10 was written"]
    );
    let late = LastRecord { seq: 9, ..anchors[0] };
    assert_eq!(
        faults(&files, None, &[late]),
        ["audit.log: its end is missing: the last record is 8, and an anchor says that 9 was written"]
    );
    let other = LastRecord { seq: 8, ..anchors[0] };
    let found = faults(&files, None, &[other]);
    assert_eq!(found, ["audit.log:2: record 8 is not the one that was written: the anchor has another hash"]);
}

#[test]
fn a_process_that_finds_its_tail_cut_says_so_in_the_trail() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let first = trail(&path);
    record(&first, 5);
    let last = first.lock().last();
    head::write(&path, last).unwrap();
    let kept = lines(&path)[..4].concat();
    std::fs::write(&path, kept).unwrap();
    record(&trail(&path), 1);
    let text = lines(&path);
    assert!(text[4].contains(r#""event":"audit.opened","outcome":"failure","seq":7"#), "{}", text[4]);
    assert!(text[4].contains(r#""mcpeg.audit.missing":2"#), "{}", text[4]);
    let report = verify(std::slice::from_ref(&path), None, &[]).unwrap();
    assert!(report.faults.is_empty() && report.notes.len() == 1, "{report:?}");
}

#[test]
fn a_torn_line_is_a_note_when_the_next_record_explains_it_and_a_fault_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    record(&trail(&path), 2);
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "{\"time\":\"20").unwrap();
    let report = verify(std::slice::from_ref(&path), None, &[]).unwrap();
    assert!(report.faults.is_empty() && report.notes[0].ends_with(":4: the last line is not whole"), "{report:?}");
    record(&trail(&path), 2);
    let report = verify(std::slice::from_ref(&path), None, &[]).unwrap();
    assert!(report.faults.is_empty() && report.notes[0].ends_with(":4: the line was torn when it was written"));
    let mut text = lines(&path);
    text.insert(2, "rubbish\n".to_owned());
    std::fs::write(&path, text.concat()).unwrap();
    assert_eq!(faults(std::slice::from_ref(&path), None, &[]), ["audit.log:3: the line is no record with a hash"]);
}

#[test]
fn a_tally_of_lost_events_explains_a_gap_of_that_size_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let trail = trail(&path);
    record(&trail, 2);
    let good = trail.lock().file.clone();
    trail.lock().file = Some(Arc::new(super::super::AuditFile::open(Path::new("/dev/full")).unwrap()));
    let event = AuditEvent::new("x.y", Outcome::Success);
    for _ in 0..3 {
        trail.record(&event).unwrap_err();
    }
    trail.lock().file = good;
    record(&trail, 2);
    let report = verify(std::slice::from_ref(&path), None, &[]).unwrap();
    assert!(report.faults.is_empty(), "{report:?}");
    assert!(report.notes[0].ends_with("3 events could not be written before it"));
}

#[test]
fn a_compressed_file_reads_as_the_plain_one() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _, _) = two_files(folder.path());
    let rolling = Rolling { compress: true, ..Rolling::NEVER };
    crate::telemetry::rolling::tidy(&path, &rolling, std::time::SystemTime::now()).unwrap();
    let mut files = set_aside_from(&path).unwrap();
    assert!(files[0].extension().unwrap() == "gz");
    files.push(path);
    assert_eq!(verify(&files, None, &[]).unwrap().records, 10);
}
