//! The demo's child processes: started, awaited by their first line, searched, and ended with the demo.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// A child that said that it is ready. Dropping it kills it.
pub struct Running {
    child: Child,
    /// Held open, so that the child can go on writing.
    _stdout: BufReader<ChildStdout>,
}

/// What came of looking into a process.
pub enum MemoryView {
    Refused,
    Searched { bytes: usize, found: usize },
}

impl Running {
    /// Starts `program` and waits for its first line on standard output, which has to start with `expected`. Its own log goes to `log`.
    pub async fn start(program: &Path, args: &[&str], expected: &str, log: Stdio) -> anyhow::Result<(Self, String)> {
        let mut child = Command::new(program)
            .args(args)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", args.join(" ")))?;
        let mut stdout = BufReader::new(child.stdout.take().context("the child has no standard output")?);
        let mut line = String::new();
        let read = timeout(PATIENCE, stdout.read_line(&mut line)).await;
        match read {
            Ok(Ok(_)) if line.starts_with(expected) => {
                Ok((Self { child, _stdout: stdout }, line.trim_end().to_owned()))
            }
            Ok(Ok(0)) => bail!("`{}` ended before it was ready", args.join(" ")),
            Ok(Ok(_)) => bail!("`{}` said {:?}, not {expected:?}", args.join(" "), line.trim_end()),
            Ok(Err(error)) => Err(error).context("reading what the child says"),
            Err(_) => bail!("`{}` was not ready after {} s", args.join(" "), PATIENCE.as_secs()),
        }
    }

    /// Asks the child to end, and waits for it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).context("sending SIGTERM")?;
        }
        timeout(PATIENCE, self.child.wait()).await.context("it did not end")?.context("waiting for its end")?;
        Ok(())
    }

    /// Counts `needle` in every readable mapping of the child.
    pub fn search_memory(&self, needle: &[u8]) -> anyhow::Result<MemoryView> {
        let pid = self.child.id().context("the child has ended")?;
        let maps = match fs::read_to_string(format!("/proc/{pid}/maps")) {
            Ok(maps) => maps,
            Err(_) => return Ok(MemoryView::Refused),
        };
        let Ok(mut memory) = File::open(format!("/proc/{pid}/mem")) else { return Ok(MemoryView::Refused) };
        let (mut bytes, mut found) = (0, 0);
        for (start, end) in maps.lines().filter_map(readable_range) {
            let mut pages = vec![0; end - start];
            // Some mappings cannot be read although they are marked so: secret memory among them.
            let read = memory.seek(SeekFrom::Start(start as u64)).and_then(|_| memory.read_exact(&mut pages));
            if read.is_ok() {
                bytes += pages.len();
                found += pages.windows(needle.len()).filter(|window| *window == needle).count();
            }
        }
        Ok(MemoryView::Searched { bytes, found })
    }
}

fn readable_range(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let readable = words.next()?.starts_with('r');
    let range = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (readable && range.1 - range.0 <= LARGEST_MAPPING).then_some(range)
}

const PATIENCE: Duration = Duration::from_secs(20);
/// Larger ones are reserved address space, not memory.
const LARGEST_MAPPING: usize = 1 << 30;
