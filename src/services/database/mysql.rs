//! MySQL and MariaDB, by mysql_async.
//!
//! Statements are prepared, so the server takes one at a time and parameters never become text of a statement. A session that is for
//! reading has a default of READ ONLY and a transaction that is; times are UTC; the server itself ends what takes too long, and gives no
//! more rows than are wanted.
//!
//! The driver keeps user and password of a connection on the heap for as long as the connection lives (docs/SECURITY.md).

use std::fmt::Write as _;
use std::time::Duration;

use mysql_async::consts::{ColumnFlags, ColumnType};
use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Column as Described, Conn, Error, Opts, OptsBuilder, Params, SslOpts, Value as Sql};
use serde_json::Value;

use super::login::Login;
use super::rows::{self, Column, Rows};
use super::session::{Fault, Query, check_parameters};
use crate::services::settings::database::{Bounds, DatabaseSettings, DatabaseTls, Host, Target};

pub struct MysqlSession {
    connection: Conn,
    read_only: bool,
    is_mariadb: bool,
    /// Rows are still coming that nobody wants.
    is_cut: bool,
}

impl MysqlSession {
    pub async fn open(settings: &DatabaseSettings, login: &Login) -> Result<Self, Fault> {
        let mut connection = Conn::new(options(settings, login)?).await.map_err(|error| opening(&error))?;
        let version: Option<String> =
            connection.query_first("SELECT @@version").await.map_err(|error| opening(&error))?;
        let is_mariadb = version.is_some_and(|version| version.contains("MariaDB"));
        Ok(Self { connection, read_only: settings.read_only, is_mariadb, is_cut: false })
    }

    pub async fn begin(&mut self, bounds: &Bounds) -> Result<(), Fault> {
        // One more than is wanted tells that there are more.
        let rows = bounds.max_rows.saturating_add(1);
        let mut setup = format!("SET SESSION time_zone = '+00:00', sql_select_limit = {rows}");
        let _ = match self.is_mariadb {
            true => write!(setup, ", max_statement_time = {:.3}", bounds.time.as_secs_f64()),
            false => write!(setup, ", max_execution_time = {}", bounds.time.as_millis().max(1)),
        };
        if self.read_only {
            setup.push_str("; SET SESSION TRANSACTION READ ONLY; START TRANSACTION READ ONLY");
        }
        self.connection.query_drop(setup).await.map_err(|error| Fault::Broken(words(&error)))
    }

    pub async fn run(&mut self, query: &Query<'_>) -> Result<Rows, Fault> {
        let statement = self.connection.prep(query.sql).await.map_err(|error| running(&error))?;
        check_parameters(statement.num_params().into(), query.parameters.len())?;
        let parameters = match query.parameters {
            [] => Params::Empty,
            given => Params::Positional(given.iter().map(parameter).collect()),
        };
        let mut result = self.connection.exec_iter(statement, parameters).await.map_err(|error| running(&error))?;
        let described = result.columns().unwrap_or_default();
        let columns =
            described.iter().map(|column| Column { name: column.name_str().into_owned(), kind: kind(column) });
        let mut rows = Rows::new(columns.collect());
        if described.is_empty() {
            rows.affected = Some(result.affected_rows());
        }
        while let Some(row) = result.next().await.map_err(|error| running(&error))? {
            // The row is whole: nothing was taken out of it, which is all that this could fail by.
            let values = row.unwrap().into_iter().zip(&*described).map(|(value, column)| json(value, column));
            if !rows.push(values.collect(), &query.bounds) {
                break;
            }
        }
        // The server was told not to send many more; a statement with a limit of its own may have many.
        self.is_cut = rows.truncated.is_some() && result.next().await.map_err(|error| running(&error))?.is_some();
        if !self.is_cut {
            result.drop_result().await.map_err(|error| running(&error))?;
        }
        Ok(rows)
    }

    pub async fn end(&mut self) -> Result<bool, Fault> {
        if self.is_cut {
            return Ok(false);
        }
        self.connection.reset().await.map_err(|error| Fault::Broken(words(&error)))
    }

    /// By another connection, as the same user, who may do that.
    pub async fn stop(self, settings: &DatabaseSettings, login: &Login) {
        if let Ok(options) = options(settings, login)
            && let Ok(mut other) = Conn::new(options).await
        {
            // The statement may have ended by itself.
            let _ = other.query_drop(format!("KILL CONNECTION {}", self.connection.id())).await;
            let _ = other.disconnect().await;
        }
    }

    pub async fn close(self) {
        // Whether the server hears it or not, the connection ends.
        let _ = self.connection.disconnect().await;
    }
}

fn options(settings: &DatabaseSettings, login: &Login) -> Result<Opts, Fault> {
    let Target::Server { host, database } = &settings.target else {
        return Err(Fault::Unreachable("it is no server".to_owned()));
    };
    let mut options = OptsBuilder::default()
        .user(login.username().map_err(Fault::Credential)?)
        .pass(login.password().map_err(Fault::Credential)?)
        .db_name(database.clone())
        .prefer_socket(false)
        // Asked for, they would cost two questions.
        .wait_timeout(Some(WAIT_TIMEOUT))
        .max_allowed_packet(Some(MAX_PACKET))
        .tcp_keepalive(Some(KEEPALIVE));
    options = match host {
        Host::Name(name, port) => options.ip_or_hostname(name).tcp_port(*port),
        Host::Socket(path, _) => options.socket(Some(path.display().to_string())),
    };
    if let Some(tls) = &settings.tls {
        options = options.ssl_opts(ssl(tls)?);
    }
    Ok(options.into())
}

fn ssl(tls: &DatabaseTls) -> Result<SslOpts, Fault> {
    // Without any root nothing could be set up: where nothing is checked, the driver's own serve.
    let roots = match &tls.files.ca_file {
        Some(file) => Some(vec![file.clone().into()]),
        None if tls.verify => {
            let found = crate::tls::system_certificates().map_err(|error| Fault::Unreachable(error.to_string()))?;
            Some(found.into_iter().map(|certificate| certificate.to_vec().into()).collect())
        }
        None => None,
    };
    let identity = tls.files.client.as_ref();
    let identity =
        identity.map(|client| ClientIdentity::new(client.cert_file.clone().into(), client.key_file.clone().into()));
    Ok(SslOpts::default()
        .with_disable_built_in_roots(roots.is_some())
        .with_root_certs(roots.unwrap_or_default())
        .with_client_identity(identity)
        .with_danger_accept_invalid_certs(!tls.verify)
        .with_danger_tls_hostname_override(tls.server_name.clone()))
}

fn opening(error: &Error) -> Fault {
    match error {
        // ER_ACCESS_DENIED_ERROR, ER_ACCESS_DENIED_NO_PASSWORD_ERROR, ER_ACCOUNT_HAS_BEEN_LOCKED, ER_MUST_CHANGE_PASSWORD_LOGIN,
        // ER_DBACCESS_DENIED_ERROR (a user that is gone may have left a name for everybody).
        Error::Server(said) if matches!(said.code, 1045 | 1698 | 3118 | 1862 | 1044) => {
            Fault::Login(format!("the database refuses the login (error {})", said.code))
        }
        error => Fault::Unreachable(words(error)),
    }
}

fn running(error: &Error) -> Fault {
    match error {
        // ER_SERVER_SHUTDOWN, ER_CONNECTION_KILLED.
        Error::Server(said) if matches!(said.code, 1053 | 1927) => Fault::Broken(words(error)),
        // ER_QUERY_TIMEOUT of MySQL, ER_STATEMENT_TIMEOUT of MariaDB.
        Error::Server(said) if matches!(said.code, 3024 | 1969) => {
            Fault::Statement("the statement took too long, and the database stopped it".to_owned())
        }
        Error::Server(_) => Fault::Statement(words(error)),
        error => Fault::Broken(words(error)),
    }
}

/// What the server said, without the names of users and hosts; of other errors nothing that holds a value.
fn words(error: &Error) -> String {
    match error {
        Error::Server(said) => format!("error {} ({}): {}", said.code, said.state, without_accounts(&said.message)),
        Error::Io(error) => error.to_string(),
        Error::Driver(
            error @ (mysql_async::DriverError::ConnectionClosed
            | mysql_async::DriverError::NoClientSslFlagFromServer
            | mysql_async::DriverError::PacketTooLarge
            | mysql_async::DriverError::LocalInfile(_)
            | mysql_async::DriverError::UnknownAuthPlugin { .. }
            | mysql_async::DriverError::CleartextPluginDisabled),
        ) => error.to_string(),
        _ => "the driver failed".to_owned(),
    }
}

/// `'user'@'host'` says as whom mcpeg logs in, and from where.
fn without_accounts(message: &str) -> String {
    let mut shown = message.to_owned();
    while let Some(at) = shown.find("'@'") {
        let start = shown[..at].rfind('\'').unwrap_or(at);
        let end = shown[at + 3..].find('\'').map_or(shown.len(), |length| at + 3 + length + 1);
        shown.replace_range(start..end, "the service's user");
    }
    shown
}

fn parameter(value: &Value) -> Sql {
    match value {
        Value::Null => Sql::NULL,
        Value::Bool(value) => Sql::Int((*value).into()),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Sql::Int(number),
            (None, Some(number)) => Sql::UInt(number),
            (None, None) => Sql::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Sql::Bytes(text.clone().into_bytes()),
        other => Sql::Bytes(rows::bytes_of(other).unwrap_or_else(|| other.to_string().into_bytes())),
    }
}

fn is_binary(column: &Described) -> bool {
    column.character_set() == BINARY
}

fn kind(column: &Described) -> String {
    use ColumnType::*;
    let flags = column.flags();
    let name =
        match column.column_type() {
            MYSQL_TYPE_TINY => "tinyint",
            MYSQL_TYPE_SHORT => "smallint",
            MYSQL_TYPE_INT24 => "mediumint",
            MYSQL_TYPE_LONG => "int",
            MYSQL_TYPE_LONGLONG => "bigint",
            MYSQL_TYPE_DECIMAL | MYSQL_TYPE_NEWDECIMAL => "decimal",
            MYSQL_TYPE_FLOAT => "float",
            MYSQL_TYPE_DOUBLE => "double",
            MYSQL_TYPE_BIT => "bit",
            MYSQL_TYPE_YEAR => return "year".to_owned(),
            MYSQL_TYPE_DATE | MYSQL_TYPE_NEWDATE => "date",
            MYSQL_TYPE_TIME | MYSQL_TYPE_TIME2 => "time",
            MYSQL_TYPE_DATETIME | MYSQL_TYPE_DATETIME2 => "datetime",
            MYSQL_TYPE_TIMESTAMP | MYSQL_TYPE_TIMESTAMP2 => return "timestamp".to_owned(),
            MYSQL_TYPE_JSON => "json",
            MYSQL_TYPE_GEOMETRY => "geometry",
            MYSQL_TYPE_VECTOR => "vector",
            MYSQL_TYPE_NULL => "null",
            _ if flags.contains(ColumnFlags::ENUM_FLAG) => "enum",
            _ if flags.contains(ColumnFlags::SET_FLAG) => "set",
            MYSQL_TYPE_TINY_BLOB | MYSQL_TYPE_MEDIUM_BLOB | MYSQL_TYPE_LONG_BLOB | MYSQL_TYPE_BLOB => {
                if is_binary(column) { "blob" } else { "text" }
            }
            MYSQL_TYPE_STRING => {
                if is_binary(column) {
                    "binary"
                } else {
                    "char"
                }
            }
            _ if is_binary(column) => "varbinary",
            _ => "varchar",
        };
    let is_number = column.column_type().is_numeric_type();
    if is_number && flags.contains(ColumnFlags::UNSIGNED_FLAG) { format!("{name} unsigned") } else { name.to_owned() }
}

fn json(value: Sql, column: &Described) -> Value {
    use ColumnType::*;
    match value {
        Sql::NULL => Value::Null,
        Sql::Int(number) => rows::integer(number),
        Sql::UInt(number) => rows::unsigned(number),
        Sql::Float(number) => rows::short_float(number),
        Sql::Double(number) => rows::float(number),
        Sql::Date(year, month, day, hour, minute, second, micros) => {
            let date = format!("{year:04}-{month:02}-{day:02}");
            match column.column_type() {
                MYSQL_TYPE_DATE | MYSQL_TYPE_NEWDATE => date.into(),
                MYSQL_TYPE_TIMESTAMP | MYSQL_TYPE_TIMESTAMP2 => {
                    format!("{date}T{hour:02}:{minute:02}:{second:02}{}Z", fraction(micros)).into()
                }
                _ => format!("{date}T{hour:02}:{minute:02}:{second:02}{}", fraction(micros)).into(),
            }
        }
        Sql::Time(negative, days, hours, minute, second, micros) => {
            let (sign, hours) = (if negative { "-" } else { "" }, days * 24 + u32::from(hours));
            format!("{sign}{hours:02}:{minute:02}:{second:02}{}", fraction(micros)).into()
        }
        Sql::Bytes(bytes) => match column.column_type() {
            MYSQL_TYPE_BIT if bytes.len() <= 8 => {
                rows::unsigned(bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
            }
            MYSQL_TYPE_DECIMAL | MYSQL_TYPE_NEWDECIMAL => rows::text(bytes),
            MYSQL_TYPE_JSON => String::from_utf8(bytes).map_or(Value::Null, |text| rows::document(&text)),
            MYSQL_TYPE_GEOMETRY | MYSQL_TYPE_VECTOR => rows::binary(&bytes),
            // Words of a fixed list have the character set of nobody.
            _ if is_binary(column) && !column.flags().intersects(ColumnFlags::ENUM_FLAG | ColumnFlags::SET_FLAG) => {
                rows::binary(&bytes)
            }
            _ => rows::text(bytes),
        },
    }
}

fn fraction(micros: u32) -> String {
    if micros == 0 { String::new() } else { format!(".{micros:06}") }
}

/// The number of the collation `binary`.
const BINARY: u16 = 63;
/// The servers' default, in seconds: after so long they close a connection that nobody uses.
const WAIT_TIMEOUT: usize = 28_800;
/// Of one packet, in either direction.
const MAX_PACKET: usize = 64 << 20;
const KEEPALIVE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_told_as_they_are() {
        let of = |kind: ColumnType, value: Sql| json(value, &Described::new(kind));
        use ColumnType::*;
        assert_eq!(of(MYSQL_TYPE_DATETIME, Sql::Date(2024, 2, 29, 1, 2, 3, 4000)), json!("2024-02-29T01:02:03.004000"));
        assert_eq!(of(MYSQL_TYPE_TIMESTAMP, Sql::Date(2024, 2, 29, 1, 2, 3, 0)), json!("2024-02-29T01:02:03Z"));
        assert_eq!(of(MYSQL_TYPE_DATE, Sql::Date(0, 0, 0, 0, 0, 0, 0)), json!("0000-00-00"));
        assert_eq!(of(MYSQL_TYPE_TIME, Sql::Time(true, 34, 22, 59, 59, 0)), json!("-838:59:59"));
        assert_eq!(of(MYSQL_TYPE_BIT, Sql::Bytes(vec![1, 2])), json!(258));
        assert_eq!(of(MYSQL_TYPE_NEWDECIMAL, Sql::Bytes(b"1.10".to_vec())), json!("1.10"));
    }

    #[test]
    fn accounts_are_not_told_of() {
        let said = "SELECT command denied to user 'v-app-x'@'10.0.0.7' for table `a`.`b`";
        assert_eq!(without_accounts(said), "SELECT command denied to user the service's user for table `a`.`b`");
    }
}
