//! The kinds of stores, one file each.

pub mod memory;
pub mod postgres;
pub mod redis;
pub mod sqlite;

use std::time::Duration;

/// Nothing is waited for longer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);
