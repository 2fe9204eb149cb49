//! The metrics of one collection as points, for whoever keeps them. Exponential histograms have no form there and are left out.

use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};

use crate::ports::{MetricPoint, MetricValue};

pub fn points(metrics: &ResourceMetrics) -> Vec<MetricPoint> {
    let mut points = Vec::new();
    for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
        match metric.data() {
            AggregatedMetrics::F64(data) => add(metric.name(), data, |value| value, &mut points),
            AggregatedMetrics::U64(data) => add(metric.name(), data, |value| value as f64, &mut points),
            AggregatedMetrics::I64(data) => add(metric.name(), data, |value| value as f64, &mut points),
        }
    }
    points
}

fn add<T: Copy>(name: &str, data: &MetricData<T>, number: impl Fn(T) -> f64, points: &mut Vec<MetricPoint>) {
    let mut push = |tags: Vec<(String, String)>, value| points.push(MetricPoint { name: name.to_owned(), tags, value });
    match data {
        MetricData::Gauge(gauge) => {
            gauge.data_points().for_each(|point| {
                push(tags(point.attributes()), MetricValue::Gauge(number(point.value())));
            });
        }
        MetricData::Sum(sum) => {
            let is_counter = sum.is_monotonic();
            sum.data_points().for_each(|point| {
                let value = number(point.value());
                let value = if is_counter { MetricValue::Counter(value) } else { MetricValue::Gauge(value) };
                push(tags(point.attributes()), value);
            });
        }
        MetricData::Histogram(histogram) => {
            histogram.data_points().for_each(|point| {
                let value = MetricValue::Histogram {
                    count: point.count(),
                    sum: number(point.sum()),
                    bounds: point.bounds().collect(),
                    buckets: point.bucket_counts().collect(),
                };
                push(tags(point.attributes()), value);
            });
        }
        MetricData::ExponentialHistogram(_) => {}
    }
}

fn tags<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> Vec<(String, String)> {
    let mut tags: Vec<(String, String)> =
        attributes.map(|pair| (pair.key.to_string(), pair.value.as_str().into_owned())).collect();
    tags.sort();
    tags
}
