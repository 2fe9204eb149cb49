//! Databases as services: logins that change, servers that go away, encryption, and the configuration that was printed first.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::leases;
use crate::support::bao::{Bao, ROOT_TOKEN};
use crate::support::database::{ask, folder, of_postgres, rows, served};
use crate::support::mariadb::{self, Mariadb};
use crate::support::mcp::Client;
use crate::support::nginx::Certificates;
use crate::support::postgres::Postgres;
use crate::support::sidecar::{Folder, PROGRAM, Sidecar};
use crate::support::{eventually, memory};

/// Users of seconds, from a real OpenBao, while agents ask as fast as they can: none of them hears of it. Users are told apart by hashes,
/// since their names are secrets, which no answer has.
async fn rotates(main: &str, service: &str, sql: &str, has_user: impl AsyncFn(&str) -> bool) {
    let folder = Folder::new(&[("mcpeg.yaml", main), ("db.yaml", service), ("token", ROOT_TOKEN)]);
    let sidecar = Sidecar::start(folder);
    let until = Instant::now() + Duration::from_secs(14);
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (socket, sql) = (sidecar.service_socket("db"), sql.to_owned());
        agents.spawn(async move {
            let mut client = Client::initialized(&socket).await;
            let mut users = BTreeSet::new();
            let mut count = 0;
            while Instant::now() < until {
                let found = rows(&mut client, &sql, json!([])).await;
                users.insert(found[0]["u"].as_str().unwrap().to_owned());
                count += 1;
            }
            (users, count)
        });
    }
    let (mut users, mut calls) = (BTreeSet::new(), 0);
    while let Some(done) = agents.join_next().await {
        let (seen, count) = done.unwrap();
        users.extend(seen);
        calls += count;
    }
    assert!(users.len() >= 3, "{} users in {calls} calls", users.len());
    eprintln!("{calls} calls as {} users", users.len());
    let failures =
        sidecar.folder.audit("mcp.request").into_iter().filter(|event| event["outcome"] != "success").count();
    assert_eq!(failures, 0);
    let mut gone = 0;
    for user in &users {
        gone += usize::from(!has_user(user).await);
    }
    assert!(gone > 0, "users that were replaced are taken away");
}

fn leased(bao: &Bao) -> String {
    format!(
        "version: \"1.0\"\nsecrets:\n  providers:\n    corp: {{ type: vault, address: \"{}\", auth: {{ method: token, token_file: token }} }}\n  \
         items: {{ db: {{ provider: corp, path: database/creds/app, overlap: 1s }} }}\nservices: {{ db: {{ config_file: db.yaml }} }}\n\
         audit: {{ path: audit.log }}\n",
        bao.address()
    )
}

const LEASED: &str = "username: \"${secret.db.username}\", password: \"${secret.db.password}\" }\ntimeout: 10s\n";

#[tokio::test(flavor = "multi_thread")]
async fn no_query_fails_while_users_of_postgres_come_and_go() {
    let (bao, postgres) = (Bao::start().await, Postgres::start().await);
    leases::database(&bao, &postgres, "2s", "4s").await;
    let service = format!(
        "type: database\ndriver: postgres\nconnection: {{ host: 127.0.0.1, port: {}, database: postgres, {LEASED}",
        postgres.port
    );
    rotates(&leased(&bao), &service, "select md5(user::text) as u", async |user| {
        postgres
            .query(&format!("select 1 from pg_roles where md5(rolname) = '{user}'"))
            .is_some_and(|rows| rows.contains('1'))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_fails_while_users_of_mysql_come_and_go() {
    let (bao, server) = (Bao::start().await, Mariadb::start().await);
    bao.call("POST", "sys/mounts/database", json!({ "type": "database" })).await;
    let config = json!({ "plugin_name": "mysql-database-plugin", "allowed_roles": "*", "username": "root", "password": mariadb::PASSWORD,
        "connection_url": format!("{{{{username}}}}:{{{{password}}}}@tcp(127.0.0.1:{})/", server.port) });
    bao.call("POST", "database/config/my", config).await;
    let create = "CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}'; GRANT SELECT ON app.* TO '{{name}}'@'%';";
    let role = json!({ "db_name": "my", "creation_statements": create, "default_ttl": "2s", "max_ttl": "4s" });
    bao.call("POST", "database/roles/app", role).await;
    let service = format!(
        "type: database\ndriver: mysql\nconnection: {{ host: 127.0.0.1, port: {}, database: app, {LEASED}",
        server.port
    );
    let has_user = async |user: &str| {
        server.count(&format!("select count(*) from mysql.user where md5(user) = '{user}'")).await > 0
    };
    rotates(&leased(&bao), &service, "select md5(substring_index(current_user(), '@', 1)) as u", has_user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_fetched_anew_and_an_old_password_is_nowhere() {
    let (mariadb, postgres) = (Mariadb::start().await, Postgres::start().await);
    let (old, new) = ("old-password-7f3a91c2d4", "new-password-5b8e20f6a1");
    mariadb.query(&format!("create user app@'%' identified by '{old}'")).await;
    mariadb.query("grant all on app.* to app@'%'").await;
    postgres.query(&format!("create role app login password '{old}'")).unwrap();
    let login = "username: \"${secret.db.username}\", password: \"${secret.db.password}\" }\npool: { connection_lifetime: 1h }\n";
    for is_mysql in [true, false] {
        let service = match is_mysql {
            true => {
                format!("driver: mysql\nconnection: {{ host: 127.0.0.1, port: {}, database: app, {login}", mariadb.port)
            }
            false => format!(
                "driver: postgres\nconnection: {{ host: 127.0.0.1, port: {}, database: postgres, {login}",
                postgres.port
            ),
        };
        let folder = folder(&service);
        folder.write("keys.yaml", &format!("db: {{ username: app, password: {old} }}\n"));
        let sidecar = Sidecar::start(folder);
        let mut client = Client::initialized(&sidecar.service_socket("db")).await;
        rows(&mut client, "select 1 as a", json!([])).await;
        // A driver that needs no password any more has none.
        let copies = memory::find(sidecar.pid(), old);
        assert!(is_mysql || copies.is_empty(), "{copies:#?}");
        // The password is another one, of which mcpeg has not heard; and all connections end.
        if is_mysql {
            mariadb.query(&format!("alter user app@'%' identified by '{new}'")).await;
            for row in mariadb.query("select id from information_schema.processlist where user = 'app'").await {
                mariadb.query(&format!("kill {}", row.get::<u64, _>(0).unwrap())).await;
            }
        } else {
            postgres.query(&format!("alter role app password '{new}'")).unwrap();
            postgres.query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'").unwrap();
        }
        sidecar.folder.write("keys.yaml", &format!("db: {{ username: app, password: {new} }}\n"));
        assert_eq!(rows(&mut client, "select 1 as a", json!([])).await, json!([{ "a": 1 }]));
        let events = sidecar.folder.audit("mcp.request");
        assert!(events.last().unwrap().to_string().contains("db@2"), "{events:?}");
        eventually(Duration::from_secs(2), "the old password is nowhere", async || {
            memory::find(sidecar.pid(), old).is_empty().then_some(())
        })
        .await;
        // One that stays refused is said, without a name.
        if is_mysql {
            drop(mariadb.query("drop user app@'%'").await)
        } else {
            drop(postgres.query("alter role app nologin").unwrap())
        }
        sidecar.folder.write("keys.yaml", "db: { username: app, password: third-password-11aa22bb }\n");
        // No sooner than a second after the last time.
        let refreshed = async || sidecar.folder.mcpeg(&["secrets", "refresh", "db"]).status.success().then_some(());
        eventually(Duration::from_secs(5), "it is fetched anew", refreshed).await;
        let answer = ask(&mut client, "select 1 as a", json!([])).await;
        let said = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(said.contains("the database refuses the login") && !said.contains("'app'"), "{said}");
        assert!(!sidecar.stderr().contains("-password-") && !sidecar.folder.read("audit.log").contains("-password-"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_opens_the_breaker_and_serves_when_it_is_back() {
    let port = crate::support::free_port();
    let service = format!(
        "driver: mysql\nconnection: {{ host: 127.0.0.1, port: {port}, database: app, username: root, password: {} }}\n\
        circuit_breaker: {{ failure_threshold: 2, reset_timeout: 1s }}\n",
        mariadb::PASSWORD
    );
    let (sidecar, mut client) = served(&service).await;
    for _ in 0..2 {
        let answer = ask(&mut client, "select 1 as a", json!([])).await;
        assert!(answer["error"]["message"].as_str().unwrap().contains("the database cannot be reached"), "{answer}");
    }
    sidecar.says("service/db", &["breaker"]).await;
    let started = Instant::now();
    assert!(ask(&mut client, "select 1 as a", json!([])).await["error"].is_object());
    assert!(started.elapsed() < Duration::from_millis(900));
    let server = Mariadb::start_with("127.0.0.1", port, &[], &[]).await;
    eventually(Duration::from_secs(5), "it serves", async || {
        ask(&mut client, "select 1 as a", json!([])).await.get("result").map(drop)
    })
    .await;
    // It goes away and comes back while connections are idle.
    drop(server);
    assert!(ask(&mut client, "select 1 as a", json!([])).await["error"].is_object());
    let _server = Mariadb::start_with("127.0.0.1", port, &[], &[]).await;
    eventually(Duration::from_secs(5), "it serves again", async || {
        ask(&mut client, "select 1 as a", json!([])).await.get("result").map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_as_the_pool_says_and_a_reload_takes_new_ones() {
    let server = Postgres::start().await;
    let with = |pool: &str| format!("type: database\n{}", of_postgres(&server, pool));
    let open = || -> u32 {
        let asked = "select count(*) from pg_stat_activity where application_name = 'mcpeg'";
        server.query(asked).unwrap().trim().parse().unwrap()
    };
    let (sidecar, _client) = served(&of_postgres(&server, "pool: { max_connections: 5, idle_connections: 2 }")).await;
    let mut agents = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut client = Client::initialized(&sidecar.service_socket("db")).await;
        agents.spawn(async move { rows(&mut client, "select pg_sleep(1)", json!([])).await });
    }
    eventually(Duration::from_secs(5), "all five are in use", async || (open() == 5).then_some(())).await;
    // A reload in the meantime breaks off nothing.
    sidecar
        .folder
        .write("db.yaml", &with("pool: { max_connections: 5, idle_connections: 1, connection_lifetime: 2s }"));
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    assert_eq!(agents.join_all().await.len(), 5);
    eventually(Duration::from_secs(2), "none of the pool before is left", async || (open() == 0).then_some(())).await;
    let mut client = Client::initialized(&sidecar.service_socket("db")).await;
    rows(&mut client, "select 1 as a", json!([])).await;
    assert_eq!(open(), 1);
    eventually(Duration::from_secs(4), "it is too old", async || (open() == 0).then_some(())).await;
    rows(&mut client, "select 1 as a", json!([])).await;
    assert!(sidecar.stop().await.success());
    eventually(Duration::from_secs(2), "nothing is left", async || (open() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_encrypted_and_the_server_has_to_prove_its_name() {
    let made = Certificates::new("localhost", &["app"]);
    let files = ["ca.pem", "server.pem", "server.key"].map(|name| (name, made.read(name)));
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let arguments = ["--ssl-ca={folder}/ca.pem", "--ssl-cert={folder}/server.pem", "--ssl-key={folder}/server.key"];
    let server = Mariadb::start_with("127.0.0.1", crate::support::free_port(), &arguments, &files).await;
    server.query("create user app@'%' identified by 'app-0001' require x509").await;
    server.query("grant all on app.* to app@'%'").await;
    let with = |host: &str, tls: &str| {
        let port = server.port;
        let folder = folder(&format!(
            "driver: mysql\nconnection: {{ host: {host}, port: {port}, database: app, username: app, password: app-0001{tls}\n"
        ));
        for name in ["ca.pem", "app.pem", "app.key"] {
            folder.write(name, &made.text(name));
        }
        Sidecar::start(folder)
    };
    let client_files = "cert_file: app.pem, key_file: app.key";
    let cipher = "show session status like 'Ssl_cipher'";
    for (host, tls, expected) in [
        ("localhost", format!(" }}\ntls: {{ ca_file: ca.pem, {client_files} }}"), None),
        ("127.0.0.1", format!(" }}\ntls: {{ ca_file: ca.pem, server_name: localhost, {client_files} }}"), None),
        ("127.0.0.1", format!(", tls: require }}\ntls: {{ {client_files} }}"), None),
        ("127.0.0.1", format!(" }}\ntls: {{ ca_file: ca.pem, {client_files} }}"), Some("certificate")),
        ("localhost", format!(" }}\ntls: {{ {client_files} }}"), Some("certificate")),
        ("localhost", " }\ntls: { ca_file: ca.pem }".to_owned(), Some("refuses the login")),
        ("localhost", " }".to_owned(), Some("refuses the login")),
    ] {
        let sidecar = with(host, &tls);
        let mut client = Client::initialized(&sidecar.service_socket("db")).await;
        match expected {
            None => assert!(
                rows(&mut client, cipher, json!([])).await[0]["Value"].as_str().unwrap().starts_with("TLS_"),
                "{tls}"
            ),
            Some(words) => {
                let answer = ask(&mut client, cipher, json!([])).await;
                assert!(answer["error"]["message"].as_str().unwrap_or_default().contains(words), "{tls}: {answer}");
            }
        }
    }
    // A Unix socket, too.
    let socket = server.socket().display().to_string();
    let (_sidecar, mut client) = served(&format!(
        "driver: mysql\nconnection: {{ socket: \"{socket}\", database: app, username: root, password: {} }}\n",
        mariadb::PASSWORD
    ))
    .await;
    assert_eq!(rows(&mut client, "select 1 as a", json!([])).await, json!([{ "a": 1 }]));
}

/// As it is printed in the decision that the project grew from (architecture decision record 11, "Data Storage Strategy").
const PRINTED_MAIN: &str = r#"# mcpeg.yaml
version: "1.0"
metadata:
  name: "mcpeg-prod"
  environment: "production"

global:
  timeout: "30s"
  memory_limit_mb: 512
  log_level: "info"

transports:
  stdio:
    enabled: true
  http:
    enabled: false
    port: 8080

services:
  mysql:
    enabled: true
    config_file: "services/mysql.yaml"
  
  vault:
    enabled: true
    config_file: "services/vault.yaml"

storage:
  runtime:
    type: "memory"
    persistence: true
    snapshot_interval: "5m"
  
  cache:
    type: "memory"
    max_size_mb: 100
    ttl: "10m"
  
  logs:
    type: "file"
    path: "/var/log/mcpeg"
    rotation: "daily"
    retention: "30d"
"#;

const PRINTED_SERVICE: &str = r#"# services/mysql.yaml
type: "database"
driver: "mysql"

connection:
  host: "${MYSQL_HOST}"
  port: 3306
  database: "${MYSQL_DATABASE}"
  username: "${MYSQL_USER}"
  password: "${MYSQL_PASSWORD}"

pool:
  max_connections: 10
  idle_connections: 2
  connection_lifetime: "1h"

circuit_breaker:
  enabled: true
  failure_threshold: 5
  reset_timeout: "60s"

tools:
  - name: "query_database"
    description: "Execute SQL queries"
    max_rows: 1000
    timeout: "30s"
  
  - name: "get_schema"
    description: "Get table schema information"
    cache_ttl: "1h"

resources:
  - pattern: "mysql://schema/{table}"
    handler: "get_table_schema"
    cache_ttl: "1h"
  
  - pattern: "mysql://data/{table}"
    handler: "get_sample_data"
    max_rows: 100
"#;

/// What an agent that has started mcpeg asks it, on standard input and output, and the answers by their ids.
fn converse(running: &mut Child) -> BTreeMap<u64, Value> {
    let ask = |id: u64, method: &str, params: Value| {
        json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()
    };
    let hello =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let query = json!({ "sql": "select * from orders where id = ?", "parameters": [1] });
    let asked = [
        ask(1, "initialize", hello),
        json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string(),
        ask(2, "tools/list", json!({})),
        ask(3, "tools/call", json!({ "name": "mysql__query_database", "arguments": query })),
        ask(4, "tools/call", json!({ "name": "mysql__get_schema", "arguments": {} })),
        ask(5, "resources/list", json!({})),
    ];
    // Its input stays open until all is answered.
    let mut input = running.stdin.take().unwrap();
    input.write_all((asked.join("\n") + "\n").as_bytes()).unwrap();
    let mut answers = BTreeMap::new();
    for line in BufReader::new(running.stdout.take().unwrap()).lines() {
        let answer: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if let Some(id) = answer["id"].as_u64() {
            answers.insert(id, answer);
        }
        if answers.len() == 5 {
            break;
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_that_was_printed_first_starts_and_serves() {
    // The port is printed; the address is this test's own.
    let host = format!("127.{}.{}.3", 1 + std::process::id() % 200, 1 + std::process::id() / 200 % 200);
    let server = Mariadb::start_with(&host, 3306, &[], &[]).await;
    server.query("create table orders (id int primary key, total decimal(10,2))").await;
    server.query("insert into orders values (1, 9.50)").await;
    let folder = Folder::new(&[
        ("mcpeg.yaml", PRINTED_MAIN),
        ("services/mysql.yaml", PRINTED_SERVICE),
        ("services/vault.yaml", "type: vault\n"),
    ]);
    let logs = folder.path("logs");
    let variables = [
        ("MYSQL_HOST", host.as_str()),
        ("MYSQL_DATABASE", "app"),
        ("MYSQL_USER", "root"),
        ("MYSQL_PASSWORD", mariadb::PASSWORD),
        // Nothing of a test is written outside of its folder.
        ("MCPEG_STORAGE__LOGS__PATH", logs.to_str().unwrap()),
    ];
    let mut running = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(folder.path("mcpeg.yaml"))
        .envs(variables)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let answers = converse(&mut running);
    assert!(running.wait().unwrap().success());
    let tools = answers[&2]["result"]["tools"].to_string();
    assert!(
        tools.contains("mysql__query_database")
            && tools.contains("Execute SQL queries")
            && tools.contains("vault__list_secrets"),
        "{tools}"
    );
    assert_eq!(
        answers[&3]["result"]["structuredContent"]["rows"],
        json!([{ "id": 1, "total": "9.50" }]),
        "{}",
        answers[&3]
    );
    assert!(answers[&4].to_string().contains("decimal(10,2)"), "{}", answers[&4]);
    assert!(answers[&5].to_string().contains("mysql://data/orders"), "{}", answers[&5]);
}

#[test]
fn mistakes_in_a_database_s_file_are_named_with_their_places() {
    let folder = Folder::new(&[(
        "mcpeg.yaml",
        "version: \"1.0\"\nservices:\n  a: { config_file: a.yaml }\n  b: { config_file: b.yaml }\n  c: { config_file: c.yaml }\n  d: { config_file: d.yaml }\n",
    )]);
    folder.write("a.yaml", "type: database\ndriver: mysql\nheaders: { a: b }\nconnection: { path: x, tls: disable }\ntls: { server_name: db.example }\npool: { max_connections: 1, idle_connections: 5 }\ntools: [ { name: query_databse }, { name: get_schema, url: \"http://h/\" } ]\nresources: [ { pattern: \"mysql://x\", handler: get_sample_data }, { pattern: \"mysql://{table}\" } ]\n");
    folder.write("b.yaml", "type: database\ndriver: sqlite\nconnection: { host: h, password: p }\n");
    folder.write("c.yaml", "type: http\ndriver: mysql\nread_only: true\ntools: [ { name: a, url: \"http://h/\" } ]\nresources: [ { pattern: \"a://{b}\", max_rows: 3 } ]\n");
    folder.write("d.yaml", "type: database\nconnection: {}\n");
    let output = folder.mcpeg(&["check"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for words in [
        "`headers` has no use",
        "`path` belongs to the driver `sqlite`",
        "`database` is missing",
        "`connection.tls` is `disable`",
        "more than `max_connections`",
        "there is no tool of a database `query_databse`",
        "did you mean `query_database`?",
        "`url` belongs to a service of `type: http`",
        "expected an address with one place",
        "`handler` is missing",
        "SQLite is a file: `host` has no use",
        "SQLite is a file: `password` has no use",
        "`path` is missing",
        "`driver` belongs to a service of `type: database`",
        "`read_only` belongs to a service of `type: database`",
        "`max_rows` belongs to a service of `type: database`",
        "`driver` is missing",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}
