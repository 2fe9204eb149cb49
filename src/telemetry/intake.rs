//! Where sources put their records: the spool, as they see it.

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
