//! The locks on a file key: `X25519`, for a key, and `scrypt`, for a passphrase.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use curve25519_dalek::montgomery::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::header::Lock;
use super::key::{Identity, Key, Recipient};
use super::{FILE_KEY_BYTES, FileKey, MOST_WORK, SealError, derive, random};

pub(super) fn for_key(file_key: &FileKey, recipient: &Recipient) -> Result<Lock, SealError> {
    let mut ephemeral = Zeroizing::new([0; 32]);
    random(ephemeral.as_mut())?;
    let share = MontgomeryPoint::mul_base_clamped(*ephemeral).to_bytes();
    let shared = Zeroizing::new(MontgomeryPoint(recipient.0).mul_clamped(*ephemeral).to_bytes());
    // A point of small order: everybody would know what comes out.
    if *shared == [0; 32] {
        return Err(SealError::BadRecipient(recipient.to_string()));
    }
    let key = derive(shared.as_ref(), &[share, recipient.0].concat(), X25519_LABEL)?;
    Ok(Lock::new(X25519, vec![STANDARD_NO_PAD.encode(share)], wrap(&key, file_key)?))
}

pub(super) fn for_passphrase(file_key: &FileKey, passphrase: &Secret, work: u8) -> Result<Lock, SealError> {
    let mut salt = [0; SALT_BYTES];
    random(&mut salt)?;
    let key = stretched(passphrase, &salt, work)?;
    Ok(Lock::new(SCRYPT, vec![STANDARD_NO_PAD.encode(salt), work.to_string()], wrap(&key, file_key)?))
}

/// Tries what `key` can open.
pub(super) fn open_any(locks: &[Lock], key: &Key) -> Result<FileKey, SealError> {
    let by_passphrase = locks.iter().find(|lock| lock.kind == SCRYPT);
    match (by_passphrase, key) {
        (Some(lock), Key::Passphrase(passphrase)) if locks.len() == 1 => open_with_passphrase(lock, passphrase),
        // Somebody could have added a lock of his own to a file that is trusted for its passphrase.
        (Some(_), _) if locks.len() > 1 => Err(SealError::Damaged("a passphrase is not its only lock")),
        (Some(_), Key::Identities(_)) => Err(SealError::NeedsPassphrase),
        (_, Key::Passphrase(_)) => Err(SealError::NeedsKey),
        (None, Key::Identities(identities)) => open_with_key(locks, identities),
    }
}

fn open_with_key(locks: &[Lock], identities: &[Identity]) -> Result<FileKey, SealError> {
    for lock in locks.iter().filter(|lock| lock.kind == X25519) {
        let [share] = lock.arguments.as_slice() else { return Err(MALFORMED) };
        let share: [u8; 32] = bytes_in(share)?;
        for identity in identities {
            let secret = identity.scalar();
            let shared = Zeroizing::new(MontgomeryPoint(share).mul_clamped(*secret).to_bytes());
            if *shared == [0; 32] {
                return Err(MALFORMED);
            }
            let key = derive(shared.as_ref(), &[share, identity.recipient().0].concat(), X25519_LABEL)?;
            if let Some(file_key) = unwrap(&key, &lock.body)? {
                return Ok(file_key);
            }
        }
    }
    Err(SealError::WrongKey)
}

fn open_with_passphrase(lock: &Lock, passphrase: &Secret) -> Result<FileKey, SealError> {
    let [salt, work] = lock.arguments.as_slice() else { return Err(MALFORMED) };
    let salt: [u8; SALT_BYTES] = bytes_in(salt)?;
    let is_number = !work.starts_with('0') && work.bytes().all(|byte| byte.is_ascii_digit());
    let work: u8 = work.parse().ok().filter(|work| is_number && (1..64).contains(work)).ok_or(MALFORMED)?;
    if work > MOST_WORK {
        return Err(SealError::TooMuchWork { given: work });
    }
    let key = stretched(passphrase, &salt, work)?;
    unwrap(&key, &lock.body)?.ok_or(SealError::WrongPassphrase)
}

fn stretched(passphrase: &Secret, salt: &[u8], work: u8) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut key = Zeroizing::new([0; 32]);
    let parameters = scrypt::Params::new(work, 8, 1).map_err(|_| SealError::Cipher)?;
    let salt = [SCRYPT_LABEL, salt].concat();
    scrypt::scrypt(passphrase.expose(), &salt, &parameters, key.as_mut()).map_err(|_| SealError::Cipher)?;
    Ok(key)
}

/// The key is used once, so that the nonce may be zero.
fn wrap(key: &[u8; 32], file_key: &FileKey) -> Result<Vec<u8>, SealError> {
    let mut body = file_key.0.expose().to_vec();
    cipher(key)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body)
        .map_err(|_| SealError::Cipher)?;
    Ok(body)
}

/// `None`: it is locked for another key. The length is checked first, so that one body cannot be made to fit several keys.
fn unwrap(key: &[u8; 32], body: &[u8]) -> Result<Option<FileKey>, SealError> {
    if body.len() != FILE_KEY_BYTES + CHACHA20_POLY1305.tag_len() {
        return Err(MALFORMED);
    }
    let mut body = Zeroizing::new(body.to_vec());
    let opened = cipher(key)?.open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body);
    Ok(opened.ok().map(|file_key| FileKey(Secret::copy_from(file_key))))
}

pub(super) fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&CHACHA20_POLY1305, key).map(LessSafeKey::new).map_err(|_| SealError::Cipher)
}

fn bytes_in<const N: usize>(text: &str) -> Result<[u8; N], SealError> {
    STANDARD_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(MALFORMED)
}

const MALFORMED: SealError = SealError::Damaged("a lock of its header is not one");
const X25519: &str = "X25519";
const X25519_LABEL: &[u8] = b"age-encryption.org/v1/X25519";
const SCRYPT: &str = "scrypt";
const SCRYPT_LABEL: &[u8] = b"age-encryption.org/v1/scrypt";
const SALT_BYTES: usize = 16;
