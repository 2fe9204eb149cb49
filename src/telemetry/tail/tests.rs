//! Files under a writer, with an intake in memory in place of the spool. Time is what the test says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

use super::follow::Tools;
use super::glob::PathPattern;
use super::keeper::{Keeper, Turn};
use super::position;
use super::settings::{FileSet, StartAt};
use crate::ports::{RedactedCount, Redactor};
use crate::telemetry::intake::{Entry, Intake, NotTaken};
use crate::telemetry::lines::multiline::Multiline;
use crate::telemetry::lines::rules::{Pattern, Rules};

/// The intake, and what it was given.
#[derive(Default)]
struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    /// Uid and body of each record.
    records: Vec<(String, String)>,
    resources: Vec<BTreeMap<String, String>>,
    checkpoints: BTreeMap<String, Vec<u8>>,
    is_full: bool,
}

impl Intake for Kept {
    fn append(&self, entry: Entry<'_>) -> Result<(), NotTaken> {
        let mut state = self.0.lock().unwrap();
        if state.is_full {
            return Err(NotTaken::Full);
        }
        let request = ExportLogsServiceRequest::decode(entry.body).unwrap();
        let text = |value: Option<&Value>| match value {
            Some(Value::StringValue(text)) => text.clone(),
            other => panic!("{other:?}"),
        };
        let mut count = 0;
        for logs in request.resource_logs {
            let pairs = logs.resource.unwrap().attributes.into_iter();
            state.resources.push(pairs.map(|pair| (pair.key, text(pair.value.unwrap().value.as_ref()))).collect());
            for record in logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                let uid = record.attributes.iter().find(|pair| pair.key == "log.record.uid").unwrap();
                let uid = text(uid.value.as_ref().unwrap().value.as_ref());
                state.records.push((uid, text(record.body.unwrap().value.as_ref())));
                count += 1;
            }
        }
        assert_eq!(count, entry.records);
        if let Some((source, position)) = entry.checkpoint {
            match position {
                [] => state.checkpoints.remove(source),
                place => state.checkpoints.insert(source.to_owned(), place.to_vec()),
            };
        }
        Ok(())
    }

    fn checkpoints(&self) -> Vec<(String, Vec<u8>)> {
        self.0.lock().unwrap().checkpoints.clone().into_iter().collect()
    }
}

struct Open;

impl Redactor for Open {
    fn redact<'a>(&self, bytes: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        bytes.into()
    }

    fn counts(&self) -> Vec<RedactedCount> {
        Vec::new()
    }
}

/// A folder of logs and whoever follows them.
struct Bench {
    folder: TempDir,
    set: FileSet,
    kept: Arc<Kept>,
    keeper: Keeper,
    tools: Tools,
    now: Instant,
}

impl Bench {
    fn new(include: &str) -> Self {
        Self::with(include, |_| {})
    }

    fn with(include: &str, change: impl FnOnce(&mut FileSet)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut set = FileSet {
            include: vec![PathPattern::new(&folder.path().join(include))],
            exclude: Vec::new(),
            rules: Rules::default(),
            start_at: StartAt::Beginning,
            flush_after: Duration::from_secs(1),
            resource: BTreeMap::new(),
            attributes: BTreeMap::new(),
        };
        change(&mut set);
        let kept: Arc<Kept> = Arc::default();
        let keeper = Keeper::new(vec![Arc::new(set.clone())], BTreeMap::new(), &*kept);
        let tools = tools(&kept);
        Self { folder, set, kept, keeper, tools, now: Instant::now() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn copy_and_truncate(&self, from: &str, to: &str) {
        fs::copy(self.path(from), self.path(to)).unwrap();
        File::options().write(true).open(self.path(from)).unwrap().set_len(0).unwrap();
    }

    fn zip(&self, name: &str) {
        let mut encoder = GzEncoder::new(File::create(self.path(&format!("{name}.gz"))).unwrap(), Compression::fast());
        encoder.write_all(&fs::read(self.path(name)).unwrap()).unwrap();
        encoder.finish().unwrap();
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Looks for files and reads all that is there.
    fn look(&mut self) {
        self.keeper.scan(self.now);
        self.read();
    }

    fn read(&mut self) {
        self.keeper.all_are_due();
        for _ in 0..1000 {
            if self.keeper.turn(&mut self.tools, self.now, 7) != Turn::More {
                return;
            }
        }
        panic!("it never rests");
    }

    fn later(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// As if the process had been killed and started.
    fn restart(&mut self) {
        self.keeper = Keeper::new(vec![Arc::new(self.set.clone())], BTreeMap::new(), &*self.kept);
        self.tools = tools(&self.kept);
    }

    fn bodies(&self) -> Vec<String> {
        self.kept.0.lock().unwrap().records.iter().map(|(_, body)| body.clone()).collect()
    }

    fn uids(&self) -> Vec<String> {
        self.kept.0.lock().unwrap().records.iter().map(|(uid, _)| uid.clone()).collect()
    }

    fn set_full(&self, is_full: bool) {
        self.kept.0.lock().unwrap().is_full = is_full;
    }

    fn open_files(&self) -> u64 {
        self.keeper.figures().0
    }
}

fn tools(kept: &Arc<Kept>) -> Tools {
    Tools {
        buffer: vec![0; position::TAIL + 256 * 1024],
        reader: Default::default(),
        batch: Default::default(),
        intake: kept.clone(),
        redactor: Arc::new(Open),
        on_records: Box::new(|_| {}),
    }
}

#[test]
fn a_file_is_read_once_and_goes_on_after_a_restart() {
    let mut bench = Bench::new("*.log");
    bench.write("a.log", "one\ntwo\nhal");
    bench.look();
    assert_eq!(bench.bodies(), ["one", "two"]);
    bench.write("a.log", "f\n");
    bench.write("b.log", "other\n");
    bench.restart();
    bench.look();
    bench.write("c.log", "late\n");
    bench.look();
    assert_eq!(bench.bodies(), ["one", "two", "half", "other", "late"]);
}

#[test]
fn a_line_without_an_end_is_one_when_nothing_follows_for_long() {
    let mut bench = Bench::new("*.log");
    bench.write("a.log", "one\nlast words");
    bench.look();
    bench.later(20);
    bench.read();
    assert_eq!(bench.bodies(), ["one"]);
    bench.later(20);
    bench.read();
    assert_eq!(bench.bodies(), ["one", "last words"]);
}

#[test]
fn lines_that_belong_together_wait_a_moment_for_each_other() {
    let start = Multiline::Start(Pattern::new("^[a-z]").unwrap());
    let mut bench = Bench::with("*.log", |set| set.rules.multiline = Some(start));
    bench.write("a.log", "one\n 1\ntwo\n");
    bench.look();
    assert_eq!(bench.bodies(), ["one\n 1"]);
    bench.write("a.log", " 2\n unfin");
    bench.read();
    assert_eq!(bench.bodies().len(), 1);
    bench.later(2);
    bench.read();
    assert_eq!(bench.bodies(), ["one\n 1", "two\n 2"]);
    bench.write("a.log", "ished\n");
    bench.later(2);
    bench.read();
    bench.later(2);
    bench.read();
    assert_eq!(bench.bodies(), ["one\n 1", "two\n 2", " unfinished"]);
}

#[test]
fn a_renamed_file_is_read_to_its_end_and_let_go() {
    for include in ["app.log", "app.log*"] {
        let mut bench = Bench::new(include);
        bench.write("app.log", "one\n");
        bench.look();
        bench.write("app.log", "two\n");
        bench.rename("app.log", "app.log.1");
        bench.write("app.log.1", "three\n");
        bench.write("app.log", "four\n");
        bench.look();
        // Its program has it open still.
        bench.write("app.log.1", "five\nsix");
        bench.read();
        bench.later(30);
        bench.read();
        let mut found = bench.bodies();
        found.sort();
        assert_eq!(found, ["five", "four", "one", "six", "three", "two"], "{include}");
        bench.later(100);
        bench.read();
        assert_eq!(bench.open_files(), if include == "app.log" { 1 } else { 2 });
        bench.look();
        assert_eq!(bench.bodies().len(), 6);
    }
}

#[test]
fn what_a_truncation_took_is_read_from_the_copy() {
    for include in ["app.log", "app.log*"] {
        let mut bench = Bench::new(include);
        bench.write("app.log", "one\ntwo\n");
        bench.look();
        bench.write("app.log", "three\n");
        bench.copy_and_truncate("app.log", "app.log.1");
        bench.write("app.log", "four\n");
        bench.look();
        bench.look();
        let mut found = bench.bodies();
        found.sort();
        assert_eq!(found, ["four", "one", "three", "two"], "{include}");
        // The next one begins with the same line; the one after it grew beyond the old place at once.
        bench.copy_and_truncate("app.log", "app.log.2");
        bench.look();
        bench.write("app.log", "four\n");
        bench.look();
        bench.copy_and_truncate("app.log", "app.log.3");
        bench.write("app.log", "five, which is long enough\n");
        bench.look();
        bench.look();
        assert_eq!(bench.bodies().len(), 6, "{:?}", bench.bodies());
        let uids: BTreeSet<String> = bench.uids().into_iter().collect();
        assert_eq!(uids.len(), 6, "the same line at the same place of another generation is another record");
    }
}

#[test]
fn a_copy_that_is_seen_before_the_truncation_is_not_read_twice() {
    let mut bench = Bench::new("app.log*");
    bench.write("app.log", "one\ntwo\n");
    bench.look();
    bench.write("app.log", "three\n");
    fs::write(bench.path("app.log.1"), "one\n").unwrap();
    bench.look();
    fs::copy(bench.path("app.log"), bench.path("app.log.1")).unwrap();
    bench.look();
    File::options().write(true).open(bench.path("app.log")).unwrap().set_len(0).unwrap();
    bench.look();
    bench.write("app.log", "four\n");
    bench.look();
    assert_eq!(bench.bodies(), ["one", "two", "three", "four"]);
}

#[test]
fn what_was_rotated_and_packed_in_our_absence_is_found() {
    let mut bench = Bench::new("app.log");
    bench.write("app.log", "one\ntwo\n");
    bench.look();
    bench.write("app.log", "three\n");
    bench.rename("app.log", "app.log.3");
    bench.zip("app.log.3");
    for (name, text) in [("app.log.2", "four\n"), ("app.log.1", "five\n")] {
        std::thread::yield_now();
        bench.write(name, text);
        let later = std::time::SystemTime::now() + Duration::from_secs(if name.ends_with('1') { 20 } else { 10 });
        File::options().write(true).open(bench.path(name)).unwrap().set_modified(later).unwrap();
    }
    bench.write("app.log", "six\n");
    bench.restart();
    bench.look();
    bench.look();
    let mut found = bench.bodies();
    found.sort();
    assert_eq!(found, ["five", "four", "one", "six", "three", "two"]);
    bench.restart();
    bench.look();
    assert_eq!(bench.bodies().len(), 6, "once");
}

#[test]
fn packed_files_are_read_once_as_what_they_were() {
    let mut bench = Bench::new("app.log*");
    bench.write("old.log", "x\n");
    bench.write("app.log.5", "ancient\n");
    bench.zip("app.log.5");
    bench.write("app.log", "one\n");
    bench.look();
    bench.rename("app.log", "app.log.1");
    bench.look();
    bench.zip("app.log.1");
    bench.look();
    bench.later(100);
    bench.look();
    bench.look();
    bench.restart();
    bench.look();
    let mut found = bench.bodies();
    found.sort();
    assert_eq!(found, ["ancient", "one"]);
}

#[test]
fn what_was_there_at_the_first_start_can_be_left_out() {
    let mut bench = Bench::with("*.log", |set| set.start_at = StartAt::End);
    bench.write("a.log", "old\nolder");
    bench.write("b.log", "old\n");
    bench.look();
    bench.write("a.log", " half\nnew\n");
    bench.write("b.log", "new too\n");
    bench.write("late.log", "whole\n");
    bench.look();
    let mut found = bench.bodies();
    found.sort();
    assert_eq!(found, ["new", "new too", "whole"]);
    bench.restart();
    bench.write("a.log", "newer\n");
    bench.look();
    assert_eq!(bench.bodies().last().unwrap(), "newer");
}

#[test]
fn a_full_spool_holds_the_reading_up_and_nothing_is_missed() {
    let mut bench = Bench::new("app.log");
    bench.write("app.log", "one\n");
    bench.look();
    bench.set_full(true);
    bench.write("app.log", "two\n");
    bench.read();
    bench.rename("app.log", "app.log.1");
    bench.write("app.log", "three\n");
    bench.look();
    bench.copy_and_truncate("app.log", "app.log.0");
    bench.write("app.log", "four\n");
    bench.look();
    assert_eq!(bench.bodies(), ["one"]);
    bench.set_full(false);
    bench.look();
    bench.look();
    let mut found = bench.bodies();
    found.sort();
    // The third was never seen in its file: nothing of it had been read that could tell its copy.
    assert!(found == ["four", "one", "two"] || found == ["four", "one", "three", "two"], "{found:?}");
}

#[test]
fn a_log_of_a_pod_says_whose_it_is() {
    let mut bench = Bench::with("pods/*/*/*.log", |set| {
        set.resource.insert("service.name".into(), "mine".into());
    });
    let folder = bench.path("pods/shop_agent-0_uid7/main");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("0.log"), "x\n").unwrap();
    bench.look();
    let resource = bench.kept.0.lock().unwrap().resources[0].clone();
    assert_eq!((resource["k8s.pod.name"].as_str(), resource["service.name"].as_str()), ("agent-0", "mine"));
}

#[test]
fn more_than_a_buffer_is_read_and_every_line_once() {
    let mut bench = Bench::new("*.log");
    let text: String = (0..20_000).map(|number| format!("{number:06} {}\n", "x".repeat(number % 90))).collect();
    bench.write("a.log", &text);
    bench.look();
    let expected: Vec<&str> = text.lines().map(str::trim_end).collect();
    let found = bench.bodies();
    assert!(found.iter().map(|body| body.trim_end()).eq(expected));
}

#[derive(Debug, Clone)]
enum Deed {
    Write(u8),
    Rename,
    CopyTruncate,
    Zip,
    Look,
    Read,
    Restart,
    Full(bool),
    Later,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        6 => (1_u8..30).prop_map(Deed::Write),
        1 => Just(Deed::Rename),
        1 => Just(Deed::CopyTruncate),
        1 => Just(Deed::Zip),
        3 => Just(Deed::Look),
        3 => Just(Deed::Read),
        1 => Just(Deed::Restart),
        1 => any::<bool>().prop_map(Deed::Full),
        1 => Just(Deed::Later),
    ];
    proptest::collection::vec(deed, 1..40)
}

/// Moves the older ones up, as logrotate does.
fn shift(bench: &Bench) {
    for number in (1..40).rev() {
        for end in ["", ".gz"] {
            let from = format!("app.log.{number}{end}");
            if bench.path(&from).exists() {
                bench.rename(&from, &format!("app.log.{}{end}", number + 1));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is written, rotated, packed and killed, and however full the spool is: every line arrives, and a line that arrives twice
    /// can be known by its uid. Before each rotation something of the file was read, as it is while mcpeg runs.
    #[test]
    fn every_line_arrives(deeds in deeds(), all in any::<bool>()) {
        let mut bench = Bench::new(if all { "app.log*" } else { "app.log" });
        let mut written = 0;
        let mut write = |bench: &Bench, count: u8| for _ in 0..count {
            bench.write("app.log", &format!("line {written} of the writer\n"));
            written += 1;
        };
        write(&bench, 1);
        bench.look();
        let mut is_full = false;
        // A packed file may be one that nobody can know again when others have got the inodes: better twice than never.
        let is_certain = !deeds.iter().any(|deed| matches!(deed, Deed::Zip));
        for deed in deeds {
            match deed {
                Deed::Write(count) => write(&bench, count),
                Deed::Look => bench.look(),
                Deed::Read => bench.read(),
                Deed::Restart => bench.restart(),
                Deed::Full(full) => {
                    is_full = full;
                    bench.set_full(full);
                }
                Deed::Later => bench.later(7),
                Deed::Zip if bench.path("app.log.1").exists() => bench.zip("app.log.1"),
                Deed::Rename if !is_full => {
                    bench.look();
                    shift(&bench);
                    bench.rename("app.log", "app.log.1");
                    write(&bench, 1);
                }
                Deed::CopyTruncate if !is_full => {
                    bench.look();
                    write(&bench, 2);
                    shift(&bench);
                    bench.copy_and_truncate("app.log", "app.log.1");
                    write(&bench, 1);
                }
                _ => {}
            }
        }
        bench.set_full(false);
        for _ in 0..3 {
            bench.look();
            bench.later(120);
        }
        let state = bench.kept.0.lock().unwrap();
        let found: BTreeSet<&str> = state.records.iter().map(|(_, body)| body.as_str()).collect();
        let missing: Vec<usize> = (0..written).filter(|number| !found.contains(format!("line {number} of the writer").as_str())).collect();
        prop_assert!(missing.is_empty(), "missing {missing:?} of {written}");
        let distinct: BTreeSet<&(String, String)> = state.records.iter().collect();
        prop_assert!(distinct.len() == written || !is_certain, "a line has two uids: {} of {}", distinct.len(), written);
    }
}

#[test]
fn unreadable_and_odd_files_stop_nothing() {
    let mut bench = Bench::new("*");
    fs::create_dir(bench.path("folder.log")).unwrap();
    fs::write(bench.path("broken.gz"), b"\x1f\x8b\x08broken").unwrap();
    fs::write(bench.path("empty.log"), "").unwrap();
    bench.write("a.log", "one\n");
    bench.look();
    bench.look();
    assert_eq!(bench.bodies(), ["one"]);
    assert!(Path::new(&bench.path("broken.gz")).exists());
}
