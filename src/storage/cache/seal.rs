//! What makes cached answers unreadable where they lie: ChaCha20-Poly1305 with a key that is derived from a configured secret.
//!
//! A sealed value is `1 | nonce (12 bytes, random) | ciphertext and tag`, bound to the name it lies under. The secret is read at each use and no
//! key outlives that. Another derived key makes digests, which say the same to everybody who has the secret and nothing to anybody else.

use std::sync::Arc;

use bytes::Bytes;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::ports::SecretReader;
use crate::secret::SecretText;

pub struct Seal {
    text: SecretText,
    secrets: Arc<dyn SecretReader>,
}

impl Seal {
    pub fn new(text: SecretText, secrets: Arc<dyn SecretReader>) -> Self {
        Self { text, secrets }
    }

    /// The reason holds nothing secret.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Bytes, String> {
        let key = self.value_key()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| "the system gave no random numbers")?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + plain.len() + CHACHA20_POLY1305.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(name.as_bytes()), &mut sealed[1 + NONCE_LEN..])
            .map_err(|_| "the cipher refused its input")?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed.into())
    }

    /// `Ok(None)`: it was not sealed under this name with this key.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Option<Bytes>, String> {
        let key = self.value_key()?;
        let Some((&VERSION, rest)) = sealed.split_first() else { return Ok(None) };
        let Some((nonce, rest)) = rest.split_first_chunk::<NONCE_LEN>() else { return Ok(None) };
        let mut opened = rest.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let Ok(plain) = key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut opened) else { return Ok(None) };
        let length = plain.len();
        opened.truncate(length);
        Ok(Some(opened.into()))
    }

    pub fn digest(&self, bytes: &[u8]) -> Result<[u8; 32], String> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.derived(b"mcpeg cache names")?);
        let mut digest = [0; 32];
        digest.copy_from_slice(hmac::sign(&key, bytes).as_ref());
        Ok(digest)
    }

    fn value_key(&self) -> Result<LessSafeKey, String> {
        let derived = self.derived(b"mcpeg cache values")?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*derived).map_err(|_| "the cipher refused its key")?;
        Ok(LessSafeKey::new(key))
    }

    fn derived(&self, purpose: &[u8]) -> Result<Zeroizing<[u8; 32]>, String> {
        let secret = self.text.resolve(|reference| self.secrets.current(&reference.item));
        let secret = secret.map_err(|error| format!("storage.cache.key: {error}"))?;
        if secret.len() < SHORTEST {
            return Err(format!("storage.cache.key: the secret has fewer than {SHORTEST} bytes"));
        }
        let purpose = [purpose];
        let mut key = Zeroizing::new([0; 32]);
        Salt::new(HKDF_SHA256, b"mcpeg cache 1")
            .extract(secret.expose())
            .expand(&purpose, HKDF_SHA256)
            .and_then(|okm| okm.fill(key.as_mut()))
            .map_err(|_| "no key could be derived")?;
        Ok(key)
    }
}

const VERSION: u8 = 1;
/// 128 bits, if they are random.
const SHORTEST: usize = 16;

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::ports::SecretUnavailable;
    use crate::secret::SecretVersion;

    /// There are no secrets; literals need none.
    pub struct Nothing;

    impl SecretReader for Nothing {
        fn current(&self, item: &str) -> Result<Arc<SecretVersion>, SecretUnavailable> {
            Err(SecretUnavailable::Unknown { item: item.to_owned() })
        }

        fn subscribe(&self, _: &str) -> Option<tokio::sync::watch::Receiver<u64>> {
            None
        }
    }

    impl crate::ports::SecretControl for Nothing {
        fn list(&self) -> Vec<crate::ports::SecretSummary> {
            Vec::new()
        }

        fn refresh<'a>(
            &'a self,
            item: &'a str,
        ) -> std::pin::Pin<
            Box<dyn Future<Output = Result<crate::ports::Refreshed, crate::ports::RefreshError>> + Send + 'a>,
        > {
            Box::pin(std::future::ready(Err(crate::ports::RefreshError::Unknown { item: item.to_owned() })))
        }
    }

    impl crate::ports::MetricsSource for Nothing {
        fn points(&self) -> Vec<crate::ports::MetricPoint> {
            Vec::new()
        }
    }

    pub fn seal(key: &str) -> Seal {
        Seal::new(SecretText::literal(key), Arc::new(Nothing))
    }

    #[test]
    fn a_value_opens_under_its_name_with_its_key_and_not_otherwise() {
        let one = seal("a key of more than sixteen bytes");
        let sealed = one.seal("s/1", b"the answer").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"answer"));
        assert_ne!(sealed, one.seal("s/1", b"the answer").unwrap(), "nonces differ");
        assert_eq!(one.open("s/1", &sealed).unwrap().as_deref(), Some(&b"the answer"[..]));
        assert_eq!(one.open("s/2", &sealed), Ok(None));
        let other = seal("another key of sixteen bytes, too");
        assert_eq!(other.open("s/1", &sealed), Ok(None));
        assert_ne!(one.digest(b"x").unwrap(), other.digest(b"x").unwrap());
        assert_eq!(one.digest(b"x").unwrap(), seal("a key of more than sixteen bytes").digest(b"x").unwrap());
        for at in 0..sealed.len() {
            let mut touched = sealed.to_vec();
            touched[at] ^= 1;
            assert_eq!(one.open("s/1", &touched), Ok(None), "{at}");
            assert_eq!(one.open("s/1", &sealed[..at]), Ok(None), "{at}");
        }
        assert!(seal("short").seal("s/1", b"x").unwrap_err().contains("fewer than 16 bytes"));
    }
}
