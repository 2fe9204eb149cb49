//! Leases of a real OpenBao with a real PostgreSQL behind it, and what it costs to keep many secrets fresh.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::bao::{Bao, ROOT_TOKEN};
use crate::support::counting::Counting;
use crate::support::postgres::{PASSWORD, Postgres};
use crate::support::sidecar::{Folder, Sidecar};
use crate::support::{eventually, memory};

/// A database engine at `database/` with one role `app`.
pub async fn database(bao: &Bao, postgres: &Postgres, ttl: &str, max_ttl: &str) {
    bao.call("POST", "sys/mounts/database", json!({ "type": "database" })).await;
    let url =
        format!("postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/postgres?sslmode=disable", postgres.port);
    let config = json!({ "plugin_name": "postgresql-database-plugin", "connection_url": url, "allowed_roles": "*",
        "username": "postgres", "password": PASSWORD });
    bao.call("POST", "database/config/pg", config).await;
    let create = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';";
    let role = json!({ "db_name": "pg", "creation_statements": create, "default_ttl": ttl, "max_ttl": max_ttl });
    bao.call("POST", "database/roles/app", role).await;
}

fn folder(auth: &str, address: &str, more: &str, item: &str) -> Folder {
    Folder::new(&[
        ("mcpeg.yaml", &configuration(auth, address, more, item)),
        ("token", ROOT_TOKEN),
        ("db.j2", "{{ secret.db.username }} {{ secret.db.password }}"),
    ])
}

fn configuration(auth: &str, address: &str, more: &str, item: &str) -> String {
    format!(
        r#"version: "1.0"
secrets:
  providers:
    corp: {{ type: vault, address: "{address}", auth: {auth} }}
  items:
    db: {{ provider: corp, {item} }}
  {more}
templates:
  - {{ source: db.j2, destination: db.env }}
audit: {{ path: audit.log }}
"#
    )
}

const ROOT: &str = "{ method: token, token_file: token }";

fn user(sidecar: &Sidecar) -> (String, String) {
    let text = sidecar.folder.read("db.env");
    let (user, password) = text.split_once(' ').unwrap_or_default();
    (user.to_owned(), password.to_owned())
}

async fn another_user(sidecar: &Sidecar, than: &str, within: Duration) -> (String, String) {
    eventually(within, "there is another user", async || Some(user(sidecar)).filter(|(user, _)| user != than)).await
}

fn reasons(sidecar: &Sidecar, event: &str) -> Vec<String> {
    let events = sidecar.folder.audit(event);
    events
        .iter()
        .map(|event| event["attributes"]["mcpeg.secret.reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_then_replaced_and_its_values_always_work() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "4s", "10s").await;
    let sidecar = Sidecar::start(folder(ROOT, &bao.address(), "", "path: database/creds/app, overlap: 1s"));
    let (first, _) = user(&sidecar);
    let started = Instant::now();
    while user(&sidecar).0 == first {
        let (user, password) = user(&sidecar);
        assert!(postgres.lets_in(&user, &password), "after {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(15), "it is replaced before its maximum life ends");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(started.elapsed() > Duration::from_secs(4), "it lived longer than without renewal");
    let (second, password) = user(&sidecar);
    assert!(postgres.lets_in(&second, &password));
    eventually(Duration::from_secs(5), "the first user is gone", async || (!postgres.has_user(&first)).then_some(()))
        .await;
    assert!(!sidecar.folder.audit("secret.renewed").is_empty());
    assert_eq!(reasons(&sidecar, "secret.rotated")[0], "ending");
    let fetched = &sidecar.folder.audit("secret.fetched")[0]["attributes"]["mcpeg.secret.lease"];
    assert_eq!(fetched.as_str().map(str::len), Some(12), "{fetched}");
    assert_eq!(sidecar.folder.audit("secret.renewed")[0]["attributes"]["mcpeg.secret.lease"], *fetched);
    assert!(!sidecar.folder.read("audit.log").contains("database/creds/app/"), "leases are named by their hashes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_lease_lives_for_the_overlap_and_the_last_is_revoked_at_the_end() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let more = "revoke_on_exit: true";
    let folder = folder(ROOT, &bao.address(), more, "path: database/creds/app, overlap: 3s");
    let sidecar = Sidecar::start(folder);
    let (first, first_password) = user(&sidecar);
    // Another `refresh` makes the item anew.
    let item = "path: database/creds/app, overlap: 3s, refresh: 2m";
    sidecar.folder.write("mcpeg.yaml", &configuration(ROOT, &bao.address(), more, item));
    sidecar.signal(libc::SIGHUP);
    let (second, password) = another_user(&sidecar, &first, Duration::from_secs(10)).await;
    let replaced = Instant::now();
    assert!(postgres.lets_in(&first, &first_password) && postgres.lets_in(&second, &password), "both serve");
    eventually(Duration::from_secs(10), "the first user is gone", async || (!postgres.has_user(&first)).then_some(()))
        .await;
    assert!(replaced.elapsed() > Duration::from_secs(2), "only after the overlap, not after {:?}", replaced.elapsed());
    assert!(postgres.lets_in(&second, &password));
    let found = memory::find(sidecar.pid(), &first_password);
    assert!(found.is_empty(), "{} copies of the old password: {found:#?}", found.len());
    eventually(Duration::from_secs(2), "it is on record", async || {
        (reasons(&sidecar, "secret.revoked") == ["replaced"]).then_some(())
    })
    .await;
    assert!(sidecar.stop().await.success());
    eventually(Duration::from_secs(5), "the second user is gone", async || (!postgres.has_user(&second)).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_login_replaces_what_was_leased_under_the_old_one_before_that_ends() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let (role, secret) = bao.approle().await;
    let policy = "path \"database/creds/*\" { capabilities = [\"read\"] }\npath \"sys/leases/revoke\" { capabilities = [\"update\"] }";
    bao.call("POST", "sys/policies/acl/app", json!({ "policy": policy })).await;
    let short = json!({ "token_policies": "app", "token_ttl": "4s", "token_max_ttl": "6s" });
    bao.call("POST", "auth/approle/role/app", short).await;
    let auth = format!("{{ method: approle, role_id: {role}, secret_id_file: id }}");
    let folder = folder(&auth, &bao.address(), "", "path: database/creds/app, overlap: 1s");
    folder.write("id", &secret);
    let sidecar = Sidecar::start(folder);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(14) {
        let (user, password) = user(&sidecar);
        assert!(postgres.lets_in(&user, &password), "after {:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reasons = reasons(&sidecar, "secret.rotated");
    assert!(reasons.len() >= 2 && reasons.iter().all(|reason| reason == "login"), "{reasons:?}");
    assert!(sidecar.folder.audit("secret.failed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_role_is_followed_when_the_server_rotates_it() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    postgres.query("CREATE ROLE fixed LOGIN PASSWORD 'first'").unwrap();
    let role = json!({ "db_name": "pg", "username": "fixed", "rotation_period": "5s",
        "rotation_statements": "ALTER ROLE \"{{name}}\" WITH PASSWORD '{{password}}';" });
    bao.call("POST", "database/static-roles/fixed", role).await;
    let sidecar = Sidecar::start(folder(ROOT, &bao.address(), "", "path: database/static-creds/fixed, refresh: 1h"));
    let (name, first) = user(&sidecar);
    assert!(name == "fixed" && postgres.lets_in(&name, &first));
    for _ in 0..2 {
        let (_, before) = user(&sidecar);
        let after = eventually(Duration::from_secs(15), "the file follows", async || {
            Some(user(&sidecar).1).filter(|password| *password != before)
        })
        .await;
        assert!(postgres.lets_in("fixed", &after));
    }
    assert!(reasons(&sidecar, "secret.rotated").iter().all(|reason| reason == "server_rotation"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_issued_to_order_and_again_before_it_ends() {
    let bao = Bao::start().await;
    bao.call("POST", "sys/mounts/pki", json!({ "type": "pki" })).await;
    bao.call("POST", "pki/root/generate/internal", json!({ "common_name": "test root", "ttl": "24h" })).await;
    bao.call("POST", "pki/roles/app", json!({ "allow_any_name": true, "max_ttl": "1h" })).await;
    let item = "path: pki/issue/app, parameters: { common_name: app.example, ttl: 6s }, overlap: 1s";
    let folder = folder(ROOT, &bao.address(), "", item);
    folder.write("db.j2", "{{ secret.db.serial_number }} {{ secret.db.private_key }}");
    let sidecar = Sidecar::start(folder);
    let (serial, key) = user(&sidecar);
    assert!(key.contains("PRIVATE KEY"));
    let started = Instant::now();
    another_user(&sidecar, &serial, Duration::from_secs(6)).await;
    assert!(started.elapsed() > Duration::from_secs(2));
    assert_eq!(reasons(&sidecar, "secret.rotated"), ["ending"]);
}

/// Fifty secrets, looked at every second, and a template of the last.
fn fifty(address: &str, auth: &str) -> Folder {
    let items: String = (0..50)
        .map(|number| format!("    s{number}: {{ provider: corp, path: secret/data/team/s{number}, refresh: 1s }}\n"))
        .collect();
    let main = format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{address}\", auth: {auth} }}\n  items:\n{items}\
         templates:\n  - {{ source: t.j2, destination: t.txt }}\naudit: {{ path: audit.log }}\n"
    );
    Folder::new(&[("mcpeg.yaml", &main), ("token", ROOT_TOKEN), ("t.j2", "{{ secret.s49.value }}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_secrets_cost_one_request_a_second_and_a_change_is_seen_in_one() {
    let bao = Bao::start().await;
    for number in 0..50 {
        bao.put(&format!("team/s{number}"), json!({ "value": "one" })).await;
    }
    let counting = Counting::before(bao.port).await;
    let sidecar = Sidecar::start(fifty(&counting.address, ROOT));
    assert!(counting.requests() <= 60, "{} requests at the start", counting.requests());
    // Two at a time; on a busy machine the start takes longer than a connection lives, and two more follow.
    assert!(counting.connections() <= 4, "{} connections at the start", counting.connections());
    eprintln!("start: {} requests over {} connections", counting.requests(), counting.connections());
    let before = counting.requests();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let asked = counting.requests() - before;
    assert!((10..=14).contains(&asked), "{asked} requests in 12 s");
    bao.put("team/s49", json!({ "value": "two" })).await;
    let written = Instant::now();
    eventually(Duration::from_secs(5), "the file follows", async || {
        (sidecar.folder.read("t.txt") == "two").then_some(())
    })
    .await;
    // 1.1 s, and some more for a machine that runs other tests beside this one.
    assert!(written.elapsed() < Duration::from_millis(1500), "{:?}", written.elapsed());
    assert_eq!(sidecar.folder.audit("secret.rotated").len(), 1);
    bao.call("DELETE", "secret/data/team/s48", Value::Null).await;
    sidecar.says("secret/s48", &["was deleted", "version 1"]).await;
    sidecar.says("secret/s47", &["ok"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_only_read_values_follows_them_all_the_same() {
    let bao = Bao::start().await;
    for number in 0..50 {
        bao.put(&format!("team/s{number}"), json!({ "value": "one" })).await;
    }
    let (role, secret) = bao.approle().await;
    let auth = format!("{{ method: approle, role_id: {role}, secret_id_file: id }}");
    let folder = fifty(&bao.address(), &auth);
    folder.write("id", &secret);
    let sidecar = Sidecar::start(folder);
    bao.put("team/s49", json!({ "value": "two" })).await;
    eventually(Duration::from_secs(10), "the file follows", async || {
        (sidecar.folder.read("t.txt") == "two").then_some(())
    })
    .await;
    assert_eq!(sidecar.folder.audit("provider.login").len(), 1);
    assert!(sidecar.folder.audit("secret.failed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_kept_until_whoever_reads_its_file_has_followed() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let folder = folder(ROOT, &bao.address(), "", "path: database/creds/app, overlap: 1s");
    let follow = folder.path("follows").display().to_string();
    let hook = format!("db.env, on_change: {{ command: [test, -e, {follow}], retries: 1 }} }}");
    folder.write("mcpeg.yaml", &folder.read("mcpeg.yaml").replace("db.env }", &hook));
    folder.write("follows", "");
    let sidecar = Sidecar::start(folder);
    let (first, password) = another_user(&sidecar, "", Duration::from_secs(5)).await;
    eventually(Duration::from_secs(5), "it is told", async || {
        (!sidecar.folder.audit("hook.ran").is_empty()).then_some(())
    })
    .await;
    std::fs::remove_file(sidecar.folder.path("follows")).unwrap();
    let refresh = async || {
        eventually(Duration::from_secs(5), "a refresh is allowed", async || {
            sidecar.folder.mcpeg(&["secrets", "refresh", "db"]).status.success().then_some(())
        })
        .await;
    };
    refresh().await;
    another_user(&sidecar, &first, Duration::from_secs(5)).await;
    // Two tries that fail, and the overlap has passed twice over.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(sidecar.folder.audit("hook.ran").len(), 3);
    assert!(postgres.lets_in(&first, &password), "who has not followed still uses it");
    assert!(reasons(&sidecar, "secret.revoked").is_empty());
    sidecar.folder.write("follows", "");
    refresh().await;
    eventually(Duration::from_secs(10), "both old users are gone", async || {
        (reasons(&sidecar, "secret.revoked") == ["replaced", "replaced"]).then_some(())
    })
    .await;
    assert!(!postgres.lets_in(&first, &password));
    let (user, password) = user(&sidecar);
    assert!(postgres.lets_in(&user, &password));
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_kept_until_the_supervised_process_has_followed() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let folder = folder(ROOT, &bao.address(), "", "path: database/creds/app, overlap: 1s");
    // It takes three seconds to end, and until then it may use what it was started with.
    folder.write(
        "agent.sh",
        "trap 'sleep 3; exit 0' TERM\necho $DB_USER $DB_PASSWORD > \"$1\"\nwhile :; do sleep 0.1; done\n",
    );
    let (script, says) = (folder.path("agent.sh"), folder.path("says"));
    let process = format!(
        "process: {{ command: [sh, {}, {}], env: {{ DB_USER: \"${{secret.db.username}}\", DB_PASSWORD: \"${{secret.db.password}}\" }} }}\n",
        script.display(),
        says.display()
    );
    folder.write("mcpeg.yaml", &(folder.read("mcpeg.yaml") + &process));
    let sidecar = Sidecar::start(folder);
    let used = async |than: &str| {
        eventually(Duration::from_secs(10), "the process says whom it is", async || {
            let text = sidecar.folder.read("says");
            let (user, password) = text.trim().split_once(' ')?;
            (user != than).then(|| (user.to_owned(), password.to_owned()))
        })
        .await
    };
    let (first, password) = used("").await;
    assert!(sidecar.folder.mcpeg(&["secrets", "refresh", "db"]).status.success());
    another_user(&sidecar, &first, Duration::from_secs(5)).await;
    // The overlap has passed twice over, and the process has not ended.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(postgres.lets_in(&first, &password), "the process that ends still uses it");
    assert!(reasons(&sidecar, "secret.revoked").is_empty());
    let (second, password) = used(&first).await;
    eventually(Duration::from_secs(10), "the old user is gone", async || (!postgres.has_user(&first)).then_some(()))
        .await;
    assert!(postgres.lets_in(&second, &password));
}
