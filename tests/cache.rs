//! Leases that outlive the process: a real OpenBao with a real PostgreSQL behind it, and processes that are killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::leases::database;
use crate::support::bao::Bao;
use crate::support::eventually;
use crate::support::postgres::Postgres;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};

/// Does something to a folder so that its cache is of no use.
type Spoil<'a> = &'a dyn Fn(&Folder);

/// A login of a role that may do what a sidecar needs, and a folder with a cache.
async fn folder(bao: &Bao) -> Folder {
    let (role, secret) = bao.approle().await;
    let policy = "path \"database/creds/*\" { capabilities = [\"read\"] }";
    bao.call("POST", "sys/policies/acl/app", json!({ "policy": policy })).await;
    let text = configuration(&bao.address(), &role, "database/creds/app");
    let folder = Folder::new(&[("mcpeg.yaml", &text), ("id", &secret), ("db.j2", TEMPLATE)]);
    generate_key(&folder, "key");
    folder
}

const TEMPLATE: &str = "{{ secret.db.username }} {{ secret.db.password }}";

fn configuration(address: &str, role: &str, path: &str) -> String {
    format!(
        r#"version: "1.0"
secrets:
  cache: {{ path: data/leases.age, sealed_with: {{ identity_file: key }} }}
  providers:
    corp: {{ type: vault, address: "{address}", auth: {{ method: approle, role_id: "{role}", secret_id_file: id }} }}
  items:
    db: {{ provider: corp, path: {path} }}
templates:
  - {{ source: db.j2, destination: db.env }}
audit: {{ path: audit.log }}
"#
    )
}

fn generate_key(folder: &Folder, name: &str) {
    let made = Command::new(PROGRAM).args(["seal", "--generate-key"]).arg(folder.path(name)).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Ends it with no chance to say anything, and gives its folder.
async fn killed(mut sidecar: Sidecar) -> Folder {
    sidecar.signal(libc::SIGKILL);
    sidecar.ended().await;
    std::mem::replace(&mut sidecar.folder, Folder::new(&[]))
}

async fn keys(bao: &Bao, path: &str) -> Vec<String> {
    let list = bao.call("LIST", path, Value::Null).await;
    let keys = list["data"]["keys"].as_array().cloned().unwrap_or_default();
    keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect()
}

async fn leases(bao: &Bao) -> Vec<String> {
    keys(bao, "sys/leases/lookup/database/creds/app").await
}

async fn tokens(bao: &Bao) -> usize {
    keys(bao, "auth/token/accessors").await.len()
}

fn user(folder: &Folder) -> (String, String) {
    let text = folder.read("db.env");
    let (user, password) = text.split_once(' ').unwrap_or_default();
    (user.to_owned(), password.to_owned())
}

/// Every file of the folder but those that are there to hold it.
fn files_with(folder: &Folder, value: &str, but: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.path("")];
    while let Some(place) = folders.pop() {
        for entry in fs::read_dir(place).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() && !but.contains(&name.as_str()) {
                let bytes = fs::read(&path).unwrap();
                if bytes.windows(value.len()).any(|window| window == value.as_bytes()) {
                    found.push(name);
                }
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_followed_by_one_with_the_same_lease_and_login() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let mut sidecar = Sidecar::start(folder(&bao).await);
    let (first, password) = user(&sidecar.folder);
    let (had, logins) = (leases(&bao).await, tokens(&bao).await);
    assert_eq!(had.len(), 1);
    for _ in 0..10 {
        let folder = killed(sidecar).await;
        assert_eq!(fs::metadata(folder.path("data/leases.age")).unwrap().permissions().mode() & 0o7777, 0o600);
        fs::remove_file(folder.path("db.env")).unwrap();
        sidecar = Sidecar::start(folder);
        assert_eq!(user(&sidecar.folder), (first.clone(), password.clone()));
    }
    assert_eq!((leases(&bao).await, tokens(&bao).await), (had, logins), "no lease and no token were made");
    assert!(postgres.lets_in(&first, &password));
    let resumed = sidecar.folder.audit("secret.fetched");
    assert_eq!(resumed.len(), 11);
    assert_eq!(resumed[10]["attributes"]["mcpeg.secret.reason"], "resumed");
    assert_eq!(sidecar.folder.audit("provider.login")[10]["attributes"]["mcpeg.secret.reason"], "resumed");
    for value in [&first, &password] {
        assert_eq!(files_with(&sidecar.folder, value, &["db.env"]), Vec::<String>::new());
    }
    assert!(sidecar.condition("secrets/cache").unwrap().starts_with("ok"));
    // A clean stop keeps it, too.
    let path = sidecar.folder.path("data/leases.age");
    let kept = fs::read(&path).unwrap();
    sidecar.signal(libc::SIGTERM);
    assert!(sidecar.ended().await.success());
    assert_eq!(fs::read(&path).unwrap().len(), kept.len());
    assert!(postgres.has_user(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_or_a_login_that_was_revoked_meanwhile_is_replaced() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let sidecar = Sidecar::start(folder(&bao).await);
    let (first, _) = user(&sidecar.folder);
    let folder = killed(sidecar).await;
    let logins = tokens(&bao).await;
    bao.call("PUT", "sys/leases/revoke-prefix/database/creds/app", json!({ "sync": true })).await;
    let sidecar = Sidecar::start(folder);
    let (second, password) = user(&sidecar.folder);
    assert!(second != first && postgres.lets_in(&second, &password));
    assert_eq!(tokens(&bao).await, logins, "the login goes on");
    let folder = killed(sidecar).await;
    bao.call("PUT", "sys/leases/revoke-prefix/auth/approle/login", json!({ "sync": true })).await;
    let sidecar = Sidecar::start(folder);
    let (third, password) = user(&sidecar.folder);
    assert!(third != second && postgres.lets_in(&third, &password));
    assert!(sidecar.folder.audit("secret.failed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_a_killed_process_goes_on_with_what_it_had() {
    let (mut bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let sidecar = Sidecar::start(folder(&bao).await);
    let first = user(&sidecar.folder);
    let folder = killed(sidecar).await;
    bao.down();
    let sidecar = Sidecar::start(folder);
    assert_eq!(user(&sidecar.folder), first);
    sidecar.says("provider/corp", &["degraded"]).await;
    // It comes back with nothing in it: the login is found dead, and what there is goes on being served.
    bao.up().await;
    sidecar.says("provider/corp", &["degraded", "AppRole login"]).await;
    sidecar.says("secret/db", &["degraded", "serving version 1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_used_is_set_aside_and_the_start_goes_on() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let mut folder = folder(&bao).await;
    let good = folder.read("mcpeg.yaml");
    let spoil: [(&str, Spoil<'_>); 3] = [
        ("sealed for other keys", &|folder| {
            fs::remove_file(folder.path("key")).unwrap();
            generate_key(folder, "key");
        }),
        ("damaged", &|folder| {
            let mut bytes = fs::read(folder.path("data/leases.age")).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(folder.path("data/leases.age"), bytes).unwrap();
        }),
        ("belong to other providers", &|folder| {
            folder.write("mcpeg.yaml", &good.replace("secret_id_file: id", "secret_id_file: id2"));
            folder.write("id2", &folder.read("id"));
        }),
    ];
    for (why, spoil) in spoil {
        let sidecar = Sidecar::start(folder);
        let (before, _) = user(&sidecar.folder);
        folder = killed(sidecar).await;
        spoil(&folder);
        let sidecar = Sidecar::start(folder);
        let (after, password) = user(&sidecar.folder);
        assert!(after != before && postgres.lets_in(&after, &password), "{why}");
        let said = sidecar.stderr();
        assert!(said.contains("set aside") && said.contains(why), "{why}: {said}");
        assert!(sidecar.folder.path("data/leases.age.unusable").exists());
        folder = killed(sidecar).await;
        // What was written instead serves the next start.
        let sidecar = Sidecar::start(folder);
        assert_eq!(user(&sidecar.folder).0, after);
        folder = killed(sidecar).await;
    }
    // Another item under the same login: its lease alone is made anew.
    bao.call("POST", "database/roles/other", bao.call("GET", "database/roles/app", Value::Null).await["data"].clone())
        .await;
    let logins = tokens(&bao).await;
    folder.write("mcpeg.yaml", &folder.read("mcpeg.yaml").replace("database/creds/app", "database/creds/other"));
    let sidecar = Sidecar::start(folder);
    assert!(postgres.lets_in(&user(&sidecar.folder).0, &user(&sidecar.folder).1));
    assert_eq!(tokens(&bao).await, logins);
    // A second process at the same file goes without.
    let (user, said) = (user(&sidecar.folder), sidecar.folder.mcpeg(&["render", "--once"]));
    assert!(String::from_utf8_lossy(&said.stderr).contains("another process uses"), "{said:?}");
    drop(user);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_written_is_said_and_nothing_else_suffers() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    database(&bao, &postgres, "1h", "2h").await;
    let folder = folder(&bao).await;
    // A folder stands where the file is to be: nobody, root neither, can rename over it.
    fs::create_dir_all(folder.path("data/leases.age.unusable/x")).unwrap();
    fs::create_dir_all(folder.path("data/leases.age/x")).unwrap();
    let sidecar = Sidecar::start(folder);
    let (name, password) = user(&sidecar.folder);
    assert!(postgres.lets_in(&name, &password));
    sidecar.says("secrets/cache", &["degraded", "not kept over a restart"]).await;
    fs::remove_dir_all(sidecar.folder.path("data/leases.age")).unwrap();
    eventually(Duration::from_secs(5), "a refresh writes it", async || {
        sidecar.folder.mcpeg(&["secrets", "refresh", "db"]);
        sidecar.folder.path("data/leases.age").is_file().then_some(())
    })
    .await;
    sidecar.says("secrets/cache", &["ok"]).await;
}
