//! Refresh on demand, and what is known of each item: `ports::SecretControl` for the admin socket.
//!
//! `Demand` stands between who asks and the item's rotator, which alone fetches. Invariants: whoever asks gets the outcome of a fetch
//! that began after the question; an item is not fetched out of turn more than once in `SHORTEST_PAUSE`, however many ask; while the
//! provider is out nobody waits for it, since its probes go on anyway.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::ports::{ConditionState, RefreshError, Refreshed, SecretControl, SecretSummary};

use super::handle::SecretsHandle;
use super::provider::Health;
use super::source::FetchError;
use super::status::item_condition;
use super::store::Item;

/// One item's questions for a fetch out of turn, and their answers.
pub(super) struct Demand {
    asked: watch::Sender<Asked>,
    settled: watch::Sender<Settled>,
}

#[derive(Default)]
struct Asked {
    number: u64,
    at: Option<Instant>,
}

#[derive(Default)]
struct Settled {
    /// Questions up to this one are answered by `outcome`.
    number: u64,
    failure: Option<FetchError>,
    /// When the rotator asks next; `None` while it waits for the provider.
    next: Option<Instant>,
}

impl Demand {
    pub fn new() -> Self {
        Self { asked: watch::Sender::default(), settled: watch::Sender::default() }
    }

    /// For the rotator, before a fetch: the questions that this fetch answers.
    pub fn begin(&self) -> u64 {
        self.asked.borrow().number
    }

    /// For the rotator, after the fetch.
    pub fn settle(&self, number: u64, failure: Option<FetchError>) {
        self.settled.send_modify(|settled| {
            settled.number = number;
            settled.failure = failure;
        });
    }

    /// For the rotator: when it asks again, or that it does not know.
    pub fn plan(&self, next: Option<Instant>) {
        self.settled.send_modify(|settled| settled.next = next);
    }

    /// For the rotator: completes when somebody has asked since `number`.
    pub async fn came(&self, number: u64) {
        // The sender is in `self`, so waiting cannot fail.
        let _ = self.asked.subscribe().wait_for(|asked| asked.number > number).await;
    }

    pub fn next(&self) -> Option<Instant> {
        self.settled.borrow().next
    }

    /// Asks, or joins the question that is under way, and waits for the outcome.
    async fn ask(&self) -> Result<Result<(), FetchError>, RefreshError> {
        let mut settled = self.settled.subscribe();
        let number = self.enter(settled.borrow().number)?;
        let answered = timeout(OUTCOME_WITHIN, settled.wait_for(|settled| settled.number >= number)).await;
        match answered {
            // The sender is in `self`, so waiting cannot fail.
            Ok(Ok(settled)) => Ok(settled.failure.clone().map_or(Ok(()), Err)),
            _ => Err(RefreshError::Late { seconds: OUTCOME_WITHIN.as_secs() }),
        }
    }

    /// The number of the question to wait for.
    fn enter(&self, answered: u64) -> Result<u64, RefreshError> {
        let mut number = Ok(0);
        self.asked.send_if_modified(|asked| {
            let now = Instant::now();
            let recent = asked.at.is_some_and(|at| now.duration_since(at) < SHORTEST_PAUSE);
            if recent && asked.number <= answered {
                number = Err(RefreshError::TooSoon);
                return false;
            }
            if recent {
                number = Ok(asked.number);
                return false;
            }
            *asked = Asked { number: asked.number + 1, at: Some(now) };
            number = Ok(asked.number);
            true
        });
        number
    }
}

impl SecretControl for SecretsHandle {
    fn list(&self) -> Vec<SecretSummary> {
        self.roster().items.values().map(|item| summary(item)).collect()
    }

    fn refresh<'a>(
        &'a self,
        item: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Refreshed, RefreshError>> + Send + 'a>> {
        Box::pin(async move {
            let unknown = || RefreshError::Unknown { item: item.to_owned() };
            let asked = self.roster().items.get(item).cloned().ok_or_else(unknown)?;
            if let Health::Out(error) = asked.provider.health() {
                return Err(RefreshError::Failed { item: item.to_owned(), reason: error.message });
            }
            let before = asked.snapshot().version;
            asked
                .slot
                .demand
                .ask()
                .await?
                .map_err(|error| RefreshError::Failed { item: item.to_owned(), reason: error.message })?;
            let after = asked.snapshot();
            let version = after.version.ok_or_else(unknown)?;
            Ok(Refreshed {
                item: item.to_owned(),
                version,
                provider_version: after.provider_version,
                changed: before != Some(version),
            })
        })
    }
}

fn summary(item: &Item) -> SecretSummary {
    let (snapshot, condition) = (item.snapshot(), item_condition(item));
    let until = |at: Instant| at.saturating_duration_since(Instant::now()).as_secs_f64();
    SecretSummary {
        item: item.name().to_owned(),
        provider: item.provider.name.clone(),
        state: condition.state,
        version: snapshot.version,
        provider_version: snapshot.provider_version,
        age_seconds: snapshot.age.map(|age| age.as_secs_f64()),
        next_seconds: item.slot.demand.next().map(until),
        message: if condition.state == ConditionState::Ok { String::new() } else { condition.message },
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Longer than any provider takes for one fetch by default, shorter than a client of the admin socket waits.
const OUTCOME_WITHIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::super::source::FailureKind;
    use super::*;

    type Asking = JoinSet<Result<Result<(), FetchError>, RefreshError>>;

    fn ask(demand: &Arc<Demand>, asking: &mut Asking) {
        let demand = demand.clone();
        asking.spawn(async move { demand.ask().await });
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_gets_the_outcome_of_a_fetch_that_began_later() {
        let (demand, mut asking) = (Arc::new(Demand::new()), JoinSet::new());
        let before = demand.begin();
        ask(&demand, &mut asking);
        demand.came(before).await;
        demand.settle(before, None);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(asking.try_join_next().is_none(), "that fetch had begun before");
        let number = demand.begin();
        demand.settle(number, Some(FetchError::new(FailureKind::Denied, "no")));
        let outcome = asking.join_next().await.unwrap().unwrap();
        assert_eq!(outcome.unwrap().unwrap_err().message, "no");
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_make_one_fetch_and_nobody_waits_for_good() {
        let (demand, mut asking) = (Arc::new(Demand::new()), JoinSet::new());
        for _ in 0..50 {
            ask(&demand, &mut asking);
        }
        demand.came(0).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(demand.begin(), 1);
        demand.settle(1, None);
        for outcome in asking.join_all().await {
            assert_eq!(outcome, Ok(Ok(())));
        }
        assert_eq!(demand.ask().await, Err(RefreshError::TooSoon));
        tokio::time::sleep(SHORTEST_PAUSE).await;
        assert_eq!(demand.ask().await, Err(RefreshError::Late { seconds: 30 }), "no rotator answers");
    }
}
