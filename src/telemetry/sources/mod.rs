//! Sources of log records other than files, and what is known of where records come from.

pub mod kubernetes;
