//! Whether what is written is what runs: looked at on demand, and known from the last reload.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::metrics::Meter;

use crate::config::{self, Config, Sources};
use crate::ports::{Drift, KeyDifference, Redactor};

/// Shared with the gauge.
#[derive(Debug, Clone, Default)]
pub struct Drifted(Arc<AtomicBool>);

impl Drifted {
    /// With its gauge.
    pub fn new(meter: &Meter) -> Self {
        let drifted = Self::default();
        let seen = drifted.clone();
        // The meter keeps it for as long as there is one.
        let _ = meter
            .u64_observable_gauge("mcpeg.config.drift")
            .with_description("1 while the configuration that is written is not the one that runs")
            .with_unit("{configuration}")
            .with_callback(move |observer| observer.observe(u64::from(seen.is_set()), &[]))
            .build();
        drifted
    }

    pub fn set(&self, drifted: bool) {
        self.0.store(drifted, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reads what is written, as a reload would, and applies nothing.
///
/// A value that is shown may hold a live secret all the same, in a place where none should be.
pub fn compare(running: &Config, sources: &Sources, redactor: &dyn Redactor) -> Drift {
    let mut drift = Drift::default();
    match config::load(sources) {
        Ok(written) => {
            let found = running.keys.differences(&written.keys).into_iter();
            drift.keys = found
                .map(|found| KeyDifference {
                    running: found.running.map(|text| redactor.redact_text(&text).into_owned()),
                    written: found.written.map(|text| redactor.redact_text(&text).into_owned()),
                    key: found.key,
                })
                .collect();
        }
        Err(problems) => drift.problems = problems.iter().map(config::Problem::one_line).collect(),
    }
    drift.differs = !drift.keys.is_empty() || !drift.problems.is_empty();
    drift
}
