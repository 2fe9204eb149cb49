//! `mcpeg demo`: the main job on an embedded default, from a secret to a tool's call, and a rotation in the middle of it.
//!
//! It starts the real binary with a real configuration in a folder of its own, plays the agent, and looks at what came out. Every line
//! that it prints as a success was checked; the first thing that does not hold ends it with exit code 1.

mod agent;
mod folder;
mod processes;
pub mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{block_on, failed, say};
use agent::{Agent, Tally};
use folder::DemoFolder;
use processes::{MemoryView, Running};

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Leave the folder behind, to play with
    #[arg(long)]
    keep: bool,
}

pub fn demo(args: &DemoArgs) -> ExitCode {
    let keep = args.keep;
    block_on(2, async move {
        match play(keep).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("the demo failed: {error:#}")),
        }
    })
}

async fn play(keep: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let program = std::env::current_exe().context("finding this program")?;
    let (old, new) = (made_up_token(), made_up_token());

    say(
        "mcpeg demo: a credential rotates under load; the agent never sees it, no call fails, everything is on record\n",
    );
    let (upstream, listening) =
        Running::start(&program, &["demo-server", "--port", "0"], "listening on ", Stdio::inherit()).await?;
    let address = listening.trim_start_matches("listening on ").to_owned();
    let folder = DemoFolder::create(&address, &program, &old, keep).context("making the demo's folder")?;
    step(
        1,
        &format!(
            "a folder with a configuration, a secrets file, a template and two services: {}",
            folder.path().display()
        ),
    );

    let config = folder.config().display().to_string();
    let begun = Instant::now();
    let log = folder.log().context("making the sidecar's log")?;
    let (sidecar, ready) = Running::start(&program, &["run", "--config", &config], "ready", log.into())
        .await
        .with_context(|| format!("its log ends with: {}", last_line(&folder.log_path())))?;
    step(2, &format!("the sidecar was ready after {} ms", begun.elapsed().as_millis()));
    ensure!(ready.contains("mcpeg.sock"), "the ready line does not name the socket: {ready}");

    let mut agent = Agent::connect(&folder.socket()).await.context("connecting as an agent")?;
    use_tools(&mut agent, &old).await?;
    check_rendered(&folder, &old).await?;
    rotate_under_load(&folder, &old, &new, agent).await?;
    check_memory(&sidecar, &old).await?;
    show_audit(&folder, &[&old, &new])?;

    sidecar.stop().await.context("stopping the sidecar")?;
    upstream.stop().await.context("stopping the upstream")?;
    say(&format!("\nAll of it held, in {:.1} s.", started.elapsed().as_secs_f64()));
    if keep {
        say(&play_on(folder.path(), &address));
    }
    Ok(())
}

/// Lists the tools of both services and calls one of each.
async fn use_tools(agent: &mut Agent, token: &str) -> anyhow::Result<()> {
    let list = agent.request("tools/list", json!({})).await.context("listing tools")?;
    let names: Vec<&str> =
        list["tools"].as_array().into_iter().flatten().filter_map(|tool| tool["name"].as_str()).collect();
    ensure!(names.contains(&"weather__forecast") && names.contains(&"local__whoami"), "tools are missing: {names:?}");
    step(3, &format!("an agent connected to the socket and sees {} tools: {}", names.len(), names.join(", ")));

    let weather =
        agent.call("weather__forecast", json!({ "place": "Oslo" })).await.context("calling weather__forecast")?;
    let expected = server::fingerprint(token.as_bytes());
    for service in ["weather", "local"] {
        let said = agent
            .call(&format!("{service}__whoami"), json!({}))
            .await
            .with_context(|| format!("calling {service}__whoami"))?;
        ensure!(said.contains(&expected), "{service} was called by another credential: {said}");
    }
    step(
        4,
        &format!("a call: forecast(Oslo) = \"{weather}\"; both upstreams got the credential (fingerprint {expected})"),
    );
    no_secret_in(&agent.received, &[token])?;
    step(5, "the agent was sent no byte of it");
    Ok(())
}

async fn check_rendered(folder: &DemoFolder, token: &str) -> anyhow::Result<()> {
    let path = folder.rendered();
    wait_until(Duration::from_secs(3), || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(token)))
        .await
        .context("the rendered file does not hold the credential")?;
    Ok(())
}

/// Rotates the secret while several agents call, and counts what happened.
async fn rotate_under_load(folder: &DemoFolder, old: &str, new: &str, agent: Agent) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for service in ["weather", "weather", "local"] {
        let (agent, stop) = (Agent::connect(&folder.socket()).await?, stop.clone());
        callers.spawn(agent.keep_asking(format!("{service}__whoami"), move || stop.load(Ordering::Relaxed)));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;

    let rotated = Instant::now();
    folder.rotate(new).context("rotating the secret")?;
    let path = folder.rendered();
    let rendered =
        wait_until(Duration::from_secs(5), || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(new)))
            .await;
    let until_file = rotated.elapsed();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stop.store(true, Ordering::Relaxed);
    rendered.context("the rendered file did not follow the rotation")?;

    let tallies: Vec<Tally> = callers.join_all().await;
    let (calls, bad) = tallies.iter().fold((0, 0), |(calls, bad), tally| (calls + tally.calls, bad + tally.failed));
    let expected = [server::fingerprint(old.as_bytes()), server::fingerprint(new.as_bytes())];
    for tally in &tallies {
        ensure!(
            tally.credentials == expected,
            "an upstream was called by {:?}, not by {expected:?}",
            tally.credentials
        );
        no_secret_in(&tally.received, &[old, new])?;
    }
    no_secret_in(&agent.received, &[old, new])?;
    ensure!(bad == 0, "{bad} of {calls} calls failed");
    let slowest = tallies.iter().map(|tally| tally.slowest).max().unwrap_or_default();
    step(
        6,
        &format!(
            "the secret rotated while three agents called: the rendered file had it after {} ms",
            until_file.as_millis()
        ),
    );
    step(
        7,
        &format!(
            "{calls} calls, 0 failed, slowest {} ms; both upstreams moved from {} to {}; the agents were sent no byte of either",
            slowest.as_millis(),
            expected[0],
            expected[1]
        ),
    );
    Ok(())
}

/// Looks for the old value in the sidecar's memory, as far as the system lets this process look.
async fn check_memory(sidecar: &Running, old: &str) -> anyhow::Result<()> {
    match sidecar.search_memory(old.as_bytes())? {
        MemoryView::Refused => step(8, "the sidecar's memory: reading it as the same user was refused"),
        MemoryView::Searched { bytes, found } => {
            ensure!(found == 0, "{found} copies of the old value are left in the sidecar's memory");
            step(8, &format!("the sidecar's memory: {} MiB read, 0 copies of the old value", bytes / (1024 * 1024)));
        }
    }
    Ok(())
}

fn show_audit(folder: &DemoFolder, tokens: &[&str]) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(folder.audit()).context("reading the audit trail")?;
    no_secret_in(&text, tokens)?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut rotation = None;
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).context("a line of the audit trail is not JSON")?;
        let name = event["event"].as_str().unwrap_or("?").to_owned();
        if name == "secret.rotated" {
            rotation = Some(line.to_owned());
        }
        *counts.entry(name).or_default() += 1;
    }
    let Some(rotation) = rotation else { bail!("the rotation is not on record") };
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    step(9, &format!("on record: {}", counts.join(", ")));
    say(&format!("     {rotation}"));
    Ok(())
}

fn no_secret_in(text: &str, tokens: &[&str]) -> anyhow::Result<()> {
    ensure!(!tokens.iter().any(|token| text.contains(token)), "the credential itself was found where it must not be");
    Ok(())
}

fn last_line(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default().lines().last().unwrap_or("nothing").to_owned()
}

async fn wait_until(patience: Duration, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    while !holds() {
        ensure!(started.elapsed() < patience, "it did not happen within {} s", patience.as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn step(number: usize, text: &str) {
    say(&format!("  {number}  {text}"));
}

/// A token that nobody has used before.
fn made_up_token() -> String {
    let random = ring::rand::generate::<[u8; 12]>(&ring::rand::SystemRandom::new());
    let bytes = random.map(|random| random.expose()).unwrap_or_default();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("demo-{hex}")
}

fn play_on(folder: &Path, address: &str) -> String {
    let port = address.rsplit(':').next().and_then(|rest| rest.split('/').next()).unwrap_or("0");
    let folder = folder.display();
    format!(
        "\nThe folder is kept: {folder}. To play on:\n  mcpeg demo-server --port {port} &\n  mcpeg run --config {folder}/mcpeg.yaml &\n  \
         mcpeg status --config {folder}/mcpeg.yaml\n  mcpeg connect weather --config {folder}/mcpeg.yaml\n  rm -r {folder}"
    )
}
