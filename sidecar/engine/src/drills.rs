//! When drills are due, and the result of the last one.
//!
//! This crate cannot mount points, so it runs no drills: the caller of the service does. This module
//! defines what both share: the settings, and the file `drill.json` in the disk's state directory, which is
//! replaced atomically.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_host::atomic::Durability;
use backstay_host::record::{self, RecordError};
use backstay_vault::{DrillCheck, DrillRecord};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

const FILE: &str = "drill.json";
/// A drill that could not be made is tried again after this long, or after its interval if that is less.
const AGAIN: Duration = Duration::from_secs(600);

/// How points of a disk are tried by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillSettings {
    /// From one drill to the next; zero: none.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// How.
    #[serde(deserialize_with = "check_of_drill")]
    pub check: DrillCheck,
    /// The line for the shell of `check = "command"`.
    pub command: Option<String>,
    /// How long the check may take.
    #[serde(default, with = "humantime_serde")]
    pub timeout: Option<Duration>,
    /// What the console must say, of `check = "boot"`.
    pub expect: Option<String>,
    /// Memory of the machine.
    pub memory: Option<ByteSize>,
    /// A kernel for it.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: Option<String>,
}

/// Reading points back is no drill: `scrub` says how often that is done.
fn check_of_drill<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DrillCheck, D::Error> {
    match DrillCheck::deserialize(from)? {
        DrillCheck::Scrub => {
            Err(serde::de::Error::custom("a drill is fsck, command or boot; see scrub"))
        }
        check => Ok(check),
    }
}

/// The last drill of a disk on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// When it was last tried, nanoseconds since 1970.
    pub tried_unix_ns: u64,
    /// Why there was no verdict then.
    pub error: Option<String>,
    /// The last verdict.
    pub verdict: Option<DrillRecord>,
}

impl Drilled {
    /// Reads it. One that cannot be read is as good as none: then a drill is due.
    #[must_use]
    pub fn load(state_dir: &Path) -> Option<Self> {
        record::load_shown(&state_dir.join(FILE))
    }

    /// Replaces it. The verdict itself is in the vault.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&state_dir.join(FILE), self, Durability::Relaxed)
    }

    /// What about it is worth a warning.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if let Some(verdict) = self.verdict.as_ref().filter(|verdict| !verdict.passed) {
            return Some(format!(
                "the drill of point {} failed: {}",
                verdict.cycle, verdict.message
            ));
        }
        self.error.as_ref().map(|error| format!("no drill could be made: {error}"))
    }
}

/// When the next drill is due, nanoseconds since 1970.
#[must_use]
pub fn due(settings: &DrillSettings, last: Option<&Drilled>) -> u64 {
    let Some(last) = last else { return 0 };
    let wait = if last.error.is_some() { settings.every.min(AGAIN) } else { settings.every };
    last.tried_unix_ns.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use backstay_types::{CycleNo, DiskId, PointId};

    fn verdict(passed: bool) -> DrillRecord {
        DrillRecord {
            drill: Default::default(),
            disk: DiskId::from_bytes([1; 16]),
            cycle: CycleNo(3),
            point: PointId::from_bytes([1; 16]),
            check: DrillCheck::Fsck,
            passed,
            message: "xfs: broken".into(),
            by: String::new(),
            began_unix_ns: 1,
            ended_unix_ns: 2,
        }
    }

    #[test]
    fn what_failed_is_told_until_it_passes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Drilled::load(dir.path()), None);
        let mut drilled = Drilled { tried_unix_ns: 5, error: None, verdict: Some(verdict(false)) };
        drilled.save(dir.path()).unwrap();
        let read = Drilled::load(dir.path()).unwrap();
        assert_eq!(read, drilled);
        assert!(read.trouble().unwrap().contains("point 3 failed: xfs"));
        drilled.verdict = Some(verdict(true));
        assert_eq!(drilled.trouble(), None);
        drilled.error = Some("no qemu".into());
        assert!(drilled.trouble().unwrap().contains("no qemu"));
    }

    #[test]
    fn drills_are_due_by_their_settings() {
        let text = "drill = { every = \"1d\", check = \"fsck\" }\n[policy.vm]\n\
                    drill = { every = \"2h\", check = \"boot\", expect = \"login:\", memory = \"1GiB\" }\n\
                    [disk.a]\npolicy = \"vm\"\n[disk.b]\ndrill = { every = \"0s\", check = \"fsck\" }\n";
        let config: Config = toml::from_str(text).unwrap();
        let of = |name: &str| config.drill_of(&name.parse().unwrap());
        assert_eq!(of("a").unwrap().check, DrillCheck::Boot);
        assert_eq!(of("b"), None);
        let daily = of("c").unwrap();
        assert_eq!(due(daily, None), 0);
        let mut last = Drilled { tried_unix_ns: 7, error: None, verdict: None };
        assert_eq!(due(daily, Some(&last)), 86_400_000_000_007);
        last.error = Some("vault gone".into());
        assert_eq!(due(daily, Some(&last)), 600_000_000_007);
        assert!(toml::from_str::<Config>("drill = { every = \"1d\", check = \"luck\" }").is_err());
    }
}
