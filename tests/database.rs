//! Databases as services: what agents can ask of real MariaDB, PostgreSQL and SQLite over MCP, and what they cannot.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::database::{ask, folder, of_mariadb, of_postgres, of_sqlite, refused, rows, served, sqlite};
use crate::support::eventually;
use crate::support::mariadb::Mariadb;
use crate::support::mcp::{Client, modern};
use crate::support::postgres::Postgres;
use crate::support::sidecar::Sidecar;

#[tokio::test(flavor = "multi_thread")]
async fn mysql_values_are_told_as_they_are_and_parameters_are_bound() {
    let server = Mariadb::start().await;
    server
        .query(
            "create table t (id bigint unsigned primary key, n decimal(30,10), b blob, x varchar(20), d datetime(3), \
             ts timestamp null, day date, tm time, y year, e enum('one','two'), f float, bits bit(9), j text, none int)",
        )
        .await;
    server
        .query(
            "set time_zone='+02:00'; insert into t values (18446744073709551615, 12345678901234567890.0123456789, x'00ff', 'Ä\\'x', \
             '2024-02-29 12:00:00.250', '2024-02-29 12:00:00', '2024-02-29', '-100:00:01', 2024, 'two', 0.1, b'100000001', '{}', null)",
        )
        .await;
    let (_sidecar, mut client) = served(&of_mariadb(&server, "")).await;
    let found = rows(&mut client, "select * from t where x = ? and id > ?", json!(["Ä'x", 5])).await;
    assert_eq!(
        found[0],
        json!({
            "id": "18446744073709551615", "n": "12345678901234567890.0123456789", "b": { "base64": "AP8=" }, "x": "Ä'x",
            "d": "2024-02-29T12:00:00.250000", "ts": "2024-02-29T10:00:00Z", "day": "2024-02-29", "tm": "-100:00:01", "y": 2024,
            "e": "two", "f": 0.1, "bits": 257, "j": "{}", "none": null,
        })
    );
    let answer = ask(&mut client, "select id, n, b, e from t", json!([])).await;
    let kinds: Vec<&Value> = answer["result"]["structuredContent"]["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| &column["type"])
        .collect();
    assert_eq!(kinds, ["bigint unsigned", "decimal", "blob", "enum"]);
    let bytes = rows(&mut client, "select x from t where b = ?", json!([{ "base64": "AP8=" }])).await;
    assert_eq!(bytes[0]["x"], "Ä'x");
    assert_eq!(rows(&mut client, "select 1 as a, 2 as a;", json!([])).await, json!([{ "a": 1, "a_2": 2 }]));
    let words = refused(&mut client, "select ?", json!([])).await;
    assert_eq!(words, "the statement has 1 parameters, and `parameters` has 0");
    assert!(refused(&mut client, "select nothing from t", json!([])).await.contains("Unknown column 'nothing'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_values_are_told_as_they_are_and_parameters_are_bound() {
    let server = Postgres::start().await;
    server.query(
        "create type mood as enum ('sad', 'ok'); create domain positive as int check (value > 0);
         create table t (id bigint primary key, n numeric, b bytea, x text, d timestamp, ts timestamptz, day date, tm time, u uuid,
            m mood, p positive, a int[], ta text[], j jsonb, i interval, net inet, r int4range, f real, c char(3), none int);
         set timezone = 'Europe/Berlin';
         insert into t values (9007199254740993, 12345678901234567890.0123456789, '\\x00ff', 'Ä''x', '2024-02-29 12:00:00.25',
            '2024-02-29 12:00:00', '0044-03-15 BC', '23:59:59.5', '6f1d2c3b-0000-4000-8000-0123456789ab', 'ok', 7, '{{1,null},{3,4}}',
            '{a,\"b c\"}', '{\"k\": [1, 2.5]}', '1 day 02:00', '10.0.0.1/8', '[1,5)', 0.1, 'ab', null)",
    ).unwrap();
    let (_sidecar, mut client) = served(&of_postgres(&server, "")).await;
    let found = rows(&mut client, "select * from t where x = $1 and id > $2 -- what is it?", json!(["Ä'x", 5])).await;
    assert_eq!(
        found[0],
        json!({
            "id": "9007199254740993", "n": "12345678901234567890.0123456789", "b": { "base64": "AP8=" }, "x": "Ä'x",
            "d": "2024-02-29T12:00:00.250000", "ts": "2024-02-29T11:00:00Z", "day": "0044-03-15 BC", "tm": "23:59:59.500000",
            "u": "6f1d2c3b-0000-4000-8000-0123456789ab", "m": "ok", "p": 7, "a": [[1, null], [3, 4]], "ta": ["a", "b c"],
            "j": { "k": [1, 2.5] }, "i": "1 day 02:00:00", "net": "10.0.0.1/8", "r": "[1,5)", "f": 0.1, "c": "ab ", "none": null,
        })
    );
    let asked = json!([{ "base64": "AP8=" }, ["a", "b c"], { "k": [1, 2.5] }, "12345678901234567890.0123456789", "2024-02-29T11:00:00Z", true]);
    let sql = "select id from t where b = $1 and ta = $2 and j = $3 and n = $4 and ts = $5 and $6";
    assert_eq!(rows(&mut client, sql, asked).await.as_array().unwrap().len(), 1);
    assert_eq!(rows(&mut client, "select 1 as a where 1 = any($1)", json!([[1, 2]])).await, json!([{ "a": 1 }]));
    assert!(
        refused(&mut client, "select nothing from t", json!([]))
            .await
            .contains("column \"nothing\" does not exist (42703)")
    );
    assert!(
        refused(&mut client, "select $1::int", json!(["x"])).await.contains("invalid input syntax for type integer")
    );
    assert!(refused(&mut client, "select 1; select 2", json!([])).await.contains("only one statement"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_is_a_file_that_is_only_read_unless_writing_is_allowed() {
    let folder = folder(&of_sqlite(""));
    sqlite(
        &folder,
        "create table parent (id integer primary key, name text not null default 'x');
         create table \"odd name\" (a int, b blob, c real, p int references parent(id), unique (a, c));
         create view v as select 1 as one;
         insert into parent values (9007199254740993, 'big');
         insert into \"odd name\" values (1, x'ff', 1.5, null);",
    );
    let sidecar = Sidecar::start(folder);
    let mut client = Client::initialized(&sidecar.service_socket("db")).await;
    let found = rows(&mut client, "select * from \"odd name\" where a = ?", json!([1])).await;
    assert_eq!(found, json!([{ "a": 1, "b": { "base64": "/w==" }, "c": 1.5, "p": null }]));
    assert_eq!(rows(&mut client, "select id from parent", json!([])).await[0]["id"], "9007199254740993");
    for sql in ["delete from parent", "attach 'other.db' as o", "vacuum into 'x.db'", "pragma query_only = 0"] {
        assert!(refused(&mut client, sql, json!([])).await.contains("this database is for reading"), "{sql}");
    }
    let words = refused(&mut client, "with x as (select 1) delete from parent", json!([])).await;
    assert!(words.contains("readonly database"), "{words}");
    assert!(!sidecar.folder.path("x.db").exists() && !sidecar.folder.path("other.db").exists());

    let schema = client.call("get_schema", json!({})).await["result"]["structuredContent"].take();
    let names: Vec<&Value> = schema["tables"].as_array().unwrap().iter().map(|table| &table["name"]).collect();
    assert_eq!(names, ["odd name", "parent", "v"], "{schema}");
    assert_eq!(schema["tables"][1]["primary_key"], json!(["id"]), "{schema}");
    assert_eq!(schema["tables"][0]["foreign_keys"][0]["references"], json!({ "table": "parent", "columns": ["id"] }));
    assert_eq!(schema["tables"][0]["indexes"][0]["columns"], json!(["a", "c"]));

    sidecar.folder.write("db.yaml", &format!("type: database\n{}", of_sqlite("read_only: false")));
    assert!(sidecar.folder.mcpeg(&["reload"]).status.success());
    let answer = ask(&mut client, "update parent set name = ? where id > 1", json!(["y"])).await;
    assert_eq!(answer["result"]["structuredContent"]["affected_rows"], 1, "{answer}");
    assert!(refused(&mut client, "attach 'other.db' as o", json!([])).await.contains("ATTACH is not run here"));
    assert!(refused(&mut client, "insert into \"odd name\" (p) values (5)", json!([])).await.contains("FOREIGN KEY"));
}

/// Whatever an agent tries, a database that is for reading is not changed, and no session is left in another state.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_reading_is_not_written_to() {
    let (mariadb, postgres) = (Mariadb::start().await, Postgres::start().await);
    mariadb.query("create table t (a int)").await;
    mariadb.query("create function sneak() returns int begin insert into t values (1); return 1; end").await;
    mariadb.query("create sequence s").await;
    let (_one, mut client) = served(&of_mariadb(&mariadb, "pool: { max_connections: 1, idle_connections: 1 }")).await;
    for sql in [
        "insert into t values (1)",
        "select sneak()",
        "select 1 from t for update; commit",
        "/*! insert into t values (1) */",
        "with x as (select 1) delete from t",
        "create table u (a int)",
        "set session transaction read write",
        "commit",
        "select 1 into outfile '/tmp/mcpeg-test-outfile'",
        "kill 1",
        "use mysql",
    ] {
        refused(&mut client, sql, json!([])).await;
    }
    assert_eq!(mariadb.count("select count(*) from t").await, 0);
    assert_eq!(rows(&mut client, "select database() as d", json!([])).await[0]["d"], "app");

    postgres.query("create table t (a int); create sequence s; create function sneak() returns int language sql as 'insert into t values (1) returning a'").unwrap();
    let (_two, mut client) = served(&of_postgres(&postgres, "pool: { max_connections: 1, idle_connections: 1 }")).await;
    for sql in [
        "insert into t values (1)",
        "select sneak()",
        "select nextval('s')",
        "with x as (insert into t values (1) returning a) select * from x",
        "explain analyze insert into t values (1)",
        "select set_config('transaction_read_only', 'off', false)",
        "set transaction read write",
        "commit",
        "do $$ begin insert into t values (1); end $$",
        "copy t to '/tmp/mcpeg-test-copy'",
    ] {
        refused(&mut client, sql, json!([])).await;
    }
    // What a function may change of a session does not outlast the call.
    rows(&mut client, "select set_config('search_path', 'elsewhere', false), pg_advisory_lock(7)", json!([])).await;
    let left = rows(
        &mut client,
        "select current_setting('search_path') as s, (select count(*) from pg_locks where locktype = 'advisory') as l",
        json!([]),
    )
    .await;
    assert_eq!(left, json!([{ "s": "\"$user\", public", "l": 0 }]));
    assert_eq!(postgres.query("select count(*) from t").unwrap().trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_write_writes_and_a_refused_statement_leaves_nothing() {
    let (mariadb, postgres) = (Mariadb::start().await, Postgres::start().await);
    mariadb.query("create table t (a int primary key)").await;
    let (_one, mut client) = served(&of_mariadb(&mariadb, "read_only: false")).await;
    let answer = ask(&mut client, "insert into t values (?), (?)", json!([1, 2])).await;
    assert_eq!(answer["result"]["structuredContent"]["affected_rows"], 2, "{answer}");
    assert!(refused(&mut client, "insert into t values (3), (1)", json!([])).await.contains("Duplicate entry"));
    assert_eq!(mariadb.count("select count(*) from t").await, 2);

    postgres.query("create table t (a int primary key deferrable initially deferred)").unwrap();
    let (_two, mut client) = served(&of_postgres(&postgres, "read_only: false")).await;
    let answer = ask(&mut client, "insert into t values ($1), ($2)", json!([1, 2])).await;
    assert_eq!(answer["result"]["structuredContent"]["affected_rows"], 2, "{answer}");
    let back = rows(&mut client, "update t set a = a + 10 returning a", json!([])).await;
    assert_eq!(back, json!([{ "a": 11 }, { "a": 12 }]));
    // Refused at the end of its transaction.
    assert!(refused(&mut client, "insert into t values (11)", json!([])).await.contains("duplicate key"));
    assert_eq!(postgres.query("select sum(a) from t").unwrap().trim(), "23");
    let listed = client.request("tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"][0]["annotations"]["readOnlyHint"], false, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_no_larger_than_its_bounds_and_says_so() {
    let (mariadb, postgres) = (Mariadb::start().await, Postgres::start().await);
    let tools = "tools: [ { name: query_database, max_rows: 3, max_bytes: 10KiB } ]";
    let many = [
        (of_mariadb(&mariadb, tools), "select seq as n, repeat('x', 1000) as t from seq_1_to_100000"),
        // A limit of its own, above that of the session.
        (of_mariadb(&mariadb, tools), "select seq as n, repeat('x', 1000) as t from seq_1_to_100000 limit 90000"),
        (of_postgres(&postgres, tools), "select n, repeat('x', 1000) as t from generate_series(1, 100000) n"),
        (
            of_sqlite(tools),
            "with recursive s(n) as (select 1 union all select n + 1 from s) select n, printf('%1000s', 'x') as t from s",
        ),
    ];
    for (service, sql) in many {
        let folder = folder(&service);
        sqlite(&folder, "create table t (a)");
        let sidecar = Sidecar::start(folder);
        let mut client = Client::initialized(&sidecar.service_socket("db")).await;
        for _ in 0..3 {
            let answer = ask(&mut client, sql, json!([])).await["result"]["structuredContent"].take();
            let said = (&answer["row_count"], &answer["truncated"], &answer["truncated_by"]);
            assert_eq!(said, (&json!(3), &json!(true), &json!("max_rows")), "{sql}");
        }
        let few = client.call("query_database", json!({ "sql": sql, "max_rows": 1 })).await;
        assert_eq!(few["result"]["structuredContent"]["row_count"], 1, "{few}");
        let long = sql.replace("1000", "6000");
        let answer = ask(&mut client, &long, json!([])).await["result"]["structuredContent"].take();
        assert_eq!((&answer["row_count"], &answer["truncated_by"]), (&json!(1), &json!("max_bytes")), "{long}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_or_is_given_up_ends_at_the_server() {
    let (mariadb, postgres) = (Mariadb::start().await, Postgres::start().await);
    let tools = "tools: [ { name: query_database, timeout: 2s } ]\npool: { max_connections: 2, wait_timeout: 500ms }\n\
        circuit_breaker: { failure_threshold: 1 }";
    let mariadb_runs = async || {
        mariadb.count("select count(*) from information_schema.processlist where info like '%sleep(600)%' and id <> connection_id()").await
    };
    let postgres_runs = || {
        postgres.query("select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(600)%' and pid <> pg_backend_pid()").unwrap().trim().parse::<i64>().unwrap()
    };
    let (one, mut client) = served(&of_mariadb(&mariadb, tools)).await;
    let words = refused(&mut client, "select sleep(600)", json!([])).await;
    assert!(words.contains("took too long") || words.contains("no answer within"), "{words}");
    gives_up(&one, &mut client, "select sleep(600)", async || mariadb_runs().await).await;
    // A slow statement is no failure of the service: its breaker is closed.
    assert_eq!(rows(&mut client, "select 1 as a", json!([])).await, json!([{ "a": 1 }]));

    let (two, mut client) = served(&of_postgres(&postgres, tools)).await;
    let words = refused(&mut client, "select pg_sleep(600)", json!([])).await;
    assert!(words.contains("took too long") || words.contains("no answer within"), "{words}");
    gives_up(&two, &mut client, "select pg_sleep(600)", async || postgres_runs()).await;

    let folder = folder(&of_sqlite(tools));
    sqlite(&folder, "create table t (a)");
    let three = Sidecar::start(folder);
    let mut client = Client::initialized(&three.service_socket("db")).await;
    let endless = "with recursive s(n) as (select 1 union all select n + 1 from s) select count(*) from s";
    let words = refused(&mut client, endless, json!([])).await;
    assert!(words.contains("too long") || words.contains("no answer within"), "{words}");
    // Its thread ends: the process comes to rest.
    eventually(Duration::from_secs(10), "no thread runs", async || {
        let before = cpu_ticks(three.pid());
        tokio::time::sleep(Duration::from_millis(300)).await;
        (cpu_ticks(three.pid()) - before < 10).then_some(())
    })
    .await;
    assert_eq!(rows(&mut client, "select 1 as a", json!([])).await, json!([{ "a": 1 }]));
}

/// Cancels a running call, fills the pool, and leaves with the client: nothing goes on at the server.
async fn gives_up(sidecar: &Sidecar, client: &mut Client, sql: &str, running: impl AsyncFn() -> i64) {
    let call = |id: u64| json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "query_database", "arguments": { "sql": sql } } });
    client.send(&call(9001).to_string()).await;
    eventually(Duration::from_secs(5), "it runs", async || (running().await == 1).then_some(())).await;
    client
        .send(
            &json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 9001 } })
                .to_string(),
        )
        .await;
    eventually(Duration::from_secs(1), "it was cancelled at the server", async || (running().await == 0).then_some(()))
        .await;
    let mut other = Client::initialized(&sidecar.service_socket("db")).await;
    other.send(&call(1).to_string()).await;
    other.send(&call(2).to_string()).await;
    eventually(Duration::from_secs(5), "both run", async || (running().await == 2).then_some(())).await;
    let words = refused(client, "select 1", json!([])).await;
    assert!(words.contains("all 2 connections to the database were in use"), "{words}");
    drop(other);
    eventually(Duration::from_secs(1), "they ended with their client", async || (running().await == 0).then_some(()))
        .await;
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// The content of a resource.
async fn read(client: &mut Client, address: &str) -> Value {
    let answer = client.request("resources/read", json!({ "uri": address })).await;
    let text = answer["result"]["contents"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_resources_that_are_listed_read_completed_and_kept() {
    let mariadb = Mariadb::start().await;
    mariadb.query("create table `odd ``name/1` (id int primary key auto_increment comment 'the number', x varchar(9) not null default 'a')").await;
    mariadb.query("insert into `odd ``name/1` (x) values ('b'), ('c'), ('d')").await;
    mariadb.query("create table orders (id int primary key, other int, key by_other (other), foreign key (other) references `odd ``name/1` (id))").await;
    let more = "resources:\n  - { pattern: \"mysql://schema/{table}\", handler: get_table_schema, cache_ttl: 1h }\n  \
        - { pattern: \"mysql://data/{table}\", handler: get_sample_data, max_rows: 2 }";
    let (sidecar, mut client) = served(&of_mariadb(&mariadb, more)).await;
    let templates = client.request("resources/templates/list", json!({})).await["result"]["resourceTemplates"].take();
    assert_eq!(templates[0]["uriTemplate"], "mysql://schema/{table}", "{templates}");
    let listed = client.request("resources/list", json!({})).await["result"]["resources"].take();
    let addresses: Vec<&str> =
        listed.as_array().unwrap().iter().map(|resource| resource["uri"].as_str().unwrap()).collect();
    let odd = "odd%20%60name%2F1";
    let expected = [
        format!("mysql://schema/{odd}"),
        format!("mysql://data/{odd}"),
        "mysql://schema/orders".to_owned(),
        "mysql://data/orders".to_owned(),
    ];
    assert_eq!(addresses, expected);
    let data = read(&mut client, &expected[1]).await;
    assert_eq!(
        (&data["rows"], &data["truncated"]),
        (&json!([{ "id": 1, "x": "b" }, { "id": 2, "x": "c" }]), &json!(true))
    );
    let schema = read(&mut client, &expected[0]).await;
    assert_eq!(schema["columns"][0]["comment"], "the number", "{schema}");
    assert_eq!((&schema["primary_key"], &schema["columns"][1]["nullable"]), (&json!(["id"]), &json!(false)));
    let orders = read(&mut client, "mysql://schema/orders").await;
    assert_eq!(
        orders["foreign_keys"][0]["references"],
        json!({ "table": "odd `name/1", "columns": ["id"] }),
        "{orders}"
    );
    assert!(
        orders["indexes"]
            .as_array()
            .unwrap()
            .contains(&json!({ "name": "by_other", "unique": false, "columns": ["other"] }))
    );
    // It is kept for an hour; rows are not.
    mariadb.query("alter table orders add column more int").await;
    mariadb.query("insert into orders (id) values (1)").await;
    assert_eq!(read(&mut client, "mysql://schema/orders").await, orders);
    assert_eq!(read(&mut client, "mysql://data/orders").await["row_count"], 1);
    for address in
        ["mysql://schema/none", "mysql://schema/a/b", "mysql://other/orders", "mysql://data/orders%20where%201"]
    {
        let none = client.request("resources/read", json!({ "uri": address })).await;
        assert_eq!(none["error"]["code"], -32002, "{none}");
    }
    let asked = json!({ "ref": { "type": "ref/resource", "uri": "mysql://data/{table}" }, "argument": { "name": "table", "value": "or" } });
    let completed = client.request("completion/complete", asked).await;
    assert_eq!(completed["result"]["completion"]["values"], json!(["orders"]), "{completed}");
    let mut new = Client::connect(&sidecar.service_socket("db")).await;
    let answer = new.request("resources/read", modern(json!({ "uri": "mysql://data/orders" }))).await;
    assert_eq!(
        (&answer["result"]["resultType"], &answer["result"]["contents"][0]["mimeType"]),
        (&json!("complete"), &json!("application/json")),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_other_schemas_have_names_of_two_parts() {
    let postgres = Postgres::start().await;
    postgres.query("create schema other; create table other.\"T\"\"1\" (a int primary key, b text unique); insert into other.\"T\"\"1\" values (1, 'x'); comment on table other.\"T\"\"1\" is 'odd'; create table plain (n int generated always as identity)").unwrap();
    let (_sidecar, mut client) = served(&of_postgres(&postgres, "")).await;
    let listed = client.request("resources/list", json!({})).await["result"]["resources"].take();
    assert_eq!(listed[0]["uri"], "postgres://schema/other.T%221", "{listed}");
    assert_eq!(read(&mut client, "postgres://data/other.T%221").await["rows"], json!([{ "a": 1, "b": "x" }]));
    let schema =
        client.call("get_schema", json!({ "table": "other.T\"1" })).await["result"]["structuredContent"].take();
    assert_eq!(
        (&schema["tables"][0]["comment"], &schema["tables"][0]["primary_key"]),
        (&json!("odd"), &json!(["a"])),
        "{schema}"
    );
    assert_eq!(schema["tables"].as_array().unwrap().len(), 1);
    assert!(
        client.call("get_schema", json!({ "table": "none" })).await.to_string().contains("there is no table `none`")
    );
}
