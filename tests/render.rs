//! Rendered files as whoever reads them meets them: comparison and dry run, bounds, failures that keep the old file.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::eventually;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::unix_http::UnixHttp;

fn folder(templates: &str, rest: &str) -> Folder {
    let main = format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }} }}
  items: {{ app: {{ provider: dev, path: app, refresh: 500ms }} }}
templates:
{templates}
audit: {{ path: audit.log }}
{rest}
"#
    );
    Folder::new(&[
        ("mcpeg.yaml", &main),
        ("keys.yaml", "app: { user: alice, token: 'tok-0001' }\n"),
        ("app.j2", "# application\nuser = {{ secret.app.user }}\ntoken = {{ secret.app.token | base64 }}\nport = 1\n"),
    ])
}

fn one(keys: &str) -> Folder {
    folder(&format!("  - {{ source: app.j2, destination: run/app.conf{keys} }}"), "")
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn reads(sidecar: &Sidecar, name: &str, text: &str) {
    eventually(Duration::from_secs(10), &format!("{name} holds {text}"), || async {
        sidecar.folder.read(name).contains(text).then_some(())
    })
    .await;
}

#[test]
fn a_dry_run_shows_names_and_a_check_finds_every_drift() {
    let folder = one("");
    let (code, text) = said(&folder.mcpeg(&["render", "--dry-run"]));
    assert_eq!(code, Some(0));
    assert!(text.contains("run/app.conf: it does not exist") && text.contains("+user = [secret.app.user]"), "{text}");
    assert!(!folder.path("run").exists(), "a dry run writes nothing");
    assert_eq!(said(&folder.mcpeg(&["render", "--check"])).0, Some(1));
    assert_eq!(said(&folder.mcpeg(&["render", "--once"])).0, Some(0));
    let (code, text) = said(&folder.mcpeg(&["render", "--check"]));
    assert!(code == Some(0) && text.contains("run/app.conf: as it should be"), "{text}");

    let before = folder.read("run/app.conf");
    folder.write("keys.yaml", "app: { user: bob, token: 'tok-0002' }\n");
    let output = folder.mcpeg(&["render", "--dry-run"]);
    let (_, text) = said(&output);
    for line in ["-user = [hidden]", "+user = [secret.app.user]", "-token = [hidden]", "+token = [secret.app.token]"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.lines().any(|line| line == " port = 1"), "{text}");
    let all = text + &String::from_utf8_lossy(&output.stderr);
    for value in ["alice", "bob", "tok-000", "dG9rLTAwMD"] {
        assert!(!all.contains(value), "{value} is in\n{all}");
    }
    assert_eq!(folder.read("run/app.conf"), before);

    folder.write("keys.yaml", "app: { user: alice, token: 'tok-0001' }\n");
    fs::set_permissions(folder.path("run/app.conf"), fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = said(&folder.mcpeg(&["render", "--check", "--json"]));
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &answer["files"][0]["differs"]), (Some(1), &serde_json::json!(["mode 0644, not 0600"])));
    assert_eq!(folder.mcpeg(&["render"]).status.code(), Some(2));
    assert_eq!(folder.mcpeg(&["render", "--once", "--check"]).status.code(), Some(2));
}

#[test]
fn a_secret_that_is_missing_costs_files_that_do_without_it_nothing() {
    let both = "  - { source: app.j2, destination: run/app.conf }\n  - { source: gone.j2, destination: run/gone.conf }";
    let folder = folder(both, "");
    let main = folder.read("mcpeg.yaml").replace("items: {", "items: { gone: { provider: dev, path: gone },");
    folder.write("mcpeg.yaml", &main);
    folder.write("gone.j2", "{{ secret.gone.token }}");
    let output = folder.mcpeg(&["render", "--once"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(folder.read("run/app.conf").contains("user = alice"));
    assert!(!folder.path("run/gone.conf").exists());
    let written = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(written.contains("run/app.conf: written") && !written.contains("gone"), "{written}");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        complaint.contains("gone.j2:1:4: secret gone: ") && complaint.contains("has no key \"gone\""),
        "{complaint}"
    );
    let (code, text) = said(&folder.mcpeg(&["render", "--check"]));
    assert!(code == Some(1) && text.contains("run/app.conf: as it should be"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_the_old_file_and_is_counted() {
    let sidecar = Sidecar::start(one(", backup: true"));
    let component = component(&sidecar, "run/app.conf");
    let before = sidecar.folder.read("run/app.conf");
    // The file that carries the new secret is smaller than the limit, the rendered one is not.
    sidecar.limit_files(Some(20_000));
    let long = "x".repeat(19_000);
    sidecar.folder.write("keys.yaml", &format!("app: {{ user: bob, token: '{long}' }}\n"));
    sidecar.says(&component, &["degraded", "writing beside", "the old file stays"]).await;
    assert_eq!(sidecar.folder.read("run/app.conf"), before);
    assert_eq!(fs::read_dir(sidecar.folder.path("run")).unwrap().filter(is_of_app).count(), 1);
    let counted = metrics(&sidecar).await;
    assert!(counted.contains("mcpeg_render_outcome=\"destination\""), "{counted}");
    sidecar.limit_files(None);
    reads(&sidecar, "run/app.conf", "user = bob").await;
    assert_eq!(sidecar.folder.read("run/app.conf.bak"), before);
    assert!(sidecar.stop().await.success());
}

async fn metrics(sidecar: &Sidecar) -> String {
    let mut admin = UnixHttp::connect(&sidecar.folder.path("run/admin.sock")).await;
    admin.get("/metrics").await.text().to_owned()
}

fn is_of_app(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name().to_string_lossy().contains("app.conf")
}

/// The component of a rendered file, as `status` names it.
fn component(sidecar: &Sidecar, name: &str) -> String {
    format!("template/{}", sidecar.folder.path(name).display().to_string().trim_start_matches('/'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_place_of_the_folder_leads_nowhere() {
    let folder = folder("  - { source: app.j2, destination: out/app.conf }", "render: { allowed_folders: [out] }");
    let outside = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::start(folder);
    let component = component(&sidecar, "out/app.conf");
    reads(&sidecar, "out/app.conf", "user = alice").await;
    fs::rename(sidecar.folder.path("out"), sidecar.folder.path("away")).unwrap();
    symlink(outside.path(), sidecar.folder.path("out")).unwrap();
    sidecar.folder.write("keys.yaml", "app: { user: bob, token: 'tok-0002' }\n");
    sidecar.says(&component, &["degraded", "which is outside of render.allowed_folders", "the old file stays"]).await;
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    fs::remove_file(sidecar.folder.path("out")).unwrap();
    fs::rename(sidecar.folder.path("away"), sidecar.folder.path("out")).unwrap();
    fs::remove_file(sidecar.folder.path("out/app.conf")).unwrap();
    symlink(outside.path().join("victim"), sidecar.folder.path("out/app.conf")).unwrap();
    sidecar.folder.write("keys.yaml", "app: { user: carol, token: 'tok-0003' }\n");
    sidecar.says(&component, &["degraded", "is a symbolic link and is not replaced"]).await;
    assert!(!outside.path().join("victim").exists());
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_owner_and_a_folder_that_cannot_be_written_keep_the_old_file() {
    let sidecar = Sidecar::start(one(""));
    let component = component(&sidecar, "run/app.conf");
    let before = sidecar.folder.read("run/app.conf");
    let main = sidecar.folder.read("mcpeg.yaml");
    sidecar.folder.write("mcpeg.yaml", &main.replace("app.conf }", "app.conf, owner: nobody-of-that-name }"));
    sidecar
        .says(&component, &["degraded", "there is no user nobody-of-that-name in /etc/passwd", "old file stays"])
        .await;
    assert_eq!(sidecar.folder.read("run/app.conf"), before);
    assert!(metrics(&sidecar).await.contains("mcpeg_render_outcome=\"owner\""));
    let failed = sidecar.folder.audit("file.failed");
    assert_eq!(failed[0]["attributes"]["error.type"], "owner");

    // proc(5) is a folder in which nobody makes files, whatever the user.
    sidecar.folder.write("mcpeg.yaml", &main.replace("run/app.conf }", "/proc/self/app.conf }"));
    let said = sidecar.says("template/proc/self/app.conf", &["failed", "there is no file yet"]).await;
    assert!(said.contains("writing beside /proc/self/app.conf: "), "{said}");
    sidecar.folder.write("mcpeg.yaml", &main);
    sidecar.says(&component, &["ok"]).await;
    assert!(sidecar.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_a_reload_takes_away_takes_its_file_along() {
    let both = "  - { source: app.j2, destination: run/one.conf, on_remove: remove, mode: \"0640\" }\n  \
                - { source: app.j2, destination: run/two.conf }";
    let sidecar = Sidecar::start(folder(both, ""));
    let facts = fs::metadata(sidecar.folder.path("run/one.conf")).unwrap();
    assert_eq!(facts.mode() & 0o7777, 0o640);
    let main = sidecar.folder.read("mcpeg.yaml").replace(both, "  []");
    sidecar.folder.write("mcpeg.yaml", &main);
    eventually(Duration::from_secs(10), "the file goes", || async {
        (!sidecar.folder.path("run/one.conf").exists()).then_some(())
    })
    .await;
    assert!(sidecar.folder.path("run/two.conf").exists());
    eventually(Duration::from_secs(5), "it is on record", || async {
        (sidecar.folder.audit("file.removed").len() == 1).then_some(())
    })
    .await;
    assert!(sidecar.stop().await.success());
}
