//! A real MariaDB in a folder of its own, from Debian's package, unpacked. Made once with its system tables, as its own scripts say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Row};

use super::{eventually, free_port, peers};

pub struct Mariadb {
    child: Child,
    pub host: String,
    pub port: u16,
    folder: tempfile::TempDir,
}

pub const PASSWORD: &str = "mariadb-of-the-tests";

impl Mariadb {
    pub async fn start() -> Self {
        Self::start_with("127.0.0.1", free_port(), &[], &[]).await
    }

    /// With more arguments, in which `{folder}` is its folder, where `files` are.
    pub async fn start_with(host: &str, port: u16, arguments: &[&str], files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::Builder::new().prefix("mcpeg-mariadb").tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        make(folder.path());
        let arguments = arguments.iter().map(|argument| argument.replace("{folder}", folder.path().to_str().unwrap()));
        let child = program(folder.path())
            .args(["--skip-name-resolve", "--max-connections=100"])
            .arg(format!("--bind-address={host}"))
            .arg(format!("--port={port}"))
            .arg(format!("--socket={}", folder.path().join("socket").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let server = Self { child, host: host.to_owned(), port, folder };
        let is_up = async || server.try_query("select 1").await.ok();
        eventually(Duration::from_secs(20), "MariaDB is up", is_up).await;
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// What statements give, as root, in the database `app`.
    pub async fn query(&self, sql: &str) -> Vec<Row> {
        self.try_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The first value of the first row, as a number.
    pub async fn count(&self, sql: &str) -> i64 {
        self.query(sql).await[0].get(0).unwrap()
    }

    async fn try_query(&self, sql: &str) -> mysql_async::Result<Vec<Row>> {
        let options = OptsBuilder::default()
            .ip_or_hostname(&self.host)
            .tcp_port(self.port)
            .user(Some("root"))
            .pass(Some(PASSWORD))
            .db_name(Some("app"))
            .prefer_socket(false);
        let mut connection = Conn::new(options).await?;
        let rows = connection.query(sql).await?;
        connection.disconnect().await?;
        Ok(rows)
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The system's tables, a root who may come from anywhere, and the database `app`.
fn make(folder: &Path) {
    fs::create_dir(folder.join("data")).unwrap();
    let share = peers::path("mariadb_share");
    let mut sql = "create database mysql;\nuse mysql;\nSET @auth_root_socket=NULL;\n".to_owned();
    for file in ["mysql_system_tables.sql", "mysql_system_tables_data.sql"] {
        sql.push_str(&fs::read_to_string(share.join(file)).unwrap());
    }
    sql.push_str(&format!(
        "\nDELETE FROM global_priv WHERE User = '' OR User = 'root';\nFLUSH PRIVILEGES;\n\
         CREATE USER root@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\ncreate database app;\n"
    ));
    fs::write(folder.join("make.sql"), sql).unwrap();
    let made = program(folder)
        .args(["--bootstrap", "--skip-networking"])
        .stdin(fs::File::open(folder.join("make.sql")).unwrap())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn program(folder: &Path) -> Command {
    let share = peers::path("mariadb_share");
    let mut command = Command::new(peers::path("mariadbd"));
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", folder.join("data").display()))
        .arg(format!("--lc-messages-dir={}", share.display()))
        .arg(format!("--character-sets-dir={}/charsets", share.display()))
        .args(["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"])
        // One that starts removes what it takes for leavings of temporary tables, of others too.
        .arg(format!("--tmpdir={}", folder.display()))
        // Many at a time would run into the bound of locked memory.
        .arg("--innodb-use-native-aio=0")
        .env("LD_LIBRARY_PATH", peers::path("mariadb_libraries"))
        .stdout(Stdio::null());
    if rustix::process::geteuid().is_root() {
        command.arg("--user=root");
    }
    command
}
