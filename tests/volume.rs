//! Logs in volume: copies that are truncated under a fast writer, and tokens among very many lines.
//!
//! `MCPEG_ROTATE_SECONDS=60` and `MCPEG_PLANTED_LINES=1000000` for the full length.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually;
use crate::support::line_sink::LineSink;
use crate::support::sidecar::{Folder, Sidecar};

fn folder(sink: &LineSink, files: &str) -> Folder {
    let main = format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }} }}
  items: {{ db: {{ provider: dev, path: db }} }}
telemetry:
  otlp: {{ endpoint: "http://127.0.0.1:{}" }}
  traces: {{ enabled: false }}
  metrics: {{ enabled: false }}
  spool: {{ path: spool, max_size_mb: 32 }}
  logs: {{ files: [ {{ include: ["{files}"], format: json }} ] }}
"#,
        sink.port
    );
    let folder = Folder::new(&[("mcpeg.yaml", &main), ("keys.yaml", "db: { password: live-password-of-the-db }\n")]);
    fs::create_dir(folder.path("logs")).unwrap();
    folder
}

fn asked_for<T: std::str::FromStr>(variable: &str, default: T) -> T {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable}={value}")))
}

/// A file that one thread writes to and another one copies and truncates.
struct Rotated {
    file: Mutex<File>,
    ended: AtomicBool,
}

impl Rotated {
    /// Writes numbered lines, so many a second. How many.
    fn write(&self, a_second: usize, time: Duration) -> usize {
        let (started, mut written) = (Instant::now(), 0);
        while started.elapsed() < time {
            let due = (started.elapsed().as_secs_f64() * a_second as f64) as usize;
            let lines: String = (written..due).map(|at| format!("{{\"msg\":\"number {at}\"}}\n")).collect();
            self.file.lock().unwrap().write_all(lines.as_bytes()).unwrap();
            written = due.max(written);
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.ended.store(true, Ordering::SeqCst);
        written
    }

    /// As a rotation with `copytruncate` does, but that nothing may be written between the last look and the truncation: such lines are in no
    /// file any more, and nobody's to find. How often.
    fn rotate(&self, log: &Path) -> usize {
        let mut rotations = 0;
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(700));
            let copy = log.with_file_name(format!("agent.log.{rotations}"));
            let copied = fs::copy(log, &copy).unwrap();
            let file = self.file.lock().unwrap();
            let mut source = File::open(log).unwrap();
            source.seek(SeekFrom::Start(copied)).unwrap();
            let mut rest = Vec::new();
            source.read_to_end(&mut rest).unwrap();
            OpenOptions::new().append(true).open(&copy).unwrap().write_all(&rest).unwrap();
            file.set_len(0).unwrap();
            rotations += 1;
        }
        rotations
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_are_truncated_under_a_fast_writer_lose_no_line() {
    let time = Duration::from_secs(asked_for("MCPEG_ROTATE_SECONDS", 4));
    let sink = LineSink::start(&[]).await;
    let sidecar = Sidecar::start(folder(&sink, "logs/*.log"));
    let log = sidecar.folder.path("logs/agent.log");
    let file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
    let rotated = Rotated { file: Mutex::new(file), ended: AtomicBool::new(false) };
    let (written, rotations) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let rotates = scope.spawn(|| rotated.rotate(&log));
            let written = rotated.write(20_000, time);
            (written, rotates.join().unwrap())
        })
    });
    eventually(Duration::from_secs(120), "every line", async || {
        sink.look(|seen| (seen.distinct >= written).then_some(()))
    })
    .await;
    let (records, missing) = sink.look(|seen| (seen.records, seen.first_missing(written)));
    eprintln!("{written} lines in {time:?}, {rotations} rotations, {} came twice", records - written);
    assert_eq!(missing, None);
    assert!(rotations >= 3, "{rotations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_tokens_are_nowhere() {
    let lines: usize = asked_for("MCPEG_PLANTED_LINES", 50_000);
    let tokens = ["live-password-of-the-db", "ghp_0123456789abcdefghijklmnopqrstuvwxyzAB", "AKIAABCDEFGHIJKLMNOP"];
    let sink = LineSink::start(&tokens).await;
    let folder = folder(&sink, "logs/*");
    let planted = (0..lines).filter(|number| [7, 9, 11].contains(&(number % 1000))).count();
    let line = |number: usize| match number % 1000 {
        7 => format!("{{\"msg\":\"number {number} has {}\"}}\n", tokens[number / 1000 % 3]),
        9 => format!("plain number {number} {}\n", tokens[number / 1000 % 3]),
        11 => format!("{{\"msg\":\"number {number}\",\"in\":{{\"k\":[\"live\\u002dpassword-of-the-db\"]}}}}\n"),
        _ => format!("{{\"level\":\"info\",\"msg\":\"number {number}\"}}\n"),
    };
    // What a collector refuses for good goes to the dead letters.
    sink.answers(400);
    let sidecar = Sidecar::start(folder);
    sidecar.says("secret/db", &["ok"]).await;
    let log = File::create(sidecar.folder.path("logs/agent.log")).unwrap();
    let write = |numbers: std::ops::Range<usize>| {
        let mut file = std::io::BufWriter::new(&log);
        numbers.for_each(|number| file.write_all(line(number).as_bytes()).unwrap());
    };
    write(0..lines / 10);
    let spool = sidecar.folder.path("spool");
    let letters =
        || if spool.join("dead-letters").is_dir() { files_below(&spool.join("dead-letters")) } else { Vec::new() };
    let holds_a_mark = |letter: &std::path::PathBuf| has(&fs::read(letter).unwrap_or_default(), "[REDACTED:");
    eventually(Duration::from_secs(60), "lines that had tokens are dead letters", async || {
        letters().iter().any(holds_a_mark).then_some(())
    })
    .await;
    // On the way through as well as at the end: nobody may have written one down for a moment.
    assert_clean(&spool, &tokens);
    sink.answers(200);
    tokio::task::block_in_place(|| write(lines / 10..lines));
    eventually(Duration::from_secs(300), "the end", async || sink.look(|seen| seen.has(lines - 1).then_some(()))).await;
    assert_clean(&spool, &tokens);
    let (found, redacted, taken) = sink.look(|seen| (seen.found.clone(), seen.redacted, seen.distinct));
    eprintln!(
        "{lines} lines, {planted} tokens, {taken} lines taken, {redacted} marks on the wire, {} dead letters",
        letters().len()
    );
    assert!(found.is_empty(), "on the wire: {found:?}");
    assert!(redacted > 0 && taken > lines / 2, "{redacted} {taken}");
    let status = sidecar.status();
    let files = &status["telemetry"]["sources"]["files"];
    assert_eq!((&files["followed"], &files["unread_bytes"]), (&json!(1), &json!(0)), "{status}");
}

fn assert_clean(folder: &Path, tokens: &[&str]) {
    for file in files_below(folder) {
        // One that is gone meanwhile was delivered.
        let bytes = fs::read(&file).unwrap_or_default();
        for token in tokens {
            assert!(!has(&bytes, token), "{token} in {}", file.display());
        }
    }
}

fn has(bytes: &[u8], part: &str) -> bool {
    memchr::memmem::find(bytes, part.as_bytes()).is_some()
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
