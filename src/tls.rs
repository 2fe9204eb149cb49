//! How this process speaks TLS as a client: rustls with ring, named here and not left to a process-wide default, trusting the roots of one
//! file or else the system's.
//!
//! A leaf: it connects to nothing and knows nothing of who asks. Roots are read when they are asked for, and not again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The text of each variant includes its cause, because a refused reload shows nothing but the text.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("certificates in {}: {reason}", path.display())]
    CaFile { path: PathBuf, reason: String },
    #[error("the system has no root certificates{reason}; set tls.ca_file")]
    NoSystemRoots { reason: String },
    #[error("setting up TLS: {0}")]
    Setup(#[from] rustls::Error),
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn roots_of_file(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| format!("one of them is no root: {error}"))?;
    }
    if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(roots) }
}

fn roots_of_system() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(TlsError::NoSystemRoots { reason });
    }
    Ok(roots)
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
}
