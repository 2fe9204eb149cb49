//! What is made of a series: its points for a line, and one figure of all of them. Pure arithmetic.
//!
//! Counters and histograms begin anew with another process: a value below the one before is growth from nothing.

use crate::ports::{Aggregate, MetricValue};

/// A value and when it was, in milliseconds.
pub type Sample = (u64, MetricValue);

/// For a line: of a gauge its values, of a counter its growth in a second, of a histogram the mean of what came since the point before.
pub fn line(samples: &[Sample]) -> Vec<(u64, f64)> {
    if let Some((_, MetricValue::Gauge(_))) = samples.first() {
        return samples.iter().filter_map(|(at, value)| Some((*at, gauge(value)?))).collect();
    }
    let steps = samples.windows(2).filter_map(|pair| {
        let grown = growth(&pair[0].1, &pair[1].1)?;
        let value = match &pair[1].1 {
            MetricValue::Histogram { .. } if grown.count == 0.0 => return None,
            MetricValue::Histogram { .. } => grown.sum / grown.count,
            _ => grown.count / seconds(pair[0].0, pair[1].0)?,
        };
        Some((pair[1].0, value))
    });
    steps.collect()
}

/// `None`: there is too little to tell.
pub fn figure(samples: &[Sample], aggregate: Aggregate) -> Option<f64> {
    match samples.first()?.1 {
        MetricValue::Gauge(_) if aggregate == Aggregate::Rate => {
            let (first, last) = (samples.first()?, samples.last()?);
            Some((gauge(&last.1)? - gauge(&first.1)?) / seconds(first.0, last.0)?)
        }
        MetricValue::Gauge(_) => of_values(samples.iter().filter_map(|(_, value)| gauge(value)).collect(), aggregate),
        MetricValue::Counter(_) => match aggregate {
            Aggregate::Sum => Some(whole(samples)?.count),
            Aggregate::Avg | Aggregate::Rate => {
                Some(whole(samples)?.count / seconds(samples.first()?.0, samples.last()?.0)?)
            }
            _ => of_values(line(samples).into_iter().map(|(_, value)| value).collect(), aggregate),
        },
        MetricValue::Histogram { .. } => {
            let whole = whole(samples)?;
            match aggregate {
                Aggregate::Sum => Some(whole.sum),
                Aggregate::Rate => Some(whole.count / seconds(samples.first()?.0, samples.last()?.0)?),
                _ if whole.count == 0.0 => None,
                Aggregate::Avg => Some(whole.sum / whole.count),
                Aggregate::Min => whole.quantile(0.0),
                Aggregate::Max => whole.quantile(1.0),
                Aggregate::P50 => whole.quantile(0.5),
                Aggregate::P95 => whole.quantile(0.95),
                Aggregate::P99 => whole.quantile(0.99),
            }
        }
    }
}

/// What came between two samples.
#[derive(Debug, Default)]
struct Growth {
    count: f64,
    sum: f64,
    bounds: Vec<f64>,
    buckets: Vec<f64>,
}

impl Growth {
    /// Within its bucket values are taken to lie evenly; beyond the last bound they are taken to be there.
    fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = part * self.count;
        let mut below = 0.0;
        for (number, here) in self.buckets.iter().enumerate().filter(|(_, here)| **here > 0.0) {
            if below + here >= wanted {
                let low = number.checked_sub(1).and_then(|before| self.bounds.get(before)).copied().unwrap_or(0.0);
                let high = self.bounds.get(number).copied().unwrap_or(low);
                return Some(low + (high - low) * ((wanted - below) / here).clamp(0.0, 1.0));
            }
            below += here;
        }
        None
    }
}

fn whole(samples: &[Sample]) -> Option<Growth> {
    if samples.len() < 2 {
        return None;
    }
    let mut whole = Growth::default();
    for step in samples.windows(2).filter_map(|pair| growth(&pair[0].1, &pair[1].1)) {
        whole.count += step.count;
        whole.sum += step.sum;
        if whole.bounds != step.bounds {
            (whole.bounds, whole.buckets) = (step.bounds, vec![0.0; step.buckets.len()]);
        }
        whole.buckets.iter_mut().zip(step.buckets).for_each(|(all, here)| *all += here);
    }
    Some(whole)
}

/// `None`: they are of different sorts.
fn growth(before: &MetricValue, after: &MetricValue) -> Option<Growth> {
    match (before, after) {
        (MetricValue::Counter(before), MetricValue::Counter(after)) => {
            let count = if after >= before { after - before } else { *after };
            Some(Growth { count, ..Growth::default() })
        }
        (
            MetricValue::Histogram { count: n, sum: s, buckets: had, bounds: old },
            MetricValue::Histogram { count, sum, bounds, buckets },
        ) => {
            let is_same = count >= n && old == bounds && had.len() == buckets.len();
            let (n, s) = if is_same { (*n, *s) } else { (0, 0.0) };
            let had = |number: usize| if is_same { had[number] } else { 0 };
            let buckets = buckets.iter().enumerate().map(|(number, all)| all.saturating_sub(had(number)) as f64);
            Some(Growth { count: (count - n) as f64, sum: sum - s, bounds: bounds.clone(), buckets: buckets.collect() })
        }
        _ => None,
    }
}

fn of_values(mut values: Vec<f64>, aggregate: Aggregate) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = |part: f64| values.get(((values.len() as f64 * part).ceil() as usize).saturating_sub(1)).copied();
    match aggregate {
        _ if values.is_empty() => None,
        Aggregate::Avg => Some(values.iter().sum::<f64>() / values.len() as f64),
        Aggregate::Sum => Some(values.iter().sum()),
        Aggregate::Min => values.first().copied(),
        Aggregate::Max => values.last().copied(),
        Aggregate::P50 => rank(0.5),
        Aggregate::P95 => rank(0.95),
        Aggregate::P99 => rank(0.99),
        Aggregate::Rate => None,
    }
}

fn gauge(value: &MetricValue) -> Option<f64> {
    match value {
        MetricValue::Gauge(value) => Some(*value),
        _ => None,
    }
}

fn seconds(from: u64, to: u64) -> Option<f64> {
    (to > from).then(|| (to - from) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64], sort: fn(f64) -> MetricValue) -> Vec<Sample> {
        values.iter().enumerate().map(|(n, value)| (n as u64 * 10_000, sort(*value))).collect()
    }

    #[test]
    fn gauges_are_taken_as_they_are() {
        let gauges = samples(&[4.0, 1.0, 3.0, 2.0], MetricValue::Gauge);
        assert_eq!(line(&gauges).len(), 4);
        for (aggregate, figure_) in [
            (Aggregate::Avg, 2.5),
            (Aggregate::Max, 4.0),
            (Aggregate::Min, 1.0),
            (Aggregate::Sum, 10.0),
            (Aggregate::P50, 2.0),
            (Aggregate::P95, 4.0),
            (Aggregate::Rate, -2.0 / 30.0),
        ] {
            assert_eq!(figure(&gauges, aggregate), Some(figure_), "{aggregate:?}");
        }
        assert_eq!(figure(&[], Aggregate::Avg), None);
        assert_eq!(figure(&gauges[..1], Aggregate::Rate), None);
    }

    #[test]
    fn counters_grow_and_begin_anew_with_another_process() {
        let counters = samples(&[10.0, 30.0, 5.0, 15.0], MetricValue::Counter);
        assert_eq!(line(&counters), [(10_000, 2.0), (20_000, 0.5), (30_000, 1.0)]);
        assert_eq!(figure(&counters, Aggregate::Sum), Some(35.0));
        assert_eq!(figure(&counters, Aggregate::Rate), Some(35.0 / 30.0));
        assert_eq!(figure(&counters, Aggregate::Max), Some(2.0));
        assert_eq!(figure(&counters[..1], Aggregate::Sum), None);
    }

    #[test]
    fn a_histogram_is_of_what_came_in_the_time() {
        let of = |at, buckets: [u64; 3], sum| {
            let count = buckets.iter().sum();
            (at, MetricValue::Histogram { count, sum, bounds: vec![1.0, 2.0], buckets: buckets.to_vec() })
        };
        let histograms = [of(0, [5, 0, 0], 2.5), of(10_000, [5, 10, 0], 17.5), of(20_000, [5, 10, 10], 60.0)];
        assert_eq!(line(&histograms), [(10_000, 1.5), (20_000, 4.25)]);
        assert_eq!(figure(&histograms, Aggregate::Avg), Some(57.5 / 20.0));
        assert_eq!(figure(&histograms, Aggregate::Rate), Some(1.0));
        assert_eq!(figure(&histograms, Aggregate::P50), Some(2.0));
        assert_eq!(figure(&histograms, Aggregate::Min), Some(1.0));
        assert_eq!(figure(&histograms, Aggregate::P95), Some(2.0), "beyond the last bound nothing is known");
        assert_eq!(figure(&histograms[..2], Aggregate::P50), Some(1.5));
        let anew = [histograms[2].clone(), of(30_000, [2, 0, 0], 1.0)];
        assert_eq!(figure(&anew, Aggregate::Avg), Some(0.5));
    }
}
