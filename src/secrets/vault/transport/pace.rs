//! Spares a server that has just come back: the requests that follow an outage take turns, as far apart as the number of processes that
//! share the server demands.
//!
//! A turn is for what has not been asked since the server came back; asking the same again is regular work and costs what `refresh`
//! says. Questions about the server's health take no turn. Invariant: a process that is alone waits for nothing.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::time::{Instant, sleep_until};

use super::super::super::schedule::turn_in;

pub(super) struct Pace {
    agents: u32,
    recovery: Mutex<Option<Recovery>>,
}

struct Recovery {
    since: Instant,
    turns: u32,
    /// What has had its turn.
    asked: BTreeSet<String>,
}

impl Pace {
    pub fn new(agents: u32) -> Self {
        Self { agents, recovery: Mutex::new(None) }
    }

    /// The server was found well after an outage.
    pub fn begin(&self) {
        let fresh = Recovery { since: Instant::now(), turns: 0, asked: BTreeSet::new() };
        *self.recovery.lock().unwrap_or_else(PoisonError::into_inner) = (self.agents > 1).then_some(fresh);
    }

    /// Completes when `what` may be asked; `chance` is as in `schedule`.
    pub async fn turn(&self, what: &str, chance: f64) {
        if let Some(at) = self.next(what, chance) {
            sleep_until(at).await;
        }
    }

    fn next(&self, what: &str, chance: f64) -> Option<Instant> {
        let mut slot = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        let recovery = slot.as_mut()?;
        if recovery.asked.contains(what) {
            return None;
        }
        // Whoever comes later than the turns that were taken takes the turn of that time.
        let now = Instant::now();
        while recovery.since + turn_in(self.agents, recovery.turns, 1.0) <= now && recovery.turns < MOST_TURNS {
            recovery.turns += 1;
        }
        if recovery.turns >= MOST_TURNS {
            *slot = None;
            return None;
        }
        recovery.asked.insert(what.to_owned());
        let at = recovery.since + turn_in(self.agents, recovery.turns, chance);
        recovery.turns += 1;
        Some(at)
    }
}

/// After so many the recovery is over, whoever still waits.
const MOST_TURNS: u32 = 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::task::JoinSet;

    use super::super::super::super::schedule::{ask_again_in, probe_in};
    use super::*;

    /// What a server of a hundred agents meets around its return, each instant counted from the beginning of the outage.
    #[derive(Default)]
    struct Met {
        /// Questions about its health, from the first on: refused, answered with 503, and the one that finds it well.
        probes: Vec<f64>,
        /// From the return to each agent's finding it.
        found: Vec<f64>,
        requests: Vec<f64>,
    }

    /// A small generator with a seed, so that a schedule that breaks a bound can be run again.
    struct Chances(u64);

    impl Chances {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    /// Each agent notices the outage at a time of its own, probes as `Provider` does and asks as the transport does: one look for all its
    /// items, a login, two values that have changed, and the look again at each `REFRESH`. `answers` is how long a probe takes to fail.
    async fn agents_around(heals: f64, answers: f64, seed: u64) -> Met {
        let started = Instant::now();
        let mut agents = JoinSet::new();
        for agent in 0..AGENTS {
            let mut chances = Chances(seed.wrapping_mul(1000).wrapping_add(u64::from(agent)));
            agents.spawn(async move {
                let mut met = Met::default();
                let mut at = chances.next();
                loop {
                    met.probes.push(at);
                    if at >= heals {
                        break;
                    }
                    assert!(answers <= 1.0);
                    at += probe_in(chances.next()).as_secs_f64();
                }
                sleep_until(started + Duration::from_secs_f64(at)).await;
                met.found.push(at - heals);
                let pace = Pace::new(AGENTS);
                pace.begin();
                sleep_until(Instant::now() + ask_again_in(chances.next())).await;
                let end = started + Duration::from_secs_f64(heals + 180.0);
                while Instant::now() < end {
                    for what in ["the login", "list", "changed", "changed too"] {
                        pace.turn(what, chances.next()).await;
                        met.requests.push(started.elapsed().as_secs_f64());
                        if pace.recovery.lock().unwrap().as_ref().is_some_and(|recovery| recovery.asked.len() == 4) {
                            break;
                        }
                    }
                    sleep_until(Instant::now() + Duration::from_secs_f64(REFRESH * (1.0 - 0.1 * chances.next()))).await;
                }
                met
            });
        }
        let mut all = Met::default();
        for met in agents.join_all().await {
            all.probes.extend(met.probes);
            all.found.extend(met.found);
            all.requests.extend(met.requests);
        }
        all
    }

    /// The most in any window of this length, wherever it begins.
    fn most_in(window: f64, mut times: Vec<f64>) -> usize {
        times.sort_by(f64::total_cmp);
        let (mut most, mut first) = (0, 0);
        for (last, at) in times.iter().enumerate() {
            while times[first] <= at - window {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_agents_find_a_healed_server_in_two_seconds_and_ask_at_most_twenty_times_in_any_second() {
        let outages = (1..=600).step_by(3).chain([2, 600]);
        for (seed, heals) in (1_u64..).zip(outages) {
            let met = agents_around(f64::from(heals), 0.8, seed).await;
            assert_eq!(met.found.len(), AGENTS as usize);
            assert!(met.found.iter().all(|after| *after < 1.5), "after {heals} s: {:?}", met.found);
            let requests = most_in(1.0, met.requests.clone());
            assert!(requests <= 20, "{requests} requests in one second after {heals} s");
            assert!(met.requests.len() >= 4 * AGENTS as usize, "each has had its four turns");
            // Counted apart: they need no token, read nothing and are not put on record by the server.
            let probes = most_in(1.0, met.probes);
            assert!(probes <= AGENTS as usize, "{probes} probes in one second after {heals} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_before_and_who_is_alone_does_not_wait() {
        let pace = Pace::new(100);
        assert_eq!(pace.next("list", 0.5), None, "there was no outage");
        pace.begin();
        let first = pace.next("list", 0.0).unwrap() - Instant::now();
        let second = pace.next("a", 0.0).unwrap() - Instant::now();
        assert_eq!((first, second), (Duration::ZERO, Duration::from_secs(25)));
        assert_eq!(pace.next("list", 0.5), None);
        sleep_until(Instant::now() + Duration::from_secs(110)).await;
        let late = pace.next("b", 0.5).unwrap() - Instant::now();
        assert!(late <= Duration::from_secs(25), "{late:?}");
        let alone = Pace::new(1);
        alone.begin();
        assert_eq!(alone.next("list", 0.9), None);
    }

    proptest! {
        #[test]
        fn a_probe_is_never_within_a_second_of_the_last_nor_late(chance in 0.0..1.0_f64) {
            let wait = probe_in(chance);
            prop_assert!(wait >= Duration::from_secs(1) && wait < Duration::from_millis(1400));
        }

        #[test]
        fn turns_are_in_order_and_as_far_apart_as_the_agents_demand(agents in 2_u32..10_000, turn in 0_u32..50, chance in 0.0..1.0_f64) {
            let (this, next) = (turn_in(agents, turn, chance), turn_in(agents, turn + 1, 0.0));
            prop_assert!(this <= next && next.as_secs_f64() <= f64::from(agents) / 4.0 * 52.0);
        }
    }

    const AGENTS: u32 = 100;
    const REFRESH: f64 = 60.0;
}
