//! Verifies an audit trail: every line of its files in their order, the head file, and anchors that were kept elsewhere.
//!
//! What is found is named by file, line and record. A fault does not end the verification: it goes on from the hash that the line itself has,
//! so that one changed record is one fault. It reads, and changes nothing.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use super::chain::{Hash, unseal};
use super::file::LastRecord;

/// What a trail was found to be.
#[derive(Debug, Default)]
pub struct Report {
    pub files: Vec<Found>,
    pub faults: Vec<Fault>,
    /// Worth knowing, and no fault.
    pub notes: Vec<String>,
    pub records: u64,
    pub last: Option<LastRecord>,
}

/// One file that was read.
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub first: Option<u64>,
    pub last: Option<u64>,
}

/// Something that was done to the trail.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub file: PathBuf,
    /// Counted from 1; `None`: the file as a whole.
    pub line: Option<u64>,
    pub seq: Option<u64>,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Reads the files, oldest first. `head` is what the head file said before they were read.
pub fn verify(files: &[PathBuf], head: Option<LastRecord>, anchors: &[LastRecord]) -> io::Result<Report> {
    let mut walk = Walk { head, anchors: anchors.to_vec(), ..Walk::default() };
    for path in files {
        walk.file(path)?;
    }
    walk.end(files.last().map_or(Path::new(""), PathBuf::as_path));
    Ok(walk.report)
}

#[derive(Default)]
struct Walk {
    report: Report,
    head: Option<LastRecord>,
    /// Those that no record was met for yet.
    anchors: Vec<LastRecord>,
    /// A line before the present one that is no record, which only what follows can explain.
    odd: Option<(PathBuf, u64)>,
}

/// What verifying needs of a record.
#[derive(Deserialize)]
struct Record<'a> {
    event: &'a str,
    seq: u64,
    attributes: Attributes,
}

#[derive(Deserialize)]
struct Attributes {
    #[serde(rename = "mcpeg.audit.missing")]
    missing: Option<u64>,
    #[serde(rename = "mcpeg.audit.previous.hash")]
    previous: Option<String>,
}

impl Walk {
    fn file(&mut self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let mut reader: Box<dyn BufRead> = if path.extension().is_some_and(|extension| extension == "gz") {
            Box::new(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Box::new(BufReader::new(file))
        };
        self.report.files.push(Found { path: path.to_owned(), first: None, last: None });
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if reader.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            self.line(path, number, &line);
        }
        // What a crash has torn is explained by the file that was begun after it, or by nobody.
        Ok(())
    }

    fn line(&mut self, path: &Path, number: u64, line: &[u8]) {
        let whole = line.strip_suffix(b"\n");
        let read = unseal(whole.unwrap_or(line)).zip(serde_json::from_slice::<Record<'_>>(line).ok());
        let Some(((body, hash), record)) = read else {
            self.judge_odd(None);
            self.odd = Some((path.to_owned(), number));
            return;
        };
        self.judge_odd(Some(record.event));
        let first_of_file = number == 1;
        self.follow(path, number, &record, (body, hash), first_of_file);
        self.compare_with_kept(path, number, LastRecord { seq: record.seq, hash });
        self.report.records += 1;
        self.report.last = Some(LastRecord { seq: record.seq, hash });
        if let Some(found) = self.report.files.last_mut() {
            found.first.get_or_insert(record.seq);
            found.last = Some(record.seq);
        }
    }

    /// Whether the record is the one that comes after the last.
    fn follow(
        &mut self,
        path: &Path,
        line: u64,
        record: &Record<'_>,
        (body, hash): (&[u8], Hash),
        first_of_file: bool,
    ) {
        let opened = record.event == OPENED;
        if first_of_file && !opened && self.report.files.len() == 1 {
            self.fault(
                path,
                Some(line),
                Some(record.seq),
                "records are missing before it: a file begins with audit.opened".into(),
            );
        }
        let declared = record.attributes.previous.as_deref().and_then(Hash::parse);
        let before = match self.report.last {
            Some(last) => last,
            None => LastRecord { seq: record.seq.saturating_sub(1), hash: declared.unwrap_or(Hash::START) },
        };
        let fits = before.hash.after(body) == hash;
        let expected = before.seq + 1;
        let missing = record.seq.saturating_sub(expected);
        let explained =
            opened || (record.event == RESUMED && record.attributes.missing.is_some_and(|lost| missing <= lost));
        let seq = Some(record.seq);
        if record.seq < expected {
            self.fault(path, Some(line), seq, format!("record {} stands after record {}", record.seq, before.seq));
        } else if missing > 0 && !(explained && fits) {
            let which = if missing == 1 {
                format!("record {expected} is missing before it")
            } else {
                format!("records {expected} to {} are missing before it", record.seq - 1)
            };
            self.fault(path, Some(line), seq, which);
        } else if !fits && self.report.last.is_some() && first_of_file {
            self.fault(path, Some(line), seq, format!("record {} does not go on from the file before it", record.seq));
        } else if !fits && (self.report.last.is_some() || opened || declared.is_some()) {
            self.fault(path, Some(line), seq, format!("record {} was changed: its hash does not fit", record.seq));
        }
        let lost = record.attributes.missing.unwrap_or(0);
        if lost > 0 && explained && fits {
            let said = format!("{}:{line}: {lost} events could not be written before it", path.display());
            self.report.notes.push(said);
        }
    }

    fn compare_with_kept(&mut self, path: &Path, line: u64, record: LastRecord) {
        let mut wrong = Vec::new();
        self.anchors.retain(|anchor| {
            if anchor.seq == record.seq && anchor.hash != record.hash {
                wrong.push("the anchor has another hash");
            }
            anchor.seq != record.seq
        });
        if self.head.is_some_and(|head| head.seq == record.seq)
            && self.head.take().is_some_and(|head| head.hash != record.hash)
        {
            wrong.push("the head file has another hash");
        }
        for what in wrong {
            let what = format!("record {} is not the one that was written: {what}", record.seq);
            self.fault(path, Some(line), Some(record.seq), what);
        }
    }

    fn end(&mut self, path: &Path) {
        let last = self.report.last.map_or(0, |last| last.seq);
        if let Some((file, line)) = self.odd.take() {
            self.report.notes.push(format!("{}:{line}: the last line is not whole", file.display()));
        }
        let cut = |kept: &LastRecord, what: &str| {
            let kept = kept.seq;
            format!("its end is missing: the last record is {last}, and {what} says that {kept} was written")
        };
        if let Some(head) = self.head.take().filter(|head| head.seq > last) {
            self.fault(path, None, Some(head.seq), cut(&head, "the head file"));
        }
        for anchor in std::mem::take(&mut self.anchors) {
            if anchor.seq > last {
                self.fault(path, None, Some(anchor.seq), cut(&anchor, "an anchor"));
            } else {
                self.report.notes.push(format!("the record of the anchor {} is not in these files", anchor.seq));
            }
        }
    }

    /// A line that is no record is what a crash or a full disk leaves, if the next record says so.
    fn judge_odd(&mut self, next: Option<&str>) {
        let Some((file, line)) = self.odd.take() else { return };
        if next.is_some_and(|event| event == OPENED || event == RESUMED) {
            self.report.notes.push(format!("{}:{line}: the line was torn when it was written", file.display()));
        } else {
            self.fault(&file, Some(line), None, "the line is no record with a hash".to_owned());
        }
    }

    fn fault(&mut self, file: &Path, line: Option<u64>, seq: Option<u64>, what: String) {
        self.report.faults.push(Fault { file: file.to_owned(), line, seq, what });
    }
}

pub const OPENED: &str = "audit.opened";
pub const RESUMED: &str = "audit.resumed";
/// A longer line is no record.
const MOST_LINE_BYTES: u64 = 16 * 1024 * 1024;

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
