//! What follows a change of a file, with real processes and a real server.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use serde_json::json;

use crate::support::eventually;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::stand_in::StandIn;
use crate::support::unix_http::UnixHttp;

fn folder(on_change: &str) -> Folder {
    let folder = Folder::new(&[
        ("secrets.yaml", "app: { key: k-one-111 }\napi: { token: t-hunter2-222 }\n"),
        ("app.j2", "{{ secret.app.key }}"),
    ]);
    let here = folder.path("").display().to_string();
    let configuration = format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: secrets.yaml }} }}
  items:
    app: {{ provider: dev, path: app, refresh: 1s }}
    api: {{ provider: dev, path: api, refresh: 1s }}
templates:
  - {{ source: app.j2, destination: run/app.conf, on_change: {{ {} }} }}
audit: {{ path: audit.log }}
"#,
        on_change.replace("HERE/", &here)
    );
    folder.write("mcpeg.yaml", &configuration);
    folder
}

fn component(sidecar: &Sidecar) -> String {
    format!("template/{}", sidecar.folder.path("run/app.conf").display().to_string().trim_start_matches('/'))
}

async fn ran(sidecar: &Sidecar, count: usize) -> Vec<serde_json::Value> {
    eventually(Duration::from_secs(15), "the hooks have run", async || {
        Some(sidecar.folder.audit("hook.ran")).filter(|events| events.len() >= count)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_told_with_a_secret_in_a_header_and_told_again_when_it_fails() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let first_fails = move |_: &_| (calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0).then(|| json!({}));
    let server = StandIn::start(first_fails).await;
    let on_change = format!(
        "http: {{ url: \"{}/reload\", headers: {{ X-Token: \"${{secret.api.token}}\" }}, body: '{{\"why\":\"new\"}}' }}",
        server.address
    );
    let sidecar = Sidecar::start(folder(&on_change));
    let events = ran(&sidecar, 2).await;
    let facts: Vec<_> = events
        .iter()
        .map(|event| (event["outcome"].as_str().unwrap(), event["attributes"]["mcpeg.hook.attempt"].as_i64().unwrap()))
        .collect();
    assert_eq!(facts, [("failure", 1), ("success", 2)]);
    let asked = server.asked("/reload");
    assert!(asked.iter().all(|asked| asked.headers["x-token"] == "t-hunter2-222" && asked.body["why"] == "new"));
    let kept = format!("{}{}", sidecar.stderr(), sidecar.folder.read("audit.log"));
    assert!(!kept.contains("hunter2"), "{kept}");
    assert!(sidecar.condition(&component(&sidecar)).unwrap().starts_with("ok"));
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_signalled_by_name() {
    let folder = folder("signal: SIGTERM, process_name: NAME, retries: 0");
    let name = format!("mcpeg-named-{}", std::process::id());
    folder.write("mcpeg.yaml", &folder.read("mcpeg.yaml").replace("NAME", &name));
    symlink("/bin/sleep", folder.path(&name)).unwrap();
    let mut child = tokio::process::Command::new(folder.path(&name)).arg("60").kill_on_drop(true).spawn().unwrap();
    let sidecar = Sidecar::start(folder);
    assert!(!child.wait().await.unwrap().success());
    ran(&sidecar, 1).await;
    sidecar.folder.write("secrets.yaml", "app: { key: k-two-111 }\napi: { token: t }\n");
    sidecar.says(&component(&sidecar), &["degraded", "no process here is called mcpeg-named-"]).await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_sees_the_secrets_that_are_named_and_no_others_and_its_output_shows_none() {
    let script = r#"command: [sh, -c, "env > HERE/env; echo token $TOKEN; cat HERE/run/app.conf; exit 1"], "#;
    let on_change = format!("{script} env: {{ TOKEN: \"${{secret.api.token}}\" }}, retries: 0");
    let sidecar = Sidecar::start_with(folder(&on_change), &[("UNRELATED", "u-secret-333")]);
    ran(&sidecar, 1).await;
    let env = sidecar.folder.read("env");
    assert!(env.contains("TOKEN=t-hunter2-222") && !env.contains("u-secret-333"), "{env}");
    let log = sidecar.stderr();
    assert!(log.contains("token [REDACTED]") && !log.contains("hunter2") && !log.contains("k-one-111"), "{log}");
    sidecar
        .says(&component(&sidecar), &["degraded", "the file is up to date, but: sh ended with exit status: 1"])
        .await;
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_hangs_is_killed_and_the_next_change_is_told() {
    let on_change =
        r#"command: [sh, -c, "echo x >> HERE/runs; test -e HERE/go || sleep 100"], timeout: 500ms, retries: 0"#;
    let sidecar = Sidecar::start(folder(on_change));
    sidecar.says(&component(&sidecar), &["degraded", "sh did not end within 0.5 s and was killed"]).await;
    sidecar.folder.write("go", "");
    sidecar.folder.write("secrets.yaml", "app: { key: k-two-111 }\napi: { token: t }\n");
    eventually(Duration::from_secs(10), "all is well", async || {
        sidecar.condition(&component(&sidecar)).filter(|text| text.starts_with("ok"))
    })
    .await;
    assert_eq!(sidecar.folder.read("runs"), "x\nx\n");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_a_killed_sidecar_and_the_next_one_runs_it_again() {
    let on_change = r#"command: [sh, -c, "echo $$ >> HERE/runs; test -e HERE/go || exec sleep 300"], timeout: 5m"#;
    // It is ready although the hook has not ended.
    let mut sidecar = Sidecar::start(folder(on_change));
    let runs = async |folder: &Folder, count: usize| {
        eventually(Duration::from_secs(10), "the hook runs", async || {
            let pids: Vec<u32> = folder.read("runs").lines().filter_map(|line| line.parse().ok()).collect();
            (pids.len() == count).then_some(pids)
        })
        .await
    };
    let pid = runs(&sidecar.folder, 1).await[0];
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    eventually(Duration::from_secs(5), "the command is gone", async || (!is_alive(pid)).then_some(())).await;
    sidecar.folder.write("go", "");
    let again = Sidecar::start(std::mem::replace(&mut sidecar.folder, Folder::new(&[])));
    runs(&again.folder, 2).await;
    eventually(Duration::from_secs(5), "everybody knows", async || {
        (!again.folder.path("run/.app.conf.mcpeg-untold").exists()).then_some(())
    })
    .await;
    assert!(again.stop().await.success());
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_hangs_brings_the_files_before_back_where_it_says_so() {
    let folder = folder("signal: SIGHUP, supervised: true");
    let here = folder.path("").display().to_string();
    let main = folder.read("mcpeg.yaml");
    let (head, rest) = main.split_once("templates:").unwrap();
    let audit = rest.lines().last().unwrap();
    let hook = format!("[sh, -c, \"grep -q one {here}run/app/app.conf || sleep 300\"]");
    folder.write(
        "mcpeg.yaml",
        &format!(
            "{head}render:\n  groups:\n    app: {{ on_change: {{ command: {hook}, timeout: 300ms, retries: 0 }}, rollback: true }}\n\
             templates:\n  - {{ source: app.j2, destination: run/app/app.conf, group: app }}\n{audit}\n"
        ),
    );
    let sidecar = Sidecar::start(folder);
    ran(&sidecar, 1).await;
    sidecar.folder.write("secrets.yaml", "app: { key: k-two-111 }\napi: { token: t }\n");
    sidecar
        .says(
            "group/app",
            &["degraded", "went back to the generation before: sh did not end within 0.3 s and was killed"],
        )
        .await;
    assert_eq!(sidecar.folder.read("run/app/app.conf"), "k-one-111");
    let mut admin = UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await;
    let metrics = admin.get("/metrics").await.text().to_owned();
    let counted = |name: &str, label: &str| metrics.lines().any(|line| line.starts_with(name) && line.contains(label));
    assert!(counted("mcpeg_render_switches_total", "mcpeg_render_outcome=\"rolled_back\""), "{metrics}");
    assert!(counted("mcpeg_render_hooks_total", "mcpeg_render_outcome=\"failure\""), "{metrics}");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_bytes_that_are_refused_never_take_effect_and_a_missing_systemd_is_said() {
    let folder = folder("systemd: { unit: mcpeg-none.service }, retries: 0");
    let validate = r#"validate: [grep, -q, one, "{file}"], on_change"#;
    folder.write("mcpeg.yaml", &folder.read("mcpeg.yaml").replace("on_change", validate));
    let sidecar = Sidecar::start(folder);
    let events = ran(&sidecar, 1).await;
    assert_eq!(
        (&events[0]["attributes"]["mcpeg.hook.kind"], &events[0]["outcome"]),
        (&json!("systemd"), &json!("failure"))
    );
    sidecar.says(&component(&sidecar), &["systemctl"]).await;
    sidecar.folder.write("secrets.yaml", "app: { key: k-two-111 }\napi: { token: t }\n");
    sidecar.says(&component(&sidecar), &["is refused by its validation: grep ended with exit status: 1"]).await;
    assert_eq!(sidecar.folder.read("run/app.conf"), "k-one-111");
    assert!(!sidecar.folder.path("run/.app.conf.mcpeg-new").exists());
    sidecar.stop().await;
}

/// What stands in for `systemctl`, which wants a system that was booted with systemd, says what it was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_unit_is_reloaded_by_systemctl() {
    let folder = folder("systemd: { unit: nginx.service, action: reload-or-restart }");
    let asked = folder.path("asked");
    folder.write("bin/systemctl", &format!("#!/bin/sh\necho \"$@\" >> {}\n", asked.display()));
    fs::set_permissions(folder.path("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path("bin").display(), std::env::var("PATH").unwrap());
    let sidecar = Sidecar::start_with(folder, &[("PATH", &path)]);
    let events = ran(&sidecar, 1).await;
    assert_eq!(
        (&events[0]["attributes"]["mcpeg.hook.kind"], &events[0]["outcome"]),
        (&json!("systemd"), &json!("success"))
    );
    assert_eq!(sidecar.folder.read("asked"), "--no-ask-password reload-or-restart -- nginx.service\n");
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_with_one_command_take_turns() {
    let script = "mkdir HERE/turn || echo two >> HERE/at-once; sleep 0.3; rmdir HERE/turn; echo x >> HERE/runs";
    let folder = folder(&format!("command: [sh, -c, \"{script}\"], retries: 0"));
    let main = folder.read("mcpeg.yaml");
    let one = main.lines().find(|line| line.contains("app.j2")).unwrap();
    folder.write("mcpeg.yaml", &main.replace(one, &format!("{one}\n{}", one.replace("app.conf", "other.conf"))));
    let sidecar = Sidecar::start(folder);
    ran(&sidecar, 2).await;
    sidecar.folder.write("secrets.yaml", "app: { key: k-two-111 }\napi: { token: t }\n");
    ran(&sidecar, 4).await;
    assert_eq!((sidecar.folder.read("runs").lines().count(), sidecar.folder.read("at-once").as_str()), (4, ""));
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_told_is_told_at_a_stop() {
    let sidecar = Sidecar::start(folder("command: [touch, HERE/told], settle: 5s"));
    let (rendered, told) = (sidecar.folder.path("run/app.conf"), sidecar.folder.path("told"));
    eventually(Duration::from_secs(5), "the file is written", async || rendered.exists().then_some(())).await;
    assert!(!told.exists(), "it waits for others");
    sidecar.signal(libc::SIGTERM);
    // Sooner than by itself.
    eventually(Duration::from_secs(3), "the hook has run", async || told.exists().then_some(())).await;
    assert!(sidecar.stop().await.success());
}
