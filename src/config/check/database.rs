//! `type: database`: from a service file to the services domain's settings.

use std::time::Duration;

use super::{Check, seconds};
use crate::config::raw::mcp::{RawConnection, RawDatabaseTls, RawDriver, RawPool, RawServiceFile};
use crate::config::raw::policy::{RawHandler, RawResource, RawTool};
use crate::config::raw::scalar::RawPath;
use crate::services::settings::ServiceSettings;
use crate::services::settings::database::{
    Bounds, DatabaseResource, DatabaseSettings, DatabaseTls, Driver, Handler, Host, PoolSettings, Target,
};

/// The keys that no other service has.
pub fn refuse_keys(raw: &RawServiceFile, check: &mut Check<'_>) {
    for (key, given) in [
        ("driver", raw.driver.is_some()),
        ("connection", raw.connection.is_some()),
        ("pool", raw.pool.is_some()),
        ("read_only", raw.read_only.is_some()),
    ] {
        if given {
            check.problem(&[key], format!("`{key}` belongs to a service of `type: database`"));
        }
    }
}

/// Takes what is its own out of tools and resources. `timeout` is the service's.
pub fn settings(raw: &mut RawServiceFile, timeout: Duration, check: &mut Check<'_>) -> Option<ServiceSettings> {
    super::services::refuse_requests(raw, check);
    if !raw.headers.is_empty() {
        check.problem(&["headers"], "a database is not asked over HTTP: `headers` has no use");
    }
    let driver = match raw.driver {
        Some(RawDriver::Mysql) => Driver::Mysql,
        Some(RawDriver::Postgres) => Driver::Postgres,
        Some(RawDriver::Sqlite) => Driver::Sqlite,
        None => {
            check.problem(&[], "`driver` is missing: `mysql`, `postgres` or `sqlite`");
            return None;
        }
    };
    let Some(mut connection) = raw.connection.take() else {
        check.problem(&[], "`connection` is missing: where the database is");
        return None;
    };
    let tls = tls(raw, &connection, driver, check);
    let connect = connection.timeout.take().map_or(seconds(10), |timeout| timeout.0);
    let username = connection.username.take().map(|text| text.0);
    let password = connection.password.take().map(|text| text.0);
    let target = match driver {
        Driver::Sqlite => file(connection, username.is_some(), password.is_some(), check),
        Driver::Mysql | Driver::Postgres => server(connection, driver, check),
    };
    let (query, schema) = tools(raw, timeout, check);
    let settings = DatabaseSettings {
        driver,
        target: target?,
        username,
        password,
        tls,
        read_only: raw.read_only.unwrap_or(true),
        pool: pool(raw.pool.take().unwrap_or_default(), connect, check),
        query,
        schema,
        resources: resources(raw, driver, timeout, check),
    };
    Some(ServiceSettings::Database(Box::new(settings)))
}

fn tls(
    raw: &mut RawServiceFile,
    connection: &RawConnection,
    driver: Driver,
    check: &mut Check<'_>,
) -> Option<DatabaseTls> {
    let is_given = check.tree.get("tls").is_some();
    let default = if is_given { RawDatabaseTls::Verify } else { RawDatabaseTls::Disable };
    let mode = connection.tls.unwrap_or(default);
    let (files, server_name) = check.tls(&[], std::mem::take(&mut raw.tls));
    if driver == Driver::Sqlite && (is_given || connection.tls.is_some()) {
        check.problem(&["connection"], "a file is not asked over a network: `tls` has no use");
        return None;
    }
    if mode == RawDatabaseTls::Disable {
        if is_given {
            check.problem(&["tls"], "`connection.tls` is `disable`: `tls` has no use");
        }
        return None;
    }
    if connection.socket.is_some() {
        check.problem(&["connection", "socket"], "TLS is not spoken over a Unix socket");
    }
    Some(DatabaseTls { files, server_name, verify: mode == RawDatabaseTls::Verify })
}

fn file(raw: RawConnection, has_username: bool, has_password: bool, check: &mut Check<'_>) -> Option<Target> {
    for (key, given) in [
        ("host", raw.host.is_some()),
        ("port", raw.port.is_some()),
        ("socket", raw.socket.is_some()),
        ("database", raw.database.is_some()),
        ("username", has_username),
        ("password", has_password),
    ] {
        if given {
            check.problem(&["connection", key], format!("SQLite is a file: `{key}` has no use"));
        }
    }
    let Some(path) = RawPath::given(raw.path) else {
        check.problem(&["connection"], "`path` is missing: the file of the database");
        return None;
    };
    Some(Target::File(path))
}

fn server(raw: RawConnection, driver: Driver, check: &mut Check<'_>) -> Option<Target> {
    if raw.path.is_some() {
        check.problem(&["connection", "path"], "`path` belongs to the driver `sqlite`");
    }
    if raw.socket.is_some() && raw.host.is_some() {
        check.problem(&["connection", "socket"], "only one of `host` and `socket` may be given");
    }
    let database = raw.database.filter(|name| !name.is_empty());
    if database.is_none() {
        check.problem(&["connection"], "`database` is missing");
    }
    let port = raw.port.unwrap_or(if driver == Driver::Mysql { 3306 } else { 5432 });
    let host = match RawPath::given(raw.socket) {
        Some(path) => Host::Socket(path, port),
        None => Host::Name(raw.host.filter(|host| !host.is_empty()).unwrap_or_else(|| "localhost".to_owned()), port),
    };
    Some(Target::Server { host, database })
}

fn pool(raw: RawPool, connect: Duration, check: &mut Check<'_>) -> PoolSettings {
    let max_connections = raw.max_connections.unwrap_or(10) as usize;
    let idle_connections = raw.idle_connections.map_or(2.min(max_connections), |idle| idle as usize);
    if idle_connections > max_connections {
        check.problem(&["pool", "idle_connections"], "more than `max_connections`");
    }
    let pool = PoolSettings {
        max_connections,
        idle_connections,
        connection_lifetime: raw.connection_lifetime.map_or(seconds(3600), |lifetime| lifetime.0),
        wait: raw.wait_timeout.map_or(seconds(5), |wait| wait.0),
        connect,
    };
    for (path, time) in
        [(["connection", "timeout"], pool.connect), (["pool", "connection_lifetime"], pool.connection_lifetime)]
    {
        if time.is_zero() {
            check.problem(&path, "expected more than nothing");
        }
    }
    pool
}

/// The bounds of the two tools, of those that there are.
fn tools(raw: &mut RawServiceFile, timeout: Duration, check: &mut Check<'_>) -> (Option<Bounds>, Option<Bounds>) {
    let default = Bounds { max_rows: MAX_ROWS, max_bytes: MAX_BYTES, time: timeout };
    let Some(tools) = &mut raw.tools else { return (Some(default), Some(default)) };
    let (mut query, mut schema) = (None, None);
    for (index, tool) in tools.iter_mut().enumerate() {
        let bounds = taken(tool, default);
        match tool.name.as_str() {
            "query_database" => query = Some(bounds),
            "get_schema" => schema = Some(bounds),
            name => {
                let known = ["query_database", "get_schema"];
                check.unknown(&["tools", &index.to_string(), "name"], "tool of a database", name, known.into_iter());
            }
        }
    }
    (query, schema)
}

/// The tool says itself what it leaves out, so the policy cuts nothing.
fn taken(tool: &mut RawTool, default: Bounds) -> Bounds {
    Bounds {
        max_rows: tool.max_rows.take().map_or(default.max_rows, |rows| rows as usize),
        max_bytes: tool.max_bytes.take().map_or(default.max_bytes, |size| size.0),
        time: tool.timeout.as_ref().map_or(default.time, |timeout| timeout.0),
    }
}

fn resources(
    raw: &mut RawServiceFile,
    driver: Driver,
    timeout: Duration,
    check: &mut Check<'_>,
) -> Vec<DatabaseResource> {
    let bounds = Bounds { max_rows: SAMPLE_ROWS, max_bytes: MAX_BYTES, time: timeout };
    let Some(given) = &mut raw.resources else {
        let of = |kind: &str, handler| DatabaseResource {
            before: format!("{}://{kind}/", driver.as_str()),
            after: String::new(),
            handler,
            bounds,
        };
        return vec![of("schema", Handler::Schema), of("data", Handler::Data)];
    };
    let mut resources = Vec::new();
    for (index, resource) in given.iter_mut().enumerate() {
        resources.extend(taken_resource(resource, &index.to_string(), bounds, check));
    }
    resources
}

fn taken_resource(
    raw: &mut RawResource,
    index: &str,
    default: Bounds,
    check: &mut Check<'_>,
) -> Option<DatabaseResource> {
    let bounds = Bounds {
        max_rows: raw.max_rows.take().map_or(default.max_rows, |rows| rows as usize),
        max_bytes: raw.max_bytes.take().map_or(default.max_bytes, |size| size.0),
        time: raw.timeout.as_ref().map_or(default.time, |timeout| timeout.0),
    };
    let handler = match raw.handler.take() {
        Some(RawHandler::GetTableSchema) => Handler::Schema,
        Some(RawHandler::GetSampleData) => Handler::Data,
        None => {
            check.problem(&["resources", index], "`handler` is missing: `get_table_schema` or `get_sample_data`");
            return None;
        }
    };
    let place = raw.pattern.split_once("{table}").filter(|(before, after)| {
        before.contains("://") && ![*before, *after].iter().any(|part| part.contains(['{', '}', '*']))
    });
    let Some((before, after)) = place else {
        let message = "expected an address with one place, `{table}`, such as `mysql://schema/{table}`";
        check.problem(&["resources", index, "pattern"], message);
        return None;
    };
    Some(DatabaseResource { before: before.to_owned(), after: after.to_owned(), handler, bounds })
}

const MAX_ROWS: usize = 1000;
const SAMPLE_ROWS: usize = 100;
const MAX_BYTES: usize = 1024 * 1024;
