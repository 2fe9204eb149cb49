//! What the storage domain is told by the configuration, checked.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageSettings {
    pub cache: CacheSettings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    pub kind: CacheKind,
    /// Of keys and values.
    pub max_bytes: u64,
    /// Nothing is kept longer, whatever its own time says.
    pub ttl: Duration,
}

/// Where cached answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// In this process; they end with it.
    Memory,
}

impl CacheKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
        }
    }
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { kind: CacheKind::Memory, max_bytes: 64 << 20, ttl: Duration::from_secs(24 * 3600) }
    }
}
