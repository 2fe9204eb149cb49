//! `MetricsStore` over records: one record holds all points of one moment, packed.
//!
//! A key is the moment in milliseconds, thirteen digits, and who recorded it (`0001700000000000/mcpeg@host`), so that keys sort by time; a value is
//! JSON, packed with zstd. Where several processes share a store, each point says whose it is by the tag `instance`. What is older than `retention`
//! is removed whenever something is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::aggregate::{self, Sample};
use super::records::{Record, Records, Space, StoreFailure, now};
use super::state::told;
use crate::ports::{MetricPoint, MetricQuery, MetricSeries, MetricsStore, StoreFuture};

pub struct Series {
    pub records: Arc<dyn Records>,
    /// Who records, `None` where nobody else does.
    pub instance: Option<String>,
    pub retention: Duration,
    /// No two moments of a process are one.
    pub last: Arc<AtomicU64>,
}

impl MetricsStore for Series {
    fn record(&self, points: Vec<MetricPoint>) -> StoreFuture<()> {
        let moment = now();
        let moment = self.last.fetch_max(moment, Ordering::Relaxed).saturating_add(1).max(moment);
        self.last.fetch_max(moment, Ordering::Relaxed);
        let key = format!("{moment:016}/{}", self.instance.as_deref().unwrap_or_default());
        let oldest = moment.saturating_sub(millis(self.retention));
        let records = self.records.clone();
        Box::pin(async move {
            let packed = pack(&points).map_err(told)?;
            records.set(Space::Metrics, vec![Record::new(key, packed)]).await.map_err(told)?;
            // Everything of others that is as old, too. In memory keys alone would do, but values are small.
            let old = records.list(Space::Metrics, "", None, PRUNED).await.map_err(told)?;
            let old: Vec<String> =
                old.into_iter().map(|record| record.key).filter(|key| moment_of(key) < oldest).collect();
            if old.is_empty() { Ok(()) } else { records.delete(Space::Metrics, old).await.map_err(told) }
        })
    }

    fn query(&self, query: MetricQuery) -> StoreFuture<Vec<MetricSeries>> {
        let (records, is_shared) = (self.records.clone(), self.instance.is_some());
        Box::pin(async move {
            let from = format!("{:016}", now().saturating_sub(millis(query.since)));
            let (mut after, mut found) = (from, Found::default());
            loop {
                let page = records.list(Space::Metrics, "", Some(&after), PAGE).await.map_err(told)?;
                let Some(last) = page.last() else { break };
                after = last.key.clone();
                for record in &page {
                    let instance = record.key.split_once('/').map(|(_, who)| who).filter(|_| is_shared);
                    found.take(moment_of(&record.key), unpack(&record.value).map_err(told)?, instance, &query);
                }
            }
            Ok(found.series(&query))
        })
    }

    fn snapshot(&self) -> StoreFuture<()> {
        let records = self.records.clone();
        Box::pin(async move { records.flush().await.map_err(told) })
    }
}

/// Samples by name and tags.
#[derive(Default)]
struct Found(BTreeMap<Named, Vec<Sample>>);

/// A name and tags.
type Named = (String, Vec<(String, String)>);

impl Found {
    fn take(&mut self, at: u64, points: Vec<MetricPoint>, instance: Option<&str>, query: &MetricQuery) {
        for mut point in points {
            if !query.name.is_empty() && point.name != query.name {
                continue;
            }
            if let Some(instance) = instance {
                point.tags.push(("instance".to_owned(), instance.to_owned()));
            }
            if query.tags.iter().all(|tag| point.tags.contains(tag)) {
                let samples = self.0.entry((point.name, point.tags)).or_default();
                if query.name.is_empty() {
                    samples.clear();
                }
                samples.push((at, point.value));
            }
        }
    }

    fn series(self, query: &MetricQuery) -> Vec<MetricSeries> {
        let series = self.0.into_iter().map(|((name, tags), samples)| MetricSeries {
            name,
            tags: tags.into_iter().collect(),
            points: aggregate::line(&samples),
            value: query.aggregate.and_then(|aggregate| aggregate::figure(&samples, aggregate)),
        });
        series.collect()
    }
}

fn pack(points: &[MetricPoint]) -> Result<Vec<u8>, StoreFailure> {
    let failed = |error: &dyn std::fmt::Display| StoreFailure::of("points of metrics", error);
    let text = serde_json::to_vec(points).map_err(|error| failed(&error))?;
    zstd::bulk::compress(&text, LEVEL).map_err(|error| failed(&error))
}

fn unpack(packed: &[u8]) -> Result<Vec<MetricPoint>, StoreFailure> {
    let failed = |error: &dyn std::fmt::Display| StoreFailure::of("points of metrics", error);
    let text = zstd::bulk::decompress(packed, LARGEST).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

fn moment_of(key: &str) -> u64 {
    key.split('/').next().and_then(|moment| moment.parse().ok()).unwrap_or(0)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

const LEVEL: i32 = 3;
/// Of the points of one moment.
const LARGEST: usize = 64 << 20;
const PAGE: usize = 200;
/// Looked at for their age whenever something is recorded.
const PRUNED: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::kinds::memory::MemoryRecords;
    use super::*;
    use crate::ports::{Aggregate, MetricValue};

    fn point(name: &str, tag: &str, value: f64) -> MetricPoint {
        MetricPoint {
            name: name.to_owned(),
            tags: vec![("tool".to_owned(), tag.to_owned())],
            value: MetricValue::Gauge(value),
        }
    }

    #[tokio::test]
    async fn points_are_found_by_name_tag_and_time_and_old_ones_go() {
        let records: Arc<dyn Records> = Arc::new(MemoryRecords::default());
        let store = |instance: Option<&str>, retention| Series {
            records: records.clone(),
            instance: instance.map(str::to_owned),
            retention,
            last: Arc::default(),
        };
        let hour = Duration::from_secs(3600);
        let one = store(Some("one"), hour);
        for value in [1.0, 3.0] {
            one.record(vec![point("a", "x", value), point("a", "y", 9.0), point("b", "x", 7.0)]).await.unwrap();
        }
        store(Some("two"), hour).record(vec![point("a", "x", 5.0)]).await.unwrap();
        let query = |name: &str, tags: &[(&str, &str)]| MetricQuery {
            name: name.to_owned(),
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            since: hour,
            aggregate: Some(Aggregate::Avg),
        };
        let found = one.query(query("a", &[("tool", "x")])).await.unwrap();
        let figures: Vec<_> =
            found.iter().map(|series| (series.tags["instance"].as_str(), series.points.len(), series.value)).collect();
        assert_eq!(figures, [("one", 2, Some(2.0)), ("two", 1, Some(5.0))]);
        assert_eq!(one.query(query("", &[])).await.unwrap().len(), 4, "every series, with its last point");
        assert!(one.query(query("none", &[])).await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(5)).await;
        let lately = MetricQuery { since: Duration::from_millis(1), ..query("a", &[]) };
        assert!(one.query(lately).await.unwrap().is_empty(), "they are older than that");
        let short = store(None, Duration::from_millis(1));
        short.record(vec![point("a", "x", 1.0)]).await.unwrap();
        assert_eq!(records.list(Space::Metrics, "", None, 99).await.unwrap().len(), 1);
    }
}
