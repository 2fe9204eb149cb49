//! From bytes of lines to encoded log records: splitting, unwrapping, redaction, joining, fields. No I/O and no clock.
//!
//! `reader` is the way through, `container`, `json`, `logfmt` and `syslog` the formats, `multiline` what belongs together, `time` and `severity` what
//! programs write for them, `batch` and `proto` the bytes that come out. Throughput is the point of it: a clean line is looked at, and
//! copied once.

pub mod batch;
pub mod container;
mod fields;
mod json;
mod logfmt;
pub mod multiline;
pub mod proto;
mod reader;
pub mod rules;
pub mod severity;
pub mod syslog;
#[cfg(test)]
mod tests;
pub mod time;

pub use reader::{Cursor, End, LineReader, Placed, Work};
