//! The storage domain's metrics, declared once: what the cache says of itself.

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::StorageHandle;
use crate::ports::Cache;

/// Lets the meter ask the handle whenever metrics are read.
pub fn observe(storage: StorageHandle, meter: &Meter) {
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
