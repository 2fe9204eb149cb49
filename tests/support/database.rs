//! A database as the service `db` of a sidecar, and an agent that asks it.

use serde_json::{Value, json};

use super::mariadb::{self, Mariadb};
use super::mcp::Client;
use super::postgres::{self, Postgres};
use super::sidecar::{Folder, Sidecar};

/// A service `db` with this service file, and a file of secrets.
pub fn folder(service: &str) -> Folder {
    let main = "version: \"1.0\"\nsecrets:\n  providers: { dev: { type: file, path: keys.yaml } }\n  \
        items: { db: { provider: dev, path: db, refresh: 1h } }\n\
        services: { db: { config_file: db.yaml } }\naudit: { path: audit.log }\n";
    let keys = "db: { username: nobody, password: not-needed-0001 }\n";
    Folder::new(&[("mcpeg.yaml", main), ("db.yaml", &format!("type: database\n{service}\n")), ("keys.yaml", keys)])
}

pub fn of_mariadb(server: &Mariadb, more: &str) -> String {
    let (host, port) = (&server.host, server.port);
    format!(
        "driver: mysql\nconnection: {{ host: {host}, port: {port}, database: app, username: root, password: {} }}\n{more}",
        mariadb::PASSWORD
    )
}

pub fn of_postgres(server: &Postgres, more: &str) -> String {
    format!(
        "driver: postgres\nconnection: {{ host: 127.0.0.1, port: {}, database: postgres, username: postgres, password: {} }}\n{more}",
        server.port,
        postgres::PASSWORD
    )
}

pub async fn served(service: &str) -> (Sidecar, Client) {
    let sidecar = Sidecar::start(folder(service));
    let client = Client::initialized(&sidecar.service_socket("db")).await;
    (sidecar, client)
}

pub async fn ask(client: &mut Client, sql: &str, parameters: Value) -> Value {
    client.call("query_database", json!({ "sql": sql, "parameters": parameters })).await
}

/// The rows of an answer that is none but these.
pub async fn rows(client: &mut Client, sql: &str, parameters: Value) -> Value {
    let mut answer = ask(client, sql, parameters).await;
    assert_eq!(answer["result"]["isError"], false, "{sql}: {answer}");
    let text: Value = serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(text, answer["result"]["structuredContent"]);
    answer["result"]["structuredContent"]["rows"].take()
}

/// The words of an answer that is an error of the tool.
pub async fn refused(client: &mut Client, sql: &str, parameters: Value) -> String {
    let answer = ask(client, sql, parameters).await;
    assert_eq!(answer["result"]["isError"], true, "{sql}: {answer}");
    answer["result"]["content"][0]["text"].as_str().unwrap().to_owned()
}

pub fn of_sqlite(more: &str) -> String {
    format!("driver: sqlite\nconnection: {{ path: app.db }}\n{more}")
}

pub fn sqlite(folder: &Folder, sql: &str) {
    rusqlite::Connection::open(folder.path("app.db")).unwrap().execute_batch(sql).unwrap();
}
