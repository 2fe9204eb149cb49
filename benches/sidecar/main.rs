//! What the sidecar costs, beside its floor, in one run: `cargo bench --bench sidecar`.
//!
//! The same client and the same upstream three times: the upstream's own pipes, a bare relay from a Unix socket to the child (`floor`),
//! and mcpeg with policy, audit, metrics and leak guard on. Then memory, binary size, start to ready; what a call costs with 1 to 1,000 clients and
//! 1 to 500 tools; a reload of 500 services; and the same over HTTP beside other proxies. `-- one`, `-- clients`, `-- tools`, `-- reload`, `-- peers` is
//! a part alone. Linux only: it reads /proc.

// A benchmark that meets anything unexpected should stop there, and it prints because that is what it is for.
#![allow(clippy::expect_used, clippy::print_stdout)]

mod client;
mod echo;
mod floor;
mod http;
mod peers;
mod process;
mod reload;
mod scale;

use std::path::Path;
use std::time::{Duration, Instant};

use client::{Figures, Pipe};
use process::{Proc, Scratch};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.first().map(String::as_str) {
        Some("echo-upstream") => echo::serve(args[1].parse().expect("a number of tools")),
        Some("floor-relay") => floor::serve(Path::new(&args[1])),
        part => {
            // A client takes two descriptors here.
            let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let limits = rustix::process::Rlimit { current: limits.maximum, ..limits };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, limits).expect("up to the hard limit");
            let scratch = Scratch::new();
            for (name, measure) in PARTS {
                if part.is_none_or(|part| part == name) {
                    measure(&scratch);
                }
            }
        }
    }
}

type Part = (&'static str, fn(&Scratch));
const PARTS: [Part; 5] = [
    ("one", measure),
    ("clients", scale::clients),
    ("tools", scale::tools),
    ("reload", reload::measure),
    ("peers", peers::measure),
];

fn measure(scratch: &Scratch) {
    println!(
        "{CALLS} calls one at a time, {LOAD} calls with {IN_FLIGHT} in flight, after {WARM_UP} to warm up; message of {} bytes\n",
        client::request(1).len()
    );
    println!("{:<28} {:>8} {:>8} {:>10} {:>10}", "", "p50 µs", "p99 µs", "calls/s", "CPU µs/call");

    let direct = {
        let [program, mode, tools] = process::upstream(1);
        let mut child = Proc::start(&program, &[&mode, &tools], None);
        let pipe = child.pipe();
        let pid = child.pid();
        run("upstream's own pipes", pipe, pid)
    };
    let floor = {
        let socket = scratch.path("floor.sock");
        let relay = Proc::start(&process::myself(), &["floor-relay", socket.to_str().expect("a UTF-8 path")], None);
        process::await_socket(&socket);
        run("bare relay (floor)", Pipe::connect(&socket), relay.pid())
    };
    let folder = scratch.sidecar("sidecar", 1, None);
    let sidecar = process::start_sidecar(&folder);
    // What followed the start is given back after five seconds.
    std::thread::park_timeout(Duration::from_secs(8));
    let idle = process::memory_of(sidecar.pid());
    let ours = run("mcpeg, policy, audit, guard", Pipe::connect(&folder.join("run/services/echo.sock")), sidecar.pid());
    let after = process::memory_of(sidecar.pid());

    println!(
        "\nadded to the upstream's own pipes: floor p50 {:+.1} µs, mcpeg p50 {:+.1} µs, p99 {:+.1} µs",
        floor.p50 - direct.p50,
        ours.p50 - direct.p50,
        ours.p99 - direct.p99
    );
    println!(
        "mcpeg to floor: p50 {:.2}x, p99 {:.2}x, throughput {:.2}x, CPU a call {:.2}x",
        ours.p50 / floor.p50,
        ours.p99 / floor.p99,
        ours.per_second / floor.per_second,
        ours.cpu_micros / floor.cpu_micros
    );
    println!(
        "\nmemory idle: RSS {:.1} MiB, private dirty {:.1} MiB; after the calls above: RSS {:.1} MiB",
        idle.rss, idle.private_dirty, after.rss
    );
    drop(sidecar);
    let binary = process::program();
    let size = std::fs::metadata(&binary).map_or(0, |meta| meta.len());
    println!("binary: {:.1} MB", size as f64 / 1e6);
    starts(&folder);
}

/// Latency one at a time, throughput with many in flight, CPU of the process in the middle.
fn run(name: &str, mut pipe: Pipe, pid: u32) -> Figures {
    pipe.handshake();
    pipe.one_at_a_time(WARM_UP);
    let mut latencies = pipe.one_at_a_time(CALLS);
    let cpu = process::cpu_of(pid);
    let started = Instant::now();
    pipe.many_in_flight(LOAD, IN_FLIGHT);
    let took = started.elapsed();
    let cpu = process::cpu_of(pid) - cpu;
    let figures = Figures::of(&mut latencies, LOAD, took, cpu);
    print(name, &figures);
    figures
}

fn print(name: &str, figures: &Figures) {
    println!(
        "{name:<28} {:>8.1} {:>8.1} {:>10.0} {:>10.1}",
        figures.p50, figures.p99, figures.per_second, figures.cpu_micros
    );
}

/// From exec to the ready line.
fn starts(folder: &Path) {
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let started = Instant::now();
            let sidecar = process::start_sidecar(folder);
            let took = started.elapsed();
            drop(sidecar);
            took
        })
        .collect();
    times.sort();
    println!(
        "start to ready: median {:.1} ms, slowest of {} {:.1} ms",
        millis(times[times.len() / 2]),
        times.len(),
        millis(times[times.len() - 1])
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

const WARM_UP: usize = 2_000;
const CALLS: usize = 20_000;
const LOAD: usize = 1_000_000;
const IN_FLIGHT: usize = 16;
