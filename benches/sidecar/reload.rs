//! What a reload of 500 services costs, and what the clients of one of them notice of it.
//!
//! The floor is the same client on the same sidecar while nothing is reloaded: its longest wait is the machine's, not the reload's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::Pipe;
use crate::millis;
use crate::process::{self, Scratch};

pub fn measure(scratch: &Scratch) {
    let folder = scratch.sidecar("reload", 1, None);
    let service = std::fs::read_to_string(folder.join("echo.yaml")).expect("the service's file");
    let main = std::fs::read_to_string(folder.join("mcpeg.yaml")).expect("the main file");
    std::fs::create_dir(folder.join("services")).expect("a folder");
    let names: Vec<String> = (1..SERVICES).map(|number| format!("service-{number}")).collect();
    names.iter().for_each(|name| write(&folder, name, &service));
    let entries: String =
        names.iter().map(|name| format!(", {name}: {{ config_file: services/{name}.yaml }}")).collect();
    let main = main.replace("echo.yaml }", &format!("echo.yaml }}{entries}"));
    std::fs::write(folder.join("mcpeg.yaml"), main).expect("a file");
    let sidecar = process::start_sidecar(&folder);
    let mut pipe = Pipe::connect(&folder.join("run/services/echo.sock"));
    pipe.handshake();
    pipe.one_at_a_time(WARM_UP);

    let quiet = longest(&mut pipe, || std::thread::park_timeout(QUIET));
    println!(
        "\nreload of {SERVICES} services, {ROUNDS} times, every time {CHANGED} of them changed, beside a client that calls without a pause:"
    );
    println!("{:<28} longest wait of a call {:>8.1} ms", "no reload (floor)", millis(quiet));
    let cpu = process::cpu_of(sidecar.pid());
    let mut times = Vec::new();
    let mut waits = Vec::new();
    for round in 0..ROUNDS {
        let changed = service.replace("timeout: 10s", &format!("timeout: {}s", 11 + round));
        names.iter().take(CHANGED).for_each(|name| write(&folder, name, &changed));
        let mut took = Duration::ZERO;
        waits.push(longest(&mut pipe, || took = reload(&folder)));
        times.push(took);
    }
    let cpu = process::cpu_of(sidecar.pid()) - cpu;
    times.sort();
    waits.sort();
    println!(
        "{:<28} longest wait of a call {:>8.1} ms, median of the rounds {:.1} ms",
        "mcpeg",
        millis(waits[ROUNDS - 1]),
        millis(waits[ROUNDS / 2])
    );
    println!(
        "{:<28} median {:.1} ms, slowest {:.1} ms from the request to its answer; {:.0} ms of CPU a round with the calls",
        "",
        millis(times[ROUNDS / 2]),
        millis(times[ROUNDS - 1]),
        millis(cpu) / ROUNDS as f64
    );
}

fn write(folder: &Path, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(format!("services/{name}.yaml"));
    let beside = folder.join("services/.beside");
    std::fs::write(&beside, text).expect("a file");
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    std::fs::rename(&beside, path).expect("a new name");
}

/// What `mcpeg reload` asks the admin socket, without the start of that program. The look at the files may have been faster.
fn reload(folder: &Path) -> Duration {
    let mut stream = UnixStream::connect(folder.join("run/admin.sock")).expect("the admin socket");
    let started = Instant::now();
    let request = "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let took = started.elapsed();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    took
}

/// The longest that a call took while `meanwhile` ran and a moment after.
fn longest(pipe: &mut Pipe, meanwhile: impl FnOnce() + Send) -> Duration {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            meanwhile();
            std::thread::park_timeout(AFTER);
            is_over.store(true, Ordering::Relaxed);
        });
        let mut longest = Duration::ZERO;
        while !is_over.load(Ordering::Relaxed) {
            longest = longest.max(pipe.one_at_a_time(1)[0]);
        }
        longest
    })
}

const SERVICES: usize = 500;
const CHANGED: usize = 100;
const ROUNDS: usize = 10;
const WARM_UP: usize = 2_000;
const QUIET: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_millis(300);
