//! Whether one of the allowed keys has signed a commit, by SSH signatures: `SSHSIG`, as OpenSSH's `PROTOCOL.sshsig` describes it, in the
//! namespace `git`. Keys are ed25519, ECDSA on P-256 and RSA (with SHA-2); those of a security key, and OpenPGP and X.509 signatures are not known here
//! and count as none.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};

use super::SourceError;

/// Public keys, in the form of the wire.
pub struct Signers(Vec<Vec<u8>>);

impl Signers {
    /// Reads lines of `authorized_keys` or of `allowed_signers`: whatever stands before the key's type is passed over.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let failed = |reason: &str| SourceError::File { path: path.to_owned(), reason: reason.to_owned() };
        let text = std::fs::read_to_string(path).map_err(|error| failed(&super::super::yaml::plain_io(&error)))?;
        let keys: Vec<Vec<u8>> = text.lines().filter_map(key_of_line).collect();
        if keys.is_empty() {
            return Err(failed("no line of it has a public SSH key"));
        }
        Ok(Self(keys))
    }

    /// The reason why not, in words.
    pub fn verify(&self, armored: &[u8], message: &[u8]) -> Result<(), String> {
        let blob = unarmored(armored).ok_or("its signature is none of SSH's")?;
        let signature = Signature::parse(&blob).ok_or("its signature cannot be read")?;
        if signature.namespace != b"git" {
            return Err("its signature is for something else than Git".to_owned());
        }
        if !self.0.iter().any(|key| key == signature.key) {
            return Err("it is signed with a key that `allowed_signers` does not have".to_owned());
        }
        let hash = match signature.hash {
            b"sha256" => &digest::SHA256,
            b"sha512" => &digest::SHA512,
            _ => return Err("its signature is over a hash that is not known".to_owned()),
        };
        let mut signed = MAGIC.to_vec();
        for part in [signature.namespace, b"", signature.hash, digest::digest(hash, message).as_ref()] {
            put(&mut signed, part);
        }
        match verify_raw(signature.key, signature.signature, &signed) {
            Some(true) => Ok(()),
            Some(false) => Err("its signature is wrong".to_owned()),
            None => Err("it is signed with a kind of key that is not known here".to_owned()),
        }
    }
}

struct Signature<'b> {
    key: &'b [u8],
    namespace: &'b [u8],
    hash: &'b [u8],
    signature: &'b [u8],
}

impl<'b> Signature<'b> {
    fn parse(blob: &'b [u8]) -> Option<Self> {
        let rest = blob.strip_prefix(MAGIC)?;
        let mut rest = rest.strip_prefix(&1_u32.to_be_bytes())?;
        let key = take(&mut rest)?;
        let namespace = take(&mut rest)?;
        take(&mut rest)?;
        let hash = take(&mut rest)?;
        let signature = take(&mut rest)?;
        rest.is_empty().then_some(Self { key, namespace, hash, signature })
    }
}

/// `None`: the kind is not known, or the key is none.
fn verify_raw(mut key: &[u8], mut signature: &[u8], signed: &[u8]) -> Option<bool> {
    let kind = take(&mut key)?;
    let algorithm = take(&mut signature)?;
    let raw = take(&mut signature)?;
    match kind {
        b"ssh-ed25519" if algorithm == kind => {
            let point = take(&mut key)?;
            Some(UnparsedPublicKey::new(&signature::ED25519, point).verify(signed, raw).is_ok())
        }
        b"ecdsa-sha2-nistp256" if algorithm == kind => {
            take(&mut key)?;
            let point = take(&mut key)?;
            let mut parts = raw;
            let (r, s) = (fixed(take(&mut parts)?)?, fixed(take(&mut parts)?)?);
            let raw = [r, s].concat();
            Some(UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(signed, &raw).is_ok())
        }
        b"ssh-rsa" => {
            let e = unsigned(take(&mut key)?);
            let n = unsigned(take(&mut key)?);
            let rule = match algorithm {
                b"rsa-sha2-512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                b"rsa-sha2-256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                _ => return None,
            };
            Some(RsaPublicKeyComponents { n, e }.verify(rule, signed, raw).is_ok())
        }
        _ => None,
    }
}

fn key_of_line(line: &str) -> Option<Vec<u8>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let mut words = line.split_whitespace();
    let kind = words.find(|word| KINDS.contains(word))?;
    let blob = STANDARD.decode(words.next()?).ok()?;
    let mut rest = blob.as_slice();
    (take(&mut rest)? == kind.as_bytes()).then_some(blob)
}

fn unarmored(armored: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(armored).ok()?.trim();
    let inside = text.strip_prefix("-----BEGIN SSH SIGNATURE-----")?.strip_suffix("-----END SSH SIGNATURE-----")?;
    STANDARD.decode(inside.split_whitespace().collect::<String>()).ok()
}

/// A length of four bytes, and so many after it.
fn take<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (part, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(part)
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    // Parts are hashes and short words.
    bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(part);
}

/// A number of the wire without the zero that keeps it positive.
fn unsigned(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// The same in 32 bytes.
fn fixed(number: &[u8]) -> Option<Vec<u8>> {
    let number = unsigned(number);
    let missing = 32_usize.checked_sub(number.len())?;
    Some([vec![0; missing].as_slice(), number].concat())
}

const MAGIC: &[u8] = b"SSHSIG";
const KINDS: [&str; 3] = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"];
