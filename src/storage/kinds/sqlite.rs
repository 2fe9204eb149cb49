//! Records in an SQLite file: one table, write-ahead log, one connection that is used by one at a time.
//!
//! A file is checked whole when it is opened; one that is damaged is set aside as `NAME.broken-TIME` with its log, and a new one begun. An
//! acknowledged change of state is on the disk (`synchronous = FULL`); for cached answers what the system holds is enough. Versions of the
//! table are counted in `user_version`. Work is done on threads that may block.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use super::memory::{make_folder, set_aside};
use crate::storage::records::{Pending, Record, Records, Space, StoreFailure, Trimmed, now};

pub struct SqliteRecords {
    connection: Arc<Mutex<Connection>>,
    path: Arc<Path>,
}

/// How much a change is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// It outlives the machine.
    Full,
    /// It outlives the process.
    Normal,
}

impl SqliteRecords {
    /// The second is what was wrong with the file that was there.
    pub fn open(path: &Path, sync: Sync) -> Result<(Self, Option<String>), StoreFailure> {
        make_folder(path.parent().unwrap_or(Path::new(".")))?;
        let about = |error: rusqlite::Error| StoreFailure::of(&path.display().to_string(), &error);
        let (connection, trouble) = match connect(path, sync) {
            Ok(connection) => (connection, None),
            Err(error) if is_damage(&error) => {
                let said = set_aside(path, &error.to_string())?;
                for tail in ["-wal", "-shm"] {
                    let of_it = with_tail(path, tail);
                    if of_it.exists() {
                        set_aside(&of_it, "it belongs to the damaged file")?;
                    }
                }
                (connect(path, sync).map_err(about)?, Some(said))
            }
            Err(error) => return Err(about(error)),
        };
        Ok((Self { connection: Arc::new(Mutex::new(connection)), path: path.into() }, trouble))
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Pending<'static, T> {
        let (connection, path) = (self.connection.clone(), self.path.clone());
        let done = tokio::task::spawn_blocking(move || {
            work(&mut lock(&connection)).map_err(|error| StoreFailure::of(&path.display().to_string(), &error))
        });
        Box::pin(async move { done.await.map_err(|error| StoreFailure::of("SQLite", &error))? })
    }
}

impl Records for SqliteRecords {
    fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>> {
        let key = key.to_owned();
        self.run(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT value FROM record WHERE space = ?1 AND key = ?2 AND (ends IS NULL OR ends > ?3)",
            )?;
            let value = query.query_row(params![space.number(), key, signed(now())], |row| row.get::<_, Vec<u8>>(0));
            Ok(value.optional()?.map(Bytes::from))
        })
    }

    fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()> {
        self.run(move |connection| {
            let change = connection.transaction()?;
            {
                let mut put = change.prepare_cached(PUT)?;
                for record in records {
                    let ends = record.until.map(signed);
                    put.execute(params![space.number(), record.key, &record.value[..], ends])?;
                }
            }
            change.commit()
        })
    }

    fn swap<'a>(&'a self, space: Space, key: &'a str, expected: Option<Bytes>, value: Bytes) -> Pending<'a, bool> {
        let key = key.to_owned();
        self.run(move |connection| {
            let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let present: Option<Vec<u8>> = change
                .prepare_cached("SELECT value FROM record WHERE space = ?1 AND key = ?2")?
                .query_row(params![space.number(), key], |row| row.get(0))
                .optional()?;
            let same = present.as_deref() == expected.as_deref();
            if same {
                change.prepare_cached(PUT)?.execute(params![space.number(), key, &value[..], None::<i64>])?;
            }
            change.commit()?;
            Ok(same)
        })
    }

    fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()> {
        self.run(move |connection| {
            let change = connection.transaction()?;
            for key in keys {
                change
                    .prepare_cached("DELETE FROM record WHERE space = ?1 AND key = ?2")?
                    .execute(params![space.number(), key])?;
            }
            change.commit()
        })
    }

    fn list<'a>(
        &'a self,
        space: Space,
        prefix: &'a str,
        after: Option<&'a str>,
        most: usize,
    ) -> Pending<'a, Vec<Record>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT key, value, ends FROM record WHERE space = ?1 AND key >= ?2 AND key < ?3
                 AND (?4 IS NULL OR key > ?4) AND (ends IS NULL OR ends > ?5) ORDER BY key LIMIT ?6",
            )?;
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            let wanted = params![space.number(), prefix, behind(&prefix), after, signed(now()), most];
            query.query_map(wanted, record)?.collect()
        })
    }

    fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()> {
        let prefix = prefix.to_owned();
        self.run(move |connection| {
            connection
                .prepare_cached("DELETE FROM record WHERE space = ?1 AND key >= ?2 AND key < ?3")?
                .execute(params![space.number(), prefix, behind(&prefix)])
                .map(drop)
        })
    }

    fn trim(&self, space: Space, most: u64) -> Pending<'_, Option<Trimmed>> {
        self.run(move |connection| {
            let change = connection.transaction()?;
            change.execute(
                "DELETE FROM record WHERE space = ?1 AND ends <= ?2",
                params![space.number(), signed(now())],
            )?;
            let evicted = change.execute(
                "DELETE FROM record WHERE space = ?1 AND key IN (SELECT key FROM (
                   SELECT key, SUM(length(key) + length(value)) OVER (ORDER BY ends DESC, key) AS upto
                   FROM record WHERE space = ?1) WHERE upto > ?2)",
                params![space.number(), signed(most)],
            )?;
            let (entries, bytes): (i64, i64) = change.query_row(
                "SELECT COUNT(*), COALESCE(SUM(length(key) + length(value)), 0) FROM record WHERE space = ?1",
                params![space.number()],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            change.commit()?;
            Ok(Some(Trimmed { entries: entries.unsigned_abs(), bytes: bytes.unsigned_abs(), evicted: evicted as u64 }))
        })
    }

    fn flush(&self) -> Pending<'_, ()> {
        // What was set is in the log already; this moves it into the file, as far as nobody reads.
        self.run(|connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
    }

    /// Writes, since a full disk can be read.
    fn probe(&self) -> Pending<'_, ()> {
        self.run(|connection| {
            let change = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            change.execute("DELETE FROM record WHERE space = 0", [])?;
            change.execute(PUT, params![0, "probe", &[0_u8; PROBE_BYTES][..], None::<i64>])?;
            change.commit()?;
            connection.execute("DELETE FROM record WHERE space = 0", []).map(drop)
        })
    }
}

fn connect(path: &Path, sync: Sync) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // Its log and index take the mode of the file.
    if let Err(error) = std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)) {
        tracing::warn!(%error, path = %path.display(), "the database's mode could not be set");
    }
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", if sync == Sync::Full { "FULL" } else { "NORMAL" })?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "secure_delete", true)?;
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(damage(&said));
    }
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > MIGRATIONS.len() as i64 {
        return Err(rusqlite::Error::ToSqlConversionFailure("it is of a later version of mcpeg".into()));
    }
    let change = connection.transaction()?;
    for statement in MIGRATIONS.iter().skip(version.unsigned_abs() as usize) {
        change.execute_batch(statement)?;
    }
    change.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    change.commit()?;
    Ok(connection)
}

fn damage(said: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error { code: ErrorCode::DatabaseCorrupt, extended_code: rusqlite::ffi::SQLITE_CORRUPT },
        Some(said.to_owned()),
    )
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn with_tail(path: &Path, tail: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(tail);
    name.into()
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let (value, ends): (Vec<u8>, Option<i64>) = (row.get(1)?, row.get(2)?);
    Ok(Record { key: row.get(0)?, value: value.into(), until: ends.map(i64::unsigned_abs) })
}

/// Comes after every key that begins with `prefix`.
pub fn behind(prefix: &str) -> String {
    format!("{prefix}\u{10ffff}")
}

/// SQL has no unsigned numbers.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Each makes the next version of the table; none is ever changed.
const MIGRATIONS: [&str; 1] =
    ["CREATE TABLE record (space INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, ends INTEGER,
     PRIMARY KEY (space, key)) STRICT;
     CREATE INDEX record_ends ON record (space, ends) WHERE ends IS NOT NULL;"];
const PUT: &str = "INSERT INTO record (space, key, value, ends) VALUES (?1, ?2, ?3, ?4)
     ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, ends = excluded.ends";
/// For another process that looks into the file.
const BUSY: Duration = Duration::from_millis(1500);
const CACHE_KIB: i64 = 1024;
const PROBE_BYTES: usize = 4096;
