//! Sources of log records other than files, and what is known of where records come from.
//!
//! `stream` is a pipe of lines (standard input, the journal), `syslog` a datagram socket, `kubernetes` what a pod is known by. Each waits when the
//! spool is full, so that whoever writes to it waits too, and nothing is dropped here.

pub mod journald;
pub mod kubernetes;
mod pacing;
pub mod stdin;
mod stream;
pub mod syslog;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::intake::Intake;
use super::lines::batch::Owner;
use crate::ports::Redactor;

/// What every source is given.
#[derive(Clone)]
pub struct Surroundings {
    pub intake: Arc<dyn Intake>,
    pub redactor: Arc<dyn Redactor>,
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Tells this process's records from those of any other.
    pub run: u64,
}

impl Surroundings {
    fn owner(&self, scope: &str) -> Owner {
        Owner::new(self.resource.iter().map(|(key, value)| (key.as_str(), value.as_str())), scope)
    }
}

/// Records of each source.
#[derive(Debug, Default)]
pub struct Counts {
    pub stdin: AtomicU64,
    pub syslog: AtomicU64,
    pub journald: AtomicU64,
}
