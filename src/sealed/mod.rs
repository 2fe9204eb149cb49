//! Sealed bytes: the format of age, version 1 (age-encryption.org/v1, C2SP's `age.md`), so that the tools which people have open what is
//! sealed here, and the other way round. Recipients are X25519 keys (`age1...`) or one passphrase; both forms, binary and armored, are read.
//!
//! `Locked` is a sealed file that was taken apart and is not open yet: `unlock` finds its file key, which `open` needs. `header` is the list
//! of locks before the payload, `lock` makes and opens one, `payload` is the rest, `armor` the form in text, `key` where keys come from,
//! `file` replaces a file by another. Invariants: keys and file keys are in locked memory; what is opened is in a buffer that is wiped; an
//! error holds neither. This is a leaf: it knows nothing of providers.

mod armor;
pub mod file;
mod header;
pub mod key;
mod lock;
mod payload;
#[cfg(test)]
mod tests;

use ring::hkdf;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

use crate::memory::with_wiped_stack;
use crate::secret::Secret;

use header::Header;
pub use key::{Identity, Key, KeySource, Recipient};

/// For whom something is sealed.
pub enum Recipients {
    /// Any one of them opens it. Never empty.
    Keys(Vec<Recipient>),
    Passphrase(Secret),
}

/// A sealed file, taken apart.
pub struct Locked {
    header: Header,
    payload: Vec<u8>,
}

/// What opens the payload of one sealed file.
pub struct FileKey(Secret);

/// Whether these are the first bytes of a sealed file.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(header::FIRST_LINE) || armor::is_armored(bytes)
}

/// Seals for all of `recipients`; the binary form.
pub fn seal(plain: &[u8], recipients: &Recipients) -> Result<Vec<u8>, SealError> {
    with_wiped_stack(|| {
        let file_key = FileKey::generate()?;
        let locks = match recipients {
            Recipients::Keys(keys) => {
                keys.iter().map(|recipient| lock::for_key(&file_key, recipient)).collect::<Result<Vec<_>, _>>()?
            }
            Recipients::Passphrase(passphrase) => vec![lock::for_passphrase(&file_key, passphrase, WORK_FACTOR)?],
        };
        let mut sealed = Header::write(&locks, &file_key)?;
        payload::seal(plain, &file_key, &mut sealed)?;
        Ok(sealed)
    })
}

/// The form in text, as age writes it with `--armor`.
pub fn armor(sealed: &[u8]) -> String {
    armor::encode(sealed)
}

/// Opens what was sealed for `key`.
pub fn open(sealed: &[u8], key: &Key) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let locked = Locked::parse(sealed)?;
    locked.open(&locked.unlock(key)?)
}

impl Locked {
    /// Takes either form apart.
    pub fn parse(sealed: &[u8]) -> Result<Self, SealError> {
        let binary = if armor::is_armored(sealed) { armor::decode(sealed)? } else { sealed.to_vec() };
        let (header, length) = Header::parse(&binary)?;
        Ok(Self { header, payload: binary[length..].to_vec() })
    }

    /// Finds the file key. With a passphrase this takes about a second and up to 1 KiB times its work factor of memory.
    pub fn unlock(&self, key: &Key) -> Result<FileKey, SealError> {
        let file_key = with_wiped_stack(|| lock::open_any(&self.header.locks, key))?;
        if self.is_opened_by(&file_key) { Ok(file_key) } else { Err(SealError::Damaged("its header was changed")) }
    }

    /// Whether this file key, of an earlier look perhaps, is the one of this file.
    pub fn is_opened_by(&self, file_key: &FileKey) -> bool {
        file_key.mac_key().is_ok_and(|key| hmac::verify(&key, &self.header.covered, &self.header.mac).is_ok())
    }

    pub fn open(&self, file_key: &FileKey) -> Result<Zeroizing<Vec<u8>>, SealError> {
        with_wiped_stack(|| payload::open(&self.payload, file_key))
    }
}

impl FileKey {
    fn generate() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; FILE_KEY_BYTES]);
        random(bytes.as_mut())?;
        Ok(Self(Secret::copy_from(bytes.as_ref())))
    }

    fn mac_key(&self) -> Result<hmac::Key, SealError> {
        let key = derive(self.0.expose(), &[], b"header")?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }
}

/// Why something is not sealed or not opened. No variant holds a key or what was sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("it is not a sealed file (age)")]
    NotSealed,
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it is sealed for other keys than this one")]
    WrongKey,
    #[error("the passphrase is another one")]
    WrongPassphrase,
    #[error("it is sealed with a passphrase, not for a key")]
    NeedsPassphrase,
    #[error("it is sealed for keys, not with a passphrase")]
    NeedsKey,
    #[error("its passphrase takes 2^{given} steps to check; at most 2^{MOST_WORK} are taken")]
    TooMuchWork { given: u8 },
    #[error("the recipient {0} is not one that something can be sealed for")]
    BadRecipient(String),
    #[error("the system gave no random numbers")]
    NoRandom,
    #[error("the cipher refused its input")]
    Cipher,
}

/// HKDF with SHA-256, as every key of the format is made.
fn derive(secret: &[u8], salt: &[u8], label: &[u8]) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut key = Zeroizing::new([0; 32]);
    let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let label = [label];
    let expanded = pseudorandom.expand(&label, hkdf::HKDF_SHA256).map_err(|_| SealError::Cipher)?;
    expanded.fill(key.as_mut()).map_err(|_| SealError::Cipher)?;
    Ok(key)
}

fn random(bytes: &mut [u8]) -> Result<(), SealError> {
    SystemRandom::new().fill(bytes).map_err(|_| {
        bytes.zeroize();
        SealError::NoRandom
    })
}

const FILE_KEY_BYTES: usize = 16;
/// Of a passphrase, as a power of two: what age takes by default. 256 MiB for about a second.
const WORK_FACTOR: u8 = 18;
const MOST_WORK: u8 = 20;
