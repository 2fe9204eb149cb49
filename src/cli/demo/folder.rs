//! The demo's folder: a configuration, a secrets file, a template, two services. Removed at the end unless it is to be kept.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub struct DemoFolder {
    path: PathBuf,
    keep: bool,
}

impl DemoFolder {
    /// Makes the folder and everything in it. `upstream` is the address of the HTTP server, `program` this binary.
    pub fn create(upstream: &str, program: &Path, token: &str, keep: bool) -> io::Result<Self> {
        let folder = Self { path: fresh_folder()?, keep };
        let program = serde_json::to_string(&program.to_string_lossy()).unwrap_or_default();
        folder.write("mcpeg.yaml", CONFIG)?;
        folder.write("services/weather.yaml", &WEATHER.replace("UPSTREAM", upstream))?;
        folder.write("services/local.yaml", &LOCAL.replace("PROGRAM", &program))?;
        folder.write("templates/app.conf.j2", TEMPLATE)?;
        folder.rotate(token)?;
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> PathBuf {
        self.path.join("mcpeg.yaml")
    }

    pub fn socket(&self) -> PathBuf {
        self.path.join("run/mcpeg.sock")
    }

    pub fn rendered(&self) -> PathBuf {
        self.path.join("run/app.conf")
    }

    pub fn audit(&self) -> PathBuf {
        self.path.join("data/audit.log")
    }

    /// Where the sidecar's own log goes.
    pub fn log(&self) -> io::Result<fs::File> {
        fs::OpenOptions::new().append(true).create(true).mode(0o600).open(self.log_path())
    }

    pub fn log_path(&self) -> PathBuf {
        self.path.join("mcpeg.log")
    }

    /// Writes a new token into the secrets file, whole: beside it, then renamed over it.
    pub fn rotate(&self, token: &str) -> io::Result<()> {
        self.write("secrets.new", &format!("weather: {{ token: {token} }}\n"))?;
        fs::rename(self.path.join("secrets.new"), self.path.join("secrets.yaml"))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is left in the system's folder for such things.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A new folder that only its owner may enter. Its path is short, because sockets' paths must be.
fn fresh_folder() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    for attempt in 0..100_u32 {
        let path = base.join(format!("mcpeg-demo-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free name for the demo's folder"))
}

const CONFIG: &str = r#"version: "1.0"
metadata: { name: demo }
secrets:
  providers:
    dev: { type: file, path: secrets.yaml }
  items:
    weather: { provider: dev, path: weather, refresh: 500ms }
services:
  weather: { config_file: services/weather.yaml }   # streamable HTTP, the token in a header
  local:   { config_file: services/local.yaml }     # a child on stdio, the token in its environment
templates:
  - { source: templates/app.conf.j2, destination: run/app.conf }
audit: { path: data/audit.log }
"#;

const WEATHER: &str = r#"type: mcp
url: UPSTREAM
headers: { Authorization: "Bearer ${secret.weather.token}" }
timeout: 10s
"#;

const LOCAL: &str = r#"type: mcp
command: [PROGRAM, demo-server]
env: { DEMO_TOKEN: "${secret.weather.token}" }
on_rotate: restart
"#;

const TEMPLATE: &str = "# rendered by mcpeg; mode 0600\n[weather]\ntoken = {{ secret.weather.token | json }}\n";
