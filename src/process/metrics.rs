//! The domain's instruments, declared once.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

pub(super) struct Metrics {
    starts: Counter<u64>,
    ends: Counter<u64>,
    running: Gauge<u64>,
    replacement: Histogram<f64>,
    dropped_lines: Counter<u64>,
}

impl Metrics {
    pub fn new(meter: &Meter) -> Self {
        Self {
            starts: meter
                .u64_counter("mcpeg.process.starts")
                .with_unit("{start}")
                .with_description("Starts of the supervised process, by reason")
                .build(),
            ends: meter
                .u64_counter("mcpeg.process.ends")
                .with_unit("{end}")
                .with_description("Ends of the supervised process, by outcome")
                .build(),
            running: meter
                .u64_gauge("mcpeg.process.running")
                .with_unit("{process}")
                .with_description("1 while the supervised process runs, 0 else")
                .build(),
            replacement: meter
                .f64_histogram("mcpeg.process.replacement.duration")
                .with_unit("s")
                .with_description("Between the end of a process whose secrets have changed and the start of the next")
                .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0])
                .build(),
            dropped_lines: meter
                .u64_counter("mcpeg.process.lines.dropped")
                .with_unit("{line}")
                .with_description("Lines of the supervised process that were left out because there were too many")
                .build(),
        }
    }

    pub fn started(&self, reason: &'static str) {
        self.starts.add(1, &[KeyValue::new("mcpeg.reason", reason)]);
        self.running.record(1, &[]);
    }

    /// `outcome`: `success`, `failure`, `stopped`, `not_started`.
    pub fn ended(&self, outcome: &'static str) {
        self.ends.add(1, &[KeyValue::new("outcome", outcome)]);
        self.running.record(0, &[]);
    }

    pub fn replaced(&self, gap: Duration) {
        self.replacement.record(gap.as_secs_f64(), &[]);
    }

    pub fn dropped_line(&self) {
        self.dropped_lines.add(1, &[]);
    }
}
