//! Metrics as Prometheus text, format 0.0.4.
//!
//! Names follow OpenTelemetry's rules for Prometheus compatibility: what is not a letter, digit, `_` or `:` becomes `_`, the unit is a
//! suffix in words, a monotonic sum ends in `_total`, and the resource is the labels of `target_info`. There is one meter in this
//! process, so no scope labels. Exponential histograms have no form in this text and are left out.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, Histogram, Metric, MetricData, ResourceMetrics};

/// The whole of one collection, families sorted by name.
pub fn render(metrics: &ResourceMetrics) -> String {
    let mut families: Vec<Family<'_>> =
        metrics.scope_metrics().flat_map(|scope| scope.metrics()).filter_map(Family::of).collect();
    families.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = Text::default();
    text.target_info(metrics.resource());
    let mut last: Option<(String, Kind)> = None;
    for family in families {
        match &last {
            Some((name, kind)) if *name == family.name => {
                // Two instruments of one name and different kinds: only the first can be shown.
                if *kind != family.kind {
                    continue;
                }
            }
            _ => text.head(&family),
        }
        text.points(&family);
        last = Some((family.name, family.kind));
    }
    text.0
}

struct Family<'a> {
    name: String,
    kind: Kind,
    metric: &'a Metric,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl<'a> Family<'a> {
    fn of(metric: &'a Metric) -> Option<Self> {
        let kind = match metric.data() {
            AggregatedMetrics::F64(data) => kind_of(data),
            AggregatedMetrics::U64(data) => kind_of(data),
            AggregatedMetrics::I64(data) => kind_of(data),
        }?;
        Some(Self { name: family_name(metric.name(), metric.unit(), kind), kind, metric })
    }
}

fn kind_of<T>(data: &MetricData<T>) -> Option<Kind> {
    match data {
        MetricData::Gauge(_) => Some(Kind::Gauge),
        MetricData::Sum(sum) if sum.is_monotonic() => Some(Kind::Counter),
        MetricData::Sum(_) => Some(Kind::Gauge),
        MetricData::Histogram(_) => Some(Kind::Histogram),
        MetricData::ExponentialHistogram(_) => None,
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    // Writing into a `String` cannot fail, so what `write!` returns is not looked at below.

    fn target_info(&mut self, resource: &Resource) {
        self.0.push_str("# HELP target_info Target metadata\n# TYPE target_info gauge\n");
        let mut pairs: Vec<(String, String)> =
            resource.iter().map(|(key, value)| (key.to_string(), text_of(value))).collect();
        pairs.sort();
        self.sample("target_info", &labels(pairs.into_iter()), None, 1);
    }

    fn head(&mut self, family: &Family<'_>) {
        let name = &family.name;
        if !family.metric.description().is_empty() {
            let help = family.metric.description().replace('\\', "\\\\").replace('\n', "\\n");
            let _ = writeln!(self.0, "# HELP {name} {help}");
        }
        let _ = writeln!(self.0, "# TYPE {name} {}", family.kind.as_str());
    }

    fn points(&mut self, family: &Family<'_>) {
        match family.metric.data() {
            AggregatedMetrics::F64(data) => self.data(&family.name, data, |value| number(*value)),
            AggregatedMetrics::U64(data) => self.data(&family.name, data, u64::to_string),
            AggregatedMetrics::I64(data) => self.data(&family.name, data, i64::to_string),
        }
    }

    fn data<T: Copy>(&mut self, name: &str, data: &MetricData<T>, show: impl Fn(&T) -> String) {
        match data {
            MetricData::Gauge(gauge) => {
                let points = gauge.data_points().map(|point| (attributes(point.attributes()), show(&point.value())));
                self.values(name, points.collect());
            }
            MetricData::Sum(sum) => {
                let points = sum.data_points().map(|point| (attributes(point.attributes()), show(&point.value())));
                self.values(name, points.collect());
            }
            MetricData::Histogram(histogram) => self.histogram(name, histogram, show),
            MetricData::ExponentialHistogram(_) => {}
        }
    }

    /// The SDK keeps points in no order; sorted, one scrape can be compared with the next.
    fn values(&mut self, name: &str, mut points: Vec<(String, String)>) {
        points.sort();
        for (labels, value) in points {
            self.sample(name, &labels, None, value);
        }
    }

    fn histogram<T: Copy>(&mut self, name: &str, histogram: &Histogram<T>, show: impl Fn(&T) -> String) {
        let (bucket, sum, count) = (format!("{name}_bucket"), format!("{name}_sum"), format!("{name}_count"));
        let mut points: Vec<_> = histogram.data_points().map(|point| (attributes(point.attributes()), point)).collect();
        points.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (labels, point) in points {
            let bounds = point.bounds().map(number).chain(std::iter::once("+Inf".to_owned()));
            let mut below = 0;
            for (bound, here) in bounds.zip(point.bucket_counts()) {
                below += here;
                self.sample(&bucket, &labels, Some(&bound), below);
            }
            self.sample(&sum, &labels, None, show(&point.sum()));
            self.sample(&count, &labels, None, point.count());
        }
    }

    fn sample(&mut self, name: &str, labels: &str, le: Option<&str>, value: impl Display) {
        self.0.push_str(name);
        match (labels.is_empty(), le) {
            (true, None) => {}
            (false, None) => {
                let _ = write!(self.0, "{{{labels}}}");
            }
            (true, Some(le)) => {
                let _ = write!(self.0, "{{le=\"{le}\"}}");
            }
            (false, Some(le)) => {
                let _ = write!(self.0, "{{{labels},le=\"{le}\"}}");
            }
        }
        let _ = writeln!(self.0, " {value}");
    }
}

fn attributes<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
    let mut pairs: Vec<(String, String)> =
        attributes.map(|pair| (pair.key.to_string(), text_of(&pair.value))).collect();
    pairs.sort();
    labels(pairs.into_iter())
}

/// `name="value",...` without braces. Keys that become the same name share one label, their values joined by `;`.
fn labels(pairs: impl Iterator<Item = (String, String)>) -> String {
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in pairs {
        match named.entry(clean(&key, false)) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                slot.get_mut().push(';');
                slot.get_mut().push_str(&value);
            }
        }
    }
    let shown: Vec<String> = named.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    shown.join(",")
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn text_of(value: &Value) -> String {
    value.as_str().into_owned()
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        value.to_string()
    }
}

fn family_name(name: &str, unit: &str, kind: Kind) -> String {
    let mut full = clean(name, true);
    if kind == Kind::Counter {
        full = full.strip_suffix("_total").map(str::to_owned).unwrap_or(full);
    }
    if let Some(suffix) = unit_suffix(unit, kind)
        && full != suffix
        && !full.ends_with(&format!("_{suffix}"))
    {
        full = format!("{full}_{suffix}");
    }
    if kind == Kind::Counter {
        full.push_str("_total");
    }
    full
}

/// Anything else than letters, digits and `_` (and `:` in a metric's name) becomes one `_`; a digit does not come first.
fn clean(name: &str, colon: bool) -> String {
    let mut clean = String::with_capacity(name.len() + 1);
    for char in name.chars() {
        let kept = char.is_ascii_alphanumeric() || (colon && char == ':');
        if kept {
            clean.push(char);
        } else if !clean.ends_with('_') {
            clean.push('_');
        }
    }
    if clean.is_empty() || clean.starts_with(|char: char| char.is_ascii_digit()) {
        clean.insert(0, '_');
    }
    clean
}

/// The unit (UCUM) in words; what stands in braces is an annotation and no unit.
fn unit_suffix(unit: &str, kind: Kind) -> Option<String> {
    let (over, under) = match unit.split_once('/') {
        Some((over, under)) => (without_annotation(over), Some(without_annotation(under))),
        None => (without_annotation(unit), None),
    };
    let over = match over.as_str() {
        "" => None,
        "1" => (kind == Kind::Gauge && under.is_none()).then(|| "ratio".to_owned()),
        over => Some(in_words(over, UNITS)),
    };
    let under = under.filter(|under| !under.is_empty()).map(|under| format!("per_{}", in_words(&under, UNITS_BELOW)));
    let words: Vec<String> = over.into_iter().chain(under).filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| words.join("_"))
}

fn without_annotation(unit: &str) -> String {
    match (unit.find('{'), unit.rfind('}')) {
        (Some(from), Some(to)) if from < to => format!("{}{}", &unit[..from], &unit[to + 1..]),
        _ => unit.to_owned(),
    }
}

fn in_words(unit: &str, table: &[(&str, &str)]) -> String {
    match table.iter().find(|(symbol, _)| *symbol == unit) {
        Some((_, word)) => (*word).to_owned(),
        None => clean(unit, false).trim_matches('_').to_owned(),
    }
}

const UNITS: &[(&str, &str)] = &[
    ("d", "days"),
    ("h", "hours"),
    ("min", "minutes"),
    ("s", "seconds"),
    ("ms", "milliseconds"),
    ("us", "microseconds"),
    ("ns", "nanoseconds"),
    ("By", "bytes"),
    ("KiBy", "kibibytes"),
    ("MiBy", "mebibytes"),
    ("GiBy", "gibibytes"),
    ("kBy", "kilobytes"),
    ("MBy", "megabytes"),
    ("GBy", "gigabytes"),
    ("Hz", "hertz"),
    ("Cel", "celsius"),
    ("%", "percent"),
];

const UNITS_BELOW: &[(&str, &str)] = &[("s", "second"), ("min", "minute"), ("h", "hour"), ("d", "day"), ("By", "byte")];

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
