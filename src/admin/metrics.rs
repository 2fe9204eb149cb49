//! The admin domain's metrics: declared here and nowhere else.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};

#[derive(Clone)]
pub struct AdminMetrics {
    requests: Counter<u64>,
}

impl AdminMetrics {
    pub fn new(meter: &Meter) -> Self {
        let requests = meter
            .u64_counter("mcpeg.admin.requests")
            .with_description("Requests to the admin sockets")
            .with_unit("{request}")
            .build();
        Self { requests }
    }

    /// `route` is one of a fixed set, never what a client sent.
    pub fn answered(&self, route: &'static str, status: u16) {
        let labels =
            [KeyValue::new("http.route", route), KeyValue::new("http.response.status_code", i64::from(status))];
        self.requests.add(1, &labels);
    }
}
