//! Values that are sealed inside a configuration file: sealed and opened in their place, used where secrets are, refused elsewhere.

use std::time::Duration;

use serde_json::json;

use crate::support::sidecar::{Folder, Sidecar};
use crate::support::{eventually, free_port, http};

const TOKEN: &str = "token-that-is-sealed-0123456789";

fn text(port: u16, token: &str) -> String {
    format!(
        "# The head of the file.\nversion: \"1.0\"\ntransports:\n  http:\n    enabled: true\n    port: {port}   # of the tests\n    \
         token: \"{token}\"   # for the agent\nsecurity: {{ sealed_with: {{ identity_file: key }} }}\naudit: {{ path: audit.log }}\n"
    )
}

fn run(folder: &Folder, args: &[&str]) -> (bool, String) {
    let output = folder.mcpeg(args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

fn sealed_folder(port: u16) -> Folder {
    let folder = Folder::new(&[("mcpeg.yaml", &text(port, TOKEN))]);
    assert!(run(&folder, &["seal", "--generate-key", "key"]).0);
    let (good, said) = run(&folder, &["seal", "--key", "key", "mcpeg.yaml", "--path", "transports.http.token"]);
    assert!(good && !said.contains(TOKEN), "{said}");
    folder
}

async fn status(port: u16, token: &str) -> Option<u16> {
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let asked = http().post(format!("http://127.0.0.1:{port}/mcp")).bearer_auth(token).json(&ping).send().await;
    asked.ok().map(|answer| answer.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_token_is_the_token_and_stands_nowhere() {
    let port = free_port();
    let folder = sealed_folder(port);
    let written = folder.read("mcpeg.yaml");
    let (before, after) =
        (written.split("!sealed ").next().unwrap(), written.split("   # for the agent").nth(1).unwrap());
    let whole = text(port, TOKEN);
    assert!(whole.starts_with(before) && whole.ends_with(after) && !written.contains(TOKEN), "{written}");
    assert!(run(&folder, &["check"]).0);

    let sidecar = Sidecar::start(folder);
    assert_eq!(status(port, "another-token").await, Some(401));
    assert_ne!(status(port, TOKEN).await, Some(401));
    assert!(!sidecar.stderr().contains(TOKEN) && !sidecar.folder.read("audit.log").contains(TOKEN));

    // Another value, sealed for the same key, is followed.
    let other = "another-token-that-is-sealed-9876543210";
    sidecar.folder.write("next.yaml", &text(port, other));
    assert!(run(&sidecar.folder, &["seal", "--key", "key", "next.yaml", "--path", "transports.http.token"]).0);
    let next = sidecar.folder.read("next.yaml");
    sidecar.folder.write("mcpeg.yaml", &next);
    eventually(Duration::from_secs(10), "the next token is in force", async || {
        (status(port, TOKEN).await == Some(401) && status(port, other).await != Some(401)).then_some(())
    })
    .await;

    // What cannot be opened is refused, and the old one goes on.
    assert!(run(&sidecar.folder, &["seal", "--generate-key", "stranger"]).0);
    sidecar.folder.write("next.yaml", &text(port, "a-third-token-0123456789"));
    assert!(run(&sidecar.folder, &["seal", "--key", "stranger", "next.yaml", "--path", "transports.http.token"]).0);
    let next = sidecar.folder.read("next.yaml");
    sidecar.folder.write("mcpeg.yaml", &next);
    let refused = sidecar.says("config", &["degraded", "mcpeg.yaml:7:20: the sealed value is not opened"]).await;
    assert!(refused.contains("sealed for other keys"), "{refused}");
    assert_ne!(status(port, other).await, Some(401));
}

#[test]
fn a_value_is_opened_in_its_place_or_shown() {
    let folder = sealed_folder(9);
    let (good, said) =
        run(&folder, &["unseal", "--key", "key", "mcpeg.yaml", "--path", "transports.http.token", "--stdout"]);
    assert!(good && said == format!("{TOKEN}\n"), "{said}");
    let (good, said) = run(&folder, &["unseal", "--key", "key", "mcpeg.yaml", "--path", "transports.http.token"]);
    assert!(good && !said.contains(TOKEN), "{said}");
    assert_eq!(folder.read("mcpeg.yaml"), text(9, TOKEN));
    let (good, said) = run(&folder, &["unseal", "--key", "key", "mcpeg.yaml", "--path", "transports.http.port"]);
    assert!(!good && said.contains("`transports.http.port` is not sealed"), "{said}");
    let (good, said) = run(&folder, &["seal", "--key", "key", "mcpeg.yaml", "--path", "transports.http.tokn"]);
    assert!(!good && said.contains("there is no value at `transports.http.tokn`"), "{said}");
}

#[test]
fn a_sealed_value_needs_its_key_to_run_and_a_place_for_secrets() {
    let folder = sealed_folder(9);
    std::fs::remove_file(folder.path("key")).unwrap();
    assert!(run(&folder, &["check"]).0, "a check is content without the key");
    let output = folder.mcpeg(&["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64));
    assert!(said.contains("mcpeg.yaml:7:20") && said.contains("the sealed value is not opened"), "{said}");

    folder.write("mcpeg.yaml", "version: \"1.0\"\nmetadata: { name: !sealed AAAA }\nglobal: !other { timeout: 5s }\n");
    let (good, said) = run(&folder, &["check"]);
    assert!(!good && said.contains("a sealed value may not stand here") && said.contains("mcpeg.yaml:2:"), "{said}");
    assert!(said.contains("a tag (`!name`) has no meaning here") && said.contains("mcpeg.yaml:3:"), "{said}");
    let keyless = "version: \"1.0\"\ntransports: { http: { enabled: true, port: 9, token: !sealed AAAA } }\n";
    folder.write("mcpeg.yaml", keyless);
    let (good, said) = run(&folder, &["check"]);
    assert!(!good && said.contains("`security.sealed_with` names none"), "{said}");
}
