//! The trail with a disk that is full, a file that is moved, and a restart.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::lifecycle::Shutdown;
use crate::ports::{AuditEvent, ConditionState, Outcome};
use crate::telemetry::rolling::Rolling;

use super::*;

fn settings(path: Option<&Path>, required: bool, sync: AuditSync) -> AuditSettings {
    AuditSettings { path: path.map(Path::to_owned), required, sync, rolling: Rolling::NEVER, anchor_every: 1000 }
}

fn trail(settings: AuditSettings) -> (Arc<AuditTrail>, Arc<Tallies>) {
    let tallies = Arc::new(Tallies::default());
    (Arc::new(AuditTrail::open(settings, tallies.clone()).unwrap()), tallies)
}

fn event() -> AuditEvent {
    AuditEvent::new("secret.rotated", Outcome::Success).with("mcpeg.secret.item", "weather")
}

/// Name and number of each event but that with which a file begins.
fn numbers(path: &Path) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let named = lines.map(|line| (line["event"].as_str().unwrap().to_owned(), line["seq"].as_u64().unwrap()));
    named.filter(|(event, _)| event != verify::OPENED).collect()
}

/// Runs the keeper as long as the returned set lives.
fn keeping(trail: &Arc<AuditTrail>) -> (JoinSet<()>, crate::lifecycle::ShutdownTrigger) {
    let (trigger, shutdown) = Shutdown::channel();
    let part = keeper::part(trail.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { (part.task)(shutdown).await.unwrap() });
    (tasks, trigger)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..400 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to pass: {what}");
}

#[tokio::test]
async fn numbers_continue_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    for _ in 0..2 {
        let (trail, _) = trail(settings(Some(&path), true, AuditSync::Each));
        trail.record(&event()).unwrap();
        trail.record(&event()).unwrap();
    }
    assert_eq!(numbers(&path).into_iter().map(|(_, seq)| seq).collect::<Vec<_>>(), [2, 3, 4, 5]);
}

#[test]
fn on_a_full_disk_a_required_event_is_refused() {
    let (trail, tallies) = trail(settings(Some(Path::new("/dev/full")), true, AuditSync::Interval));
    let refused = trail.record(&event()).unwrap_err();
    assert!(refused.reason.contains("No space left on device"), "{refused}");
    assert_eq!(tallies.total_audit(AuditFate::Refused), 1);
    let condition = trail.condition();
    assert_eq!(condition.state, ConditionState::Failed);
    let expected = "events cannot be written to /dev/full: No space left on device (os error 28); \
                    what they are about is refused (audit.required)";
    assert_eq!(condition.message, expected);
}

#[tokio::test]
async fn lost_events_are_counted_and_the_file_says_so_when_it_works_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let (trail, tallies) = trail(settings(Some(Path::new("/dev/full")), false, AuditSync::Interval));
    for _ in 0..3 {
        trail.record(&event()).unwrap();
    }
    assert_eq!(tallies.total_audit(AuditFate::Lost), 3);
    assert_eq!(trail.condition().state, ConditionState::Degraded);
    assert!(trail.condition().message.ends_with("3 are missing"), "{}", trail.condition().message);

    // The disk has room again; nobody records anything.
    trail.lock().file = Some(Arc::new(AuditFile::open(&path).unwrap()));
    let (_tasks, _trigger) = keeping(&trail);
    until("recovery", || trail.condition().state == ConditionState::Ok).await;
    trail.record(&event()).unwrap();
    assert_eq!(numbers(&path), [("audit.resumed".to_owned(), 5), ("secret.rotated".to_owned(), 6)]);
    assert!(std::fs::read_to_string(&path).unwrap().contains(r#""mcpeg.audit.missing":3"#));
}

#[test]
fn it_says_beforehand_that_it_would_refuse_and_tries_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let (trail, _) = trail(settings(Some(Path::new("/dev/full")), true, AuditSync::Each));
    assert!(trail.ready().is_ok(), "nothing has failed yet");
    trail.record(&event()).unwrap_err();
    assert!(trail.ready().unwrap_err().reason.contains("No space left on device"));
    // The disk has room again, and nobody keeps the file.
    trail.lock().file = Some(Arc::new(AuditFile::open(&path).unwrap()));
    assert!(trail.ready().is_err(), "it was tried a moment ago");
    trail.lock().failing.as_mut().unwrap().tried -= TRY_EVERY;
    trail.ready().unwrap();
    trail.record(&event()).unwrap();
    assert_eq!(numbers(&path), [("audit.resumed".to_owned(), 3), ("secret.rotated".to_owned(), 4)]);
    let staged = trail.stage(settings(Some(Path::new("/dev/full")), false, AuditSync::Interval)).unwrap();
    trail.commit(staged);
    trail.record(&event()).unwrap();
    assert!(trail.ready().is_ok(), "not required: events are lost, and nothing is refused");
}

#[test]
fn the_gap_is_on_record_before_the_event_that_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let (trail, _) = trail(settings(Some(Path::new("/dev/full")), true, AuditSync::Interval));
    for _ in 0..2 {
        trail.record(&event()).unwrap_err();
    }
    trail.lock().file = Some(Arc::new(AuditFile::open(&path).unwrap()));
    trail.record(&event()).unwrap();
    assert_eq!(numbers(&path), [("audit.resumed".to_owned(), 4), ("secret.rotated".to_owned(), 5)]);
    assert!(std::fs::read_to_string(&path).unwrap().contains(r#""mcpeg.audit.missing":2"#));
}

#[tokio::test]
async fn a_file_that_was_moved_or_removed_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let moved = folder.path().join("audit.log.1");
    let (trail, _) = trail(settings(Some(&path), true, AuditSync::Interval));
    let (mut tasks, trigger) = keeping(&trail);
    trail.record(&event()).unwrap();
    std::fs::rename(&path, &moved).unwrap();
    trail.record(&event()).unwrap();
    until("a new file", || path.exists()).await;
    until("its use", || trail.lock().file.as_ref().is_some_and(|file| file.is_in_place())).await;
    trail.record(&event()).unwrap();
    assert_eq!(numbers(&moved).len(), 2);
    assert_eq!(numbers(&path), [("secret.rotated".to_owned(), 5)]);
    trigger.fire();
    tasks.join_next().await.unwrap().unwrap();
    assert!(!trail.lock().file.as_ref().unwrap().is_dirty());
}

#[tokio::test]
async fn another_path_is_used_after_the_commit_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.log"), folder.path().join("b.log"));
    let (another, _) = trail(settings(Some(&second), true, AuditSync::Interval));
    for _ in 0..6 {
        another.record(&event()).unwrap();
    }
    let (trail, _) = trail(settings(Some(&first), true, AuditSync::Interval));
    trail.record(&event()).unwrap();
    assert!(trail.stage(settings(Some(Path::new("/dev/full/x")), true, AuditSync::Interval)).is_err());
    let staged = trail.stage(settings(Some(&second), true, AuditSync::Each)).unwrap();
    trail.record(&event()).unwrap();
    trail.commit(staged);
    trail.record(&event()).unwrap();
    assert_eq!(numbers(&first).len(), 2);
    assert!(std::fs::read_to_string(&second).unwrap().contains("\"seq\":8"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_share_a_sync_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let (trail, _) = trail(settings(Some(&path), true, AuditSync::Each));
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let trail = trail.clone();
        writers.spawn(async move {
            for _ in 0..25 {
                trail.record(&event()).unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    let numbers: Vec<u64> = numbers(&path).into_iter().map(|(_, seq)| seq).collect();
    assert_eq!(numbers, (2..=201).collect::<Vec<_>>());
}
