//! Secrets for local programs, and a refresh on demand: the real binary, a file and a real OpenBao behind it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::bao::{Bao, ROOT_TOKEN};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::unix_http::UnixHttp;
use crate::support::{eventually, memory};

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

fn main(allowed: &str) -> String {
    format!(
        r#"version: "1.0"
secrets:
  providers: {{ dev: {{ type: file, path: keys.yaml }} }}
  items:
    app: {{ provider: dev, path: app, refresh: 300ms }}
    other: {{ provider: dev, path: other, refresh: 300ms }}
    late: {{ provider: dev, path: late, refresh: 300ms, require_at_start: false }}
  serve: {{ unix: {{ path: run/secrets.sock }}, allow: [ {{ uid: {}, items: [{allowed}] }} ] }}
audit: {{ path: audit.log }}
"#,
        own_uid()
    )
}

fn folder() -> Folder {
    Folder::new(&[
        ("mcpeg.yaml", &main("app, late")),
        ("keys.yaml", "app: { token: \"abc\\\"0001\", user: me }\nother: { token: other-0001 }\n"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_reads_what_a_rule_allows_and_every_read_is_on_record() {
    let sidecar = Sidecar::start(folder());
    let socket = sidecar.folder.path("run/secrets.sock");
    assert!(sidecar.ready.contains("run/secrets.sock"), "{}", sidecar.ready);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    let mut client = UnixHttp::connect(&socket).await;
    let whole = client.get("/v1/secrets/app").await;
    let wanted = json!({ "item": "app", "version": 1, "fields": { "token": "abc\"0001", "user": "me" } });
    assert_eq!((whole.status, whole.json()), (200, wanted));
    let field = client.get("/v1/secrets/app?field=token").await;
    assert_eq!((field.status, field.text()), (200, "abc\"0001"));
    for (path, status, words) in [
        ("/v1/secrets/other", 403, "no rule of secrets.serve.allow lets uid"),
        ("/v1/secrets/other/watch", 403, "no rule"),
        ("/v1/secrets/nothing", 404, "there is no secret nothing"),
        ("/v1/secrets/app?field=nothing", 404, "no such field"),
        ("/v1/secrets/late", 503, "not fetched yet"),
        ("/v1/secrets/app?fields=a", 400, "the query takes"),
        ("/v1/secrets/app/watch?after=x", 400, "number"),
        ("/v1/secrets/app/more", 404, "nothing at this path"),
        ("/v1/secrets", 404, "nothing at this path"),
    ] {
        let answer = client.get(path).await;
        assert!(
            answer.status == status && answer.text().contains(words),
            "{path}: {} {}",
            answer.status,
            answer.text()
        );
    }
    client.send("DELETE", "/v1/secrets/app", "").await;
    assert_eq!(client.answer().await.status, 405);

    let reads = sidecar.folder.audit("secret.read");
    let seen: Vec<(&str, &str, &str)> = reads
        .iter()
        .map(|read| {
            let of = |name: &str| read["attributes"][name].as_str().unwrap_or("-");
            (of("mcpeg.secret.item"), read["outcome"].as_str().unwrap(), of("error.type"))
        })
        .collect();
    let wanted = [
        ("app", "success", "-"),
        ("app", "success", "-"),
        ("other", "denied", "not_allowed"),
        ("other", "denied", "not_allowed"),
        ("nothing", "failure", "unknown_item"),
        ("app", "failure", "unknown_field"),
        ("late", "failure", "not_fetched"),
    ];
    assert_eq!(seen, wanted);
    assert_eq!(reads[0]["attributes"]["mcpeg.peer.uid"], own_uid());
    assert_eq!(reads[0]["attributes"]["mcpeg.peer.pid"], std::process::id());
    assert_eq!(reads[0]["attributes"]["mcpeg.secret.version"], 1);
    let said = sidecar.folder.read("audit.log") + &sidecar.stderr() + &sidecar.status().to_string();
    // Whole values: a hash of the trail may hold any few digits.
    for value in ["other-0001", "abc\"0001", "abc\\\"0001"] {
        assert!(!said.contains(value), "{said}");
    }
    sidecar.says("secrets/serve", &["ok", "run/secrets.sock"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_rules_for_open_connections_and_takes_the_socket_away() {
    let sidecar = Sidecar::start(folder());
    let socket = sidecar.folder.path("run/secrets.sock");
    let mut client = UnixHttp::connect(&socket).await;
    assert_eq!(client.get("/v1/secrets/app").await.status, 200);
    sidecar.folder.write("mcpeg.yaml", &main("other"));
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    assert_eq!(client.get("/v1/secrets/app").await.status, 403);
    assert_eq!(client.get("/v1/secrets/other").await.status, 200);
    let without: Vec<String> = main("").lines().filter(|line| !line.contains("serve:")).map(str::to_owned).collect();
    sidecar.folder.write("mcpeg.yaml", &without.join("\n"));
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    assert_eq!(client.get("/v1/secrets/other").await.status, 403);
    eventually(Duration::from_secs(5), "the socket is gone", async || (!socket.exists()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_of_a_new_version_at_once_and_never_shows_a_value() {
    let sidecar = Sidecar::start(folder());
    let socket = sidecar.folder.path("run/secrets.sock");
    let mut poll = UnixHttp::connect(&socket).await;
    assert_eq!(poll.get("/v1/secrets/app/watch").await.json(), json!({ "item": "app", "version": 1 }));
    assert_eq!(poll.get("/v1/secrets/app/watch?after=1&timeout=1").await.status, 204);
    let mut events = UnixHttp::connect(&socket).await;
    events.send("GET", "/v1/secrets/app/watch", "Accept: text/event-stream\r\n").await;
    assert_eq!(events.head().await, (200, None));
    let mut stream = String::new();
    while !stream.contains("\"version\":1}") {
        stream += &events.line().await;
    }
    poll.send("GET", "/v1/secrets/app/watch?after=1", "").await;
    sidecar.folder.write("keys.yaml", "app: { token: abc-0002 }\nother: { token: other-0001 }\n");
    assert_eq!(poll.answer().await.json(), json!({ "item": "app", "version": 2 }));
    while !stream.contains("\"version\":2}") {
        stream += &events.line().await;
    }
    assert!(!stream.contains("abc-") && !stream.contains("other-"), "{stream}");
    assert_eq!(poll.get("/v1/secrets/app?field=token").await.text(), "abc-0002");
    assert!(sidecar.stop().await.success(), "an open stream does not hold a stop up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_carried_a_value_stays_open_and_keeps_none_of_it() {
    let bao = Bao::start().await;
    let value = |number: u32| format!("serv\"ed/{number:08}-äö-0123456789-abcdefghijklmnopqrstuvwxyz");
    bao.put("app", json!({ "token": value(1) })).await;
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }} }}\n  \
         items: {{ app: {{ provider: corp, path: secret/data/app, refresh: 1s }} }}\n  serve: {{ allow: [ {{ uid: {}, items: [app] }} ] }}\n",
        bao.address(),
        own_uid()
    );
    let sidecar = Sidecar::start(Folder::new(&[("mcpeg.yaml", &main), ("token", ROOT_TOKEN)]));
    let socket = sidecar.folder.path("run/secrets.sock");
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = UnixHttp::connect(&socket).await;
        for _ in 0..50 {
            assert_eq!(client.get("/v1/secrets/app?field=token").await.text(), value(1));
            assert_eq!(client.get("/v1/secrets/app").await.json()["fields"]["token"], value(1));
        }
        clients.push(client);
    }
    assert_gone(&sidecar, &value(1), "the current value, outside of the locked pages").await;
    bao.put("app", json!({ "token": value(2) })).await;
    let watched = clients[0].get("/v1/secrets/app/watch?after=1").await;
    assert_eq!(watched.json()["version"], 2);
    assert_gone(&sidecar, &value(1), "the old value").await;
    for client in &mut clients {
        assert_eq!(client.get("/v1/secrets/app?field=token").await.text(), value(2));
    }
}

/// A second from now.
async fn assert_gone(sidecar: &Sidecar, value: &str, what: &str) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = memory::find(sidecar.pid(), value);
    assert!(found.is_empty(), "{what}, {} times: {found:#?}", found.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_fetched_on_demand_and_the_list_shows_no_value() {
    let mut bao = Bao::start().await;
    bao.put("app", json!({ "token": "listed-0001" })).await;
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }} }}\n  \
         items:\n    app: {{ provider: corp, path: secret/data/app, refresh: 1h }}\n    \
         gone: {{ provider: corp, path: secret/data/gone, refresh: 1h, require_at_start: false }}\n",
        bao.address()
    );
    let sidecar = Sidecar::start(Folder::new(&[("mcpeg.yaml", &main), ("token", ROOT_TOKEN)]));
    bao.put("app", json!({ "token": "listed-0002" })).await;
    let asked = Instant::now();
    let refreshed = sidecar.folder.mcpeg(&["secrets", "refresh", "app"]);
    assert!(asked.elapsed() < Duration::from_secs(5));
    let said = String::from_utf8(refreshed.stdout).unwrap();
    assert_eq!((refreshed.status.code(), said.trim()), (Some(0), "app: a new value, version 2, the provider's 2"));
    for (item, words) in [("app", "less than a second ago"), ("none", "no such item"), ("a/b", "letters, digits")] {
        let refused = sidecar.folder.mcpeg(&["secrets", "refresh", item]);
        let said = String::from_utf8(refused.stderr).unwrap();
        // The pause may have passed on a slow machine.
        let late = item == "app" && asked.elapsed() > Duration::from_secs(1);
        assert!(late || (refused.status.code() == Some(1) && said.contains(words)), "{item}: {said}");
    }
    let failed = sidecar.folder.mcpeg(&["secrets", "refresh", "gone"]);
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(failed.status.code() == Some(1) && said.contains("secret gone: "), "{said}");

    let table = String::from_utf8(sidecar.folder.mcpeg(&["secrets", "list"]).stdout).unwrap();
    assert!(table.starts_with("SECRET") && table.contains("corp") && table.contains("gone"), "{table}");
    let list: Value = serde_json::from_slice(&sidecar.folder.mcpeg(&["secrets", "list", "--json"]).stdout).unwrap();
    let app = &list["secrets"][0];
    assert_eq!((&app["item"], &app["version"], &app["state"]), (&json!("app"), &json!(2), &json!("ok")));
    let next = app["next_seconds"].as_f64().unwrap();
    assert!((3000.0..=3600.0).contains(&next), "{app}");
    assert!(!table.contains("listed-") && !list.to_string().contains("listed-"));

    bao.down();
    let out = sidecar.folder.mcpeg(&["secrets", "refresh", "app"]);
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
}
