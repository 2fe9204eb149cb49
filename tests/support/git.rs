//! A real Git repository, made by git, and served over HTTP by `git http-backend`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::peers;

pub struct Repository {
    folder: tempfile::TempDir,
}

impl Repository {
    /// Empty, with the branch `main`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Self { folder };
        repository.git(&["init", "--quiet", "--initial-branch", "main", "."]);
        repository
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Commits everything; gives the commit.
    pub fn commit(&self, message: &str) -> String {
        self.commit_with(message, &[])
    }

    pub fn commit_with(&self, message: &str, args: &[&str]) -> String {
        self.git(&["add", "--all"]);
        self.git(
            &[&["-c", "user.name=t", "-c", "user.email=t@example.com"], args, &["commit", "--quiet", "-m", message]]
                .concat(),
        );
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(args)
            .current_dir(self.folder.path())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Serves it; `more` are arguments of git_http.py.
    pub fn serve(&self, more: &[&str]) -> GitServer {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/git_http.py");
        let mut child = Command::new(peers::path("python"))
            .arg(script)
            .arg(self.folder.path().join(".git"))
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        GitServer { child, port: line.trim().parse().unwrap() }
    }
}

/// Ended when it is dropped.
pub struct GitServer {
    child: Child,
    pub port: u16,
}

impl Drop for GitServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
