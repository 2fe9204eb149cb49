//! The domain's instruments, declared once. Labels name items, providers and kinds of outcome, never a path or a value.

use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use super::handle::Shared;
use super::source::FailureKind;

pub(super) struct Metrics {
    requests: Counter<u64>,
    duration: Histogram<f64>,
    logins: Counter<u64>,
    leases: Counter<u64>,
}

impl Metrics {
    pub fn new(meter: &Meter) -> Self {
        Self {
            requests: meter
                .u64_counter("mcpeg.secret.requests")
                .with_unit("{request}")
                .with_description("Fetches of items, by provider and outcome")
                .build(),
            duration: meter
                .f64_histogram("mcpeg.secret.fetch.duration")
                .with_unit("s")
                .with_description("How long a fetch of one item took")
                .with_boundaries(vec![0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0])
                .build(),
            logins: meter
                .u64_counter("mcpeg.secret.logins")
                .with_unit("{login}")
                .with_description("Logins to providers, by provider and outcome")
                .build(),
            leases: meter
                .u64_counter("mcpeg.secret.lease.operations")
                .with_unit("{operation}")
                .with_description("Renewals and revocations of leases, by provider, operation and outcome")
                .build(),
        }
    }

    pub fn fetched(&self, provider: &str, failure: Option<FailureKind>, took: Duration) {
        let labels = [KeyValue::new("mcpeg.secret.provider", provider.to_owned()), outcome(failure)];
        self.requests.add(1, &labels);
        self.duration.record(took.as_secs_f64(), &labels);
    }

    pub fn lease_done(&self, provider: &str, operation: &'static str, failure: Option<FailureKind>) {
        let provider = KeyValue::new("mcpeg.secret.provider", provider.to_owned());
        self.leases.add(1, &[provider, KeyValue::new("mcpeg.secret.operation", operation), outcome(failure)]);
    }

    pub fn logged_in(&self, provider: &str, failure: Option<FailureKind>) {
        self.logins.add(1, &[KeyValue::new("mcpeg.secret.provider", provider.to_owned()), outcome(failure)]);
    }
}

/// Age and version of every item, read when somebody collects. The callbacks hold the store weakly.
pub(super) fn observe(meter: &Meter, shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    meter
        .f64_observable_gauge("mcpeg.secret.age")
        .with_unit("s")
        .with_description("Time since the item was last fetched with success")
        .with_callback(move |observer| {
            for_each_item(&weak, |name, _, age| {
                observer.observe(age.as_secs_f64(), &[KeyValue::new("mcpeg.secret.item", name.to_owned())]);
            });
        })
        .build();
    let weak = Arc::downgrade(shared);
    meter
        .u64_observable_gauge("mcpeg.secret.version")
        .with_unit("{version}")
        .with_description("Number of the version that is served, counted by this process from 1")
        .with_callback(move |observer| {
            for_each_item(&weak, |name, version, _| {
                observer.observe(version, &[KeyValue::new("mcpeg.secret.item", name.to_owned())]);
            });
        })
        .build();
    let weak = Arc::downgrade(shared);
    meter
        .u64_observable_gauge("mcpeg.secret.failing")
        .with_unit("{item}")
        .with_description("1 while the last fetch of the item failed, with the kind of failure; 0 else")
        .with_callback(move |observer| {
            let Some(shared) = weak.upgrade() else { return };
            for (name, item) in &shared.roster().items {
                let name = KeyValue::new("mcpeg.secret.item", name.to_owned());
                match item.snapshot().failure {
                    Some(failure) => {
                        observer.observe(1, &[name, KeyValue::new("error.type", failure.error.kind.as_str())])
                    }
                    None => observer.observe(0, &[name]),
                }
            }
        })
        .build();
}

/// What ends, and when: read when somebody collects.
pub(super) fn observe_leases(meter: &Meter, shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    meter
        .f64_observable_gauge("mcpeg.secret.expiry")
        .with_unit("s")
        .with_description(
            "Time until the values of the item end or are replaced by the provider; below zero: they have ended",
        )
        .with_callback(move |observer| {
            let Some(shared) = weak.upgrade() else { return };
            for (name, item) in &shared.roster().items {
                if let Some(left) = item.slot.seconds_left() {
                    observer.observe(left, &[KeyValue::new("mcpeg.secret.item", name.clone())]);
                }
            }
        })
        .build();
    let weak = Arc::downgrade(shared);
    meter
        .u64_observable_gauge("mcpeg.secret.leases")
        .with_unit("{lease}")
        .with_description("Leases that are held: in use, or replaced and waiting to be revoked")
        .with_callback(move |observer| {
            let Some(shared) = weak.upgrade() else { return };
            let (current, waiting) = shared.context.leases.count();
            observer.observe(current as u64, &[KeyValue::new("mcpeg.secret.state", "current")]);
            observer.observe(waiting as u64, &[KeyValue::new("mcpeg.secret.state", "replaced")]);
        })
        .build();
}

fn for_each_item(shared: &Weak<Shared>, mut visit: impl FnMut(&str, u64, Duration)) {
    let Some(shared) = shared.upgrade() else { return };
    for (name, item) in &shared.roster().items {
        if let Some((version, age)) = item.slot.version_and_age() {
            visit(name, version, age);
        }
    }
}

fn outcome(failure: Option<FailureKind>) -> KeyValue {
    KeyValue::new("mcpeg.secret.outcome", failure.map_or("success", FailureKind::as_str))
}
