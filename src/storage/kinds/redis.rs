//! Records in Redis or Valkey, where several processes meet.
//!
//! State and metrics are a hash each (`NAMESPACE:state`), cached answers keys with a time of their own (`NAMESPACE:cache:KEY`), whose room the
//! server bounds (`maxmemory`). One connection carries everything, pipelined; it is made when it is first needed and again after it broke or
//! its password was replaced. Compare-and-set is a script, so it is one step for everybody.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, Script, cmd};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::ANSWER_WITHIN;
use crate::storage::login::{Login, Used};
use crate::storage::records::{Pending, Record, Records, Space, StoreFailure, Trimmed, now};
use crate::storage::settings::ServerSettings;

pub struct RedisRecords {
    settings: ServerSettings,
    login: Login,
    swap: Script,
    present: tokio::sync::Mutex<Option<Connected>>,
}

struct Connected {
    connection: MultiplexedConnection,
    used: Used,
    /// Moves the connection's bytes; ends with it.
    _driver: Arc<JoinSet<()>>,
}

impl RedisRecords {
    pub fn new(settings: ServerSettings, login: Login) -> Self {
        Self { settings, login, swap: Script::new(SWAP), present: tokio::sync::Mutex::default() }
    }

    fn hash(&self, space: Space) -> String {
        format!("{}:{}", self.settings.namespace, space.as_str())
    }

    fn cached(&self, key: &str) -> String {
        format!("{}:cache:{key}", self.settings.namespace)
    }

    /// Does something with the connection, within its time; a failure that is not the server's own word ends the connection.
    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> redis::RedisResult<T>,
    ) -> Result<T, StoreFailure> {
        let failed = |error: &dyn std::fmt::Display| StoreFailure::of(&self.settings.address(), error);
        let whole = async {
            let mut connection = self.connection().await?;
            work(&mut connection).await.map_err(|error| (failed(&error), error.is_unrecoverable_error()))
        };
        self.login.fetched().await;
        match timeout(ANSWER_WITHIN, whole).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err((failure, is_broken))) => {
                if is_broken {
                    *self.present.lock().await = None;
                }
                Err(failure)
            }
            Err(_) => {
                *self.present.lock().await = None;
                Err(failed(&format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
            }
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, (StoreFailure, bool)> {
        let mut present = self.present.lock().await;
        if let Some(connected) = &*present
            && self.login.is_current(&connected.used)
        {
            return Ok(connected.connection.clone());
        }
        *present = None;
        let connected = self.connect().await.map_err(|failure| (failure, true))?;
        let connection = connected.connection.clone();
        *present = Some(connected);
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connected, StoreFailure> {
        let failed = |error: &dyn std::fmt::Display| StoreFailure::of(&self.settings.address(), error);
        let (password, used) = self.login.password()?;
        let mut info = RedisConnectionInfo::default().set_db(self.settings.database.parse().unwrap_or_default());
        if let Some(username) = &self.settings.username {
            info = info.set_username(username);
        }
        if let Some(password) = &password {
            let password = password.expose_str().ok_or_else(|| failed(&"the password is not text"))?;
            info = info.set_password(password);
        }
        let (host, port) = (self.settings.host.as_str(), self.settings.port);
        let stream = TcpStream::connect((host, port)).await.map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
        let mut driver = JoinSet::new();
        let connection = if self.settings.encrypted {
            let tls = self.settings.tls.client_config("https").map_err(|error| failed(&error))?;
            let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
            let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
            let stream = stream.map_err(|error| failed(&error))?;
            let (connection, task) =
                MultiplexedConnection::new_with_config(&info, stream, config).await.map_err(|error| failed(&error))?;
            driver.spawn(task);
            connection
        } else {
            let (connection, task) =
                MultiplexedConnection::new_with_config(&info, stream, config).await.map_err(|error| failed(&error))?;
            driver.spawn(task);
            connection
        };
        Ok(Connected { connection, used, _driver: Arc::new(driver) })
    }

    /// The keys of cached answers that begin with `prefix`.
    async fn scan(&self, prefix: &str) -> Result<Vec<String>, StoreFailure> {
        let pattern = format!("{}*", literal(&self.cached(prefix)));
        let (mut cursor, mut found) = (0_u64, Vec::new());
        loop {
            let pattern = pattern.clone();
            let (next, keys): (u64, Vec<String>) = self
                .with(async move |connection| {
                    let mut scan = cmd("SCAN");
                    scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCANNED);
                    scan.query_async(connection).await
                })
                .await?;
            found.extend(keys);
            cursor = next;
            if cursor == 0 {
                return Ok(found);
            }
        }
    }
}

impl Records for RedisRecords {
    fn get<'a>(&'a self, space: Space, key: &'a str) -> Pending<'a, Option<Bytes>> {
        let mut get = match space {
            Space::Cache => cmd("GET"),
            _ => cmd("HGET"),
        };
        match space {
            Space::Cache => get.arg(self.cached(key)),
            _ => get.arg(self.hash(space)).arg(key),
        };
        Box::pin(async move {
            let value: Option<Vec<u8>> = self.with(async move |connection| get.query_async(connection).await).await?;
            Ok(value.map(Bytes::from))
        })
    }

    fn set(&self, space: Space, records: Vec<Record>) -> Pending<'_, ()> {
        if records.is_empty() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let mut pipe = redis::pipe();
        if space == Space::Cache {
            for record in &records {
                let left = record.until.map_or(LONGEST, |until| until.saturating_sub(now())).max(1);
                pipe.cmd("SET").arg(self.cached(&record.key)).arg(&record.value[..]).arg("PX").arg(left).ignore();
            }
        } else {
            let set = pipe.cmd("HSET").arg(self.hash(space));
            for record in &records {
                set.arg(&record.key).arg(&record.value[..]);
            }
            set.ignore();
        }
        Box::pin(self.with(async move |connection| pipe.query_async(connection).await))
    }

    fn swap<'a>(&'a self, space: Space, key: &'a str, expected: Option<Bytes>, value: Bytes) -> Pending<'a, bool> {
        Box::pin(self.with(async move |connection| {
            let mut swap = self.swap.key(self.hash(space));
            swap.arg(key)
                .arg(u8::from(expected.is_some()))
                .arg(expected.as_deref().unwrap_or_default())
                .arg(&value[..]);
            swap.invoke_async::<u8>(connection).await.map(|swapped| swapped == 1)
        }))
    }

    fn delete(&self, space: Space, keys: Vec<String>) -> Pending<'_, ()> {
        Box::pin(async move {
            for keys in keys.chunks(SCANNED) {
                let mut delete = match space {
                    Space::Cache => cmd("UNLINK"),
                    _ => cmd("HDEL"),
                };
                match space {
                    Space::Cache => delete.arg(keys.iter().map(|key| self.cached(key)).collect::<Vec<_>>()),
                    _ => delete.arg(self.hash(space)).arg(keys),
                };
                self.with(async move |connection| delete.query_async::<u64>(connection).await).await?;
            }
            Ok(())
        })
    }

    fn list<'a>(
        &'a self,
        space: Space,
        prefix: &'a str,
        after: Option<&'a str>,
        most: usize,
    ) -> Pending<'a, Vec<Record>> {
        Box::pin(async move {
            // Cached answers are never carried elsewhere.
            if space == Space::Cache {
                return Ok(Vec::new());
            }
            let hash = self.hash(space);
            let all = self.with(async |connection| cmd("HKEYS").arg(&hash).query_async(connection).await).await;
            let mut keys: Vec<String> = all?;
            keys.retain(|key| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
            keys.sort_unstable();
            keys.truncate(most);
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let values =
                self.with(async |connection| cmd("HMGET").arg(&hash).arg(&keys).query_async(connection).await).await;
            let values: Vec<Option<Vec<u8>>> = values?;
            Ok(keys.into_iter().zip(values).filter_map(|(key, value)| Some(Record::new(key, value?))).collect())
        })
    }

    fn clear<'a>(&'a self, space: Space, prefix: &'a str) -> Pending<'a, ()> {
        Box::pin(async move {
            if space != Space::Cache {
                let keys = self.list(space, prefix, None, usize::MAX).await?.into_iter().map(|record| record.key);
                return self.delete(space, keys.collect()).await;
            }
            for keys in self.scan(prefix).await?.chunks(SCANNED) {
                self.with(async |connection| cmd("UNLINK").arg(keys).query_async::<u64>(connection).await).await?;
            }
            Ok(())
        })
    }

    fn trim(&self, _space: Space, _most: u64) -> Pending<'_, Option<Trimmed>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The server keeps what it is told as it was set up to.
    fn flush(&self) -> Pending<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn probe(&self) -> Pending<'_, ()> {
        Box::pin(self.with(async |connection| cmd("PING").query_async::<String>(connection).await.map(drop)))
    }
}

/// A text that a pattern takes as it is.
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\') {
            literal.push('\\');
        }
        literal.push(char);
    }
    literal
}

const SWAP: &str = "local present = redis.call('HGET', KEYS[1], ARGV[1])
local same = (ARGV[2] == '1' and present == ARGV[3]) or (ARGV[2] == '0' and not present)
if same then redis.call('HSET', KEYS[1], ARGV[1], ARGV[4]) return 1 end
return 0";
const SCANNED: usize = 500;
/// Of an answer, in milliseconds: 30 days.
const LONGEST: u64 = Duration::from_secs(30 * 24 * 3600).as_millis() as u64;

#[cfg(test)]
mod tests {
    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(super::literal("a*[b]?\\"), "a\\*\\[b\\]\\?\\\\");
    }
}
