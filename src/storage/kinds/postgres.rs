//! Records in PostgreSQL, where several processes meet: a table `mcpeg_record`, over a few connections.
//!
//! The table is made and brought to the present version at the first connection, by one process at a time (an advisory lock). A connection is
//! made when it is first needed, and again after it broke or its password was replaced; each does one thing at a time or several, pipelined.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::ANSWER_WITHIN;
use super::sqlite::{behind, signed};
use crate::storage::login::{Login, Used};
use crate::storage::records::{Pending, Record, Records, Space, StoreFailure, Trimmed, now};
use crate::storage::settings::ServerSettings;

pub struct PostgresRecords {
    settings: ServerSettings,
    login: Login,
    pool: [tokio::sync::Mutex<Option<Connected>>; CONNECTIONS],
    next: AtomicUsize,
    /// The table is as this version wants it.
    migrated: AtomicBool,
}

struct Connected {
    client: Arc<Client>,
    used: Used,
    /// Moves the connection's bytes; ends with it.
    _driver: JoinSet<()>,
}

impl PostgresRecords {
    pub fn new(settings: ServerSettings, login: Login) -> Self {
        let pool = std::array::from_fn(|_| tokio::sync::Mutex::default());
        Self { settings, login, pool, next: AtomicUsize::new(0), migrated: AtomicBool::new(false) }
    }

    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreFailure> {
        let slot = &self.pool[self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS];
        let whole = async {
            let client = self.client(slot).await?;
            work(&client).await.map_err(|error| self.failed(&in_words(&error)))
        };
        self.login.fetched().await;
        match timeout(ANSWER_WITHIN, whole).await {
            Ok(done) => done,
            Err(_) => {
                *slot.lock().await = None;
                Err(self.failed(&format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
            }
        }
    }

    async fn client(&self, slot: &tokio::sync::Mutex<Option<Connected>>) -> Result<Arc<Client>, StoreFailure> {
        let mut present = slot.lock().await;
        if let Some(connected) = &*present
            && !connected.client.is_closed()
            && self.login.is_current(&connected.used)
        {
            return Ok(connected.client.clone());
        }
        *present = None;
        let connected = self.connect().await?;
        if !self.migrated.load(Ordering::Acquire) {
            migrate(&connected.client).await.map_err(|error| self.failed(&in_words(&error)))?;
            self.migrated.store(true, Ordering::Release);
        }
        let client = connected.client.clone();
        *present = Some(connected);
        Ok(client)
    }

    async fn connect(&self) -> Result<Connected, StoreFailure> {
        let (password, used) = self.login.password()?;
        let mut config = Config::new();
        config.host(&self.settings.host).port(self.settings.port).dbname(&self.settings.database);
        config.application_name("mcpeg").connect_timeout(ANSWER_WITHIN);
        config.ssl_mode(if self.settings.encrypted { SslMode::Require } else { SslMode::Disable });
        config.user(self.settings.username.as_deref().unwrap_or("postgres"));
        if let Some(password) = &password {
            config.password(password.expose());
        }
        let scheme = if self.settings.encrypted { "https" } else { "http" };
        let tls = self.settings.tls.client_config(scheme).map_err(|error| self.failed(&error))?;
        let connected = config.connect(MakeRustlsConnect::new(tls)).await;
        let (client, connection) = connected.map_err(|error| self.failed(&in_words(&error)))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever uses the client hears of it.
            let _ = connection.await;
        });
        Ok(Connected { client: Arc::new(client), used, _driver: driver })
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> StoreFailure {
        StoreFailure::of(&self.settings.address(), error)
    }
}

impl Records for PostgresRecords {
    fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>> {
        Box::pin(self.with(async move |client| {
            let query = "SELECT value FROM mcpeg_record WHERE namespace = $1 AND space = $2 AND key = $3
                         AND (ends IS NULL OR ends > $4)";
            let of = number(space);
            let row = client.query_opt(query, &[&self.settings.namespace, &of, &key, &signed(now())]).await?;
            Ok(row.map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))))
        }))
    }

    fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()> {
        Box::pin(self.with(async move |client| {
            // The last of each key, since one statement does not set a row twice.
            let records: std::collections::BTreeMap<_, _> =
                records.iter().map(|record| (record.key.as_str(), record)).collect();
            let keys: Vec<&str> = records.keys().copied().collect();
            let values: Vec<&[u8]> = records.values().map(|record| &record.value[..]).collect();
            let ends: Vec<Option<i64>> = records.values().map(|record| record.until.map(signed)).collect();
            let put = "INSERT INTO mcpeg_record (namespace, space, key, value, ends)
                 SELECT $1, $2, k, v, e FROM unnest($3::text[], $4::bytea[], $5::bigint[]) AS t (k, v, e)
                 ON CONFLICT (namespace, space, key) DO UPDATE SET value = excluded.value, ends = excluded.ends";
            client.execute(put, &[&self.settings.namespace, &number(space), &keys, &values, &ends]).await.map(drop)
        }))
    }

    fn swap<'a>(&'a self, space: Space, key: &'a str, expected: Option<Bytes>, value: Bytes) -> Pending<'a, bool> {
        Box::pin(self.with(async move |client| {
            let (namespace, of, value) = (&self.settings.namespace, number(space), &value[..]);
            let changed = match &expected {
                Some(expected) => {
                    let update = "UPDATE mcpeg_record SET value = $4
                                  WHERE namespace = $1 AND space = $2 AND key = $3 AND value = $5";
                    client.execute(update, &[namespace, &of, &key, &value, &&expected[..]]).await?
                }
                None => {
                    let insert = "INSERT INTO mcpeg_record (namespace, space, key, value) VALUES ($1, $2, $3, $4)
                                  ON CONFLICT DO NOTHING";
                    client.execute(insert, &[namespace, &of, &key, &value]).await?
                }
            };
            Ok(changed == 1)
        }))
    }

    fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()> {
        Box::pin(self.with(async move |client| {
            let delete = "DELETE FROM mcpeg_record WHERE namespace = $1 AND space = $2 AND key = ANY ($3)";
            client.execute(delete, &[&self.settings.namespace, &number(space), &keys]).await.map(drop)
        }))
    }

    fn list<'a>(
        &'a self,
        space: Space,
        prefix: &'a str,
        after: Option<&'a str>,
        most: usize,
    ) -> Pending<'a, Vec<Record>> {
        Box::pin(self.with(async move |client| {
            let query = "SELECT key, value, ends FROM mcpeg_record
                 WHERE namespace = $1 AND space = $2 AND key >= $3 AND key < $4 AND ($5::text IS NULL OR key > $5)
                 AND (ends IS NULL OR ends > $6) ORDER BY key LIMIT $7";
            let (of, end, most) = (number(space), behind(prefix), signed(most as u64));
            let rows = client
                .query(query, &[&self.settings.namespace, &of, &prefix, &end, &after, &signed(now()), &most])
                .await?;
            Ok(rows.iter().map(record).collect())
        }))
    }

    fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()> {
        Box::pin(self.with(async move |client| {
            let delete = "DELETE FROM mcpeg_record WHERE namespace = $1 AND space = $2 AND key >= $3 AND key < $4";
            let (of, end) = (number(space), behind(prefix));
            client.execute(delete, &[&self.settings.namespace, &of, &prefix, &end]).await.map(drop)
        }))
    }

    fn trim(&self, _space: Space, _most: u64) -> Pending<'_, Option<Trimmed>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// What is committed is kept.
    fn flush(&self) -> Pending<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn probe(&self) -> Pending<'_, ()> {
        Box::pin(self.with(async |client| client.batch_execute("SELECT 1 FROM mcpeg_record LIMIT 1").await))
    }
}

async fn migrate(client: &Client) -> Result<(), tokio_postgres::Error> {
    let begin = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); CREATE TABLE IF NOT EXISTS mcpeg_schema (version integer NOT NULL)"
    );
    client.batch_execute(&begin).await?;
    let row = client.query_opt("SELECT max(version) FROM mcpeg_schema", &[]).await?;
    let version = row.and_then(|row| row.get::<_, Option<i32>>(0)).unwrap_or(0).unsigned_abs() as usize;
    for (number, statement) in MIGRATIONS.iter().enumerate().skip(version) {
        client.batch_execute(statement).await?;
        let number = i32::try_from(number + 1).unwrap_or(i32::MAX);
        client.execute("INSERT INTO mcpeg_schema (version) VALUES ($1)", &[&number]).await?;
    }
    client.batch_execute("COMMIT").await
}

fn record(row: &Row) -> Record {
    let ends: Option<i64> = row.get(2);
    Record { key: row.get(0), value: row.get::<_, Vec<u8>>(1).into(), until: ends.map(i64::unsigned_abs) }
}

fn number(space: Space) -> i16 {
    i16::from(space.number())
}

/// The crate's own text leaves out what the server has said.
fn in_words(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(said), _) => format!("{} (SQLSTATE {})", said.message(), said.code().code()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// Each makes the next version of the table; none is ever changed.
const MIGRATIONS: [&str; 1] =
    ["CREATE TABLE mcpeg_record (namespace text COLLATE \"C\" NOT NULL, space smallint NOT NULL,
     key text COLLATE \"C\" NOT NULL, value bytea NOT NULL, ends bigint, PRIMARY KEY (namespace, space, key))"];
/// Of the advisory lock: `mcpeg` in ASCII.
const LOCK: i64 = 0x6d_6370_6567;
const CONNECTIONS: usize = 2;
