//! A real nginx in front of an MCP server: TLS with the client's certificate, HTTP/2, a Unix socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{eventually, peers};

pub struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// A server of `listen` (nginx's own words) that passes everything on to `upstream`, as `HttpServer` prints it. `{folder}` in `listen`
    /// is its folder, in which `files` are.
    pub async fn before(upstream: &str, listen: &str, files: &[(&str, &[u8])]) -> Self {
        let origin = upstream.strip_suffix("/mcp").unwrap();
        Self::that(&format!("proxy_pass {origin}; proxy_http_version 1.1; proxy_buffering off;"), listen, files).await
    }

    /// As `before`, with nginx's own words for what it does with a request.
    pub async fn that(passes: &str, listen: &str, files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::Builder::new().prefix("mcpeg-nginx").tempdir().unwrap();
        let root = folder.path().display().to_string();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let listen = listen.replace("{folder}", &root);
        let text = format!(
            "{user} daemon off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ log_format seen '$server_protocol \"$host\" \"$ssl_client_s_dn\" $request_uri'; access_log {root}/access.log seen;\n\
               client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;\n\
               uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;\n\
               server {{ {listen} location / {{ {passes} }} }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), text).unwrap();
        let child = Command::new(peers::path("nginx"))
            .arg("-c")
            .arg(folder.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { child, folder };
        let is_up = async || std::fs::read(nginx.path("pid")).ok().filter(|pid| !pid.is_empty());
        eventually(Duration::from_secs(10), "nginx is up", is_up).await;
        nginx
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One line for each request that has ended: protocol, host, the client's name, path and query.
    pub fn seen(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker.
        super::sidecar::signal_process(self.child.id(), libc::SIGTERM);
        let _ = self.child.wait();
    }
}

/// An authority, a server's certificate and those of clients, in a folder of their own.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    pub fn new(server: &str, clients: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/certificates.py");
        let made =
            Command::new(peers::path("python")).arg(script).arg(folder.path()).arg(server).args(clients).status();
        assert!(made.unwrap().success());
        Self(folder)
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(name)).unwrap()
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }
}
