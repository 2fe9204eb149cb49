//! The handle, and the kinds that need no server. Those that do are in `tests/storage.rs`, with the same suite.

use std::fs;

use super::cache::seal::tests::Nothing;
use super::records::{Record, Space};
use super::*;

fn settings(max_bytes: u64) -> StorageSettings {
    StorageSettings { cache: CacheSettings { max_bytes, ..CacheSettings::default() }, ..StorageSettings::default() }
}

fn built(settings: StorageSettings) -> Result<StorageHandle, StorageError> {
    let outside = Outside {
        secrets: Arc::new(Nothing),
        control: Arc::new(Nothing),
        metrics: Arc::new(Nothing),
        name: "test".to_owned(),
    };
    build(settings, outside, &opentelemetry::global::meter("test")).map(|(handle, _)| handle)
}

#[tokio::test]
async fn a_reload_keeps_what_is_cached_unless_the_cache_is_another_one() {
    let storage = built(settings(1 << 20)).unwrap();
    storage.set("s/1", Bytes::from_static(b"x"), Duration::from_secs(60)).await;
    storage.stage(settings(1 << 20)).unwrap().commit();
    assert_eq!(storage.get("s/1").await.as_deref(), Some(&b"x"[..]));
    storage.stage(settings(2 << 20)).unwrap().commit();
    assert_eq!(storage.get("s/1").await, None);
    drop(storage.stage(settings(3 << 20)).unwrap());
    assert_eq!(storage.detail()["cache"]["max_bytes"], 2 << 20);
    let other = RuntimeSettings { snapshot_interval: Duration::from_secs(1), ..RuntimeSettings::default() };
    assert!(storage.stage(StorageSettings { runtime: other, ..settings(2 << 20) }).is_err());
}

#[tokio::test]
async fn a_snapshot_is_whole_and_a_broken_one_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/state");
    let (records, trouble) = MemoryRecords::open(&path).unwrap();
    assert_eq!(trouble, None);
    records.set(Space::State, vec![Record::new("a", "1"), Record::new("b", "2")]).await.unwrap();
    records.set(Space::Cache, vec![Record::new("c", "answer")]).await.unwrap();
    records.flush().await.unwrap();
    let written = fs::read(&path).unwrap();
    records.flush().await.unwrap();
    assert!(!written.windows(6).any(|window| window == b"answer"));
    let (again, _) = MemoryRecords::open(&path).unwrap();
    assert_eq!(again.list(Space::State, "", None, 9).await.unwrap().len(), 2);
    fs::write(&path, &written[..written.len() - 1]).unwrap();
    let (empty, trouble) = MemoryRecords::open(&path).unwrap();
    assert!(trouble.unwrap().contains("could not be used"));
    assert!(empty.list(Space::State, "", None, 9).await.unwrap().is_empty());
    assert_eq!(fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "it is beside");
    fs::create_dir(&path).unwrap();
    assert!(empty.set(Space::State, vec![Record::new("a", "1")]).await.is_ok());
    assert!(empty.flush().await.is_err(), "a folder is in its way");
}

#[tokio::test]
async fn a_damaged_database_is_set_aside_and_a_later_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    {
        let (records, _) = SqliteRecords::open(&path, Sync::Full).unwrap();
        let many = (0..2000).map(|n| Record::new(format!("k/{n}"), vec![7; 100])).collect();
        records.set(Space::State, many).await.unwrap();
        records.flush().await.unwrap();
    }
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let (records, trouble) = SqliteRecords::open(&path, Sync::Full).unwrap();
    assert!(trouble.unwrap().contains("is now"));
    assert_eq!(records.get(Space::State, "k/1").await.unwrap(), None);
    records.probe().await.unwrap();
    drop(records);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = SqliteRecords::open(&path, Sync::Full).err().unwrap();
    assert!(refused.0.contains("later version"), "{refused}");
}

#[tokio::test]
async fn without_its_key_nothing_is_cached_and_status_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let key = crate::secret::SecretText::new(vec![crate::secret::Part::Reference(
        crate::secret::SecretRef::parse("cache.key").unwrap(),
    )]);
    let kind = CacheKind::Sqlite { path: folder.path().join("cache.db"), key };
    let cache = CacheSettings { kind, ..CacheSettings::default() };
    let storage = built(StorageSettings { cache, ..StorageSettings::default() }).unwrap();
    storage.set("s/1", Bytes::from_static(b"x"), Duration::from_secs(60)).await;
    assert_eq!((storage.get("s/1").await, storage.digest(b"x")), (None, None));
    let condition = &storage.conditions()[1];
    assert_eq!((condition.component.as_str(), condition.state), ("storage/cache", ConditionState::Degraded));
    assert!(condition.message.contains("storage.cache.key"), "{}", condition.message);
}

#[tokio::test]
async fn a_command_may_have_two_stores_of_one_folder_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let secrets: Arc<dyn SecretReader> = Arc::new(Nothing);
    let sqlite = RuntimeKind::Sqlite { path: folder.path().join("data/mcpeg.db") };
    let memory = RuntimeKind::Memory { file: Some(folder.path().join("data/mcpeg.snapshot")) };
    let source = open_alone(&sqlite, "one", &secrets, None).unwrap();
    assert!(open_alone(&memory, "other", &secrets, None).err().unwrap().0.contains("is in use by mcpeg \"one\""));
    source.records.set(Space::State, vec![Record::new("a", "1")]).await.unwrap();
    {
        let target = open_alone(&memory, "one", &secrets, Some(&source)).unwrap();
        let done = carry::migrate(&*source.records, &*target.records, |_, _| {}).await.unwrap();
        assert_eq!(done, carry::Carried { records: 1, now: 1 });
    }
    assert!(open_alone(&RuntimeKind::Memory { file: None }, "one", &secrets, None).is_err());
    let runtime = RuntimeSettings { kind: sqlite, ..RuntimeSettings::default() };
    let settings = StorageSettings { runtime, ..StorageSettings::default() };
    assert!(built(settings.clone()).err().unwrap().to_string().contains("is in use by"));
    drop(source);
    assert!(built(settings).is_ok());
}
