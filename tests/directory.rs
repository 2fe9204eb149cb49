//! Secrets from a mounted volume, from systemd's credentials, and from the environment: followed, and not left lying about.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::sidecar::{Folder, Sidecar};
use crate::support::{eventually, memory};

const PAIR: &str = "{{ secret.pair.cert }}/{{ secret.pair.key }}";

/// Writes a state of a volume and swaps it in, as the kubelet does.
fn swap(volume: &Path, state: &str, files: &[(&str, &str)]) {
    let folder = volume.join(state);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
        let _ = symlink(format!("..data/{name}"), volume.join(name));
    }
    let old = std::fs::read_link(volume.join("..data")).ok();
    symlink(state, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Some(old) = old {
        std::fs::remove_dir_all(volume.join(old)).unwrap();
    }
}

fn value(number: u32) -> String {
    format!("mounted-{number:08}-0123456789-abcdefghijklmnopqrstuvwxyz")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_volume_is_followed_as_a_whole_within_a_second_and_nothing_is_left() {
    let volume = tempfile::tempdir().unwrap();
    swap(volume.path(), "..1", &[("cert", &value(1)), ("key", &value(1))]);
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers: {{ pod: {{ type: directory, path: {} }} }}\n  items:\n    pair: {{ provider: pod, refresh: 1h }}\n    \
         key: {{ provider: pod, path: key, refresh: 1h }}\ntemplates:\n  - {{ source: pair.j2, destination: pair }}\n  - {{ source: key.j2, destination: key }}\n",
        volume.path().display()
    );
    let sidecar = Sidecar::start(Folder::new(&[
        ("mcpeg.yaml", &main),
        ("pair.j2", PAIR),
        ("key.j2", "{{ secret.key }}{{ secret.key.value }}"),
    ]));
    assert_eq!(sidecar.folder.read("pair"), format!("{0}/{0}", value(1)));
    assert!(sidecar.stderr().contains("defaultMode"), "a mode of 0644 is warned about: {}", sidecar.stderr());
    for number in 2..5 {
        swap(volume.path(), &format!("..{number}"), &[("cert", &value(number)), ("key", &value(number))]);
        let swapped = Instant::now();
        eventually(Duration::from_secs(5), "the file follows", async || {
            let pair = sidecar.folder.read("pair");
            let (cert, key) = pair.split_once('/').unwrap();
            assert_eq!(cert, key, "a mixed pair was rendered");
            (key == value(number)).then_some(())
        })
        .await;
        assert!(swapped.elapsed() < Duration::from_millis(1500), "it took {:?}", swapped.elapsed());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), &value(1));
    assert!(found.is_empty(), "{} copies of the old value: {found:#?}", found.len());
    let found = memory::find(sidecar.pid(), &value(4));
    assert!(found.is_empty(), "{} copies of the current value outside of locked pages: {found:#?}", found.len());
    // The volume goes away: what was read last is served.
    std::fs::remove_file(volume.path().join("..data")).unwrap();
    sidecar.says("secret/pair", &["degraded", "serving version 4"]).await;
    assert_eq!(sidecar.folder.read("pair"), format!("{0}/{0}", value(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credentials_of_a_unit_are_found_where_systemd_puts_them() {
    let credentials = tempfile::tempdir().unwrap();
    std::fs::write(credentials.path().join("token"), "from-systemd").unwrap();
    let main = "version: \"1.0\"\nsecrets:\n  providers: { unit: { type: directory } }\n  items: { token: { provider: unit, path: token } }\n\
                templates: [ { source: a.j2, destination: a } ]\n";
    let folder = Folder::new(&[("mcpeg.yaml", main), ("a.j2", "{{ secret.token.value }}")]);
    let sidecar = Sidecar::start_with(folder, &[("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap())]);
    assert_eq!(sidecar.folder.read("a"), "from-systemd");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_from_the_environment_is_wiped_from_it() {
    let secret = "environment-0123456789-abcdefghijklmnopqrstuvwxyz";
    let main = "version: \"1.0\"\nsecrets:\n  providers: { process: { type: environment } }\n  items: { key: { provider: process, path: MCPEG_TEST_SECRET, refresh: 200ms } }\n\
                templates: [ { source: a.j2, destination: a } ]\n\
                services: { demo: { config_file: demo.yaml } }\n";
    let demo = "type: mcp\ncommand: [cat]\nenv: { A: \"${MCPEG_TEST_OTHER}\" }\n";
    let files = [("mcpeg.yaml", main), ("demo.yaml", demo), ("a.j2", "{{ secret.key.value }}")];
    let env = [("MCPEG_TEST_SECRET", secret), ("MCPEG_TEST_OTHER", "not-a-secret")];
    let sidecar = Sidecar::start_with(Folder::new(&files), &env);
    assert_eq!(sidecar.folder.read("a"), secret);
    let environ = std::fs::read(format!("/proc/{}/environ", sidecar.pid())).unwrap();
    let shown = String::from_utf8_lossy(&environ);
    assert!(shown.contains("MCPEG_TEST_SECRET="), "the name stays");
    assert!(shown.contains("MCPEG_TEST_OTHER=not-a-secret"), "the others stay");
    assert!(!shown.contains(secret), "the value is gone");
    let found = memory::find(sidecar.pid(), secret);
    assert!(found.is_empty(), "{} copies outside of locked pages: {found:#?}", found.len());
    // It goes on being served, also after a reload.
    let reloaded = sidecar.folder.mcpeg(&["reload"]);
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    tokio::time::sleep(Duration::from_millis(500)).await;
    sidecar.says("secret/key", &["ok"]).await;
}
