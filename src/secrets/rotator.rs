//! Keeps one item fresh: fetch, compare, put on record, publish, wait.
//!
//! `rotate` is one task per item and never ends; `fetch_once` is its step, and all there is to `render --once`. Invariants: a value
//! is published only after its audit event was accepted; a failure never takes the last good value away.

use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use super::schedule::{BACKOFF_CAP, SHORT_BACKOFF_CAP, backoff_in, chance, refresh_in, renew_in};
use super::source::{FailureKind, FetchError, Fetched};
use super::store::{Change, Failure, Item, Retry};

pub(super) async fn rotate(item: &Item, context: &Context) {
    let mut stirred = item.provider.subscribe_stirred();
    let mut failures = 0;
    loop {
        stirred.mark_unchanged();
        let asked = item.slot.demand.begin();
        let outcome = fetch_once(item, context).await;
        item.slot.demand.settle(asked, outcome.as_ref().err().cloned());
        let wait = match outcome {
            Ok(lease) => {
                failures = 0;
                lease.map_or_else(|| refresh_in(item.settings.refresh, chance()), |lease| renew_in(lease, chance()))
            }
            Err(error) => {
                failures += 1;
                let retry = retry_after(&error, failures);
                note_failure(item, context, error, retry);
                match retry {
                    Retry::At(time) => time.saturating_duration_since(Instant::now()),
                    Retry::WhenBack => {
                        item.slot.demand.plan(None);
                        item.provider.back().await;
                        // Items of one provider do not all ask at once, nor one of them without a pause.
                        backoff_in(failures, SHORT_BACKOFF_CAP, chance())
                    }
                }
            }
        };
        item.slot.demand.plan(Some(Instant::now() + wait));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = item.slot.demand.came(asked) => {}
            // The provider owns the sender and outlives the item, so this cannot fail.
            _ = stirred.changed() => {}
        }
    }
}

/// Fetches and publishes once. Gives the lease of the values, if they end by themselves. Does not note a failure of the item.
pub(super) async fn fetch_once(item: &Item, context: &Context) -> Result<Option<Duration>, FetchError> {
    let started = Instant::now();
    let outcome = item.provider.source.fetch(&item.settings.path).await;
    let failure = outcome.as_ref().err().map(|error| error.kind);
    context.metrics.fetched(&item.provider.name, failure, started.elapsed());
    item.provider.note(&outcome);
    let fetched = outcome?;
    let lease = fetched.lease;
    accept(item, context, fetched)?;
    if item.slot.recover(item.owner) {
        context.recovered(item);
    }
    context.progress.notify_one();
    Ok(lease)
}

pub(super) fn note_failure(item: &Item, context: &Context, error: FetchError, retry: Retry) {
    if item.slot.fail(item.owner, Failure { error: error.clone(), retry }) {
        context.failed(item, &error);
    }
}

fn accept(item: &Item, context: &Context, fetched: Fetched) -> Result<(), FetchError> {
    let (change, version) = item.slot.compare(&fetched);
    if change == Change::Same {
        item.slot.confirm(item.owner);
        return Ok(());
    }
    context
        .new_version(item, change == Change::First, version, fetched.provider_version.as_deref())
        .map_err(|refused| FetchError::new(FailureKind::Unaudited, format!("a new version is held back: {refused}")))?;
    item.slot.publish(item.owner, fetched);
    Ok(())
}

fn retry_after(error: &FetchError, failures: u32) -> Retry {
    let cap = match error.kind {
        kind if kind.is_outage() => return Retry::WhenBack,
        FailureKind::Standby => SHORT_BACKOFF_CAP,
        _ => BACKOFF_CAP,
    };
    Retry::At(Instant::now() + backoff_in(failures, cap, chance()))
}
