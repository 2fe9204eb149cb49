//! Turns: of one target only one hook runs at a time, whichever file or group it follows, and across a reload.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

#[derive(Default)]
pub(in super::super) struct Targets(Mutex<HashMap<String, Weak<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

impl Targets {
    /// Waits for those that came before. Who has the turn is bounded in time by its own hook.
    pub async fn turn(&self, target: String) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(&target).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(Turn::default());
                    turns.insert(target, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_target_has_one_turn_and_another_does_not_wait() {
        let targets = Targets::default();
        let first = targets.turn("a".into()).await;
        let _other = targets.turn("b".into()).await;
        assert!(timeout(Duration::from_secs(60), targets.turn("a".into())).await.is_err());
        drop(first);
        drop(targets.turn("a".into()).await);
        drop(targets.turn("c".into()).await);
        assert_eq!(targets.0.lock().unwrap().len(), 2, "`b`, which is held, and `c`: what nobody holds is forgotten");
    }
}
