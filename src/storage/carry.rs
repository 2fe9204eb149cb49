//! Carries records from one store to another, and checks that they have come: what `migrate`, `backup` and `restore` are made of.
//!
//! State and points are carried; cached answers are not. The source is only read. A migration keeps how far it is in the target, under
//! `migration/SPACE`, and goes on from there when it was broken off; at the end every record is compared, and the mark removed.

use bytes::Bytes;

use super::records::{Record, Records, Space, StoreFailure};
use super::snapshot;

/// How many records were carried, or were there already from an attempt before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    pub records: u64,
    /// Of these by this attempt.
    pub now: u64,
}

/// All that is worth to be carried, as one run of bytes.
pub async fn dump(source: &dyn Records) -> Result<(Vec<u8>, u64), StoreFailure> {
    let mut all = Vec::new();
    for space in Space::KEPT {
        // One question, so that it is of one moment.
        let found = source.list(space, "", None, usize::MAX >> 1).await?;
        all.extend(found.into_iter().filter(|record| !is_mark(record)).map(|record| (space, record)));
    }
    let records = all.iter().map(|(space, record)| (*space, record.key.as_str(), &record.value, record.until));
    Ok((snapshot::encode(records), all.len() as u64))
}

/// Makes the target hold exactly these records. What is new comes first and what is old goes last, so that a kill between leaves too much, not too
/// little, and doing it again puts it right.
pub async fn restore(target: &dyn Records, records: Vec<(Space, Record)>) -> Result<u64, StoreFailure> {
    let count = records.len() as u64;
    for space in Space::KEPT {
        let of_it: Vec<Record> =
            records.iter().filter(|(of, _)| *of == space).map(|(_, record)| record.clone()).collect();
        let mut wanted: Vec<&str> = of_it.iter().map(|record| record.key.as_str()).collect();
        wanted.sort_unstable();
        let present = target.list(space, "", None, usize::MAX >> 1).await?;
        let old =
            present.into_iter().map(|record| record.key).filter(|key| wanted.binary_search(&key.as_str()).is_err());
        let old: Vec<String> = old.collect();
        for page in of_it.chunks(PAGE) {
            target.set(space, page.to_vec()).await?;
        }
        for page in old.chunks(PAGE) {
            target.delete(space, page.to_vec()).await?;
        }
    }
    target.flush().await?;
    for (space, record) in &records {
        if target.get(*space, &record.key).await?.as_ref() != Some(&record.value) && record.until.is_none() {
            return Err(StoreFailure(format!("{}/{} is not what was restored", space.as_str(), record.key)));
        }
    }
    Ok(count)
}

/// `told` hears how many of a space have been carried, now and then.
pub async fn migrate(
    source: &dyn Records,
    target: &dyn Records,
    mut told: impl FnMut(Space, u64),
) -> Result<Carried, StoreFailure> {
    let mut carried = Carried::default();
    for space in Space::KEPT {
        let mark = format!("{MARK}{}", space.as_str());
        let mut after = target.get(Space::State, &mark).await?.map(|key| String::from_utf8_lossy(&key).into_owned());
        loop {
            let page = source.list(space, "", after.as_deref(), PAGE).await?;
            let Some(last) = page.last().map(|record| record.key.clone()) else { break };
            let page: Vec<Record> = page.into_iter().filter(|record| !is_mark(record)).collect();
            carried.now += page.len() as u64;
            target.set(space, page).await?;
            target.flush().await?;
            target.set(Space::State, vec![Record::new(mark.clone(), Bytes::from(last.clone()))]).await?;
            after = Some(last);
            told(space, carried.now);
        }
        carried.records += verify(source, target, space).await?;
    }
    let marks = Space::KEPT.iter().map(|space| format!("{MARK}{}", space.as_str()));
    target.delete(Space::State, marks.collect()).await?;
    target.flush().await?;
    Ok(carried)
}

/// Every record of the source is in the target, with the same bytes.
async fn verify(source: &dyn Records, target: &dyn Records, space: Space) -> Result<u64, StoreFailure> {
    let (mut after, mut count) = (None::<String>, 0);
    loop {
        let page = source.list(space, "", after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(count) };
        after = Some(last.key.clone());
        for record in page.iter().filter(|record| !is_mark(record)) {
            let came = target.get(space, &record.key).await?;
            if came.as_ref() != Some(&record.value) {
                let how = if came.is_some() { "is another" } else { "is missing" };
                let what = format!("{}/{} {how} in the target", space.as_str(), record.key);
                return Err(StoreFailure(format!("{what}: was one of the stores changed meanwhile? do it again")));
            }
            count += 1;
        }
    }
}

fn is_mark(record: &Record) -> bool {
    record.key.starts_with(MARK)
}

const MARK: &str = "migration/";
const PAGE: usize = 200;

#[cfg(test)]
mod tests {
    use super::super::kinds::memory::MemoryRecords;
    use super::super::kinds::sqlite::{SqliteRecords, Sync};
    use super::*;

    async fn filled() -> MemoryRecords {
        let source = MemoryRecords::default();
        let many = (0..950).map(|n| Record::new(format!("{n:016}/x"), vec![n as u8; 10])).collect();
        source.set(Space::Metrics, many).await.unwrap();
        source.set(Space::State, vec![Record::new("breaker/a", "1")]).await.unwrap();
        source.set(Space::Cache, vec![Record::new("answer", "1")]).await.unwrap();
        source
    }

    #[tokio::test]
    async fn a_migration_that_was_broken_off_goes_on_and_counts_what_came() {
        let folder = tempfile::tempdir().unwrap();
        let (source, path) = (filled().await, folder.path().join("db"));
        {
            let (target, _) = SqliteRecords::open(&path, Sync::Full).unwrap();
            // As if it had been killed after two pages.
            let page = source.list(Space::Metrics, "", None, 2 * PAGE).await.unwrap();
            let last = page.last().unwrap().key.clone();
            target.set(Space::Metrics, page).await.unwrap();
            target.set(Space::State, vec![Record::new("migration/metrics", Bytes::from(last))]).await.unwrap();
        }
        let (target, _) = SqliteRecords::open(&path, Sync::Full).unwrap();
        let done = migrate(&source, &target, |_, _| {}).await.unwrap();
        assert_eq!(done, Carried { records: 951, now: 551 });
        let all = target.list(Space::State, "", None, 9).await.unwrap();
        assert_eq!(all.len(), 1, "no mark is left, and no answer came");
        assert_eq!(source.list(Space::Metrics, "", None, 9999).await.unwrap().len(), 950, "the source is as it was");
        target.set(Space::State, vec![Record::new("breaker/a", "2")]).await.unwrap();
        let failed = verify(&source, &target, Space::State).await.unwrap_err();
        assert!(failed.0.contains("state/breaker/a is another"), "{failed}");
    }

    #[tokio::test]
    async fn what_was_dumped_is_restored_exactly() {
        let source = filled().await;
        let (dumped, count) = dump(&source).await.unwrap();
        assert_eq!(count, 951);
        let target = MemoryRecords::default();
        target.set(Space::State, vec![Record::new("breaker/a", "9"), Record::new("breaker/old", "9")]).await.unwrap();
        assert_eq!(restore(&target, snapshot::decode(&dumped).unwrap()).await, Ok(951));
        let state = target.list(Space::State, "", None, 9).await.unwrap();
        assert_eq!(state, [Record::new("breaker/a", "1")]);
        assert_eq!(dump(&target).await.unwrap().0, dumped);
    }
}
