//! The storage domain's metrics, declared once: what the cache says of itself, and which stores are away.

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::StorageHandle;
use crate::ports::Cache;

/// Lets the meter ask the handle whenever metrics are read.
pub fn observe(storage: StorageHandle, meter: &Meter) {
    let (of_stores, of_failures) = (storage.clone(), storage.clone());
    meter
        .u64_observable_gauge("mcpeg.storage.available")
        .with_description("Whether a store is in use (1), or memory in its place (0)")
        .with_callback(move |observer| {
            for (name, away) in of_stores.stores() {
                observer.observe(u64::from(away.is_none()), &[KeyValue::new("store", name)]);
            }
        })
        .build();
    meter
        .u64_observable_counter("mcpeg.storage.failures")
        .with_unit("{operation}")
        .with_description("Operations that a store did not do")
        .with_callback(move |observer| {
            let runtime = of_failures.shared.sturdy.as_ref().map_or(0, |sturdy| sturdy.failures());
            observer.observe(runtime, &[KeyValue::new("store", "runtime")]);
            observer.observe(of_failures.stats().failures, &[KeyValue::new("store", "cache")]);
        })
        .build();
    let (of_lookups, of_evictions, of_bytes, of_entries) = (storage.clone(), storage.clone(), storage.clone(), storage);
    meter
        .u64_observable_counter("mcpeg.cache.lookups")
        .with_unit("{lookup}")
        .with_description("Looks into the cache by what they found")
        .with_callback(move |observer| {
            let stats = of_lookups.stats();
            observer.observe(stats.hits, &[KeyValue::new("outcome", "hit")]);
            observer.observe(stats.misses, &[KeyValue::new("outcome", "miss")]);
        })
        .build();
    meter
        .u64_observable_counter("mcpeg.cache.evictions")
        .with_unit("{entry}")
        .with_description("Values that had to go before their time, for want of room")
        .with_callback(move |observer| observer.observe(of_evictions.stats().evictions, &[]))
        .build();
    meter
        .u64_observable_gauge("mcpeg.cache.size")
        .with_unit("By")
        .with_description("Bytes of what is cached")
        .with_callback(move |observer| observer.observe(of_bytes.stats().bytes, &[]))
        .build();
    meter
        .u64_observable_gauge("mcpeg.cache.entries")
        .with_unit("{entry}")
        .with_description("Values that are cached")
        .with_callback(move |observer| observer.observe(of_entries.stats().entries, &[]))
        .build();
}
