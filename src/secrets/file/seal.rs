//! What opens a sealed file: its key is read when the file has changed, and not kept.
//!
//! What is kept is the file key of the file that was opened last, in locked memory, so that a passphrase costs its second once for each
//! new file and not once for each item. Invariant: one file is being unlocked at a time.

use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::sealed::key::KeyError;
use crate::sealed::{FileKey, KeySource, Locked, SealError, is_sealed};

pub(super) struct Seal {
    key: Option<KeySource>,
    last: Mutex<Option<FileKey>>,
}

impl Seal {
    pub fn new(key: Option<KeySource>) -> Self {
        Self { key, last: Mutex::default() }
    }

    pub fn is_expected(&self) -> bool {
        self.key.is_some()
    }

    /// The text of a file that was read.
    pub fn open(&self, contents: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let key = match (&self.key, is_sealed(&contents)) {
            (None, false) => return Ok(contents),
            (None, true) => return Err(Problem::NoKey),
            (Some(_), false) => return Err(Problem::Plain),
            (Some(key), true) => key,
        };
        let locked = Locked::parse(&contents)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !last.as_ref().is_some_and(|file_key| locked.is_opened_by(file_key)) {
            *last = Some(locked.unlock(&key.read()?)?);
        }
        match last.as_ref() {
            Some(file_key) => Ok(locked.open(file_key)?),
            // It was set above.
            None => Err(Problem::NoKey),
        }
    }
}

/// Why a file is not opened; shown after its name.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("it is sealed, and the provider has no `sealed_with`")]
    NoKey,
    #[error("it is not sealed, though the provider has `sealed_with`; seal it with `mcpeg seal`")]
    Plain,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::sealed::{Identity, Recipients, seal};

    use super::*;

    fn key_file(identity: &Identity) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(identity.in_words().as_bytes()).unwrap();
        file
    }

    fn contents(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(bytes.to_vec())
    }

    #[test]
    fn a_sealed_file_opens_and_its_key_is_asked_for_once() {
        let identity = Identity::generate().unwrap();
        let file = key_file(&identity);
        let opener = Seal::new(Some(KeySource::IdentityFile(file.path().to_owned())));
        let sealed = |plain: &[u8]| seal(plain, &Recipients::Keys(vec![identity.recipient()])).unwrap();
        let first = sealed(b"a: one");
        assert_eq!(**opener.open(contents(&first)).unwrap(), *b"a: one");
        drop(file);
        assert_eq!(**opener.open(contents(&first)).unwrap(), *b"a: one", "by the file key of before");
        let refused = opener.open(contents(&sealed(b"a: two"))).unwrap_err();
        assert!(matches!(refused, Problem::Key(KeyError::Unreadable { .. })), "{refused}");
    }

    #[test]
    fn plain_where_sealed_is_expected_is_refused_and_the_other_way_round() {
        let identity = Identity::generate().unwrap();
        let file = key_file(&identity);
        let opener = Seal::new(Some(KeySource::IdentityFile(file.path().to_owned())));
        assert!(matches!(opener.open(contents(b"a: one")), Err(Problem::Plain)));
        let sealed = seal(b"a: one", &Recipients::Keys(vec![identity.recipient()])).unwrap();
        assert!(matches!(Seal::new(None).open(contents(&sealed)), Err(Problem::NoKey)));
        assert_eq!(**Seal::new(None).open(contents(b"a: one")).unwrap(), *b"a: one");
    }
}
