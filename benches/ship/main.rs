//! What shipping log files costs, from the file to a collector's answer: `cargo bench --bench ship`, with the OpenTelemetry Collector's file
//! receiver beside it where that is installed.
//!
//! `-- --lines N --backlog MIB --idle SECONDS` change the numbers, `-- short` makes them small, to see that it works; `--program PATH` measures another
//! build, `--only PART` one part (`throughput`, `collector`, `backlog`, `idle`). A file is made beforehand
//! and renamed into the folder that is looked at; CPU is that of the shipper alone, from then until the last record is with the collector of this
//! program's own. Linux only.

// A benchmark that meets anything unexpected should stop there, and it prints because that is what it is for.
// There is no runtime whose threads could be blocked.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod process;
mod sink;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use process::Shipper;
use sink::Sink;

struct Sizes {
    lines: u64,
    backlog_mib: u64,
    idle: Duration,
}

impl Sizes {
    fn of_arguments() -> Self {
        let is_short = std::env::args().any(|argument| argument == "short");
        let number = |name: &str, default: u64, short: u64| {
            let given = argument(name).map(|given| given.parse().expect("a number"));
            given.unwrap_or(if is_short { short } else { default })
        };
        Self {
            lines: number("--lines", 1_000_000, 20_000),
            backlog_mib: number("--backlog", 256, 8),
            idle: Duration::from_secs(number("--idle", 30, 2)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Json,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Json => "JSON",
        }
    }

    /// A line of 200 bytes, its end included.
    fn line(self, number: u64) -> String {
        let mut line = match self {
            Self::Raw => format!(
                "2026-11-27T03:04:05.678901Z INFO agent::tools request {number} answered in {} ms ",
                number % 977
            ),
            Self::Json => format!(
                r#"{{"time":"2026-11-27T03:04:05.678901Z","level":"info","logger":"agent.tools","request":{number},"took_ms":{},"msg":""#,
                number % 977
            ),
        };
        let end = if self == Self::Json { "\"}\n" } else { "\n" };
        while line.len() + end.len() < LINE_BYTES {
            let word = WORDS[(line.len() + number as usize) % WORDS.len()];
            line.push_str(&word[..word.len().min(LINE_BYTES - end.len() - line.len())]);
        }
        line.push_str(end);
        line
    }
}

/// The folder of one shipper.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        fs::create_dir(place.path("in")).expect("a folder");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).expect("a mode");
    }

    /// Makes a file of so many lines where nobody looks for it.
    fn make(&self, format: Format, lines: u64) -> PathBuf {
        let path = self.path("made.log");
        let mut file = std::io::BufWriter::new(fs::File::create(&path).expect("a file"));
        (0..lines).for_each(|number| file.write_all(format.line(number).as_bytes()).expect("room on the disk"));
        file.flush().expect("room on the disk");
        path
    }

    /// `secrets`: so many live ones are looked for, and with any also what looks like a credential.
    fn configure(&self, port: u16, format: Format, secrets: usize, spool_mib: u64) {
        let keys: String =
            (0..secrets).map(|at| format!("k{at}: {{ token: live-secret-{at:04}-0123456789abcdef }}\n")).collect();
        let items: String = (0..secrets).map(|at| format!("    k{at}: {{ provider: dev, path: k{at} }}\n")).collect();
        let secrets_section = if secrets > 0 {
            format!("secrets:\n  providers: {{ dev: {{ type: file, path: keys.yaml }} }}\n  items:\n{items}")
        } else {
            String::new()
        };
        let format = if format == Format::Json { "json" } else { "plain" };
        self.write("keys.yaml", &keys);
        self.write(
            "mcpeg.yaml",
            &format!(
                "version: \"1.0\"\n{secrets_section}\
                 security: {{ redaction: {{ builtin: {} }} }}\n\
                 telemetry:\n  otlp: {{ endpoint: \"http://127.0.0.1:{port}\" }}\n  traces: {{ enabled: false }}\n  \
                 metrics: {{ enabled: false }}\n  spool: {{ path: spool, max_size_mb: {spool_mib} }}\n  \
                 logs: {{ files: [ {{ include: [\"in/*.log\"], format: {format} }} ] }}\n",
                secrets > 0
            ),
        );
    }

    fn mcpeg(&self) -> Shipper {
        let mut command = Command::new(program());
        command.args(["run", "--config"]).arg(self.path("mcpeg.yaml"));
        let shipper = Shipper::start(&mut command, self.0.path());
        shipper.says(self.0.path(), "ready");
        shipper
    }

    /// Bytes of the followed files that are not in the spool yet, and the records that are.
    fn unread(&self) -> Option<(u64, u64)> {
        let output = Command::new(program())
            .args(["status", "--json", "--config"])
            .arg(self.path("mcpeg.yaml"))
            .output()
            .ok()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let files = &status["telemetry"]["sources"]["files"];
        Some((files["unread_bytes"].as_u64()?, files["records"].as_u64()?))
    }
}

fn main() {
    let sizes = Sizes::of_arguments();
    let only = argument("--only");
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    println!(
        "{} lines of {LINE_BYTES} bytes from a file to a collector on loopback, http/protobuf, not compressed\n",
        sizes.lines
    );
    println!("{:<44} {:>10} {:>10} {:>10} {:>9}", "", "CPU-s/M", "lines/s", "B/line", "peak MiB");
    if wanted("throughput") {
        for format in [Format::Raw, Format::Json] {
            let plain = throughput(&sizes, format, 0);
            let redacting = throughput(&sizes, format, 20);
            println!(
                "{:<44} {:>9.0}%",
                format!("  redaction of {} adds", format.name()),
                100.0 * (redacting / plain - 1.0)
            );
        }
    }
    match peer("otelcol").filter(|_| wanted("collector")) {
        Some(otelcol) => [Format::Raw, Format::Json].into_iter().for_each(|format| collector(&otelcol, &sizes, format)),
        None => println!(
            "without the OpenTelemetry Collector: tests/peers/install.py ship installs it, MCPEG_PEERS names its answer"
        ),
    }
    if wanted("backlog") {
        backlog(&sizes);
    }
    if wanted("idle") {
        idle(&sizes);
    }
}

/// CPU seconds a million lines.
fn throughput(sizes: &Sizes, format: Format, secrets: usize) -> f64 {
    let (place, sink) = (Place::new(), Sink::start(0));
    place.configure(sink.port, format, secrets, 256);
    let made = place.make(format, sizes.lines);
    let shipper = place.mcpeg();
    let name = if secrets > 0 { "mcpeg, 20 secrets and patterns" } else { "mcpeg, nothing looked for" };
    measure(&format!("{}: {name}", format.name()), &place, &made, &sink, &shipper, sizes.lines)
}

fn measure(name: &str, place: &Place, made: &Path, sink: &Sink, shipper: &Shipper, lines: u64) -> f64 {
    let (before, started) = (shipper.cpu(), Instant::now());
    fs::rename(made, place.path("in/app.log")).expect("a rename");
    wait("every record", Duration::from_secs(600), || sink.records() >= lines);
    let (took, cpu) = (started.elapsed(), shipper.cpu() - before);
    assert_eq!(sink.records(), lines, "more records than lines");
    let (cpu, rate) = (cpu * 1e6 / lines as f64, lines as f64 / took.as_secs_f64());
    let bytes = sink.bytes() as f64 / lines as f64;
    println!("{name:<44} {cpu:>10.2} {rate:>10.0} {bytes:>10.0} {:>9.1}", shipper.memory("VmHWM"));
    cpu
}

/// The same by the OpenTelemetry Collector: its file receiver, in batches, with a queue that waits.
fn collector(program: &str, sizes: &Sizes, format: Format) {
    let (place, sink) = (Place::new(), Sink::start(0));
    let operators = if format == Format::Json { "    operators: [ { type: json_parser } ]\n" } else { "" };
    let configuration = format!(
        "receivers:\n  filelog:\n    include: [ in/*.log ]\n    start_at: beginning\n{operators}processors:\n  batch: {{}}\nexporters:\n  \
         otlphttp:\n    endpoint: http://127.0.0.1:{}\n    compression: none\n    sending_queue: {{ block_on_overflow: true }}\nservice:\n  \
         telemetry: {{ metrics: {{ level: none }} }}\n  pipelines:\n    logs: {{ receivers: [filelog], processors: [batch], exporters: [otlphttp] }}\n",
        sink.port
    );
    place.write("otelcol.yaml", &configuration);
    // A wheel does not say that a file is a program.
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let made = place.make(format, sizes.lines);
    let shipper = Shipper::start(Command::new(program).args(["--config", "otelcol.yaml"]), place.0.path());
    shipper.says(place.0.path(), "Everything is ready");
    let name = format!("{}: otelcol-contrib, filelog", format.name());
    measure(&name, &place, &made, &sink, &shipper, sizes.lines);
}

/// An outage with much to be kept, a kill in it, and what follows when the collector is back.
fn backlog(sizes: &Sizes) {
    let place = Place::new();
    let port = Sink::start(0).port;
    // The spool takes a little more than the lines do.
    place.configure(port, Format::Raw, 20, sizes.backlog_mib * 3 + 64);
    let lines = sizes.backlog_mib * 1024 * 1024 / LINE_BYTES as u64;
    let made = place.make(Format::Raw, lines);
    println!("\nan outage with {} MiB of lines ({lines}) that wait in the spool", sizes.backlog_mib);
    let shipper = place.mcpeg();
    fs::rename(&made, place.path("in/app.log")).expect("a rename");
    wait("the spool has all of it", Duration::from_secs(600), || {
        place.unread().is_some_and(|(unread, records)| unread == 0 && records >= lines)
    });
    row("peak RSS while it grew", format!("{:.1} MiB", shipper.memory("VmHWM")));
    shipper.kill();
    let started = Instant::now();
    let shipper = place.mcpeg();
    row("start with it to ready", format!("{:.0} ms", started.elapsed().as_secs_f64() * 1e3));
    std::thread::sleep(Duration::from_secs(3));
    row("peak RSS of a start with it, after 3 s", format!("{:.1} MiB", shipper.memory("VmHWM")));
    let before = shipper.cpu();
    let (sink, back) = (Sink::start(port), Instant::now());
    wait("the first record", Duration::from_secs(60), || sink.first().is_some());
    let first = sink.first().map_or(Duration::ZERO, |first| first.duration_since(back));
    row("first records after the collector is back", format!("{:.2} s", first.as_secs_f64()));
    wait("all of it", Duration::from_secs(600), || sink.records() >= lines);
    let (took, cpu) = (back.elapsed() - first, shipper.cpu() - before);
    row("drained at", format!("{:.0} lines/s", sink.records() as f64 / took.as_secs_f64()));
    row("CPU a million lines of it", format!("{:.2} s", cpu * 1e6 / lines as f64));
    row("peak RSS while it drained", format!("{:.1} MiB", shipper.memory("VmHWM")));
    row("records that came twice", format!("{}", sink.records() - lines));
}

/// A hundred files, to which nothing is added.
fn idle(sizes: &Sizes) {
    println!("\nat rest for {:?}: CPU of a core, RSS", sizes.idle);
    for (name, files, secrets) in
        [("no file (floor)", 0, 0), ("100 files", FILES, 0), ("100 files, 20 secrets and the patterns", FILES, 20)]
    {
        let (place, sink) = (Place::new(), Sink::start(0));
        place.configure(sink.port, Format::Raw, secrets, 64);
        for number in 0..files {
            fs::write(place.path(&format!("in/{number}.log")), Format::Raw.line(number)).expect("a file");
        }
        let shipper = place.mcpeg();
        wait("a record of each", Duration::from_secs(60), || sink.records() >= files);
        std::thread::sleep(Duration::from_secs(8));
        let (before, started) = (shipper.exact_cpu(), Instant::now());
        std::thread::sleep(sizes.idle);
        let share = 100.0 * (shipper.exact_cpu() - before) / started.elapsed().as_secs_f64();
        row(name, format!("{share:.3}%, {:.1} MiB", shipper.memory("VmRSS")));
    }
}

fn row(name: &str, value: String) {
    println!("{name:<44} {value:>16}");
}

fn wait(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < patience, "it took too long: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

/// The program under measurement.
fn program() -> String {
    argument("--program").unwrap_or_else(|| env!("CARGO_BIN_EXE_mcpeg").to_owned())
}

/// A program of the peers that are installed.
fn peer(name: &str) -> Option<String> {
    let peers: serde_json::Value = serde_json::from_slice(&fs::read(std::env::var_os("MCPEG_PEERS")?).ok()?).ok()?;
    Some(peers[name].as_str()?.to_owned())
}

const LINE_BYTES: usize = 200;
const FILES: u64 = 100;
const WORDS: [&str; 7] = ["upstream ", "session ", "retry ", "cache hit ", "from ", "answer ", "policy allow "];
