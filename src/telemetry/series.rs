//! How many series one metric may have: its combinations of labels. What comes beyond shares one series, `otel_metric_overflow`.
//!
//! The SDK makes room for all of them when an instrument is made, and spreads the few that there are over it, so that each takes a page of
//! its own. The room is therefore that of the configuration: `PER_NAME` outcomes for each thing that it names, and `FEWEST` for what it
//! does not name. Metrics that have tools of upstreams among their labels keep the SDK's own bound.

use opentelemetry_sdk::metrics::{Instrument, Stream};

/// `named`: how many things of one kind (secrets, templates, services) the configuration names.
pub fn view(named: usize) -> impl Fn(&Instrument) -> Option<Stream> + Send + Sync + 'static {
    let most = named.saturating_mul(PER_NAME).clamp(FEWEST, MOST);
    move |instrument| {
        let of_tools = instrument.name().starts_with("mcp.") || instrument.name() == "mcpeg.mcp.leaks";
        // A bound that is not 0 always makes a stream; without one the SDK's own bound counts.
        (!of_tools).then(|| Stream::builder().with_cardinality_limit(most).build().ok()).flatten()
    }
}

/// Outcomes, reasons and operations that a thing with a name is counted by.
const PER_NAME: usize = 8;
const FEWEST: usize = 128;
const MOST: usize = 100_000;

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};

    use super::super::reader::SharedReader;
    use super::*;

    /// How many series there are of a metric that was counted under `labels` labels.
    fn series_of(metric: &'static str, named: usize, labels: usize) -> usize {
        let reader = SharedReader::new();
        let meters = SdkMeterProvider::builder().with_reader(reader.clone()).with_view(view(named)).build();
        let counter = meters.meter("test").u64_counter(metric).build();
        (0..labels).for_each(|number| counter.add(1, &[KeyValue::new("item", number.to_string())]));
        let all = reader.now().unwrap();
        let metric = all.scope_metrics().next().unwrap().metrics().next().unwrap();
        let AggregatedMetrics::U64(MetricData::Sum(sum)) = metric.data() else { panic!("it is a counter") };
        let counted: u64 = sum.data_points().map(|point| point.value()).sum();
        assert_eq!(counted, labels as u64, "none is lost");
        sum.data_points().count()
    }

    #[test]
    fn a_metric_has_room_for_what_the_configuration_names_and_for_the_tools_of_upstreams() {
        assert_eq!(series_of("mcpeg.secret.requests", 0, 1000), FEWEST + 1);
        assert_eq!(series_of("mcpeg.secret.requests", 1000, 5000), 5000);
        assert_eq!(series_of("mcp.server.operation.duration", 0, 1000), 1000);
    }
}
