//! Standard input as a source of lines, for a program whose output is piped into mcpeg.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::stream::Stream;
use super::{Counts, Surroundings};
use crate::lifecycle::{Part, Readiness, Stage};
use crate::telemetry::lines::rules::Rules;

pub fn part(rules: Rules, around: Surroundings, counts: Arc<Counts>) -> Part {
    Part::new("standard input", Stage::Workers, Readiness::immediate(), move |mut shutdown| async move {
        let counted = counts.clone();
        let stream = Stream {
            scope: "mcpeg.stdin",
            rules,
            around,
            checkpoint: |_: &[u8]| None,
            on_records: Box::new(move |count| {
                counted.stdin.fetch_add(count, Ordering::Relaxed);
            }),
        };
        if stream.run(tokio::io::stdin(), &mut shutdown).await {
            tracing::info!("standard input has ended");
            shutdown.requested().await;
        }
        Ok(())
    })
}
