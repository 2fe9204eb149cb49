//! The same upstream behind streamable HTTP: mcpeg, and mcp-proxy (PyPI) and supergateway (npm) where they are in PATH.

use std::net::TcpListener;
use std::time::Instant;

use crate::client::Figures;
use crate::http::Http;
use crate::process::{self, Proc, Scratch};
use crate::{IN_FLIGHT, print};

pub fn measure(scratch: &Scratch) {
    println!("\nover HTTP:");
    let port = free_port();
    let sidecar = process::start_sidecar(&scratch.sidecar("over-http", 1, Some(port)));
    run("mcpeg, policy, audit, guard", port, "/mcp/echo", sidecar.pid());
    drop(sidecar);
    let [program, mode, tools] = process::upstream(1);
    let command = format!("{program} {mode} {tools}");
    let port = free_port().to_string();
    peer(scratch, "mcp-proxy", &["--port", &port, "--", &program, &mode, &tools], &port);
    let port = free_port().to_string();
    let args = ["--stdio", &command, "--outputTransport", "streamableHttp", "--stateful", "--port", &port];
    peer(scratch, "supergateway", &args, &port);
}

fn peer(scratch: &Scratch, name: &str, args: &[&str], port: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let Some(program) = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
    else {
        println!("{name:<28} is not in PATH");
        return;
    };
    let program = program.to_str().expect("a UTF-8 path").to_owned();
    let running = Proc::server(&program, args, &scratch.path(name));
    run(name, port.parse().expect("a number"), "/mcp", running.pid());
}

fn run(name: &str, port: u16, path: &'static str, pid: u32) {
    let mut first = Http::connect(port, path, None);
    let idle = process::memory_of(pid);
    let session = first.handshake();
    first.calls(1, WARM_UP);
    let mut latencies = first.calls(1 + WARM_UP, CALLS);
    let (cpu, started) = (process::cpu_of(pid), Instant::now());
    std::thread::scope(|scope| {
        for number in 1..=IN_FLIGHT {
            let session = session.clone();
            scope.spawn(move || Http::connect(port, path, session).calls(number * CALLS * 2, CALLS / IN_FLIGHT));
        }
    });
    let (took, cpu) = (started.elapsed(), process::cpu_of(pid) - cpu);
    print(name, &Figures::of(&mut latencies, CALLS, took, cpu));
    let after = process::memory_of(pid);
    println!("{:<28} RSS {:.1} MiB idle, {:.1} MiB after", "", idle.rss, after.rss);
}

/// Free a moment ago, and nobody else here takes ports.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

const WARM_UP: usize = 200;
const CALLS: usize = 8_000;
