//! `StateStore` over records: small facts that outlive the process, under keys such as `breaker/github`.

use std::sync::Arc;

use bytes::Bytes;

use super::records::{Record, Records, Space, StoreFailure};
use crate::ports::{MAX_STATE_KEY, MAX_STATE_VALUE, StateStore, StoreError, StoreFuture};

pub struct State {
    pub records: Arc<dyn Records>,
    pub shared: bool,
}

impl StateStore for State {
    fn get(&self, key: &str) -> StoreFuture<Option<Bytes>> {
        let (records, key) = (self.records.clone(), key.to_owned());
        Box::pin(async move { records.get(Space::State, &key).await.map_err(told) })
    }

    fn set(&self, key: &str, value: Bytes) -> StoreFuture<()> {
        let (records, key) = (self.records.clone(), key.to_owned());
        Box::pin(async move {
            check(&key, &value)?;
            records.set(Space::State, vec![Record::new(key, value)]).await.map_err(told)
        })
    }

    fn compare_and_set(&self, key: &str, expected: Option<Bytes>, value: Bytes) -> StoreFuture<bool> {
        let (records, key) = (self.records.clone(), key.to_owned());
        Box::pin(async move {
            check(&key, &value)?;
            records.swap(Space::State, &key, expected, value).await.map_err(told)
        })
    }

    fn delete(&self, key: &str) -> StoreFuture<()> {
        let (records, key) = (self.records.clone(), key.to_owned());
        Box::pin(async move { records.delete(Space::State, vec![key]).await.map_err(told) })
    }

    fn persist(&self) -> StoreFuture<()> {
        let records = self.records.clone();
        Box::pin(async move { records.flush().await.map_err(told) })
    }

    fn is_shared(&self) -> bool {
        self.shared
    }
}

fn check(key: &str, value: &Bytes) -> Result<(), StoreError> {
    if key.len() > MAX_STATE_KEY || value.len() > MAX_STATE_VALUE {
        return Err(StoreError {
            reason: format!("a key of {} or a value of {} bytes is too long", key.len(), value.len()),
        });
    }
    Ok(())
}

pub fn told(failure: StoreFailure) -> StoreError {
    StoreError { reason: failure.0 }
}
