//! The payload: a nonce of 16 bytes, then chunks of 64 KiB (the last may be shorter, and is empty only when it is the only one), each under
//! ChaCha20-Poly1305 with a nonce that counts chunks in its first eleven bytes and marks the last chunk in its twelfth.

use ring::aead::{Aad, CHACHA20_POLY1305, Nonce};
use zeroize::Zeroizing;

use super::lock::cipher;
use super::{FileKey, SealError, derive, random};

/// Appends the payload of `plain` to `sealed`.
pub(super) fn seal(plain: &[u8], file_key: &FileKey, sealed: &mut Vec<u8>) -> Result<(), SealError> {
    let mut nonce = [0; NONCE_BYTES];
    random(&mut nonce)?;
    sealed.extend_from_slice(&nonce);
    let cipher = cipher(&*derive(file_key.0.expose(), &nonce, LABEL)?)?;
    let count = plain.len().div_ceil(CHUNK).max(1);
    for number in 0..count {
        let chunk = &plain[number * CHUNK..plain.len().min((number + 1) * CHUNK)];
        let mut buffer = Zeroizing::new(Vec::with_capacity(chunk.len() + CHACHA20_POLY1305.tag_len()));
        buffer.extend_from_slice(chunk);
        cipher
            .seal_in_place_append_tag(nonce_of(number, number + 1 == count), Aad::empty(), &mut *buffer)
            .map_err(|_| SealError::Cipher)?;
        sealed.extend_from_slice(&buffer);
    }
    Ok(())
}

pub(super) fn open(payload: &[u8], file_key: &FileKey) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, chunks) = payload.split_first_chunk::<NONCE_BYTES>().ok_or(CUT_SHORT)?;
    let cipher = cipher(&*derive(file_key.0.expose(), nonce, LABEL)?)?;
    let full = CHUNK + CHACHA20_POLY1305.tag_len();
    let count = chunks.len().div_ceil(full);
    let mut plain = Zeroizing::new(Vec::with_capacity(chunks.len()));
    for (number, chunk) in chunks.chunks(full).enumerate() {
        let is_last = number + 1 == count;
        let mut buffer = Zeroizing::new(chunk.to_vec());
        let opened = cipher
            .open_in_place(nonce_of(number, is_last), Aad::empty(), &mut buffer)
            .map_err(|_| SealError::Damaged("its contents were changed or cut short"))?;
        if opened.is_empty() && number > 0 {
            return Err(SealError::Damaged("its last chunk is empty"));
        }
        plain.extend_from_slice(opened);
    }
    if count == 0 { Err(CUT_SHORT) } else { Ok(plain) }
}

fn nonce_of(number: usize, is_last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[3..11].copy_from_slice(&(number as u64).to_be_bytes());
    nonce[11] = u8::from(is_last);
    Nonce::assume_unique_for_key(nonce)
}

const LABEL: &[u8] = b"payload";
const NONCE_BYTES: usize = 16;
const CHUNK: usize = 64 * 1024;
const CUT_SHORT: SealError = SealError::Damaged("it is cut short");
