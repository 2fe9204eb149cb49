//! Values that are sealed inside a configuration file: sealed and opened in their place, used where secrets are, refused elsewhere.

use std::time::Duration;

use serde_json::json;

use crate::support::mcp::Client;
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::upstream::python_stdio;
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

/// The key is an item's value; the service's environment has a sealed text.
fn folder_with_an_item(identity: &str) -> Folder {
    let main = "version: \"1.0\"\nsecurity: { sealed_with: { item: sealing.identity } }\nsecrets:\n  providers: { own: { type: file, path: keys.yaml } }\n  \
                items: { sealing: { provider: own, path: sealing } }\nservices: { child: { config_file: child.yaml } }\naudit: { path: audit.log }\n";
    let command = serde_json::to_string(&python_stdio()).unwrap();
    let child = format!("type: mcp\ncommand: {command}\nenv:\n  TOKEN: {TOKEN}\n");
    let folder = Folder::new(&[("mcpeg.yaml", main), ("child.yaml", &child)]);
    assert!(run(&folder, &["seal", "--generate-key", "key"]).0);
    let (good, said) = run(&folder, &["seal", "--key", "key", "child.yaml", "--path", "env.TOKEN"]);
    assert!(good, "{said}");
    let key = folder.read("key");
    let key = key.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
    folder.write("keys.yaml", &format!("sealing: {{ {identity}: {key} }}\n"));
    std::fs::remove_file(folder.path("key")).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_may_be_the_value_of_an_item() {
    let folder = folder_with_an_item("identity");
    assert!(run(&folder, &["check"]).0);
    let sidecar = Sidecar::start(folder);
    let environment = async || {
        let mut client = Client::initialized(&sidecar.service_socket("child")).await;
        client.call("echo", json!({ "text": "x" })).await;
        let log = sidecar.stderr();
        let started = log.lines().rfind(|line| line.contains("child started")).unwrap();
        let pid = started.split("pid=").nth(1).unwrap().split(' ').next().unwrap();
        std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap()
    };
    assert!(environment().await.contains(TOKEN));
    assert!(!sidecar.stderr().contains(TOKEN) && !sidecar.folder.read("audit.log").contains(TOKEN));

    // What is sealed later is opened with what the item holds by then.
    let other = "another-token-that-is-sealed-9876543210";
    assert!(run(&sidecar.folder, &["seal", "--generate-key", "next"]).0);
    let key = sidecar.folder.read("next");
    let key = key.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
    sidecar.folder.write("keys.yaml", &format!("sealing: {{ identity: {key} }}\n"));
    assert!(run(&sidecar.folder, &["secrets", "refresh", "sealing"]).0);
    let child = sidecar.folder.read("child.yaml");
    let line = child.lines().find(|line| line.contains("!sealed")).unwrap();
    sidecar.folder.write("next.yaml", &child.replace(line, &format!("  TOKEN: {other}")));
    assert!(run(&sidecar.folder, &["seal", "--key", "next", "next.yaml", "--path", "env.TOKEN"]).0);
    let next = sidecar.folder.read("next.yaml");
    sidecar.folder.write("child.yaml", &next);
    let (good, said) = run(&sidecar.folder, &["reload"]);
    assert!(good, "{said}");
    assert!(environment().await.contains(other));
    assert!(sidecar.stop().await.success());
}

#[test]
fn an_item_that_has_no_key_or_is_needed_for_itself_is_said() {
    let folder = folder_with_an_item("other");
    let output = folder.mcpeg(&["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("secret.sealing.identity has no such field") && said.contains("child.yaml:4:"), "{said}");

    let keys = folder.read("keys.yaml");
    folder.write("keys.yaml", "another: { identity: none }\n");
    let output = folder.mcpeg(&["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("its key is secret.sealing.identity: "), "{said}");
    folder.write("keys.yaml", &keys);

    let main = folder.read("mcpeg.yaml");
    folder.write("mcpeg.yaml", &main.replace("item: sealing.identity", "item: saeling.identity"));
    let (good, said) = run(&folder, &["check"]);
    assert!(
        !good && said.contains("there is no secret `saeling`") && said.contains("did you mean `sealing`?"),
        "{said}"
    );
    let below =
        "{ own: { type: vault, address: \"http://127.0.0.1:1\", auth: { method: token, token: !sealed AAAA } } }";
    folder.write("mcpeg.yaml", &main.replace("{ own: { type: file, path: keys.yaml } }", below));
    let (good, said) = run(&folder, &["check"]);
    assert!(
        !good && said.contains("nothing sealed may stand below `secrets`") && said.contains("mcpeg.yaml:4:"),
        "{said}"
    );
    let cache = main.replace("secrets:\n", "secrets:\n  cache: { path: leases, sealed_with: { item: sealing } }\n");
    folder.write("mcpeg.yaml", &cache);
    let (good, said) = run(&folder, &["check"]);
    assert!(!good && said.contains("only `security.sealed_with` may name an item"), "{said}");
}
