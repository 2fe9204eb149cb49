//! The spool as its users see it, over a simulated disk.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::disk::Folder;
use super::simulated::SimulatedFolder;
use super::*;
use crate::telemetry::intake::{Entry, Intake, Kind};

#[derive(Default)]
struct Counted(Mutex<BTreeMap<(String, &'static str), u64>>);

impl Losses for Counted {
    fn lost(&self, destination: &str, _: Lane, why: Loss, records: u64) {
        let why = match why {
            Loss::Full => "full",
            Loss::Disk => "disk",
            Loss::Damaged => "damaged",
        };
        *self.0.lock().unwrap().entry((destination.to_owned(), why)).or_default() += records;
    }
}

/// A spool over simulated folders, which outlive it.
struct Bench {
    folders: [SimulatedFolder; Lane::ALL.len()],
    counted: Arc<Counted>,
    spool: Spool,
}

const ROOMY: SpoolBounds = SpoolBounds { max_bytes: 64 * 1024 * 1024, when_full: WhenFull::DropOldest };
/// Segments of 64 KiB, eight of them.
const SMALL: u64 = 512 * 1024;
const ALL: BatchLimit = BatchLimit { records: usize::MAX, bytes: usize::MAX };

impl Bench {
    fn new(bounds: SpoolBounds) -> Self {
        Self::over(Default::default(), bounds, &["one"])
    }

    fn over(folders: [SimulatedFolder; Lane::ALL.len()], bounds: SpoolBounds, destinations: &[&str]) -> Self {
        Self::sized(folders, bounds, destinations, bounds.segment_bytes())
    }

    fn sized(
        folders: [SimulatedFolder; Lane::ALL.len()],
        bounds: SpoolBounds,
        destinations: &[&str],
        segment_bytes: u64,
    ) -> Self {
        let counted = Arc::new(Counted::default());
        let opened: Vec<Arc<dyn Folder>> = folders.iter().map(|folder| Arc::new(folder.clone()) as _).collect();
        let folder = |lane: Lane| opened[lane as usize].clone();
        let store = DiskStore::open_in(folder, bounds, segment_bytes, counted.clone(), None).unwrap();
        let spool = Spool::with(Store::Disk(Box::new(store)));
        let bench = Self { folders, counted, spool };
        bench.destinations(destinations);
        bench
    }

    fn in_memory(capacity: usize) -> Self {
        let counted = Arc::new(Counted::default());
        let spool = Spool::in_memory(capacity, counted.clone());
        let bench = Self { folders: Default::default(), counted, spool };
        bench.destinations(&["one"]);
        bench
    }

    fn destinations(&self, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.spool.set_destinations(&names).unwrap();
    }

    /// As if the process was killed and started again.
    fn again(&self, bounds: SpoolBounds) -> Self {
        Self::over(self.folders.each_ref().map(SimulatedFolder::copy), bounds, &["one"])
    }

    fn append(&self, text: &str) -> Result<(), NotTaken> {
        self.spool.append(Lane::Logs, 1, text.as_bytes(), None)
    }

    fn take(&self, destination: &str, limit: BatchLimit) -> Vec<String> {
        let Some(batch) = self.spool.take(Lane::Logs, destination, limit).unwrap() else { return Vec::new() };
        let text = |chunk: &Chunk| String::from_utf8(chunk.body.to_vec()).unwrap();
        let texts = batch.chunks.iter().map(text).collect();
        self.spool.acknowledge(Lane::Logs, destination, batch.end).unwrap();
        texts
    }

    fn lost(&self, destination: &str, why: &'static str) -> u64 {
        self.counted.0.lock().unwrap().get(&(destination.to_owned(), why)).copied().unwrap_or(0)
    }

    fn segments(&self) -> usize {
        self.folders[Lane::Logs as usize].files().iter().filter(|(name, _)| name.ends_with(".seg")).count()
    }
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_kill_and_the_source_learns_where_it_was() {
    let bench = Bench::new(ROOMY);
    for number in 0..10 {
        let position = format!("at {number}");
        let checkpoint = Checkpoint { source: "file:1:2", position: position.as_bytes() };
        bench.spool.append(Lane::Logs, 1, number.to_string().as_bytes(), Some(checkpoint)).unwrap();
    }
    assert_eq!(bench.take("one", BatchLimit { records: 4, bytes: usize::MAX }), numbers(0..4));
    assert!(bench.spool.take(Lane::Logs, "one", ALL).unwrap().is_some(), "taken, and never acknowledged");
    assert_eq!(bench.take("one", ALL), numbers(0..0));

    let again = bench.again(ROOMY);
    assert_eq!(again.spool.checkpoint("file:1:2").unwrap(), b"at 9");
    assert_eq!(again.spool.depth(Lane::Logs, "one").records, 6);
    again.append("10").unwrap();
    assert_eq!(again.take("one", ALL), numbers(4..11));
    assert_eq!(again.spool.depth(Lane::Logs, "one"), Depth::default());
}

#[test]
fn every_destination_gets_everything_at_its_own_pace_and_the_slowest_keeps_the_segments() {
    let bench = Bench::over(Default::default(), ROOMY, &["one", "two"]);
    for number in 0..5 {
        bench.append(&number.to_string()).unwrap();
    }
    assert_eq!(bench.take("one", ALL), numbers(0..5));
    bench.append("5").unwrap();
    assert_eq!(bench.take("two", ALL), numbers(0..6));
    assert_eq!(bench.take("one", ALL), numbers(5..6));
    // One that is new gets what is left; of one that is gone nothing remains.
    bench.append("6").unwrap();
    bench.destinations(&["two", "three"]);
    assert!(bench.take("three", ALL).contains(&"6".to_owned()));
    assert_eq!(bench.take("one", ALL), numbers(0..0));
    let files = bench.folders[Lane::Logs as usize].files();
    assert!(!files.iter().any(|(name, _)| name == "one.cursor"), "{files:?}");
}

#[test]
fn segments_that_everybody_has_are_unlinked_and_the_positions_stay() {
    let bench = Bench::new(SpoolBounds { max_bytes: SMALL, when_full: WhenFull::Block });
    let body = "x".repeat(10_000);
    let checkpoint = Checkpoint { source: "s", position: b"7" };
    bench.spool.append(Lane::Logs, 1, b"first", Some(checkpoint)).unwrap();
    let mut taken = 0;
    while bench.append(&body).is_ok() {
        taken += 1;
    }
    assert!(taken >= 40 && bench.segments() >= 6, "{taken} {}", bench.segments());
    assert!(!bench.spool.has_room(Lane::Logs, body.len()));
    assert_eq!(bench.take("one", ALL).len(), taken + 1);
    assert_eq!(bench.segments(), 1);
    assert!(bench.spool.has_room(Lane::Logs, body.len()));
    assert_eq!(bench.again(ROOMY).spool.checkpoint("s").unwrap(), b"7");
    assert_eq!(bench.lost("one", "full"), 0);
}

#[test]
fn what_a_bound_drops_is_counted_for_each_destination_that_did_not_have_it() {
    let body = "x".repeat(10_000);
    for (when_full, first) in [(WhenFull::DropOldest, false), (WhenFull::DropNewest, true)] {
        let bench = Bench::over(Default::default(), SpoolBounds { max_bytes: SMALL, when_full }, &["one", "two"]);
        for number in 0..100 {
            bench.append(&format!("{number} {body}")).unwrap();
            if number == 9 {
                assert_eq!(bench.take("two", ALL).len(), 10);
            }
        }
        let kept = bench.take("one", ALL);
        assert_eq!(kept.len() as u64 + bench.lost("one", "full"), 100);
        assert_eq!(kept[0].starts_with("0 "), first);
        assert_eq!(kept.last().unwrap().starts_with("99 "), !first);
        let two = bench.take("two", ALL).len() as u64;
        assert_eq!(two + bench.lost("two", "full"), 90);
    }
}

#[test]
fn nothing_keeps_audit_events_out_and_they_force_others_out_only_where_that_is_asked() {
    for when_full in [WhenFull::Block, WhenFull::DropOldest] {
        let bench = Bench::new(SpoolBounds { max_bytes: SMALL, when_full });
        let body = "x".repeat(10_000);
        for _ in 0..100 {
            if bench.append(&body).is_err() {
                break;
            }
        }
        let audit = || bench.spool.append(Lane::Audit, 1, body.as_bytes(), None);
        let mut taken = 0;
        while audit().is_ok() {
            taken += 1;
            assert!(taken < 1000);
        }
        assert_eq!(audit(), Err(NotTaken::Full), "an audit event is never dropped");
        if when_full == WhenFull::Block {
            assert!((4..9).contains(&taken), "{taken}");
            assert_eq!(bench.lost("one", "full"), 0);
        } else {
            assert!(taken > 30, "{taken}");
            assert!(bench.lost("one", "full") > 30);
        }
    }
}

#[test]
fn a_full_disk_is_said_and_counted_and_over_when_there_is_room() {
    let block = SpoolBounds { when_full: WhenFull::Block, ..ROOMY };
    for (bounds, refuses) in [(block, true), (SpoolBounds { when_full: WhenFull::DropNewest, ..ROOMY }, false)] {
        let bench = Bench::new(bounds);
        bench.append("0").unwrap();
        bench.folders.iter().for_each(|folder| folder.limit(Some(20)));
        assert_eq!(bench.append("1"), if refuses { Err(NotTaken::Full) } else { Ok(()) });
        assert_eq!(bench.lost("one", "disk"), u64::from(!refuses));
        let replayable = Checkpoint { source: "s", position: b"1" };
        assert_eq!(bench.spool.append(Lane::Logs, 1, b"1", Some(replayable)), Err(NotTaken::Full));
        assert!(bench.spool.usage().unwrap().2.is_some());
        // What was written of a frame is no frame.
        assert_eq!(bench.again(bounds).take("one", ALL), numbers(0..1));
        bench.folders.iter().for_each(|folder| folder.limit(None));
        bench.append("1").unwrap();
        assert_eq!(bench.spool.usage().unwrap().2, None);
        assert_eq!(bench.take("one", ALL), numbers(0..2));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_goes_on_when_a_destination_has_made_some() {
    let bench = Bench::new(SpoolBounds { max_bytes: SMALL, when_full: WhenFull::Block });
    let body = "x".repeat(10_000);
    while bench.append(&body).is_ok() {}
    let waits = bench.spool.append_when_there_is_room(Lane::Logs, 1, body.as_bytes(), None);
    let mut waits = pin!(waits);
    tokio::select! {
        biased;
        done = &mut waits => panic!("{done:?}"),
        () = tokio::task::yield_now() => {}
    }
    assert!(bench.take("one", ALL).len() > 40);
    waits.await.unwrap();
    assert_eq!(bench.take("one", ALL).len(), 1);
}

/// A few segments with records of a few sources, some of it acknowledged.
fn small_spool() -> Bench {
    let bench = Bench::sized(Default::default(), ROOMY, &["one"], 700);
    for number in 0..24 {
        if number == 4 {
            assert_eq!(bench.take("one", ALL), numbers(0..4));
        }
        let position = format!("{number}");
        let checkpoint = Checkpoint { source: ["a", "b"][number % 2], position: position.as_bytes() };
        bench.spool.append(Lane::Logs, 1, position.as_bytes(), Some(checkpoint)).unwrap();
    }
    bench
}

#[test]
fn a_bit_flipped_anywhere_costs_one_frame_at_most_and_never_the_start() {
    let bench = small_spool();
    let logs = &bench.folders[Lane::Logs as usize];
    let mut flips = 0;
    for (name, length) in logs.files() {
        for bit in 0..length * 8 {
            let folders = bench.folders.each_ref().map(SimulatedFolder::copy);
            folders[Lane::Logs as usize].change(&name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let damaged = Bench::over(folders, ROOMY, &["one"]);
            damaged.append("24").unwrap();
            let mut got = damaged.take("one", ALL);
            got.extend(damaged.take("one", ALL));
            let missing = numbers(4..25).iter().filter(|wanted| !got.contains(wanted)).count() as u64;
            assert!(missing <= 1, "{name} bit {bit}: {got:?}");
            // The last frame is taken for a torn one, which its source sends again.
            let at_the_end = !got.contains(&"23".to_owned());
            assert!(damaged.lost("one", "damaged") == missing || at_the_end, "{name} bit {bit}: {got:?}");
            let position = |source| damaged.spool.checkpoint(source).map(|at| String::from_utf8(at).unwrap());
            assert_eq!(position("a").as_deref(), Some(if got.contains(&"22".to_owned()) { "22" } else { "20" }));
            assert_eq!(position("b").as_deref(), Some(if at_the_end { "21" } else { "23" }));
            flips += 1;
        }
    }
    assert!(flips > 10_000 && bench.segments() > 1, "{flips}");
}

#[test]
fn a_file_cut_anywhere_starts_and_gives_what_is_left() {
    let bench = small_spool();
    let logs = &bench.folders[Lane::Logs as usize];
    for (name, length) in logs.files() {
        for cut in 0..length {
            let folders = bench.folders.each_ref().map(SimulatedFolder::copy);
            folders[Lane::Logs as usize].change(&name, |bytes| bytes.truncate(cut));
            let torn = Bench::over(folders, ROOMY, &["one"]);
            torn.append("new").unwrap();
            let got = torn.take("one", ALL);
            assert_eq!(got.last().map(String::as_str), Some("new"), "{name} cut at {cut}");
            // In order, and what is missing before the newest segment is counted; at its end it is a torn tail.
            let left: Vec<usize> = got.iter().filter_map(|text| text.parse().ok()).collect();
            assert!(left.is_sorted(), "{name} cut at {cut}: {got:?}");
            // Without a cursor it begins at the oldest.
            let missing = (20 - left.iter().filter(|number| **number >= 4).count()) as u64;
            let torn_tail = left.windows(2).all(|pair| pair[1] == pair[0] + 1);
            assert!(torn.lost("one", "damaged") == missing || torn_tail, "{name} cut at {cut}: {got:?}");
        }
    }
}

#[test]
fn a_power_failure_costs_only_what_was_not_synced() {
    for keep in (0..600).step_by(7) {
        let bench = Bench::new(ROOMY);
        for number in 0..5 {
            bench.append(&number.to_string()).unwrap();
        }
        bench.spool.sync().unwrap();
        for number in 5..10 {
            bench.append(&number.to_string()).unwrap();
        }
        // The cursor happened to reach the disk, the frames before it did not.
        let cursor = bench.folders[Lane::Logs as usize].open("one.cursor", false).unwrap();
        bench.take("one", BatchLimit { records: 7, bytes: usize::MAX });
        cursor.sync().unwrap();
        let folders = bench.folders.each_ref().map(|folder| folder.after_power_failure(keep));
        let after = Bench::over(folders, ROOMY, &["one"]);
        after.append("new").unwrap();
        let got = after.take("one", ALL);
        assert_eq!(got.last().map(String::as_str), Some("new"), "{keep}: {got:?}");
        assert!(got.iter().filter_map(|text| text.parse::<usize>().ok()).all(|number| number >= 7), "{got:?}");
    }
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let settings = SpoolSettings { path: folder.path().join("spool"), bounds: ROOMY, dead_letter_bytes: 0 };
    let open = || Spool::on_disk(&settings, Arc::new(Counted::default()));
    let first = open().unwrap();
    assert_eq!(open().err().unwrap().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    let again = open().unwrap();
    again.set_destinations(&["one".to_owned()]).unwrap();
    again.append(Lane::Traces, 3, b"spans", None).unwrap();
    again.sync().unwrap();
    drop(again);
    let third = open().unwrap();
    third.set_destinations(&["one".to_owned()]).unwrap();
    let batch = third.take(Lane::Traces, "one", ALL).unwrap().unwrap();
    assert_eq!((batch.records(), &batch.chunks[0].body[..]), (3, &b"spans"[..]));
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(settings.path.join("traces")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn in_memory_the_oldest_go_except_those_whose_source_can_wait() {
    let bench = Bench::in_memory(3);
    for number in 0..3 {
        bench.append(&number.to_string()).unwrap();
    }
    let held = bench.spool.take(Lane::Logs, "one", BatchLimit { records: 2, bytes: usize::MAX }).unwrap().unwrap();
    for number in 3..9 {
        bench.append(&number.to_string()).unwrap();
    }
    assert_eq!(bench.lost("one", "full"), 4, "2, 3, 4 and 5; what is on its way is kept by whoever took it");
    let checkpoint = Checkpoint { source: "s", position: b"1" };
    assert_eq!(bench.spool.append(Lane::Logs, 1, b"9", Some(checkpoint)), Err(NotTaken::Full));
    bench.spool.acknowledge(Lane::Logs, "one", held.end).unwrap();
    assert_eq!(bench.take("one", ALL), numbers(6..9));
    assert_eq!(bench.spool.append(Lane::Logs, 1, b"9", Some(checkpoint)), Ok(()));
    assert_eq!(
        bench.spool.append(Lane::Logs, 1, &vec![0; MOST_BODY_BYTES + 1], None),
        Err(NotTaken::TooLarge { bytes: MOST_BODY_BYTES + 1 })
    );
    assert_eq!(bench.take("one", ALL), numbers(9..10));
    assert_eq!(bench.spool.depth(Lane::Logs, "one"), Depth::default());
}

/// Appends through the door that sources use, until one has to wait. How many were taken.
fn fill_by_a_source(bench: &Bench) -> usize {
    let body = vec![b'x'; 10_000];
    let append = |number: usize| {
        let position = number.to_string();
        let entry = Entry { kind: Kind::Logs, records: 1, body: &body, checkpoint: Some(("s", position.as_bytes())) };
        Intake::append(&bench.spool, entry).is_ok()
    };
    (0..MANY).take_while(|number| append(*number)).count()
}

const MANY: usize = 500;

#[test]
fn a_destination_that_is_gone_for_long_holds_up_no_source_of_another() {
    let bounds = |when_full| SpoolBounds { max_bytes: SMALL, when_full };
    let on_disk = |when_full| Bench::over(Default::default(), bounds(when_full), &["up", "away"]);
    let in_memory = Bench::in_memory(40);
    in_memory.destinations(&["up", "away"]);
    for (bench, is_dropped) in
        [(on_disk(WhenFull::DropOldest), true), (in_memory, true), (on_disk(WhenFull::Block), false)]
    {
        let first = fill_by_a_source(&bench);
        assert!((30..60).contains(&first), "nobody has anything: {first}");
        assert_eq!(bench.take("up", ALL).len(), first);
        let then = fill_by_a_source(&bench);
        if is_dropped {
            assert!((20..60).contains(&then), "as far as the foremost is: {then}");
            assert_eq!(bench.take("up", ALL).len(), then);
            let (left, lost) = (bench.take("away", ALL).len(), bench.lost("away", "full"));
            assert_eq!((left as u64 + lost, lost > 0), ((first + then) as u64, true));
            assert!(left >= 20, "{left}");
        } else {
            assert_eq!((then, bench.lost("away", "full")), (0, 0));
        }
        assert_eq!(bench.lost("up", "full"), 0);
    }
}

proptest! {
    /// Whatever is appended, taken, acknowledged and killed: nothing is lost, and nothing comes out of order.
    #[test]
    fn in_order_and_at_least_once(steps in proptest::collection::vec((0_u8..5, 1_usize..2000), 1..80)) {
        let mut bench = Bench::sized(Default::default(), ROOMY, &["one"], 10_000);
        let (mut appended, mut acknowledged) = (0_u64, 0_u64);
        for (what, size) in steps {
            match what {
                0..3 => {
                    let records = u32::try_from(size % 3 + 1).unwrap();
                    bench.spool.append(Lane::Logs, records, &vec![7; size * 10], None).unwrap();
                    appended += u64::from(records);
                }
                3 => {
                    if let Some(batch) = bench.spool.take(Lane::Logs, "one", BatchLimit { records: size % 7 + 1, bytes: size * 30 }).unwrap() {
                        prop_assert_eq!(batch.chunks[0].first + u64::from(batch.chunks[0].skip), acknowledged);
                        prop_assert_eq!(acknowledged + batch.records(), batch.end);
                        // Some of it, as when a collector takes only half at a time; the rest comes after a start.
                        let upto = acknowledged + (batch.records() / 2).max(1);
                        bench.spool.acknowledge(Lane::Logs, "one", upto).unwrap();
                        acknowledged = upto;
                        bench = bench.again(ROOMY);
                    }
                }
                _ => bench = bench.again(ROOMY),
            }
            prop_assert_eq!(bench.spool.depth(Lane::Logs, "one").records, appended - acknowledged);
        }
        prop_assert_eq!(bench.counted.0.lock().unwrap().len(), 0);
    }
}
