//! A shipper under measurement: started, weighed through /proc, ended.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Shipper(Child);

impl Shipper {
    /// What it says goes to the file `said` of the folder that it runs in.
    pub fn start(command: &mut Command, folder: &Path) -> Self {
        let said = fs::File::create(folder.join("said")).expect("a file");
        let also = said.try_clone().expect("a second descriptor");
        let command = command.current_dir(folder).env("RUST_BACKTRACE", "0");
        Self(command.stdin(Stdio::null()).stdout(said).stderr(also).spawn().expect("the program starts"))
    }

    /// Waits until the file of what it says has this in it.
    pub fn says(&self, folder: &Path, words: &str) {
        let started = Instant::now();
        loop {
            let said = fs::read_to_string(folder.join("said")).unwrap_or_default();
            if said.contains(words) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it never said {words:?} but:\n{said}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Seconds of CPU so far, in steps of the kernel's clock (10 ms), its threads that have ended included.
    pub fn cpu(&self) -> f64 {
        let stat = self.read("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
        (ticks(11) + ticks(12)) / 100.0
    }

    /// As `cpu`, to the nanosecond, of the threads that there are.
    pub fn exact_cpu(&self) -> f64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("a process");
        let of = |task: fs::DirEntry| -> Option<f64> {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok()
        };
        tasks.filter_map(|task| of(task.ok()?)).sum::<f64>() / 1e9
    }

    /// MiB: `VmHWM`, the most since it started, or `VmRSS`, now.
    pub fn memory(&self, what: &str) -> f64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("it is told");
        line.trim_matches([':', '\t', ' ']).split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number")
            / 1024.0
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).expect("a process")
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.end();
    }
}
