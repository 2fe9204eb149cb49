//! Where sources put their records: the spool, as they see it.

use super::spool::{self, Checkpoint, Lane, Spool};

/// Which signal a request is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Logs,
    Traces,
    Metrics,
}

/// Encoded records with the place of their source after them.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub kind: Kind,
    pub records: u32,
    /// An OTLP export request of the kind.
    pub body: &'a [u8],
    /// The source's name, and its position; an empty position: the source is gone.
    pub checkpoint: Option<(&'a str, &'a [u8])>,
}

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// To be tried again.
    #[error("the spool is full")]
    Full,
    #[error("more than one request may have")]
    TooLarge,
}

/// Takes entries; what it took is in the spool, the checkpoint with it, or counted as dropped.
pub trait Intake: Send + Sync {
    fn append(&self, entry: Entry<'_>) -> Result<(), NotTaken>;

    /// Each source's last position.
    fn checkpoints(&self) -> Vec<(String, Vec<u8>)>;
}

/// The spool. A source can wait, so nothing of it is taken that would force out what no destination has yet.
impl Intake for Spool {
    fn append(&self, entry: Entry<'_>) -> Result<(), NotTaken> {
        let lane = match entry.kind {
            Kind::Logs => Lane::Logs,
            Kind::Traces => Lane::Traces,
            Kind::Metrics => Lane::Metrics,
        };
        if !self.make_spare(lane, entry.body.len()) {
            return Err(NotTaken::Full);
        }
        let checkpoint = entry.checkpoint.map(|(source, position)| Checkpoint { source, position });
        Self::append(self, lane, entry.records, entry.body, checkpoint).map_err(|error| match error {
            spool::NotTaken::Full => NotTaken::Full,
            spool::NotTaken::TooLarge { .. } => NotTaken::TooLarge,
        })
    }

    fn checkpoints(&self) -> Vec<(String, Vec<u8>)> {
        Self::checkpoints(self)
    }
}
