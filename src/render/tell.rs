//! What is still to be told of the last change, when, and what follows when that fails for good.
//!
//! Invariants: a hook that worked is not repeated for the same change; tries are bounded; a change that comes while one waits to be told
//! waits with it, and is told once.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::file;
use super::generation::Place;
use super::hook::HookKind;
use super::settings::OnChange;
use super::template::Reads;
use super::unit::Unit;

/// Hooks that are due, or will be.
pub(super) struct Pending {
    pub due: Instant,
    pub kinds: Vec<HookKind>,
    /// Tries that failed.
    pub tries: u32,
    /// What the change was rendered from, where that is known.
    pub reads: Option<Reads>,
    /// The generation that readers have, and the one that everybody was last told of with success.
    pub generation: Option<(u64, Option<u64>)>,
}

impl Pending {
    /// After a change. `before` is what was still to be told when it came.
    pub fn after(
        on_change: &OnChange,
        reads: Option<Reads>,
        generation: Option<(u64, Option<u64>)>,
        before: Option<&Self>,
    ) -> Self {
        // The first of several changes has set the time.
        let settling = before.filter(|before| before.tries == 0).map(|before| before.due);
        let known = before.and_then(|before| before.generation).and_then(|(_, good)| good);
        Self {
            due: settling.unwrap_or_else(|| Instant::now() + on_change.settle),
            kinds: HookKind::of(on_change),
            tries: 0,
            reads,
            generation: generation.map(|(number, good)| (number, known.or(good))),
        }
    }

    /// After a try that left `kinds`. `None`: it is not tried again.
    pub fn again(self, on_change: &OnChange, kinds: Vec<HookKind>) -> Option<Self> {
        let tries = self.tries + 1;
        let wait = FIRST.saturating_mul(1 << self.tries.min(8)).min(CAP);
        (tries <= on_change.retries).then(|| Self { due: Instant::now() + wait, kinds, tries, ..self })
    }
}

/// Of what is on disk somebody was not told, by a process that was killed or before a reload.
pub(super) struct Untold {
    /// The one that readers have, and the one to go back to.
    pub generation: Option<(u64, Option<u64>)>,
}

impl Untold {
    /// `None`: everybody knows. What is half done is tidied away.
    pub fn find(unit: &Unit) -> Option<Self> {
        let group = match unit {
            Unit::File(settings) => return file::is_untold(&settings.file).then_some(Self { generation: None }),
            Unit::Group(group, _) => group,
        };
        let place = Place::of(group);
        if let Err(error) = place.sweep() {
            warn!(destination = unit.label(), %error, "leftovers stay");
        }
        let generation = place.current().ok().flatten().zip(place.untold())?;
        Some(Self { generation: Some(generation) })
    }
}

/// How long a generation that was gone back from waits to be tried again when nothing changes; `times` counts from 1.
pub(super) fn after_rollback(times: u32) -> Duration {
    ROLLED_BACK_FIRST.saturating_mul(1 << times.saturating_sub(1).min(8)).min(ROLLED_BACK_CAP)
}

const FIRST: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_secs(30);
const ROLLED_BACK_FIRST: Duration = Duration::from_secs(30);
const ROLLED_BACK_CAP: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::settings::{CommandHook, SystemdHook};

    fn on_change(settle: u64, retries: u32) -> OnChange {
        let timeout = Duration::from_secs(1);
        let command = CommandHook { argv: vec!["true".into()], env: Default::default(), timeout };
        let systemd = SystemdHook { unit: "app".into(), action: "reload", timeout };
        let settle = Duration::from_millis(settle);
        OnChange { command: Some(command), systemd: Some(systemd), settle, retries, ..OnChange::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_come_together_are_told_once_at_the_time_of_the_first() {
        let hooks = on_change(250, 1);
        let started = Instant::now();
        let first = Pending::after(&hooks, None, Some((7, Some(6))), None);
        tokio::time::advance(Duration::from_millis(200)).await;
        let second = Pending::after(&hooks, None, Some((8, Some(7))), Some(&first));
        assert_eq!(second.due, started + Duration::from_millis(250));
        assert_eq!(second.generation, Some((8, Some(6))), "nobody was told of 7");
    }

    #[tokio::test(start_paused = true)]
    async fn what_worked_is_not_repeated_and_tries_are_bounded() {
        let hooks = on_change(0, 2);
        let pending = Pending::after(&hooks, None, None, None);
        assert_eq!(pending.kinds, [HookKind::Command, HookKind::Systemd]);
        let pending = pending.again(&hooks, vec![HookKind::Systemd]).unwrap();
        assert_eq!((pending.kinds.len(), pending.due), (1, Instant::now() + Duration::from_millis(500)));
        let pending = pending.again(&hooks, vec![HookKind::Systemd]).unwrap();
        assert_eq!(pending.due, Instant::now() + Duration::from_secs(1));
        assert!(pending.again(&hooks, vec![HookKind::Systemd]).is_none());
        assert_eq!(after_rollback(1), Duration::from_secs(30));
        assert_eq!(after_rollback(40), Duration::from_secs(600));
    }
}
