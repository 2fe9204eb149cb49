//! Whether a call costs the same with many clients and with many tools.

use std::time::Instant;

use crate::IN_FLIGHT;
use crate::client::Pipe;
use crate::process::{self, Proc, Scratch};

/// Each client has a session, and so an upstream, of its own; calls go to them in turn.
pub fn clients(scratch: &Scratch) {
    println!("\n{:<28} {:>16} {:>16} {:>16} {:>16}", "CPU µs/call", "mcpeg", "floor", "calls/s", "MiB a client");
    for clients in [1, 10, 100, 1000] {
        let folder = scratch.sidecar(&format!("clients-{clients}"), 1, None);
        let sidecar = process::start_sidecar(&folder);
        let idle = process::memory_of(sidecar.pid());
        let (cpu, per_second) = in_turn(&folder.join("run/services/echo.sock"), clients, sidecar.pid());
        let full = process::memory_of(sidecar.pid());
        drop(sidecar);
        let socket = scratch.path(&format!("floor-{clients}.sock"));
        let relay = Proc::start(&process::myself(), &["floor-relay", socket.to_str().expect("a UTF-8 path")], None);
        process::await_socket(&socket);
        let (floor, _) = in_turn(&socket, clients, relay.pid());
        let each = (full.rss - idle.rss) / clients as f64;
        println!("{:<28} {cpu:>16.1} {floor:>16.1} {per_second:>16.0} {each:>16.3}", format!("{clients} clients"));
    }
}

fn in_turn(socket: &std::path::Path, clients: usize, pid: u32) -> (f64, f64) {
    let mut pipes: Vec<Pipe> = (0..clients).map(|_| Pipe::connect(socket)).collect();
    for pipe in &mut pipes {
        pipe.handshake();
    }
    let mut next = (0..clients).cycle();
    let mut calls = |number: usize| {
        for _ in 0..number / IN_FLIGHT {
            let window: Vec<usize> = next.by_ref().take(IN_FLIGHT).collect();
            for client in &window {
                pipes[*client].ask("echo");
            }
            for client in &window {
                pipes[*client].answer();
            }
        }
    };
    calls(clients.max(WARM_UP));
    let (cpu, started) = (process::cpu_of(pid), Instant::now());
    calls(CALLS);
    let (cpu, took) = (process::cpu_of(pid) - cpu, started.elapsed());
    (cpu.as_secs_f64() * 1e6 / CALLS as f64, CALLS as f64 / took.as_secs_f64())
}

/// Rules for each tool, and the last one called: by the service's own socket, and by that of all services.
pub fn tools(scratch: &Scratch) {
    println!("\n{:<28} {:>16} {:>16} {:>16}", "CPU µs/call", "its own socket", "all services", "RSS MiB");
    for tools in [1, 10, 100, 500] {
        let folder = scratch.sidecar(&format!("tools-{tools}"), tools, None);
        let sidecar = process::start_sidecar(&folder);
        let tool = if tools == 1 { "echo".to_owned() } else { format!("tool_{}", tools - 1) };
        let mut costs = [("run/services/echo.sock", tool.clone()), ("run/mcpeg.sock", format!("echo__{tool}"))].map(
            |(socket, tool)| {
                let mut pipe = Pipe::connect(&folder.join(socket));
                pipe.handshake();
                pipe.list_tools();
                one_tool(&mut pipe, &tool, WARM_UP);
                let cpu = process::cpu_of(sidecar.pid());
                one_tool(&mut pipe, &tool, CALLS);
                (process::cpu_of(sidecar.pid()) - cpu).as_secs_f64() * 1e6 / CALLS as f64
            },
        );
        let [own, all] = &mut costs;
        let rss = process::memory_of(sidecar.pid()).rss;
        println!("{:<28} {own:>16.1} {all:>16.1} {rss:>16.1}", format!("{tools} tools"));
    }
}

fn one_tool(pipe: &mut Pipe, tool: &str, calls: usize) {
    for _ in 0..calls / IN_FLIGHT {
        (0..IN_FLIGHT).for_each(|_| pipe.ask(tool));
        (0..IN_FLIGHT).for_each(|_| pipe.answer());
    }
}

const WARM_UP: usize = 4_000;
const CALLS: usize = 96_000;
