//! Reads by local programs, counted. Items are labels only when they are configured, so that a client cannot make any up.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};

pub(super) struct Metrics(Counter<u64>);

impl Metrics {
    pub fn new(meter: &Meter) -> Self {
        let reads = meter
            .u64_counter("mcpeg.secret.reads")
            .with_unit("{read}")
            .with_description("Reads by local programs, by item and outcome")
            .build();
        Self(reads)
    }

    pub fn read(&self, item: Option<&str>, outcome: &'static str) {
        let outcome = KeyValue::new("mcpeg.secret.outcome", outcome);
        match item {
            Some(item) => self.0.add(1, &[KeyValue::new("mcpeg.secret.item", item.to_owned()), outcome]),
            None => self.0.add(1, &[outcome]),
        }
    }
}
