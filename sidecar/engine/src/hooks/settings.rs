//! The `[disk.NAME.hooks]` section of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What makes the points of a disk application-consistent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HookSettings {
    /// Command lines before the freeze, in this order.
    pub pre: Vec<String>,
    /// File systems on the disk to freeze, by where they are mounted.
    pub freeze: Vec<PathBuf>,
    /// Command lines after the thaw, in this order.
    pub post: Vec<String>,
    /// The most each command may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The most from the first freeze to the thaw.
    #[serde(with = "humantime_serde")]
    pub freeze_timeout: Duration,
    /// Whether a point that would not be application-consistent is not made at all.
    pub require: bool,
}

impl Default for HookSettings {
    fn default() -> Self {
        Self {
            pre: vec![],
            freeze: vec![],
            post: vec![],
            timeout: Duration::from_secs(30),
            freeze_timeout: Duration::from_secs(10),
            require: false,
        }
    }
}

impl HookSettings {
    /// Whether there is nothing to do around a cut.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.pre.is_empty() && self.freeze.is_empty() && self.post.is_empty()
    }
}
