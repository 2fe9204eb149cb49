//! Keys: identities (`AGE-SECRET-KEY-1...`) and recipients (`age1...`), both Bech32, and where a key is read from.
//!
//! An identity file has an identity on each line, with comments after `#`, as `age-keygen` writes it. Invariants: a key is read into a buffer
//! that is wiped and kept in locked memory; a file that everybody may read is refused, and what is in it is never quoted.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bech32::{Bech32, Hrp};
use curve25519_dalek::montgomery::MontgomeryPoint;
use zeroize::Zeroizing;

use crate::memory::with_wiped_stack;
use crate::secret::Secret;

use super::{Recipients, SealError, random};

/// A public key that things are sealed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient(pub(super) [u8; 32]);

/// A secret key that opens them.
pub struct Identity {
    secret: Secret,
    recipient: Recipient,
}

/// What opens something that is sealed.
pub enum Key {
    /// Never empty.
    Identities(Vec<Identity>),
    Passphrase(Secret),
}

/// Where a key is; it is read at each use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    IdentityFile(PathBuf),
    PassphraseFile(PathBuf),
    /// An identity that systemd has put into `$CREDENTIALS_DIRECTORY` under this name.
    Credential(String),
}

impl KeySource {
    pub fn read(&self) -> Result<Key, KeyError> {
        match self {
            Self::IdentityFile(path) => identities_in(path),
            Self::PassphraseFile(path) => passphrase_in(path),
            Self::Credential(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| KeyError::NoCredentials { name: name.clone() })?;
                identities_in(&Path::new(&folder).join(name))
            }
        }
    }
}

impl Key {
    /// Of a text with an identity on each line; `place` is where it stands, in words.
    pub fn of_text(text: &str, place: &Path) -> Result<Self, KeyError> {
        let mut identities = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let identity = with_wiped_stack(|| Identity::parse(line));
            identities.push(identity.ok_or_else(|| KeyError::NoIdentity { path: place.to_owned(), line: number + 1 })?);
        }
        if identities.is_empty() {
            return Err(KeyError::Empty { path: place.to_owned() });
        }
        Ok(Self::Identities(identities))
    }

    /// For sealing what the same key opens.
    pub fn into_recipients(self) -> Recipients {
        match self {
            Self::Identities(identities) => Recipients::Keys(identities.iter().map(Identity::recipient).collect()),
            Self::Passphrase(passphrase) => Recipients::Passphrase(passphrase),
        }
    }
}

impl Identity {
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        random(bytes.as_mut())?;
        Ok(Self::of(&bytes))
    }

    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// What an identity file says, the public key in a comment.
    pub fn in_words(&self) -> Zeroizing<String> {
        with_wiped_stack(|| {
            let secret = bech32::encode_upper::<Bech32>(IDENTITY, self.secret.expose());
            // A code of 32 bytes is within every limit of the format.
            let secret = Zeroizing::new(secret.unwrap_or_default());
            Zeroizing::new(format!("# public key: {}\n{}\n", self.recipient, secret.as_str()))
        })
    }

    pub(super) fn scalar(&self) -> Zeroizing<[u8; 32]> {
        let mut scalar = Zeroizing::new([0; 32]);
        scalar.copy_from_slice(self.secret.expose());
        scalar
    }

    fn of(bytes: &[u8; 32]) -> Self {
        let recipient = with_wiped_stack(|| Recipient(MontgomeryPoint::mul_base_clamped(*bytes).to_bytes()));
        Self { secret: Secret::copy_from(bytes), recipient }
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(decoded(text, IDENTITY)?);
        (!text.bytes().any(|byte| byte.is_ascii_lowercase())).then(|| Self::of(&bytes))
    }
}

impl FromStr for Recipient {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        decoded(text, RECIPIENT).map(Self).ok_or_else(|| {
            match text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                true => SealError::BadRecipient(
                    "that was given, which is a secret key and is not repeated here,".to_owned(),
                ),
                false => SealError::BadRecipient(text.to_owned()),
            }
        })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bech32::encode_lower_to_fmt::<Bech32, _>(f, RECIPIENT, &self.0).map_err(|_| fmt::Error)
    }
}

fn decoded(text: &str, prefix: Hrp) -> Option<[u8; 32]> {
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32>(text).ok()?;
    let bytes: Zeroizing<Vec<u8>> = Zeroizing::new(checked.byte_iter().collect());
    (checked.hrp() == prefix).then(|| bytes.as_slice().try_into().ok()).flatten()
}

fn identities_in(path: &Path) -> Result<Key, KeyError> {
    Key::of_text(&private_text(path)?, path)
}

/// The first line, without its end.
fn passphrase_in(path: &Path) -> Result<Key, KeyError> {
    let text = private_text(path)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(KeyError::Empty { path: path.to_owned() });
    }
    Ok(Key::Passphrase(Secret::copy_from(line.as_bytes())))
}

/// A mounted Kubernetes Secret belongs to root and is read by the group of the pod, so the group may read.
fn private_text(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let failed = |error| KeyError::Unreadable { path: path.to_owned(), error };
    // Non-blocking, so that a FIFO in the file's place does not hold the thread.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() || facts.len() > LARGEST {
        return Err(KeyError::NoFile { path: path.to_owned() });
    }
    let mode = facts.mode() & 0o7777;
    if mode & 0o037 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(facts.len() as usize + 1));
    file.take(LARGEST).read_to_end(&mut bytes).map_err(failed)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::NoIdentity { path: path.to_owned(), line: 1 })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key {path} cannot be read: {error}")]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("the key {path} is not a regular file of at most {LARGEST} bytes")]
    NoFile { path: PathBuf },
    #[error(
        "the key {path} has mode {mode:04o}: others than its owner and its group can read it, or the group can write it"
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("{path}:{line}: not an identity of age (AGE-SECRET-KEY-1...)")]
    NoIdentity { path: PathBuf, line: usize },
    #[error("there is no key in {path}")]
    Empty { path: PathBuf },
    #[error(
        "the credential {name} cannot be had: CREDENTIALS_DIRECTORY is not set (LoadCredential= of systemd sets it)"
    )]
    NoCredentials { name: String },
}

const RECIPIENT: Hrp = Hrp::parse_unchecked("age");
const IDENTITY: Hrp = Hrp::parse_unchecked("age-secret-key-");
const LARGEST: u64 = 64 * 1024;
