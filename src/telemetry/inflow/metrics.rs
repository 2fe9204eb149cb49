//! The instruments of the sources: declared here and nowhere else. They read counters that the sources keep.

use std::sync::atomic::Ordering;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::Inflow;

impl Inflow {
    /// Declares the instruments that read all this.
    pub fn observe(&self, meter: &Meter) {
        let inflow = self.clone();
        meter
            .u64_observable_counter("mcpeg.telemetry.taken")
            .with_description("Records that sources have put into the spool")
            .with_unit("{record}")
            .with_callback(move |observer| {
                for (source, count) in inflow.taken() {
                    observer.observe(count, &[KeyValue::new("source", source)]);
                }
            })
            .build();
        let inflow = self.clone();
        meter
            .u64_observable_gauge("mcpeg.logs.files")
            .with_description("Log files that are followed")
            .with_unit("{file}")
            .with_callback(move |observer| {
                inflow.files().iter().for_each(|files| observer.observe(files.files.load(Ordering::Relaxed), &[]));
            })
            .build();
        let inflow = self.clone();
        meter
            .u64_observable_gauge("mcpeg.logs.unread")
            .with_description("Bytes of log files that are not read yet")
            .with_unit("By")
            .with_callback(move |observer| {
                inflow.files().iter().for_each(|files| observer.observe(files.lag.load(Ordering::Relaxed), &[]));
            })
            .build();
        if let Some(received) = self.received.clone() {
            meter
                .u64_observable_counter("mcpeg.receiver.turned_away")
                .with_description("Requests to the OTLP receiver that were not taken")
                .with_unit("{request}")
                .with_callback(move |observer| {
                    for (reason, counter) in [("later", &received.deferred), ("refused", &received.refused)] {
                        observer.observe(counter.load(Ordering::Relaxed), &[KeyValue::new("reason", reason)]);
                    }
                })
                .build();
        }
    }
}
