//! The domain's instruments, declared once. A template is named by its destination, a group by its folder.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

pub(super) struct Metrics {
    attempts: Counter<u64>,
    duration: Histogram<f64>,
    hooks: Counter<u64>,
    switches: Counter<u64>,
}

impl Metrics {
    pub fn new(meter: &Meter) -> Self {
        Self {
            attempts: meter
                .u64_counter("mcpeg.render.attempts")
                .with_unit("{attempt}")
                .with_description("Renderings of templates, by outcome")
                .build(),
            duration: meter
                .f64_histogram("mcpeg.render.duration")
                .with_unit("s")
                .with_description("How long a rendering took, with the writing of the file")
                .with_boundaries(vec![0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0])
                .build(),
            hooks: meter
                .u64_counter("mcpeg.render.hooks")
                .with_unit("{hook}")
                .with_description("What followed a change of a file or a group, by kind and outcome")
                .build(),
            switches: meter
                .u64_counter("mcpeg.render.switches")
                .with_unit("{switch}")
                .with_description("Generations of groups that took effect, or were gone back from")
                .build(),
        }
    }

    /// `outcome`: `changed`, `unchanged`, or the kind of an error.
    pub fn attempted(&self, destination: &str, outcome: &'static str, took: Duration) {
        let labels = [
            KeyValue::new("mcpeg.render.destination", destination.to_owned()),
            KeyValue::new("mcpeg.render.outcome", outcome),
        ];
        self.attempts.add(1, &labels);
        self.duration.record(took.as_secs_f64(), &labels[1..]);
    }

    pub fn hook_ran(&self, destination: &str, kind: &'static str, worked: bool) {
        self.hooks.add(
            1,
            &[
                KeyValue::new("mcpeg.render.destination", destination.to_owned()),
                KeyValue::new("mcpeg.render.hook", kind),
                KeyValue::new("mcpeg.render.outcome", if worked { "success" } else { "failure" }),
            ],
        );
    }

    /// `outcome`: `switched`, `rolled_back`.
    pub fn switched(&self, destination: &str, outcome: &'static str) {
        self.switches.add(
            1,
            &[
                KeyValue::new("mcpeg.render.destination", destination.to_owned()),
                KeyValue::new("mcpeg.render.outcome", outcome),
            ],
        );
    }
}
