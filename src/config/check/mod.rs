//! From the written shape to the domains' settings: what a schema cannot say.
//!
//! Each file here serves one domain. A section that this version does not serve is refused by name, never ignored.

pub mod aws;
pub mod database;
pub mod files;
pub mod groups;
pub mod hooks;
pub mod mcp;
pub mod oauth;
pub mod operation;
pub mod otel;
pub mod policy;
pub mod process;
pub mod secrets;
pub mod services;
pub mod sources;
pub mod storage;
pub mod telemetry;
pub mod vault;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;

use super::problem::{Problem, Problems};
use super::raw::scalar::{RawPath, RawSecretText};
use super::raw::secrets::RawTls;
use super::shape::near;
use super::tree::Node;
use super::yaml::plain_io;
use crate::secret::SecretText;
use crate::tls::{ClientFiles, Files};

/// One tree under check: places are found by path in it.
pub struct Check<'a> {
    pub tree: &'a Node,
    pub problems: &'a mut Problems,
}

impl Check<'_> {
    /// Reports a mistake at the value that `path` leads to.
    pub fn problem(&mut self, path: &[&str], message: impl Into<String>) {
        self.push(path, message.into(), None);
    }

    pub fn problem_with(&mut self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.push(path, message.into(), Some(help.into()));
    }

    pub fn unavailable(&mut self, path: &[&str]) {
        self.problem(path, format!("`{}` is not available in this version", path.join(".")));
    }

    /// Refuses the key when it was given.
    pub fn unavailable_if(&mut self, given: bool, path: &[&str]) {
        if given {
            self.unavailable(path);
        }
    }

    /// Reports a name that is none of `known`.
    pub fn unknown<'k>(&mut self, path: &[&str], what: &str, given: &str, known: impl Iterator<Item = &'k str>) {
        let help = near(given, known).map(|name| format!("did you mean `{name}`?"));
        self.push(path, format!("there is no {what} `{given}`"), help);
    }

    /// Reports a name with other characters than a name may have.
    pub fn name(&mut self, path: &[&str], what: &str, name: &str) -> bool {
        let good = crate::secret::is_name(name);
        if !good {
            self.problem(path, format!("a {what}'s name has 1 to 64 letters, digits, `-` and `_`"));
        }
        good
    }

    /// Reports a file that cannot be read.
    pub fn readable(&mut self, path: &[&str], file: &Path) {
        match std::fs::metadata(file) {
            Err(error) => self.problem(path, format!("{} cannot be opened: {}", file.display(), plain_io(&error))),
            Ok(meta) if !meta.is_file() => self.problem(path, format!("{} is not a regular file", file.display())),
            Ok(_) => {}
        }
    }

    /// Reports a file of secrets that others than its owner may read or write.
    pub fn private(&mut self, path: &[&str], file: &Path) {
        let Ok(meta) = std::fs::metadata(file) else { return };
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let message = format!("{} has mode {mode:04o}; a file of secrets must be 0600 or narrower", file.display());
            self.problem_with(path, message, format!("chmod 600 {}", file.display()));
        }
    }

    /// Reports a socket's path that the kernel could not take.
    pub fn socket_path(&mut self, path: &[&str], socket: &Path) {
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let message = format!(
                "the socket {} has {length} bytes in its path; the system takes {MAX_SOCKET_PATH}",
                socket.display()
            );
            self.problem(path, message);
        }
    }

    /// The files of a client's TLS, and the name that the server has to prove.
    pub fn tls(&mut self, path: &[&str], raw: RawTls) -> (Files, Option<String>) {
        let mut file = |raw: Option<RawPath>, key: &str| {
            let file = RawPath::given(raw)?;
            self.readable(&join(path, &["tls", key]), &file);
            Some(file)
        };
        let ca_file = file(raw.ca_file, "ca_file");
        let client = match (file(raw.cert_file, "cert_file"), file(raw.key_file, "key_file")) {
            (Some(cert_file), Some(key_file)) => {
                self.private(&join(path, &["tls", "key_file"]), &key_file);
                Some(ClientFiles { cert_file, key_file })
            }
            (None, None) => None,
            (cert_file, _) => {
                let missing = if cert_file.is_none() { "cert_file" } else { "key_file" };
                let message = format!("`{missing}` is missing: certificate and key belong together");
                self.problem(&join(path, &["tls"]), message);
                None
            }
        };
        let server_name = raw.server_name.filter(|name| !name.is_empty());
        if server_name.as_deref().is_some_and(|name| !matches!(url::Host::parse(name), Ok(url::Host::Domain(_)))) {
            self.problem(&join(path, &["tls", "server_name"]), "expected a DNS name, such as `mcp.example`");
        }
        (Files { ca_file, client }, server_name)
    }

    /// The files of a client's TLS, where requests go to several servers, so that there is no one name to prove.
    pub fn tls_files(&mut self, path: &[&str], mut raw: RawTls) -> Files {
        let name = raw.server_name.take();
        self.unavailable_if(name.is_some_and(|name| !name.is_empty()), &join(path, &["tls", "server_name"]));
        self.tls(path, raw).0
    }

    /// The CA file; what else stands under `tls` is refused.
    pub fn ca_file(&mut self, path: &[&str], tls: RawTls) -> Option<PathBuf> {
        for (key, given) in [
            ("cert_file", RawPath::given(tls.cert_file).is_some()),
            ("key_file", RawPath::given(tls.key_file).is_some()),
            ("server_name", tls.server_name.is_some_and(|name| !name.is_empty())),
        ] {
            self.unavailable_if(given, &join(path, &["tls", key]));
        }
        let file = RawPath::given(tls.ca_file)?;
        self.readable(&join(path, &["tls", "ca_file"]), &file);
        Some(file)
    }

    /// Header names and their values; names that the transport owns are refused.
    pub fn headers<I>(&mut self, path: &[&str], raw: I) -> Vec<(HeaderName, SecretText)>
    where
        I: IntoIterator<Item = (String, RawSecretText)>,
    {
        let mut headers = Vec::new();
        for (name, value) in raw {
            match HeaderName::try_from(name.as_str()) {
                Ok(header) if OWN_HEADERS.contains(&header.as_str()) => {
                    self.problem(&join(path, &[&name]), format!("`{name}` is set by mcpeg itself"));
                }
                Ok(header) => headers.push((header, value.0)),
                Err(_) => self.problem(&join(path, &[&name]), format!("`{name}` is not a header's name")),
            }
        }
        headers
    }

    fn push(&mut self, path: &[&str], message: String, help: Option<String>) {
        let mut problem = Problem::new(message, self.tree.origin_of(path).clone()).path(path.join("."));
        problem.help = help;
        self.problems.push(problem);
    }
}

/// One path made of two.
pub fn join<'p>(head: &[&'p str], tail: &[&'p str]) -> Vec<&'p str> {
    [head, tail].concat()
}

/// Seconds, minutes or hours as a default.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// `sun_path` of unix(7), less the closing zero.
const MAX_SOCKET_PATH: usize = 107;
const OWN_HEADERS: [&str; 12] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "te",
    "upgrade",
    "accept",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
];
