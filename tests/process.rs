//! The supervised process: what it is given, how it follows its secrets, how it ends, and what is known of what it prints.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::collector::Collector;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar, signal_process};
use crate::support::{eventually, memory};

const OLD: &str = "old-secret-value-0001-abcdefghijkl";
const NEW: &str = "new-secret-value-0002-abcdefghijkl";

/// A folder in which `agent.sh` runs as `process` says; it finds the folder in `$HERE`.
fn folder(process: &str, script: &str) -> Folder {
    let folder = Folder::new(&[("agent.sh", script), ("keys.yaml", &keys(OLD))]);
    let here = folder.path("");
    let main = format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }}, own: {{ type: environment }} }}
  items:
    one: {{ provider: dev, path: one, refresh: 200ms }}
    two: {{ provider: dev, path: two, refresh: 200ms }}
    own: {{ provider: own, path: OWN_CREDENTIAL, require_at_start: false }}
audit: {{ path: audit.log }}
process:
  command: [sh, agent.sh]
  working_directory: .
  env: {{ HERE: "{}", ONE: "${{secret.one}}", TWO: "Bearer ${{secret.two}}" }}
{process}
"#,
        here.display()
    );
    folder.write("mcpeg.yaml", &main);
    folder
}

fn keys(value: &str) -> String {
    format!("one: {{ value: {value} }}\ntwo: {{ value: {value} }}\n")
}

/// Notes its starts and its variables, and waits.
const NOTING: &str = r#"
trap 'echo hup >> "$HERE/signals"' HUP
trap 'echo usr1 >> "$HERE/signals"' USR1
trap 'echo term >> "$HERE/signals"; exit 0' TERM
env > "$HERE/env"
echo "$$ $ONE $TWO" >> "$HERE/starts"
while :; do sleep 0.05; done
"#;

async fn starts(sidecar: &Sidecar, count: usize) -> Vec<String> {
    let what = format!("{count} starts");
    eventually(Duration::from_secs(15), &what, async || {
        let lines: Vec<String> = sidecar.folder.read("starts").lines().map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
    .await
}

async fn signals(sidecar: &Sidecar, word: &str) {
    eventually(Duration::from_secs(10), word, async || sidecar.folder.read("signals").contains(word).then_some(()))
        .await;
}

fn pid_of(start: &str) -> u32 {
    start.split(' ').next().unwrap().parse().unwrap()
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_has_the_named_secrets_and_plain_variables_and_no_credential_of_ours() {
    let credentials = [
        ("OWN_CREDENTIAL", "credential-1"),
        ("VAULT_TOKEN", "credential-2"),
        ("BAO_SECRET_ID", "credential-3"),
        ("AWS_SECRET_ACCESS_KEY", "credential-4"),
        ("MCPEG_GLOBAL__LOG_LEVEL", "debug"),
        ("PLAIN", "plain-1"),
        ("VAULT_ADDR", "http://127.0.0.1:1"),
    ];
    let sidecar = Sidecar::start_with(folder("", NOTING), &credentials);
    let first = starts(&sidecar, 1).await;
    assert!(first[0].ends_with(&format!(" {OLD} Bearer {OLD}")), "{first:?}");
    let env = eventually(Duration::from_secs(5), "the environment", async || {
        Some(sidecar.folder.read("env")).filter(|env| env.contains("PATH="))
    })
    .await;
    assert!(env.contains("PLAIN=plain-1") && env.contains("VAULT_ADDR="), "{env}");
    assert!(!env.contains("credential-") && !env.contains("MCPEG_"), "{env}");
    let own = fs::read(format!("/proc/{}/environ", sidecar.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&own).contains(OLD));
    // Nothing of the block that was handed to exec is left behind, beside the value that is served from locked memory.
    let pid = pid_of(&first[0]);
    sidecar.folder.write("keys.yaml", &keys(NEW));
    let second = starts(&sidecar, 2).await;
    assert!(second[1].ends_with(&format!(" {NEW} Bearer {NEW}")), "{second:?}");
    eventually(Duration::from_secs(3), "the old value is gone", async || {
        memory::find(sidecar.pid(), OLD).is_empty().then_some(())
    })
    .await;
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_secrets_that_rotate_at_once_are_one_restart_with_a_short_gap() {
    let sidecar = Sidecar::start(folder("", NOTING));
    starts(&sidecar, 1).await;
    sidecar.folder.write("keys.yaml", &keys(NEW));
    let lines = starts(&sidecar, 2).await;
    assert!(lines[1].ends_with(&format!(" {NEW} Bearer {NEW}")), "{lines:?}");
    signals(&sidecar, "term").await;
    let answer = mcpeg::admin::client::get(&sidecar.folder.path("run/admin.sock"), "/metrics").await.unwrap();
    let text = String::from_utf8(answer.body).unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("mcpeg_process_replacement_duration_seconds_count"), 1.0);
    let gap = value("mcpeg_process_replacement_duration_seconds_sum");
    assert!(gap < 1.0, "{gap}");
    eprintln!("the gap of a replacement: {:.1} ms", gap * 1000.0);
    assert_eq!(value("mcpeg_process_starts_total{mcpeg_reason=\"rotated\"}"), 1.0);
    assert!(sidecar.says("process", &["ok", "runs"]).await.contains("pid"));
    let started = sidecar.folder.audit("process.start");
    assert_eq!(started.len(), 2, "{started:#?}");
    assert_eq!(started[1]["attributes"]["mcpeg.reason"], "rotated");
    let versions = started[1]["attributes"]["mcpeg.secret.versions"].to_string();
    assert!(versions.contains("one@2") && versions.contains("two@2"), "{versions}");
    assert_eq!(sidecar.folder.audit("process.end")[0]["attributes"]["mcpeg.reason"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_to_be_told_is_told_and_goes_on() {
    let sidecar = Sidecar::start(folder("  on_change: signal\n", NOTING));
    let pid = pid_of(&starts(&sidecar, 1).await[0]);
    sidecar.folder.write("keys.yaml", &keys(NEW));
    signals(&sidecar, "hup").await;
    assert!(is_alive(pid));
    assert_eq!(starts(&sidecar, 1).await.len(), 1);
    assert_eq!(sidecar.folder.audit("process.signalled")[0]["attributes"]["mcpeg.process.signal"], "SIGHUP");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ignores_changes_gets_them_at_its_next_start() {
    let sidecar = Sidecar::start(folder("  on_change: ignore\n  restart: { initial_backoff: 50ms }\n", NOTING));
    let pid = pid_of(&starts(&sidecar, 1).await[0]);
    sidecar.folder.write("keys.yaml", &keys(NEW));
    eventually(Duration::from_secs(10), "the change is seen", async || {
        sidecar.stderr().contains("its next start has it").then_some(())
    })
    .await;
    assert!(is_alive(pid));
    signal_process(pid, libc::SIGKILL);
    let lines = starts(&sidecar, 2).await;
    assert!(lines[1].ends_with(&format!(" {NEW} Bearer {NEW}")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_a_secret_that_is_not_there_yet() {
    let folder = folder("", NOTING);
    folder.write("keys.yaml", "one: { value: here }\n");
    let (sidecar, _lines) = Sidecar::spawn(folder, &[]);
    eventually(Duration::from_secs(10), "the admin socket", async || {
        sidecar.folder.path("run/admin.sock").exists().then_some(())
    })
    .await;
    let said = sidecar.says("process", &["failed", "waits to be started", "TWO", "two"]).await;
    assert!(!said.contains("here"), "{said}");
    assert_eq!(sidecar.folder.read("starts"), "");
    sidecar.folder.write("keys.yaml", &keys(NEW));
    // It may be started between the new values of the two, and is then started again.
    let whole = format!(" {NEW} Bearer {NEW}");
    eventually(Duration::from_secs(10), "both new values", async || {
        sidecar.folder.read("starts").lines().last().is_some_and(|line| line.ends_with(&whole)).then_some(())
    })
    .await;
    sidecar.says("process", &["ok"]).await;
}

/// Asks mcpeg while it is being stopped itself.
const ASKING: &str = r#"
trap '"$MCPEG" secrets list --config "$HERE/mcpeg.yaml" > "$HERE/asked"; exit 5' TERM
echo started >> "$HERE/starts"
while :; do sleep 0.05; done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_process_first_while_everything_still_serves_it_and_passes_its_code_on() {
    let (mut sidecar, _lines) = Sidecar::spawn(folder("", ASKING), &[("MCPEG", PROGRAM)]);
    starts(&sidecar, 1).await;
    sidecar.signal(libc::SIGTERM);
    assert_eq!(sidecar.ended().await.code(), Some(5));
    assert!(sidecar.folder.read("asked").contains("one"), "{}", sidecar.folder.read("asked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_answered_by_the_end_is_a_success() {
    let sidecar = Sidecar::start(folder("", "echo x >> $HERE/starts; exec sleep 60"));
    starts(&sidecar, 1).await;
    assert_eq!(sidecar.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_end_is_killed_with_its_group() {
    let script =
        "trap '' TERM\nsleep 300 & echo $! > $HERE/grandchild\necho x >> $HERE/starts\nwhile :; do sleep 0.05; done\n";
    let (mut sidecar, _lines) = Sidecar::spawn(folder("  stop_timeout: 300ms\n", script), &[]);
    starts(&sidecar, 1).await;
    let grandchild: u32 = sidecar.folder.read("grandchild").trim().parse().unwrap();
    assert!(is_alive(grandchild));
    sidecar.signal(libc::SIGTERM);
    assert_eq!(sidecar.ended().await.code(), Some(137));
    eventually(Duration::from_secs(5), "the grandchild is gone", async || (!is_alive(grandchild)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_takes_the_process_with_it() {
    let mut sidecar = Sidecar::start(folder("", NOTING));
    let pid = pid_of(&starts(&sidecar, 1).await[0]);
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    eventually(Duration::from_secs(5), "the process is gone", async || (!is_alive(pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_short_form_passes_arguments_input_output_and_exit_code_on() {
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)] {
        let folder = folder("  restart: { policy: never }\n", "");
        let output = short_form(&folder, &["sh", "-c", script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let folder = Folder::new(&[("mcpeg.yaml", "version: \"1.0\"\n")]);
    let mut child = std::process::Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(folder.path("mcpeg.yaml"))
        .args(["--", "sh", "-c", "read line; echo \"got $line $1\"", "sh", "argument"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    // Standard output is the program's alone.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got hello argument\n");
    let missing = short_form(&folder, &["/none/such"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/none/such: cannot be started"), "{missing:?}");
}

fn short_form(folder: &Folder, program: &[&str]) -> std::process::Output {
    let config = folder.path("mcpeg.yaml");
    let mut command = std::process::Command::new(PROGRAM);
    command.arg("run").arg("--config").arg(config).arg("--").args(program);
    command.stdin(std::process::Stdio::null()).env("OWN_CREDENTIAL", "x").output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_passed_on() {
    let sidecar = Sidecar::start(folder("", NOTING));
    starts(&sidecar, 1).await;
    sidecar.signal(libc::SIGUSR1);
    signals(&sidecar, "usr1").await;
    // SIGHUP is a reload of ours.
    sidecar.signal(libc::SIGHUP);
    sidecar.signal(libc::SIGUSR1);
    eventually(Duration::from_secs(10), "twice", async || {
        (sidecar.folder.read("signals").matches("usr1").count() == 2).then_some(())
    })
    .await;
    assert!(!sidecar.folder.read("signals").contains("hup"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_waits_longer_each_time_and_ends_with_the_last_code() {
    let restart = "  restart: { policy: always, initial_backoff: 100ms, max_backoff: 10s, max_restarts: 3 }\n";
    let script = "date +%s%N >> $HERE/starts; echo crashed >&2; exit 3";
    let (mut sidecar, _lines) = Sidecar::spawn(folder(restart, script), &[]);
    assert_eq!(sidecar.ended().await.code(), Some(3));
    let times: Vec<u64> = sidecar.folder.read("starts").lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(times.len(), 4, "{times:?}");
    let waits: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    for (wait, least) in waits.iter().zip([75, 150, 300]) {
        assert!(*wait >= least, "{waits:?}");
    }
    // The own log has what it said last.
    assert_eq!(
        sidecar.stderr().matches("line=\"crashed\"").count() + sidecar.stderr().matches("line=crashed").count(),
        4
    );
    let ends = sidecar.folder.audit("process.end");
    assert!(
        ends.iter().all(|end| end["outcome"] == "failure" && end["attributes"]["process.exit.code"] == 3),
        "{ends:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_brings_changes_and_takes_the_process() {
    let sidecar = Sidecar::start(folder("", NOTING));
    let pid = pid_of(&starts(&sidecar, 1).await[0]);
    let main = sidecar.folder.read("mcpeg.yaml");
    let reload = |text: &str| {
        sidecar.folder.write("mcpeg.yaml", text);
        let output = sidecar.folder.mcpeg(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    };
    // What only matters later leaves it alone.
    reload(&format!("{main}  stop_timeout: 2s\n"));
    assert!(is_alive(pid));
    reload(&main.replace("ONE: ", "MORE: x, ONE: "));
    let lines = starts(&sidecar, 2).await;
    let second = pid_of(&lines[1]);
    eventually(Duration::from_secs(5), "the new environment", async || {
        sidecar.folder.read("env").contains("MORE=x").then_some(())
    })
    .await;
    assert!(!is_alive(pid));
    reload(main.split("process:").next().unwrap());
    eventually(Duration::from_secs(10), "the process is gone", async || (!is_alive(second)).then_some(())).await;
    assert_eq!(sidecar.status()["ready"], true);
    reload(&main);
    starts(&sidecar, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_collects_orphans_and_loses_no_child_of_its_own() {
    let unshare = |args: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(args);
        command
    };
    if !unshare(&["true"]).output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this system lets nobody make a pid namespace");
        return;
    }
    // An orphan is one whose parent has ended before it.
    let script = r#"
i=0; while [ $i -lt 5 ]; do sh -c '(sleep 0.2 & echo $! >> "$HERE/orphans")'; i=$((i+1)); done
count() { n=0; for s in /proc/[0-9]*/stat; do read -r line < $s && case "$line" in *") Z 1 "*) n=$((n+1));; esac; done 2>/dev/null; echo $n; }
sleep 0.4
echo "zombies $(count)" >> "$HERE/counts"
i=0; while [ $i -lt 100 ] && [ "$(count)" != 0 ]; do sleep 0.1; i=$((i+1)); done
echo "zombies $(count)" >> "$HERE/counts"
exit 42
"#;
    let folder = folder("  restart: { policy: never }\n", script);
    let config = folder.path("mcpeg.yaml");
    let output = unshare(&[PROGRAM, "run", "--config", config.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(folder.read("orphans").lines().count(), 5);
    let counts = folder.read("counts");
    assert!(counts.ends_with("zombies 0\n"), "{counts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_and_a_service_run_as_another_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can run programs as another user");
        return;
    }
    let folder = folder("  user: nobody\n", "");
    fs::set_permissions(folder.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let main = folder.read("mcpeg.yaml");
    let main = main.replace(
        "[sh, agent.sh]",
        r#"[sh, -c, "id -u; id -G; env | grep ^HOME; grep ^Cap[EPA] /proc/self/status; sleep 60"]"#,
    );
    folder.write("mcpeg.yaml", &format!("{main}services: {{ who: {{ config_file: who.yaml }} }}\n"));
    folder.write(
        "who.yaml",
        "type: mcp\ncommand: [sh, -c, \"echo service $(id -u) $(id -G) >&2; cat\"]\nuser: nobody\ngroup: 12345\n",
    );
    let sidecar = Sidecar::start(folder);
    let (uid, gid) = (stat_of("nobody", 2), stat_of("nobody", 3));
    let said = eventually(Duration::from_secs(10), "what the process says", async || {
        Some(sidecar.stderr()).filter(|text| text.matches("CapAmb").count() == 1)
    })
    .await;
    for line in [
        format!("line=\"{uid}\""),
        format!("line=\"{gid}\""),
        "HOME=".to_owned(),
        "CapEff:\\t0000000000000000".to_owned(),
    ] {
        let bare = line.replace('"', "").replace("\\t", "\t");
        assert!(said.contains(&line) || said.contains(&bare), "{line}: {said}");
    }
    let mut client = crate::support::mcp::Client::connect(&sidecar.service_socket("who")).await;
    client.send(r#"{"jsonrpc":"2.0","method":"notifications/a"}"#).await;
    let service = format!("service {uid} 12345");
    eventually(Duration::from_secs(10), &service, async || sidecar.stderr().contains(&service).then_some(())).await;
    // A killed parent kills it too, although the change of user clears what sees to that.
    let process = sidecar.status()["process"]["pid"].as_u64().unwrap();
    sidecar.signal(libc::SIGKILL);
    let process = u32::try_from(process).unwrap();
    eventually(Duration::from_secs(5), "the process is gone", async || (!is_alive(process)).then_some(())).await;
}

fn stat_of(user: &str, field: usize) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.split(':').next() == Some(user)).unwrap();
    line.split(':').nth(field).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_capability_another_user_is_an_error_at_the_start() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give capabilities away");
        return;
    }
    let folder = folder("  user: nobody\n", NOTING);
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set=-setuid", "--inh-caps=-setuid", PROGRAM, "run", "--config"])
        .arg(folder.path("mcpeg.yaml"))
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no setpriv");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be run as nobody") && said.contains("CAP_SETUID missing"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_prints_is_shipped_without_secrets() {
    let collector = Collector::start().await;
    let script = r#"
echo "the key is $ONE, so there"
echo "an error with $TWO" >&2
while :; do sleep 0.1; done
"#;
    let folder = folder("  output: both\n", script);
    let main = folder.read("mcpeg.yaml");
    let otlp = format!("telemetry: {{ otlp: {{ endpoint: \"http://127.0.0.1:{}\" }} }}\n", collector.http);
    folder.write("mcpeg.yaml", &format!("{main}{otlp}"));
    let (sidecar, lines) = Sidecar::spawn(folder, &[]);
    collector
        .prints(&[
            "the key is [REDACTED",
            "an error with Bearer [REDACTED",
            "log.iostream: Str(stderr)",
            "process.executable.name: Str(sh)",
            "process.pid: Int(",
        ])
        .await;
    let printed = collector.printed();
    assert!(!printed.contains(OLD), "a secret reached the collector");
    let passed = lines.iter().take(2).collect::<Vec<_>>().join("\n");
    assert!(passed.contains("the key is [REDACTED") && !passed.contains(OLD), "{passed}");
    assert!(sidecar.stderr().contains("an error with Bearer [REDACTED") && !sidecar.stderr().contains(OLD));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_may_be_open_up_to_the_hard_limit_and_the_program_has_the_limit_that_there_was() {
    let folder = folder("", "ulimit -n > \"$HERE/limit\"; echo > \"$HERE/done\"; sleep 60");
    let mut mcpeg = std::process::Command::new("sh")
        .args(["-c", "ulimit -Sn 200; ulimit -Hn 4000; exec \"$@\"", "sh", PROGRAM, "run", "--config"])
        .arg(folder.path("mcpeg.yaml"))
        .stdout(std::process::Stdio::null())
        .stderr(fs::File::create(folder.path("stderr.log")).unwrap())
        .spawn()
        .unwrap();
    eventually(Duration::from_secs(15), "the program runs", async || folder.path("done").exists().then_some(())).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", mcpeg.id())).unwrap();
    signal_process(mcpeg.id(), libc::SIGTERM);
    mcpeg.wait().unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(files[3..5], ["4000", "4000"]);
    assert_eq!(folder.read("limit").trim(), "200");
}
