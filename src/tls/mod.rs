//! How this process speaks TLS as a client: rustls with ring, named here and not left to a process-wide default, trusting the roots of one
//! file or else the system's, and showing a certificate of its own where it has one.
//!
//! A leaf: it connects to nothing and knows nothing of who asks. `Files` reads when it is asked, and `Files::stamp` tells whether reading
//! again would be worth while; `Trust` follows the files, and `Destination` connects to an address under another name.

mod destination;
mod trust;
mod unverified;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use self::destination::Destination;
pub use self::trust::Trust;
use self::unverified::Unverified;

/// The text of each variant includes its cause, because a refused reload shows nothing but the text.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the server's certificate in {}: {reason}", path.display())]
    ServerCert { path: PathBuf, reason: String },
    #[error("the server's key in {}: {reason}", path.display())]
    ServerKey { path: PathBuf, reason: String },
    #[error("certificates in {}: {reason}", path.display())]
    CaFile { path: PathBuf, reason: String },
    #[error("the client's certificate in {}: {reason}", path.display())]
    CertFile { path: PathBuf, reason: String },
    #[error("the client's key in {}: {reason}", path.display())]
    KeyFile { path: PathBuf, reason: String },
    #[error("the system has no root certificates{reason}; set tls.ca_file")]
    NoSystemRoots { reason: String },
    #[error("setting up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// The PEM files of one client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// In place of the system's roots.
    pub ca_file: Option<PathBuf>,
    pub client: Option<ClientFiles>,
}

/// What a client shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate, and those between it and its authority.
    pub cert_file: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key_file: PathBuf,
}

/// Differs whenever one of the files was replaced or written to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp(Vec<Option<[i64; 7]>>);

impl Files {
    /// Reads the files; none of them for a scheme without TLS.
    pub fn client_config(&self, scheme: &str) -> Result<ClientConfig, TlsError> {
        let roots = roots(scheme, self.ca_file.as_deref())?;
        match &self.client {
            Some(client) if scheme == "https" => client.config(roots),
            _ => client_config(roots),
        }
    }

    /// As `client_config`, of a client that takes any certificate of a server: what is sent is encrypted, and it is not known for whom.
    pub fn client_config_unverified(&self) -> Result<ClientConfig, TlsError> {
        let mut config = match &self.client {
            Some(client) => client.config(RootCertStore::empty())?,
            None => client_config(RootCertStore::empty())?,
        };
        config.dangerous().set_certificate_verifier(Arc::new(Unverified::default()));
        Ok(config)
    }

    pub fn is_empty(&self) -> bool {
        self.ca_file.is_none() && self.client.is_none()
    }

    /// Asks the file system about each file, through symbolic links, and reads none.
    pub fn stamp(&self) -> Stamp {
        let client = self.client.iter().flat_map(|client| [&client.cert_file, &client.key_file]);
        Stamp(self.ca_file.iter().chain(client).map(|path| stamp_of(path)).collect())
    }
}

impl ClientFiles {
    fn config(&self, roots: RootCertStore) -> Result<ClientConfig, TlsError> {
        let chain = certificates_in(&self.cert_file)
            .map_err(|reason| TlsError::CertFile { path: self.cert_file.clone(), reason })?;
        let failed = |reason: String| TlsError::KeyFile { path: self.key_file.clone(), reason };
        let key = PrivateKeyDer::from_pem_file(&self.key_file).map_err(|error| failed(pem_words(&error)))?;
        builder(roots)?.with_client_auth_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                failed(format!("it does not belong to the certificate in {}", self.cert_file.display()))
            }
            error => failed(error.to_string()),
        })
    }
}

/// The roots for an address: those of `ca_file` (PEM) in place of the system's; none for a scheme without TLS, which must not cost the
/// reading of any.
pub fn roots(scheme: &str, ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    match ca_file {
        _ if scheme != "https" => Ok(RootCertStore::empty()),
        Some(path) => roots_of_file(path).map_err(|reason| TlsError::CaFile { path: path.to_owned(), reason }),
        None => roots_of_system(),
    }
}

/// A client that trusts `roots` and shows no certificate of its own.
pub fn client_config(roots: impl Into<Arc<RootCertStore>>) -> Result<ClientConfig, TlsError> {
    Ok(builder(roots)?.with_no_client_auth())
}

/// A server that shows the certificate (PEM, with those between it and its authority) and asks for none.
pub fn server_config(cert_file: &Path, key_file: &Path) -> Result<ServerConfig, TlsError> {
    let chain =
        certificates_in(cert_file).map_err(|reason| TlsError::ServerCert { path: cert_file.to_owned(), reason })?;
    let failed = |reason: String| TlsError::ServerKey { path: key_file.to_owned(), reason };
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| failed(pem_words(&error)))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            failed(format!("it does not belong to the certificate in {}", cert_file.display()))
        }
        error => failed(error.to_string()),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// As `Files::stamp`, of any files.
pub fn stamp(files: &[&Path]) -> Stamp {
    Stamp(files.iter().map(|path| stamp_of(path)).collect())
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn builder(roots: impl Into<Arc<RootCertStore>>) -> Result<Builder, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots))
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in(path)? {
        roots.add(certificate).map_err(|error| format!("one of them is no root: {error}"))?;
    }
    Ok(roots)
}

/// At least one.
fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = found.map_err(|error| pem_words(&error))?;
    if certificates.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(certificates) }
}

/// Without the line that could not be read, which may be of a key.
fn pem_words(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "there is none in it".to_owned(),
        _ => "it is not PEM".to_owned(),
    }
}

fn roots_of_system() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system_certificates()?);
    if roots.is_empty() {
        return Err(TlsError::NoSystemRoots { reason: String::new() });
    }
    Ok(roots)
}

/// Those of the system's authorities, at least one.
pub fn system_certificates() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(TlsError::NoSystemRoots { reason });
    }
    Ok(found.certs)
}

fn stamp_of(path: &Path) -> Option<[i64; 7]> {
    let facts = std::fs::metadata(path).ok()?;
    Some([
        facts.dev().cast_signed(),
        facts.ino().cast_signed(),
        facts.size().cast_signed(),
        facts.mtime(),
        facts.mtime_nsec(),
        facts.ctime(),
        facts.ctime_nsec(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let missing = roots("https", Some(&path)).unwrap_err().to_string();
        assert!(missing.contains("ca.pem: ") && missing.contains("No such file"), "{missing}");
        std::fs::write(&path, "nothing here").unwrap();
        let empty = roots("https", Some(&path)).unwrap_err().to_string();
        assert!(empty.ends_with("there is no certificate in it"), "{empty}");
    }

    #[test]
    fn a_stamp_tells_of_a_replaced_file_also_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for version in ["1", "2"] {
            std::fs::create_dir(path(version)).unwrap();
            std::fs::write(path(version).join("ca.pem"), "same length").unwrap();
        }
        std::os::unix::fs::symlink("1", path("..data")).unwrap();
        let files = Files { ca_file: Some(path("..data/ca.pem")), client: None };
        let before = files.stamp();
        assert_eq!(files.stamp(), before);
        std::os::unix::fs::symlink("2", path("..new")).unwrap();
        std::fs::rename(path("..new"), path("..data")).unwrap();
        let after = files.stamp();
        assert_ne!(after, before);
        std::fs::remove_file(path("2/ca.pem")).unwrap();
        assert_ne!(files.stamp(), after);
    }

    #[test]
    fn what_is_wrong_with_a_client_is_said_and_nothing_of_a_key_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("key.pem"), "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n").unwrap();
        std::fs::write(path("cert.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let client = ClientFiles { cert_file: path("cert.pem"), key_file: path("key.pem") };
        let said = client.config(RootCertStore::empty()).unwrap_err().to_string();
        assert!(said.starts_with("the client's key in ") && !said.contains("hunter2"), "{said}");
        // A scheme without TLS reads nothing.
        let files = Files { ca_file: Some(path("none")), client: Some(client) };
        assert!(files.client_config("http").is_ok());
    }
}
