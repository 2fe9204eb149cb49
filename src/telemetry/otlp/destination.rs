//! One collector: how to speak to it, how that is going, and what is counted of it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::ports::Condition;
use crate::telemetry::tallies::{Signal, Tallies, Tally};

use super::health::Health;
use super::plan::{Plan, SignalPlans};
use super::spans::SpanQueue;
use super::wire::Link;

pub struct Destination {
    pub name: String,
    pub health: Health,
    pub tally: Arc<Tally>,
    pub spans: SpanQueue,
    plans: watch::Sender<SignalPlans>,
}

impl Destination {
    pub fn new(name: String, plans: SignalPlans, tallies: &Tallies) -> Self {
        let tally = tallies.of(&name);
        let spans = SpanQueue::new(tally.clone());
        Self { health: Health::new(&name), tally, spans, plans: watch::Sender::new(plans), name }
    }

    /// How log records go there.
    pub fn plan(&self) -> Arc<Plan> {
        self.plans.borrow().of(Signal::Logs).clone()
    }

    pub fn change(&self, plans: SignalPlans) {
        self.plans.send_replace(plans);
    }

    /// A way to it that follows its plan.
    pub fn link(&self, signal: Signal) -> Link {
        Link::new(self.plans.subscribe(), signal)
    }

    pub fn condition(&self, waiting: u64, dropped: u64) -> Condition {
        let component = if self.name == MAIN { MAIN.to_owned() } else { format!("{MAIN}.{}", self.name) };
        let trouble = self.plans.borrow().trouble();
        self.health.condition(component, &self.plan().shown(), waiting, dropped, trouble)
    }
}

/// The destination that `telemetry.otlp` describes.
pub const MAIN: &str = "otlp";
