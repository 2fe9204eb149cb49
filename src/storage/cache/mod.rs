//! The cache of answers: in memory, or sealed in a store that is elsewhere.

pub mod external;
pub mod memory;
pub mod seal;
