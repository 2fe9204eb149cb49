//! Keeps one item fresh: fetch, compare, put on record, publish, wait.
//!
//! `rotate` is one task per item and never ends; `fetch_once` is its step, and all there is to `render --once`. `term` decides what
//! is done about a lease. Invariants: a value is published only after its audit event was accepted; a failure never takes the last
//! good value away; a lease that was made is either current or on its way to be revoked (`leases`).

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::context::Context;
use super::resume::{Resumed, resume};
use super::schedule::{BACKOFF_CAP, ask_again_in, backoff_in, chance, item_backoff_in, replace_in, rotated_in};
use super::settings::ItemSettings;
use super::source::{FailureKind, FetchError, Fetched, Known, Lease, LeaseId, Sign};
use super::store::{Change, Failure, Item, Retry};
use super::term::{Step, Term};

/// Why an item is fetched; `as_str` is `mcpeg.secret.reason` of the event about its new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The provider has another version, or it was time to look.
    Changed,
    /// A lease or a certificate nears its end.
    Ending,
    /// The lease is not at the provider any more.
    LeaseLost,
    /// The login under which the lease was made ends.
    Login,
    /// The provider has replaced the values by itself.
    ServerRotation,
    /// An earlier process had them, and they still hold.
    Resumed,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Ending => "ending",
            Self::LeaseLost => "lease_lost",
            Self::Login => "login",
            Self::ServerRotation => "server_rotation",
            Self::Resumed => "resumed",
        }
    }
}

/// What a fetch leaves for the rotator to go by.
pub(super) struct Got {
    lease: Option<Lease>,
    provider_version: Option<String>,
    at: Instant,
    /// Of a lease of an earlier process.
    resumed: Option<Resumed>,
}

pub(super) async fn rotate(item: &Item, context: &Context) {
    let stirred = item.provider.subscribe_stirred();
    let mut rotation = Rotation { item, context, stirred, failures: 0 };
    let mut held = None;
    let mut reason = Reason::Resumed;
    let demand = &item.slot.demand;
    loop {
        rotation.stirred.mark_unchanged();
        let asked = demand.begin();
        let outcome = match reason {
            Reason::Resumed => first_fetch(item, context).await,
            reason => fetch_once(item, context, reason).await,
        };
        demand.settle(asked, outcome.as_ref().err().cloned());
        let due = async {
            match outcome {
                Ok(got) => {
                    rotation.failures = 0;
                    demand.plan(Some(Instant::now() + got.expected_wait(&item.settings)));
                    rotation.until_due(got, &mut held).await
                }
                Err(error) => rotation.after_failure(error, reason, &mut held).await,
            }
        };
        reason = tokio::select! {
            due = due => due,
            () = demand.came(asked) => Reason::Changed,
        };
    }
}

impl Got {
    /// About when the next look is due, for people.
    fn expected_wait(&self, settings: &ItemSettings) -> Duration {
        match &self.lease {
            None => settings.refresh,
            Some(Lease::Held { ttl, .. }) => *ttl * 2 / 3,
            Some(Lease::Ends(left)) => replace_in(*left, settings.overlap, 0.0),
            Some(Lease::Rotates(left)) => *left,
        }
    }
}

struct Rotation<'a> {
    item: &'a Item,
    context: &'a Context,
    stirred: watch::Receiver<u64>,
    failures: u32,
}

/// The lease of the current values.
struct Held {
    id: LeaseId,
    login: u64,
    term: Term,
    /// To be renewed at once: only the clock says that it is there.
    overdue: bool,
}

impl Rotation<'_> {
    /// Waits until what was fetched has to be fetched again.
    async fn until_due(&mut self, got: Got, held: &mut Option<Held>) -> Reason {
        let overlap = self.item.settings.overlap;
        *held = None;
        match got.lease {
            None => self.watch(got).await,
            Some(Lease::Held { id, ttl, renewable, login }) => {
                let term = Term::new(got.at, ttl, renewable, overlap);
                let (term, overdue) = match got.resumed {
                    None => (term, false),
                    Some(resumed) => (term.resumed(resumed.left), !resumed.confirmed),
                };
                self.hold(held.insert(Held { id, login, term, overdue })).await
            }
            Some(Lease::Ends(left)) => self.sleep_or_stirred(replace_in(left, overlap, chance()), Reason::Ending).await,
            Some(Lease::Rotates(left)) => {
                self.sleep_or_stirred(rotated_in(left, chance()), Reason::ServerRotation).await
            }
        }
    }

    async fn sleep_or_stirred(&mut self, wait: Duration, reason: Reason) -> Reason {
        tokio::select! {
            () = sleep(wait) => reason,
            // The provider owns the sender and outlives the item, so this cannot fail.
            _ = self.stirred.changed() => Reason::Changed,
        }
    }

    /// Looks whether the version has moved, until it has.
    async fn watch(&mut self, got: Got) -> Reason {
        let (mut since, mut mark) = (got.at, None::<String>);
        let (source, path) = (&self.item.provider.source, self.item.settings.path.as_str());
        loop {
            let version = got.provider_version.as_deref();
            let known = Known { version, mark: mark.as_deref(), since, every: self.item.settings.refresh };
            let sign = tokio::select! {
                sign = source.watch(path, known) => sign,
                _ = self.stirred.changed() => return Reason::Changed,
            };
            match sign {
                Ok(Sign::Read) => return Reason::Changed,
                Ok(Sign::Same(seen)) => {
                    mark = seen;
                    since = Instant::now();
                    self.failures = 0;
                    self.item.provider.note(Ok(()));
                    self.item.slot.confirm(self.item.owner);
                    self.recovered();
                }
                Err(error) => {
                    self.item.provider.note(Err(&error));
                    // A look that failed, which many share, is not met again.
                    since = Instant::now();
                    self.pause_after(error).await;
                    // The server that comes back may be a new one, which counts its versions from the start.
                    if mark.is_none() {
                        return Reason::Changed;
                    }
                }
            }
        }
    }

    /// A fetch has failed. Where the values hold, because their lease does, somebody asked for others out of turn, and is told; what
    /// is held is prolonged as before.
    async fn after_failure(&mut self, error: FetchError, reason: Reason, held: &mut Option<Held>) -> Reason {
        if reason == Reason::Changed
            && let Some(held) = held.as_mut().filter(|held| !held.term.is_over())
        {
            self.context.failed(self.item, &error);
            return self.hold(held).await;
        }
        *held = None;
        self.pause_after(error).await;
        if reason == Reason::Resumed { Reason::Changed } else { reason }
    }

    /// Prolongs a lease until it has to be replaced.
    async fn hold(&mut self, held: &mut Held) -> Reason {
        let source = &self.item.provider.source;
        loop {
            let (at, step) = held.term.next(chance());
            let at = if held.overdue { Instant::now() } else { at };
            tokio::select! {
                () = sleep_until(at) => {}
                ends = source.superseded(held.login) => {
                    // Not all items of the provider at once, and well before the old login takes the lease with it.
                    let left = ends.saturating_duration_since(Instant::now());
                    sleep((left / 2).min(LOGIN_SPREAD).mul_f64(chance())).await;
                    return Reason::Login;
                }
                _ = self.stirred.changed() => return Reason::Changed,
            }
            if step == Step::Replace {
                return Reason::Ending;
            }
            match source.renew(&held.id, held.term.ttl()).await {
                Ok(left) => {
                    held.overdue = false;
                    held.term.renewed(left);
                    self.prolonged(&held.id, left).await;
                }
                Err(error) if matches!(error.kind, FailureKind::Malformed | FailureKind::NotFound) => {
                    return Reason::LeaseLost;
                }
                Err(error) if error.kind == FailureKind::Denied => held.term.cannot_be_renewed(),
                Err(error) => {
                    self.item.provider.note(Err(&error));
                    self.pause_after(error).await;
                    if held.term.is_over() {
                        return Reason::LeaseLost;
                    }
                }
            }
        }
    }

    async fn prolonged(&mut self, id: &LeaseId, left: Duration) {
        self.failures = 0;
        self.context.renewed(self.item, id, left);
        self.context.leases.prolonged(id, left);
        self.context.cache.prolonged(self.item.name(), left);
        self.context.cache.save().await;
        self.item.slot.ends_at(self.item.owner, Some(Instant::now() + left));
        self.recovered();
    }

    fn recovered(&self) {
        if self.item.slot.recover(self.item.owner) {
            self.context.recovered(self.item);
        }
    }

    /// Notes a failure and waits until it is time to try again.
    async fn pause_after(&mut self, error: FetchError) {
        self.failures += 1;
        let (kind, retry) = (error.kind, retry_after(&error, self.failures));
        note_failure(self.item, self.context, error, retry);
        let wait = match retry {
            Retry::At(time) => time.saturating_duration_since(Instant::now()),
            Retry::WhenBack => {
                self.item.slot.demand.plan(None);
                self.item.provider.back().await;
                // Items of one provider do not all ask at once, nor one of them without a pause.
                ask_again_in(chance())
            }
        };
        self.item.slot.demand.plan(Some(Instant::now() + wait));
        // What the provider failed at may have been its own trouble, which is over when it serves another.
        let mut mended = self.item.provider.subscribe_mended();
        let is_failing = kind == FailureKind::ServerError;
        tokio::select! {
            () = sleep(wait) => {}
            _ = self.stirred.changed() => {}
            _ = mended.changed(), if is_failing => sleep(ask_again_in(chance()).min(wait)).await,
        }
    }
}

/// As `fetch_once`, where there is nothing kept of an earlier process that still holds.
pub(super) async fn first_fetch(item: &Item, context: &Context) -> Result<Got, FetchError> {
    let at = Instant::now();
    let Some((fetched, resumed)) = resume(item, context).await? else {
        return fetch_once(item, context, Reason::Changed).await;
    };
    let got = Got { lease: fetched.lease.clone(), provider_version: None, at, resumed: Some(resumed) };
    settle(item, context, fetched, Reason::Resumed, Some(resumed.left)).await?;
    Ok(got)
}

/// Fetches and publishes once. Does not note a failure of the item.
pub(super) async fn fetch_once(item: &Item, context: &Context, reason: Reason) -> Result<Got, FetchError> {
    let at = Instant::now();
    let (source, settings) = (&item.provider.source, &item.settings);
    let outcome = match settings.parameters.is_empty() {
        true => source.fetch(&settings.path).await,
        false => source.issue(&settings.path, &settings.parameters).await,
    };
    let failure = outcome.as_ref().err().map(|error| error.kind);
    context.metrics.fetched(&item.provider.name, failure, at.elapsed());
    item.provider.note(outcome.as_ref().map(drop));
    let fetched = outcome?;
    if matches!(fetched.lease, Some(Lease::Ends(Duration::ZERO))) {
        let message = "what came has ended already: is the clock of this machine right?";
        return Err(FetchError::new(FailureKind::Malformed, message));
    }
    let (lease, provider_version) = (fetched.lease.clone(), fetched.provider_version.clone());
    let got = Got { lease, provider_version, at, resumed: None };
    settle(item, context, fetched, reason, None).await?;
    Ok(got)
}

/// Publishes, keeps what is leased, and tells everybody.
async fn settle(
    item: &Item,
    context: &Context,
    fetched: Fetched,
    reason: Reason,
    left: Option<Duration>,
) -> Result<(), FetchError> {
    let lease = fetched.lease.clone();
    let left = left.or_else(|| lease.as_ref().map(Lease::life));
    if accept(item, context, fetched, reason, left)? {
        context.cache.put_item(item, lease.as_ref(), left);
        context.cache.save().await;
    }
    if item.slot.recover(item.owner) {
        context.recovered(item);
        item.provider.mend();
    }
    context.note_protection();
    context.progress.notify_one();
    Ok(())
}

pub(super) fn note_failure(item: &Item, context: &Context, error: FetchError, retry: Retry) {
    if item.slot.fail(item.owner, Failure { error: error.clone(), retry }) {
        context.failed(item, &error);
    }
}

/// True when it is what the item has now. `left`: what is left of the lease.
fn accept(
    item: &Item,
    context: &Context,
    fetched: Fetched,
    reason: Reason,
    left: Option<Duration>,
) -> Result<bool, FetchError> {
    let (change, version) = item.slot.compare(&fetched);
    let ends = left.map(|left| Instant::now() + left);
    let held = match &fetched.lease {
        Some(Lease::Held { id, ttl, .. }) => Some((id.clone(), left.unwrap_or(*ttl))),
        _ => None,
    };
    if change == Change::Same {
        item.slot.confirm(item.owner);
    } else {
        let recorded = context.new_version(item, change == Change::First, version, &fetched, reason);
        if let Err(refused) = recorded {
            held.into_iter().for_each(|lease| context.leases.unused(item, lease));
            let message = format!("a new version is held back: {refused}");
            return Err(FetchError::new(FailureKind::Unaudited, message));
        }
        if item.slot.is_written_by(item.owner) {
            context.show(item.name(), &fetched.fields);
        }
        if !item.slot.publish(item.owner, fetched) {
            held.into_iter().for_each(|lease| context.leases.unused(item, lease));
            return Ok(false);
        }
    }
    item.slot.ends_at(item.owner, ends);
    let version = item.slot.version_and_age().map_or(version, |(version, _)| version);
    context.leases.published(item, version, held);
    Ok(true)
}

fn retry_after(error: &FetchError, failures: u32) -> Retry {
    let wait = match error.kind {
        kind if kind.is_outage() => return Retry::WhenBack,
        kind if kind.is_items() => item_backoff_in(failures, chance()),
        _ => backoff_in(failures, BACKOFF_CAP, chance()),
    };
    // What the provider asks for, and a little more, so that not everybody is back in the same moment.
    let asked = error.after.unwrap_or_default().mul_f64(1.0 + 0.1 * chance());
    Retry::At(Instant::now() + wait.max(asked))
}

/// The longest time over which the items of a provider are fetched anew after a login.
const LOGIN_SPREAD: Duration = Duration::from_secs(10);
