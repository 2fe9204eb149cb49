//! What is written is read back, nothing of it is in plain text, and what does not fit is refused. tests/cache.rs has the whole of it.

use std::collections::BTreeMap;
use std::fs;

use crate::sealed::{Identity, KeySource};
use crate::secret::SecretVersion;

use super::super::source::LeaseId;
use super::*;

fn settings(folder: &Path) -> CacheSettings {
    let key = folder.join("key");
    if !key.exists() {
        sealed::file::create(&key, Identity::generate().unwrap().in_words().as_bytes()).unwrap();
    }
    CacheSettings { path: folder.join("data/leases.age"), sealed_with: KeySource::IdentityFile(key) }
}

fn token(login: u64) -> KeptToken {
    KeptToken {
        binding: "server".to_owned(),
        token: Arc::new(Secret::copy_from(b"token-of-the-test")),
        ttl: Some(Duration::from_secs(3600)),
        renewable: true,
        ends: Some(SystemTime::now() + Duration::from_secs(1800)),
        login,
    }
}

fn item(login: u64) -> KeptItem {
    let fields = BTreeMap::from([("password".to_owned(), Secret::copy_from(b"value\xff-of-the-test"))]);
    let values = SecretVersion { version: 7, provider_version: None, fields, fetched_at: SystemTime::now() };
    let (id, ttl) = (LeaseId::new("lease/of/the/test".to_owned()), Duration::from_secs(60));
    KeptItem {
        binding: "path".to_owned(),
        provider: "corp".to_owned(),
        values: Arc::new(values),
        lease: Lease::Held { id, ttl, renewable: true, login },
        ends: SystemTime::now() + ttl,
    }
}

#[test]
fn a_document_is_read_back_with_its_logins_in_order() {
    let mut document = Document::default();
    document.tokens.insert("corp".to_owned(), token(5));
    document.items.insert("ours".to_owned(), item(5));
    document.items.insert("older".to_owned(), item(4));
    let read = document::read(&document::write(&document)).unwrap();
    assert!(read.tokens["corp"].is(&Secret::copy_from(b"token-of-the-test")));
    assert_eq!(read.items["ours"].values.fields["password"].expose(), b"value\xff-of-the-test");
    let login = |name: &str| match &read.items[name].lease {
        Lease::Held { login, .. } => *login,
        _ => panic!("it was held"),
    };
    assert_eq!((login("ours"), login("older")), (OURS, 0));
    assert!(document::read(b"{\"format\":2,\"tokens\":{},\"items\":{}}").is_err());
    let quoted = document::read(b"{\"format\":1,\"tokens\":\"token-of-the-test\"}").err().unwrap();
    assert!(!quoted.contains("token-of"), "{quoted}");
}

#[tokio::test]
async fn a_token_is_given_once_and_only_to_its_own_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, ours) = (settings(folder.path()), BTreeSet::from(["server".to_owned()]));
    let cache = Cache::open(&settings, &ours);
    assert!(cache.take_token("corp", "server").is_none() && cache.is_settled());
    cache.put_token("corp", token(1));
    assert!(!cache.is_settled());
    cache.save().await;
    assert!(cache.is_settled());
    let sealed = fs::read(&settings.path).unwrap();
    assert!(!sealed.windows(5).any(|window| window == b"token"));

    let second = Cache::open(&settings, &ours);
    assert!(second.condition().unwrap().message.contains("another process uses"));
    drop((cache, second));
    let cache = Cache::open(&settings, &ours);
    assert!(cache.take_token("corp", "server").is_some());
    assert!(cache.take_token("corp", "server").is_none(), "given once");
    drop(cache);
    assert!(Cache::open(&settings, &ours).take_token("corp", "another server").is_none());
    drop(Cache::open(&settings, &BTreeSet::from(["another".to_owned()])));
    assert!(!settings.path.exists() && folder.path().join("data/leases.age.unusable").exists());
}

#[tokio::test]
async fn without_its_key_a_cache_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, ours) = (settings(folder.path()), BTreeSet::from(["server".to_owned()]));
    let cache = Cache::open(&settings, &ours);
    cache.put_token("corp", token(1));
    cache.save().await;
    drop(cache);
    fs::remove_file(folder.path().join("key")).unwrap();
    let cache = Cache::open(&settings, &ours);
    assert_eq!(cache.condition().unwrap().state, ConditionState::Degraded);
    assert!(settings.path.exists());
}
